"""Prostate data: conversion and sharing out, with tiny volumes and every fault that has its own message."""

import gzip
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from signal import SIGKILL

import nibabel as nib
import numpy as np
import pytest

from data_scripts import data_conversion
from data_scripts.data_conversion import convert
from data_scripts.datalists_gen import share_out
from data_scripts.together import read_sites
from src.common.errors import CourseError
from tests.data_support import AFFINE, gland, heard, named, raw_cases, signal, stored
from tests.tests_support import FULL, REFERENCE, at_once, course_error, failing, files_of, flipped_bit, names_in, rows

REPOSITORY = Path(__file__).resolve().parents[2]
BOTH_ZONES = named("PZ", "TZ")


def numbered(*numbers: int) -> list[str]:
    return [f"case_{i}" for i in numbers]


def edit(file: Path, start: int, new: bytes):
    """Write over what an image holds, as no program would."""
    content = gzip.decompress(file.read_bytes())
    file.write_bytes(gzip.compress(content[:start] + new + content[start + len(new) :]))


@pytest.fixture
def raw(home) -> Path:
    return raw_cases(home / "Task05_Prostate", 4, BOTH_ZONES)


@pytest.fixture
def out(home) -> Path:
    return home / "prostate_t2"


def refuses(raw: Path, out: Path, *messages: str) -> str:
    """Conversion names everything that is wrong and leaves nothing behind; returns what it says."""
    with pytest.raises(CourseError) as caught:
        heard(raw, out)
    assert [message for message in messages if message not in str(caught.value)] == []
    return str(caught.value)


def test_t2_keeps_its_voxels_and_type_and_the_mask_is_the_whole_gland(raw, out):
    file = raw / "imagesTr/case_0.nii.gz"
    image = nib.load(file)
    image.header["descrip"] = b"SURNAME^FIRSTNAME"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"born 1950"))
    nib.save(nib.Nifti1Image(signal(0, 2), AFFINE, image.header), file)
    assert "Converted 4 of 4 cases: channel 0 (T2), labels 1, 2." in heard(raw, out)
    for name in [f"{case}.nii.gz" for case in numbered(0, 1, 2, 3)]:
        given, image, mask = (nib.load(folder / name) for folder in (raw / "imagesTr", out / "images", out / "labels"))
        assert image.get_data_dtype() == np.float32 and mask.get_data_dtype() == np.uint8
        assert np.asanyarray(image.dataobj).tobytes() == np.asanyarray(given.dataobj)[..., 0].tobytes()
        np.testing.assert_allclose(image.affine, given.affine, atol=1e-5)
        assert mask.affine.tobytes() == image.affine.tobytes(), "both on one grid, to the last bit"
        np.testing.assert_array_equal(np.asanyarray(mask.dataobj), gland() > 0)
    content = gzip.decompress((out / "images/case_0.nii.gz").read_bytes())
    assert b"SURNAME" not in content and b"1950" not in content, "nothing of another header stays"


@pytest.mark.parametrize("kind", ["int16", "uint16", "int32", "int64", "uint8", "float64", ">i2", "int16 with a slope"])
def test_every_type_of_voxels_stays_neither_rounded_nor_widened(raw, out, kind):
    dtype = np.dtype(kind.split()[0])
    image = nib.Nifti1Image((signal(1, 2) / 300).astype(dtype), AFFINE, dtype=dtype)
    if "slope" in kind:
        image.header.set_slope_inter(0.37, -12.0)
    nib.save(image, raw / "imagesTr/case_1.nii.gz")
    convert(raw, out, say=len)
    given, converted = (nib.load(folder / "case_1.nii.gz") for folder in (raw / "imagesTr", out / "images"))
    assert given.dataobj.slope == pytest.approx(0.37 if "slope" in kind else 1)  # otherwise this tests nothing
    assert converted.get_data_dtype() == dtype.newbyteorder("=")
    np.testing.assert_array_equal(converted.dataobj.get_unscaled(), given.dataobj.get_unscaled()[..., 0])
    np.testing.assert_array_equal(converted.get_fdata(), given.get_fdata()[..., 0])


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
    def values(name: str) -> np.ndarray:
        return nib.load(out / f"{name}.nii.gz").get_fdata()

    convert(raw, out, say=len)
    assert "channel 1 (ADC)" in heard(raw, out, channel=1)
    np.testing.assert_array_equal(values("images/case_0"), signal(0, 2)[..., 1])
    nib.save(stored(signal(77, 2)), raw / "imagesTr/case_2.nii.gz")
    convert(raw, out, say=len)
    np.testing.assert_array_equal(values("images/case_2"), signal(77, 2)[..., 0])
    for lose in (lambda file: file.write_bytes(b""), Path.unlink):
        lose(out / "labels/case_3.nii.gz")
        convert(raw, out, say=len)
        assert values("labels/case_3").any()
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder / "case_0.nii.gz").unlink()
    convert(raw, out, say=len)
    assert names_in(out / "images") == names_in(out / "labels") == [f"case_{i}.nii.gz" for i in (1, 2, 3)]
    monkeypatch.setattr(data_conversion, "VERSION", data_conversion.VERSION + 1)
    assert "Converted 3 of 3" in heard(raw, out), "that of an earlier version is made again"
    assert names_in(out.parent) == ["Task05_Prostate", "prostate_t2"]


def test_all_problems_are_named_at_once_and_nothing_is_written(tmp_path):
    """Each kind of value, name and geometry is a row of ``test_what_people_bring.py``."""
    raw = raw_cases(tmp_path / "in", 12, BOTH_ZONES)
    file = lambda kind, number: raw / kind / f"case_{number}.nii.gz"  # noqa: E731
    half = file("imagesTr", 6).read_bytes()
    for damaged, content in {("imagesTr", 6): half[: len(half) // 2], ("labelsTr", 9): b"not a NIfTI file"}.items():
        file(*damaged).write_bytes(content)
    for kind in ("imagesTr", "labelsTr"):
        file(kind, 11).write_bytes(b"")
    nib.save(stored(signal(0, 3)), file("imagesTr", 2))
    nib.save(stored(gland() * 4), file("labelsTr", 3))
    file("labelsTr", 0).unlink()
    said = refuses(raw, tmp_path / "out" / "t2", "7 problems").splitlines()
    what = dict.fromkeys([("imagesTr", 6), ("labelsTr", 9), ("imagesTr", 11), ("labelsTr", 11)], "damaged")
    what |= {("imagesTr", 2): "3 channel(s), not 2 as dataset.json", ("labelsTr", 3): "labels outside 0, 1, 2: 4, 8"}
    for place, right in {**what, ("imagesTr", 0): "no mask of that name"}.items():
        assert [line for line in said if f"{file(*place)}: " in line and right in line], (place, said)


NAN, HUGE = np.float32(np.nan).tobytes(), np.array([32767, 32767, 32767, 2], "<i2").tobytes()


@rows(
    ("NaN in an image's sform", "imagesTr", partial(edit, start=280, new=NAN), ": its affine is not finite"),
    ("NaN in a mask's sform", "labelsTr", partial(edit, start=280, new=NAN), ": its affine puts it up to nan mm away"),
    ("280 TB that must not be asked for", "imagesTr", partial(edit, start=42, new=HUGE), "that its header announces"),
    ("a flipped bit", "imagesTr", flipped_bit, "CRC"),
)
def test_what_no_program_writes(kind, fault, said, raw, out):
    fault(raw / kind / "case_1.nii.gz")
    refuses(raw, out, f"{kind}/case_1.nii.gz: ", said)


@pytest.mark.parametrize("seed", range(20))
def test_damaged_headers_and_geometries_never_end_in_a_traceback(seed, raw, out, tmp_path):
    other, rng = raw_cases(tmp_path / "headers", 2), np.random.default_rng(seed)
    file = other / ("imagesTr", "labelsTr")[seed % 2] / "case_1.nii.gz"
    edit(file, 40, rng.bytes(16))  # the shape
    edit(file, 70, rng.bytes(4))  # the data type
    if seed % 3 == 0:
        file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[: rng.integers(0, 348)]))
    refuses(other, out, "case_1.nii.gz")
    file, rng = raw / "imagesTr/case_1.nii.gz", np.random.default_rng(seed)
    edit(file, 76, rng.bytes(16))  # pixdim
    edit(file, 252, bytes([seed // 2 % 2, 0, seed % 2, 0]))  # the codes of qform and sform
    edit(file, 256, rng.bytes(72 if seed % 3 else 24))  # both forms, or the qform alone
    if seed % 2 and not seed % 3 and not seed // 2 % 2:
        assert "Converted 4 of 4" in heard(raw, out)  # the sform is intact, and nothing else is believed
    else:
        refuses(raw, out, "case_1.nii.gz")


def test_odd_channel_count_without_dataset_json(raw, out):
    (raw / "dataset.json").unlink()
    nib.save(stored(signal(0, 3)), raw / "imagesTr/case_3.nii.gz")
    said = refuses(raw, out, "case_3.nii.gz: has 3 channel(s), not 2 as dataset.json or the first case says")
    assert len(said.splitlines()) == 1


def test_foreign_output_is_left_alone(raw, out):
    out.mkdir()
    (out / "thesis.doc").write_text("years of work")
    (out.parent / "file").write_text("")
    convert(raw_cases(raw.with_name("other hospital"), 3), out.with_name("theirs"), say=len)
    before = files_of(out.parent)
    places = {out: "did not write", "theirs": "other hospital", raw / "t2": "inside the other", "file": "did not write"}
    for place, said in places.items():
        course_error(said, convert, raw, out.parent / place)
    assert files_of(out.parent) == before


def test_a_full_disk_leaves_nothing_or_an_earlier_conversion_and_the_next_call_succeeds(raw, out, monkeypatch):
    with failing(monkeypatch, gzip.GzipFile, "write", FULL, after=4):
        refuses(raw, out, "No space left", "Free some space", str(out))
    assert names_in(out.parent) == ["Task05_Prostate"]
    convert(raw, out, say=len)
    assert len(list(out.glob("*/*.nii.gz"))) == 8
    nib.save(stored(signal(5, 2)), raw / "imagesTr/case_0.nii.gz")
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
    return examine(case) if len(calls) < 3 else os.kill(os.getpid(), signal.SIGKILL)
data_conversion.examine = kill_in_case_3
data_conversion.convert(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_killed_half_way_shows_nothing_and_the_next_call_makes_all(raw, out):
    done = subprocess.run([sys.executable, "-c", KILLED, raw, out], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == -SIGKILL, done.stderr
    assert not out.exists() and "Converted 4 of 4" in heard(raw, out)
    assert names_in(out) == ["conversion.json", "images", "labels"]


def test_two_conversions_at_once(raw, out):
    said = []
    at_once(2, lambda: convert(raw, out, say=said.append))
    assert [sum(what in line for line in said) for what in ("Converted 4 of 4", "nothing to do")] == [1, 1]
    assert len(list(out.glob("*/*.nii.gz"))) == 8


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="no real labels here")
def test_real_labels(tmp_path, out):
    files = sorted(REFERENCE.glob("msd_prostate_labels/*.nii.gz"))[:2]
    raw, labels = tmp_path / "real", {file.name: nib.load(file) for file in files}
    for name, label in labels.items():
        image = np.arange(np.prod(label.shape) * 2, dtype=np.float32).reshape(*label.shape, 2)
        for kind, volume in (("imagesTr", nib.Nifti1Image(image, label.affine)), ("labelsTr", label)):
            (raw / kind).mkdir(parents=True, exist_ok=True)
            nib.save(volume, raw / kind / name)
    convert(raw, out, say=len)
    for name, label in labels.items():
        mask = nib.load(out / "labels" / name)
        np.testing.assert_array_equal(np.asanyarray(mask.dataobj), np.asanyarray(label.dataobj) > 0)
        np.testing.assert_allclose(mask.affine, label.affine, atol=1e-4)


def named_cases(folder: Path, cases: int) -> Path:
    """Names alone: sharing out does not look into the images, beyond that no two are the same."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
        for case in numbered(*range(cases)):
            (folder / kind / f"{case}.nii.gz").write_text(f"{kind} {case}")
    return folder


@pytest.fixture
def converted(home) -> Path:
    return named_cases(home / "generated" / "prostate_t2", 9)


def share(*arguments, **options) -> dict[str, dict[str, list[str]]]:
    """Site → part → case names, as the sites find them."""
    read = read_sites(share_out(*arguments, **{"say": len, **options}))
    case = lambda item: Path(item["image"]).name.removesuffix(".nii.gz")  # noqa: E731
    return {site: {part: list(map(case, items)) for part, items in parts.items()} for site, parts in read.items()}


def cases_of(parts: dict[str, list[str]]) -> list[str]:
    return sorted(case for cases in parts.values() for case in cases)


@pytest.mark.parametrize(("cases", "sites"), [(16, 4), (12, 4), (11, 3), (5, 1), (3, 1)])
def test_every_case_is_in_one_part_of_one_site_and_there_are_fewer_sites_for_few_cases(tmp_path, home, cases, sites):
    shared = share(folder=named_cases(tmp_path / "cases", cases))
    assert list(shared) == [f"site-{i + 1}" for i in range(sites)]
    assert sorted(case for parts in shared.values() for case in cases_of(parts)) == sorted(numbered(*range(cases)))
    for site, parts in shared.items():
        folder, names = home / "sites/prostate" / site, [f"{case}.nii.gz" for case in cases_of(parts)]
        assert names_in(folder / "labels") == names_in(folder / "images") == names
        assert cases != 16 or [len(own) for own in parts.values()] == [2, 1, 1]
    about = json.loads((home / "sites/prostate/about.json").read_text())
    assert (about["task"], about["seed"], about["generated"]) == ("prostate", 0, False)


def test_hospitals_stay_together_and_do_not_depend_on_each_other(converted):
    north, south = numbered(*range(5)), numbered(*range(5, 9))
    shared = share({"north": north, "south": [f"{case}.nii.gz" for case in south]})
    assert [cases_of(parts) for parts in shared.values()] == [north, south]
    said = []
    assert share({"south": south[::-1]}, data="alone", say=said.append)["south"] == shared["south"]
    assert [line for line in said if line.startswith(f"warning: in no site, so left out: {', '.join(north)}")]
    assert share(2, seed=3, data="a") == share(2, seed=3, data="b") != share(2, seed=4, data="c"), "the seed decides"


@rows(
    ("all that is wrong at once", {"sites": {"a": numbered(0, 1, 2, 99), "b": numbered(3, 4, 5, 0), "c": numbered(6, 7)}},
     r"(?s)4 problems.*case_8.nii.gz: no mask.*site a: there is no case case_99\n.*"
     r"site b: case case_0 is named twice, before that in a\n.*site c: 2 case\(s\), at least 3 are needed"),
    ("too many sites", {"sites": 3}, r"(?s)2 problems.*no mask.*site site-3: 2 case\(s\), at least 3"),
    ("more sites than cases", {"sites": 9}, "8 items cannot be shared out over 9 sites"),
    ("no folder", {"folder": Path("/nowhere")}, "/nowhere has neither imagesTr/ .*data_conversion.sh"),
    ("a senseless name", {"sites": 2, "data": "a b"}, "'data' is 'a b'"),
)  # fmt: skip
def test_what_cannot_be_shared_out_is_named_and_nothing_is_written(arguments, said, converted, home):
    if "data" not in arguments:
        (converted / "labels/case_8.nii.gz").unlink()
    course_error(said, share_out, **arguments, say=len)
    assert not (home / "sites").exists()
