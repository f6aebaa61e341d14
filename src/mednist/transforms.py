"""From a JPEG file to what the network sees: the steps that never change, and the random ones."""

from collections.abc import Iterable, Sequence

import torch
from monai.data import DataLoader, Dataset, PILReader
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    RandAffined,
    RandFlipd,
    Resized,
    ScaleIntensityRanged,
)

from src.common.errors import CourseError, first_line
from src.mednist.card import SIZE, Settings


def preparation(settings: Settings) -> Compose:
    """What happens to an image once: ``image`` becomes a float tensor ``(1, 64, 64)`` in 0…1, the first row first."""
    # MONAI's readers put x before y by default, as scanners' formats do; a photograph has its rows first.
    reader = PILReader(converter=lambda image: image.convert("L"), reverse_indexing=False)
    return Compose(
        [
            LoadImaged(keys="image", reader=reader),
            EnsureChannelFirstd(keys="image"),
            # MedNIST has this size already; images of somebody else's may not.
            Resized(keys="image", spatial_size=(SIZE, SIZE)),
            # One grey scale for all images: brightness tells classes apart, so it must not be normalised away.
            ScaleIntensityRanged(keys="image", a_min=0, a_max=255, b_min=0.0, b_max=1.0, clip=True),
            EnsureTyped(keys="image", track_meta=False),
        ]
    )


def augmentation(settings: Settings) -> Compose:
    """What happens to it anew in each epoch: mirror images and small changes of pose, as between patients."""
    return Compose(
        [
            RandFlipd(keys="image", prob=0.5, spatial_axis=1),
            RandAffined(
                keys="image",
                prob=0.5,
                rotate_range=0.15,  # radians
                scale_range=0.1,
                translate_range=3,  # pixels
                padding_mode="border",
            ),
            EnsureTyped(keys="image", track_meta=False),
        ]
    )


def prepare(items: Sequence[dict], settings: Settings, cache: object = None) -> list[dict]:
    """Read and check all images of a part, and keep them in memory; 64×64 floats need no cache on disk.

    Raises:
        CourseError: names the first image that cannot be read.
    """
    steps, prepared = preparation(settings), []
    for item in items:
        try:
            ready = steps({"image": item["image"]})
        except Exception as error:  # each of Pillow's formats has its own kinds of error; all of them mean this
            cause = error.__cause__ or error
            raise CourseError(
                f"{item.get('site', '')} cannot read the image {item['image']}: {first_line(cause)}. Replace it with an intact "
                "copy, or take it out of the datalist.".strip(),
                "an image cannot be read",
            ) from error
        prepared.append({**ready, "label": item["label"]})
    return prepared


def batches(prepared: Sequence[dict], settings: Settings, train: bool, seed: int = 0) -> Iterable[dict]:
    """Batches of prepared images as a MONAI ``DataLoader``.

    Args:
        prepared: of :func:`prepare`.
        settings: the batch size; the last batch may be smaller.
        train: shuffle and augment, differently in each epoch.
        seed: fixes the order and the augmentation of all epochs.

    Returns:
        An iterable of ``{"image": float32 (batch, 1, 64, 64), "label": int64 (batch,)}``, of length 0 without images.

    Raises:
        CourseError: if there is nothing to train on.
    """
    if train and not prepared:
        raise CourseError("There is no image to train on; give the site at least one.", "it has nothing to train on")
    return DataLoader(
        Dataset(prepared, augmentation(settings) if train else None),
        batch_size=settings.batch_size,
        shuffle=train,
        generator=torch.Generator().manual_seed(seed),  # MONAI's loader seeds the random transforms from it, too
    )
