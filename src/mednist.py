"""MedNIST: find or fetch it, split it, share it out over sites, transform and load its images.

Six classes of grey 64×64 JPEG images in one folder a class: https://docs.monai.io/en/stable/apps.html#monai.apps.MedNISTDataset.
An *item* is a dictionary ``{"image": path, "label": index into CLASSES}``, as MONAI's data sets take it.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src import fetching, phantoms
from src.errors import CourseError
from src.paths import data_root, data_source, write_text
from src.phantoms import CLASSES, SIZE

__all__ = [
    "CLASSES",
    "describe",
    "find_or_make",
    "is_generated",
    "loader",
    "partition_table",
    "read_datalist",
    "read_site_datalist",
    "site_datalists",
    "split",
    "transforms",
    "write_datalists",
]

PARTITIONS = ("even", "counts", "dirichlet")
# All 59,000 real images take a CPU 15 minutes an epoch; 500 a class reach the same accuracy in the course's time.
REAL_PER_CLASS = 500


def find_or_make(
    source: str | None = None, root: Path | None = None, url: str | None = None, md5: str | None = None
) -> Path:
    """The MedNIST folder, with one folder of JPEG images for each of :data:`CLASSES`.

    Args:
        source: ``generated``: drawings in ``<root>/generated/MedNIST``, made if missing. ``real``: ``<root>/MedNIST``,
            used as it is when it is there, whatever its size, else downloaded from where MONAI keeps it (59 MB),
            verified and unpacked. Default :func:`src.paths.data_source`.
        root: folder of all data sets, default :func:`src.paths.data_root`.
        url: another address of the archive ``MedNIST.tar.gz``, default ``monai.apps.MedNISTDataset.resource``.
        md5: its checksum, default ``monai.apps.MedNISTDataset.md5``.

    Raises:
        CourseError: if a class is missing, or the data cannot be fetched, verified, unpacked or written. Nothing half
            is left in place, and calling again continues a broken download.
    """
    source = source or data_source()
    root = Path(root or data_root()).expanduser().resolve()
    if source == "generated":
        folder = root / "generated" / "MedNIST"
        return _checked(folder) if is_generated(folder) else phantoms.make_mednist(folder)
    if source != "real":
        raise CourseError(f"source is {source!r}; choose 'generated' or 'real'.")

    folder = root / "MedNIST"
    if folder.is_dir() and any(folder.iterdir()):
        return _checked(folder)
    if folder.exists() and not folder.is_dir():
        raise CourseError(f"{folder} is a file where the folder of the images should be. Delete it and run again.")
    if url is None or md5 is None:
        from monai.apps import MedNISTDataset

        url, md5 = url or MedNISTDataset.resource, md5 or MedNISTDataset.md5
    hint = f"Without a network, copy the MedNIST folder to {folder}, or use the drawings: COURSE_DATA_SOURCE=generated."
    archive = fetching.download(url, root / "MedNIST.tar.gz", md5, hint)
    return fetching.unpack(archive, folder, check=_checked)


def is_generated(folder: Path) -> bool:
    """True for drawings of this course, False for real images (or nothing)."""
    return phantoms.read_about(folder) is not None


def describe(folder: Path) -> str:
    """One line for the screen: which of the two data sets this is, with the number of images in each class."""
    counts = {name: len(_images(Path(folder) / name)) for name in CLASSES}
    kind = "generated drawings, not patients" if is_generated(folder) else "real MedNIST"
    each = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return f"{kind}: {sum(counts.values()):,} images ({each}) in {folder}"


def _images(folder: Path) -> list[Path]:
    # Archives made on a Mac carry a hidden ._ file beside every image.
    return sorted(path for path in folder.glob("*.jpeg") if not path.name.startswith("."))


def _checked(folder: Path) -> Path:
    """Return the folder if it has images of all classes.

    Raises:
        CourseError: names all classes that are missing.
    """
    missing = [str(folder / name) for name in CLASSES if not _images(folder / name)]
    if missing:
        raise CourseError(
            f"No .jpeg images in {', '.join(missing)}. Put them there, or delete {folder} and run again to get all "
            "classes."
        )
    return folder


def read_datalist(folder: Path, per_class: int | None = None, seed: int = 0) -> list[dict]:
    """Items of a MedNIST folder, sorted by class and file name.

    Args:
        folder: of :func:`find_or_make`.
        per_class: at most so many images of each class, drawn at random. Default: what ``COURSE_MEDNIST_PER_CLASS``
            says (a number, or ``all``), else all of the drawings and 500 a class of the real images.
        seed: fixes which.

    Raises:
        CourseError: if a class is missing or ``per_class`` is not positive.
    """
    folder = _checked(Path(folder).absolute())
    most = _per_class(folder) if per_class is None else per_class
    if most is not None and most < 1:
        raise CourseError(f"per_class is {most}; it must be at least 1.")
    rng = np.random.default_rng(seed)
    items = []
    for label, name in enumerate(CLASSES):
        images = _images(folder / name)
        if most is not None and len(images) > most:
            images = [images[i] for i in sorted(rng.choice(len(images), most, replace=False))]
        items += [{"image": str(image), "label": label} for image in images]
    return items


def _per_class(folder: Path) -> int | None:
    told = os.environ.get("COURSE_MEDNIST_PER_CLASS")
    if not told:
        return None if is_generated(folder) else REAL_PER_CLASS
    if told == "all":
        return None
    try:
        return int(told)
    except ValueError:
        raise CourseError(f"COURSE_MEDNIST_PER_CLASS is {told!r}; set it to a number of images, or to 'all'.") from None


def _mixed(items: Sequence[dict], rng: np.random.Generator) -> list[dict]:
    """Shuffle so that every stretch of the list has the classes in their overall proportions, to within one image.

    Cutting such a list gives stratified parts of any size. scikit-learn's stratified splitters refuse a class with one
    image and a part smaller than the number of classes, and a hospital may well have both.
    """
    keyed = []
    for label in sorted({item["label"] for item in items}):
        own = [item for item in items if item["label"] == label]
        places = (np.arange(len(own)) + rng.random()) / len(own)
        keyed += [(place, own[i]) for place, i in zip(places, rng.permutation(len(own)), strict=True)]
    return [item for _, item in sorted(keyed, key=lambda pair: pair[0])]


def split(items: Sequence[dict], seed: int = 0, validation: float = 0.1, test: float = 0.2) -> dict[str, list[dict]]:
    """Split items into ``training``, ``validation`` and ``test``, each with the same share of every class.

    Args:
        items: of :func:`read_datalist`.
        seed: fixes the split.
        validation: fraction of all items.
        test: fraction of all items.

    Raises:
        CourseError: if the fractions leave nothing for training.
    """
    if validation < 0 or test < 0 or validation + test >= 1:
        raise CourseError(f"validation={validation} and test={test} must not be negative and leave some for training.")
    mixed = _mixed(items, np.random.default_rng(seed))
    tests = round(len(mixed) * test)
    rest = tests + round(len(mixed) * validation)
    if not mixed[rest:]:
        raise CourseError(f"{len(mixed)} images are too few for validation={validation} and test={test}.")
    return {"training": mixed[rest:], "validation": mixed[tests:rest], "test": mixed[:tests]}


def site_datalists(
    items: Sequence[dict],
    names: Sequence[str],
    how: str = "even",
    counts: Sequence[int] | None = None,
    alpha: float = 0.5,
    seed: int = 0,
    validation: float = 0.125,
) -> dict[str, dict[str, list[dict]]]:
    """Share items out over sites; no item is at two sites, and each site keeps its own validation part.

    Args:
        items: images of all sites.
        names: names of the sites.
        how: ``even``: equal numbers and the same mix of classes everywhere. ``counts``: ``counts[i]`` images for site
            ``i``, the same mix; what is left over is not used. ``dirichlet``: equal numbers, but each site draws its
            mix of classes from a Dirichlet distribution whose mean is the overall mix (Hsu et al., 2019,
            https://arxiv.org/abs/1909.06335).
        counts: images a site.
        alpha: concentration of the Dirichlet distribution, summed over the classes: 100 gives nearly equal sites, 0.1
            one or two classes each.
        seed: fixes everything.
        validation: fraction of its items that a site does not train on: at least one, unless it has only one.

    Returns:
        For every site ``{"training": items, "validation": items}``.

    Raises:
        CourseError: for an unknown ``how``, more sites than images, wrong ``counts``, or ``alpha`` ≤ 0.
    """
    names = list(names)
    if how not in PARTITIONS:
        raise CourseError(f"Unknown partition {how!r}; choose one of {', '.join(PARTITIONS)}.")
    if not names or len(set(names)) != len(names):
        raise CourseError(f"The names of the sites are {names}; give at least one, and each once.")
    if len(names) > len(items):
        raise CourseError(f"{len(items)} images cannot be shared out over {len(names)} sites; every site needs one.")
    if not 0 <= validation < 1:
        raise CourseError(f"validation is {validation}; it must be at least 0 and below 1.")

    rng = np.random.default_rng(seed)
    if how == "counts":
        shares = _by_counts(items, counts, len(names), rng)
    elif how == "dirichlet":
        shares = _by_dirichlet(items, alpha, len(names), rng)
    else:
        mixed = sorted(_mixed(items, rng), key=lambda item: item["label"])
        shares = [mixed[i :: len(names)] for i in range(len(names))]
    return {name: _with_validation(share, validation, rng) for name, share in zip(names, shares, strict=True)}


def _by_counts(items, counts, sites: int, rng) -> list[list[dict]]:
    counts = list(counts or ())
    if len(counts) != sites or any(count < 1 for count in counts) or sum(counts) > len(items):
        raise CourseError(
            f"counts is {counts}; give one number of at least 1 for each of the {sites} sites, at most {len(items)} "
            "images in all."
        )
    mixed, ends = _mixed(items, rng), np.cumsum(counts)
    return [mixed[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _by_dirichlet(items, alpha: float, sites: int, rng) -> list[list[dict]]:
    if not alpha > 0:
        raise CourseError(f"alpha is {alpha}; it must be above 0.")
    labels = sorted({item["label"] for item in items})
    pools = [[item for item in items if item["label"] == label] for label in labels]
    for pool in pools:
        rng.shuffle(pool)
    overall = np.array([len(pool) for pool in pools]) / len(items)
    # A concentration below NumPy's smallest number means the limit: each site sees one class.
    mixes = rng.dirichlet(np.maximum(alpha * overall, 1e-6), size=sites)
    shares = [[] for _ in range(sites)]
    # One image a site in turn, so that no site is left with what all others did not want.
    for turn in range(len(items)):
        left = np.array([len(pool) for pool in pools])
        wanted = np.where(left > 0, mixes[turn % sites], 0)
        if not wanted.sum() > 0:
            wanted = left
        shares[turn % sites].append(pools[rng.choice(len(pools), p=wanted / wanted.sum())].pop())
    return shares


def _with_validation(share: list[dict], validation: float, rng) -> dict[str, list[dict]]:
    mixed = _mixed(share, rng)
    held = max(1, round(len(mixed) * validation)) if validation and len(mixed) > 1 else 0
    held = min(held, len(mixed) - 1)
    return {"training": mixed[held:], "validation": mixed[:held]}


def partition_table(datalists: dict[str, dict[str, list[dict]]]):
    """Who has what: a ``pandas.DataFrame`` with a row a site, a column a class, and the number of images in each."""
    import pandas as pd

    rows = [
        np.bincount([item["label"] for part in parts.values() for item in part], minlength=len(CLASSES))
        for parts in datalists.values()
    ]
    return pd.DataFrame(rows, index=pd.Index(list(datalists), name="site"), columns=list(CLASSES))


def write_datalists(folder: Path, datalists: dict[str, dict[str, list[dict]]]) -> None:
    """Write ``<folder>/<site>.json`` for every site: all that a site needs to know about its images.

    Raises:
        CourseError: if a file cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CourseError(
            f"Cannot create {folder}: {error.strerror or error}. Choose a folder you can write to."
        ) from error
    for site, parts in datalists.items():
        write_text(folder / f"{site}.json", json.dumps(parts, indent=1))


def read_site_datalist(path: Path) -> dict[str, list[dict]]:
    """``training`` and ``validation`` items of one site.

    Raises:
        CourseError: if the file is missing or broken, or an image that it names is.
    """
    remedy = "Build the job again to write the data lists anew."
    try:
        parts = json.loads(Path(path).read_text(encoding="utf-8"))
        parts = {
            name: [{"image": str(item["image"]), "label": int(item["label"])} for item in parts[name]]
            for name in ("training", "validation")
        }
    except OSError as error:
        raise CourseError(f"Cannot read the data list {path}: {error.strerror or error}. {remedy}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CourseError(f"{path} is no data list of a site ({type(error).__name__}: {error}). {remedy}") from error
    missing = [item["image"] for part in parts.values() for item in part if not Path(item["image"]).is_file()]
    if missing:
        raise CourseError(
            f"{len(missing)} images of {path} are missing, the first is {missing[0]}. Put them back, or take them out "
            "of the data list."
        )
    return parts


def transforms(train: bool):
    """What happens to an image between the file and the network, as a MONAI ``Compose`` of dictionary transforms.

    ``image`` becomes a float tensor ``(1, height, width)`` in 0…1, the first row of the picture first; ``label`` stays.

    Args:
        train: augment, differently in each epoch: mirror images and small changes of pose, as between patients.
    """
    from monai.data import PILReader
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

    # MONAI's readers put x before y by default, as scanners' formats do; a photograph has its rows first.
    reader = PILReader(converter=lambda image: image.convert("L"), reverse_indexing=False)
    steps = [
        LoadImaged(keys="image", reader=reader),
        EnsureChannelFirstd(keys="image"),
        # MedNIST has this size already; images of somebody else's may not.
        Resized(keys="image", spatial_size=(SIZE, SIZE)),
        # One grey scale for all images: brightness tells classes apart, so it must not be normalised away.
        ScaleIntensityRanged(keys="image", a_min=0, a_max=255, b_min=0.0, b_max=1.0, clip=True),
        EnsureTyped(keys="image", track_meta=False),
    ]
    if train:
        steps += [
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
    return Compose(steps)


def loader(items: Sequence[dict], batch_size: int, train: bool, seed: int = 0):
    """A MONAI ``DataLoader`` that reads and checks all images now and keeps them in memory.

    Args:
        items: images and labels.
        batch_size: images a step; the last batch may be smaller.
        train: shuffle and augment, differently in each epoch.
        seed: fixes the order and the augmentation of all epochs.

    Returns:
        An iterable of ``{"image": float32 (batch, 1, 64, 64), "label": int64 (batch,)}``; without items, and not for
        training, one of length 0.

    Raises:
        CourseError: if an image cannot be read, or there is nothing to train on.
    """
    import torch
    from monai.data import CacheDataset, DataLoader

    if train and not items:
        raise CourseError("There is no image to train on; give the site at least one.")
    try:
        # Only what is random is done again in each epoch.
        data = CacheDataset(list(items), transforms(train), progress=False, num_workers=1)
    except Exception as error:
        _name_unreadable_image(items, error)
        raise
    return DataLoader(data, batch_size=batch_size, shuffle=train, generator=torch.Generator().manual_seed(seed))


def _name_unreadable_image(items: Sequence[dict], error: Exception) -> None:
    """Raise a ``CourseError`` for the first image that Pillow cannot read; do nothing if it can read them all."""
    from PIL import Image

    for item in items:
        try:
            with Image.open(item["image"]) as image:
                image.load()
        except (OSError, SyntaxError, ValueError) as cause:
            raise CourseError(
                f"Cannot read the image {item['image']}: {cause}. Replace it with an intact copy, or delete it and run "
                "again without it."
            ) from error
