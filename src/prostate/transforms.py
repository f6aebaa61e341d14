"""From a hospital's NIfTI pair to what the 3D U-Net sees: the part that never changes (cached on disk) and the random part.

Hospitals differ in field of view, voxel size, coil and intensity scale. What can be undone is undone for every case in the same
way (:func:`preparation`): orientation, voxel size, field of view, intensity range. What cannot be undone, the network has to
learn to ignore, so training varies it at random (:func:`augmentation`): shading by the coil, contrast, blur, noise, size and pose.
"""

import contextlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.data import DataLoader, Dataset, MetaTensor, PersistentDataset
from monai.transforms import (
    CenterSpatialCrop,
    Compose,
    MapTransform,
    NormalizeIntensity,
    Orientationd,
    RandAdjustContrastd,
    RandAffined,
    RandBiasFieldd,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    ScaleIntensityRangePercentilesd,
    SelectItemsd,
    Spacingd,
    SpatialPadd,
    ToTensord,
    Transform,
)
from scipy import ndimage

from data_scripts.nifti import intensities, read_image, read_mask
from src.common.errors import CourseError, first_line
from src.common.files import stamp
from src.prostate.card import Settings

VERSION = 3
"""Changes whenever :func:`preparation` gives other volumes for the same settings, so that an older cache is not used."""

BOTH = ("image", "label")


def case_name(item: Mapping) -> str:
    """The name of a case: its image's file name without ``.nii.gz``."""
    return Path(item["image"]).name.removesuffix(".gz").removesuffix(".nii")


class LoadCase(Transform):
    """Load one item's ``image`` and, where there is one, ``label``, as ``(1, x, y, z)`` float volumes; adds ``case``.

    Read as the conversion reads, whoever made the files: MONAI's own reader believes another of a file's geometries.

    Raises:
        CourseError: names the site and the file that is missing, unreadable, not three-dimensional, or does not fit its image.
    """

    def __call__(self, item: Mapping) -> dict:
        loaded, site = {**item, "case": case_name(item)}, f"{item['site']}: " if item.get("site") else ""
        for key in filter(item.get, BOTH):
            file = Path(item[key])
            try:
                if key == "image":
                    image, channels, remarks = read_image(file, 0, None)
                    if channels > 1:
                        raise ValueError(f"has {channels} channels where one 3D volume is needed")
                    voxels = intensities(image)
                    for remark in remarks:
                        _warn(item, f"{file}: {remark}")
                else:
                    voxels = read_mask(file, [1], [0, 1], image)
            except ValueError as error:
                raise CourseError(
                    f"{site}{file}: {error}. Convert the case again, or take it out of the datalist.",
                    "an image cannot be used" if key == "image" else "a mask cannot be used",
                ) from None
            loaded[key] = MetaTensor(torch.from_numpy(voxels).float()[None], affine=torch.from_numpy(image.affine))
        return loaded


class SmoothBeforeCoarser(MapTransform):
    """Blur each axis that will be sampled more coarsely, so that fine noise does not come back as coarse noise (aliasing).

    The width follows scikit-image's ``resize``: a standard deviation of ``(new / old - 1) / 2`` old voxels.

    Args:
        keys: volumes ``(1, x, y, z)`` with an affine.
        spacing: new voxel size in mm (x, y, z).
    """

    def __init__(self, keys, spacing: Sequence[float]):
        super().__init__(keys)
        self.spacing = tuple(spacing)

    def __call__(self, data: Mapping) -> dict:
        data = dict(data)
        for key in self.key_iterator(data):
            old = data[key].pixdim.tolist()
            sigma = [max(0.0, (new / mm - 1) / 2) for new, mm in zip(self.spacing, old, strict=True)]
            # Not MONAI's filter: it takes what lies beyond the volume for zero, and darkens the rim.
            smooth = ndimage.gaussian_filter(data[key].numpy(), (0, *sigma), mode="nearest")
            data[key] = MetaTensor(torch.from_numpy(smooth), meta=data[key].meta)
        return data


class CorrectCoil(MapTransform):
    """Divide an image by a heavily blurred copy of itself, which takes a coil's falloff for what is smooth and removes it.

    The low-pass correction of surface-coil images of Axel et al., *Intensity Correction in Surface-Coil MR Imaging*, AJR 148:418
    (1987): 50 ms a volume, where N4 needs seconds. Large bright or dark organs lose some of their contrast, too.

    Args:
        keys: volumes ``(1, x, y, z)`` with an affine.
        width: standard deviation of the blur in mm; 0 leaves the image as it is.
    """

    FLOOR = 0.1
    """Added to the blurred copy, as a share of its mean, so that noise far from the coil is not blown up."""

    def __init__(self, keys, width: float):
        super().__init__(keys)
        self.width = width

    def __call__(self, data: Mapping) -> dict:
        data = dict(data)
        for key in self.key_iterator(data) if self.width else ():
            sigma = [0, *(self.width / mm for mm in data[key].pixdim.tolist())]
            smooth = ndimage.gaussian_filter(data[key].numpy(), sigma, mode="nearest")
            even = data[key].numpy() / np.maximum(smooth + self.FLOOR * smooth.mean(), np.finfo(np.float32).tiny)
            data[key] = MetaTensor(torch.from_numpy(even), meta=data[key].meta)
        return data


class CropToField(Transform):
    """Keep the box around the centre of image and mask; warn, with the name of the case, if that cuts the gland.

    The gland lies within a few centimetres of the centre of a prostate scan, because that is where the scan was pointed.

    Args:
        size: size of the box in voxels (x, y, z); -1 keeps an axis whole.
    """

    def __init__(self, size: Sequence[int]):
        self.crop = CenterSpatialCrop(tuple(size))

    def __call__(self, data: Mapping) -> dict:
        cropped = {**data, **{key: self.crop(data[key]) for key in BOTH if key in data}}
        if "label" in data:
            whole, kept = float(data["label"].sum()), float(cropped["label"].sum())
            if not whole:
                _warn(data, f"the mask of {data['case']} is empty; the case trains as one without a gland")
            elif kept < whole:
                lost = 1 - kept / whole
                _warn(
                    data,
                    f"the box around the image's centre cuts {lost:.1%} of the gland of {data['case']}; enlarge field_of_view",
                )
        return cropped


def _warn(item: Mapping, what: str) -> None:
    warnings.warn(f"{item['site']}: {what}" if item.get("site") else what, stacklevel=3)


class ToPlainTensors(Transform):
    """What is kept: ``image`` float32, ``label`` uint8, both ``(1, x, y, z)``, ``affine`` ``(4, 4)``, ``case``."""

    def __call__(self, data: Mapping) -> dict:
        kept = {"case": data["case"], "affine": torch.as_tensor(data["image"].affine, dtype=torch.float64)}
        kept["image"] = data["image"].as_tensor().float().contiguous()
        if "label" in data:
            kept["label"] = data["label"].as_tensor().to(torch.uint8).contiguous()
        return kept


class HalfOf(MapTransform):
    """A linearly resampled mask back to 0 and 1: a mask that is cut at one half keeps its outline smooth."""

    def __call__(self, data: Mapping) -> dict:
        return {**data, **{key: data[key] > 0.5 for key in self.key_iterator(data)}}


def preparation(settings: Settings) -> Compose:
    """The part that is the same each time: from the files of a case to volumes of equal orientation, voxel size and range.

    1. Orientation: x to the patient's right, y to the front, z upwards (RAS), whatever way the scanner stored it.
    2. Voxel size: linear for both.
    3. Field of view: the box around the centre.
    4. Coil: its falloff is divided out, where the settings give a width.
    5. Intensity: T2 signal has no unit, and next to an endorectal coil it is many times brighter. The range between two
       percentiles inside the box becomes 0 to 1, so that a few bright voxels do not set the scale.
    6. Padding to at least one patch.
    """
    sides = zip((*settings.field_of_view, 0), settings.voxel_spacing, strict=True)
    keep = [round(mm / size) if mm else -1 for mm, size in sides]
    some = {"allow_missing_keys": True}
    return Compose(
        [
            LoadCase(),
            Orientationd(BOTH, axcodes="RAS", labels=None, **some),
            SmoothBeforeCoarser("image", settings.voxel_spacing),
            Spacingd(BOTH, pixdim=settings.voxel_spacing, mode="bilinear", padding_mode="border", **some),
            HalfOf("label", **some),
            CorrectCoil("image", settings.coil_correction),
            CropToField(keep),
            ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0.0, 1.0, clip=True, channel_wise=True),
            SpatialPadd(BOTH, spatial_size=settings.patch_size, **some),
            ToPlainTensors(),
        ]
    )


class Normalise(MapTransform):
    """Mean 0 and spread 1 over the volume; the last step before the network, always.

    Over all voxels, also those that the percentiles of :func:`preparation` have set to 0: these are the darkest ones, not
    background, and belong a spread or two below the mean.

    Works on a copy: MONAI's transform writes into the volume that it is given, which is the one kept for the next epoch.
    """

    def __init__(self):
        super().__init__("image")
        self.normalise = NormalizeIntensity(channel_wise=True)

    def __call__(self, data: Mapping) -> dict:
        return {**data, "image": self.normalise(data["image"].clone())}


def augmentation(settings: Settings) -> Compose:
    """The random part, drawn anew for every patch.

    First what the scanner does to the whole volume (shading, contrast, blur), on the 0 to 1 range, where a multiplicative
    field means what it does in physics. Then the normalisation, then a patch, then flips, rotation, shift, scale and noise.
    Left and right are alike in a pelvis, so x may flip; up and down, front and back are not.
    """
    patch = RandCropByPosNegLabeld(BOTH, "label", settings.patch_size, pos=3, neg=1, num_samples=1)
    to_batch = [SelectItemsd(BOTH), ToTensord(BOTH, track_meta=False)]
    if not settings.augmentation:
        return Compose([Normalise(), patch, *to_batch])
    return Compose(
        [
            RandBiasFieldd("image", degree=2, coeff_range=(-0.4, 0.4), prob=0.25),
            RandAdjustContrastd("image", gamma=(0.6, 1.7), prob=0.25),
            RandGaussianSmoothd("image", sigma_x=(0.3, 1.0), sigma_y=(0.3, 1.0), sigma_z=(0.1, 0.3), prob=0.1),
            Normalise(),
            patch,
            RandFlipd(BOTH, spatial_axis=0, prob=0.5),
            RandAffined(
                BOTH,
                prob=0.5,
                rotate_range=(0.1, 0.1, 0.2),
                translate_range=(5, 5, 1),
                scale_range=(0.15, 0.15, 0.1),
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
            RandGaussianNoised("image", std=0.2, prob=0.2),
            *to_batch,
        ]
    )


def prepare(items: Sequence[Mapping], settings: Settings, cache: Path | None = None) -> list[dict]:
    """The prepared volumes of all items; see :class:`ToPlainTensors` for the keys. A volume takes about 1 MB of memory.

    Args:
        items: ``image``, ``label`` (optional) and ``site`` (optional) of each case, with absolute paths.
        settings: of the study.
        cache: folder in which MONAI's ``PersistentDataset`` keeps the volumes for the next run; a file or a setting that changed
            is prepared anew. Where it cannot be written, or a file in it is damaged, a warning says so, the cache is emptied,
            and the volumes are prepared in memory.

    Raises:
        CourseError: names the site and the file of the first case that cannot be used.
    """
    made_with = [VERSION, settings.coil_correction, settings.voxel_spacing, settings.field_of_view, settings.patch_size]
    keyed = []
    for item in items:
        files = [Path(item[key]) for key in BOTH if item.get(key)]
        # The cache's file names are made from all that an item holds: what changes any of this asks for another file.
        keyed.append({**item, "made": [made_with, [stamp(file) for file in files if file.is_file()]]})
    try:
        return _all(PersistentDataset(keyed, preparation(settings), cache_dir=cache))
    except Exception as error:  # a damaged file alone gives five kinds of error, depending on where it ends
        if cache is None or isinstance(error, CourseError):
            raise
        warnings.warn(f"cannot use the cache {cache} ({first_line(error)}); preparing in memory.", stacklevel=2)
        for kept in Path(cache).glob("*.pt"):
            with contextlib.suppress(OSError):
                kept.unlink()
        return _all(PersistentDataset(keyed, preparation(settings), cache_dir=None))


def _all(data: Dataset) -> list[dict]:
    try:
        return [data[index] for index in range(len(data))]
    except RuntimeError as error:
        # MONAI's Compose wraps what a transform raises.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, CourseError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from error
        raise


def batches(prepared: Sequence[dict], settings: Settings, train: bool, seed: int = 0) -> Iterable[dict]:
    """Batches as a MONAI ``DataLoader``: of augmented patches, one of every case an epoch, or of whole normalised volumes.

    Args:
        prepared: of :func:`prepare`.
        settings: batch size, patch size, augmentation.
        train: patches, in another order in each epoch; else whole volumes, one at a time.
        seed: fixes the order and the augmentation of all epochs.

    Returns:
        An iterable of ``{"image": float32 (batch, 1, x, y, z), "label": uint8 of the same shape}``.

    Raises:
        CourseError: if there is nothing to train on.
    """
    if not train:
        return DataLoader(
            Dataset(prepared, Compose([Normalise(), SelectItemsd(BOTH, allow_missing_keys=True)])), batch_size=1
        )
    if not prepared:
        raise CourseError("There is no case to train on; give the site at least one.", "it has nothing to train on")
    return DataLoader(
        Dataset(prepared, augmentation(settings)),
        batch_size=settings.batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),  # MONAI's loader seeds the random transforms from it, too
    )
