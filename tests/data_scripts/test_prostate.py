"""Prostate data: conversion, sharing out and download, with tiny volumes and every fault that has its own message."""

import gzip
import hashlib
import inspect
import io
import json
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import ClassVar

import nibabel as nib
import numpy as np
import pytest

from data_scripts import prostate as data
from data_scripts.folders import GENERATED
from data_scripts.prostate import convert, describe, find_or_make, prepare, share_out
from src.common.datalists import read_sites
from src.common.errors import CourseError
from tests.tests_support import FULL, Server, failing, files_of, names_in

REPOSITORY = Path(__file__).resolve().parents[2]
SHAPE = (6, 5, 4)


# Oblique, anisotropic and not at the origin: as a scanner writes it.
AFFINE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.05, 0.1, 0.3) @ np.diag([0.6, 0.6, 3.6]), [-70, -55, 12.5])


def gland(seed: int = 0) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:4, 1:4, 1:3] = 1
    labels[2, 2, 1 + seed % 2] = 2
    return labels


def signal_of(seed: int = 0, channels: int | None = 2) -> np.ndarray:
    shape = SHAPE if channels is None else (*SHAPE, channels)
    return np.random.default_rng(seed).uniform(0, 30_000, shape).astype(np.float32)


def save(array: np.ndarray, file: Path, affine: np.ndarray = AFFINE):
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), file)


def raw_folder(folder: Path, cases: int = 4, names: tuple[str, str] = ("imagesTr", "labelsTr")) -> Path:
    for index in range(cases):
        save(signal_of(index), folder / names[0] / f"prostate_{index:02d}.nii.gz")
        save(gland(index), folder / names[1] / f"prostate_{index:02d}.nii.gz")
    describing(folder)
    return folder


def describing(raw: Path, **changes):
    content = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "PZ", "2": "TZ"}, **changes}
    (raw / "dataset.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A data folder of the test's own, reached without any proxy."""
    monkeypatch.delenv("COURSE_DATA_SOURCE", raising=False)
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "my data"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "my data"


@pytest.fixture
def raw(home) -> Path:
    return raw_folder(home / "Task05_Prostate")


@pytest.fixture
def out(home) -> Path:
    return home / "prostate_t2"


def heard(raw: Path, out: Path, **arguments) -> str:
    """What a conversion says."""
    said: list[str] = []
    assert convert(raw, out, say=said.append, **arguments) == out
    return "\n".join(said)


def refuses(raw: Path, out: Path, *messages: str, **arguments) -> str:
    """Conversion names everything that is wrong and leaves nothing behind; returns what it says."""
    before = files_of(out.parent)
    with pytest.raises(CourseError) as caught:
        convert(raw, out, say=lambda line: None, **arguments)
    for message in messages:
        assert message in str(caught.value)
    assert files_of(out.parent) == before
    assert not out.exists()
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Conversion: what comes out.


def test_t2_keeps_its_voxels_and_type_and_the_mask_is_the_whole_gland(raw, out):
    said = heard(raw, out)
    assert "Converted 4 of 4 cases: channel 0 (T2), labels 1, 2." in said
    for index in range(4):
        name = f"prostate_{index:02d}.nii.gz"
        given, image = nib.load(raw / "imagesTr" / name), nib.load(out / "images" / name)
        mask = nib.load(out / "labels" / name)
        assert image.get_data_dtype() == np.float32 and mask.get_data_dtype() == np.uint8
        assert np.asanyarray(image.dataobj).tobytes() == np.asanyarray(given.dataobj)[..., 0].tobytes()
        np.testing.assert_allclose(image.affine, given.affine, atol=1e-5)
        assert mask.affine.tobytes() == image.affine.tobytes(), "both on one grid, to the last bit"
        np.testing.assert_array_equal(np.asanyarray(mask.dataobj), gland(index) > 0)


@pytest.mark.parametrize("kind", [np.int16, np.uint16, np.int32, np.int64, np.uint8, np.float64, ">i2"])
def test_every_type_of_voxels_stays(raw, out, kind):
    voxels = (signal_of(1) / 300).astype(kind)
    image = nib.Nifti1Image(voxels, AFFINE, dtype=voxels.dtype)
    nib.save(image, raw / "imagesTr" / "prostate_01.nii.gz")
    convert(raw, out)
    converted = nib.load(out / "images" / "prostate_01.nii.gz")
    assert converted.get_data_dtype() == np.dtype(kind).newbyteorder("=")
    np.testing.assert_array_equal(np.asanyarray(converted.dataobj), voxels[..., 0])


def test_scaled_integers_are_neither_rounded_nor_widened(raw, out):
    stored = np.random.default_rng(1).integers(-500, 30_000, (*SHAPE, 2)).astype(np.int16)
    image = nib.Nifti1Image(stored, AFFINE)
    image.header.set_slope_inter(0.37, -12.0)
    nib.save(image, raw / "imagesTr" / "prostate_01.nii.gz")
    convert(raw, out)
    given = nib.load(raw / "imagesTr" / "prostate_01.nii.gz")
    assert given.dataobj.slope == pytest.approx(0.37)  # otherwise this tests nothing
    converted = nib.load(out / "images" / "prostate_01.nii.gz")
    np.testing.assert_array_equal(converted.dataobj.get_unscaled(), stored[..., 0])
    assert converted.get_data_dtype() == np.int16
    np.testing.assert_array_equal(converted.get_fdata(), given.get_fdata()[..., 0])
    assert nib.load(out / "labels" / "prostate_01.nii.gz").get_fdata().max() == 1


def test_own_cases_in_3d_without_dataset_json(tmp_path, out):
    own = tmp_path / "our hospital"
    for index in range(3):
        save(signal_of(index, None), own / "images" / f"case {index}.nii.gz")
        save(gland().astype(np.float32), own / "labels" / f"case {index}.nii")
    assert "channel 0 (not named), labels 1, 2" in heard(own, out)
    image = nib.load(out / "images/case 2.nii.gz")
    np.testing.assert_array_equal(image.get_fdata(), signal_of(2, None))
    assert nib.load(out / "labels/case 2.nii.gz").get_data_dtype() == np.uint8


def test_nothing_of_another_header_stays(raw, out):
    image = nib.Nifti1Image(signal_of(0), AFFINE)
    image.header["descrip"] = b"SURNAME^FIRSTNAME"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"born 1950"))
    nib.save(image, raw / "imagesTr" / "prostate_00.nii.gz")
    convert(raw, out)
    content = gzip.decompress((out / "images/prostate_00.nii.gz").read_bytes())
    assert b"SURNAME" not in content and b"1950" not in content


def test_another_channel_replaces_the_first_conversion(raw, out):
    convert(raw, out)
    assert "channel 1 (ADC)" in heard(raw, out, channel=1)
    np.testing.assert_array_equal(nib.load(out / "images/prostate_00.nii.gz").get_fdata(), signal_of(0)[..., 1])
    assert names_in(out.parent) == ["Task05_Prostate", "prostate_t2"]


def test_second_call_does_nothing_and_says_so(raw, out):
    convert(raw, out)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    said = heard(raw, out)
    assert len(said.splitlines()) == 1 and "all 4 cases are converted already, nothing to do" in said
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before


def test_a_data_folder_that_was_moved_is_still_known(raw, out, tmp_path):
    convert(raw, out)
    out.parent.rename(tmp_path / "moved")
    assert "nothing to do" in heard(tmp_path / "moved" / raw.name, tmp_path / "moved" / out.name)


def test_changed_input_and_lost_output_are_converted_again(raw, out):
    convert(raw, out)
    save(signal_of(77), raw / "imagesTr" / "prostate_02.nii.gz")
    convert(raw, out)
    np.testing.assert_array_equal(nib.load(out / "images/prostate_02.nii.gz").get_fdata(), signal_of(77)[..., 0])
    (out / "labels/prostate_03.nii.gz").write_bytes(b"")
    convert(raw, out)
    assert nib.load(out / "labels/prostate_03.nii.gz").get_fdata().any()
    (out / "images/prostate_03.nii.gz").unlink()
    convert(raw, out)
    assert (out / "images/prostate_03.nii.gz").is_file()
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder / "prostate_00.nii.gz").unlink()
    convert(raw, out)
    assert names_in(out / "images") == names_in(out / "labels") == [f"prostate_0{i}.nii.gz" for i in (1, 2, 3)]


def test_the_conversion_of_an_earlier_version_is_made_again(raw, out, monkeypatch):
    convert(raw, out)
    monkeypatch.setattr(data, "_VERSION", data._VERSION + 1)
    assert "Converted 4 of 4" in heard(raw, out)


def test_same_input_gives_the_same_bytes(raw, out):
    convert(raw, out)
    first = {name: content for name, content in files_of(out).items() if name.endswith(".gz")}
    assert len(first) == 8
    assert {content[4:8] for content in first.values()} == {bytes(4)}  # gzip's time stamp
    convert(raw, out.with_name("again"))
    again = files_of(out.with_name("again"))
    assert first == {name: again[name] for name in first}


# ---------------------------------------------------------------------------------------------------------------------
# What is refused.


def test_all_problems_are_named_at_once_and_nothing_is_written(tmp_path):
    raw = raw_folder(tmp_path / "in" / "Task05_Prostate", 12)
    images, labels = raw / "imagesTr", raw / "labelsTr"
    (labels / "prostate_00.nii.gz").unlink()
    (images / "prostate_01.nii.gz").unlink()
    save(signal_of(channels=3), images / "prostate_02.nii.gz")
    save(gland() * 4, labels / "prostate_03.nii.gz")
    save(np.zeros((6, 5, 3), np.uint8) + 1, labels / "prostate_04.nii.gz")
    save(gland(), labels / "prostate_05.nii.gz", nib.affines.from_matvec(np.eye(3), [5, 0, 0]) @ AFFINE)
    whole = (images / "prostate_06.nii.gz").read_bytes()
    (images / "prostate_06.nii.gz").write_bytes(whole[: len(whole) // 2])
    broken = signal_of()
    broken[0, 0, 0] = np.nan
    save(broken, images / "prostate_08.nii.gz")
    (labels / "prostate_09.nii.gz").write_bytes(b"not a NIfTI file")
    save(signal_of(channels=None)[0], images / "prostate_10.nii.gz")
    (images / "prostate_11.nii.gz").write_bytes(b"")  # both files of one case
    (labels / "prostate_11.nii.gz").write_bytes(b"")
    said = refuses(raw, tmp_path / "out" / "t2", "12 problems")
    for file, what in (
        (images / "prostate_00.nii.gz", "no mask of that name"),
        (labels / "prostate_01.nii.gz", "no image of that name"),
        (images / "prostate_02.nii.gz", "3 channel(s), not 2 as dataset.json"),
        (labels / "prostate_03.nii.gz", "labels outside 0, 1, 2: 4, 8"),
        (labels / "prostate_04.nii.gz", "shape (6, 5, 3), its image (6, 5, 4)"),
        (labels / "prostate_05.nii.gz", "5 mm away"),
        (images / "prostate_06.nii.gz", "damaged"),
        (images / "prostate_08.nii.gz", "NaN"),
        (labels / "prostate_09.nii.gz", "damaged"),
        (images / "prostate_10.nii.gz", "shape (5, 4)"),
        (images / "prostate_11.nii.gz", "damaged"),
        (labels / "prostate_11.nii.gz", "damaged"),
    ):
        assert [line for line in said.splitlines() if f"{file}: " in line and what in line], (file.name, what, said)


@pytest.mark.parametrize(("kind", "said"), [("imagesTr", "affine is not finite"), ("labelsTr", "up to nan mm away")])
def test_an_affine_that_is_no_number_is_refused(raw, out, kind, said):
    file = raw / kind / "prostate_01.nii.gz"
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[280:284] = np.float32(np.nan).tobytes()  # the first number of the sform; nibabel would not write it
    file.write_bytes(gzip.compress(bytes(content)))
    refuses(raw, out, f"{file}: its affine", said)


def test_a_flipped_bit_is_seen(raw, out):
    file = raw / "imagesTr" / "prostate_02.nii.gz"
    content = bytearray(file.read_bytes())
    content[-6] ^= 1  # in the checksum: what decompresses looks right
    file.write_bytes(content)
    refuses(raw, out, "prostate_02.nii.gz", "CRC")


@pytest.mark.parametrize("seed", range(20))
def test_damaged_headers_never_end_in_a_traceback(seed, raw, out):
    file = raw / ("imagesTr", "labelsTr")[seed % 2] / "prostate_01.nii.gz"
    content = bytearray(gzip.decompress(file.read_bytes()))
    rng = np.random.default_rng(seed)
    content[40:56] = rng.bytes(16)  # the shape
    content[70:74] = rng.bytes(4)  # the data type
    if seed % 3 == 0:
        content = content[: rng.integers(0, 348)]
    file.write_bytes(gzip.compress(bytes(content)))
    refuses(raw, out, "prostate_01.nii.gz")


@pytest.mark.parametrize("seed", range(20))
def test_damaged_geometry_never_ends_in_a_traceback(seed, raw, out):
    file = raw / "imagesTr" / "prostate_01.nii.gz"
    content = bytearray(gzip.decompress(file.read_bytes()))
    rng = np.random.default_rng(seed)
    content[76:92] = rng.bytes(16)  # pixdim
    content[252:256] = bytes([seed // 2 % 2, 0, seed % 2, 0])  # the codes of qform and sform
    content[256 : 328 if seed % 3 else 280] = rng.bytes(72 if seed % 3 else 24)  # both forms, or the qform alone
    file.write_bytes(gzip.compress(bytes(content)))
    if seed % 2 and not seed % 3 and not seed // 2 % 2:
        assert "Converted 4 of 4" in heard(raw, out)  # the sform is intact, and nothing else is believed
    else:
        refuses(raw, out, "prostate_01.nii.gz")


def test_header_that_announces_more_than_there_is(raw, out):
    file = raw / "imagesTr" / "prostate_01.nii.gz"
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[42:50] = np.array([32767, 32767, 32767, 2], "<i2").tobytes()  # 280 TB that must not be asked for
    file.write_bytes(gzip.compress(bytes(content)))
    refuses(raw, out, "prostate_01.nii.gz", "that its header announces")


def test_odd_channel_count_without_dataset_json(raw, out):
    (raw / "dataset.json").unlink()
    save(signal_of(channels=3), raw / "imagesTr" / "prostate_03.nii.gz")
    said = refuses(raw, out, "prostate_03.nii.gz: has 3 channel(s), not 2 as dataset.json or the first case says")
    assert len(said.splitlines()) == 1


def test_foreign_output_is_left_alone(raw, out):
    out.mkdir()
    (out / "thesis.doc").write_text("years of work")
    with pytest.raises(CourseError, match="did not write"):
        convert(raw, out)
    other = raw_folder(raw.with_name("other hospital"), 3)
    convert(other, out.with_name("theirs"))
    before = files_of(out.parent)
    with pytest.raises(CourseError, match="other hospital"):
        convert(raw, out.with_name("theirs"))
    with pytest.raises(CourseError, match="inside the other"):
        convert(raw, raw / "t2")
    (out.parent / "file").write_text("")
    with pytest.raises(CourseError, match="did not write"):
        convert(raw, out.parent / "file")
    (out.parent / "file").unlink()
    assert files_of(out.parent) == before


def test_full_disk_leaves_nothing_and_the_next_call_succeeds(raw, out, monkeypatch):
    with failing(monkeypatch, gzip.GzipFile, "write", FULL, after=4):
        refuses(raw, out, "No space left", "Free some space", str(out))
    assert names_in(out.parent) == ["Task05_Prostate"]
    convert(raw, out)
    assert len(list(out.glob("*/*.nii.gz"))) == 8


def test_full_disk_keeps_an_earlier_conversion(raw, out, monkeypatch):
    convert(raw, out)
    save(signal_of(5), raw / "imagesTr" / "prostate_00.nii.gz")
    before = files_of(out)
    with failing(monkeypatch, gzip.GzipFile, "write", FULL), pytest.raises(CourseError, match="No space left"):
        convert(raw, out)
    assert files_of(out) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from src.prostate import data
calls = []
def kill_in_case_3(file, *arguments):
    calls.append(file)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return read_image(file, *arguments)
read_image, data.read_image = data.read_image, kill_in_case_3
data.convert(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_killed_half_way_shows_nothing_and_the_next_call_makes_all(raw, out):
    done = subprocess.run([sys.executable, "-c", KILLED, raw, out], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    assert "Converted 4 of 4" in heard(raw, out)
    assert names_in(out) == ["conversion.json", "images", "labels"]


def test_two_conversions_at_once(raw, out):
    said: list[str] = []
    threads = [threading.Thread(target=convert, args=(raw, out), kwargs={"say": said.append}) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("Converted 4 of 4" in line for line in said) == 1
    assert sum("nothing to do" in line for line in said) == 1
    assert len(list(out.glob("*/*.nii.gz"))) == 8


REAL_LABELS = REPOSITORY.parent / "shared" / "reference" / "msd_prostate_labels"


@pytest.mark.skipif(not REAL_LABELS.is_dir(), reason="no real labels here")
def test_real_labels(tmp_path, out):
    raw = tmp_path / "Task05_Prostate"
    files = sorted(REAL_LABELS.glob("*.nii.gz"))[:2]
    for file in files:
        label = nib.load(file)
        image = np.arange(np.prod(label.shape) * 2, dtype=np.float32).reshape(*label.shape, 2)
        save(image, raw / "imagesTr" / file.name, label.affine)
        (raw / "labelsTr").mkdir(exist_ok=True)
        (raw / "labelsTr" / file.name).write_bytes(file.read_bytes())
    convert(raw, out)
    for file in files:
        mask = nib.load(out / "labels" / file.name)
        np.testing.assert_array_equal(np.asanyarray(mask.dataobj), np.asanyarray(nib.load(file).dataobj) > 0)
        np.testing.assert_allclose(mask.affine, nib.load(file).affine, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Sharing out.


@pytest.fixture
def converted(home) -> Path:
    """Names alone: sharing out does not look into the images, beyond that no two are the same."""
    folder = home / "generated" / "prostate_t2"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
        for index in range(16):
            (folder / kind / f"prostate_{index:02d}.nii.gz").write_text(f"{kind} {index}")
    return folder


def share(*arguments, **named) -> dict[str, dict[str, list[str]]]:
    """Site → part → case names, as the sites find them."""
    name = share_out(*arguments, **{"say": lambda line: None, **named})
    read = read_sites(name)
    return {
        site: {
            part: [Path(item["image"]).name.removesuffix(".nii.gz") for item in items] for part, items in parts.items()
        }
        for site, parts in read.items()
    }


def cases_of(parts: dict[str, list[str]]) -> list[str]:
    return sorted(case for cases in parts.values() for case in cases)


def numbered(*numbers: int) -> list[str]:
    return [f"prostate_{i:02d}" for i in numbers]


def test_every_case_is_in_one_part_of_one_site(converted, home):
    shared = share()
    assert list(shared) == ["site-1", "site-2", "site-3", "site-4"]
    assert sorted(case for parts in shared.values() for case in cases_of(parts)) == numbered(*range(16))
    assert all([len(cases) for cases in parts.values()] == [2, 1, 1] for parts in shared.values())
    for site, parts in shared.items():
        folder = home / "sites" / "prostate" / site
        assert (
            names_in(folder / "labels") == names_in(folder / "images") == [f"{case}.nii.gz" for case in cases_of(parts)]
        )
    about = json.loads((home / "sites/prostate/about.json").read_text())
    assert (about["task"], about["seed"], about["generated"]) == ("prostate", 0, False)


@pytest.mark.parametrize(("cases", "sites"), [(12, 4), (11, 3), (5, 1), (3, 1)])
def test_fewer_sites_where_there_are_few_cases(tmp_path, cases, sites):
    for kind in ("images", "labels"):
        (tmp_path / "few" / kind).mkdir(parents=True)
        for index in range(cases):
            (tmp_path / "few" / kind / f"{index}.nii.gz").write_text(f"{kind} {index}")
    assert len(share(folder=tmp_path / "few")) == sites


def test_seed_decides(converted):
    first = share(2, seed=3, data="a")
    assert share(2, seed=3, data="b") == first
    assert share(2, seed=4, data="c") != first


def test_hospitals_stay_together_and_do_not_depend_on_each_other(converted):
    sites = {"BIDMC": numbered(*range(9)), "HK": [f"{case}.nii.gz" for case in numbered(*range(9, 16))]}
    shared = share(sites)
    assert {site: cases_of(parts) for site, parts in shared.items()} == {
        "BIDMC": numbered(*range(9)),
        "HK": numbered(*range(9, 16)),
    }
    assert share({"HK": sites["HK"][::-1]}, data="alone")["HK"] == shared["HK"]


def test_hospitals_beside_the_raw_data_are_the_default(home):
    raw = raw_folder(home / "Task05_Prostate", 7)
    hospitals = {"north": numbered(0, 1, 2), "south": numbered(3, 4, 5, 6)}
    (raw / "hospitals.json").write_text(json.dumps(hospitals))
    converted = convert(raw, home / "prostate_t2", say=lambda line: None)
    assert {site: cases_of(parts) for site, parts in share(folder=converted).items()} == hospitals
    assert list(share(1, folder=converted)) == ["site-1"], "a number goes before the file"


def test_second_call_says_so_and_fewer_sites_leave_no_old_one(converted, home):
    share(4)
    said = []
    share_out(4, say=said.append)
    assert len(said) == 1 and "nothing to do" in said[0]
    assert list(share(2)) == ["site-1", "site-2"]
    assert names_in(home / "sites") == ["prostate"]


def test_cases_in_no_site_are_named(converted):
    said = []
    share_out({"a": numbered(*range(14))}, say=said.append)
    assert [line for line in said if line.startswith("warning") and "prostate_14, prostate_15" in line]


def test_all_that_is_wrong_with_the_sites_is_named_at_once(converted, home):
    sites = {
        "a": numbered(0, 1, 2, 99),
        "b": numbered(3, 4, 5, 0),
        "c": numbered(6, 7),
        "d": numbered(8, 9, 10),
    }
    (converted / "labels/prostate_15.nii.gz").unlink()
    with pytest.raises(CourseError) as caught:
        share_out(sites)
    for message in (
        "4 problems",
        "site a: there is no case prostate_99",
        "site b: case prostate_00 is named twice, before that in a",
        "site c: 2 case(s), at least 3 are needed",
        "prostate_15.nii.gz: no mask",
    ):
        assert message in str(caught.value)
    assert not (home / "sites" / "prostate").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"sites": 6}, "2 problems"),
        ({"sites": 0}, "sites is 0"),
        ({"sites": 17}, "16 items cannot be shared out over 17 sites"),
        ({"sites": 2, "seed": -1}, "seed is -1"),
        ({"data": "a b"}, "'data' is 'a b'"),
        ({"folder": Path("/nowhere")}, "/nowhere has neither imagesTr/ .*data_conversion.sh"),
    ],
)
def test_too_many_sites_and_senseless_arguments(converted, home, arguments, said):
    with pytest.raises(CourseError, match=said):
        share_out(**arguments, say=lambda line: None)
    assert not (home / "sites" / "prostate").exists()


def test_other_things_are_not_overwritten(converted, home):
    (home / "sites/prostate/BIDMC").mkdir(parents=True)
    (home / "sites/prostate/BIDMC/datalist.json").write_text("{}")
    with pytest.raises(CourseError, match="were not made by sharing out here"):
        share_out(2, say=lambda line: None)
    assert names_in(home / "sites/prostate") == ["BIDMC"]


# ---------------------------------------------------------------------------------------------------------------------
# Finding, drawing, downloading.


@pytest.fixture
def few(monkeypatch) -> list:
    """Lets the drawings take no time, and counts how often they are drawn."""
    drawn = []

    def draw(folder, cases, seed):
        drawn.append((cases, seed))
        raw_folder(folder, 8)
        hospitals = {f"site-{i + 1}": numbered(i, i + 2, i + 4, i + 6) for i in range(2)}
        (folder / "hospitals.json").write_text(json.dumps(hospitals))

    monkeypatch.setattr(data, "write", draw)
    return drawn


def test_generated_data_are_drawn_once_and_again_for_another_version(few, home, monkeypatch):
    folder = home / "generated/Task05_Prostate"
    assert find_or_make("generated") == find_or_make() == folder
    assert few == [(data.DRAWN_CASES, 0)]
    monkeypatch.setattr(data, "parameters", lambda cases, seed: {"version": "another"})
    find_or_make()
    assert few == [(data.DRAWN_CASES, 0), (data.DRAWN_CASES, 0)]
    assert (
        describe(folder)
        == f"generated drawings, not patients: 8 cases with mask, 0 without; channels T2, ADC ({folder})"
    )


def test_all_steps_from_nothing(few, home):
    assert prepare(lambda line: None) == "prostate"
    read = read_sites("prostate")
    assert [[len(items) for items in parts.values()] for parts in read.values()] == [[2, 1, 1], [2, 1, 1]]
    assert json.loads((home / "sites/prostate/about.json").read_text())["generated"] is True
    assert names_in(home / "generated") == ["Task05_Prostate", "prostate_t2"]
    said = []
    prepare(said.append)
    assert len(said) == 2 and all("nothing to do" in line for line in said)


def test_real_data_that_are_there_are_used_as_they_are(raw, monkeypatch):
    monkeypatch.setattr(data, "fetch", lambda *_, **__: pytest.fail("must not download"))
    assert find_or_make("real") == find_or_make("real", raw.parent) == raw
    (raw / "imagesTs").mkdir()
    save(signal_of(), raw / "imagesTs" / "prostate_50.nii.gz")
    assert describe(raw) == f"real cases: 4 cases with mask, 1 without; channels T2, ADC ({raw})"
    (raw / GENERATED).write_text("{}")
    assert describe(raw).startswith("generated drawings, not patients")
    (raw / "dataset.json").unlink()
    assert "channels without names" in describe(raw)
    with pytest.raises(CourseError, match=r"lacks dataset\.json"):
        find_or_make("real", raw.parent)
    with pytest.raises(CourseError, match="'reel'"):
        find_or_make("reel")


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    source = raw_folder(tmp_path / "served" / "Task05_Prostate", 3)
    (source / "imagesTr/._prostate_00.nii.gz").write_bytes(b"\0\5\26\7")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(source, "Task05_Prostate")
    server = Server("Task05_Prostate.tar", packed.getvalue())
    server.source = source
    official = (server.url, hashlib.md5(server.content).hexdigest())
    monkeypatch.setattr(data, "_official", lambda: official)
    yield server
    server.close()


@pytest.fixture
def drive(monkeypatch):
    """Stands in for gdown: Google Drive is asked for by its id and answers as the test says."""
    import gdown
    from gdown.exceptions import FileURLRetrievalError

    class Drive:
        content = None
        ids: ClassVar[list[str]] = []  # a new one for each test

    real = inspect.signature(gdown.download)

    def stand_in(*, id, output, **options):
        real.bind(id=id, output=output, **options)  # the real one takes these arguments
        assert options["use_cookies"] is False
        Drive.ids.append(id)
        if Drive.content is None:
            raise FileURLRetrievalError("too many accesses")
        output.write(Drive.content)

    monkeypatch.setattr(gdown, "download", stand_in)
    return Drive


def test_download_verifies_unpacks_and_leaves_only_the_data(mirror, drive, home):
    folder = find_or_make("real")
    assert folder == home / "Task05_Prostate" and files_of(folder) == files_of(mirror.source)
    assert names_in(home) == ["Task05_Prostate"]
    find_or_make("real")
    assert mirror.asked == 1 and drive.ids == []
    assert convert(folder, home / "prostate_t2").is_dir()  # what was downloaded can be used, ._ files and all


@pytest.mark.parametrize("fault", ["another file", "down", "breaks off"])
def test_google_drive_when_the_mirror_fails(mirror, drive, home, fault):
    drive.content = mirror.content
    if fault == "another file":
        mirror.content = mirror.content[:-1] + b"x"
    elif fault == "down":
        mirror.status = 503
    else:
        mirror.cut = 1000
    assert files_of(find_or_make("real")) == files_of(mirror.source)
    assert drive.ids == [data.GOOGLE_DRIVE_ID]
    assert names_in(home) == ["Task05_Prostate"]


@pytest.mark.parametrize(
    ("content", "said"), [(None, "Google Drive: too many accesses"), (b"a login page", "MD5 checksum")]
)
def test_both_sources_fail(mirror, drive, home, content, said):
    mirror.status, drive.content = 404, content
    with pytest.raises(CourseError) as caught:
        find_or_make("real")
    for message in ("2 problems", "127.0.0.1", said, "COURSE_DATA_SOURCE=generated", str(home / "Task05_Prostate.tar")):
        assert message in str(caught.value)
    assert names_in(home) == []


def test_archive_brought_by_hand(mirror, drive, home):
    home.mkdir()
    (home / "Task05_Prostate.tar").write_bytes(mirror.content)
    assert files_of(find_or_make("real")) == files_of(mirror.source)
    assert mirror.asked == 0 and drive.ids == []
    assert names_in(home) == ["Task05_Prostate", "Task05_Prostate.tar"]


def test_archive_that_lacks_the_masks(tmp_path, mirror, drive, home, monkeypatch):
    home.mkdir()
    with tarfile.open(home / "Task05_Prostate.tar", "w") as tar:
        tar.add(mirror.source / "imagesTr", "Task05_Prostate/imagesTr")
    md5 = hashlib.md5((home / "Task05_Prostate.tar").read_bytes()).hexdigest()
    monkeypatch.setattr(data, "_official", lambda: (mirror.url, md5))
    with pytest.raises(CourseError, match=r"Task05_Prostate lacks labelsTr, dataset\.json"):
        find_or_make("real")
    assert names_in(home) == ["Task05_Prostate.tar"]


def test_monai_still_names_the_archive():
    address, md5 = data._official()
    assert address.startswith("https://") and address.endswith("/Task05_Prostate.tar")
    assert md5 == "35138f08b1efaef89d7424d2bcc928db"
