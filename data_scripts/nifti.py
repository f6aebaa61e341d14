"""NIfTI files of a case: read and check them, and give image and mask one geometry that every reader believes.

A NIfTI file may say three times where its voxels lie: by its sform, its qform and its voxel sizes (pixdim). Programs differ in
which they believe: https://nifti.nimh.nih.gov/nifti-1/documentation/nifti1fields/nifti1fields_pages/qsform.html

All functions raise a ``ValueError`` that says what is wrong with the file.
"""

import gzip
import math
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

APART_MM = 0.1  # well under a voxel, well above what float32 affines lose on their way through other software
ROUNDING = 1e-4  # what a slope or a change of type does to whole numbers
UNIT_IN_MM = {1: 1000.0, 3: 0.001}  # metres, micrometres; all else is mm, or not said and then taken for mm


def read(file: Path) -> tuple[nib.Nifti1Image, np.ndarray]:
    """A NIfTI file and its voxels as they are stored, before slope and intercept.

    Unlike ``nib.load`` this reads to the end and reaches the gzip checksum, so that bit errors are seen, too.
    """
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
        stored = image.dataobj.get_unscaled()
    except Exception as error:  # a damaged file makes gzip, zlib, numpy and nibabel raise a dozen kinds
        if said := getattr(error, "strerror", None):  # of the operating system
            raise ValueError(f"cannot be read: {said}") from error
        said = str(error) or type(error).__name__
        raise ValueError(f"cannot be read as NIfTI, it may be damaged ({said})") from error
    if not (np.issubdtype(stored.dtype, np.integer) or np.issubdtype(stored.dtype, np.floating)):
        raise ValueError(f"its voxels are {stored.dtype}, not single numbers")
    return image, stored


def apart(first: np.ndarray, second: np.ndarray, shape: Sequence[int]) -> float:
    """How far apart in mm two affines (4, 4) put the corners of a volume (x, y, z), at most."""
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shape[:3]], [1], indexing="ij")).reshape(4, -1)
    return float(np.linalg.norm(((first - second) @ corners)[:3], axis=0).max())


def to_mm(image: nib.Nifti1Image) -> np.ndarray:
    """(4, 4) that turns the header's unit of length into mm."""
    return np.diag([UNIT_IN_MM.get(int(image.header["xyzt_units"]) % 8, 1.0)] * 3 + [1.0])


def geometry(image: nib.Nifti1Image) -> tuple[np.ndarray, list[str]]:
    """Affine (4, 4) from voxels to mm, by the sform, else by the qform, else by pixdim; and remarks on what contradicts it.

    Refused are singular affines, voxels smaller than 0.1 mm or larger than 10 mm, and a sform and a qform whose axes point into
    different directions.
    """
    header, mm = image.header, to_mm(image)
    affine = mm @ image.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all():
        raise ValueError("its affine is not finite")
    if abs(np.linalg.det(affine[:3, :3])) <= 1e-3 * spacing.prod():
        raise ValueError(f"its affine is singular: {affine[:3, :3].tolist()} puts all voxels into one plane")
    if spacing.min() < 0.1 or spacing.max() > 10:
        sides = " × ".join(f"{side:g}" for side in spacing)
        raise ValueError(f"its voxels are {sides} mm; a scan's are 0.1 to 10 mm, so mend its header")

    other, remarks = affine, []
    if header["sform_code"] > 0 and header["qform_code"] > 0:
        other = mm @ header.get_qform()
        same_way = (affine[:3, :3] * other[:3, :3]).sum(axis=0) / spacing / np.linalg.norm(other[:3, :3], axis=0)
        if not same_way.min() > math.cos(math.pi / 4):
            axes = " and ".join("".join(map(str, nib.aff2axcodes(one))) for one in (affine, other))
            raise ValueError(f"its sform and qform contradict each other, with axes {axes}; replace the wrong one")
    elif header["sform_code"] > 0:  # then pixdim says the voxel sizes a second time
        other = affine @ np.diag([*(mm[0, 0] * np.abs(header["pixdim"][1:4]) / spacing), 1.0])
    elif not header["qform_code"] > 0:
        axes = "".join(nib.aff2axcodes(affine))
        remarks.append(f"it has neither sform nor qform: its pixdim was used, and for the axes a guess, {axes}")
    if not (distance := apart(affine, other, image.shape)) <= spacing.min() / 10:
        remarks.append(f"its sform was used; its qform or pixdim puts voxels up to {distance:.3g} mm away")
    if mm[0, 0] != 1:
        remarks.append(f"its header's unit, {mm[0, 0]:g} mm, was converted to mm")
    return affine, remarks


def one_geometry(voxels: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """Voxels (x, y, z) of any type with ``affine`` as sform, qform and voxel sizes, in mm, and nothing else in the header.

    A sheared affine is refused: a qform cannot hold it, so that readers would differ.
    """
    image = nib.Nifti1Image(voxels, None, dtype=voxels.dtype)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code="scanner")  # sets the voxel sizes, too
    image.set_sform(image.get_qform(), code="scanner")  # read back, for the qform has single precision
    if apart(image.affine, affine, image.shape) > min(image.header.get_zooms()) / 10:
        raise ValueError("its axes are not at right angles (a sheared affine); resample it to a straight grid")
    return image


def read_image(file: Path, channel: int, channels: int | None) -> tuple[nib.Nifti1Image, int, list[str]]:
    """One channel of a file (x, y, z) or (x, y, z, channel), its intensities as given; how many there are; remarks on its geometry.

    ``channels`` is how many there must be, if that is known.
    """
    image, stored = read(file)
    if stored.ndim not in (3, 4):
        raise ValueError(f"has shape {stored.shape}; a 3D image or a 4D one with channels last is needed")
    stored = stored if stored.ndim == 4 else stored[..., np.newaxis]
    found = stored.shape[-1]
    if found != (channels or found):
        raise ValueError(f"has {found} channel(s), not {channels} as dataset.json or the first case says")
    if channel >= found:
        raise ValueError(f"has {found} channel(s), so there is no channel {channel}")
    voxels = stored[..., channel]
    if not np.isfinite(voxels).all():
        raise ValueError(f"{int((~np.isfinite(voxels)).sum())} voxels are NaN or infinite")
    affine, remarks = geometry(image)
    t2 = one_geometry(voxels, affine)
    t2.header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)  # no rounding, no change of type
    return t2, found, remarks


def intensities(image: nib.Nifti1Image) -> np.ndarray:
    """What the voxels of :func:`read_image` mean: float32 (x, y, z), after slope and intercept."""
    slope, inter = image.header.get_slope_inter()
    return (np.asanyarray(image.dataobj) * (1.0 if slope is None else slope) + (inter or 0.0)).astype(np.float32)


def read_mask(
    file: Path, gland: Sequence[int], known: Sequence[int] | None, image: nib.Nifti1Image | None
) -> np.ndarray:
    """Where a mask (x, y, z) or (x, y, z, 1) has one of the values ``gland``, as uint8 0 and 1, (x, y, z).

    ``known`` are the values that may occur (None: any), ``image`` is the one whose grid it must have (None: any).
    """
    mask, _ = read(file)
    labels = np.asanyarray(mask.dataobj)
    labels = labels[..., 0] if labels.ndim == 4 and labels.shape[-1] == 1 else labels
    values = np.unique(labels)
    whole = np.rint(values)
    wrong = values[~((np.abs(values - whole) <= ROUNDING) & np.isin(whole, whole if known is None else known))]
    if len(wrong):
        shown = ", ".join(map(str, wrong[:5])) + (", …" if len(wrong) > 5 else "")
        raise ValueError(f"labels outside {', '.join(map(str, known or ['whole numbers']))}: {shown}")
    inside = np.isin(np.rint(labels), gland)
    if image is not None and inside.shape != image.shape:
        raise ValueError(f"has shape {inside.shape}, its image {image.shape}")
    if image is not None and not (mm := apart(image.affine, to_mm(mask) @ mask.affine, image.shape)) <= APART_MM:
        raise ValueError(f"its affine puts it up to {mm:.3g} mm away from its image")
    return inside.astype(np.uint8)


def suspicious(voxels: np.ndarray, gland: np.ndarray) -> list[str]:
    """What may be right and often is not, about the contents of an image and its mask, both (x, y, z)."""
    inside, outside = voxels[gland > 0], voxels[gland == 0]
    checks = {
        "all voxels of the image are equal": voxels.min() == voxels.max(),
        "the image is equal to its mask": np.array_equal(voxels > 0, gland > 0) and len(np.unique(voxels)) <= 3,
        "the mask is empty": not inside.size,
        "the mask fills the whole volume": not outside.size,
        "the mask touches the border of the volume": any(gland.take((0, -1), axis).any() for axis in range(3)),
        "the image's mean in the mask is exactly that outside": inside.size
        and outside.size
        and inside.mean(dtype=float) == outside.mean(dtype=float),
    }
    return [what for what, is_so in checks.items() if is_so]
