"""Ends a federation on this machine when its owner is gone, however it went: ``python -m deploy.guard FOLDER [LINKS]``.

The owner holds the other end of this process's standard input. When it closes it, or is killed, as a kernel may be that gets no
chance to clear up, all FLARE processes that work below the folder end, and the folder is removed. It says ``READY`` before there
is anything to clear away.
"""

import os
import select
import shutil
import signal
import sys
from pathlib import Path

from deploy.processes import end_processes_below

READY = "The guard is ready."
LOOK_SECONDS = 1.0


def clear_away(*paths: Path | str) -> None:
    """End FLARE's processes that work below these folders, and remove the folders; twice is as good as once."""
    try:
        end_processes_below(*paths)
    finally:  # keys go, whatever does not end
        for path in paths:
            shutil.rmtree(path, ignore_errors=True)


def main(*paths: str) -> None:
    """Wait for the owner's end, then clear everything away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    owner = os.getppid()
    try:
        print(READY, flush=True)
        # Without a limit: a course may stay open for weeks. What the owner has forked holds the other end too, and may outlive it.
        while os.getppid() == owner and not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
            pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        clear_away(*paths)


if __name__ == "__main__":
    main(*sys.argv[1:])
