"""Ends a federation on this machine when its owner is gone, however it went: ``python guard.py FOLDER [LINKS]``.

The owner holds the other end of this process's standard input. When it closes it, or is killed, which closes it too, all FLARE
processes that work below the folder end, and the folder is removed. A process of its own can promise that also for an owner who
gets no chance to clear up: a kernel that is killed, a notebook whose cell fails.
"""

import contextlib
import shutil
import signal
import sys
from pathlib import Path

import psutil

PATIENCE_SECONDS = 3.0


def processes_below(*folders: Path | str) -> list[psutil.Process]:
    """FLARE's processes with one of these folders in their command line, and what they started.

    A TensorBoard that a reader opened on the same folder is none.
    """
    places = [str(folder) for folder in folders]
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        at_work = any(word == place or word.startswith(f"{place}/") for word in words for place in places)
        if at_work and any("nvflare." in word or word.endswith(("federation.simulator", "start.sh")) for word in words):
            found[process.pid] = process
            with contextlib.suppress(psutil.NoSuchProcess):
                found |= {child.pid: child for child in process.children(recursive=True)}
    return [process for process in found.values() if process.is_running()]


def end_processes_below(*folders: Path | str, patience: float = PATIENCE_SECONDS) -> None:
    """End them: first asked to, after ``patience`` seconds made to (0: at once, as when the power fails)."""
    # Again until none is left: a site may just have started a job's process, and a simulator starts a site anew that has ended.
    while family := processes_below(*folders):
        for process in family if patience else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(family, timeout=patience)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=PATIENCE_SECONDS)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(0)


def main(folder: str, *links: str) -> None:
    """Wait for the owner's end, then clear everything away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    try:
        sys.stdin.buffer.read()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_processes_below(folder, *links)
        for path in (folder, *links):
            shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
