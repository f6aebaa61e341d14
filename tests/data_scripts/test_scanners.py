"""Scanner styles: each does what it says, a site has one of its own, and no original is touched."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_scripts import mednist_sites, scanners
from data_scripts.phantoms.mednist import write
from data_scripts.scanners import STYLES, ScannerStyle, rescan, scan
from data_scripts.sharing import random_numbers
from data_scripts.together import read_sites
from src.common.errors import CourseError
from tests.tests_support import files_of

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))


def scanned(**style) -> np.ndarray:
    return scan(RAMP, ScannerStyle("", **style), np.random.default_rng(0)).astype(int)


def test_a_style_does_what_it_says():
    plain = RAMP.astype(int)
    assert np.array_equal(scanned(), plain)
    assert (scanned(gamma=2.2)[:, 1:] < plain[:, 1:]).all() and (scanned(gamma=0.45)[:, 1:] > plain[:, 1:]).all()
    assert np.array_equal(scanned(inverted=True), 255 - plain)
    assert np.ptp(scanned(contrast=0.5)) == pytest.approx(np.ptp(plain) / 2, abs=1)
    noise = scanned(noise=0.05)[:, 20:40] - plain[:, 20:40]
    assert noise.std() == pytest.approx(0.05 * 255, rel=0.1) and abs(noise.mean()) < 1
    step = np.where(np.arange(64) < 32, 50, 200).astype(np.uint8) * np.ones((64, 1), np.uint8)
    soft = scan(step, ScannerStyle("", blur=2.0), np.random.default_rng(0))
    assert 50 < soft[32, 31] < 125 < soft[32, 32] < 200


def test_sites_get_equal_shares_each_through_its_own_scanner(tmp_path):
    write(tmp_path, per_class=8, seed=1)
    before, said = files_of(tmp_path), []
    for again in (False, True):
        assert mednist_sites.share_out(4, "scanners", data="styles", folder=tmp_path, say=said.append) == "styles"
        assert ("nothing to do" in said[-1]) == again
    assert files_of(tmp_path).items() >= before.items(), "the originals are as they were"
    brighter, alike = [], []
    for parts in read_sites("styles").values():
        assert sum(map(len, parts.values())) == 12
        names = [item["image"] for item in parts["training"]]
        pairs = [(tmp_path / "/".join(Path(name).parts[-2:]), name) for name in names]
        pairs = [[np.asarray(Image.open(path), float).ravel() for path in pair] for pair in pairs]
        brighter.append(np.mean([new.mean() - old.mean() for old, new in pairs]))
        alike.append(np.mean([np.corrcoef(new, old)[0, 1] for old, new in pairs]))
    assert abs(brighter[0]) < 1 and alike[0] > 0.99 and brighter[1] > 10 and brighter[2] < -10
    assert alike[3] < -0.95


def test_pictures_of_8_bits_and_the_network_s_size_are_restyled_as_their_files_hold_them(tmp_path):
    write(tmp_path, per_class=1, seed=1)
    items = mednist_sites.read_items(tmp_path)[:4]
    rescan({f"site-{n}": [item] for n, item in enumerate(items)}, tmp_path, tmp_path / "out", seed=2)
    for number, (item, style) in enumerate(zip(items, STYLES, strict=True)):
        image = scan(np.asarray(Image.open(item["image"])), style, random_numbers(2, f"site-{number}"))
        Image.fromarray(image).save(tmp_path / "right.jpeg", quality=95)
        found = tmp_path / "out" / Path(item["image"]).relative_to(tmp_path)
        assert found.read_bytes() == (tmp_path / "right.jpeg").read_bytes()


def test_another_version_is_made_anew_and_more_sites_than_scanners_are_refused(tmp_path, monkeypatch):
    Image.fromarray(RAMP).save(tmp_path / "a.jpeg")
    shares, out = {"site-1": [{"image": str(tmp_path / "a.jpeg"), "label": 4}]}, tmp_path / "out"
    with pytest.raises(CourseError, match="There are 4 scanners, too few for 5 sites"):
        rescan({f"site-{number}": [] for number in range(len(STYLES) + 1)}, tmp_path, out)
    assert not out.exists()
    assert rescan(shares, tmp_path, out) == {"site-1": [{"image": str(out / "a.jpeg"), "label": 4}]}
    monkeypatch.setattr(scanners, "VERSION", scanners.VERSION + 1)
    (out / "a.jpeg").unlink()
    rescan(shares, tmp_path, out)
    assert (out / "a.jpeg").exists()
