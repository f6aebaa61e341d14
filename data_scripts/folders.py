"""Folders of raw data: where they lie, how they appear whole, one process at a time, and what says that one holds drawings."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import lock_descriptor

from src.common.errors import CourseError
from src.common.files import read_json, write_json, writing
from src.common.paths import data_root

LOCK_SECONDS = 3600  # that one process waits for another one, which may be downloading on a slow line
GENERATED = "generated.json"  # a folder of drawings says in this file what drew it; a folder without it holds real data


def data_source(source: str | None = None) -> str:
    """``generated`` or ``real``: what is given, else ``COURSE_DATA_SOURCE``, else drawings. A ``CourseError`` for another word."""
    source = source or os.environ.get("COURSE_DATA_SOURCE") or "generated"
    if source not in ("generated", "real"):
        raise CourseError(f"The data source is {source!r}; set COURSE_DATA_SOURCE to 'generated' (default) or 'real'.")
    return source


def raw_folder(name: str, source: str | None = None, root: Path | None = None) -> Path:
    """Where a raw data set lies: ``<data folder>/<name>`` for real data, ``<data folder>/generated/<name>`` for drawings."""
    root = Path(root or data_root()).expanduser().resolve()
    return root / name if data_source(source) == "real" else root / "generated" / name


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield an empty folder which takes the place of ``folder``, whole, when the block ends without an error; else nothing is left.
    A ``CourseError`` if it cannot be written."""
    folder = Path(folder)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            new, old = beside / "new", beside / "old"
            new.mkdir()
            yield new
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time work below ``folder``, which is made; another one waits. The folder is the lock: no file stays.
    A ``CourseError`` if the other one is not done after an hour."""
    with writing(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + LOCK_SECONDS
    try:
        # Some network file systems cannot lock a folder; then two at once are the caller's affair.
        with contextlib.suppress(OSError):
            while not lock_descriptor(handle, blocking=False):
                if time.monotonic() > deadline:
                    said = f"after {LOCK_SECONDS} s. Wait for it, or end it, and run this again."
                    raise CourseError(f"Another process still works in {folder} {said}")
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system cannot (another disk). The course never writes in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def generated(folder: Path, parameters: dict, draw: Callable[[Path], None]) -> Path:
    """A folder that ``draw`` fills when it is not there, or was made with other ``parameters``; who asks meanwhile waits for it. A
    ``CourseError`` if something else is in that place, or it cannot be written."""
    folder = Path(folder)
    with one_at_a_time(folder.parent):
        if read_json(folder / GENERATED) == parameters:
            return folder
        if folder.exists() and not is_generated(folder) and (not folder.is_dir() or any(folder.iterdir())):
            said = "was not drawn by this course. Move it away, or choose another folder (COURSE_DATA)."
            raise CourseError(f"{folder} is in the place of the drawings and {said}")
        with staged(folder) as new:
            draw(new)
            write_json(new / GENERATED, parameters)
    return folder


def is_generated(folder: Path) -> bool:
    """True for drawings of this course, False for real data, or nothing."""
    return (Path(folder) / GENERATED).is_file()
