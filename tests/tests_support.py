"""What more than one test module needs: toy volumes, a small web server, a disk that fills up."""

import contextlib
import errno
import hashlib
import http.server
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_scripts.nifti import one_geometry
from src.common.datalists import CHECKED
from src.common.errors import CourseError
from src.common.files import write_json

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"  # samples of the real data, where they are


def rows(*table: tuple) -> Callable[[Callable], Callable]:
    """A table whose first column names its rows; the others are the test's first arguments, ``None`` where a row is shorter."""
    width = max(map(len, table))
    cells = [pytest.param(*one[1:], *[None] * (width - len(one)), id=one[0]) for one in table]
    return lambda test: pytest.mark.parametrize([*inspect.signature(test).parameters][: width - 1], cells)(test)


def course_error(said: str, call: Callable, *arguments, **options) -> None:
    """The call ends in the course's error, and its message matches."""
    with pytest.raises(CourseError, match=said):
        call(*arguments, **options)


def at_once(count: int, call: Callable[[], object]) -> None:
    with ThreadPool(count) as pool:
        pool.map(lambda _: call(), range(count), 1)


def ball_case(folder, name="case", spacing=(1.0, 1.0, 3.0), shape=(80, 80, 20), centre=(4.0, -6.0, 3.0), **options):
    """A converted case: a bright ball of 15 mm (the gland) at ``centre`` mm from the middle of a noisy volume; returns the item."""
    folder.mkdir(parents=True, exist_ok=True)
    affine = nib.affines.from_matvec(np.diag(spacing), -np.array(spacing) * (np.array(shape) - 1) / 2)
    grid = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    label = (np.linalg.norm(grid - centre, axis=-1) < options.get("radius", 15.0)).astype(np.uint8)
    noise = np.random.default_rng(options.get("seed", 0)).normal(0, 2, shape)
    image = options.get("scale", 1.0) * (50 + 100 * label + noise)
    item = {"image": str(folder / f"{name}.nii.gz"), "label": str(folder / f"{name}_mask.nii.gz"), "site": "site-x"}
    axes = nib.orientations.axcodes2ornt(tuple(options.get("codes", "RAS")))
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), axes)
    for key, volume in (("image", image.astype(np.float32)), ("label", label)):
        turned = nib.Nifti1Image(volume, affine).as_reoriented(turn)
        nib.save(one_geometry(np.asanyarray(turned.dataobj), turned.affine), item[key])
    return item


def flipped_bit(file: Path) -> None:
    """In the checksum of what gzip has written: what decompresses looks right."""
    content = file.read_bytes()
    file.write_bytes(content[:-6] + bytes([content[-6] ^ 1]) + content[-5:])


def through_the_door(folder: Path) -> None:
    """Write the sums that ``datalists_gen.sh`` leaves beside a datalist, of all files below the folder."""
    sums = {name: {"sha256": hashlib.sha256(x).hexdigest(), "bytes": len(x)} for name, x in files_of(folder).items()}
    write_json(folder / CHECKED, sums)


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of all files below a folder, by relative path."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, hidden files too: nothing half may be left."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked += 1
        time.sleep(self.server.silent)
        self.send_response(self.server.status or 200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[: self.server.cut])


class Server(http.server.ThreadingHTTPServer):
    """Serves one file. Faults: an error as ``status``, ``cut`` after so many bytes, ``silent`` for so many seconds; it counts."""

    def __init__(self, name: str, content: bytes):
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.status, self.cut, self.silent, self.asked = content, None, None, 0, 0
        self.url = f"http://127.0.0.1:{self.server_port}/{name}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()


@contextlib.contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, owner, name: str, error: Exception, after: int = 0) -> Iterator[list]:
    """Let the calls of ``owner.name`` after the first ``after`` ones fail, and be sure that one did."""
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
