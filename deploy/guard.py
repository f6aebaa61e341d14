"""Ends a federation on this machine when its owner is gone, however it went: ``python -m deploy.guard FOLDER [LINKS]``.

The owner holds the other end of this process's standard input. When it closes it, or is killed, which closes it too, all FLARE
processes that work below the folder end, and the folder is removed. A process of its own can promise that also for an owner who
gets no chance to clear up: a kernel that is killed, a notebook whose cell fails.
"""

import shutil
import signal
import sys

from src.federation.processes import end_processes_below


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
