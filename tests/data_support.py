"""Tiny prostate cases and grey pictures, and what a conversion says of the cases."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from data_scripts.data_conversion import convert
from data_scripts.nifti import one_geometry
from src.common.errors import CourseError
from src.mednist.card import CARD
from tests.tests_support import files_of

SHAPE = (6, 5, 4)


def affine_of(turns=(0.05, 0.1, 0.3), spacing=(0.6, 0.6, 3.6), axes=(0, 1, 2), flips=(1, 1, 1)) -> np.ndarray:
    """Oblique, anisotropic and not at the origin: as a scanner writes it."""
    rotation = nib.eulerangles.euler2mat(*turns)[:, axes]
    return nib.affines.from_matvec(rotation @ np.diag(np.array(spacing) * flips), [-70, -55, 12.5])


AFFINE = affine_of()


def gland(labels: bool = True) -> np.ndarray:
    """Not in the middle and not symmetric: what is turned or mirrored lies elsewhere."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 1:4, 1:3] = 1
    mask[3, 1, 1] = 2 if labels else 1
    return mask


def signal(seed: int = 0, channels: int | None = None) -> np.ndarray:
    shape = SHAPE if channels is None else (*SHAPE, channels)
    return np.random.default_rng(seed).uniform(0, 30_000, shape).astype(np.float32)


def stored(array: np.ndarray) -> nib.Nifti1Image:
    """With a geometry as the conversion writes it: what else is odd about it is the row's affair."""
    return one_geometry(array, AFFINE)


def modality(*names: str, **more) -> dict:
    return {"modality": {str(number): name for number, name in enumerate(names)}, **more}


def named(*labels: str) -> dict:
    return modality("T2", "ADC", labels={str(number): name for number, name in enumerate(("background", *labels))})


def raw_cases(folder: Path, count: int = 2, about=None, mask: Callable = gland, channels: int | None = 2) -> Path:
    """``case_0``, ``case_1``, … in the Decathlon's layout, and a ``dataset.json`` that says ``about``."""
    for index in range(count):
        for kind, array in (("imagesTr", signal(index, channels)), ("labelsTr", mask())):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nib.save(stored(array), folder / kind / f"case_{index}.nii.gz")
    if about is not None:
        (folder / "dataset.json").write_bytes(about if isinstance(about, bytes) else json.dumps(about).encode())
    return folder


def grey_pictures(folder: Path, per_class: int) -> Path:
    """In the layout of MedNIST; what counts is which file is where."""
    for label, name in enumerate(CARD.labels):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            Image.new("L", (64, 64), 40 * label + i).save(folder / name / f"{i:06d}.jpeg")
    return folder


def heard(raw: Path, out: Path, **arguments) -> str:
    """What a conversion says; after an error it has left nothing."""
    said, before = [], files_of(out.parent)
    try:
        assert convert(raw, out, say=said.append, **arguments) == out
    except CourseError:
        assert files_of(out.parent) == before and not out.exists()
        raise
    return "\n".join(said)
