"""Fetches archives of public data: download that continues where it stopped, checksum, unpacking in one move.

MONAI's ``download_url`` starts a broken download again from its first byte, downloads into the system's temporary
folder, which is often smaller than the data folder, and keeps silent when it may not write to the target. A hospital's
network breaks, so the download is done here, with HTTP's ``Range`` (RFC 9110, section 14). Unpacking is MONAI's.
"""

import contextlib
import hashlib
import http.client
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from src.errors import CourseError

_CHUNK = 1 << 18  # bytes
_RANGE_NOT_SATISFIABLE = 416


def md5_of(file: Path) -> str:
    """MD5 checksum of a file, in hexadecimal. It finds broken downloads; it is no protection against an attacker.

    Raises:
        CourseError: if the file cannot be read.
    """
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with Path(file).open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise CourseError(
            f"Cannot read {file}: {error.strerror or error}. Move it out of the way and run again."
        ) from error
    return digest.hexdigest()


def download(url: str, file: Path, md5: str, hint: str = "", timeout: float = 30.0) -> Path:
    """Download an archive once, with a progress bar, and check that it is the right one.

    What has arrived is kept in ``<file>.part``; a call after a broken one asks for the rest only. ``file`` itself
    appears complete and verified or not at all, and when it is there already nothing is downloaded.

    Args:
        url: address of the archive.
        file: where to put it; its folder is made.
        md5: checksum that the publisher gives.
        hint: another way out, added to the message when the network fails.
        timeout: seconds without a byte after which the connection counts as broken.

    Returns:
        ``file``.

    Raises:
        CourseError: if the address cannot be reached, the connection breaks, the checksum differs, or the folder is
            full or cannot be written to. Unless the message says otherwise, calling again continues.
    """
    file = Path(file)
    if file.exists():
        found = md5_of(file)
        if found != md5:
            raise CourseError(
                f"{file} is damaged or another file: its MD5 checksum is {found}, expected {md5}. "
                "Delete it and run again to download it anew."
            )
        return file
    part = file.with_name(f"{file.name}.part")
    with _writing(part):
        file.parent.mkdir(parents=True, exist_ok=True)
        _receive(url, part, hint, timeout)
        found = md5_of(part)
        if found != md5:
            part.unlink()
            raise CourseError(
                f"What arrived from {url} is not {file.name}: its MD5 checksum is {found}, expected {md5}. "
                f"It was deleted; run again to download it anew. {hint}".rstrip()
            )
        part.replace(file)
    return file


def unpack(archive: Path, folder: Path, check: Callable[[Path], object]) -> Path:
    """Unpack the top folder of an archive that has the name of ``folder``, check it, and move it into place whole.

    Args:
        archive: ``.tar``, ``.tar.gz`` or ``.zip`` file.
        folder: where its content belongs; missing or empty.
        check: called with the unpacked folder before it is moved; raises a ``CourseError`` if something is missing.

    Returns:
        ``folder``.

    Raises:
        CourseError: if the archive is damaged or incomplete, or the folder is full or cannot be written to; nothing
            is left behind then.
    """
    from monai.apps.utils import extractall

    archive, folder = Path(archive), Path(folder)
    with _writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
            made = Path(beside) / folder.name
            try:
                extractall(archive, beside, has_base=False)
                check(made)
            # ValueError: MONAI refuses members that would land outside the folder. BadGzipFile is an OSError.
            except (CourseError, tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
                raise _damaged(archive, str(error).replace(str(made), folder.name)) from error
            except OSError as error:
                if error.errno is None:
                    raise _damaged(archive, str(error)) from error
                raise
            try:
                made.replace(folder)
            except OSError:
                # Another process was faster; its folder serves as well.
                if not folder.is_dir():
                    raise
                check(folder)
    return folder


def _damaged(archive: Path, reason: str) -> CourseError:
    reason = " ".join(reason.split()).rstrip(".")
    return CourseError(
        f"{archive} cannot be unpacked: {reason}. "
        "Nothing was left behind; delete the archive and run again to download it anew."
    )


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into one clear error."""
    try:
        yield
    except OSError as error:
        raise CourseError(
            f"Cannot write {path}: {error.strerror or error}. Make room, or set COURSE_DATA to a folder that you can "
            "write to, and run again."
        ) from error


def _receive(url: str, part: Path, hint: str, timeout: float) -> None:
    """Append to ``part`` what it lacks."""
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if have and error.code == _RANGE_NOT_SATISFIABLE:
            return  # nothing is lacking; the checksum decides
        raise _unreachable(url, part, f"the server answers {error.code} {error.reason}", hint) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _unreachable(url, part, f"{getattr(error, 'reason', None) or error}", hint) from error

    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0  # the server sends everything
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True, unit_divisor=1024)
        with part.open("ab" if have else "wb") as stream, bar:
            while True:
                try:
                    chunk = response.read(_CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise _unreachable(url, part, f"the connection broke ({error})", hint) from error
                if not chunk:
                    break
                stream.write(chunk)
                bar.update(len(chunk))
                have += len(chunk)
    if total is not None and have < total:
        raise _unreachable(url, part, f"the connection broke after {have:,} of {total:,} bytes", hint)


def _unreachable(url: str, part: Path, reason: str, hint: str) -> CourseError:
    kept = f" What has arrived is kept in {part}." if part.exists() and part.stat().st_size else ""
    return CourseError(
        f"Cannot download {url}: {reason}. Check the network and run again to continue.{kept} {hint}".rstrip()
    )
