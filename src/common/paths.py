"""Where data and runs live: two folders, each set by an environment variable; a relative one starts from the checkout."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import psutil

from src.common.files import writing


def course_folder() -> Path:
    """The checkout that this module lies in or, for an installed copy, that the reader works in, else their folder."""
    here, parts = Path.cwd(), ("pyproject.toml", "src/common/paths.py")
    places = Path(__file__).resolve().parents[2], here, *here.parents
    return next((place for place in places if all((place / part).is_file() for part in parts)), here)


def data_root() -> Path:
    """Folder of all data sets: ``COURSE_DATA``, by default ``data`` in the checkout. It may not exist yet."""
    return (course_folder() / Path(os.environ.get("COURSE_DATA") or "data").expanduser()).resolve()


def runs_root() -> Path:
    """Folder of all run folders: ``COURSE_RUNS``, by default ``runs`` in the checkout."""
    return (course_folder() / Path(os.environ.get("COURSE_RUNS") or "runs").expanduser()).resolve()


def sites_folder(data: str) -> Path:
    """The folder of all sites that this machine holds of one shared-out data set; at a hospital, that is one."""
    return data_root() / "sites" / data


def new_run_folder(name: str, root: Path | None = None) -> Path:
    """Make an empty folder ``<runs>/<name>/<date>-<time>-<random>`` that no other run uses; a ``CourseError`` if that fails."""
    parent = Path(root or runs_root()) / name
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=parent))


def own_folder(what: str) -> tempfile.TemporaryDirectory:
    """A temporary folder of this process; those of processes that were killed go first."""
    for left in Path(tempfile.gettempdir()).glob(f"course-{what}-[0-9]*-*"):
        if not psutil.pid_exists(int(left.name.split("-")[2])):
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"course-{what}-{os.getpid()}-")
