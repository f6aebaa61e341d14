"""Fetching an archive from a server of the test's own, with everything that can go wrong on the way."""

import errno
import hashlib
import io
import os
import socket
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest

from data_scripts import fetching
from src.common.errors import CourseError
from tests.tests_support import FULL, Server, failing, files_of, names_in

CONTENT = {"imagesTr/a.nii.gz": b"image a" * 200, "labelsTr/a.nii.gz": b"mask a", "dataset.json": b"{}"}


def archive_of(content=CONTENT, top="Task", mode="w:gz") -> bytes:
    """A tar file with the content, and the hidden files that a Mac adds."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for name, data in {**content, "._a": b""}.items():
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in CONTENT.items():
            archive.writestr(f"Task/{name}", data)
    return stream.getvalue()


ARCHIVE = archive_of()
MD5 = hashlib.md5(ARCHIVE).hexdigest()


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A data folder that does not exist yet, reached without any proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "my data"


@pytest.fixture
def server():
    server = Server("Task.tar.gz", ARCHIVE)
    yield server
    server.close()


def fetch(server, root, *others, right=ARCHIVE) -> Path:
    def check(folder: Path) -> None:
        if not (folder / "labelsTr").is_dir():
            raise CourseError(f"{folder}/labelsTr is missing.")

    url = server if isinstance(server, str) else server.url
    md5 = hashlib.md5(right).hexdigest()
    return fetching.fetch(root / "Task", url, md5, check, *others, say=lambda line: None)


def assert_complete(folder: Path, also=()):
    assert {name: data for name, data in files_of(folder).items() if name != "._a"} == CONTENT
    assert names_in(folder.parent) == sorted(["Task", *also]), "nothing half is left beside"


@pytest.mark.parametrize(
    ("name", "content"),
    [("Task.tar.gz", ARCHIVE), ("Task.tar", archive_of(mode="w")), ("Task.zip", zipped())],
    ids=["tar.gz", "tar", "zip"],
)
def test_fetches_once_and_shows_progress(root, capfd, name, content):
    server = Server(name, content)
    for _ in range(2):
        assert fetch(server, root, right=content) == root / "Task"
        assert_complete(root / "Task")
    server.close()
    assert server.asked == 1 and f"{name}: " in capfd.readouterr().err


def test_an_archive_that_was_brought_is_taken_and_stays(server, root):
    (root / "Task").mkdir(parents=True)  # an empty folder is as good as none
    (root / "Task.tar.gz").write_bytes(b"half")
    with pytest.raises(CourseError, match=rf"Delete \S.*Task\.tar\.gz and run this again: it has another MD5 .* {MD5}"):
        fetch(server, root)
    assert files_of(root) == {"Task.tar.gz": b"half"}
    (root / "Task.tar.gz").write_bytes(ARCHIVE)
    assert_complete(fetch(server, root), ["Task.tar.gz"])
    assert server.asked == 0


def nobody(server: Server) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/Task.tar.gz"


def fault(**attributes):
    def spoil(server: Server) -> str:
        vars(server).update(attributes)
        return server.url

    return spoil


FAULTS = {
    "no server": (nobody, r"(?s)Connection refused.*127\.0\.0\.1"),
    "no address": (lambda server: "not-an-address", "unknown url type: 'not-an-address'"),
    "not found": (fault(status=404), r"404: Not Found: http://127\.0\.0\.1:\d+/Task"),
    "overloaded": (fault(status=503), r"503: .*: http://127\.0\.0\.1:\d+/Task"),
    "a connection that breaks": (fault(cut=100), "got only 100 out of"),
    "a server that falls silent": (fault(silent=0.6), "timed out"),
    "another checksum": (fault(content=ARCHIVE[:-1] + b"?"), f"what arrived has another MD5 .* {MD5}"),
}


@pytest.mark.parametrize(("spoil", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_a_download_that_fails_leaves_nothing_and_names_the_ways_out(server, root, monkeypatch, spoil, said):
    monkeypatch.setattr(fetching, "SECONDS", 0.2)
    with pytest.raises(CourseError, match=said) as caught:
        fetch(spoil(server), root)
    for part in ("could not be downloaded. Check the network and run this again", str(root), "=generated"):
        assert part in str(caught.value)
    assert names_in(root) == [] and socket.getdefaulttimeout() is None
    time.sleep(0.6 if server.silent else 0)
    vars(server).update(status=None, cut=None, silent=0, content=ARCHIVE)
    assert_complete(fetch(server, root))


def test_the_next_source_is_asked_when_the_first_one_fails(server, root):
    server.status = 503
    asked = []

    def source(name: str, content: bytes, error: str = ""):
        def bring(path: Path):
            asked.append(name)
            path.write_bytes(content)
            if error:
                raise CourseError(error)

        return bring

    with pytest.raises(CourseError, match=r"(?s)3 problems.*503.*the mirror is closed.*what arrived"):
        fetch(server, root, source("closed", b"half", "the mirror is closed"), source("other", b"a login page"))
    assert names_in(root) == []
    assert_complete(fetch(server, root, source("broken", b"a login page"), source("good", ARCHIVE)))
    assert asked == ["closed", "other", "broken", "good"]


def test_a_disk_that_fills_up(server, root, monkeypatch):
    from monai.apps import utils

    with (
        failing(monkeypatch, utils, "urlretrieve", FULL),
        pytest.raises(CourseError, match=r"could not be downloaded.*No space left"),
    ):
        fetch(server, root)
    assert names_in(root) == []
    with (
        failing(monkeypatch, utils.shutil, "copyfileobj", FULL, after=1),
        pytest.raises(CourseError, match=r"Cannot write \S.*/my data/Task: No space left.*Free some space"),
    ):
        fetch(server, root)
    assert names_in(root) == ["Task.tar.gz"]
    assert_complete(fetch(server, root), ["Task.tar.gz"])
    assert server.asked == 1


def test_a_data_folder_that_may_not_be_written_to(server, root, monkeypatch):
    denied = pytest.raises(CourseError, match=r"Cannot write .*Permission denied")
    with failing(monkeypatch, Path, "mkdir", PermissionError(errno.EACCES, os.strerror(errno.EACCES))), denied:
        fetch(server, root)
    root.write_text("a file")
    with pytest.raises(CourseError, match=r"Cannot write \S.*/my data"):
        fetch(server, root)


LACKING = {
    "no masks": (archive_of({"imagesTr/a": b""}), r"Task/labelsTr is missing"),
    "half": (ARCHIVE[:100], "end-of-stream"),
    "text": (b"this is no archive", "could not be opened"),
    "another folder": (archive_of(top="Other"), r"Task/labelsTr"),
    "outside": (archive_of({"../../outside": b""}), "[Uu]nsafe"),
}


@pytest.mark.parametrize(("content", "reason"), LACKING.values(), ids=LACKING.keys())
def test_an_archive_that_lacks_something_leaves_nothing(server, root, content, reason):
    server.content = content
    with pytest.raises(CourseError, match=rf"Task\.tar\.gz cannot be used: .*{reason}.*delete the archive"):
        fetch(server, root, right=content)
    assert names_in(root) == ["Task.tar.gz"] and names_in(root.parent) == ["my data"]


def test_two_that_fetch_at_once_download_once(server, root):
    threads = [threading.Thread(target=fetch, args=(server, root)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_complete(root / "Task")
    assert server.asked == 1
