"""Fetching an archive from a server of the test's own, with everything that can go wrong on the way."""

import errno
import hashlib
import io
import os
import socket
import tarfile
import threading
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


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def check(folder: Path) -> None:
    if not (folder / "labelsTr").is_dir():
        raise CourseError(f"{folder}/labelsTr is missing.")


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A data folder that does not exist yet, reached without any proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "my data"


@pytest.fixture
def server():
    server = Server("Task.tar.gz", archive_of())
    yield server
    server.close()


def fetch(server, root, *others, right=None) -> Path:
    said = []
    return fetching.fetch(root / "Task", server.url, md5(right or archive_of()), check, *others, say=said.append)


def assert_complete(folder: Path, also=()):
    assert {name: data for name, data in files_of(folder).items() if not Path(name).name.startswith(".")} == CONTENT
    assert names_in(folder.parent) == sorted(["Task", *also]), "nothing half is left beside"


def test_fetches_once_and_shows_progress(server, root, capfd):
    folder = fetch(server, root)
    assert folder == root / "Task"
    assert_complete(folder)
    assert "100%" in capfd.readouterr().err
    fetch(server, root)
    assert server.asked == 1


@pytest.mark.parametrize(
    ("name", "content"), [("Task.tar", archive_of(mode="w")), ("Task.zip", zipped())], ids=["tar", "zip"]
)
def test_other_kinds_of_archives(root, name, content):
    server = Server(name, content)
    try:
        assert_complete(fetch(server, root, right=content))
    finally:
        server.close()


def test_an_archive_that_was_brought_is_taken_and_stays(server, root):
    (root / "Task").mkdir(parents=True)  # an empty folder is as good as none
    (root / "Task.tar.gz").write_bytes(archive_of())
    assert_complete(fetch(server, root), ["Task.tar.gz"])
    assert server.asked == 0


def test_a_brought_archive_that_is_another_file_is_named_and_left_alone(server, root):
    root.mkdir()
    (root / "Task.tar.gz").write_bytes(b"half")
    with pytest.raises(
        CourseError, match=r"Delete \S.*Task\.tar\.gz and run this again: it has the MD5 checksum \w+, expected"
    ):
        fetch(server, root)
    assert files_of(root) == {"Task.tar.gz": b"half"} and server.asked == 0
    (root / "Task.tar.gz").unlink()
    assert_complete(fetch(server, root))


def test_without_a_server_the_error_names_the_ways_out(server, root):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/Task.tar.gz"
    with pytest.raises(CourseError) as caught:
        fetching.fetch(root / "Task", nobody, "0", check, say=lambda line: None)
    for part in (
        "Task.tar.gz could not be downloaded",
        "127.0.0.1",
        "run this again",
        str(root / "Task.tar.gz"),
        "=generated",
    ):
        assert part in str(caught.value)
    assert names_in(root) == []
    assert_complete(fetch(server, root))


def test_an_address_that_is_none_is_named(root):
    with pytest.raises(CourseError, match=r"Invalid URL 'not-an-address'"):
        fetching.fetch(root / "Task", "not-an-address", "0", check, say=lambda line: None)


@pytest.mark.parametrize("status", [404, 503])
def test_the_answer_of_the_server_is_in_the_error(server, root, status):
    server.status = status
    with pytest.raises(CourseError, match=rf"{status} .*{server.url}"):
        fetch(server, root)
    assert names_in(root) == []
    server.status = None
    assert_complete(fetch(server, root))


def test_a_connection_that_breaks_leaves_nothing(server, root):
    server.cut = 100
    with pytest.raises(CourseError, match=r"could not be downloaded.*IncompleteRead"):
        fetch(server, root)
    assert names_in(root) == []
    server.cut = None
    assert_complete(fetch(server, root))


def test_a_wrong_checksum_leaves_nothing(server, root):
    server.content = archive_of()[:-1] + b"?"
    with pytest.raises(CourseError) as caught:
        fetch(server, root)
    for part in ("what arrived", md5(server.content), md5(archive_of()), "run this again"):
        assert part in str(caught.value)
    assert names_in(root) == []


def test_the_next_source_is_asked_when_the_first_one_fails(server, root):
    server.status = 503
    asked = []

    def broken(path):
        asked.append("broken")
        path.write_bytes(b"a login page")

    def good(path):
        asked.append("good")
        path.write_bytes(archive_of())

    assert_complete(fetch(server, root, broken, good))
    assert asked == ["broken", "good"]


def test_when_every_source_fails_each_is_named(server, root):
    def refuses(path):
        path.write_bytes(b"half")
        raise CourseError("the mirror is closed")

    server.status = 404
    with pytest.raises(CourseError, match=r"(?s)2 problems.*404.*the mirror is closed"):
        fetch(server, root, refuses)
    assert names_in(root) == []


def test_a_disk_that_fills_up_during_the_download(server, root, monkeypatch):
    with (
        failing(monkeypatch, fetching, "_from_web", FULL),
        pytest.raises(CourseError, match=r"could not be downloaded.*No space left"),
    ):
        fetch(server, root)
    assert names_in(root) == []


def test_a_disk_that_fills_up_during_unpacking(server, root, monkeypatch):
    from monai.apps import utils

    with (
        failing(monkeypatch, utils.shutil, "copyfileobj", FULL, after=1),
        pytest.raises(CourseError, match=r"Cannot write \S.*/my data/Task: No space left.*Free some space"),
    ):
        fetch(server, root)
    assert names_in(root) == ["Task.tar.gz"]
    assert_complete(fetch(server, root), ["Task.tar.gz"])
    assert server.asked == 1


def test_a_data_folder_that_may_not_be_written_to(server, root, monkeypatch):
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with (
        failing(monkeypatch, Path, "mkdir", denied),
        pytest.raises(CourseError, match=r"Cannot write .*Permission denied"),
    ):
        fetch(server, root)
    root.write_text("a file")
    with pytest.raises(CourseError, match=r"Cannot write \S.*/my data"):
        fetch(server, root)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (archive_of({"imagesTr/a": b""}), r"Task/labelsTr is missing"),
        (archive_of()[:100], "end-of-stream"),
        (b"this is no archive", "could not be opened"),
        (archive_of(top="Other"), r"Task/labelsTr"),
        (archive_of({"../../outside": b""}), "[Uu]nsafe"),
    ],
    ids=["no masks", "half", "text", "another folder", "outside"],
)
def test_an_archive_that_lacks_something_leaves_nothing(server, root, content, reason):
    server.content = content
    with pytest.raises(CourseError, match=rf"Task\.tar\.gz cannot be used: .*{reason}.*delete the archive"):
        fetch(server, root, right=content)
    assert names_in(root) == ["Task.tar.gz"] and names_in(root.parent) == ["my data"]
    (root / "Task.tar.gz").unlink()
    server.content = archive_of()
    assert_complete(fetch(server, root))


def test_two_that_fetch_at_once_download_once(server, root):
    threads = [threading.Thread(target=fetch, args=(server, root)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_complete(root / "Task")
    assert server.asked == 1
