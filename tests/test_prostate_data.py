"""src.prostate: conversion, datalists and download, with tiny volumes and every fault that has its own message."""

import errno
import gzip
import http.server
import inspect
import io
import json
import os
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

from src import prostate
from src.errors import CourseError
from src.fetching import md5_of

REPOSITORY = Path(__file__).resolve().parent.parent
SHAPE = (6, 5, 4)
# Oblique, anisotropic, not at the origin: as a scanner writes it.
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
    (folder / "dataset.json").write_text(json.dumps({"modality": {"0": "T2", "1": "ADC"}}))
    return folder


@pytest.fixture
def raw(tmp_path) -> Path:
    return raw_folder(tmp_path / "my data" / "Task05_Prostate")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "my data" / "prostate_t2"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refuses(raw: Path, out: Path, *messages: str, **arguments):
    """Conversion names everything that is wrong and leaves nothing behind."""
    before = files_of(out.parent)
    with pytest.raises(CourseError) as caught:
        prostate.convert(raw, out, say=lambda line: None, **arguments)
    for message in messages:
        assert message in str(caught.value)
    assert files_of(out.parent) == before
    assert not out.exists()
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Conversion.


def test_t2_keeps_its_voxels_type_and_affine_and_the_mask_is_the_whole_gland(raw, out):
    assert prostate.convert(raw, out) == out
    for index in range(4):
        name = f"prostate_{index:02d}.nii.gz"
        given, image = nib.load(raw / "imagesTr" / name), nib.load(out / "images" / name)
        mask = nib.load(out / "labels" / name)
        assert image.get_data_dtype() == np.float32 and mask.get_data_dtype() == np.uint8
        assert np.asanyarray(image.dataobj).tobytes() == np.asanyarray(given.dataobj)[..., 0].tobytes()
        assert image.affine.tobytes() == given.affine.tobytes() == mask.affine.tobytes()
        assert image.header["sform_code"] == given.header["sform_code"]
        assert image.header.get_zooms() == given.header.get_zooms()[:3]
        np.testing.assert_array_equal(np.asanyarray(mask.dataobj), gland(index) > 0)


def test_scaled_integers_are_neither_rounded_nor_widened(raw, out):
    stored = np.random.default_rng(1).integers(-500, 30_000, (*SHAPE, 2)).astype(np.int16)
    image = nib.Nifti1Image(stored, AFFINE)
    image.header.set_slope_inter(0.37, -12.0)
    nib.save(image, raw / "imagesTr" / "prostate_01.nii.gz")
    prostate.convert(raw, out)
    given = nib.load(raw / "imagesTr" / "prostate_01.nii.gz")
    assert given.dataobj.slope == pytest.approx(0.37)  # otherwise this tests nothing
    converted = nib.load(out / "images" / "prostate_01.nii.gz")
    np.testing.assert_array_equal(converted.dataobj.get_unscaled(), stored[..., 0])
    assert converted.get_data_dtype() == np.int16
    np.testing.assert_array_equal(converted.get_fdata(), given.get_fdata()[..., 0])
    assert nib.load(out / "labels" / "prostate_01.nii.gz").get_fdata().max() == 1


def test_own_cases_in_3d_without_dataset_json(tmp_path):
    own = tmp_path / "our hospital"
    for index in range(3):
        save(signal_of(index, None), own / "images" / f"case {index}.nii.gz")
        save(gland().astype(np.float32), own / "labels" / f"case {index}.nii")
    prostate.convert(own, tmp_path / "t2")
    image = nib.load(tmp_path / "t2/images/case 2.nii.gz")
    np.testing.assert_array_equal(image.get_fdata(), signal_of(2, None))
    assert nib.load(tmp_path / "t2/labels/case 2.nii.gz").get_data_dtype() == np.uint8


def test_another_channel_replaces_the_first_conversion(raw, out):
    prostate.convert(raw, out)
    prostate.convert(raw, out, channel=1)
    np.testing.assert_array_equal(nib.load(out / "images/prostate_00.nii.gz").get_fdata(), signal_of(0)[..., 1])
    assert [file.name for file in out.parent.iterdir() if file.name.startswith(".")] == []


def test_macos_companions_are_skipped(raw, out):
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder / "._prostate_00.nii.gz").write_bytes(b"\0\5\26\7")
    (raw / "imagesTr" / "._alone.nii.gz").write_bytes(b"\0\5\26\7")
    prostate.convert(raw, out)
    assert sorted(file.name for file in (out / "images").iterdir()) == [f"prostate_0{i}.nii.gz" for i in range(4)]


def test_second_call_does_nothing_and_says_so(raw, out):
    prostate.convert(raw, out)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    said = []
    prostate.convert(raw, out, say=said.append)
    assert len(said) == 1 and "nothing to do" in said[0]
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before


def test_changed_input_and_lost_output_are_converted_again(raw, out):
    prostate.convert(raw, out)
    save(signal_of(77), raw / "imagesTr" / "prostate_02.nii.gz")
    prostate.convert(raw, out)
    np.testing.assert_array_equal(nib.load(out / "images/prostate_02.nii.gz").get_fdata(), signal_of(77)[..., 0])
    (out / "labels/prostate_03.nii.gz").write_bytes(b"")
    prostate.convert(raw, out)
    assert nib.load(out / "labels/prostate_03.nii.gz").get_fdata().any()


def test_same_input_gives_the_same_bytes(raw, out):
    prostate.convert(raw, out)
    first = {name: content for name, content in files_of(out).items() if name.endswith(".gz")}
    assert len(first) == 8
    assert {content[4:8] for content in first.values()} == {bytes(4)}  # gzip's time stamp
    prostate.convert(raw, out.with_name("again"))
    again = files_of(out.with_name("again"))
    assert first == {name: again[name] for name in first}


def test_all_problems_are_named_at_once_and_nothing_is_written(tmp_path):
    raw = raw_folder(tmp_path / "in" / "Task05_Prostate", 12)
    images, labels = raw / "imagesTr", raw / "labelsTr"
    (labels / "prostate_00.nii.gz").unlink()
    (images / "prostate_01.nii.gz").unlink()
    save(signal_of(channels=3), images / "prostate_02.nii.gz")
    save(gland() * 4, labels / "prostate_03.nii.gz")
    save(np.zeros((6, 5, 3), np.uint8) + 1, labels / "prostate_04.nii.gz")
    moved = AFFINE.copy()
    moved[0, 3] += 5
    save(gland(), labels / "prostate_05.nii.gz", moved)
    whole = (images / "prostate_06.nii.gz").read_bytes()
    (images / "prostate_06.nii.gz").write_bytes(whole[: len(whole) // 2])
    save(gland() * 0, labels / "prostate_07.nii.gz")
    broken = signal_of()
    broken[0, 0, 0] = np.nan
    save(broken, images / "prostate_08.nii.gz")
    (labels / "prostate_09.nii.gz").write_bytes(b"not a NIfTI file")
    save(signal_of(channels=None)[0], images / "prostate_10.nii.gz")
    said = refuses(raw, tmp_path / "out" / "t2", "11 problems")
    for file, what in (
        (images / "prostate_00.nii.gz", "no mask of that name"),
        (labels / "prostate_01.nii.gz", "no image of that name"),
        (images / "prostate_02.nii.gz", "3 channel(s), dataset.json names 2"),
        (labels / "prostate_03.nii.gz", "labels outside 0, 1, 2: 4, 8"),
        (labels / "prostate_04.nii.gz", "shape (6, 5, 3)"),
        (labels / "prostate_05.nii.gz", "5 mm away"),
        (images / "prostate_06.nii.gz", "damaged"),
        (labels / "prostate_07.nii.gz", "empty"),
        (images / "prostate_08.nii.gz", "NaN"),
        (labels / "prostate_09.nii.gz", "damaged"),
        (images / "prostate_10.nii.gz", "shape (5, 4)"),
    ):
        assert [line for line in said.splitlines() if f"{file}: " in line and what in line], (file.name, what, said)


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


def test_header_that_announces_more_than_there_is(raw, out):
    file = raw / "imagesTr" / "prostate_01.nii.gz"
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[42:50] = np.array([32767, 32767, 32767, 2], "<i2").tobytes()  # 280 TB that must not be asked for
    file.write_bytes(gzip.compress(bytes(content)))
    refuses(raw, out, "prostate_01.nii.gz", "that its header announces")


def test_labels_between_integers_and_nan_are_refused(raw, out):
    save(gland() * np.float32(0.5), raw / "labelsTr" / "prostate_00.nii.gz")
    save(np.where(gland() > 1, np.nan, gland()).astype(np.float32), raw / "labelsTr" / "prostate_01.nii.gz")
    refuses(raw, out, "2 problems", "0.5", "nan")


def test_affine_that_lost_digits_still_agrees(raw, out):
    save(gland(), raw / "labelsTr" / "prostate_00.nii.gz", AFFINE.round(4))
    prostate.convert(raw, out)
    assert (
        nib.load(out / "labels/prostate_00.nii.gz").affine.tobytes()
        == nib.load(out / "images/prostate_00.nii.gz").affine.tobytes()
    )


def test_channel_that_is_not_there(raw, out):
    refuses(raw, out, "there is no channel 2", "4 problems", channel=2)
    refuses(raw, out, "count from 0", channel=-1)


def test_odd_channel_count_without_dataset_json(raw, out):
    (raw / "dataset.json").unlink()
    save(signal_of(channels=3), raw / "imagesTr" / "prostate_03.nii.gz")
    assert "1 problem." in refuses(raw, out, "prostate_03.nii.gz: has 3 channel(s), most others 2")


def test_folder_that_is_no_data_set(tmp_path, out):
    out.parent.mkdir()
    refuses(tmp_path / "nowhere", out, "nowhere", "prostate_download.sh")
    (tmp_path / "empty/images").mkdir(parents=True)
    (tmp_path / "empty/labels").mkdir()
    refuses(tmp_path / "empty", out, "no NIfTI file")


def test_case_that_is_there_twice(raw, out):
    save(signal_of(), raw / "imagesTr" / "prostate_00.nii")
    refuses(raw, out, "prostate_00.nii.gz: the case is there twice")


def test_foreign_output_is_left_alone(raw, out):
    out.mkdir()
    (out / "thesis.doc").write_text("years of work")
    with pytest.raises(CourseError, match="did not write"):
        prostate.convert(raw, out)
    other = raw_folder(raw.with_name("other hospital"), 3)
    prostate.convert(other, out.with_name("theirs"))
    before = files_of(out.parent)
    with pytest.raises(CourseError, match="other hospital"):
        prostate.convert(raw, out.with_name("theirs"))
    with pytest.raises(CourseError, match="inside the other"):
        prostate.convert(raw, raw / "t2")
    assert files_of(out.parent) == before


def test_full_disk_leaves_nothing_and_the_next_call_succeeds(raw, out, monkeypatch):
    write, calls = gzip.GzipFile.write, []

    def full(self, content):
        calls.append(content)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(gzip.GzipFile, "write", full)
        refuses(raw, out, "No space left", "Free some space", str(out))
    assert len(calls) == 5
    assert not (out.parent / ".prostate_t2.part").exists()
    prostate.convert(raw, out)
    assert len(list(out.glob("*/*.nii.gz"))) == 8


def test_full_disk_keeps_an_earlier_conversion(raw, out, monkeypatch):
    prostate.convert(raw, out)
    save(signal_of(5), raw / "imagesTr" / "prostate_00.nii.gz")
    before = files_of(out)

    def full(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(gzip.GzipFile, "write", full)
    with pytest.raises(CourseError, match="No space left"):
        prostate.convert(raw, out)
    assert files_of(out) == before


KILLED = """
import os, signal, sys
from src import prostate
replace, calls = os.replace, []
def kill_in_case_3(part, file):
    calls.append(file)
    if len(calls) == 8:  # image, mask and record of two cases, the image of the third; its mask is not renamed yet
        os.kill(os.getpid(), signal.SIGKILL)
    replace(part, file)
os.replace = kill_in_case_3
prostate.convert(sys.argv[1], sys.argv[2])
"""


def test_killed_half_way_goes_on_where_it_was(raw, out):
    done = subprocess.run([sys.executable, "-c", KILLED, raw, out], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    staged = out.parent / ".prostate_t2.part"
    for file in staged.glob("*/[!.]*.nii.gz"):
        nib.load(file).get_fdata()  # under its final name a file is whole
    kept = {file.name: file.stat().st_ino for file in staged.glob("images/[!.]*.nii.gz")}
    assert sorted(kept) == ["prostate_00.nii.gz", "prostate_01.nii.gz", "prostate_02.nii.gz"]
    assert list(staged.glob("labels/.*.part"))  # otherwise this tests nothing
    prostate.convert(raw, out)
    assert sorted(file.name for file in out.parent.iterdir()) == ["Task05_Prostate", "prostate_t2"]
    assert sorted(map(str, files_of(out))) == sorted(
        ["conversion.json", *(f"{kind}/prostate_0{i}.nii.gz" for kind in ("images", "labels") for i in range(4))]
    )
    for name in ("prostate_00.nii.gz", "prostate_01.nii.gz"):
        assert (out / "images" / name).stat().st_ino == kept[name], "converted twice"
    reference = out.with_name("reference")
    prostate.convert(raw, reference)
    assert {k: v for k, v in files_of(out).items() if k.endswith(".gz")} == {
        k: v for k, v in files_of(reference).items() if k.endswith(".gz")
    }


def test_killed_half_way_then_cases_taken_away(raw, out):
    subprocess.run([sys.executable, "-c", KILLED, raw, out], cwd=REPOSITORY, capture_output=True)
    for name in ("prostate_00.nii.gz", "prostate_02.nii.gz"):  # one that was done, one that was half done
        (raw / "imagesTr" / name).unlink()
        (raw / "labelsTr" / name).unlink()
    prostate.convert(raw, out)
    wanted = [f"{kind}/prostate_0{i}.nii.gz" for kind in ("images", "labels") for i in (1, 3)]
    assert sorted(files_of(out)) == ["conversion.json", *wanted]


def test_two_conversions_at_once(raw, out):
    said: list[str] = []
    threads = [threading.Thread(target=prostate.convert, args=(raw, out), kwargs={"say": said.append}) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("Converted 4 of 4" in line for line in said) == 1
    assert sum("nothing to do" in line for line in said) == 1
    assert len(list(out.glob("*/*.nii.gz"))) == 8


REAL_LABELS = REPOSITORY.parent / "shared" / "reference" / "msd_prostate_labels"


@pytest.mark.skipif(not REAL_LABELS.is_dir(), reason="no real labels here")
def test_real_labels(tmp_path):
    raw = tmp_path / "Task05_Prostate"
    files = sorted(REAL_LABELS.glob("*.nii.gz"))[:3]
    for file in files:
        label = nib.load(file)
        image = np.arange(np.prod(label.shape) * 2, dtype=np.float32).reshape(*label.shape, 2)
        save(image, raw / "imagesTr" / file.name, label.affine)
        (raw / "labelsTr").mkdir(exist_ok=True)
        (raw / "labelsTr" / file.name).write_bytes(file.read_bytes())
    prostate.convert(raw, tmp_path / "t2")
    for file in files:
        mask = nib.load(tmp_path / "t2/labels" / file.name)
        np.testing.assert_array_equal(np.asanyarray(mask.dataobj), np.asanyarray(nib.load(file).dataobj) > 0)
        np.testing.assert_array_equal(mask.affine, nib.load(file).affine)


# ---------------------------------------------------------------------------------------------------------------------
# Datalists.


@pytest.fixture
def converted(tmp_path) -> Path:
    """Names alone: making datalists does not open the images."""
    folder = tmp_path / "my data" / "prostate_t2"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
        for index in range(16):
            (folder / kind / f"prostate_{index:02d}.nii.gz").write_bytes(b"")
    return folder


def names_in(datalist: dict, part: str | None = None) -> list[str]:
    parts = [part] if part else list(prostate.PARTS)
    return [Path(case["image"]).name.removesuffix(".nii.gz") for p in parts for case in datalist[p]]


@pytest.mark.parametrize(
    ("cases", "sizes"),
    [(3, (1, 1, 1)), (4, (2, 1, 1)), (5, (3, 1, 1)), (6, (3, 2, 1)), (8, (4, 2, 2)), (32, (16, 8, 8))],
)
def test_part_sizes(cases, sizes):
    assert tuple(prostate.part_sizes(cases).values()) == sizes


@pytest.mark.parametrize("cases", range(3, 60))
def test_parts_are_as_near_to_50_25_25_as_whole_cases_can_be(cases):
    sizes = prostate.part_sizes(cases)
    assert sum(sizes.values()) == cases and min(sizes.values()) >= 1
    assert all(abs(size - cases * prostate.PARTS[part]) < 1 for part, size in sizes.items())


def test_every_case_is_in_one_part_of_one_site(converted, tmp_path):
    lists = prostate.make_datalists(converted, tmp_path / "lists", sites=4, seed=0)
    assert list(lists) == ["site-1", "site-2", "site-3", "site-4"]
    everything = [name for datalist in lists.values() for name in names_in(datalist)]
    assert sorted(everything) == [f"prostate_{i:02d}" for i in range(16)]
    for site, datalist in lists.items():
        assert [len(datalist[part]) for part in prostate.PARTS] == [2, 1, 1]
        assert json.loads((tmp_path / "lists" / f"{site}.json").read_text()) == datalist
        for part in prostate.PARTS:
            for case in datalist[part]:
                assert case["label"] == case["image"].replace("images/", "labels/")
                assert (converted / case["image"]).is_file()


def test_seed_decides(converted, tmp_path):
    first = prostate.make_datalists(converted, tmp_path / "a", 2, seed=3)
    assert prostate.make_datalists(converted, tmp_path / "b", 2, seed=3) == first
    assert prostate.make_datalists(converted, tmp_path / "c", 2, seed=4) != first


def test_hospitals_stay_together_and_do_not_depend_on_each_other(converted, tmp_path):
    sites = {
        "north": [f"prostate_{i:02d}" for i in range(9)],
        "south": [f"prostate_{i:02d}.nii.gz" for i in range(9, 16)],
    }
    lists = prostate.make_datalists(converted, tmp_path / "lists", sites)
    assert {site: sorted(names_in(datalist)) for site, datalist in lists.items()} == {
        "north": [f"prostate_{i:02d}" for i in range(9)],
        "south": [f"prostate_{i:02d}" for i in range(9, 16)],
    }
    alone = prostate.make_datalists(converted, tmp_path / "alone", {"south": sites["south"][::-1]})
    assert alone["south"] == lists["south"]


def test_second_call_says_so_and_fewer_sites_leave_no_old_list(converted, tmp_path):
    out = tmp_path / "my data" / "lists"
    prostate.make_datalists(converted, out, 4)
    said = []
    prostate.make_datalists(converted, out, 4, say=said.append)
    assert len(said) == 1 and "nothing to do" in said[0]
    prostate.make_datalists(converted, out, 2)
    assert sorted(file.name for file in out.iterdir()) == ["site-1.json", "site-2.json"]
    assert sorted(file.name for file in out.parent.iterdir()) == ["lists", "prostate_t2"]


def test_cases_in_no_site_are_named(converted, tmp_path):
    said = []
    prostate.make_datalists(
        converted, tmp_path / "lists", {"a": [f"prostate_{i:02d}" for i in range(14)]}, say=said.append
    )
    assert [line for line in said if line.startswith("warning") and "prostate_14, prostate_15" in line]


def test_all_that_is_wrong_with_the_sites_is_named_at_once(converted, tmp_path):
    sites = {
        "a": ["prostate_00", "prostate_01", "prostate_02", "prostate_99"],
        "b": ["prostate_03", "prostate_04", "prostate_05", "prostate_00"],
        "c": ["prostate_06", "prostate_07"],
        "../d": ["prostate_08", "prostate_09", "prostate_10"],
    }
    (converted / "labels/prostate_15.nii.gz").unlink()
    with pytest.raises(CourseError) as caught:
        prostate.make_datalists(converted, tmp_path / "lists", sites)
    for message in (
        "5 problems",
        "site a: there is no case prostate_99",
        "case prostate_00 is named twice, before that in a",
        "site c: 2 case(s), at least 3 are needed",
        "'../d'",
        "prostate_15.nii.gz: no mask",
    ):
        assert message in str(caught.value)
    assert not (tmp_path / "lists").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"a": "prostate_00"}', '{"a": [1]}'])
def test_site_file_that_is_none(content, tmp_path):
    (tmp_path / "hospitals.json").write_text(content)
    with pytest.raises(CourseError, match=r"hospitals\.json.*site-1"):
        prostate.read_sites(tmp_path / "hospitals.json")
    with pytest.raises(CourseError, match=r"missing\.json"):
        prostate.read_sites(tmp_path / "missing.json")


def test_too_many_sites_and_senseless_numbers(converted, tmp_path):
    with pytest.raises(CourseError, match="2 problems"):
        prostate.make_datalists(converted, tmp_path / "lists", 6)
    with pytest.raises(CourseError, match="sites is 0"):
        prostate.make_datalists(converted, tmp_path / "lists", 0)
    with pytest.raises(CourseError, match="seed is -1"):
        prostate.make_datalists(converted, tmp_path / "lists", 2, seed=-1)
    assert not (tmp_path / "lists").exists()


def test_datalists_do_not_overwrite_other_things(converted, tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/results.json").write_text('{"dice": 0.9}')
    with pytest.raises(CourseError, match=r"results\.json is no datalist"):
        prostate.make_datalists(converted, tmp_path / "lists", 2)
    assert [file.name for file in (tmp_path / "lists").iterdir()] == ["results.json"]


def test_full_disk_keeps_the_old_datalists(converted, tmp_path, monkeypatch):
    out = tmp_path / "lists"
    prostate.make_datalists(converted, out, 2)
    before = files_of(tmp_path)

    def full(part, file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CourseError, match="No space left"):
        prostate.make_datalists(converted, out, 3)
    assert files_of(tmp_path) == before


def test_read_datalist_gives_absolute_paths(converted, tmp_path, monkeypatch):
    lists = prostate.make_datalists(converted, tmp_path / "lists", 2)
    monkeypatch.chdir(tmp_path)
    parts = prostate.read_datalist(Path("lists/site-1.json"), Path("my data/prostate_t2"))
    assert list(parts) == ["training", "validation", "testing"]
    assert parts["training"][0] == {k: converted / v for k, v in lists["site-1"]["training"][0].items()}


def test_read_datalist_names_all_that_is_wrong(converted, tmp_path):
    file = tmp_path / "site-1.json"
    good = {"image": "images/prostate_00.nii.gz", "label": "labels/prostate_00.nii.gz"}
    gone = {"image": "images/prostate_77.nii.gz", "label": "labels/prostate_00.nii.gz"}
    file.write_text(json.dumps({"training": [good, gone, {"image": "x"}], "testing": [good]}))
    with pytest.raises(CourseError) as caught:
        prostate.read_datalist(file, converted)
    for message in (
        str(file),
        "4 problems",
        "'validation' is missing",
        "prostate_77",
        "training[2]",
        "in training already",
    ):
        assert message in str(caught.value)
    file.write_text('{"training": [')
    with pytest.raises(CourseError, match=r"site-1\.json.*datalists_gen"):
        prostate.read_datalist(file, converted)
    file.write_text("[]")
    with pytest.raises(CourseError, match="not a JSON object"):
        prostate.read_datalist(file, converted)
    with pytest.raises(CourseError, match=r"none\.json"):
        prostate.read_datalist(tmp_path / "none.json", converted)


def test_partition_table(converted, tmp_path):
    table = prostate.partition_table(prostate.make_datalists(converted, tmp_path / "lists", 4))
    assert table.loc["site-3"].to_dict() == {"training": 2, "validation": 1, "testing": 1, "all parts": 4}
    assert table.loc["all sites"].to_dict() == {"training": 8, "validation": 4, "testing": 4, "all parts": 16}


# ---------------------------------------------------------------------------------------------------------------------
# Finding, drawing, downloading.


def test_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    monkeypatch.setenv("COURSE_DATA_SOURCE", "real")
    assert prostate.folders().raw == tmp_path / "Task05_Prostate"
    assert prostate.folders("generated").datalists == tmp_path / "generated/prostate_datalists"
    assert prostate.folders(root=tmp_path / "x").converted == tmp_path / "x/prostate_t2"
    with pytest.raises(CourseError, match="'reel'"):
        prostate.folders("reel")


def test_generated_data_come_from_the_generator(tmp_path, monkeypatch):
    from src import prostate_phantoms

    asked = []
    monkeypatch.setattr(prostate_phantoms, "make_prostate", lambda *a, **k: asked.append((a, k)) or a[0])
    folder = tmp_path / "generated/Task05_Prostate"
    assert prostate.find_or_make("generated", tmp_path) == folder
    assert asked == [((folder,), {"cases": 32, "seed": 0})]


def test_real_data_that_are_there_are_used_as_they_are(raw, monkeypatch):
    monkeypatch.setattr(prostate, "_official", lambda: pytest.fail("must not download"))
    assert prostate.find_or_make("real", raw.parent) == raw
    assert "4 cases with mask" in prostate.describe(raw) and "T2, ADC" in prostate.describe(raw)
    assert "real cases" in prostate.describe(raw)
    (raw / "dataset.json").write_text('{"generator": {"version": 1}}')
    assert "GENERATED" in prostate.describe(raw)
    (raw / "dataset.json").unlink()
    with pytest.raises(CourseError, match=r"lacks dataset\.json"):
        prostate.find_or_make("real", raw.parent)


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves one archive, with byte ranges, and can hang up half-way."""

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        self.wfile.write(server.content[start : server.sends])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    source = raw_folder(tmp_path / "served" / "Task05_Prostate", 3)
    (source / "imagesTr/._prostate_00.nii.gz").write_bytes(b"\0\5\26\7")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(source, "Task05_Prostate")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.content, server.ranges, server.status, server.sends = packed.getvalue(), [], 200, None
    server.source = source
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    address = f"http://127.0.0.1:{server.server_port}/Task05_Prostate.tar"
    (tmp_path / "whole.tar").write_bytes(server.content)
    official = (address, md5_of(tmp_path / "whole.tar"))
    monkeypatch.setattr(prostate, "_official", lambda: official)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


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
        assert options["resume"]
        Drive.ids.append(id)
        if Drive.content is None:
            raise FileURLRetrievalError("too many accesses")
        Path(output).write_bytes(Drive.content)
        return output

    monkeypatch.setattr(gdown, "download", stand_in)
    return Drive


def test_download_verifies_unpacks_and_leaves_only_the_data(mirror, drive, tmp_path):
    root = tmp_path / "my data"
    folder = prostate.find_or_make("real", root)
    assert folder == root / "Task05_Prostate" and files_of(folder) == files_of(mirror.source)
    assert [file.name for file in root.iterdir()] == ["Task05_Prostate"]
    assert mirror.ranges == [None] and drive.ids == []
    prostate.find_or_make("real", root)
    assert mirror.ranges == [None]
    assert prostate.convert(folder, root / "prostate_t2").is_dir()  # what was downloaded can be used, ._ files and all


def test_broken_download_goes_on(mirror, drive, tmp_path):
    root = tmp_path / "my data"
    mirror.sends = 1000
    with pytest.raises(CourseError, match=r"broke after 1,000 of.*\n.*too many accesses"):
        prostate.find_or_make("real", root)
    assert [file.name for file in root.iterdir()] == ["Task05_Prostate.tar.part"]
    mirror.sends = None
    assert files_of(prostate.find_or_make("real", root)) == files_of(mirror.source)
    assert mirror.ranges == [None, "bytes=1000-"]
    assert [file.name for file in root.iterdir()] == ["Task05_Prostate"]


def test_google_drive_when_the_mirror_has_another_file(mirror, drive, tmp_path):
    drive.content, mirror.content = mirror.content, mirror.content[:-1] + b"x"
    assert files_of(prostate.find_or_make("real", tmp_path / "d")) == files_of(mirror.source)
    assert drive.ids == [prostate.GOOGLE_DRIVE_ID]


def test_google_drive_when_the_mirror_is_down_or_breaks_off(mirror, drive, tmp_path):
    drive.content, mirror.status = mirror.content, 503
    assert files_of(prostate.find_or_make("real", tmp_path / "d")) == files_of(mirror.source)
    mirror.status, mirror.sends = 200, 1000
    assert files_of(prostate.find_or_make("real", tmp_path / "e")) == files_of(mirror.source)
    assert [file.name for file in (tmp_path / "e").iterdir()] == ["Task05_Prostate"]


def test_both_sources_fail(mirror, drive, tmp_path):
    root = tmp_path / "my data"
    mirror.content = drive.content = b"a login page"
    with pytest.raises(CourseError) as caught:
        prostate.find_or_make("real", root)
    for message in ("2 problems", "127.0.0.1", "Google Drive has the MD5 checksum", "COURSE_DATA_SOURCE=generated"):
        assert message in str(caught.value)
    assert list(root.iterdir()) == []


def test_archive_brought_by_hand(mirror, drive, tmp_path):
    root = tmp_path / "my data"
    root.mkdir()
    (root / "Task05_Prostate.tar").write_bytes(b"something else")
    with pytest.raises(CourseError, match="damaged or another file"):
        prostate.find_or_make("real", root)
    (root / "Task05_Prostate.tar").write_bytes(mirror.content)
    prostate.find_or_make("real", root)
    assert mirror.ranges == [] and drive.ids == []
    assert sorted(file.name for file in root.iterdir()) == ["Task05_Prostate", "Task05_Prostate.tar"]


def test_archive_that_lacks_the_masks(tmp_path, mirror, drive, monkeypatch):
    root = tmp_path / "my data"
    root.mkdir()
    with tarfile.open(root / "Task05_Prostate.tar", "w") as tar:
        tar.add(mirror.source / "imagesTr", "Task05_Prostate/imagesTr")
    official = ("http://127.0.0.1:9/", md5_of(root / "Task05_Prostate.tar"))
    monkeypatch.setattr(prostate, "_official", lambda: official)
    with pytest.raises(CourseError, match=r"lacks labelsTr, dataset\.json"):
        prostate.find_or_make("real", root)
    assert [file.name for file in root.iterdir()] == ["Task05_Prostate.tar"]


def test_monai_still_names_the_archive():
    address, md5 = prostate._official()
    assert address.startswith("https://") and address.endswith("/Task05_Prostate.tar")
    assert md5 == "35138f08b1efaef89d7424d2bcc928db"
