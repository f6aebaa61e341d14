"""From a converted pair of NIfTI files to what the 3D U-Net sees: a part that never changes (cached on disk) and a random part.

Hospitals differ in field of view, voxel size, coil and intensity scale. What can be undone is undone for every case in the same way
(:func:`preparation`). What cannot be undone, the network has to learn to ignore: training varies it (:func:`augmentation`)."""

import contextlib
import gzip
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import monai.transforms as mt
import nibabel as nib
import numpy as np
import torch
from monai.data import DataLoader, Dataset, MetaTensor, PersistentDataset
from monai.utils import convert_to_dst_type
from scipy import ndimage

from src.common.datalists import plain_item
from src.common.errors import CourseError, first_line
from src.common.files import stamp
from src.prostate.card import CARD, Settings

VERSION = 4  # changes whenever preparation() gives other volumes for the same settings: an older cache is not used
BOTH = ("image", "label")


def case_name(item: Mapping) -> str:
    """The name of a case: its image's file name without ``.nii.gz``."""
    return Path(item["image"]).name.removesuffix(".gz").removesuffix(".nii")


class LoadCase(mt.Transform):
    """MONAI's ``LoadImaged`` for an item's ``image`` and, where it has one, ``label``: ``(1, x, y, z)`` float32; adds ``case``. A
    ``CourseError`` names what was not converted: where one header says two things, programs believe different ones."""

    def __call__(self, item: Mapping) -> dict:
        loaded = {**(plain_item(item, CARD.classes) if "label" in item else item), "case": case_name(item)}
        for key in filter(item.get, BOTH):
            try:
                gzip.decompress(Path(item[key]).read_bytes())  # to its end, where the checksum is: nibabel stops before
                loaded |= mt.LoadImaged(key, reader="NibabelReader", ensure_channel_first=True)({key: item[key]})
                wrong = _not_converted(nib.load(item[key]).header, loaded[key], loaded["image"], key)
            except Exception as error:  # a damaged file makes gzip, zlib, nibabel and MONAI raise a dozen kinds
                said = getattr(error, "strerror", None) or f"it may be damaged, {first_line(error)}"
                wrong = [f"cannot be read: {said}"]
            if wrong:
                what = "convert it with data_scripts/data_conversion.sh first, or take it out of the datalist."
                kind = {"image": "an image cannot be used", "label": "a mask cannot be used"}[key]
                raise CourseError(f"{item.get('site') or 'here'}: {item[key]}: {wrong[0]}; {what}", kind)
        return loaded


def _not_converted(header: nib.Nifti1Header, volume: MetaTensor, image: MetaTensor, key: str) -> list[str]:
    shape, said = header.get_data_shape(), (header["sform_code"], header["qform_code"], header.get_xyzt_units()[0])
    checks = {
        f"its voxels are {header.get_data_dtype()}, not single numbers": header.get_data_dtype().kind not in "iuf",
        f"has shape {shape} where one 3D volume is needed": len(shape) != 3,
        f"has shape {shape}, its image {tuple(image.shape[1:])}": volume.shape != image.shape,
        "its sform and qform are not one geometry in mm": said != (1, 1, "mm")
        or not np.allclose(header.get_sform(), header.get_qform(), rtol=0, atol=1e-4),
        "its affine is not that of its image": not np.allclose(volume.affine, image.affine, rtol=0, atol=1e-4),
        "has voxels that are NaN or infinite": not torch.isfinite(volume).all(),
        "has other values than 0 and 1": key == "label" and not ((volume == 0) | (volume == 1)).all(),
    }
    return [what for what, is_so in checks.items() if is_so]


def smooth_before_coarser(image: MetaTensor, spacing: Sequence[float]) -> MetaTensor:
    """Blur each axis that will be sampled more coarsely, so that fine noise does not come back as coarse noise (aliasing), as wide
    as scikit-image's ``resize``, a standard deviation of ``(new / old - 1) / 2`` voxels. ``spacing`` is the new one, in mm."""
    sigma = np.maximum(0, (np.array(spacing) / image.pixdim.numpy() - 1) / 2)
    # Not MONAI's filter: it takes what lies beyond the volume for zero, and darkens the rim.
    return convert_to_dst_type(ndimage.gaussian_filter(image.numpy(), (0, *sigma), mode="nearest"), image)[0]


def crop_to_field(data: Mapping, size: Sequence[int]) -> dict:
    """Keep ``size`` voxels (x, y, z; -1: all) around the centre, where the scan was pointed; warn where that cuts the gland."""
    crop, case = mt.CenterSpatialCrop(size), data["case"]
    cropped = {**data, **{key: crop(data[key]) for key in BOTH if key in data}}
    whole, kept = (float(one["label"].sum()) if "label" in one else 1.0 for one in (data, cropped))
    if lost := 1 - kept / whole if whole else 1:
        cuts = f"the box around the image's centre cuts {lost:.1%} of the gland of {case}; enlarge field_of_view"
        empty = f"the mask of {case} is empty; the case trains as one without a gland"
        warnings.warn(f"{data.get('site') or 'here'}: {cuts if whole else empty}", stacklevel=2)
    return cropped


def plain_tensors(data: Mapping) -> dict:
    """What is kept: ``image`` float32, ``label`` uint8, both ``(1, x, y, z)``, ``affine`` ``(4, 4)``, ``case``."""
    kinds = {"image": torch.float32, "label": torch.uint8}
    kept = {key: data[key].as_tensor().to(kinds[key]).contiguous() for key in BOTH if key in data}
    return {"case": data["case"], "affine": torch.as_tensor(data["image"].affine, dtype=torch.float64), **kept}


def preparation(settings: Settings) -> mt.Compose:
    """The part that is the same each time: from the files of a case to volumes of equal orientation, voxel size and range.

    Orientation: x to the patient's right, y to the front, z upwards (RAS), whatever way the scanner stored it; voxel size, linear
    for both; the box around the centre. T2 signal has no unit, and next to an endorectal coil it is many times brighter: the range
    between two percentiles inside the box becomes 0 to 1. Last, padding to at least one patch."""
    sides = zip((*settings.field_of_view, 0), settings.voxel_spacing, strict=True)
    size = [round(mm / voxel) if mm else -1 for mm, voxel in sides]
    some = {"allow_missing_keys": True}
    steps = [
        LoadCase(),
        mt.Orientationd(BOTH, axcodes="RAS", labels=None, **some),
        mt.Lambdad("image", lambda image: smooth_before_coarser(image, settings.voxel_spacing)),
        # A linearly resampled mask that is cut at one half keeps its outline smooth.
        mt.Spacingd(BOTH, pixdim=settings.voxel_spacing, mode="bilinear", padding_mode="border", **some),
        mt.Lambdad("label", lambda mask: mask > 0.5, **some),
        mt.Lambda(lambda data: crop_to_field(data, size)),
        mt.ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0.0, 1.0, clip=True, channel_wise=True),
        mt.SpatialPadd(BOTH, spatial_size=settings.patch_size, **some),
        mt.Lambda(plain_tensors),
    ]
    return mt.Compose(steps)


def normalise(data: Mapping) -> dict:
    """Mean 0 and spread 1 over all voxels, always: those that the percentiles set to 0 are the darkest ones, not background."""
    # MONAI writes into the volume that it is given, and this one is kept for the next epoch.
    return {**data, "image": mt.NormalizeIntensity(channel_wise=True)(data["image"].clone())}


def augmentation(settings: Settings) -> mt.Compose:
    """The random part, drawn anew for every patch.

    First what the scanner does to the whole volume (shading, contrast, blur), on the 0 to 1 range, where a multiplicative field
    means what it does in physics; then, normalised, a patch. Left and right are alike in a pelvis: x may flip, y and z may not."""
    patch = mt.RandCropByPosNegLabeld(BOTH, "label", settings.patch_size, pos=3, neg=1, num_samples=1)
    pose = {"rotate_range": (0.1, 0.1, 0.2), "translate_range": (5, 5, 1), "scale_range": (0.15, 0.15, 0.1)}
    before = [
        mt.RandBiasFieldd("image", degree=2, coeff_range=(-0.4, 0.4), prob=0.25),
        mt.RandAdjustContrastd("image", gamma=(0.6, 1.7), prob=0.25),
        mt.RandGaussianSmoothd("image", sigma_x=(0.3, 1.0), sigma_y=(0.3, 1.0), sigma_z=(0.1, 0.3), prob=0.1),
    ]
    after = [
        mt.RandFlipd(BOTH, spatial_axis=0, prob=0.5),
        mt.RandAffined(BOTH, prob=0.5, **pose, mode=("bilinear", "nearest"), padding_mode="border"),
        mt.RandGaussianNoised("image", std=0.2, prob=0.2),
    ]
    steps = [*before, normalise, patch, *after] if settings.augmentation else [normalise, patch]
    return mt.Compose([*steps, mt.SelectItemsd(BOTH), mt.ToTensord(BOTH, track_meta=False)])


def prepare(items: Sequence[Mapping], settings: Settings, cache: Path | None = None) -> list[dict]:
    """The volumes of all items as :func:`plain_tensors`, 1 MB each. In the folder ``cache`` MONAI's ``PersistentDataset`` keeps
    them until a file or a setting changes; where it cannot be used, a warning says so, and it is emptied."""
    made_with = [VERSION, settings.voxel_spacing, settings.field_of_view, settings.patch_size]
    keyed = []  # the cache's file names are made from all that an item holds: what changes any of this asks for another file
    for item in items:
        files = filter(Path.is_file, (Path(str(item[key])) for key in BOTH if item.get(key)))
        keyed.append({**item, "made": [made_with, *map(stamp, files)]})
    try:
        return list(PersistentDataset(keyed, preparation(settings), cache_dir=cache))
    except Exception as error:  # a damaged file of the cache alone gives five kinds, depending on where it ends
        cause = error
        while cause and not isinstance(cause, CourseError):
            cause = cause.__cause__  # MONAI's Compose wraps what a transform raises
        if cause or cache is None:
            raise (cause or error) from None
        warnings.warn(f"cannot use the cache {cache} ({first_line(error)}); preparing in memory.", stacklevel=2)
        for kept in Path(cache).glob("*.pt"):
            with contextlib.suppress(OSError):
                kept.unlink()
        return prepare(items, settings)


def batches(prepared: Sequence[dict], settings: Settings, train: bool, seed: int = 0) -> Iterable[dict]:
    """Batches ``{"image": float32 (batch, 1, x, y, z), "label": uint8 of the same shape}``: whole volumes, one at a time, or, to
    ``train``, augmented patches, one of every case an epoch, in an order that ``seed`` fixes."""
    if train and not prepared:
        raise CourseError("There is no case to train on; give the site at least one.", "it has nothing to train on")
    plain = mt.Compose([normalise, mt.SelectItemsd(BOTH, allow_missing_keys=True)])
    data = Dataset(prepared, augmentation(settings) if train else plain)
    chance = torch.Generator().manual_seed(seed)  # MONAI's loader seeds the random transforms from it, too
    return DataLoader(data, batch_size=settings.batch_size if train else 1, shuffle=train, generator=chance)
