"""Fetching MedNIST from a server of the test's own, with everything that can go wrong on the way."""

import contextlib
import errno
import hashlib
import http.server
import io
import os
import re
import socket
import tarfile
import threading
from pathlib import Path

import pytest

from src import fetching, mednist, phantoms
from src.errors import CourseError


class Server:
    """Serves one file; its attributes are the faults.

    Attributes:
        content: what the file is now.
        status: answer with this error instead.
        cut: send only so many bytes of what was announced, then hang up.
        ranges: honour ``Range``.
        asked: value of ``Range`` in each request so far.
    """

    def __init__(self, content: bytes):
        self.content, self.status, self.cut, self.ranges, self.asked = content, None, None, True, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/MedNIST.tar.gz"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request):
        asked = request.headers.get("Range")
        self.asked.append(asked)
        if self.status:
            request.send_error(self.status)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1)) if asked and self.ranges else 0
        if start and start >= len(self.content):
            request.send_error(416)
            return
        body = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body if self.cut is None else body[: self.cut])

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def archive_of(folder: Path, leave_out: str = "nothing") -> bytes:
    """``MedNIST.tar.gz`` with the images of a folder, and the hidden files that a Mac adds."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name in mednist.CLASSES:
            if name != leave_out:
                for image in sorted((folder / name).glob("*.jpeg")):
                    tar.add(image, f"MedNIST/{name}/{image.name}")
        hidden = tarfile.TarInfo("MedNIST/Hand/._000000.jpeg")
        tar.addfile(hidden, io.BytesIO())
    return stream.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture(scope="module")
def drawings(tmp_path_factory) -> Path:
    return phantoms.make_mednist(tmp_path_factory.mktemp("drawings") / "MedNIST", per_class=4)


@pytest.fixture(scope="module")
def archive(drawings) -> bytes:
    return archive_of(drawings)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A data folder that does not exist yet, reached without any proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "my data"


@pytest.fixture
def server(archive):
    server = Server(archive)
    yield server
    server.close()


def fetch(server, root, content=None) -> Path:
    return mednist.find_or_make("real", root, url=server.url, md5=md5(content or server.content))


def left_in(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


def assert_complete(folder: Path, drawings: Path):
    assert [len(list((folder / name).glob("0*.jpeg"))) for name in mednist.CLASSES] == [4] * 6
    one = Path("CXR") / "000003.jpeg"
    assert (folder / one).read_bytes() == (drawings / one).read_bytes()
    assert len(mednist.read_datalist(folder)) == 24, "hidden files are no images"
    assert left_in(folder.parent) == ["MedNIST", "MedNIST.tar.gz"], "nothing half is left beside"


def test_fetches_once_and_shows_progress(server, root, drawings, capfd):
    folder = fetch(server, root)
    assert folder == root / "MedNIST"
    assert_complete(folder, drawings)
    assert re.search(r"MedNIST\.tar\.gz: 100%", capfd.readouterr().err)
    assert mednist.describe(folder).startswith("real MedNIST: 24 images")
    assert fetch(server, root) == folder
    assert server.asked == [None]


def test_address_and_checksum_are_monais(root, monkeypatch):
    from monai.apps import MedNISTDataset

    asked = []

    def download(url, file, md5, hint):
        asked.append((url, file.name, md5))
        raise CourseError("far enough")

    monkeypatch.setattr(fetching, "download", download)
    with pytest.raises(CourseError, match="far enough"):
        mednist.find_or_make("real", root)
    assert asked == [(MedNISTDataset.resource, "MedNIST.tar.gz", MedNISTDataset.md5)]


def test_a_verified_archive_is_not_downloaded_again(server, root, drawings, archive):
    root.mkdir()
    (root / "MedNIST.tar.gz").write_bytes(archive)
    (root / "MedNIST").mkdir()  # an empty folder is as good as none
    assert_complete(fetch(server, root), drawings)
    assert server.asked == []


def test_a_folder_that_is_there_is_used_as_it_is(server, root, drawings):
    root.mkdir()
    (root / "MedNIST").symlink_to(drawings)
    assert fetch(server, root) == root / "MedNIST"
    assert server.asked == [] and left_in(root) == ["MedNIST"]


def test_all_missing_classes_of_a_folder_are_named(server, root, drawings):
    for name in mednist.CLASSES:
        (root / "MedNIST" / name).mkdir(parents=True)
        if name not in ("CXR", "Hand"):
            (root / "MedNIST" / name / "000000.jpeg").symlink_to(drawings / name / "000000.jpeg")
    (root / "MedNIST" / "Hand").rmdir()
    with pytest.raises(CourseError, match=r"No \.jpeg images in .*/my data/MedNIST/CXR, .*/MedNIST/Hand\. .*delete"):
        fetch(server, root)
    assert server.asked == []


def test_without_a_server_the_error_names_the_ways_out(server, root, drawings):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/MedNIST.tar.gz"
    with pytest.raises(CourseError) as caught:
        mednist.find_or_make("real", root, url=nobody, md5="0")
    for part in (nobody, "Connection refused", "run again", str(root / "MedNIST"), "COURSE_DATA_SOURCE=generated"):
        assert part in str(caught.value)
    assert left_in(root) == []
    assert_complete(fetch(server, root), drawings)


def test_an_address_that_is_none_is_named(root):
    with pytest.raises(CourseError, match="Cannot download not-an-address: unknown url type"):
        mednist.find_or_make("real", root, url="not-an-address", md5="0")


@pytest.mark.parametrize("status", [404, 503])
def test_the_answer_of_the_server_is_in_the_error(server, root, drawings, status):
    server.status = status
    with pytest.raises(CourseError, match=rf"{re.escape(server.url)}: the server answers {status}"):
        fetch(server, root)
    assert left_in(root) == []
    server.status = None
    assert_complete(fetch(server, root), drawings)


def test_a_wrong_checksum_leaves_nothing(server, root, drawings, archive):
    server.content = archive[:-1] + b"?"
    with pytest.raises(CourseError) as caught:
        fetch(server, root, archive)
    for part in ("MedNIST.tar.gz", md5(server.content), md5(archive), "run again"):
        assert part in str(caught.value)
    assert left_in(root) == []
    server.content = archive
    assert_complete(fetch(server, root), drawings)


def test_somebody_elses_damaged_archive_is_named_and_left_alone(server, root, drawings, archive):
    root.mkdir()
    own = root / "MedNIST.tar.gz"
    own.write_bytes(archive[:100])
    with pytest.raises(CourseError, match=r"/my data/MedNIST\.tar\.gz is damaged or another file: .*Delete it"):
        fetch(server, root)
    assert own.read_bytes() == archive[:100] and left_in(root) == ["MedNIST.tar.gz"]
    own.unlink()
    assert_complete(fetch(server, root), drawings)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_continues(server, root, drawings, archive, ranges):
    server.cut, server.ranges = 1000, ranges
    with pytest.raises(
        CourseError, match=rf"the connection broke after 1,000 of {len(archive):,} bytes.*kept in .*part"
    ):
        fetch(server, root)
    assert left_in(root) == ["MedNIST.tar.gz.part"]
    assert (root / "MedNIST.tar.gz.part").read_bytes() == archive[:1000]
    server.cut = 500
    with pytest.raises(CourseError, match=r"the connection broke after"):
        fetch(server, root)
    server.cut = None
    assert_complete(fetch(server, root), drawings)
    assert server.asked == [None, "bytes=1000-", f"bytes={1500 if ranges else 500}-"]


def test_a_download_cut_just_before_its_end_needs_no_byte_more(server, root, drawings, archive):
    root.mkdir()
    (root / "MedNIST.tar.gz.part").write_bytes(archive)
    assert_complete(fetch(server, root), drawings)


def test_the_rest_of_another_file_is_found_out_and_thrown_away(server, root, drawings, archive):
    root.mkdir()
    (root / "MedNIST.tar.gz.part").write_bytes(bytes(len(archive) + 1))
    with pytest.raises(CourseError, match="It was deleted; run again"):
        fetch(server, root)
    assert left_in(root) == []
    assert_complete(fetch(server, root), drawings)


@contextlib.contextmanager
def failing(monkeypatch, owner, name, error, after: int = 0):
    """Let the calls of ``owner.name`` after the first ``after`` ones fail."""
    original, calls = getattr(owner, name), []

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) > after:
            raise error
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        yield calls
    assert len(calls) > after, "the fault was never met"


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_during_the_download(server, root, drawings, monkeypatch):
    class FullFile(io.BytesIO):
        def write(self, _):
            raise FULL

    original = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "open", lambda path, mode="r", **more: FullFile() if mode == "wb" else original(path, mode, **more)
        )
        with pytest.raises(CourseError, match=r"Cannot write .*MedNIST\.tar\.gz\.part: No space left.*Make room"):
            fetch(server, root)
    assert left_in(root) == []
    assert_complete(fetch(server, root), drawings)


def test_a_disk_that_fills_up_during_unpacking(server, root, drawings, monkeypatch):
    from monai.apps import utils

    with (
        failing(monkeypatch, utils.shutil, "copyfileobj", FULL, after=5),
        pytest.raises(CourseError, match=r"Cannot write .*/my data/MedNIST: No space left.*Make room"),
    ):
        fetch(server, root)
    assert left_in(root) == ["MedNIST.tar.gz"]
    assert_complete(fetch(server, root), drawings)
    assert len(server.asked) == 1


def test_a_data_folder_that_may_not_be_written_to(server, root, drawings, monkeypatch):
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with (
        failing(monkeypatch, Path, "mkdir", denied),
        pytest.raises(CourseError, match=r"Cannot write .*part: Permission denied.*set COURSE_DATA"),
    ):
        fetch(server, root)
    assert_complete(fetch(server, root), drawings)


def test_a_file_where_a_folder_should_be(server, root, drawings):
    root.write_text("a file")
    with pytest.raises(CourseError, match=r"Cannot write .*/my data/MedNIST\.tar\.gz\.part: .*set COURSE_DATA"):
        fetch(server, root)
    root.unlink()
    root.mkdir()
    (root / "MedNIST").write_text("a file")
    with pytest.raises(CourseError, match=r"/my data/MedNIST is a file .*Delete it"):
        fetch(server, root)
    (root / "MedNIST").unlink()
    assert_complete(fetch(server, root), drawings)


@pytest.mark.parametrize("fault", ["a class", "the end", "the compression", "the folder", "a safe path"])
def test_an_archive_that_lacks_something_leaves_nothing(server, root, drawings, archive, fault):
    def single(name: str) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as tar:
            tar.addfile(tarfile.TarInfo(name))
        return stream.getvalue()

    server.content, reason = {
        "a class": (archive_of(drawings, leave_out="Hand"), r"No \.jpeg images in MedNIST/Hand"),
        "the end": (archive[: len(archive) // 2], "end-of-stream"),
        "the compression": (b"this is no archive", "not a gzip file"),
        "the folder": (single("Other/CXR/000000.jpeg"), r"MedNIST/AbdomenCT"),
        "a safe path": (single("../outside.jpeg"), "Unsafe path"),
    }[fault]
    with pytest.raises(CourseError, match=rf"MedNIST\.tar\.gz cannot be unpacked: .*{reason}.*delete the archive"):
        fetch(server, root)
    assert left_in(root) == ["MedNIST.tar.gz"] and left_in(root.parent) == ["my data"]
    (root / "MedNIST.tar.gz").unlink()
    server.content = archive
    assert_complete(fetch(server, root), drawings)


def test_two_that_fetch_at_once_share_one_folder(server, root, drawings, archive):
    """The other one finishes while this one unpacks."""

    def other_first(made):
        mednist._checked(made)
        if not (root / "MedNIST").exists():
            (root / "MedNIST").symlink_to(drawings)

    root.mkdir()
    (root / "MedNIST.tar.gz").write_bytes(archive)
    assert fetching.unpack(root / "MedNIST.tar.gz", root / "MedNIST", other_first) == root / "MedNIST"
    assert (root / "MedNIST").resolve() == drawings.resolve()
    assert left_in(root) == ["MedNIST", "MedNIST.tar.gz"]
