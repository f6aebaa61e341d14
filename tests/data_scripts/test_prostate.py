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

from data_scripts import data_conversion, prostate_download
from data_scripts.data_conversion import convert
from data_scripts.datalists_gen import prepare, share_out
from data_scripts.folders import GENERATED
from data_scripts.prostate_download import describe, find_or_make
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
    nib.save(nib.Nifti1Image(array, affine, dtype=array.dtype), file)


def edit(file: Path, start: int, new: bytes):
    """Write over what an image holds, as no program would."""
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[start : start + len(new)] = new
    file.write_bytes(gzip.compress(bytes(content)))


def raw_folder(folder: Path, cases: int = 4) -> Path:
    for index in range(cases):
        save(signal_of(index), folder / "imagesTr" / f"prostate_{index:02d}.nii.gz")
        save(gland(index), folder / "labelsTr" / f"prostate_{index:02d}.nii.gz")
    content = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "PZ", "2": "TZ"}}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


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


def refuses(raw: Path, out: Path, *messages: str) -> str:
    """Conversion names everything that is wrong and leaves nothing behind; returns what it says."""
    before = files_of(out.parent)
    with pytest.raises(CourseError) as caught:
        convert(raw, out, say=len)
    for message in messages:
        assert message in str(caught.value)
    assert files_of(out.parent) == before and not out.exists()
    return str(caught.value)


# -- conversion: what comes out ----------------------------------------------------------------------------------------


def test_t2_keeps_its_voxels_and_type_and_the_mask_is_the_whole_gland(raw, out):
    file = raw / "imagesTr/prostate_00.nii.gz"
    image = nib.load(file)
    image.header["descrip"] = b"SURNAME^FIRSTNAME"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"born 1950"))
    nib.save(nib.Nifti1Image(signal_of(0), AFFINE, image.header), file)
    assert "Converted 4 of 4 cases: channel 0 (T2), labels 1, 2." in heard(raw, out)
    for index in range(4):
        name = f"prostate_{index:02d}.nii.gz"
        given, image = nib.load(raw / "imagesTr" / name), nib.load(out / "images" / name)
        mask = nib.load(out / "labels" / name)
        assert image.get_data_dtype() == np.float32 and mask.get_data_dtype() == np.uint8
        assert np.asanyarray(image.dataobj).tobytes() == np.asanyarray(given.dataobj)[..., 0].tobytes()
        np.testing.assert_allclose(image.affine, given.affine, atol=1e-5)
        assert mask.affine.tobytes() == image.affine.tobytes(), "both on one grid, to the last bit"
        np.testing.assert_array_equal(np.asanyarray(mask.dataobj), gland(index) > 0)
    content = gzip.decompress((out / "images/prostate_00.nii.gz").read_bytes())
    assert b"SURNAME" not in content and b"1950" not in content, "nothing of another header stays"


@pytest.mark.parametrize("kind", ["int16", "uint16", "int32", "int64", "uint8", "float64", ">i2", "int16 with a slope"])
def test_every_type_of_voxels_stays_neither_rounded_nor_widened(raw, out, kind):
    dtype = np.dtype(kind.split()[0])
    image = nib.Nifti1Image((signal_of(1) / 300).astype(dtype), AFFINE, dtype=dtype)
    if "slope" in kind:
        image.header.set_slope_inter(0.37, -12.0)
    nib.save(image, raw / "imagesTr/prostate_01.nii.gz")
    convert(raw, out, say=len)
    given, converted = (nib.load(folder / "prostate_01.nii.gz") for folder in (raw / "imagesTr", out / "images"))
    assert given.dataobj.slope == pytest.approx(0.37 if "slope" in kind else 1)  # otherwise this tests nothing
    assert converted.get_data_dtype() == dtype.newbyteorder("=")
    np.testing.assert_array_equal(converted.dataobj.get_unscaled(), given.dataobj.get_unscaled()[..., 0])
    np.testing.assert_array_equal(converted.get_fdata(), given.get_fdata()[..., 0])
    assert nib.load(out / "labels/prostate_01.nii.gz").get_fdata().max() == 1


def test_own_cases_in_3d_without_dataset_json(tmp_path, out):
    own = tmp_path / "our hospital"
    for index in range(3):
        save(signal_of(index, None), own / "images" / f"case {index}.nii.gz")
        save(gland().astype(np.float32), own / "labels" / f"case {index}.nii")
    assert "channel 0 (not named), labels 1, 2" in heard(own, out)
    np.testing.assert_array_equal(nib.load(out / "images/case 2.nii.gz").get_fdata(), signal_of(2, None))
    assert nib.load(out / "labels/case 2.nii.gz").get_data_dtype() == np.uint8


def test_a_second_call_does_nothing_also_after_the_data_were_moved_and_gives_the_same_bytes(raw, out, tmp_path):
    convert(raw, out, say=len)
    first, times = files_of(out), {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    said = heard(raw, out)
    assert len(said.splitlines()) == 1 and "all 4 cases are converted already, nothing to do" in said
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == times
    convert(raw, out.with_name("again"), say=len)
    again = files_of(out.with_name("again"))
    volumes = [name for name in first if name.endswith(".gz")]
    assert len(volumes) == 8 and all(first[name] == again[name] for name in volumes)
    assert {first[name][4:8] for name in volumes} == {bytes(4)}  # gzip's time stamp
    out.parent.rename(tmp_path / "moved")
    assert "nothing to do" in heard(tmp_path / "moved" / raw.name, tmp_path / "moved" / out.name)


def test_changed_input_and_lost_output_are_converted_again(raw, out, monkeypatch):
    convert(raw, out, say=len)
    assert "channel 1 (ADC)" in heard(raw, out, channel=1)
    np.testing.assert_array_equal(nib.load(out / "images/prostate_00.nii.gz").get_fdata(), signal_of(0)[..., 1])
    save(signal_of(77), raw / "imagesTr/prostate_02.nii.gz")
    convert(raw, out, say=len)
    np.testing.assert_array_equal(nib.load(out / "images/prostate_02.nii.gz").get_fdata(), signal_of(77)[..., 0])
    (out / "labels/prostate_03.nii.gz").write_bytes(b"")
    convert(raw, out, say=len)
    assert nib.load(out / "labels/prostate_03.nii.gz").get_fdata().any()
    (out / "images/prostate_03.nii.gz").unlink()
    convert(raw, out, say=len)
    assert (out / "images/prostate_03.nii.gz").is_file()
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder / "prostate_00.nii.gz").unlink()
    convert(raw, out, say=len)
    assert names_in(out / "images") == names_in(out / "labels") == [f"prostate_0{i}.nii.gz" for i in (1, 2, 3)]
    monkeypatch.setattr(data_conversion, "VERSION", data_conversion.VERSION + 1)
    assert "Converted 3 of 3" in heard(raw, out), "that of an earlier version is made again"
    assert names_in(out.parent) == ["Task05_Prostate", "prostate_t2"]


# -- conversion: what is refused ---------------------------------------------------------------------------------------


def test_all_problems_are_named_at_once_and_nothing_is_written(tmp_path):
    raw = raw_folder(tmp_path / "in" / "Task05_Prostate", 12)
    images, labels = ([raw / kind / f"prostate_{i:02d}.nii.gz" for i in range(12)] for kind in ("imagesTr", "labelsTr"))
    labels[0].unlink()
    images[1].unlink()
    save(signal_of(channels=3), images[2])
    save(gland() * 4, labels[3])
    save(np.zeros((6, 5, 3), np.uint8) + 1, labels[4])
    save(gland(), labels[5], nib.affines.from_matvec(np.eye(3), [5, 0, 0]) @ AFFINE)
    images[6].write_bytes(images[6].read_bytes()[: images[6].stat().st_size // 2])
    save(np.where(np.arange(2) == 1, signal_of(), np.nan), images[8])
    labels[9].write_bytes(b"not a NIfTI file")
    save(signal_of(channels=None)[0], images[10])
    images[11].write_bytes(b"")  # both files of one case
    labels[11].write_bytes(b"")
    said = refuses(raw, tmp_path / "out" / "t2", "12 problems")
    for file, what in (
        (images[0], "no mask of that name"),
        (labels[1], "no image of that name"),
        (images[2], "3 channel(s), not 2 as dataset.json"),
        (labels[3], "labels outside 0, 1, 2: 4, 8"),
        (labels[4], "shape (6, 5, 3), its image (6, 5, 4)"),
        (labels[5], "5 mm away"),
        (images[6], "damaged"),
        (images[8], "NaN"),
        (labels[9], "damaged"),
        (images[10], "shape (5, 4)"),
        (images[11], "damaged"),
        (labels[11], "damaged"),
    ):
        assert [line for line in said.splitlines() if f"{file}: " in line and what in line], (file.name, what, said)


NAN, HUGE = np.float32(np.nan).tobytes(), np.array([32767, 32767, 32767, 2], "<i2").tobytes()


@pytest.mark.parametrize(
    ("kind", "start", "new", "said"),
    [  # nibabel would write none of these
        pytest.param("imagesTr", 280, NAN, ": its affine is not finite", id="no number in an image's sform"),
        pytest.param("labelsTr", 280, NAN, ": its affine puts it up to nan mm away", id="no number in a mask's sform"),
        pytest.param("imagesTr", 42, HUGE, "that its header announces", id="280 TB that must not be asked for"),
    ],
)
def test_headers_that_no_program_writes(raw, out, kind, start, new, said):
    edit(raw / kind / "prostate_01.nii.gz", start, new)
    refuses(raw, out, f"{kind}/prostate_01.nii.gz: ", said)


def test_a_flipped_bit_is_seen(raw, out):
    file = raw / "imagesTr" / "prostate_02.nii.gz"
    content = bytearray(file.read_bytes())
    content[-6] ^= 1  # in the checksum: what decompresses looks right
    file.write_bytes(content)
    refuses(raw, out, "prostate_02.nii.gz", "CRC")


@pytest.mark.parametrize("seed", range(20))
def test_damaged_headers_never_end_in_a_traceback(seed, raw, out):
    file, rng = raw / ("imagesTr", "labelsTr")[seed % 2] / "prostate_01.nii.gz", np.random.default_rng(seed)
    edit(file, 40, rng.bytes(16))  # the shape
    edit(file, 70, rng.bytes(4))  # the data type
    if seed % 3 == 0:
        file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[: rng.integers(0, 348)]))
    refuses(raw, out, "prostate_01.nii.gz")


@pytest.mark.parametrize("seed", range(20))
def test_damaged_geometry_never_ends_in_a_traceback(seed, raw, out):
    file, rng = raw / "imagesTr" / "prostate_01.nii.gz", np.random.default_rng(seed)
    edit(file, 76, rng.bytes(16))  # pixdim
    edit(file, 252, bytes([seed // 2 % 2, 0, seed % 2, 0]))  # the codes of qform and sform
    edit(file, 256, rng.bytes(72 if seed % 3 else 24))  # both forms, or the qform alone
    if seed % 2 and not seed % 3 and not seed // 2 % 2:
        assert "Converted 4 of 4" in heard(raw, out)  # the sform is intact, and nothing else is believed
    else:
        refuses(raw, out, "prostate_01.nii.gz")


def test_odd_channel_count_without_dataset_json(raw, out):
    (raw / "dataset.json").unlink()
    save(signal_of(channels=3), raw / "imagesTr" / "prostate_03.nii.gz")
    said = refuses(raw, out, "prostate_03.nii.gz: has 3 channel(s), not 2 as dataset.json or the first case says")
    assert len(said.splitlines()) == 1


def test_foreign_output_is_left_alone(raw, out):
    out.mkdir()
    (out / "thesis.doc").write_text("years of work")
    (out.parent / "file").write_text("")
    convert(raw_folder(raw.with_name("other hospital"), 3), out.with_name("theirs"), say=len)
    before = files_of(out.parent)
    places = {out: "did not write", "theirs": "other hospital", raw / "t2": "inside the other", "file": "did not write"}
    for place, said in places.items():
        with pytest.raises(CourseError, match=said):
            convert(raw, out.parent / place)
    assert files_of(out.parent) == before


def test_a_full_disk_leaves_nothing_or_an_earlier_conversion_and_the_next_call_succeeds(raw, out, monkeypatch):
    with failing(monkeypatch, gzip.GzipFile, "write", FULL, after=4):
        refuses(raw, out, "No space left", "Free some space", str(out))
    assert names_in(out.parent) == ["Task05_Prostate"]
    convert(raw, out, say=len)
    assert len(list(out.glob("*/*.nii.gz"))) == 8
    save(signal_of(5), raw / "imagesTr" / "prostate_00.nii.gz")
    before = files_of(out)
    with failing(monkeypatch, gzip.GzipFile, "write", FULL), pytest.raises(CourseError, match="No space left"):
        convert(raw, out, say=len)
    assert files_of(out) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from data_scripts import data_conversion
calls, examine = [], data_conversion.examine
def kill_in_case_3(case):
    calls.append(case)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return examine(case)
data_conversion.examine = kill_in_case_3
data_conversion.convert(Path(sys.argv[1]), Path(sys.argv[2]))
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
    for step in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            step(thread)
    assert [sum(what in line for line in said) for what in ("Converted 4 of 4", "nothing to do")] == [1, 1]
    assert len(list(out.glob("*/*.nii.gz"))) == 8


REAL_LABELS = REPOSITORY.parent / "shared" / "reference" / "msd_prostate_labels"


@pytest.mark.skipif(not REAL_LABELS.is_dir(), reason="no real labels here")
def test_real_labels(tmp_path, out):
    raw, files = tmp_path / "Task05_Prostate", sorted(REAL_LABELS.glob("*.nii.gz"))[:2]
    (raw / "labelsTr").mkdir(parents=True)
    for file in files:
        label = nib.load(file)
        image = np.arange(np.prod(label.shape) * 2, dtype=np.float32).reshape(*label.shape, 2)
        save(image, raw / "imagesTr" / file.name, label.affine)
        (raw / "labelsTr" / file.name).write_bytes(file.read_bytes())
    convert(raw, out, say=len)
    for file in files:
        mask, label = nib.load(out / "labels" / file.name), nib.load(file)
        np.testing.assert_array_equal(np.asanyarray(mask.dataobj), np.asanyarray(label.dataobj) > 0)
        np.testing.assert_allclose(mask.affine, label.affine, atol=1e-4)


# -- sharing out -------------------------------------------------------------------------------------------------------


def named_cases(folder: Path, cases: int) -> Path:
    """Names alone: sharing out does not look into the images, beyond that no two are the same."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
        for index in range(cases):
            (folder / kind / f"prostate_{index:02d}.nii.gz").write_text(f"{kind} {index}")
    return folder


@pytest.fixture
def converted(home) -> Path:
    return named_cases(home / "generated" / "prostate_t2", 16)


def share(*arguments, **named) -> dict[str, dict[str, list[str]]]:
    """Site → part → case names, as the sites find them."""
    read = read_sites(share_out(*arguments, **{"say": len, **named}))
    case = lambda item: Path(item["image"]).name.removesuffix(".nii.gz")  # noqa: E731
    return {site: {part: list(map(case, items)) for part, items in parts.items()} for site, parts in read.items()}


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
        folder, names = home / "sites" / "prostate" / site, [f"{case}.nii.gz" for case in cases_of(parts)]
        assert names_in(folder / "labels") == names_in(folder / "images") == names
    about = json.loads((home / "sites/prostate/about.json").read_text())
    assert (about["task"], about["seed"], about["generated"]) == ("prostate", 0, False)


@pytest.mark.parametrize(("cases", "sites"), [(12, 4), (11, 3), (5, 1), (3, 1)])
def test_fewer_sites_where_there_are_few_cases(tmp_path, cases, sites):
    assert len(share(folder=named_cases(tmp_path / "few", cases))) == sites


def test_the_seed_decides_and_fewer_sites_leave_no_old_one(converted, home):
    first, said = share(2, seed=3, data="a"), []
    assert share(2, seed=3, data="b") == first != share(2, seed=4, data="c")
    assert list(share(3, seed=3, data="a")) == ["site-1", "site-2", "site-3"]
    share_out(2, seed=3, data="b", say=said.append)
    assert len(said) == 1 and "nothing to do" in said[0]
    assert list(share(2, seed=3, data="a")) == ["site-1", "site-2"]
    assert names_in(home / "sites") == ["a", "b", "c"]


def test_hospitals_stay_together_and_do_not_depend_on_each_other(converted):
    sites = {"BIDMC": numbered(*range(9)), "HK": [f"{case}.nii.gz" for case in numbered(*range(9, 16))]}
    shared = share(sites)
    assert [cases_of(parts) for parts in shared.values()] == [numbered(*range(9)), numbered(*range(9, 16))]
    said = []
    share_out({"HK": sites["HK"][::-1]}, data="alone", say=said.append)
    assert read_sites("alone")["HK"] and share({"HK": sites["HK"][::-1]}, data="alone")["HK"] == shared["HK"]
    assert [line for line in said if line.startswith("warning: in no site, so left out: prostate_00, prostate_01, ")]


def test_hospitals_beside_the_raw_data_are_the_default(home):
    raw = raw_folder(home / "Task05_Prostate", 7)
    hospitals = {"north": numbered(0, 1, 2), "south": numbered(3, 4, 5, 6)}
    (raw / "hospitals.json").write_text(json.dumps(hospitals))
    converted = convert(raw, home / "prostate_t2", say=len)
    assert {site: cases_of(parts) for site, parts in share(folder=converted).items()} == hospitals
    assert list(share(1, folder=converted)) == ["site-1"], "a number goes before the file"


WRONG = {"a": numbered(0, 1, 2, 99), "b": numbered(3, 4, 5, 0), "c": numbered(6, 7), "d": numbered(8, 9, 10)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(
            {"sites": WRONG},
            r"4 problems(.|\n)*prostate_15.nii.gz: no mask(.|\n)*site a: there is no case prostate_99\n(.|\n)*"
            r"site b: case prostate_00 is named twice, before that in a\n(.|\n)*site c: 2 case\(s\), at least 3 are needed",
            id="all that is wrong at once",
        ),
        pytest.param({"sites": 6}, "4 problems", id="too many sites"),
        pytest.param({"sites": 0}, "sites is 0", id="no sites"),
        pytest.param({"sites": 17}, "15 items cannot be shared out over 17 sites", id="more sites than cases"),
        pytest.param({"sites": 2, "seed": -1}, "seed is -1", id="a negative seed"),
        pytest.param(
            {"folder": Path("/nowhere")}, "/nowhere has neither imagesTr/ .*data_conversion.sh", id="no folder"
        ),
    ],
)
def test_what_cannot_be_shared_out_is_named_and_nothing_is_written(converted, home, arguments, said):
    (converted / "labels/prostate_15.nii.gz").unlink()
    with pytest.raises(CourseError, match=said):
        share_out(**arguments, say=len)
    assert not (home / "sites" / "prostate").exists()


def test_senseless_names_and_places_with_other_things_are_refused(converted, home):
    with pytest.raises(CourseError, match="'data' is 'a b'"):
        share_out(2, data="a b", say=len)
    (home / "sites/prostate/BIDMC").mkdir(parents=True)
    (home / "sites/prostate/BIDMC/datalist.json").write_text("{}")
    with pytest.raises(CourseError, match="were not made by sharing out here"):
        share_out(2, say=len)
    assert names_in(home / "sites/prostate") == ["BIDMC"]


# -- finding, drawing, downloading -------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch) -> list:
    """Lets the drawings take no time, and counts how often they are drawn."""
    drawn = []

    def draw(folder, cases, seed):
        drawn.append((cases, seed))
        raw_folder(folder, 8)
        hospitals = {f"site-{i + 1}": numbered(i, i + 2, i + 4, i + 6) for i in range(2)}
        (folder / "hospitals.json").write_text(json.dumps(hospitals))

    monkeypatch.setattr(prostate_download, "write", draw)
    return drawn


def test_all_steps_from_nothing_draw_once_and_again_for_another_version(few, home, monkeypatch):
    folder = home / "generated/Task05_Prostate"
    assert find_or_make("generated") == find_or_make() == folder
    assert few == [(prostate_download.DRAWN_CASES, 0)]
    said = f"generated drawings, not patients: 8 cases with mask, 0 without; channels T2, ADC ({folder})"
    assert describe(folder) == said
    assert prepare(len) == "prostate"
    read = read_sites("prostate")
    assert [[len(items) for items in parts.values()] for parts in read.values()] == [[2, 1, 1], [2, 1, 1]]
    assert json.loads((home / "sites/prostate/about.json").read_text())["generated"] is True
    assert names_in(home / "generated") == ["Task05_Prostate", "prostate_t2"]
    said = []
    prepare(said.append)
    assert len(said) == 2 and all("nothing to do" in line for line in said)
    monkeypatch.setattr(prostate_download, "parameters", lambda cases, seed: {"version": "another"})
    find_or_make()
    assert few == [(prostate_download.DRAWN_CASES, 0)] * 2


def test_real_data_that_are_there_are_used_as_they_are(raw, monkeypatch):
    monkeypatch.setattr(prostate_download, "fetch", lambda *_, **__: pytest.fail("must not download"))
    assert find_or_make("real") == find_or_make("real", raw.parent) == raw
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


def packed(source: Path, *names: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name in names:
            tar.add(source / name, f"Task05_Prostate/{name}")
    return content.getvalue()


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    source = raw_folder(tmp_path / "served" / "Task05_Prostate", 3)
    (source / "imagesTr/._prostate_00.nii.gz").write_bytes(b"\0\5\26\7")
    server = Server("Task05_Prostate.tar", packed(source, "."))
    server.source = source
    official = (server.url, hashlib.md5(server.content).hexdigest())
    monkeypatch.setattr(prostate_download, "_official", lambda: official)
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
    assert drive.ids == [prostate_download.GOOGLE_DRIVE_ID]
    assert names_in(home) == ["Task05_Prostate"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(None, "Google Drive: too many accesses", id="no answer"),
        pytest.param(b"a login page", "MD5 checksum", id="a page"),
    ],
)
def test_both_sources_fail(mirror, drive, home, content, said):
    mirror.status, drive.content = 404, content
    with pytest.raises(CourseError) as caught:
        find_or_make("real")
    for message in ("2 problems", "127.0.0.1", said, "COURSE_DATA_SOURCE=generated", str(home / "Task05_Prostate.tar")):
        assert message in str(caught.value)
    assert names_in(home) == []


def test_an_archive_brought_by_hand_and_one_that_lacks_the_masks(mirror, drive, home, monkeypatch):
    home.mkdir()
    archive = home / "Task05_Prostate.tar"
    archive.write_bytes(packed(mirror.source, "imagesTr"))
    with monkeypatch.context() as patch:
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        patch.setattr(prostate_download, "_official", lambda: (mirror.url, md5))
        with pytest.raises(CourseError, match=r"Task05_Prostate lacks labelsTr, dataset\.json"):
            find_or_make("real")
    assert names_in(home) == ["Task05_Prostate.tar"]
    archive.write_bytes(mirror.content)
    assert files_of(find_or_make("real")) == files_of(mirror.source)
    assert mirror.asked == 0 and drive.ids == []
    assert names_in(home) == ["Task05_Prostate", "Task05_Prostate.tar"]


def test_monai_still_names_the_archive():
    address, md5 = prostate_download._official()
    assert address.startswith("https://") and address.endswith("/Task05_Prostate.tar")
    assert md5 == "35138f08b1efaef89d7424d2bcc928db"
