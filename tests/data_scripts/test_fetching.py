"""Fetching an archive from a server of the test's own, with everything that can go wrong on the way."""

import errno
import hashlib
import io
import os
import socket
import tarfile
import time
from pathlib import Path

import pytest

from data_scripts import fetching
from src.common.errors import CourseError
from tests.tests_support import FULL, Server, at_once, course_error, failing, files_of, names_in, rows

CONTENT = {"imagesTr/a.nii.gz": b"image a" * 200, "labelsTr/a.nii.gz": b"mask a", "dataset.json": b"{}"}


def archive_of(content=CONTENT, top="Task") -> bytes:
    """A tar file with the content, and the hidden files that a Mac adds."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in {**content, "._a": b""}.items():
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


ARCHIVE = archive_of()
MD5 = hashlib.md5(ARCHIVE).hexdigest()


@pytest.fixture
def server():
    server = Server("Task.tar.gz", ARCHIVE)
    yield server
    server.close()


def fetch(server, home, *others, right=ARCHIVE) -> Path:
    def check(folder: Path) -> None:
        if not (folder / "labelsTr").is_dir():
            raise CourseError(f"{folder}/labelsTr is missing.")

    return fetching.fetch(home / "Task", server.url, hashlib.md5(right).hexdigest(), check, *others, say=len)


def assert_complete(folder: Path, also=()):
    assert {name: data for name, data in files_of(folder).items() if name != "._a"} == CONTENT
    assert names_in(folder.parent) == sorted(["Task", *also]), "nothing half is left beside"


def test_fetches_once_also_for_several_at_once_and_shows_progress(server, home, capfd):
    at_once(3, lambda: fetch(server, home))
    assert_complete(home / "Task")
    assert fetch(server, home) == home / "Task" and server.asked == 1 and "Task.tar.gz: " in capfd.readouterr().err


def test_an_archive_that_was_brought_is_taken_and_stays(server, home):
    (home / "Task").mkdir(parents=True)  # an empty folder is as good as none
    (home / "Task.tar.gz").write_bytes(b"half")
    course_error(rf"Delete \S.*Task\.tar\.gz and run this again: it has another MD5 .* {MD5}", fetch, server, home)
    assert files_of(home) == {"Task.tar.gz": b"half"}
    (home / "Task.tar.gz").write_bytes(ARCHIVE)
    assert_complete(fetch(server, home), ["Task.tar.gz"])
    assert server.asked == 0


@rows(
    ("no server", {"url": "http://127.0.0.1:1/Task.tar.gz"}, r"(?s)Connection refused.*127\.0\.0\.1"),
    ("no address", {"url": "not-an-address"}, "unknown url type: 'not-an-address'"),
    ("not found", {"status": 404}, r"404: Not Found: http://127\.0\.0\.1:\d+/Task"),
    ("overloaded", {"status": 503}, r"503: .*: http://127\.0\.0\.1:\d+/Task"),
    ("a connection that breaks", {"cut": 100}, "got only 100 out of"),
    ("a server that falls silent", {"silent": 0.6}, "timed out"),
    ("another checksum", {"content": ARCHIVE[:-1] + b"?"}, f"what arrived has another MD5 .* {MD5}"),
)
def test_a_download_that_fails_leaves_nothing_and_names_the_ways_out(fault, said, server, home, monkeypatch):
    monkeypatch.setattr(fetching, "SECONDS", 0.2)
    right = server.url
    vars(server).update(fault)
    with pytest.raises(CourseError, match=said) as caught:
        fetch(server, home)
    for part in ("could not be downloaded. Check the network and run this again", str(home), "=generated"):
        assert part in str(caught.value)
    assert names_in(home) == [] and socket.getdefaulttimeout() is None
    time.sleep(0.6 if server.silent else 0)
    vars(server).update(status=None, cut=None, silent=0, content=ARCHIVE, url=right)
    assert_complete(fetch(server, home))


def test_the_next_source_is_asked_when_the_first_one_fails(server, home):
    server.status = 503

    def closed(path: Path):
        path.write_bytes(b"half")
        raise CourseError("the mirror is closed")

    def other(path: Path):
        path.write_bytes(b"a login page")

    course_error(r"(?s)3 problems.*503.*the mirror is closed.*what arrived", fetch, server, home, closed, other)
    assert names_in(home) == []
    assert_complete(fetch(server, home, other, lambda path: path.write_bytes(ARCHIVE)))


def test_a_disk_that_fills_up_and_a_data_folder_that_may_not_be_written_to(server, home, monkeypatch, tmp_path):
    from monai.apps import utils

    lost = pytest.raises(CourseError, match=r"could not be downloaded.*No space left")
    with failing(monkeypatch, utils, "urlretrieve", FULL), lost:
        fetch(server, home)
    assert names_in(home) == []
    full = pytest.raises(CourseError, match=r"Cannot write \S.*/my data/Task: No space left.*Free some space")
    with failing(monkeypatch, utils.shutil, "copyfileobj", FULL, after=1), full:
        fetch(server, home)
    assert names_in(home) == ["Task.tar.gz"]
    assert_complete(fetch(server, home), ["Task.tar.gz"])
    assert server.asked == 1
    denied = pytest.raises(CourseError, match=r"Cannot write .*Permission denied")
    with failing(monkeypatch, Path, "mkdir", PermissionError(errno.EACCES, os.strerror(errno.EACCES))), denied:
        fetch(server, tmp_path / "new")
    (tmp_path / "my file").write_text("a file")
    course_error(r"Cannot write \S.*/my file", fetch, server, tmp_path / "my file")


@rows(
    ("no masks", archive_of({"imagesTr/a": b""}), r"Task/labelsTr is missing"),
    ("half", ARCHIVE[:100], "end-of-stream"),
    ("text", b"this is no archive", "could not be opened"),
    ("another folder", archive_of(top="Other"), r"Task/labelsTr"),
    ("outside", archive_of({"../../outside": b""}), "[Uu]nsafe"),
)
def test_an_archive_that_lacks_something_leaves_nothing(content, reason, server, home):
    server.content = content
    course_error(rf"Task\.tar\.gz cannot be used: .*{reason}.*delete the archive", fetch, server, home, right=content)
    assert names_in(home) == ["Task.tar.gz"] and names_in(home.parent) == ["my data"]
