"""Where data and runs live: two folders, each set by one environment variable, nothing else is written to."""

import os
import tempfile
import time
from pathlib import Path

from src.errors import CourseError


def _is_checkout(folder: Path) -> bool:
    return (folder / "pyproject.toml").is_file() and (folder / "src" / "paths.py").is_file()


def _home() -> Path:
    """The checkout that this module lies in or, for an installed copy, that the reader works in, else their folder.

    Every notebook, script and shell in one checkout thus shares its data, whichever folder each was started from.
    """
    here = Path.cwd()
    return next(filter(_is_checkout, (Path(__file__).resolve().parent.parent, here, *here.parents)), here)


def data_root() -> Path:
    """Folder of all data sets: ``COURSE_DATA``, by default ``data`` in the checkout. It may not exist yet."""
    return Path(os.environ.get("COURSE_DATA") or _home() / "data").expanduser().resolve()


def runs_root() -> Path:
    """Folder of all run folders: ``COURSE_RUNS``, by default ``runs`` in the checkout. It may not exist yet."""
    return Path(os.environ.get("COURSE_RUNS") or _home() / "runs").expanduser().resolve()


def data_source() -> str:
    """Which data to use: ``COURSE_DATA_SOURCE``, ``generated`` (default) or ``real``.

    Raises:
        CourseError: for any other value.
    """
    source = os.environ.get("COURSE_DATA_SOURCE") or "generated"
    if source not in ("generated", "real"):
        raise CourseError(f"COURSE_DATA_SOURCE is {source!r}; set it to 'generated' (default) or 'real'.")
    return source


def new_run_folder(name: str, root: Path | None = None) -> Path:
    """Create and return an empty folder ``<root>/<name>/<date>-<time>-<random>`` that no other run uses.

    Args:
        name: what runs, used as a folder name.
        root: default :func:`runs_root`.

    Raises:
        CourseError: if the folder cannot be created.
    """
    parent = Path(root or runs_root()) / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=parent))
    except OSError as error:
        raise CourseError(
            f"Cannot create a run folder under {parent}: {error.strerror}. "
            "Set COURSE_RUNS to a folder you can write to."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Replace a text file as a whole: a reader, or a run that was cut off, never sees half of it.

    Args:
        path: the file, in a folder that exists.
        text: its content, written as UTF-8.

    Raises:
        CourseError: if it cannot be written; the file is then as it was.
    """
    try:
        handle, beside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(beside).chmod(0o644)
            Path(beside).replace(path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CourseError(
            f"Cannot write {path}: {error.strerror}. Make room, or choose a folder you can write to."
        ) from error
