"""FLARE's processes that work in a folder: given plain paths, found by their command lines, and ended."""

import contextlib
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from src.common.errors import CourseError
from src.common.paths import own_folder

MODULES = "nvflare."  # which such a process's command line names
PATIENCE_SECONDS, END_SECONDS = 3.0, 60.0
PLAIN = re.compile(r"[\w./~+=@:-]+", re.ASCII)


def processes_below(*folders: Path | str) -> list[psutil.Process]:
    """FLARE's processes with one of these folders in their command line, and what they started; no TensorBoard that looks there."""
    places, found = [f"{folder}/" for folder in folders], set()
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        at_work = any(f"{word}/".startswith(place) for word in words for place in places)
        if at_work and any(word.startswith(MODULES) or word.endswith("start.sh") for word in words):
            with contextlib.suppress(psutil.NoSuchProcess):
                found |= {process, *process.children(recursive=True)}
    return [process for process in found if process.is_running()]


def end_processes_below(*folders: Path | str, patience: float = PATIENCE_SECONDS) -> None:
    """End them: first asked to, after ``patience`` seconds made to (0: at once, as when the power fails); a ``CourseError`` if some
    are left after ``END_SECONDS``."""
    deadline = time.monotonic() + END_SECONDS
    # Again until none is left: a site may just have started a job's process, and a simulator starts a site anew that has ended.
    while family := processes_below(*folders):
        if time.monotonic() > deadline:
            left = " ".join(str(process.pid) for process in family)
            raise CourseError(f"Processes that work in {folders[0]} do not end. End them by hand: kill -9 {left}")
        for end, seconds in {"terminate": patience, "kill": PATIENCE_SECONDS}.items():
            for process in family if seconds else ():
                with contextlib.suppress(psutil.NoSuchProcess):
                    getattr(process, end)()
            family = psutil.wait_procs(family, timeout=seconds)[1]


@contextlib.contextmanager
def plain_paths(python: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield both as strings, as they are or through links: FLARE splits command lines as a shell does, at a blank or a quote."""
    if PLAIN.fullmatch(f"{python}{folder}"):
        yield str(python), str(folder)
        return
    place = tempfile.gettempdir()
    if not PLAIN.fullmatch(place):
        raise CourseError(f"FLARE needs a temporary folder with a plain name, not {place}; set TMPDIR to one.")
    with own_folder("links") as made:
        environment, run = Path(made, "environment"), Path(made, "run")
        # The interpreter finds its packages from its own place, so the environment is linked, not the binary.
        environment.symlink_to(python.parent.parent, target_is_directory=True)
        run.symlink_to(folder, target_is_directory=True)
        yield str(environment / python.parent.name / python.name), str(run)
