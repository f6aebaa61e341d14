"""FLARE's processes that work in a folder: found by their command lines, and ended."""

import contextlib
from pathlib import Path

import psutil

MODULES = ("nvflare.", "src.federation.")
"""What the command line of such a process names: FLARE's own module, or that of the course's simulator."""
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
        if at_work and any(word.startswith(MODULES) or word.endswith("start.sh") for word in words):
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
