"""What people bring, and what becomes of it: the value that is read, or the words of the one error or notice.

To be read from top to bottom. A row is an input that somebody has: what it is, how it is made, and the right outcome. A text as
the outcome is part of the error's message; every other outcome is compared with what was read.
"""

import contextlib
import datetime
import errno
import gzip
import inspect
import json
import math
import os
import shlex
import shutil
import socketserver
import ssl
import subprocess
import sys
import threading
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, call

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK
import torch
from monai.transforms import LoadImage
from nvflare.app_common.app_constant import StatisticsConstants
from nvflare.app_common.statistics.numeric_stats import get_global_stats
from nvflare.app_opt.pt.fedopt import PTFedOptModelShareableGenerator
from nvflare.client.config import TransferType
from nvflare.fuel.flare_api.api_spec import JobNotFound, JobTimeout
from nvflare.fuel.flare_api.flare_api import Session
from nvflare.recipe.fedstats import FedStatsRecipe
from PIL import Image
from tensorboard import notebook

from book import figures, show, told
from data_scripts import folders, mednist_sites, prepare, prostate_download, scanners
from data_scripts.datalists_gen import read_hospitals, share_out
from data_scripts.nifti import one_geometry
from data_scripts.sharing import partition, split, who_has_what, write_sites
from data_scripts.together import read_sites, sites_of
from deploy import federation
from deploy.kits import SERVER, knock, project, provision, set_up_server, set_up_site, sign_anew
from deploy.processes import plain_paths
from deploy.simulator import CourseSimEnv
from src.common import paths
from src.common.datalists import PARTS, read_datalist, read_site, site_names
from src.common.errors import CourseError
from src.common.files import write_json
from src.federation.counts import whole
from src.federation.flare_2_9 import server_of
from src.federation.recipes import add_record, client_recipe, start, weigh_selection
from src.federation.record import failure_report, shortfall
from src.federation.run import FINAL, Run
from src.federation.server import RECORD
from src.federation.site import SiteOptions
from src.learners.recipe import learner_recipe
from src.mednist.evaluation import ImageStatistics
from src.prostate.transforms import LoadCase
from src.tasks import tasks
from tests.data_support import AFFINE, SHAPE, affine_of, gland, heard, modality, named, raw_cases, signal, stored
from tests.federation.test_run import Lines
from tests.tests_support import failing, files_of, names_in, rows, through_the_door

ROOT = Path(__file__).resolve().parents[1]
MEDNIST, PROSTATE = tasks()["mednist"], tasks()["prostate"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A data folder of the test's own, with a blank in its name."""
    for name in ("COURSE_DATA_SOURCE", "COURSE_RUNS", "COURSE_MEDNIST_PER_CLASS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "my data"))
    return tmp_path / "my data"


def outcome(what: Callable[[], object]) -> object:
    """What a call returns, or the message of its one error: never another exception."""
    try:
        return what()
    except CourseError as error:
        assert "Traceback" not in str(error)
        return str(error)


def agrees(found: object, right: object) -> None:
    """A text that is due is part of what was said; anything else is equal."""
    if isinstance(right, str) and isinstance(found, str):
        assert right in found
    else:
        assert found == right


def alike(inputs: dict, *more: object) -> list[tuple]:
    """Rows that differ in their input alone."""
    return [(name, given, *more) for name, given in inputs.items()]


# -- geometry: the affine in mm that everybody reads, and what is said of it -------------------------------------------

LPS = np.diag([-0.8, -0.8, 3.0, 1.0])
EXACT, ROUNDED = affine_of(spacing=(0.78125, 0.78125, 3.0)), affine_of(spacing=(0.781, 0.781, 3.0))
SAGITTAL, CORONAL = affine_of(axes=(1, 2, 0)), affine_of(axes=(0, 2, 1))
OBLIQUE = affine_of((0.4, 0.3, 0.6))
MIRRORED, UPSIDE_DOWN = affine_of(flips=(-1, 1, 1)), affine_of(flips=(-1, 1, -1))
MIDDLE = nib.affines.from_matvec(np.diag([-0.8, 0.8, 3]), [2, -1.6, -4.5])  # what nibabel takes where nothing is said
SHEARED = AFFINE @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
METRES, MICROMETRES = (np.diag([unit, unit, unit, 1]) @ AFFINE for unit in (1e-3, 1e3))
CONVERT = "; convert it with data_scripts/data_conversion.sh first, or take it out of the datalist"
BY_MONAI, TRAINS = LoadImage(reader="NibabelReader", image_only=True), True


def moved(affine: np.ndarray, *mm: float) -> np.ndarray:
    return nib.affines.from_matvec(affine[:3, :3], affine[:3, 3] + mm)


def forms(sform=None, qform=None, unit="mm", pixdim=(1, 1, 1)) -> nib.Nifti1Image:
    """An image (x, y, z) with these forms; None leaves a code at 0."""
    image = nib.Nifti1Image(signal(), np.eye(4))
    image.header.set_xyzt_units(unit)
    image.set_qform(np.diag([*pixdim, 1]) if qform is None else qform, code=0 if qform is None else 1)
    image.set_sform(sform, code=0 if sform is None else 1)
    return image


def pair(folder: Path, image: nib.Nifti1Image, mask: np.ndarray | None = None, mask_affine=None, name="p") -> dict:
    """A case whose mask has its image's header, or a geometry of its own; returns the item of a datalist."""
    mask = gland(labels=False) if mask is None else mask
    stored = nib.Nifti1Image(mask, image.affine, image.header)
    stored.header.set_data_dtype(mask.dtype)
    if mask_affine is not None:
        stored = one_geometry(mask, mask_affine)
    item = {"image": str(folder / f"images/{name}.nii.gz"), "label": str(folder / f"labels/{name}.nii.gz"), "site": "a"}
    for key, volume in (("image", image), ("label", stored)):
        Path(item[key]).parent.mkdir(parents=True, exist_ok=True)
        nib.save(volume, item[key])
    return item


def by_itk(file: Path) -> np.ndarray:
    read = SimpleITK.ReadImage(str(file))
    turned = np.reshape(read.GetDirection(), (3, 3)) @ np.diag(read.GetSpacing())
    return np.diag([-1, -1, 1, 1]) @ nib.affines.from_matvec(turned, read.GetOrigin())  # from ITK's LPS to RAS


def by_pixdim(file: Path) -> np.ndarray:
    """The form that a reader has who takes voxel sizes from pixdim and directions from the qform."""
    header, form = nib.load(file).header, nib.load(file).get_qform()
    return form @ np.diag([*np.array(header.get_zooms()) / np.linalg.norm(form[:3, :3], axis=0), 1])


@rows(
    ("a scan as its scanner writes it", forms(AFFINE, AFFINE), AFFINE, None, TRAINS),
    ("sform alone, with its voxel sizes", forms(AFFINE, pixdim=(0.6, 0.6, 3.6)), AFFINE, None),
    ("strongly oblique", forms(OBLIQUE, OBLIQUE), OBLIQUE, None, TRAINS),
    *[(name, forms(None, own), own) for name, own in {"qform alone": AFFINE, "sagittal": SAGITTAL, "coronal": CORONAL,
      "mirrored: a left-handed grid": MIRRORED, "slices from head to feet": UPSIDE_DOWN}.items()],
    ("a sform rounded to 4 digits", forms(AFFINE.round(4), AFFINE), AFFINE, None, TRAINS),
    ("0.781 mm in the sform, 0.78125 in the qform", forms(ROUNDED, EXACT), ROUNDED, None),
    ("0.781 mm in the sform, 0.78125 in pixdim", forms(ROUNDED, pixdim=(0.78125, 0.78125, 3)), ROUNDED, None),
    ("a repaired sform, pixdim still 1", forms(LPS), LPS, "its sform was used; its qform or pixdim puts voxels up to"),
    ("sform and qform 2 mm apart", forms(moved(AFFINE, 0, 2, 0), AFFINE), moved(AFFINE, 0, 2, 0), "up to 2 mm away"),
    ("no form", forms(pixdim=(0.8, 0.8, 3)), MIDDLE, "neither sform nor qform: its pixdim was used, and for the axes a guess, LAS"),
    ("no unit of length", forms(AFFINE, AFFINE, "unknown"), AFFINE, None),
    ("metres", forms(METRES, METRES, "meter"), AFFINE, "its header's unit, 1000 mm, was converted to mm"),
    ("micrometres", forms(MICROMETRES, MICROMETRES, "micron"), AFFINE, "its header's unit, 0.001 mm, was converted to mm"),
    ("metres that are millimetres", forms(LPS, LPS, "meter"), "its voxels are 800 × 800 × 3000 mm; a scan's are 0.1 to 10 mm"),
    ("micrometres that are millimetres", forms(LPS, LPS, "micron"), "its voxels are 0.0008 × 0.0008 × 0.003 mm", None),
    ("a microscope's voxels", forms(np.diag([0.05, 0.8, 3, 1.0])), "its voxels are 0.05 × 0.8 × 3 mm", None),
    ("slices of 12 mm", forms(np.diag([0.8, 0.8, 12, 1.0])), "its voxels are 0.8 × 0.8 × 12 mm", None),
    ("sform and qform with other axes", forms(LPS, np.eye(4)), "its sform and qform contradict each other, with axes LPS and RAS"),
    ("an affine with a zero column", forms(np.diag([0, 0.8, 3, 1.0])), "its affine is singular: [[0.0", None),
    ("an affine with the same axis twice", forms(AFFINE[:, [0, 0, 2, 3]]), "its affine is singular", None),
    ("a sheared affine", forms(SHEARED), "its axes are not at right angles (a sheared affine)", None),
)  # fmt: skip
def test_geometry(image, right, remark, trains, tmp_path, home):
    """Converted, it has one geometry for all readers; a training is given what is converted, and refuses nearly all other files."""
    item = pair(tmp_path / "own", image, mask_affine=np.eye(4) if isinstance(right, str) else None)
    said, loaded = outcome(lambda: heard(tmp_path / "own", home / "t2")), outcome(lambda: LoadCase()(item))
    if trains:
        np.testing.assert_allclose(loaded["image"].affine.numpy(), right, atol=2e-4)
    else:
        assert loaded.startswith(f"a: {item['image']}: its sform and qform are not one geometry in mm")
        assert CONVERT in loaded
    if isinstance(right, str):
        assert f"{item['image']}: " in said and right in said
        return
    assert (remark in said and "Look at these:\n  - p: " in said) if remark else "Look at" not in said
    centre = nib.affines.apply_affine(right, np.argwhere(gland()).mean(axis=0))
    own = {key: str(home / "t2" / kind / "p.nii.gz") for kind, key in (("images", "image"), ("labels", "label"))}
    for key, file in own.items():
        converted = nib.load(file)
        readers = [converted.affine, converted.get_sform(), by_pixdim(file), by_itk(file), BY_MONAI(file).affine]
        for affine in (*readers, LoadCase()(own)[key].affine.numpy()):
            np.testing.assert_allclose(affine, right, atol=2e-4)
        assert converted.header.get_xyzt_units()[0] == "mm"
        assert converted.header["sform_code"] == converted.header["qform_code"] == 1
    np.testing.assert_array_equal(np.asanyarray(nib.load(own["image"]).dataobj), signal())
    mask = nib.load(own["label"])
    found = nib.affines.apply_affine(mask.affine, np.argwhere(mask.get_fdata()).mean(axis=0))
    np.testing.assert_allclose(found, centre, atol=2e-3)


# -- channels and labels: which channel was taken, and which values became gland ---------------------------------------

ZONES, ADC_FIRST = [1, 2], json.dumps(modality("ADC", "T2"))


@rows(
    *alike({"T2 and ADC, as the Decathlon has them": named("PZ", "TZ"), "a lesion": named("prostate", "prostate_lesion"),
            "zones with long names": named("Peripheral Zone", "Transition zone"), "nnU-Net's labels, name before number":
            modality("T2", "ADC", labels={"background": 0, "PZ": 1, "TZ": 2})}, (0, ZONES, "channel 0 (T2), labels 1, 2.")),
    *alike({"T1 before T2": modality("T1", "T2"), "nnU-Net's channel_names": {"channel_names": {"0": "ADC", "1": "T2"}},
            "a byte-order mark": ADC_FIRST.encode("utf-8-sig")}, (1, ZONES, "channel 1 (T2)")),
    ("ADC before a T2w", modality("ADC", "T2w"), (1, ZONES, "channel 1 (T2w)")),
    *alike({"no dataset.json": None, "a modality that is one word": {"modality": "MR"}}, (0, ZONES, "channel 0 (not named)")),
    *alike({"half a file": b'{"modality": ', "in UTF-16": ADC_FIRST.encode("utf-16")}, "dataset.json cannot be read as JSON"),
    ("one 3D image, whatever its name", modality("MRI"), (None, ZONES, "channel 0 (MRI)")),
    ("none called T2", modality("ADC", "DWI"), "which of the channels {0: 'ADC', 1: 'DWI'} is T2? Say it with --channel"),
    ("two channels called T2", modality("T2 axial", "T2 sagittal"), "is T2? Say it with --channel"),
    ("more channels than names", modality("T2"), "has 2 channel(s), not 1 as dataset.json or the first case says"),
    ("fewer channels than names", modality("T2", "ADC", "DWI"), "has 2 channel(s), not 3 as dataset.json"),
    ("--channel 1", named("PZ", "TZ"), (1, ZONES, "channel 1 (ADC)"), {"channel": 1}),
    ("--channel 2, of two", None, "has 2 channel(s), so there is no channel 2", {"channel": 2}),
    ("--channel -1", None, "channel is -1; count from 0", {"channel": -1}),
    ("labels of another organ", named("bladder", "prostate"),
     "which of the labels {0: 'background', 1: 'bladder', 2: 'prostate'} are the gland? Say it with --labels"),
    ("--labels 2, with another organ", named("bladder", "prostate"), (0, [2], "labels 2."), {"labels": [2]}),
    ("--labels 7, in no mask", None, "no mask has a voxel of the labels 7; choose with --labels", {"labels": [7]}),
    ("a label that has no name", named("prostate"), "labels outside 0, 1: 2"),
)  # fmt: skip
def test_channels_and_labels(about, right, arguments, tmp_path, home):
    channels = None if right[0] is None else 2
    raw = raw_cases(tmp_path / "own", about=about, channels=channels)
    found = outcome(lambda: heard(raw, home / "t2", **(arguments or {})))
    if isinstance(right, str):
        assert found.startswith(("Nothing was converted", str(raw))) and right in found
        return
    channel, labels, said = right
    assert said in found
    for index in range(2):
        image, mask = (nib.load(home / "t2" / kind / f"case_{index}.nii.gz") for kind in ("images", "labels"))
        given = signal(index, channels)
        np.testing.assert_array_equal(image.get_fdata(), given if channel is None else given[..., channel])
        np.testing.assert_array_equal(mask.get_fdata(), np.isin(gland(), labels))


# -- values: the gland that comes out, or the values that are refused --------------------------------------------------

BINARY, EMPTY = gland(labels=False), gland() * 0
RIM = gland()
RIM[2, 2, 0] = 1
NOT_3D, COUNT = " where one 3D volume is needed", np.arange(120, dtype=np.int16).reshape(SHAPE)
FOUR, NAN, VALUES = "has shape (6, 5, 4, 2)", "has voxels that are NaN or infinite", "has other values than 0 and 1"
COMPLEX, ELSEWHERE = "its voxels are complex64, not single numbers", "its affine is not that of its image"


def with_slope(array: np.ndarray, slope: float) -> nib.Nifti1Image:
    image = stored(array)
    image.header.set_slope_inter(slope, 0)
    return image


@rows(
    *[(f"a slope of {slope}", "image", with_slope(COUNT, slope), COUNT * slope, TRAINS) for slope in (0.5, -2)],
    ("a fourth axis of length 1", "image", stored(signal(7, 1)), signal(7, 1)[..., 0], "has shape (6, 5, 4, 1)" + NOT_3D),
    ("T2 and ADC in one file", "image", stored(signal(7, 2)), signal(7, 2)[..., 0], FOUR + NOT_3D),
    ("NIfTI-2", "image", nib.Nifti2Image(signal(9), AFFINE), signal(9), "its sform and qform are not one geometry in mm"),
    ("a NaN", "image", stored(np.where(COUNT, signal(), np.nan)), "1 voxels are NaN or infinite", NAN),
    ("a picture of one slice", "image", stored(signal()[..., 0]),
     "has shape (6, 5); a 3D image or a 4D one with channels last is needed", "has shape (6, 5)" + NOT_3D),
    ("colours", "image", stored(np.zeros(SHAPE, [(one, "u1") for one in "RGB"])), "not single numbers",
     "cannot be read: it may be damaged"),
    ("complex numbers", "image", stored(signal().astype(np.complex64)), COMPLEX, COMPLEX),
    ("a mask of 0 and 1", "label", stored(BINARY), BINARY, TRAINS),
    *[(name, "label", mask, BINARY, VALUES) for name, mask in {"a mask with the two zones": stored(gland()),
      "a mask of floats just below 1": stored(BINARY * np.float32(0.99999994)), "just above": stored(gland() + 1e-6),
      "a mask of 64-bit integers": stored(gland().astype(np.int64))}.items()],
    ("a mask of 255 with a slope of 1/255", "label", with_slope(BINARY * np.uint8(255), 1 / 255), BINARY, TRAINS),
    ("a mask with a fourth axis of length 1", "label", stored(BINARY[..., np.newaxis]), BINARY, "has shape (6, 5, 4, 1)" + NOT_3D),
    *[(f"a mask with {name}", "label", stored(mask), f"labels outside 0, 1, 2: {said}", NAN if said == "nan" else VALUES)
      for name, mask, said in (
        ("halves", gland() * np.float32(0.5), "0.5"), ("255 without a slope", BINARY * np.uint8(255), "255"),
        ("a value with many digits", np.where(gland() > 1, 1.0009765625, gland()), "1.0009765625"),
        ("NaN", np.where(gland() > 1, np.nan, gland()).astype(np.float32), "nan"))],
    ("a mask of probabilities", "label", stored(np.linspace(0, 1, gland().size).reshape(SHAPE)), ", …", VALUES),
    ("a mask with one slice fewer", "label", stored(gland()[..., :3]), *["has shape (6, 5, 3), its image (6, 5, 4)"] * 2),
    ("two masks in one file", "label", stored(np.stack([gland()] * 2, axis=-1)), f"{FOUR}, its image (6, 5, 4)", FOUR + NOT_3D),
    *[(f"a mask {name}", "label", one_geometry(BINARY, affine), f"its affine puts it up to{said}", ELSEWHERE)
      for name, affine, said in (
        ("whose axes lost their signs", affine_of(flips=(-1, -1, 1)), ""), ("with x and y exchanged", AFFINE[:, [1, 0, 2, 3]], ""),
        ("that is 5 mm away", moved(AFFINE, 5, 0, 0), " 5 mm away from its image"))],
    ("a mask whose affine lost digits", "label", one_geometry(BINARY, moved(AFFINE, 0.004, 0, 0).round(3)), BINARY, ELSEWHERE),
)  # fmt: skip
def test_volumes(key, volume, right, trained, tmp_path, home):
    """Of a file that a training takes as it is, it reads the same values as the conversion; others it refuses."""
    raw = raw_cases(tmp_path / "own", 1, channels=None, mask=lambda: BINARY)
    item = {**{key: str(raw / f"{key}sTr/case_0.nii.gz") for key in ("image", "label")}, "site": "a"}
    nib.save(volume, item[key])
    found, loaded = outcome(lambda: heard(raw, home / "t2")), outcome(lambda: LoadCase()(item))
    if isinstance(right, str):
        assert f"{item[key]}: " in found and right in found
    else:
        image, mask = (nib.load(home / "t2" / kind / "case_0.nii.gz") for kind in ("images", "labels"))
        np.testing.assert_array_equal((image if key == "image" else mask).get_fdata(), right)
        assert mask.affine.tobytes() == image.affine.tobytes(), "it takes its image's, to the last bit"
    if trained is TRAINS:
        np.testing.assert_allclose(loaded[key][0].numpy(), right)
    else:
        assert loaded.startswith(f"a: {item[key]}: {trained}") and loaded.endswith(f"{CONVERT}.")


@rows(
    ("an image of one value", np.full(SHAPE, 7, np.float32), gland(), "all voxels of the image are equal"),
    ("an image that is its mask", BINARY.astype(np.float32), gland(), "the image is equal to its mask"),
    ("an image that is its mask with labels", gland().astype(np.int16), gland(), "the image is equal to its mask"),
    ("an empty mask", signal(), EMPTY, "the mask is empty"),
    ("a mask that fills everything", signal(), EMPTY + 1, "the mask fills the whole volume"),
    ("a mask that touches the border", signal(), RIM, "the mask touches the border of the volume"),
    ("no contrast", np.full(SHAPE, 3, np.float32), gland(), "the image's mean in the mask is exactly that outside"),
)  # fmt: skip
def test_contents_that_look_wrong(image, mask, right, tmp_path, home):
    """Converted, for they may be right; and said once, for they often are not."""
    pair(tmp_path / "own", stored(image), mask, name="odd")
    pair(tmp_path / "own", stored(signal(5)), gland(), name="good")
    said = heard(tmp_path / "own", home / "t2")
    (line,) = [line for line in said.splitlines() if line.startswith("  - ")]
    assert line.startswith("  - odd: ") and right in line
    np.testing.assert_array_equal(nib.load(home / "t2/labels/odd.nii.gz").get_fdata(), mask > 0)


# -- pictures: the grey values from 0 to 1 that the network sees -------------------------------------------------------

RAMP = np.tile(np.linspace(0, 1, 64), (64, 1))  # dark on the left, bright on the right
SQUARE = np.zeros((64, 64))
SQUARE[:16, :32] = 1  # bright at the top left; not the same when it is turned
ACROSS, UPWARDS = np.zeros((64, 64)), np.zeros((64, 64))
ACROSS[16:48], UPWARDS[:, 16:48] = 0.2, 0.2
ON_ITS_SIDE, PAGE = Image.Exif(), Image.new("L", (64, 64))
ON_ITS_SIDE[0x0112] = 6  # the note that says: turn it clockwise to see it upright
DEEP = "1 of 1 pictures: each was scaled by the file's own range of values, for it has more than 8 bits"
PAD = "1 of 1 pictures: each was padded with black, for it is not square"
NO_PICTURE = "Left out, 1 files that are no pictures or lie in no class's folder: "


def picture(values: np.ndarray, kind: str, **options) -> Callable[[Path], None]:
    """How a picture of this NumPy type, or Pillow mode, is written."""
    image = Image.fromarray(values.astype(kind)) if np.dtype(kind if kind[0] in "<>uif" else "u1") == kind else None
    image = Image.fromarray(values.astype(np.uint8)).convert(kind) if image is None else image
    return lambda file: image.save(file, **options)


@rows(
    *[(name, "png", picture(RAMP * 200, mode), np.floor(RAMP * 200) / 255, None) for name, mode in {"8 bits, grey": "uint8",
      "a grey picture stored in colours": "RGB", "a picture with an alpha channel": "RGBA", "a palette": "P"}.items()],
    ("black and white, 1 bit", "png", picture(SQUARE * 255, "1"), SQUARE, None),
    ("a colour that is not grey", "png", Image.new("RGB", (64, 64), "red").save, np.full((64, 64), 76 / 255), None),
    ("16 bits, of which 12 are used", "png", picture(RAMP * 4095, "uint16"), RAMP, DEEP),
    *[(name, "tif", picture(values, kind), RAMP, DEEP) for name, values, kind in (
        ("16 bits, big-endian TIFF", RAMP * 60000 + 1000, ">u2"), ("32 bits", RAMP * 1e6, "int32"),
        ("floating point from 0 to 1", RAMP, "float32"), ("floating point below 0", RAMP * 2000 - 1000, "float32"))],
    *[(f"{number} channels of 16 bits", kind, lambda file, number=number: SimpleITK.WriteImage(SimpleITK.Image(
        (8, 8), SimpleITK.sitkVectorUInt16, number), file), "it has 16 bits a channel; save it as grey of 16 bits")
      for number, kind in ((2, "png"), (3, "png"), (4, "png"), (3, "tif"))],
    *[(f"white is 0, {kind}", "tif", picture(4095 - RAMP * 4095, kind, tiffinfo={262: 0}), RAMP, DEEP) for kind in ("u2", "f4")],
    ("signed, 8 bits", "tif", picture(RAMP * 200, "uint8", tiffinfo={339: 2}), "it has signed values of 8 bits; save it as"),
    ("floating point from -3.3e38 to 3.3e38", "tif", picture((RAMP - 0.5) * 6.6e38, "float32"), RAMP, DEEP),
    ("16 bits of one value", "png", picture(SQUARE * 0 + 999, "uint16"), SQUARE * 0, DEEP),
    ("floating point with a NaN", "tif", picture(np.where(RAMP > 0.99, np.nan, RAMP), "float32"), "it holds NaN or infinity"),
    ("twice as wide as high", "png", picture(np.full((50, 100), 51), "uint8"), ACROSS, PAD),
    ("twice as high as wide", "png", picture(np.full((512, 256), 51), "uint8"), UPWARDS, PAD),
    ("larger, and square", "png", picture(np.full((256, 256), 51), "uint8"), np.full((64, 64), 0.2), None),
    ("turned by EXIF", "png", picture(np.rot90(SQUARE) * 255, "uint8", exif=ON_ITS_SIDE), SQUARE,
     "1 of 1 pictures: each was turned as its EXIF data say"),
    ("three pages in one file", "tif", lambda file: PAGE.save(file, save_all=True, append_images=[PAGE, PAGE]),
     "it holds 3 pictures, not one", None),
)  # fmt: skip
def test_pictures(suffix, write, right, notice, tmp_path, home):
    """One reader: what is counted, and what a scanner's style starts from, is what the network sees."""
    item = brought(tmp_path / "raw", 3, write, f"a.{suffix}")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = outcome(lambda: MEDNIST.prepare([item | {"site": "a"}], MEDNIST.settings())[0]["image"])
        said = [str(one.message) for one in warned]
        styled = outcome(lambda: scanners.rescan({"a": [item]}, tmp_path / "raw", tmp_path / "styled")["a"][0]["image"])
        values = outcome(lambda: counted(item, home)["intensity"].to_numpy())
    if isinstance(right, str):
        assert found.startswith(f"a cannot read the image {item['image']}: ") and right in found
        assert all(f"a.{suffix}: {right}" in said for said in (values, styled)) and not (tmp_path / "styled").exists()
    else:
        assert type(found) is torch.Tensor and found.dtype == torch.float32
        exact = 2.5e-3 if notice or suffix == "tif" else 1e-6
        np.testing.assert_allclose(found[0].numpy(), right, atol=exact)
        for other in (values.reshape(64, 64), np.asarray(Image.open(styled)) / 255):
            np.testing.assert_allclose(other, right, atol=2.5e-3)
    assert said == ([f"a: {notice} (a.{suffix})"] if notice else [])


def copied(to: str, what: str = "Hand/0.jpeg") -> Callable[[Path], None]:
    def copy(folder: Path) -> None:
        (folder / to).parent.mkdir(parents=True, exist_ok=True)
        (folder / to).write_bytes((folder / what).read_bytes())

    return copy


@rows(
    *alike({"a picture called .jpg": copied("Hand/1.jpg"), "a picture called .PNG": copied("Hand/1.PNG")}, 7),
    *alike({"a Mac's companion": copied("Hand/._0.jpeg"), "a note beside the pictures": copied("Hand/README.md")}, 6),
    *[(name, copied(to), 6, NO_PICTURE + to) for name, to in {"a DICOM file": "Hand/1.dcm", "pictures in a subfolder":
      "Hand/more/1.jpeg", "a class that MedNIST does not have": "Foot/1.jpeg"}.items()],
    ("a class without a picture", lambda folder: (folder / "Hand/0.jpeg").rename(folder / "Hand/0.nrrd"),
     "No images (.jpeg, .jpg, .png, .tif, .tiff) in", None),
)  # fmt: skip
def test_files_of_pictures(change, right, notice, tmp_path):
    for name in MEDNIST.labels:
        (tmp_path / "MedNIST" / name).mkdir(parents=True)
        Image.new("L", (64, 64), 90).save(tmp_path / "MedNIST" / name / "0.jpeg")
    change(tmp_path / "MedNIST")
    said = []
    found = outcome(lambda: mednist_sites.share_out(1, "even", folder=tmp_path / "MedNIST", say=said.append))
    if isinstance(right, str):
        assert right in found and "MedNIST/Hand" in found
    else:
        assert sum(len(items) for items in read_sites("mednist")["site-1"].values()) == right
    assert [line for line in said if "Left out" in line] == ([notice] if notice else [])


# -- names of files: the cases that are converted, and what is left out ------------------------------------------------

left_out = "Left out, {} files that have no NIfTI name or lie in a subfolder: {}".format
BOTH, NFC, NFD = ["case_0", "case_1"], *(unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))


def renamed(image: str, mask: str | None = None) -> Callable[[Path], None]:
    def rename(raw: Path) -> None:
        try:
            (raw / "imagesTr/case_1.nii.gz").rename(raw / "imagesTr" / image)
            (raw / "labelsTr/case_1.nii.gz").rename(raw / "labelsTr" / (mask or image))
        except OSError:
            pytest.skip("this file system takes no such names")

    return rename


def added(*names: str) -> Callable[[Path], None]:
    def add(raw: Path) -> None:
        for name in names:
            (raw / name).parent.mkdir(exist_ok=True)
            (raw / name).write_bytes(b"\0\5\26\7")

    return add


def not_compressed(raw: Path) -> None:
    for file in raw.glob("*Tr/case_1.nii.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()


def of_nnunet(raw: Path) -> None:
    for file in [*raw.glob("imagesTr/*")]:
        for channel in range(2):
            shutil.copy(file, f"{str(file).removesuffix('.nii.gz')}_{channel:04d}.nii.gz")
        file.unlink()


@rows(
    ("names in capital letters", renamed("case_1.NII.GZ"), BOTH, None),
    ("files that are not compressed", not_compressed, BOTH, None),
    ("names with blanks and dots", renamed("Mr. Bean 1.nii.gz"), ["Mr. Bean 1", "case_0"], None),
    ("a Mac's ü and another system's", renamed(f"{NFC}.nii.gz", f"{NFD}.nii.gz"), [NFC, "case_0"], None),
    ("a Mac's companions", added("imagesTr/._case_0.nii.gz", "labelsTr/._case_0.nii.gz", "imagesTr/.DS_Store"), BOTH, None),
    ("a scan as .nrrd", added("imagesTr/case_2.nrrd"), BOTH, left_out(1, "imagesTr/case_2.nrrd")),
    (".mha and .dcm", added("imagesTr/a.dcm", "labelsTr/a.mha"), BOTH, left_out(2, "imagesTr/a.dcm, labelsTr/a.mha")),
    ("a case in a subfolder", copied("imagesTr/b/9.nii.gz", "imagesTr/case_0.nii.gz"), BOTH, left_out(1, "imagesTr/b/9.nii.gz")),
    ("a name not in UTF-8", renamed(os.fsdecode(b"fall_\xe4.nii.gz")), r"fall_\udce4.nii.gz': its name is not UTF-8; rename it"),
    ("nnU-Net's names", of_nnunet, "imagesTr: its names end in _0000, as nnU-Net's do, one file a channel", None),
    ("one case as .nii and .nii.gz", added("imagesTr/case_0.nii"), "case_0.nii: the case is there twice, also as case_0.nii.gz"),
    *[(f"a case in {one}/ alone", lambda raw, other=other: (raw / f"{other}Tr/case_1.nii.gz").unlink(),
       f"{one}Tr/case_1.nii.gz: no {what} of that name in {other}Tr/")
      for one, other, what in (("images", "labels", "mask"), ("labels", "images", "image"))],
    ("a dead link", lambda raw: (raw / "imagesTr/9.nii.gz").symlink_to("/nowhere"), "9.nii.gz: is a folder or a link to nowhere"),
    ("folders with nothing in them", lambda raw: [file.unlink() for file in raw.glob("*/*.gz")],
     "imagesTr: no NIfTI file (.nii.gz or .nii) in it", None),
    ("folders with other names", lambda raw: (raw / "labelsTr").rename(raw / "masks"),
     "has neither imagesTr/ and labelsTr/ nor images/ and labels/", None),
)  # fmt: skip
def test_names(change, right, notice, tmp_path, home):
    raw = raw_cases(tmp_path / "own", about=named("PZ", "TZ"))
    change(raw)
    found = outcome(lambda: heard(raw, home / "t2"))
    found.encode()  # a strict terminal can show it
    if isinstance(right, str):
        assert right in found and found.count("nnU-Net") < 2, "one hint, not one for each file"
    else:
        assert f"Converted {len(right)} of {len(right)} cases" in found
        assert names_in(home / "t2/labels") == sorted(f"{name}.nii.gz" for name in right)
        assert [line for line in found.splitlines() if "Left out" in line] == ([notice] if notice else [])


# -- settings and lists in files: what is read of them -----------------------------------------------------------------

READERS = {"settings": MEDNIST.settings.read, "hospitals": read_hospitals, "sites": site_names}
RULE = "cannot be the name of a site: use letters, digits, - and _ alone"


@rows(
    ("settings: UTF-8", b'{"rounds": 7}', "settings", MEDNIST.settings(rounds=7)),
    ("settings: a byte-order mark, as Windows writes it", b'\xef\xbb\xbf{"rounds": 7}', "settings", MEDNIST.settings(rounds=7)),
    ("settings: UTF-16", '{"rounds": 7}'.encode("utf-16"), "settings", "They must be one JSON object in UTF-8."),
    ("settings: half a file", b"{", "settings", "Cannot read the settings"),
    ("settings: a list", b"[]", "settings", "must hold one JSON object with the settings, not a list"),
    ("settings: no file", None, "settings", "settings: No such file or directory"),
    ("settings: a misspelt key", b'{"ronds": 7}', "settings", "unknown key 'ronds'; did you mean 'rounds'?"),
    ("hospitals: names of people", '\ufeff{"Köln": ["Müller"], "b": []}'.encode(), "hospitals", {"Köln": ["Müller"], "b": []}),
    *alike({"hospitals: UTF-16": '{"a": ["x"]}'.encode("utf-16"), "hospitals: nothing": b"", "hospitals: a list": b"[]",
            "hospitals: one case that is not in a list": b'{"a": "x"}', "hospitals: numbers": b'{"a": [1]}',
            "hospitals: no file": None}, "hospitals", "hospitals is no map of sites to cases; write"),
    ("sites: a number", 3, "sites", ["site-1", "site-2", "site-3"]),
    ("sites: NumPy's 2", np.int64(2), "sites", ["site-1", "site-2"]),
    ("sites: names", ["BIDMC", "HK", "north_2"], "sites", ["BIDMC", "HK", "north_2"]),
    *alike({"server, which FLARE has itself": ["server", "a"], "Server, which a Mac takes for the same": ["Server"], "all": ["all"],
            "a blank": ["Hospital A"], "a comma": ["a,b"], "a path": ["../d"], "a dot": ["a.b"], "a dash in front": ["-x"],
            "an umlaut": ["münchen"], "an empty name": [""], "a number among names": [3]}, "sites", RULE),
    ("the same name twice", ["a", "a"], "sites", "a list of names that differ"),
    ("names that differ in capitals alone", ["North", "north"], "sites", "a list of names that differ in more than capitals"),
    *alike({"a word instead of a list": "north", "a set": {"a", "b"}, "a dict": {"a": 1}, "true": True, "NumPy's true": np.True_},
           "sites", "give a number of at least 1, or a list of names"),
    ("no sites", 0, "sites", "sites is 0; give a number of at least 1"),
)  # fmt: skip
def test_settings_and_sites(given, what, right, tmp_path):
    """Given in a file, or as it is."""
    if isinstance(given, bytes):
        (tmp_path / what).write_bytes(given)
    agrees(outcome(lambda: READERS[what](tmp_path / what if isinstance(given, bytes | None) else given)), right)


# -- datalists: what a site finds in its folder, and a case that is seen in training and judged elsewhere ---------------

same = "images/{}.nii.gz: the same image is in {} and in {}".format
DOOR = ".nii.gz: did not come through data_scripts/datalists_gen.sh; run it"
TWICE = "images/0.nii.gz: the same image is in a training and in a {}; take it out of one of them"


def item(number: int) -> dict:
    return {"image": f"images/{number}.nii.gz", "label": f"labels/{number}.nii.gz"}


def datalist(training, validation=(), testing=()) -> bytes:
    return json.dumps({"training": training, "validation": [*validation], "testing": [*testing]}).encode()


def edited(name: str, content: bytes = b"") -> Callable[[Path], None]:
    """By default one byte longer."""
    return lambda folder: (folder / name).write_bytes(content or (folder / name).read_bytes() + b" ")


@rows(
    ("a list of three parts", datalist([item(0)], [item(1)], [item(2)]), [1, 1, 1]),
    ("nothing to validate or to test on", datalist([item(0), item(1)]), [2, 0, 0]),
    ("a byte-order mark", b"\xef\xbb\xbf" + datalist([item(0)]), [1, 0, 0]),
    ("UTF-16", datalist([item(0)]).decode().encode("utf-16"), "Cannot read the datalist"),
    ("no file", None, "datalist.json: No such file or directory. It comes from data_scripts/mednist_sites.sh or datalists_gen.sh."),
    ("half a file", b'{"training": [', "It comes from data_scripts/mednist_sites.sh or datalists_gen.sh."),
    ("a list instead of parts", b"[]", "is not a JSON object with the parts training, validation, testing"),
    *alike({"no training part": b"{}", "nothing to train on": datalist([])}, "part 'training' is missing or empty"),
    ("an image that is not there", datalist([item(0), item(77)]), "images/77.nii.gz does not exist"),
    ("a name that no disk takes", datalist([item("x" * 300)]), "xxx.nii.gz does not exist, or cannot be read"),
    ("a case by another path", datalist([item(0), item("../images/0")]), same("../images/0", *["a training"] * 2)),
    ("an entry without a label", datalist([{"image": "images/0.nii.gz"}]), "training[0]: no 'image' with its 'label'"),
    ("a case in two parts", datalist([item(0)], [], [item(0)]), TWICE.format("testing")),
    ("a case twice in one part", datalist([item(0), item(0)]), TWICE.format("training")),
    ("a scan under two names", datalist([item(0)], [item(8)]), same(8, "a training", "a validation")),
    ("volumes by another door", datalist([item(0)], [item(1)]), "labels/1" + DOOR, lambda at: (at / "checked.json").unlink()),
    ("a scan that was edited afterwards", datalist([item(0)]), "images/0" + DOOR, edited("images/0.nii.gz")),
    ("a mask that was edited afterwards", datalist([item(0)]), "labels/0" + DOOR, edited("labels/0.nii.gz")),
    ("half a checked.json", datalist([item(0)]), "labels/0" + DOOR, edited("checked.json", b"{")),
    ("another checked.json", datalist([item(0)]), "labels/0" + DOOR, edited("checked.json", b'{"images/0.nii.gz": 3}')),
)  # fmt: skip
def test_datalists(content, right, change, tmp_path):
    for number in range(3):
        pair(tmp_path, stored(signal(number)), name=str(number))
    pair(tmp_path, stored(signal(0)), EMPTY, name="8")
    through_the_door(tmp_path)
    if change:
        change(tmp_path)
    if content is not None:
        (tmp_path / "datalist.json").write_bytes(content)
    agrees(outcome(lambda: [len(items) for items in read_datalist(tmp_path / "datalist.json", "a").values()]), right)


@rows(
    ("no folder", [], "No site has data in"),
    ("a folder without a list", ["site-1/notes.txt"], "Share the data out first: data_scripts/mednist_sites.sh, or the prostate's"),
    ("two sites", ["site-1/datalist.json", "site-2/datalist.json"], ["site-1", "site-2"]),
    ("a Mac's companion of a site", ["site-1/datalist.json", "._site-1/datalist.json"], ["site-1"]),
    ("a Mac's companion of a list", ["site-1/datalist.json", "._site-1.json"], ["site-1"]),
)  # fmt: skip
def test_folders_of_sites(files, right, home):
    for name in files:
        (home / "sites/toy" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "sites/toy" / name).write_text("")
    agrees(outcome(lambda: sites_of("toy")), right)


@rows(
    ("no case in two places", {"a": [0, 1, 2], "b": [3, 4, 5]}, "toy"),
    ("a test case of one site in another's training", {"a": [0, 1, 2], "b": [2, 4, 5]}, same(2, "a testing", "b training")),
    ("a training case in the same site's validation", {"a": [0, 0, 2]}, same(0, "a training", "a validation")),
    ("a scan under two names at one site", {"a": [0, 6, 2]}, same(6, "a training", "a validation")),
    ("a scan under two names at two sites", {"a": [0, 1, 2], "b": [3, 4, 6]}, same(6, "a training", "b testing")),
    ("the same scan twice, as paths", {"a": [0], "b": [6]}, same(6, "a training", "b training"), Path),
    ("one scan, as paths", {"a": [0]}, "toy", Path),
)  # fmt: skip
def test_leaks(sites, right, kind, tmp_path, home):
    """Case 6 is a copy of case 0."""
    items = [pair(tmp_path / "t2", stored(signal(number % 6)), name=str(number)) for number in range(7)]
    items = [{key: (kind or str)(item[key]) for key in ("image", "label")} for item in items]
    lists = {site: {part: [items[n]] for part, n in zip(PARTS, own, strict=False)} for site, own in sites.items()}
    agrees(outcome(lambda: write_sites("toy", lists, tmp_path / "t2", {}, len, PROSTATE.classes)), right)
    assert sites_of("toy") == [*sites] if right == "toy" else not (home / "sites/toy").exists()


# -- systems: paths of runs, folders in variables, Windows, a JupyterHub -----------------------------------------------

HUB, THESIS = "JUPYTERHUB_SERVICE_PREFIX", "{}/thesis"


@rows(*[(name, name) for name in ("my runs", "runs#1", "Jane's", 'quote"', "a$HOME", "50%20", "a&b;c", "für", "(a)*?")])
def test_paths_of_runs(name, tmp_path):
    """FLARE splits its command lines as a shell does, comments and all: what it is given leads there all the same."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "job").write_text("found")
    interpreter = Path(sys.executable).resolve()  # whose own path needs no link: the folder alone decides
    with plain_paths(interpreter, tmp_path / name) as (python, folder):
        words = shlex.split(f"{python} -c 'import sys; print(open(sys.argv[1]).read())' {folder}/job", comments=True)
        assert len(words) == 4
        done = subprocess.run(words, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("found\n", "")


@rows(
    ("a relative COURSE_DATA", "COURSE_DATA", "my data", paths.data_root, ROOT / "my data"),
    ("a relative COURSE_RUNS", "COURSE_RUNS", "../my runs", paths.runs_root, ROOT.parent / "my runs"),
    ("COURSE_DATA is a file", "COURSE_DATA", THESIS, prostate_download.find_or_make, "Cannot write"),
    ("COURSE_RUNS is a file", "COURSE_RUNS", THESIS, lambda: paths.new_run_folder("toy"), "/toy: Not a directory. Choose a folder"),
    ("COURSE_DATA is a file that sites look in", "COURSE_DATA", THESIS, lambda: sites_of("toy"), "No site has data in"),
)  # fmt: skip
def test_folders_of_data_and_runs(variable, value, use, right, monkeypatch, tmp_path):
    """The same folder in a shell and in a notebook: it starts from the course's folder, wherever one stands."""
    (tmp_path / "thesis").write_text("mine")
    monkeypatch.setenv(variable, value.format(tmp_path))
    monkeypatch.chdir(tmp_path)
    agrees(outcome(use), right)
    assert files_of(tmp_path) == {"thesis": b"mine"}


def test_curves_in_mlflow(tmp_path):
    """Characters of the path that mean something in an address."""
    from mlflow import MlflowClient

    place = tmp_path / "50%20 really? runs#1"
    Lines(1).start(0, "a").write(place)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    run = client.create_run(client.create_experiment("toy", artifact_location=str(tmp_path)), run_name="a-job-1")
    for step, value in enumerate((0.25, 0.5)):
        client.log_metric(run.info.run_id, "val_dice", value, step=step)
    (tmp_path / "mlflow.db").rename(place / "mednist/server/simulate_job/mlflow.db")
    assert Run(place).curve("val_dice")["a"].tolist() == [0.25, 0.5]
    assert len([*tmp_path.rglob("*.db")]) == 1, "no second database is made"


@rows(
    ("a notebook or a site, which look for data", [sys.executable, "-c", "import src.common.datalists"]),
    ("a data script", ["bash", "data_scripts/data_conversion.sh"]),
)
def test_a_system_that_says_that_it_is_windows(command, tmp_path):
    """One sentence, and no message about a missing module."""
    # It says so from the moment on at which the course asks: PyTorch would look for its files of Windows.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Windows:\n"
        "    def find_spec(name, *rest):\n"
        "        sys.platform = 'win32' if name == 'src.common.files' else sys.platform\n"
        "sys.meta_path.insert(0, Windows)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "The course runs on Linux and macOS. On Windows, run it inside WSL" in last and "fcntl" not in last


@rows(
    ("a laptop", {}, 'new URL("/", window.location)', ""),
    ("a JupyterHub", {HUB: "/user/jane/"}, 'new URL("/user/jane/proxy/6006/"', "for which the hub needs jupyter-server-proxy"),
    ("one with an address", {HUB: "/user/jane/", "TENSORBOARD_PROXY_URL": "/tb"}, 'new URL("/tb"', ""),
)  # fmt: skip
def test_tensorboard_in_a_notebook(environment, right, said, monkeypatch, capsys):
    """The page that ``%tensorboard`` shows looks for TensorBoard where a browser finds it."""
    monkeypatch.setattr(os, "environ", dict(environment))
    show.tensorboard_through_hub()
    assert said in capsys.readouterr().out if said else not capsys.readouterr().out
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda page, **_: shown.append(page.data))
    notebook._display_ipython(port=6006, height=800, display_handle=None)
    assert right in shown[0]


# -- labels: the number of a class, at each door by which items come in, or the words ----------------------------------

CLASS, MASK = "a whole number from 0, AbdomenCT, to 5, HeadCT", "the path of a file"
EITHER = f"{MASK}, or a whole number from 0 on"  # who deals out or splits does not know the task
GOOD = {CLASS: (3,), EITHER: (3, 6), MASK: ()}
JSON = {"3": 3, "3.0": 3.0, "-1": -1, "-100, which PyTorch passes over": -100, "6 of six classes": 6, "true": True,
        "3.5": 3.5, "NaN": math.nan, "infinity": math.inf, "3 in quotes": "3", "a list": [3]}  # fmt: skip
PYTHON = {**JSON, "a NumPy integer": np.int64(3), "a NumPy float": np.float32(3), "a tensor": torch.tensor(3),
          "NumPy's true": np.True_, "NumPy's -1": np.int8(-1),
          "a masked value": np.ma.masked, "3 of time": np.timedelta64(3)}  # fmt: skip
NUMBERS = {"the number 0": 0, "the number 3": 3, "true": True, "3 in quotes": "3"}


def brought(folder: Path, label: object, write: Callable | None = None, name: str = "a.png") -> dict:
    folder.mkdir()
    (write or picture(RAMP * 200, "uint8"))(folder / name)
    return {"image": str(folder / name), "label": label}


def listed(item: dict, home: Path) -> Path:
    """The datalist of site a, with this one item beside it."""
    file, name = home / "sites/toy/a/datalist.json", Path(item["image"]).name
    shutil.copytree(Path(item["image"]).parent, file.parent)
    file.write_bytes(datalist([{"image": name, "label": item["label"]}]))
    return file


def counted(item: dict, home: Path) -> dict:
    listed(item, home)
    statistics = ImageStatistics("toy")
    statistics.initialize(SimpleNamespace(get_identity_name=lambda: "a"))
    return statistics.data["training"]


def written(item: dict, _: Path) -> object:
    lists = {"a": dict(zip(PARTS, ([item], [], []), strict=True))}
    write_sites("toy", lists, Path(item["image"]).parent, {}, len, MEDNIST.classes)
    return read_site("toy", "a")["training"][0]["label"]


DOORS = {
    "in a datalist": (CLASS, JSON, lambda item, home:
                      read_datalist(listed(item, home), "a", MEDNIST.classes)["training"][0]["label"]),
    "in statistics": (CLASS, JSON, lambda item, home: counted(item, home)["class"].item()),
    "dealt out": (EITHER, PYTHON, lambda item, _: partition([item], 1)["site-1"][0]["label"]),
    "split into parts": (EITHER, PYTHON, lambda item, _: split([item], 0.1, 0.2)["training"][0]["label"]),
    "written to a site's folder": (CLASS, PYTHON, written),
    "prepared for training": (CLASS, PYTHON, lambda item, _: MEDNIST.prepare([item], MEDNIST.settings())[0]["label"]),
    "in a table": (CLASS, PYTHON, lambda item, _:
                   3 * who_has_what({"a": {"training": [item]}}, MEDNIST.labels).at["a", "ChestCT"].item()),
    "in a heat map": (CLASS, PYTHON, lambda item, _:
                      3 * figures.confusion_matrix([item["label"]], [0], MEDNIST.labels, "").data.loc["ChestCT"].sum()),
    "for a mask, in a datalist": (MASK, NUMBERS, lambda item, home: read_datalist(listed(item, home), "a", PROSTATE.classes)),
    "for a mask, loaded": (MASK, NUMBERS, lambda item, _: LoadCase()(item)),
    "for a mask, prepared": (MASK, NUMBERS, lambda item, _: PROSTATE.prepare([item], PROSTATE.settings())),
}  # fmt: skip


@rows(
    *[(f"{name}, {door}", label, takes, use) for door, (takes, tried, use) in DOORS.items() for name, label in tried.items()],
    ("a mask for a class, in a datalist", "a_mask.png", CLASS, DOORS["in a datalist"][-1]),
    ("a mask for a class, prepared", Path("a_mask.png"), CLASS, DOORS["prepared for training"][-1]),
)  # fmt: skip
def test_labels(label, takes, use, tmp_path, home):
    found = outcome(lambda: use(brought(tmp_path / "own", label), home))
    if type(label) not in (bool, np.bool_, np.timedelta64, list) and label in GOOD[takes]:
        assert found == int(label) and isinstance(found, int | np.integer)
    else:
        assert found.endswith(f"its label is {label!r}; it must be {takes}")
        assert ("a.png: " in found or "image 0: " in found) and not (home / "sites/toy/about.json").exists()


# -- real federations: what an engineer asks for, and the words where it cannot be -------------------------------------

GPU, SLEEPS = "CUDA_VISIBLE_DEVICES", "exec sleep 600"
THERE, USERS = "There are: server, north, south.", "There are: admin@example.org, lead@example.org, member@example.org."
AWAY = "Job j not started: 1 of 2 sites are there (missing: south); it needs 2"
RUNS = "It goes on; to stop it: with hospitals.session() as session: session.abort_job('j')"
DAYS = [datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days) for days in (-9, -1, 1, 9)]
PAST, FUTURE = DAYS[:2], DAYS[2:]


@rows(
    ("a name of 64 letters", {"sites": ["a" * 64]}, "a" * 64),
    ("a name of 65 letters, too long for a certificate", {"sites": ["a" * 65]}, "64 at most"),
    ("an address", {"host": "192.0.2.7"}, "a"),
    ("the last port", {"port": 65535}, "a"),
    *[(name, {"host": host}, f"its host {host!r} must be an address, or a name of") for name, host in {"no host": "",
      "a host with _": "flare_1.org", "a host with a blank": "my server", "one of 64 letters": "a" * 64 + ".org"}.items()],
    *[(f"the port {port!r}", {"port": port}, f"its port {port!r} must be a whole number from 1 to 65535")
      for port in (70000, 0, "8002", True)],
    ("a project with odd letters", {"name": "Prostata/Süd"}, "its name 'Prostata/Süd' must be letters, digits, - and _"),
    ("a project of 65 letters", {"name": "a" * 65}, "64 at most: a folder's and a certificate's"),
    ("an organisation's odd name", {}, "FLARE refuses the project 'course': name=St. Mary is ill-formatted", "St. Mary"),
    ("all of it", {"name": "", "port": -1, "host": "-"}, "The project cannot be made, 3 problems"),
)  # fmt: skip
def test_projects(asked, right, organisation, tmp_path):
    made = outcome(lambda: project(**{"sites": ["a"], "port": 8002, **asked}))
    if organisation:
        made["participants"][1]["org"] = organisation
        made = outcome(lambda: provision(tmp_path / "new", made))
    agrees(made if isinstance(made, str) else made["participants"][1]["name"], right)
    assert names_in(tmp_path / "new") == []


@rows(
    *alike({"a package as text": {"classes": "src."}, "an empty name": {"classes": ["src.", ""]}, "a dot": {"classes": ["."]}},
           "give a list of names, such as REVIEWED"),
    ("no, for False", {"brings_code": "no"}, "brings_code is 'no'; give True or False."),
    *[(f"a silence of {silence!r}", {"silence": silence}, f"silence is {silence!r}; give a number of seconds above 0.")
      for silence in (0, -1, math.nan, math.inf, "25", True)],
    ("no kit of a site", {}, "is not the kit of a server or a site. Give the folder"),
    ("no kit of a server", {"silence": 25.0}, "is not the kit of a server or a site. Give the folder"),
)  # fmt: skip
def test_what_a_kit_is_told(asked, right, tmp_path):
    agrees(outcome(lambda: (set_up_server if "silence" in asked else set_up_site)(tmp_path, **asked)), right)
    assert not (tmp_path / "local").exists()


@rows(
    *[(what, name, value, {}, value) for what, name, value in (
        ("a graphics card", GPU, "1"), ("libraries", "LD_LIBRARY_PATH", "/opt/lib"), ("a time zone", "TZ", "Asia/Tokyo"),
        ("packages of the user", "PYTHONUSERBASE", "/srv/me/.local"))],
    ("a card of the site's own", GPU, "1", {GPU: "0"}, "0"),
    ("the data of the owner", "COURSE_DATA", "/mine", {}, None),
    ("the data of the site", "COURSE_DATA", "/mine", {"COURSE_DATA": "/its own"}, "/its own"),
    ("another folder for a kit", "NVFL_WORKSPACE", "/one", {}, None),
    ("packages in folders, one of them relative", "PYTHONPATH", "lib:/a", {}, f"{Path('lib').absolute()}:/a"),
)  # fmt: skip
def test_environments(name, mine, own, right, monkeypatch):
    monkeypatch.setenv(name, mine)
    assert federation.handed_on(**own).get(name) == right


@rows(
    *[(name, sites, f"sites is {sites!r}. Give the environment variables of each site") for name, sites in {"a list": ["north"],
      "None for a site": {"north": None}, "a number for a variable": {"north": {"OMP_NUM_THREADS": 2}}}.items()],
    ("two sites with one name", {"north": {}, "North": {}}, "names that differ in more than capitals"),
    ("no Python for the guard", {"a": {}}, "so no kit was made: [Errno 2] No such file"),
    ("a guard that fails", {"a": {}}, "so no kit was made: no memory", "echo no memory >&2"),
    ("a guard that says nothing", {"a": {}}, "so no kit was made: it said nothing in 0 s", SLEEPS),
)  # fmt: skip
def test_federations_that_cannot_be(sites, right, guard, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(federation, "GUARD_SECONDS", 0.3 if guard == SLEEPS else 30.0)
    if guard:
        (tmp_path / "python").write_text(f"#!/bin/sh\n{guard}\n")
        (tmp_path / "python").chmod(0o755)
    agrees(outcome(lambda: federation.Federation(tmp_path / "new", sites)), right)
    assert names_in(tmp_path) == ["python"] * bool(guard)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    """A federation of two of whom nobody has been started."""
    with federation.Federation(tmp_path_factory.mktemp("plain") / "federation", {"north": {}, "south": {}}) as made:
        yield made


@rows(
    ("start of a site that there is not", lambda all: all.start("east"), f"'east' is none of this federation's. {THERE}"),
    ("kill of one", lambda all: all.kill("east"), THERE),
    ("kill of one that does not run", lambda all: all.kill("north"), "north does not run. Of this federation there run: none."),
    ("a session of a user who is not there", lambda all: all.session("me@example.org").__enter__(), USERS),
    ("a site as user", lambda all: all.environment("north"), USERS),
    ("a job without a server", lambda all: all.execute(None, Path()), "The server does not run; start('server') starts it."),
    ("a port that somebody has taken", lambda all: all.start(), "is taken by another program (Address already in use)"),
)  # fmt: skip
def test_participants(what, right, hospitals):
    with answering(hospitals.port):
        agrees(outcome(lambda: what(hospitals)), right)
    assert not any(hospitals.is_running(name) for name in (SERVER, "north", "south"))


@rows(
    ("a site is away", "SUBMITTED", ["north"], "j", AWAY, ["j"]),
    ("a site is away that is still in the list", "SUBMITTED", ["north", "south"], "j", AWAY, ["j"]),
    ("it is being sent", "DISPATCHED", ["north"], "j", "taken out of the queue; submit it again when they are there", ["j"]),
    ("it runs", "RUNNING", ["north"], "j", RUNS, []),
    ("nobody knows it", "RUNNING", ["north"], "k", "The server knows no job 'k'. There are: j.", []),
)  # fmt: skip
@pytest.mark.parametrize("waits", ["fetch", "wait_for"])
def test_jobs_that_are_late(state, connected, job, right, aborted, waits, hospitals, tmp_path, monkeypatch):
    meta = {"job_id": "j", "status": state, "deploy_map": {"app": ["@ALL"]}, "min_clients": 2}
    session = Mock(Session)
    session.get_job_meta.side_effect, session.wait_for_job.side_effect = {"j": None}.get(job, JobNotFound), JobTimeout
    session.get_job_meta.return_value, session.list_jobs.return_value = meta, [meta]
    session.get_connected_client_list.return_value = [SimpleNamespace(name=name) for name in connected]
    monkeypatch.setattr(hospitals, "session", lambda: contextlib.nullcontext(session))
    monkeypatch.setattr(hospitals, "is_running", lambda name: name == "north")
    asked = {"fetch": (job, tmp_path), "wait_for": (job, "run started")}[waits]
    agrees(outcome(lambda: getattr(hospitals, waits)(*asked, timeout=0)), right)
    session.get_job_meta.assert_called_with(job)
    assert session.abort_job.call_args_list == [call(one) for one in aborted]


@contextlib.contextmanager
def answering(port: int, kit: Path | None = None):
    """A server's end of the handshake by the certificate of a kit, or of a program without TLS."""
    greeting = {"handle": lambda self: self.wfile.write(b"SSH-2.0-OpenSSH\r\n")}
    handler = type("Handler", (socketserver.StreamRequestHandler,), greeting)
    with type("Server", (socketserver.TCPServer,), {"allow_reuse_address": True})(("", port), handler) as server:
        if kit:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(kit / "startup" / "server.crt", kit / "startup" / "server.key")
            context.load_verify_locations(kit / "startup" / "rootCA.pem")
            context.verify_mode = ssl.CERT_REQUIRED
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield
        server.shutdown()


@rows(
    ("all is well", None, None, None),
    ("a site's that has expired", "north", PAST, "the server refuses the site: "),
    ("a site's that is not valid yet", "north", FUTURE, "the server refuses the site: "),
    ("the server's that has expired", SERVER, PAST, "the site refuses the server: certificate has expired; "),
    ("a clock that is a day behind", SERVER, FUTURE, "the site refuses the server: certificate is not yet valid; "),
    ("a key of somebody else", "key", None, "north is not the whole kit of a site"),
    ("a program without TLS", "other", None, "no FLARE server answers at localhost:"),
)  # fmt: skip
def test_certificates(wrong, holds, right, hospitals, tmp_path):
    kits = {name: shutil.copytree(hospitals.kits[name], tmp_path / name) for name in (SERVER, "north")}
    if holds:
        sign_anew(hospitals.folder / "course", kits[wrong], since=holds[0], until=holds[1])
    if wrong == "key":
        shutil.copy(kits[SERVER] / "startup" / "server.key", kits["north"] / "startup" / "client.key")
    with answering(hospitals.port, None if wrong == "other" else kits[SERVER]):
        said = outcome(lambda: knock(kits["north"]))
    agrees(said, right)
    if holds:
        whose = {"north": "site"}.get(wrong, wrong)
        dates = "the {}'s certificate holds from {:%Y-%m-%d %H:%M UTC} to {:%Y-%m-%d %H:%M UTC}".format(whose, *holds)
        assert dates in said and "; this machine's clock says 20" in said


# -- recipes: what the server of a run can start from, and what one can be told ----------------------------------------

LIGHTNING = {"epoch": 3, "optimizer_states": [{}], "pytorch-lightning_version": "2.6"}
ALONE = "state_dict() alone"
WHOLE = f"Small, more than weights; save model.{ALONE}"
HALF = f"it is half a file, or none of weights; save model.{ALONE}"
FULL = TransferType.FULL
ITSELF, ABOVE = "decides itself what a site sends", "it must be greater than 0"
NUMBER, UNFIT = "give a number of at least 1", "The settings in a recipe's options cannot be used: "


class Small(torch.nn.Sequential):
    """A network that is quickly saved."""

    def __init__(self, seed: int = 0, width: int = 2):
        super().__init__(torch.nn.Linear(2, width), torch.nn.BatchNorm1d(width))


SMALL = replace(MEDNIST, networks={"DenseNet121": Small})


def state(start: str = "", network: torch.nn.Module | None = None, **more) -> dict:
    """A ``state_dict`` whose names have this start, and more tensors, or None where one is left out."""
    tensors = {**(network or Small()).state_dict(), **more}
    return {start + name: value for name, value in tensors.items() if value is not None}


def saved(content: object, **options) -> Callable[[Path], object]:
    return lambda file: torch.save(content, file, **options)


@rows(
    *alike({"a state_dict": saved(state()), "half precision": saved(state(network=Small().half())),
            "bfloat16": saved(state(network=Small().bfloat16())), "double precision": saved(state(network=Small().double())),
            "a checkpoint of FLARE's": saved({"model": state(), "train_conf": {"train": {"model": "Small"}}}),
            "a model with its optimizer beside it": saved({"model": state(), "optimizer": {"state": {}}, "epoch": 3}),
            "PyTorch's format of before 1.6": saved(state(), _use_new_zipfile_serialization=False)}, None),
    ("DataParallel's", saved(state("module.")),
     f"its names start with 'module.', as DataParallel saves them; save model.module.{ALONE}"),
    ("a compiled network's", saved(state("_orig_mod.")), f"as torch.compile saves them; save model._orig_mod.{ALONE}"),
    ("DataParallel's, under model", saved({"model": state("module.")}), "its names start with 'module.'"),
    ("Lightning's", saved(LIGHTNING | {"state_dict": state("model.")}), "its weights lie under 'state_dict', and its names "
     f"start with 'model.', as Lightning saves them; save model.model.{ALONE}"),
    ("MONAI's, under net", saved({"net": state(), "iteration": 3}), f"its weights lie under 'net'; save model.{ALONE}"),
    ("an ensemble's member", saved(state("members.0.")), "its names start with 'members.0.', as a wrapper saves them"),
    *alike({"a whole network": saved(Small()), "in the old format": saved(Small(), _use_new_zipfile_serialization=False)}, WHOLE),
    ("NumPy's arrays by name", saved({"0.bias": np.zeros(2)}), "_reconstruct, more than weights"),
    ("an optimizer's state", saved(torch.optim.Adam(Small().parameters()).state_dict()),
     f"it holds 'state', 'param_groups', not tensors by name; save model.{ALONE}"),
    ("a list of tensors", saved([*Small().parameters()]), "it holds a list, not tensors by name"),
    ("nothing in a dict", saved({}), "7 of its tensors are not those of this network, the first is '0.bias': missing"),
    *alike({"half a download": lambda file: [torch.save(state(), file), os.truncate(file, 1500)], "an empty file": Path.touch,
            "git's pointer to a large file": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"),
            "NumPy's archive": lambda file: [np.savez(file, weight=np.zeros(2)), Path(f"{file}.npz").rename(file)]}, HALF),
    ("a folder", Path.mkdir, "Is a directory; give the path of a file"),
    ("no file", lambda file: None, "No such file or directory; give the path of a file"),
    ("another network", saved(torch.nn.Conv2d(1, 1, 1).state_dict()), "9 of its tensors are not those of this network"),
    ("a wider network", saved(state(network=Small(width=3))),
     "6 of its tensors are not those of this network, the first is '0.bias': (3,) instead of (2,)"),
    ("a head that the network lacks", saved(state(head=torch.zeros(3))), "the first is 'head': (3,) instead of none"),
    ("one tensor too few", saved(state(**{"1.bias": None})), "the first is '1.bias': missing instead of (2,)"),
    ("a diverged training's", saved(state(**{"1.bias": torch.tensor([0, torch.nan])})),
     "1 of 7 tensors hold NaN or infinity, the first is '1.bias'"),
    ("whole numbers for weights", saved(state(**{"0.bias": torch.ones(2, dtype=int)})), "'0.bias' is torch.int64, not as in"),
    ("complex weights", saved(state(**{"0.bias": torch.ones(2, dtype=torch.complex64)})), "'0.bias' is torch.complex64, not as in"),
)  # fmt: skip
def test_checkpoints(make, right, tmp_path):
    """What is no start is refused before the run, with what to do; what is one starts in the network's own types."""
    file = tmp_path / "my model.pt"
    make(file)
    found = outcome(lambda: start(SMALL, 2, None, file)[-1])
    if right is None:
        kinds = [{name: value.dtype for name, value in weights.items()} for weights in (found, state())]
        assert kinds[0] == kinds[1] and start(SMALL, 2, None, None)[-1] == {}
    else:
        assert found.startswith(f"The checkpoint {file} cannot be the start of Small: ") and right in found


@rows(
    *[(f"{sites!r} sites", {"sites": sites}, f"sites is {sites!r}; {NUMBER}") for sites in (0, True, 1.5, "3")],
    *[(f"at least {one} sites", {"min_clients": one}, f"min_clients is {one}; the job asks 3 site(s)") for one in (0, -1, 4)],
    *[(f"{time:g} seconds", {"round_timeout": time}, f"{UNFIT}'round_timeout' is {time}; {due}") for time, due in (
        (0, ABOVE), (-1, ABOVE), (math.nan, "it must be a finite number"), (math.inf, "it must be a finite number"))],
    *[(f"{value!r} as {name}", {name: value}, f"{UNFIT}{name!r} is {value!r}; it must be a valid {kind}") for name, value, kind in (
        ("min_clients", True, "integer"), ("min_clients", 0.5, "integer"), ("round_timeout", "5", "number"),
        ("final_evaluation", "no", "boolean"))],
    *[(f"the tracker {name}", {"tracker": name}, f"{UNFIT}'tracker' is {name!r}; it must be 'tensorboard' or 'mlflow'")
      for name in ("excel", None)],
    ("a misspelt option", {"min_client": 2}, f"{UNFIT}unknown key 'min_client'; did you mean 'min_clients'?"),
    ("an option of the settings", {"rounds": 2}, f"{UNFIT}unknown key 'rounds'; there are min_clients, tracker,"),
    ("differences in small letters", {"transfer": "diff"}, "transfer is 'diff'; choose TransferType.FULL or"),
    ("what sites of FedBN send", {"settings": "fedbn", "transfer": FULL}, f"FedBN {ITSELF}"),
    ("what sites of FedOpt send", {"settings": "fedavgm", "transfer": FULL}, f"FedOpt, momentum {ITSELF}"),
    ("weights instead of a file", {"initial": {"0.bias": 1}}, "initial is a dict; give the path of a checkpoint, or None"),
    ("settings of another task", {"settings": PROSTATE.settings()}, "settings is a Settings; give a src.mednist.card.Settings"),
    ("settings in a dict", {"settings": {"rounds": 2}}, "settings is a dict; give a src.mednist.card.Settings, or None"),
)  # fmt: skip
def test_options_of_a_recipe(options, right):
    """What is not heeded is refused by name."""
    given = {"sites": 3, **options}
    if isinstance(method := given.get("settings"), str):
        given["settings"] = MEDNIST.settings(method=method)
    agrees(outcome(lambda: client_recipe(SMALL, **given)), right)


@pytest.mark.parametrize("make", [client_recipe, lambda task, sites, **given: learner_recipe(Path(), sites, **given)],
                         ids=["by a script", "by the learner"])  # fmt: skip
def test_the_checkpoint_that_was_checked_is_the_one_that_travels(make, tmp_path, monkeypatch):
    """Also where the file, or the current folder, is another one when the job is sent."""
    monkeypatch.chdir(tmp_path)
    task = tasks()["prostate"]
    torch.save(network := task.new_model(seed=9).state_dict(), "start.pt")
    made = make(task, 2, initial="start.pt")
    Path("start.pt").unlink()
    made.export(job_dir=str(tmp_path / "jobs"))
    (sent,) = (tmp_path / "jobs").rglob("initial.pt")
    assert all(torch.equal(value, network[name]) for name, value in torch.load(sent).items())
    (config,) = (tmp_path / "jobs").rglob("config_fed_server.json")
    assert '"source_ckpt_file_full_name": "initial.pt"' in config.read_text()


def test_a_server_with_an_optimizer_of_its_own_starts_from_a_new_model(tmp_path):
    """FLARE's FedOpt takes its first step from the network of the recipe, whatever checkpoint the sites began with."""
    torch.save(state(), tmp_path / "model.pt")
    found = outcome(lambda: client_recipe(SMALL, 2, MEDNIST.settings(method="fedadam"), initial=tmp_path / "model.pt"))
    assert "FedOpt, Adam always starts from a new model; leave initial out, or take another method." in found
    assert "load_state_dict" not in inspect.getsource(PTFedOptModelShareableGenerator), "FLARE reads it: allow initial"
    agrees(outcome(lambda: learner_recipe(tmp_path, 2, initial=tmp_path / "model.pt")), "cannot be the start of UNet: ")


# -- drives: what a disk or its file system refuses --------------------------------------------------------------------

WRITTEN, DENIED, MODES, NAMES = {"a.json": b"{}\n"}, errno.EACCES, (Path, "chmod"), (os, "link")
LOCKS, MOVES = (folders, "lock_descriptor"), (Path, "replace")


@rows(
    *[(f"{what}: {os.strerror(number)}", "write", where, number, WRITTEN) for what, where, numbers in (
        ("no modes", MODES, (errno.EPERM, DENIED, errno.ENOTSUP)),
        ("no second names", NAMES, (errno.EPERM, errno.ENOTSUP, errno.EXDEV)),
        ("no locks", LOCKS, (errno.ENOLCK, errno.EBADF, errno.ENOTSUP))) for number in numbers],
    ("a disk that breaks meanwhile", "write", MODES, errno.EIO, "a.json: Input/output error. Choose a folder that you can write"),
    ("a drive that cannot be written", "write", MOVES, errno.EROFS, "a.json: Read-only file system."),
    ("a file that is open elsewhere", "write", MOVES, errno.ETXTBSY, "Text file busy. Choose a folder that you can write"),
    ("unreadable folders", "convert", (os, "listdir"), DENIED, "imagesTr: Permission denied. Mend its permissions, or copy it"),
    ("an image that cannot be read", "convert", (Path, "read_bytes"), DENIED, "case_0.nii.gz: cannot be read: Permission denied"),
    ("a scan that cannot be shared out", "share", (Path, "read_bytes"), DENIED, "nii.gz: Permission denied"),
    ("folders that cannot be written", "convert", (Path, "mkdir"), DENIED,
     "my data: Permission denied. Choose a folder that you can write to"),
)  # fmt: skip
def test_drives(step, where, number, right, tmp_path, home, monkeypatch):
    """A file that is written, linked and moved into place by one process at a time: whole, or nothing and the words."""
    raw, place = raw_cases(tmp_path / "own", 3), tmp_path / "drive"
    home.mkdir()

    def write() -> dict[str, bytes]:
        with folders.one_at_a_time(place), folders.staged(place / "data") as new:
            folders.link_or_copy(write_json(tmp_path / "a.json", {}), new / "a.json")
        return files_of(place / "data")

    steps = {"write": write, "convert": lambda: heard(raw, home / "t2")}
    steps["share"] = lambda: share_out(1, folder=raw, say=len)
    with failing(monkeypatch, *where, OSError(number, os.strerror(number))):
        agrees(outcome(steps[step]), right)
    assert names_in(place) == (["data"] if right == WRITTEN else [])
    assert {*names_in(tmp_path)} <= {"a.json", "drive", home.name, "own"}


def test_a_process_that_works_for_an_hour_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "LOCK_SECONDS", 0.1)
    right = f"Another process still works in {tmp_path} after 0.1 s. Wait for it, or end it, and run this again."
    with folders.one_at_a_time(tmp_path):
        assert outcome(lambda: folders.one_at_a_time(tmp_path).__enter__()) == right
    with folders.one_at_a_time(tmp_path):
        assert names_in(tmp_path) == []


# -- records and counts: what a run says of itself, the mean of all, and what a site's filter kept back ----------------

ALL_BUT_BINS = {"count": {"a": {"t": 30}}, "mean": {"a": {"t": 2.5}, "Global": {"t": 2.5}}}
FEW = "a kept back the mean, histogram of its class: it has too few values to tell more than their number."
FIGURES = ["count", "mean", "histogram"]
BY_PART = {"class": {"count": {site: {"training": 3, "testing": 4} for site in ("a", "b", "Global")}}}
UNREADABLE, BACK, PAIR = "an image cannot be read", "started without its own state", ("north", "south")


def asked(*rounds: tuple[str, ...]) -> Lines:
    """Rounds with the sites that are asked in each; all answer."""
    lines = Lines(len(rounds))
    for number, sites in enumerate(rounds):
        lines.start(number, *sites)
        for site in sites:
            lines.add("asked", site=site, task="train")
    return lines


def tallied(**reasons: str | None) -> Lines:
    """A job without rounds, and why a site could not do its task."""
    lines = Lines()
    for site, reason in reasons.items():
        lines.add("asked", site=site, task="fed_stats")
        lines.add("result", site=site, accepted=not reason, reason=reason)
    return lines


def took_part(run: Run) -> list[tuple]:
    return list(run.contributions.fillna("").itertuples(index=False, name=None))


def damaged(run: Run, line="{") -> list[dict]:
    (file,) = run.folder.rglob(RECORD)
    file.write_text(f"{line}\n" + file.read_text())
    return Run(run.folder).record


def half_validated(run: Run) -> Path:
    next(run.folder.rglob("cross_val_results.json")).write_text('{"north": {"SRV_')
    return run.best_model("val_dice")


def why(run: Run) -> str:
    return failure_report(run.folder, run.folder / "mednist", [*PAIR])


SILENT = Lines(1).start(0, "north").add("asked", site="north", task="train").add("asked", site="south", task="train")
REMARK = Lines(1).start(0, "north").add("answer", site="south", accepted=True, reason=BACK, samples=1)
VALIDATED = Lines(1).start(0)
STOPPED = Lines().add("run stopped", reason="Not all required 2 statistics received")
ONE, NONE = tallied(north=None, south=UNREADABLE), "is no checkpoint of a run: "


@rows(
    ("a site that one round did not ask", asked(PAIR, ("north",)), took_part,
     [(0, "north", True, ""), (0, "south", True, ""), (1, "north", True, "")]),
    ("a site that no round asked", asked(("north",)), lambda run: run.left_out, {"south": "it was not asked"}),
    ("a site that was asked and said nothing", SILENT, lambda run: took_part(run)[1], (0, "south", False, "it did not answer")),
    ("an update with a remark", REMARK, repr, f"s, south {BACK})"),
    ("its row", REMARK, lambda run: took_part(run)[1], (0, "south", True, BACK)),
    ("statistics of both sites", tallied(north=None, south=None), took_part, [("", "north", True, ""), ("", "south", True, "")]),
    ("statistics of one site", ONE, lambda run: run.left_out, {"south": UNREADABLE}),
    ("statistics that need both", ONE, lambda run: shortfall(run.folder), "The job needs the answers of 2 site(s); 1 gave one."),
    ("statistics that failed", ONE, why, f"The run failed at the task fed_stats. south: {UNREADABLE}. More"),
    ("a server that stopped", STOPPED, why, "before the first round. server: Not all required 2 statistics received."),
    ("a damaged record", asked(PAIR), damaged, " is damaged: "),
    ("a record with a number", asked(PAIR), lambda run: damaged(run, "7"), " is damaged: "),
    ("a record with something else", asked(PAIR), lambda run: damaged(run, '{"a": 1}'), " is damaged: a line is no event."),
    ("a matrix of no validation", asked(PAIR), lambda run: run.cross_site("a"), "it needs add_cross_site_evaluation()."),
    ("the best model of no validation", asked(PAIR), lambda run: run.best_model("a"), "it needs add_final_global_evaluation(),"),
    ("half a file of the validation", VALIDATED, half_validated, "cross_val_results.json: Unterminated string"),
    ("no folder", asked(PAIR), lambda run: Run(None), "None holds 0 runs with a record"),
    *[(f"weights in {one}", SILENT, lambda run, one=one: Run.weights(run.folder / one), NONE) for one in ("run.json", "no.pt")],
    ("the best model by a misspelt metric", VALIDATED, lambda run: run.best_model("acc"), "No site validated 'acc'; there are ["),
    ("a table of a misspelt metric", VALIDATED, lambda run: run.cross_site("accuracy"), "'accuracy'; there are ['val_dice']."),
    ("a misspelt curve", VALIDATED, lambda run: run.curve("acc"), "No site streamed 'acc'; there are ['val_dice']."),
    ("the metric's own name", VALIDATED, lambda run: run.curve("val_dice")["north"].tolist(), [0.5]),
)  # fmt: skip
def test_records(lines, read, right, tmp_path):
    place = lines.write(tmp_path)
    if lines is VALIDATED:
        (place / "tb_events").mkdir()
        write_json(place / "cross_val_results.json", {"north": {f"SRV_{FINAL}": {"val_dice": 0.5}}})
    write_json(tmp_path / "run.json", {"status": "finished", "sites": PAIR})
    (tmp_path / "job" / "mednist").mkdir(parents=True)
    write_json(tmp_path / "job" / "mednist" / "meta.json", {"min_clients": 2})
    agrees(outcome(lambda: read(Run(tmp_path))), right)


@rows(
    ("a job for three in a simulator of two", 2, {"num_clients": 3}, {}, "asks 3 sites, this simulator has 2 (site-1, site-2);"),
    ("one that goes on with one of three", 2, {"num_clients": 3}, {"min_clients": 1}, "The job asks 3 sites"),
    ("one that needs three at the start", 2, {}, {"min_clients": 3}, "The job asks 3 sites"),
    ("one for two in a simulator of three", 3, {"num_clients": 2}, {"min_clients": 2}, "toy"),
    ("one for sites with other names", ["a", "b"], {}, {"deploy_map": {"x": ["server"], "y": ["a", "c"]}}, "The job is for a, c;"),
)  # fmt: skip
def test_jobs_and_simulators(sites, controller, meta, right, tmp_path, monkeypatch):
    def export_job(folder: str) -> None:
        Path(folder, "toy/app/config").mkdir(parents=True)
        write_json(Path(folder, "toy/meta.json"), meta)
        write_json(Path(folder, "toy/app/config/config_fed_server.json"), {"workflows": [{"args": controller}]})

    started = []
    monkeypatch.setattr(CourseSimEnv, "_simulate", lambda env, job: started.append(job))
    env, job = CourseSimEnv(sites, folder=tmp_path / "run"), SimpleNamespace(name="toy", export_job=export_job)
    found = outcome(lambda: env.deploy(job))
    agrees(found, right)
    assert started == ([found] if right == "toy" else []) and (tmp_path / "run/run.json").exists() == bool(started)


@rows(
    ("13 images at one site and 1 at another", {"north": (13, 35), "south": (1, None)}, "mean", 35 / 13),
    ("their number", {"north": (13, 35), "south": (1, None)}, "count", 13),
    ("13 and 12", {"north": (13, 35), "south": (12, 30)}, "mean", 65 / 25),
    ("no site that told its sum", {"north": (3, None), "south": (1, None)}, "mean", None),
    ("sites that are asked for their number alone", {"north": (13, 35), "south": (1, None)}, "count", 14, ["count"]),
)  # fmt: skip
def test_counts_of_all_sites(told_by, figure, right, asked_for):
    stats = {name: {site: {"training": {}} for site in told_by} for name in asked_for or ["count", "sum", "mean"]}
    for site, (count, total) in told_by.items():
        passed = {"count": count} if total is None else {"count": count, "sum": total, "mean": total / count}
        for name in stats.keys() & passed:
            stats[name][site]["training"]["class"] = passed[name]
    found = get_global_stats({}, whole(stats), StatisticsConstants.STATS_1st_STATISTICS, {})
    assert found[figure]["training"].get("class") == (right and pytest.approx(right, abs=1e-4))


@rows(
    ("more bins than a filter lets pass", ALL_BUT_BINS, 2.5, "the histogram of its class: it has too few values for so many bins."),
    ("a site with few images", {"count": {"a": {"t": 1}}}, None, FEW),
    ("a site that told all", ALL_BUT_BINS | {"histogram": {"a": {"t": [[0, 1, 30]]}}}, 2.5, ""),
)  # fmt: skip
def test_what_filters_keep_back(statistics, mean, says):
    said = told.kept_back({"class": statistics}, ["a"], FIGURES)
    assert says in " ".join(said) and len(said) == bool(says)
    assert told.table({"class": statistics}, ["a"])["all"].get(("class", "mean")) == mean


@rows(
    ("more sites than the statistics name", add_record, {"min_clients": 3}, "min_clients is 3; the job asks 2 site(s)"),
    ("no time for the first contact", add_record, {"first_contact": 0.0}, f"'first_contact' is 0.0; {ABOVE}"),
    ("a weighed selection of models", weigh_selection, {}, "FedStatsRecipe selects no model; leave weigh_selection out."),
    ("a record", add_record, {}, 2),
    ("one that may lack a site", add_record, {"min_clients": 1}, 1),
    ("a second record", lambda made: (add_record(made), add_record(made)), {}, "FedStatsRecipe has a record; call add_record once"),
)  # fmt: skip
def test_statistics_with_a_record(change, options, right, tmp_path):
    made = FedStatsRecipe("toy", "toy.json", ["a", "b"], {"count": {}}, ImageStatistics("toy"))
    found = outcome(lambda: change(made, **options))
    agrees(found or server_of(made).components["recorder"].min_clients, right)


# -- cells: what is typed in a notebook, with values that fit in a line --------------------------------------------------

SMALLER, NO_ROWS = "CompactDenseNet", "Empty DataFrame\nColumns: ["
WEIGHTS = MEDNIST.new_model(0, SMALLER).state_dict()


@rows(
    ("a site that told nothing", lambda: told.kept_back(BY_PART, ["a", "c"], ["count"]),
     ["c told nothing (a, b did); Run(...).left_out says why."]),
    ("one site's name", lambda: told.kept_back(BY_PART, "a", ["count"]), " of 'a'; give a list of sites, and one of "),
    ("a misspelt statistic", lambda: told.kept_back(BY_PART, ["a"], ["count", "meen"]), "no statistics ['count', 'meen'] of ['a']"),
    ("one statistic", lambda: told.kept_back(BY_PART, ["a"], "count"), "stddev, sum, var."),
    ("two parts", lambda: told.table(BY_PART, ["a", "b"]).loc[("class", "count", "testing")].tolist(), [4, 4, 4]),
    *[(f"{name}={value!r}", lambda name=name, value=value: MEDNIST.settings(**{name: value}), said) for name, value, said in (
        ("round", 4, "The settings cannot be used: unknown key 'round'; did you mean 'rounds'?"),
        ("network", "DenseNet", "it must be 'DenseNet121', "), ("rounds", True, "'rounds' is True; it must be a valid integer"),
        ("learning_rate", True, "it must be a valid number"), ("seed", 2**63, "'seed' is 9223372036854775808; it must be less"))],
    *[(f"no items: {task.name}", lambda task=task: repr(task.evaluate_cases(task.new_model(), [], task.settings())), said)
      for task, said in ((MEDNIST, NO_ROWS + "case, site, label, predicted, confidence, accuracy]"),
                         (PROSTATE, NO_ROWS + "case, site, dice, hd95_mm, surface_dice_3mm, missed]"))],
    *[(name, draw, f"{name.split('(')[0]}() cannot draw this: {said}") for name, draw, said in (
        ("class_montage() of nothing", lambda: figures.class_montage({}), "IndexError: list index out of range. help(figures."),
        ("pooled_histograms() of age", lambda: figures.pooled_histograms(BY_PART, "age"), "KeyError: 'age'."),
        ("load_case() of no file", lambda: figures.load_case({"image": "no.nii", "label": "no.nii"}), "FileNotFoundError: "),
        ("partition_bars() of no class", lambda: figures.partition_bars(pd.DataFrame({"Hand": [1]}), ["Hnd"]), "KeyError"))],
    ("settings below a file", lambda: MEDNIST.settings().write(Path(__file__, "a", "b.json")), "b.json: Not a directory. Choose a"),
    ("a misspelt network", lambda: MEDNIST.new_model(0, "DenseNet"), "There is no network 'DenseNet'; choose DenseNet121 or"),
    *[(f"weights: {name}", lambda made=made: type(MEDNIST.load_model(made, SMALLER)).__name__, said) for name, made, said in (
        ("the network's own", WEIGHTS, SMALLER), ("of another", MEDNIST.new_model().state_dict(), "of its tensors are not those"),
        ("that train", {name: one.requires_grad_(one.is_floating_point()) for name, one in WEIGHTS.items()}, SMALLER),
        ("names and numbers", {**WEIGHTS, 0: torch.ones(1)}, "1 of its tensors are not those of this network, the first is 0"),
        ("a path", "a.pt", "there is a str, not a tensor. Give a state_dict, for example run.weights("),
        ("FLARE's checkpoint", {"model": {**WEIGHTS}}, "there is a dict, not a tensor"),
        ("arrays", {name: np.ones(one.shape) for name, one in WEIGHTS.items()}, "there is a ndarray, not a tensor"),
        ("NaN", {name: one * math.nan for name, one in WEIGHTS.items()}, "175 of 175 tensors hold NaN or infinity"))],
)  # fmt: skip
def test_cells(call, right):
    agrees(outcome(call), right)


# -- sharing out: what is asked for with numbers, parts and names, and the words where it cannot be --------------------

DEALT = [{"image": f"/{label}/{number}", "label": label} for label in range(3) for number in range(9)]
GIVEN = "' is given 2 times to be shared out; give it once."


def put(name: str, part: str = "training") -> Callable:
    return lambda own: write_sites("toy", {"a": {part: [brought(own, 0) | {"image": str(own / name)}]}}, own, {}, len)


@rows(
    *[(f"{name} {value!r}", lambda _, given={name: value}: partition(DEALT, 2, **given), f"it must be a {due}")
      for name, due, *values in (
        ("seed", "valid integer", 1.5, "0", None, True), ("few", "valid integer", 1.5, "1"),
        ("counts", "valid integer", [3.5, 2], ["3", "2"], [True, 2]), ("counts", "valid tuple", 3), ("alpha", "valid num", "0.5"),
        ("alpha", "finite number", math.nan, math.inf)) for value in values],
    *[(f"a share of {value!r}", lambda _, value=value: split(DEALT, value, 0.2), f"'validation' is {value!r}; it must be a")
      for value in (math.nan, "0.1", True)],
    ("a way in a list", lambda _: partition(DEALT, 2, ["even"]), "Unknown partition ['even']; choose one of specialised,"),
    ("an image twice", lambda _: partition([*DEALT, DEALT[0]], 2), f"'/0/0{GIVEN}"),
    ("by another path, to be split", lambda _: split([*DEALT, {"image": "/0/../0/0", "label": 0}], 0.1, 0.2), f"'/0/0{GIVEN}"),
    ("a class at home twice", lambda _: partition(DEALT, 2, "specialised", homes=[0, 1, 2, 2]), f"2{GIVEN[1:]}"),
    *[(f"a misspelt part {way}", use, "a has a part 'trainig'; there are training, validation, testing.") for way, use in (
        ("written", put("a.png", "trainig")), ("in a table", lambda _: who_has_what({"a": {"trainig": DEALT}})))],
    *[(what, put(name), "own, or cannot be read.") for what, name in (("no image", "b.png"), ("one elsewhere", __file__))],
    *[(f"a misspelt task, {use.__name__}", lambda _, use=use: use("mednits"), "They make mednist and prostate;")
      for use in (prepare.share_out, prepare.described)],
    ("a task of one's own", lambda own: listed(brought(own, 0), own.parent / "my data") and prepare.share_out("toy"), "toy"),
    ("threads below 0", lambda _: SiteOptions(threads=-1), "'threads' is -1; it must be greater than or equal to 0"),
)  # fmt: skip
def test_sharing_out(use, right, tmp_path):
    agrees(outcome(lambda: use(tmp_path / "own")), right)
