"""Fetches the archive of a public data set once: verified by its checksum, unpacked beside, moved into place whole."""

import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from data_scripts.folders import one_at_a_time, staged
from src.common.errors import CourseError, all_of, first_line

Source = Callable[[Path], object]
"""Something that brings a file to a path: pooch's downloader by default."""


def fetch(
    folder: Path,
    url: str,
    md5: str,
    check: Callable[[Path], object],
    *others: Source,
    say: Callable[[str], None] = print,
) -> Path:
    """Download an archive and unpack its top folder, which has the name of ``folder``.

    An archive that lies beside ``folder`` already, brought by hand, is taken instead, and stays.

    Args:
        folder: where the data belong; missing or empty.
        url: address of the archive, ``.tar``, ``.tar.gz`` or ``.zip``.
        md5: checksum that the publisher gives. It finds broken downloads; it is no protection against an attacker.
        check: called with the unpacked folder before it is moved; raises a ``CourseError`` if something is missing.
        *others: further sources, tried in this order when the first one fails.
        say: called with each line of progress.

    Raises:
        CourseError: if every source fails, the checksum differs, the archive is damaged or incomplete, or the disk is full;
            nothing half is left in place.
    """
    archive = folder.parent / url.rsplit("/", 1)[-1]
    with one_at_a_time(folder.parent):
        if folder.is_dir() and any(folder.iterdir()):  # another process was faster
            check(folder)
            return folder
        brought = archive.exists()
        if brought:
            _verify(archive, md5, f"Delete {archive} and run this again: it")
        else:
            say(f"Downloading {folder.name} from {url}")
            _download(archive, md5, [lambda path: _from_web(url, path), *others], say)
        _unpack(archive, folder, check)
        if not brought:
            archive.unlink()
    say(f"{folder}: unpacked.")
    return folder


def _from_web(url: str, path: Path) -> None:
    import pooch

    pooch.HTTPDownloader(progressbar=True, timeout=60)(url, str(path), None)


def _download(archive: Path, md5: str, sources: list[Source], say: Callable[[str], None]) -> None:
    import requests

    problems = []
    part = archive.with_name(f".{archive.name}.part")
    try:
        for source in sources:
            try:
                source(part)
                _verify(part, md5, "what arrived")
                part.replace(archive)
                return
            except (requests.RequestException, CourseError, OSError) as error:
                problems.append(first_line(error))
                say(f"That failed: {problems[-1]}")
    finally:
        part.unlink(missing_ok=True)
    raise all_of(
        f"{archive.name} could not be downloaded. Check the network and run this again, or copy the archive to {archive}, or "
        "use the drawings: COURSE_DATA_SOURCE=generated",
        problems,
    )


def _verify(archive: Path, md5: str, what: str) -> None:
    import pooch

    found = pooch.file_hash(str(archive), alg="md5")
    if found != md5:
        raise CourseError(f"{what} has the MD5 checksum {found}, expected {md5}")


def _unpack(archive: Path, folder: Path, check: Callable[[Path], object]) -> None:
    from monai.apps.utils import extractall

    with staged(folder) as new:
        try:
            extractall(archive, new, has_base=False)
            made = new / folder.name
            check(made)
        # ValueError: MONAI refuses members that would land outside of the folder. BadGzipFile is an OSError without a number.
        except (CourseError, tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            said = first_line(error).replace(str(new / folder.name), folder.name)
            raise CourseError(
                f"{archive} cannot be used: {said} Nothing was left behind; delete the archive and run this again."
            ) from error
        for entry in os.listdir(made):  # noqa: PTH208 - the names alone
            (made / entry).rename(new / entry)
        made.rmdir()
