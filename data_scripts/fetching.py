"""Fetches the archive of a public data set once: verified by its checksum, unpacked beside, moved into place whole."""

import os
import socket
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from data_scripts.folders import one_at_a_time, staged
from src.common.errors import CourseError, all_of, first_line
from src.common.files import writing

SECONDS = 60  # of silence; MONAI's downloader would wait for ever
Step = Callable[[Path], object]


def fetch(folder: Path, url: str, md5: str, check: Step, *others: Step, say: Callable[[str], None] = print) -> Path:
    """Download an archive and unpack its top folder, which has the name of ``folder``, to where that is missing or empty. One that
    lies beside ``folder`` already, brought by hand, is taken instead, and stays. Its publisher's ``md5`` finds broken downloads, no
    attackers. ``check`` looks at the unpacked folder before it is moved, and refuses it by a ``CourseError``; ``others`` may bring
    the archive to a path, in this order, when ``url`` fails. A ``CourseError`` if every source fails, the sum differs, the archive
    is damaged or lacks something, or the disk is full."""
    archive = folder.parent / url.rsplit("/", 1)[-1]
    with one_at_a_time(folder.parent):
        if folder.is_dir() and any(folder.iterdir()):  # another process was faster
            check(folder)
            return folder
        if brought := archive.exists():
            _get(archive, url, md5, f"Delete {archive} and run this again: it")
        else:
            say(f"Downloading {folder.name} from {url}")
            _download(archive, url, md5, others, say)
        _unpack(archive, folder, check)
        if not brought:
            archive.unlink()
    say(f"{folder}: unpacked.")
    return folder


def _get(path: Path, url: str, md5: str, what: str) -> None:
    """Download a file, or verify the one that is there; MONAI shows how far it is, and which sum it found."""
    from monai.apps.utils import HashCheckError, download_url

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)
    try:
        download_url(url, path, md5, "md5")
    except HashCheckError as error:
        raise CourseError(f"{what} has another MD5 checksum than {md5}") from error
    except (HTTPException, OSError, RuntimeError, ValueError) as error:
        raise CourseError(f"{first_line(error)}: {url}") from error
    finally:
        socket.setdefaulttimeout(before)


def _download(archive: Path, url: str, md5: str, others: tuple, say: Callable[[str], None]) -> None:
    problems = []
    with writing(archive), tempfile.TemporaryDirectory(prefix=f".{archive.name}-", dir=archive.parent) as beside:
        part = Path(beside) / archive.name
        for bring in (lambda path: None, *others):
            try:
                bring(part)
                _get(part, url, md5, "what arrived")
                part.replace(archive)
                return
            except (CourseError, OSError) as error:
                problems.append(first_line(error))
                say(f"That failed: {problems[-1]}")
    ways = f"copy the archive to {archive}, or use the drawings: COURSE_DATA_SOURCE=generated"
    raise all_of(f"{archive.name} could not be downloaded. Check the network and run this again, or {ways}", problems)


def _unpack(archive: Path, folder: Path, check: Step) -> None:
    from monai.apps.utils import extractall

    with staged(folder) as new:
        made = new / folder.name
        try:
            extractall(archive, new, has_base=False)
            check(made)
        # ValueError: MONAI refuses members that would land outside of the folder. BadGzipFile is an OSError without a number.
        except (CourseError, tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            said = f"{first_line(error).replace(str(made), folder.name)} Nothing was left behind;"
            raise CourseError(f"{archive} cannot be used: {said} delete the archive and run this again.") from error
        for entry in os.listdir(made):  # noqa: PTH208 - the names alone
            (made / entry).rename(new / entry)
        made.rmdir()
