"""Writing whole or not at all: the one place where the course puts files on a disk."""

import contextlib
import errno
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from src.common.errors import CourseError

if sys.platform == "win32":
    said = "The course runs on Linux and macOS. On Windows, run it inside WSL: https://learn.microsoft.com/windows/wsl/install"
    raise CourseError(said)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says while writing to ``path`` into a ``CourseError``."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "Free some space" if full else "Choose a folder that you can write to"
        said = f"{error.strerror or error}. {advice}, and run this again; what was there before is unchanged."
        raise CourseError(f"Cannot write {path}: {said}", "it cannot write to its disk") from error


def write_file(path: Path, content: str | bytes) -> Path:
    """Replace a file as a whole, so that nobody ever sees half of it; a ``CourseError`` if it cannot be written. Text is UTF-8."""
    path = Path(path)
    with writing(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        os.close(handle)
        beside = Path(name)
        try:
            # File names that are no UTF-8 arrive as surrogates, and go back to the bytes that they were.
            beside.write_bytes(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
            try:
                beside.chmod(0o644)  # mkstemp's 0600 would shut out colleagues
            except OSError as error:  # a network drive (CIFS) has modes of its own
                if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS):
                    raise
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
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape"))
        return content if isinstance(content, dict) else None


def load_json(path: Path, what: str, advice: str, kind: str) -> object:
    """The content of a JSON file that a person may have written; a ``CourseError`` where it cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise CourseError(f"Cannot read the {what} {path}: {said}. {advice}", kind) from error


def stamp(*files: Path) -> list[int]:
    """Size and time of files: changes when one of them does."""
    return [number for one in map(os.stat, files) for number in (one.st_size, one.st_mtime_ns)]
