"""Writing whole or not at all: the one place where the course puts files and folders on a disk."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from src.common.errors import CourseError

try:
    import fcntl
except ModuleNotFoundError:
    raise CourseError(
        "The course runs on Linux and macOS. On Windows, run it inside WSL: https://learn.microsoft.com/windows/wsl/install"
    ) from None

GENERATED = "generated.json"
"""A folder of drawings says in this file what drew it; a folder without it holds real data."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says while writing to ``path`` into a ``CourseError``."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise CourseError(
            f"Cannot write {path}: {error.strerror or error}. "
            f"{'Free some space' if full else 'Choose a folder that you can write to'}, and run this again; "
            "what was there before is unchanged.",
            kind="it cannot write to its disk",
        ) from error


def write_file(path: Path, content: str | bytes) -> Path:
    """Replace a file as a whole, so that nobody ever sees half of it. Text is written as UTF-8.

    Raises:
        CourseError: if it cannot be written; the file is then as it was.
    """
    path = Path(path)
    with writing(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        beside = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                # File names that are no UTF-8 arrive as surrogates, and go back to the bytes that they were.
                file.write(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
            beside.chmod(0o644)  # mkstemp's 0600 would shut out colleagues
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    return path


def write_json(path: Path, content: object) -> Path:
    """:func:`write_file` for JSON, in lines that a person can read."""
    return write_file(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict | None:
    """The JSON object in a file; None where there is none that can be read."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder``, which takes its place, whole, when the block ends without an error.

    What was in that place before is removed only then. After an error nothing is left.

    Raises:
        CourseError: if it cannot be written.
    """
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
    """Let one process at a time work below ``folder``, which is made; another one waits."""
    with writing(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems cannot lock a folder; then two at once are the caller's affair.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system cannot (another disk). The course never writes in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def stamp(*files: Path) -> list[int]:
    """Size and time of files: changes when one of them does."""
    return [number for file in files for number in (Path(file).stat().st_size, Path(file).stat().st_mtime_ns)]


def generated(folder: Path, parameters: dict, draw: Callable[[Path], None]) -> Path:
    """A folder of drawings, drawn when it is not there, and drawn again when it was made with other parameters.

    Two processes that ask at once do not meet: the second waits and finds the work done.

    Args:
        folder: where it belongs.
        parameters: what the drawings depend on: generator, its version, seed, numbers.
        draw: called with an empty folder to fill.

    Raises:
        CourseError: if something else is in that place, or it cannot be written.
    """
    folder = Path(folder)
    with one_at_a_time(folder.parent):
        if read_json(folder / GENERATED) == parameters:
            return folder
        if folder.exists() and not is_generated(folder) and (not folder.is_dir() or any(folder.iterdir())):
            raise CourseError(
                f"{folder} is in the place of the drawings and was not drawn by this course. Move it away, or choose "
                "another folder (COURSE_DATA)."
            )
        with staged(folder) as new:
            draw(new)
            write_json(new / GENERATED, parameters)
    return folder


def is_generated(folder: Path) -> bool:
    """True for drawings of this course, False for real data, or nothing."""
    return (Path(folder) / GENERATED).is_file()
