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
    width, names = max(map(len, table)), [one[0] for one in table]
    filled = [(*one[1:], *[None] * (width - len(one))) for one in table]

    def decorate(test: Callable) -> Callable:
        arguments = [*inspect.signature(test).parameters][: width - 1]
        return pytest.mark.parametrize(arguments, filled, ids=names)(test)

    return decorate


def course_error(said: str, call: Callable, *arguments, **options) -> None:
    """The call ends in the course's error, and its message matches."""
    with pytest.raises(CourseError, match=said):
        call(*arguments, **options)


def at_once(count: int, call: Callable[[], object]) -> None:
    threads = [threading.Thread(target=call) for _ in range(count)]
    for step in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            step(thread)


def ball_case(folder, name="case", spacing=(1.0, 1.0, 3.0), shape=(80, 80, 20), centre=(4.0, -6.0, 3.0), **options):
    """A converted case: a bright ball of 15 mm (the gland) at ``centre`` mm from the middle of a noisy volume; returns the item."""
    codes, scale, radius = options.get("codes", "RAS"), options.get("scale", 1.0), options.get("radius", 15.0)
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -np.array(spacing) * (np.array(shape) - 1) / 2
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1) * spacing + affine[:3, 3]
    label = (np.linalg.norm(grid - centre, axis=-1) < radius).astype(np.uint8)
    noise = np.random.default_rng(options.get("seed", 0)).normal(0, 2, shape)
    image = scale * (50 + 100 * label + noise)
    item = {"image": str(folder / f"{name}.nii.gz"), "label": str(folder / f"{name}_mask.nii.gz"), "site": "site-x"}
    for key, volume in (("image", image.astype(np.float32)), ("label", label)):
        turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(codes)))
        turned = nib.Nifti1Image(volume, affine).as_reoriented(turn)
        nib.save(one_geometry(np.asanyarray(turned.dataobj), turned.affine), item[key])
    return item


def flipped_bit(file: Path) -> None:
    """In the checksum of what gzip has written: what decompresses looks right."""
    content = file.read_bytes()
    file.write_bytes(content[:-6] + bytes([content[-6] ^ 1]) + content[-5:])


def through_the_door(folder: Path) -> None:
    """Write the sums that ``datalists_gen.sh`` leaves beside a datalist, of all volumes below the folder."""
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.nii.gz")}
    sums = {name: {"sha256": hashlib.sha256(found).hexdigest(), "bytes": len(found)} for name, found in files.items()}
    write_json(folder / CHECKED, sums)


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of all files below a folder, by relative path."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, hidden files too: nothing half may be left."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


class Server:
    """Serves one file. Faults: an error as ``status``, ``cut`` after so many bytes, ``silent`` for so many seconds; it counts."""

    def __init__(self, name: str, content: bytes):
        self.content, self.status, self.cut, self.silent, self.asked = content, None, None, 0, 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked += 1
                time.sleep(outer.silent)
                if outer.status:
                    self.send_error(outer.status)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(outer.content)))
                self.end_headers()
                self.wfile.write(outer.content[: outer.cut])

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/{name}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


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
