"""From a picture's file to what the network sees: the steps that never change, and the random ones."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, EnsureTyped, RandAffined, RandFlipd, ScaleIntensityRanged, Transform
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from src.common.datalists import plain_item
from src.common.errors import CourseError, first_line, some_of
from src.mednist.card import CARD, SIZE, Settings


class LoadPicture(Transform):
    """Load ``image``, a file of any size and kind, as ``(1, 64, 64)`` grey values of 8 bits, the first row first.

    It is turned as its EXIF data say, and scaled as a whole, with black beside it where it is not square. Pixels above 8 bits
    have no scale in common, so the file's own range becomes 0 to 255, where MONAI's ``LoadImage`` cuts them off. Adds ``remarks``
    that a person should know of; a ``ValueError`` for several pictures, or a NaN."""

    def __call__(self, item: Mapping) -> dict:
        with Image.open(item["image"]) as picture:
            # A telephone's MPO file holds a preview beside the photograph, which comes first.
            if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
                raise ValueError(f"it holds {picture.n_frames} pictures, not one")
            is_deep = picture.mode in ("I", "F") or picture.mode.startswith("I;16")
            tags = getattr(picture, "tag_v2", {})  # a TIFF's, not all of which Pillow heeds
            if not is_deep and (";16" in str(picture.tile) or tags.get(TiffImagePlugin.SAMPLEFORMAT) == (2,)):
                kind = "16 bits a channel" if ";16" in str(picture.tile) else "signed values of 8 bits"
                raise ValueError(f"it has {kind}; save it as grey of 16 bits, or unsigned with 8 bits")
            checks = {
                "scaled by the file's own range of values, for it has more than 8 bits": is_deep,
                "turned as its EXIF data say": picture.getexif().get(ExifTags.Base.Orientation, 1) != 1,
                "padded with black, for it is not square": picture.width != picture.height,
            }
            upright = ImageOps.exif_transpose(picture)
            if is_deep:
                values = np.asarray(upright, dtype=np.float64)
                if not np.isfinite(values).all():
                    raise ValueError("it holds NaN or infinity")
                values = -values if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 else values  # white is 0
                values = values - values.min()
                upright = Image.fromarray(np.rint(values * (255 / (values.max() or 1))).astype(np.uint8))
            image = np.array(ImageOps.pad(upright.convert("L"), (SIZE, SIZE)))[None]
        return {**item, "image": image, "remarks": [what for what, is_so in checks.items() if is_so]}


def preparation(settings: Settings) -> Compose:
    """What happens to an image once: ``image`` becomes a float tensor ``(1, 64, 64)`` in 0…1, the first row first."""
    # One grey scale for all images: brightness tells classes apart, so it must not be normalised away.
    scale = ScaleIntensityRanged(keys="image", a_min=0, a_max=255, b_min=0.0, b_max=1.0, clip=True)
    return Compose([LoadPicture(), scale, EnsureTyped(keys="image", track_meta=False)])


def augmentation(settings: Settings) -> Compose:
    """What happens to it anew in each epoch: mirror images and small changes of pose, as between patients."""
    mirror = RandFlipd(keys="image", prob=0.5, spatial_axis=1)
    pose = {"rotate_range": 0.15, "scale_range": 0.1, "translate_range": 3}  # radians, a share, pixels
    move = RandAffined(keys="image", prob=0.5, **pose, padding_mode="border")
    return Compose([mirror, move, EnsureTyped(keys="image", track_meta=False)])


def prepare(items: Sequence[dict], settings: Settings, cache: object = None) -> list[dict]:
    """Read images into memory; a ``CourseError`` names one that cannot be read, a warning what was scaled, turned or padded."""
    steps, prepared, changed = preparation(settings), [], defaultdict(list)
    for item in [plain_item(one, CARD.classes) for one in items]:
        try:
            ready = steps({"image": item["image"]})
        except Exception as error:  # each of Pillow's formats has its own kinds of error; all of them mean this
            said = f"{item.get('site', '')} cannot read the image {item['image']}: {first_line(error.__cause__ or error)}. "
            advice = "Replace it with an intact copy, or take it out of the datalist."
            raise CourseError(said.lstrip() + advice, "an image cannot be read") from error
        for what in ready.pop("remarks"):
            changed[what].append(Path(item["image"]).name)
        prepared.append({**ready, "label": item["label"]})
    for what, names in changed.items():
        site = f"{items[0]['site']}: " if items[0].get("site") else ""
        said = f"{site}{len(names)} of {len(items)} pictures: each was {what} ({some_of(names, 3)})"
        warnings.warn(said, stacklevel=2)
    return prepared


def batches(prepared: Sequence[dict], settings: Settings, train: bool, seed: int = 0) -> Iterable[dict]:
    """Batches of prepared images, ``{"image": float32 (batch, 1, 64, 64), "label": int64 (batch,)}``; the last may be smaller. To
    ``train``, in another order and differently augmented in each epoch, all fixed by ``seed``; there must be at least one."""
    if train and not prepared:
        raise CourseError("There is no image to train on; give the site at least one.", "it has nothing to train on")
    data = Dataset(prepared, augmentation(settings) if train else None)
    chance = torch.Generator().manual_seed(seed)  # MONAI's loader seeds the random transforms from it, too
    return DataLoader(data, batch_size=settings.batch_size, shuffle=train, generator=chance)
