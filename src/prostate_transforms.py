"""From a hospital's NIfTI pair to what the 3D U-Net sees: the part that never changes (cached on disk) and the random part.

Hospitals differ in field of view, voxel size, coil and intensity scale. What can be undone is undone for every case in the same
way (:func:`preparation`): orientation, voxel size, field of view, intensity range. What cannot be undone, the network has to
learn to ignore, so training varies it at random (:func:`augmentation`): shading by the coil, contrast, blur, noise, size and pose.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from monai.data import MetaTensor, PersistentDataset
from monai.transforms import (
    CenterSpatialCrop,
    Compose,
    LoadImage,
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

from src.errors import CourseError
from src.prostate_settings import TrainSettings

VERSION = 1
"""Changes whenever :func:`preparation` gives other volumes for the same settings, so that an older cache is not used."""

BOTH = ("image", "label")


def case_name(item: Mapping) -> str:
    """The name of a case: its image's file name without ``.nii.gz``."""
    return Path(item["image"]).name.removesuffix(".gz").removesuffix(".nii")


class LoadCase(Transform):
    """Load one item's ``image`` and, where there is one, ``label``, as ``(1, x, y, z)`` float volumes.

    Keeps what else is in the item, adds ``case``.

    Raises:
        CourseError: names the site and the file that is missing, unreadable, not three-dimensional, or does not fit its image.
    """

    def __init__(self):
        self.load = LoadImage(reader="NibabelReader", image_only=True, ensure_channel_first=True)

    def __call__(self, item: Mapping) -> dict:
        volumes = {key: self._volume(item, key) for key in BOTH if item.get(key)}
        shapes = {key: tuple(volume.shape[1:]) for key, volume in volumes.items()}
        if len(set(shapes.values())) > 1:
            raise CourseError(
                f"{_of_site(item)}the mask {item['label']} has {_by(shapes['label'])} voxels, "
                f"its image {item['image']} has {_by(shapes['image'])}; convert this case again."
            )
        return {**item, **volumes, "case": case_name(item)}

    def _volume(self, item: Mapping, key: str) -> MetaTensor:
        path = Path(item[key])
        if not path.is_file():
            raise CourseError(f"{_of_site(item)}{path} is missing; check dataset_base_dir and the datalist.")
        try:
            volume = self.load(path)
        except Exception as error:  # each reader has its own kinds of error; all of them mean this
            raise CourseError(
                f"{_of_site(item)}cannot read {path} ({type(error).__name__}: {_first_line(error)}); "
                "replace the file, or take the case out of the datalist."
            ) from error
        if volume.ndim != 4 or volume.shape[0] != 1:
            raise CourseError(f"{_of_site(item)}{path} has shape {tuple(volume.shape)}; it must be one 3D volume.")
        if not torch.isfinite(volume).all():
            raise CourseError(f"{_of_site(item)}{path} holds NaN or infinity; replace the file.")
        return volume


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

    def __call__(self, data):
        data = dict(data)
        for key in self.key_iterator(data):
            old = data[key].pixdim.tolist()
            sigma = [max(0.0, (new / mm - 1) / 2) for new, mm in zip(self.spacing, old, strict=True)]
            if any(sigma):
                # Not MONAI's filter: it takes what lies beyond the volume for zero, and darkens the rim.
                smooth = ndimage.gaussian_filter(data[key].numpy(), (0, *sigma), mode="nearest")
                data[key] = MetaTensor(torch.from_numpy(smooth), meta=data[key].meta)
        return data


class CropToField(Transform):
    """Keep the box around the centre of image and mask; warn, with the name of the case, if that cuts the gland.

    The gland lies within a few centimetres of the centre of a prostate scan, because that is where the scan was pointed.

    Args:
        size: size of the box in voxels (x, y, z); -1 keeps an axis whole.
    """

    def __init__(self, size: Sequence[int]):
        self.size = tuple(size)
        self.crop = CenterSpatialCrop(self.size)

    def __call__(self, data):
        data = dict(data)
        for key in (key for key in BOTH if key in data):
            before = data[key]
            data[key] = self.crop(before)
            if key == "label":
                lost = 1 - float(data[key].sum()) / max(float(before.sum()), 1e-6) if before.any() else 0.0
                if lost > 0:
                    warnings.warn(
                        f"{_of_site(data)}the box around the image's centre cuts {lost:.1%} of the gland of "
                        f"{data['case']}; enlarge field_of_view in the training configuration.",
                        stacklevel=2,
                    )
        return data


class ToMask(MapTransform):
    """A linearly resampled mask back to 0 and 1. Warns, with the name of the case, if the mask is empty."""

    def __call__(self, data):
        data = dict(data)
        for key in self.key_iterator(data):
            data[key] = data[key] > 0.5
            if not data[key].any():
                warnings.warn(
                    f"{_of_site(data)}the mask of {data['case']} is empty; the case trains as one without a gland.",
                    stacklevel=2,
                )
        return data


class ToPlainTensors(Transform):
    """What is kept: ``image`` float32, ``label`` uint8, both ``(1, x, y, z)``, ``affine`` ``(4, 4)``, ``case``."""

    def __call__(self, data):
        kept = {"case": data["case"]}
        kept["affine"] = torch.as_tensor(data["image"].affine, dtype=torch.float64)
        kept["image"] = data["image"].as_tensor().float().contiguous()
        if "label" in data:
            kept["label"] = data["label"].as_tensor().to(torch.uint8).contiguous()
        return kept


def preparation(settings: TrainSettings) -> Compose:
    """The part that is the same each time: from the files of a case to volumes of equal orientation, voxel size and range.

    1. Orientation: x to the left, y to posterior, z to superior, whatever way the scanner stored it (here: RAS axes).
    2. Voxel size: linear for both; a mask that is resampled linearly and cut at one half keeps its outline smooth.
    3. Field of view: the box around the centre.
    4. Intensity: T2 signal has no unit, and next to an endorectal coil it is many times brighter. The range between two
       percentiles inside the box becomes 0 to 1, so that a few bright voxels do not set the scale.
    5. Padding to at least one patch.
    """
    keep = [
        round(mm / size) if mm else -1
        for mm, size in zip((*settings.field_of_view, 0), settings.voxel_spacing, strict=True)
    ]
    some = {"allow_missing_keys": True}
    return Compose(
        [
            LoadCase(),
            Orientationd(BOTH, axcodes="RAS", labels=None, **some),
            SmoothBeforeCoarser("image", settings.voxel_spacing),
            Spacingd(BOTH, pixdim=settings.voxel_spacing, mode="bilinear", padding_mode="border", **some),
            ToMask("label", **some),
            CropToField(keep),
            ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0.0, 1.0, clip=True, channel_wise=True),
            SpatialPadd(BOTH, spatial_size=settings.patch_size, **some),
            ToPlainTensors(),
        ]
    )


class Normalise(MapTransform):
    """Mean 0 and spread 1 over the voxels that are not background; the last step before the network, always.

    Works on a copy: MONAI's transform writes into the volume that it is given, which is the one kept for the next epoch.
    """

    def __init__(self):
        super().__init__("image")
        self.normalise = NormalizeIntensity(nonzero=True, channel_wise=True)

    def __call__(self, data):
        return {**data, "image": self.normalise(data["image"].clone())}


def augmentation(settings: TrainSettings) -> Compose:
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


class VolumeCache(PersistentDataset):
    """MONAI's ``PersistentDataset``: prepared volumes, kept on disk and found again by the next run.

    The name of a cache file depends on the settings that matter, and on the path, size and time of the case's files, so that a
    file that changed is prepared anew. A cache file is written beside and renamed; one that cannot be read is made again;
    where none can be written (full disk, read-only folder), a warning says so and the volume is prepared in memory.

    Args:
        items: ``image``, ``label`` (optional) and ``site`` (optional) of each case, with absolute paths.
        settings: the settings.
    """

    def __init__(self, items: Sequence[Mapping], settings: TrainSettings):
        folder = settings.cache_folder
        self.digest = [VERSION, settings.voxel_spacing, settings.field_of_view, settings.patch_size]
        try:
            super().__init__([dict(item) for item in items], preparation(settings), cache_dir=folder)
        except OSError as error:
            _warn_no_cache(folder, error)
            super().__init__([dict(item) for item in items], preparation(settings), cache_dir=None)

    def cache_file(self, item: Mapping) -> Path:
        """Where the prepared volumes of an item are, or will be."""
        files = [Path(item[key]) for key in BOTH if item.get(key)]
        stamps = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
        key = json.dumps([self.digest, stamps])
        return self.cache_dir / f"{case_name(item)}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.pt"

    def _cachecheck(self, item_transformed):
        file = self.cache_file(item_transformed) if self.cache_dir is not None else None
        if file is not None and file.is_file():
            try:
                return torch.load(file, weights_only=True)
            except Exception as error:  # torch has no one exception for a damaged file
                warnings.warn(f"{file} is damaged ({_first_line(error)}); preparing the case again.", stacklevel=2)
        try:
            prepared = self._pre_transform(item_transformed)
        except RuntimeError as error:
            raise _course_error_in(error) or error from error
        if file is not None:
            _save_whole(prepared, file)
        return prepared


def prepare(items: Sequence[Mapping], settings: TrainSettings) -> list[dict]:
    """The prepared volumes of all items, from the cache where it has them; see :class:`ToPlainTensors` for the keys.

    A volume takes about 1 MB, so all cases of a site stay in memory.

    Raises:
        CourseError: names the site and the file of the first case that cannot be used.
    """
    cache = VolumeCache(items, settings)
    return [cache[index] for index in range(len(cache))]


def _save_whole(prepared: dict, file: Path) -> None:
    try:
        handle, beside = tempfile.mkstemp(prefix=f".{file.stem}-", suffix=".tmp", dir=file.parent)
    except OSError as error:
        _warn_no_cache(file.parent, error)
        return
    try:
        with os.fdopen(handle, "wb") as stream:
            torch.save(prepared, stream)
        Path(beside).replace(file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        Path(beside).unlink(missing_ok=True)
        _warn_no_cache(file.parent, error)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def _warn_no_cache(folder: Path, error: Exception) -> None:
    warnings.warn(
        f"cannot write to the cache {folder} ({_first_line(error)}); this run prepares its volumes in memory.",
        stacklevel=3,
    )


def _course_error_in(error: BaseException | None) -> CourseError | None:
    """MONAI's ``Compose`` wraps what a transform raises; find ours in the chain."""
    while error is not None and not isinstance(error, CourseError):
        error = error.__cause__
    return error


def _of_site(item: Mapping) -> str:
    return f"{item['site']}: " if item.get("site") else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]


def _by(shape: Sequence[int]) -> str:
    return "×".join(str(side) for side in shape)
