"""Prostate data: conversion, sharing out and download, with tiny volumes and every fault that has its own message."""

import gzip
import hashlib
import inspect
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import unicodedata
from pathlib import Path
from typing import ClassVar

import nibabel as nib
import numpy as np
import pytest

from src.common.errors import CourseError
from src.common.files import GENERATED
from src.common.sites import read_sites
from src.prostate import data
from src.prostate.data import convert, describe, find_or_make, prepare, read_hospitals, share_out
from tests.tests_support import FULL, Server, failing, files_of, names_in

REPOSITORY = Path(__file__).resolve().parents[2]
SHAPE = (6, 5, 4)


def affine_of(turns=(0.05, 0.1, 0.3), spacing=(0.6, 0.6, 3.6), axes=(0, 1, 2), flips=(1, 1, 1)) -> np.ndarray:
    """Oblique, anisotropic and not at the origin: as a scanner writes it."""
    rotation = nib.eulerangles.euler2mat(*turns)[:, axes]
    return nib.affines.from_matvec(rotation @ np.diag(np.array(spacing) * flips), [-70, -55, 12.5])


AFFINE = affine_of()


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


def test_nifti_2_is_read(raw, out):
    nib.save(nib.Nifti2Image(signal_of(9), AFFINE), raw / "imagesTr" / "prostate_00.nii.gz")
    convert(raw, out)
    np.testing.assert_array_equal(nib.load(out / "images/prostate_00.nii.gz").get_fdata(), signal_of(9)[..., 0])


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
# Geometry: one that all readers believe.


def with_forms(sform=None, qform=None, unit="mm", pixdim=(1, 1, 1)) -> nib.Nifti1Image:
    """An image (x, y, z) with these forms; None leaves a code at 0."""
    image = nib.Nifti1Image(signal_of(0, None), np.eye(4))
    image.header.set_xyzt_units(unit)
    image.set_qform(np.diag([*pixdim, 1]) if qform is None else qform, code=0 if qform is None else 1)
    image.set_sform(sform, code=0 if sform is None else 1)
    return image


def moved(affine: np.ndarray, *mm: float) -> np.ndarray:
    return nib.affines.from_matvec(affine[:3, :3], affine[:3, 3] + mm)


ROUNDED = affine_of(spacing=(0.781, 0.781, 3.0))
LPS = np.diag([-0.8, -0.8, 3.0, 1.0])
GEOMETRIES = {
    "as a scanner writes it": (with_forms(AFFINE, AFFINE), AFFINE, None),
    "sform alone": (with_forms(AFFINE, pixdim=[0.6, 0.6, 3.6]), AFFINE, None),
    "qform alone": (with_forms(None, AFFINE), AFFINE, None),
    "strongly oblique": (
        with_forms(affine_of((0.4, 0.3, 0.6)), affine_of((0.4, 0.3, 0.6))),
        affine_of((0.4, 0.3, 0.6)),
        None,
    ),
    "sagittal": (with_forms(None, affine_of(axes=(1, 2, 0))), affine_of(axes=(1, 2, 0)), None),
    "coronal": (with_forms(None, affine_of(axes=(0, 2, 1))), affine_of(axes=(0, 2, 1)), None),
    "mirrored": (with_forms(None, affine_of(flips=(-1, 1, 1))), affine_of(flips=(-1, 1, 1)), None),
    "upside down": (with_forms(None, affine_of(flips=(-1, 1, -1))), affine_of(flips=(-1, 1, -1)), None),
    "rounded to 4 digits": (with_forms(AFFINE.round(4), AFFINE), AFFINE, None),
    "a sform rounded by a header's editor": (
        with_forms(ROUNDED, affine_of(spacing=(0.78125, 0.78125, 3.0))),
        ROUNDED,
        None,
    ),
    "no unit": (with_forms(AFFINE, AFFINE, "unknown"), AFFINE, None),
    "a repaired sform, pixdim of 1": (
        with_forms(LPS),
        LPS,
        "its sform was used; its qform or pixdim puts voxels up to",
    ),
    "a sform that moves": (with_forms(moved(AFFINE, 0, 2, 0), AFFINE), moved(AFFINE, 0, 2, 0), "up to 2 mm away"),
    "neither form": (
        with_forms(pixdim=[0.8, 0.8, 3]),
        None,
        "neither sform nor qform: its pixdim was used, and for the axes a guess, LAS",
    ),
    "metres": (
        with_forms(*[np.diag([1e-3, 1e-3, 1e-3, 1]) @ AFFINE] * 2, "meter"),
        AFFINE,
        "its header's unit, 1000 mm, was converted to mm",
    ),
    "micrometres": (
        with_forms(*[np.diag([1e3, 1e3, 1e3, 1]) @ AFFINE] * 2, "micron"),
        AFFINE,
        "its header's unit, 0.001 mm, was converted to mm",
    ),
}


def one_case(own: Path, image: nib.Nifti1Image, mask_affine: np.ndarray | None = None):
    """A case ``p`` whose mask has its image's header, or a sform of its own."""
    mask = nib.Nifti1Image(gland(), image.affine if mask_affine is None else np.eye(4), image.header)
    mask.header.set_data_dtype(np.uint8)
    if mask_affine is not None:
        mask.set_sform(mask_affine, code=1)
    for kind, volume in (("images", image), ("labels", mask)):
        (own / kind).mkdir(parents=True)
        nib.save(volume, own / kind / "p.nii.gz")


@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_reader_believes_the_same(name, tmp_path, out):
    from monai.transforms import LoadImage

    image, expected, remark = GEOMETRIES[name]
    one_case(tmp_path / "own", image)
    said = heard(tmp_path / "own", out)
    assert remark in said if remark else "Look at" not in said, said
    for kind in ("images", "labels"):
        file = out / kind / "p.nii.gz"
        converted = nib.load(file)
        if expected is not None:
            np.testing.assert_allclose(converted.affine, expected, atol=2e-4)
        size = float(np.abs(converted.affine[:3, :3]).max())
        close = {"rtol": 0, "atol": 1e-6 * size}
        np.testing.assert_allclose(converted.header.get_qform(), converted.affine, **close)
        np.testing.assert_allclose(converted.header.get_sform(), converted.affine, **close)
        np.testing.assert_allclose(
            np.linalg.norm(converted.affine[:3, :3], axis=0), converted.header.get_zooms(), rtol=1e-6
        )
        np.testing.assert_allclose(
            LoadImage(reader="NibabelReader", image_only=True)(file).affine, converted.affine, **close
        )
        assert converted.header.get_xyzt_units()[0] == "mm"
        assert converted.header["sform_code"] == converted.header["qform_code"] == 1


def test_itk_believes_it_too(tmp_path, home):
    itk = pytest.importorskip("SimpleITK")
    for number, (image, _, _) in enumerate(GEOMETRIES.values()):
        one_case(tmp_path / str(number), image)
        file = convert(tmp_path / str(number), home / str(number), say=lambda line: None) / "images" / "p.nii.gz"
        read = itk.ReadImage(str(file))
        turned = np.reshape(read.GetDirection(), (3, 3)) @ np.diag(read.GetSpacing())
        by_itk = np.diag([-1, -1, 1, 1]) @ nib.affines.from_matvec(turned, read.GetOrigin())  # from ITK's LPS to RAS
        np.testing.assert_allclose(by_itk, nib.load(file).affine, atol=2e-5)


SHEARED = AFFINE @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (with_forms(LPS, np.eye(4)), "its sform and qform contradict each other, with axes LPS and RAS"),
        (with_forms(affine_of(axes=(1, 2, 0)), AFFINE), "its sform and qform contradict each other"),
        (with_forms(np.diag([0, 0.8, 3, 1.0])), "its affine is singular: [[0.0"),
        (with_forms(np.diag([0, 0, 0, 1.0])), "its affine is singular"),
        (with_forms(AFFINE[:, [0, 0, 2, 3]]), "its affine is singular"),
        (with_forms(SHEARED), "its axes are not at right angles (a sheared affine)"),
        (with_forms(LPS, LPS, "meter"), "its voxels are [800.0"),
        (with_forms(LPS, LPS, "micron"), "a scan's are 0.1 to 10 mm"),
        (with_forms(np.diag([0.05, 0.8, 3, 1.0])), "its voxels are [0.05"),
        (with_forms(np.diag([0.8, 0.8, 12, 1.0])), "a scan's are 0.1 to 10 mm"),
    ],
)
def test_a_geometry_that_cannot_be_believed_is_refused_by_name(image, said, tmp_path, out):
    one_case(tmp_path / "own", image, np.eye(4))
    assert f"{tmp_path}/own/images/p.nii.gz: " in refuses(tmp_path / "own", out, said)


@pytest.mark.parametrize("affine", [np.abs(LPS), moved(LPS, 5, 0, 0), LPS[:, [1, 0, 2, 3]]])
def test_a_mask_on_another_grid_is_refused(affine, tmp_path, out):
    one_case(tmp_path / "own", with_forms(LPS, LPS), affine)
    refuses(tmp_path / "own", out, "labels/p.nii.gz: its affine puts it up to", "mm away from its image")


@pytest.mark.parametrize(("kind", "said"), [("imagesTr", "affine is not finite"), ("labelsTr", "up to nan mm away")])
def test_an_affine_that_is_no_number_is_refused(raw, out, kind, said):
    file = raw / kind / "prostate_01.nii.gz"
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[280:284] = np.float32(np.nan).tobytes()  # the first number of the sform; nibabel would not write it
    file.write_bytes(gzip.compress(bytes(content)))
    refuses(raw, out, f"{file}: its affine", said)


def test_a_mask_whose_affine_lost_digits_takes_the_image_s(raw, out):
    save(gland(), raw / "labelsTr" / "prostate_00.nii.gz", AFFINE.round(4))
    convert(raw, out)
    mask, image = (nib.load(out / kind / "prostate_00.nii.gz") for kind in ("labels", "images"))
    assert mask.affine.tobytes() == image.affine.tobytes()


# ---------------------------------------------------------------------------------------------------------------------
# Values and names.


@pytest.mark.parametrize(
    "mask",
    [
        gland().astype(np.float32) * np.float32(0.99999994),
        gland().astype(np.float64) + 1e-6,
        gland()[..., np.newaxis],
        gland().astype(np.int64),
        gland() > 0,
    ],
)
def test_masks_that_software_writes(raw, out, mask):
    mask = mask.astype(np.uint8) if mask.dtype == bool else mask
    nib.save(nib.Nifti1Image(mask, AFFINE, dtype=mask.dtype), raw / "labelsTr/prostate_00.nii.gz")
    convert(raw, out)
    np.testing.assert_array_equal(nib.load(out / "labels/prostate_00.nii.gz").get_fdata(), gland() > 0)


def test_a_mask_with_a_slope_of_1_in_255(raw, out):
    image = nib.Nifti1Image(((gland() > 0) * 255).astype(np.uint8), AFFINE)
    image.header.set_slope_inter(1 / 255, 0)
    nib.save(image, raw / "labelsTr/prostate_00.nii.gz")
    assert nib.load(raw / "labelsTr/prostate_00.nii.gz").get_fdata().max() != 1  # otherwise this tests nothing
    convert(raw, out)
    np.testing.assert_array_equal(nib.load(out / "labels/prostate_00.nii.gz").get_fdata(), gland() > 0)


def test_other_labels_are_refused_in_full(raw, out):
    save(gland() * np.float32(0.5), raw / "labelsTr" / "prostate_00.nii.gz")
    save(np.where(gland() > 1, np.nan, gland()).astype(np.float32), raw / "labelsTr" / "prostate_01.nii.gz")
    save(np.where(gland() > 1, 1.0009765625, gland()), raw / "labelsTr" / "prostate_02.nii.gz")
    said = refuses(
        raw, out, "3 problems", "prostate_00.nii.gz: labels outside 0, 1, 2: 0.5", "02.nii.gz: labels outside"
    )
    assert "nan" in said and "1.0009765625" in said


def test_the_channel_is_chosen_by_its_name(raw, out):
    describing(raw, modality={"0": "ADC", "1": "T2w"})
    assert "channel 1 (T2w)" in heard(raw, out)
    np.testing.assert_array_equal(nib.load(out / "images/prostate_00.nii.gz").get_fdata(), signal_of(0)[..., 1])
    describing(raw, modality=None, channel_names={"0": "ADC", "1": "T2"})  # nnU-Net's
    assert "channel 1 (T2)" in heard(raw, out)


@pytest.mark.parametrize(
    ("modality", "said"),
    [
        ({"0": "ADC", "1": "DWI"}, "which of the channels {0: 'ADC', 1: 'DWI'} is T2? Say it with --channel"),
        ({"0": "T2 axial", "1": "T2 sagittal"}, "Say it with --channel"),
        ({"0": "T2"}, "has 2 channel(s), not 1 as dataset.json"),
        ({"0": "T2", "1": "ADC", "2": "DWI"}, "has 2 channel(s), not 3 as dataset.json"),
    ],
)
def test_channels_that_leave_a_doubt_are_asked_for(raw, out, modality, said):
    describing(raw, modality=modality)
    refuses(raw, out, said)


def test_a_modality_without_numbers_names_nothing(raw, out):
    describing(raw, modality="MR")
    assert "channel 0 (not named)" in heard(raw, out)


def test_a_single_channel_needs_no_name(tmp_path, out):
    own = tmp_path / "own"
    for index in range(2):
        save(signal_of(index, None), own / f"images/{index}.nii.gz")
        save(gland(), own / f"labels/{index}.nii.gz")
    describing(own, modality={"0": "MRI"})
    assert "channel 0 (MRI)" in heard(own, out)


def test_labels_that_are_no_part_of_the_prostate_are_asked_for(raw, out):
    describing(raw, labels={"0": "background", "1": "bladder", "2": "prostate"})
    refuses(
        raw,
        out,
        "which of the labels {0: 'background', 1: 'bladder', 2: 'prostate'} are the gland? Say it with --labels",
    )
    assert "labels 2." in heard(raw, out, labels=[2])
    np.testing.assert_array_equal(nib.load(out / "labels/prostate_00.nii.gz").get_fdata(), gland() == 2)
    assert "labels 1, 2." in heard(raw, out, labels=[1, 2])


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background", "1": "Peripheral Zone", "2": "Transition zone"},
        {"background": 0, "PZ": 1, "TZ": 2},
        {"0": "background", "1": "prostate", "2": "prostate_lesion"},
        {"0": "background", "1": "whole gland", "2": "prostatic_urethra"},
        None,
    ],
)
def test_parts_of_the_prostate_are_merged(raw, out, labels):
    describing(raw, labels=labels)
    convert(raw, out)
    np.testing.assert_array_equal(nib.load(out / "labels/prostate_00.nii.gz").get_fdata(), gland() > 0)


def test_a_label_that_dataset_json_does_not_name_is_refused(raw, out):
    describing(raw, labels={"0": "background", "1": "prostate"})
    refuses(raw, out, "4 problems", "labels outside 0, 1: 2")


def test_dataset_json_that_is_none(raw, out):
    (raw / "dataset.json").write_text("{")
    refuses(raw, out, "dataset.json cannot be read as JSON")


def test_macos_companions_are_skipped(raw, out):
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder / "._prostate_00.nii.gz").write_bytes(b"\0\5\26\7")
    (raw / "imagesTr" / "._alone.nii.gz").write_bytes(b"\0\5\26\7")
    (raw / "imagesTr" / ".DS_Store").write_bytes(b"")
    assert "Left out" not in heard(raw, out)
    assert names_in(out / "images") == [f"prostate_0{i}.nii.gz" for i in range(4)]


def test_names_in_capital_letters_are_names(raw, out):
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder / "prostate_03.nii.gz").rename(raw / folder / "prostate_03.NII.GZ")
    assert "Converted 4 of 4" in heard(raw, out)


def test_what_is_left_out_is_counted_and_named(raw, out):
    (raw / "imagesTr/p.nrrd").write_bytes(b"")
    (raw / "labelsTr/p.mha").write_bytes(b"")
    (raw / "imagesTr/more").mkdir()
    save(signal_of(), raw / "imagesTr/more/prostate_09.nii.gz")
    for _ in "ab":
        said = heard(raw, out)
        assert "Left out, 3 files" in said
        assert "imagesTr/more/prostate_09.nii.gz, imagesTr/p.nrrd, labelsTr/p.mha" in said


def test_the_same_name_of_a_mac_and_of_another_system(raw, out):
    name = "Müller.nii.gz"
    save(signal_of(8), raw / "imagesTr" / unicodedata.normalize("NFC", name))
    save(gland(), raw / "labelsTr" / unicodedata.normalize("NFD", name))
    assert "Converted 5 of 5" in heard(raw, out)
    assert unicodedata.normalize("NFC", name) in names_in(out / "labels")


def test_a_name_that_is_no_text_is_refused(raw, out):
    for folder in ("imagesTr", "labelsTr"):
        file = raw / folder / os.fsdecode(b"fall_\xe4.nii.gz")
        try:
            (raw / folder / "prostate_03.nii.gz").rename(file)
        except OSError:
            pytest.skip("this file system takes no such names")
    said = refuses(raw, out, "2 problems", r"fall_\udce4.nii.gz': its name is not UTF-8; rename it")
    said.encode("utf-8")


def test_nnunet_s_names_are_one_hint(raw, out):
    for file in sorted((raw / "imagesTr").iterdir()):
        file.rename(file.with_name(file.name.replace(".nii.gz", "_0000.nii.gz")))
    said = refuses(raw, out, "imagesTr: its names end in _0000, as nnU-Net's do; rename them")
    assert len(said.splitlines()) == 1


def test_a_folder_that_cannot_be_read(raw, out, monkeypatch):
    with failing(monkeypatch, os, "listdir", PermissionError(13, "Permission denied")):
        refuses(raw, out, "Cannot read", "imagesTr: Permission denied")


def flat(value: float) -> np.ndarray:
    return np.full(SHAPE, value, np.float32)


def full_mask() -> np.ndarray:
    return np.ones(SHAPE, np.uint8)


def at_the_rim() -> np.ndarray:
    labels = gland()
    labels[2, 2, 0] = 1
    return labels


@pytest.mark.parametrize(
    ("image", "mask", "remark"),
    [
        (flat(7), gland(), "all voxels of the image are equal"),
        ((gland() > 0).astype(np.float32), gland(), "the image is equal to its mask"),
        (signal_of(0, None), full_mask(), "the mask fills the whole volume"),
        (signal_of(0, None), at_the_rim(), "the mask touches the border of the volume"),
        (np.tile(np.float32([3, 3, 3, 3]), (6, 5, 1)), gland(), "the image's mean in the mask is exactly that outside"),
    ],
)
def test_contents_that_look_wrong_are_said_once(tmp_path, out, image, mask, remark):
    own = tmp_path / "own"
    save(image, own / "images/odd.nii.gz")
    save(mask, own / "labels/odd.nii.gz")
    save(signal_of(5, None), own / "images/good.nii.gz")
    save(gland(), own / "labels/good.nii.gz")
    said = heard(own, out)
    assert "Look at these:\n  - odd: " in said and remark in said
    assert "good" not in said and said.count("odd:") == 1


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
    save(gland(), labels / "prostate_05.nii.gz", moved(AFFINE, 5, 0, 0))
    whole = (images / "prostate_06.nii.gz").read_bytes()
    (images / "prostate_06.nii.gz").write_bytes(whole[: len(whole) // 2])
    save(gland() * 0, labels / "prostate_07.nii.gz")
    broken = signal_of()
    broken[0, 0, 0] = np.nan
    save(broken, images / "prostate_08.nii.gz")
    (labels / "prostate_09.nii.gz").write_bytes(b"not a NIfTI file")
    save(signal_of(channels=None)[0], images / "prostate_10.nii.gz")
    (images / "prostate_11.nii.gz").write_bytes(b"")  # both files of one case
    (labels / "prostate_11.nii.gz").write_bytes(b"")
    said = refuses(raw, tmp_path / "out" / "t2", "13 problems")
    for file, what in (
        (images / "prostate_00.nii.gz", "no mask of that name"),
        (labels / "prostate_01.nii.gz", "no image of that name"),
        (images / "prostate_02.nii.gz", "3 channel(s), not 2 as dataset.json"),
        (labels / "prostate_03.nii.gz", "labels outside 0, 1, 2: 4, 8"),
        (labels / "prostate_04.nii.gz", "shape (6, 5, 3), its image (6, 5, 4)"),
        (labels / "prostate_05.nii.gz", "5 mm away"),
        (images / "prostate_06.nii.gz", "damaged"),
        (labels / "prostate_07.nii.gz", "empty"),
        (images / "prostate_08.nii.gz", "NaN"),
        (labels / "prostate_09.nii.gz", "damaged"),
        (images / "prostate_10.nii.gz", "shape (5, 4)"),
        (images / "prostate_11.nii.gz", "damaged"),
        (labels / "prostate_11.nii.gz", "damaged"),
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


def test_voxels_that_are_no_numbers(raw, out):
    colours = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, AFFINE), raw / "imagesTr/prostate_00.nii.gz")
    refuses(raw, out, "prostate_00.nii.gz: its voxels are", "not single numbers")


def test_channel_that_is_not_there(raw, out):
    refuses(raw, out, "there is no channel 2", "4 problems", channel=2)
    refuses(raw, out, "count from 0", channel=-1)


def test_odd_channel_count_without_dataset_json(raw, out):
    (raw / "dataset.json").unlink()
    save(signal_of(channels=3), raw / "imagesTr" / "prostate_03.nii.gz")
    said = refuses(raw, out, "prostate_03.nii.gz: has 3 channel(s), not 2 as dataset.json or the first case says")
    assert len(said.splitlines()) == 1


def test_folder_that_is_no_data_set(tmp_path, out):
    out.parent.mkdir()
    refuses(tmp_path / "nowhere", out, "nowhere", "prostate_download.sh")
    (tmp_path / "empty/images").mkdir(parents=True)
    (tmp_path / "empty/labels").mkdir()
    refuses(tmp_path / "empty", out, "no NIfTI file")


def test_case_that_is_there_twice(raw, out):
    save(signal_of(), raw / "imagesTr" / "prostate_00.nii")
    refuses(raw, out, "prostate_00.nii: the case is there twice, also as prostate_00.nii.gz")


def test_a_link_to_nowhere(raw, out):
    (raw / "imagesTr" / "prostate_00.nii.gz").unlink()
    (raw / "imagesTr" / "prostate_00.nii.gz").symlink_to("/nowhere/at/all.nii.gz")
    refuses(raw, out, "prostate_00.nii.gz: is a folder or a link to nowhere")


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


@pytest.mark.parametrize("name", ["../d", "server", "Hospital A", "a,b"])
def test_names_that_cannot_be_a_site_s_are_refused(converted, home, name):
    with pytest.raises(CourseError, match="cannot be the name of a site: use letters, digits"):
        share_out({name: numbered(8, 9, 10)}, say=lambda line: None)
    assert not (home / "sites" / "prostate").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"a": "prostate_00"}', '{"a": [1]}', None])
def test_hospitals_that_are_none(content, tmp_path):
    if content is not None:
        (tmp_path / "hospitals.json").write_text(content)
    with pytest.raises(CourseError, match=r"hospitals\.json .*site-1"):
        read_hospitals(tmp_path / "hospitals.json")


def test_hospitals_are_read_as_they_are(tmp_path):
    (tmp_path / "hospitals.json").write_text('\ufeff{"Köln": ["Müller"], "b": []}', encoding="utf-8")
    assert read_hospitals(tmp_path / "hospitals.json") == {"Köln": ["Müller"], "b": []}


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


def test_an_image_that_cannot_be_read(converted, monkeypatch):
    with (
        failing(monkeypatch, Path, "read_bytes", PermissionError(13, "Permission denied")),
        pytest.raises(CourseError, match=r"Cannot read .*prostate_\d\d\.nii\.gz: Permission denied"),
    ):
        share_out(2, say=lambda line: None)


def test_the_same_scan_under_two_names_is_refused(converted, home):
    (converted / "images/prostate_07.nii.gz").write_bytes((converted / "images/prostate_03.nii.gz").read_bytes())
    with pytest.raises(CourseError, match=r"prostate_0[37].* and .*prostate_0[37]\.nii\.gz: the same image is in"):
        share_out({"a": numbered(3, 1, 2), "b": numbered(7, 5, 6)}, say=lambda line: None)
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
    assert few == [(32, 0)]
    monkeypatch.setattr(data, "parameters", lambda cases, seed: {"version": "another"})
    find_or_make()
    assert few == [(32, 0), (32, 0)]
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
