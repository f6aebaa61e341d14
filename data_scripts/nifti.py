"""NIfTI files of a case: read and check them, and give image and mask one geometry that every reader believes.

A file says up to three times where its voxels lie, by sform, qform and voxel sizes (pixdim), and programs differ in which they
believe: https://nifti.nimh.nih.gov/nifti-1/documentation/nifti1fields/nifti1fields_pages/qsform.html"""

import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np

APART_MM = 0.1  # well under a voxel, well above what float32 affines lose on their way through other software
ROUNDING = 1e-4  # what a slope or a change of type does to whole numbers


def read(file: Path) -> nib.Nifti1Image:
    """A NIfTI file, read to its end, where gzip's checksum is: ``nib.load`` stops before. A ``ValueError`` says what is wrong."""
    try:
        content = file.read_bytes()
        if file.name.lower().endswith(".gz"):
            content = gzip.decompress(content)
        second = content[:4] in ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))
        image = (nib.Nifti2Image if second else nib.Nifti1Image).from_bytes(content)
        # Before nibabel sets memory aside for what a damaged header claims.
        needed = math.prod(image.shape) * image.get_data_dtype().itemsize + int(image.dataobj.offset)
        if len(content) < needed:
            raise ValueError(f"it has {len(content)} bytes of the {needed} that its header announces")
        kind = image.dataobj.get_unscaled().dtype
    except Exception as error:  # a damaged file makes gzip, zlib, numpy and nibabel raise a dozen kinds
        if said := getattr(error, "strerror", None):  # of the operating system
            raise ValueError(f"cannot be read: {said}") from error
        said = str(error) or type(error).__name__
        raise ValueError(f"cannot be read as NIfTI, it may be damaged ({said})") from error
    if not (np.issubdtype(kind, np.integer) or np.issubdtype(kind, np.floating)):
        raise ValueError(f"its voxels are {kind}, not single numbers")
    return image


def to_mm(image: nib.Nifti1Image) -> np.ndarray:
    """(4, 4) that turns the header's unit of length into mm: metres, micrometres, or else mm, also where nothing is said."""
    return np.diag([{1: 1000.0, 3: 0.001}.get(int(image.header["xyzt_units"]) % 8, 1.0)] * 3 + [1.0])


def one_geometry(voxels: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """Voxels (x, y, z) with an affine as sform, qform and voxel sizes, in mm, and nothing else in the header. Shear is lost."""
    image = nib.Nifti1Image(voxels, None, dtype=voxels.dtype)
    image.header.set_xyzt_units("mm")
    # Twice, for both have single precision: what is read back the second time is what a third time would write.
    for _ in range(2):
        image.set_qform(affine, code="scanner")  # sets the voxel sizes, too
        image.set_sform(image.get_qform(), code="scanner")
        affine = image.affine
    return image


@dataclass
class Case:
    """An image (x, y, z) or (x, y, z, channel) with its mask (x, y, z) or (x, y, z, 1), and what :data:`CHECKS` asks of them."""

    image_file: Path
    mask_file: Path
    channel: int  # the one to take
    channels: int | None  # how many the image must have; None: any number
    values: Sequence[int]  # of the gland in the mask
    known: Sequence[int] | None  # values that may occur; None: all whole numbers

    image = cached_property(lambda case: read(case.image_file))
    mask = cached_property(lambda case: read(case.mask_file))
    found = property(lambda case: (*case.image.shape, 1)[3])  # channels
    forms = property(lambda case: [case.image.header[f"{one}form_code"] > 0 for one in "sq"])  # is there one?
    affine = cached_property(lambda case: to_mm(case.image) @ case.image.affine)  # sform's, else qform's, else pixdim's
    sides = property(lambda case: np.linalg.norm(case.affine[:3, :3], axis=0))  # of a voxel, in mm
    gland = cached_property(lambda case: np.isin(np.rint(case.labels), case.values).astype(np.uint8))  # converted

    @cached_property
    def voxels(self) -> np.ndarray:  # as they are stored, before slope and intercept
        stored = self.image.dataobj.get_unscaled()
        return stored[..., self.channel] if stored.ndim == 4 else stored

    @cached_property
    def t2(self) -> nib.Nifti1Image:  # converted; neither rounded nor of another type
        image = one_geometry(self.voxels, self.affine)
        image.header.set_slope_inter(self.image.dataobj.slope, self.image.dataobj.inter)
        return image

    @cached_property
    def labels(self) -> np.ndarray:
        labels = np.asanyarray(self.mask.dataobj)
        return labels[..., 0] if labels.ndim == 4 and labels.shape[-1] == 1 else labels

    @property
    def other(self) -> np.ndarray:  # what the header says a second time: by the qform, else with the sides of pixdim
        header, mm, (sform, qform) = self.image.header, to_mm(self.image), self.forms
        if sform and qform:
            return mm @ header.get_qform()
        sides = mm[0, 0] * np.abs(header["pixdim"][1:4]) if sform else self.sides
        return self.affine @ np.diag([*(sides / self.sides), 1.0])


def _axes(affine: np.ndarray) -> str:
    return "".join(map(str, nib.aff2axcodes(affine)))


def _other_axes(case: Case) -> str | bool:
    """The axes of both forms, where one of them points elsewhere."""
    first, second = case.affine[:3, :3], case.other[:3, :3]
    same_way = (first * second).sum(axis=0) / np.linalg.norm(first, axis=0) / np.linalg.norm(second, axis=0)
    turned = all(case.forms) and not same_way.min() > math.cos(math.pi / 4)
    return turned and f"{_axes(case.affine)} and {_axes(case.other)}"


def _apart(first: np.ndarray, second: np.ndarray, case: Case, limit: float) -> float:
    """How far apart in mm two affines put the corners of the volume, at most, where that is above the limit; else 0."""
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in case.voxels.shape], [1], indexing="ij")).reshape(4, -1)
    apart = float(np.linalg.norm(((first - second) @ corners)[:3], axis=0).max())
    return 0 if apart <= limit else apart


def _unknown(case: Case) -> str:
    """The values that may occur, and those that do and may not."""
    values, known = np.unique(case.labels), case.known
    whole = np.rint(values)
    wrong = values[~((np.abs(values - whole) <= ROUNDING) & np.isin(whole, whole if known is None else known))]
    shown = ", ".join(map(str, wrong[:5])) + (", …" if len(wrong) > 5 else "")
    return f"{', '.join(map(str, known or ['whole numbers']))}: {shown}" if shown else ""


def _same_mean(case: Case) -> bool:
    inside, outside = case.voxels[case.gland > 0], case.voxels[case.gland == 0]
    return inside.size and outside.size and inside.mean(dtype=float) == outside.mean(dtype=float)


REFUSE, REMARK = True, False
CHECKS = (
    # About what it is, what it says, what is asked of a case (the answer fills {}), and what becomes of a yes.
    ("image", "has shape {c.image.shape}; a 3D image or a 4D one with channels last is needed",
     lambda c: c.image.ndim not in (3, 4), REFUSE),
    ("image", "has {c.found} channel(s), not {c.channels} as dataset.json or the first case says",
     lambda c: c.channels not in (None, c.found), REFUSE),
    ("image", "has {c.found} channel(s), so there is no channel {c.channel}", lambda c: c.channel >= c.found, REFUSE),
    ("image", "{} voxels are NaN or infinite", lambda c: int((~np.isfinite(c.voxels)).sum()), REFUSE),
    ("image", "its affine is not finite", lambda c: not np.isfinite(c.affine).all(), REFUSE),
    ("image", "its affine is singular: {} puts all voxels into one plane",
     lambda c: abs(np.linalg.det(c.affine[:3, :3])) <= 1e-3 * c.sides.prod() and c.affine[:3, :3].tolist(), REFUSE),
    ("image", "its voxels are {} mm; a scan's are 0.1 to 10 mm, so mend its header",
     lambda c: (c.sides.min() < 0.1 or c.sides.max() > 10) and " × ".join(f"{side:g}" for side in c.sides), REFUSE),
    ("image", "its sform and qform contradict each other, with axes {}; replace the wrong one", _other_axes, REFUSE),
    ("image", "it has neither sform nor qform: its pixdim was used, and for the axes a guess, {}",
     lambda c: not any(c.forms) and _axes(c.affine), REMARK),
    ("image", "its sform was used; its qform or pixdim puts voxels up to {:.3g} mm away",
     lambda c: _apart(c.affine, c.other, c, c.sides.min() / 10), REMARK),
    ("image", "its header's unit, {:g} mm, was converted to mm", lambda c: (mm := to_mm(c.image)[0, 0]) != 1 and mm, REMARK),
    ("image", "its axes are not at right angles (a sheared affine); resample it to a straight grid",
     lambda c: _apart(c.t2.affine, c.affine, c, min(c.t2.header.get_zooms()) / 10), REFUSE),
    ("mask", "labels outside {}", _unknown, REFUSE),
    ("both", "has shape {c.gland.shape}, its image {c.voxels.shape}", lambda c: c.gland.shape != c.voxels.shape, REFUSE),
    ("both", "its affine puts it up to {:.3g} mm away from its image",
     lambda c: _apart(c.t2.affine, to_mm(c.mask) @ c.mask.affine, c, APART_MM), REFUSE),
    # This may be right and often is not.
    ("both", "all voxels of the image are equal", lambda c: c.voxels.min() == c.voxels.max(), REMARK),
    ("both", "the image is equal to its mask",
     lambda c: np.array_equal(c.voxels > 0, c.gland > 0) and len(np.unique(c.voxels)) <= 3, REMARK),
    ("both", "the mask is empty", lambda c: not c.gland.any(), REMARK),
    ("both", "the mask fills the whole volume", lambda c: c.gland.all(), REMARK),
    ("both", "the mask touches the border of the volume", lambda c: any(c.gland.take((0, -1), k).any() for k in range(3)), REMARK),
    ("both", "the image's mean in the mask is exactly that outside", _same_mean, REMARK),
)  # fmt: skip


def examine(case: Case) -> tuple[dict[str, str], list[str]]:
    """What a case is refused for, the first thing about each of its files; and what is remarked about it."""
    refused, remarks = {}, []
    for about, says, asks, refuse in CHECKS:
        if about in refused or (about == "both" and refused):
            continue
        try:
            answer = asks(case)
            said = says.format(answer, c=case) if answer else ""
        except ValueError as error:  # a file that cannot be read
            said, refuse = str(error), REFUSE
        if said and refuse:
            refused[about] = f"{case.image_file if about == 'image' else case.mask_file}: {said}"
        elif said:
            remarks.append(said)
    return refused, remarks
