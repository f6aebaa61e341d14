"""Share MedNIST out over pretend hospitals. Every site gets a folder of its own, COURSE_DATA/sites/NAME/SITE: its images, and
datalist.json, in which they are split 70 : 10 : 20 into training, validation and testing. No image is at two sites.

MedNIST is found in the data folder, or else drawn or downloaded there."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from data_scripts import command
from data_scripts.fetching import fetch
from data_scripts.folders import data_source, generated, is_generated, raw_folder
from data_scripts.phantoms.mednist import parameters, write
from data_scripts.scanners import rescan
from data_scripts.sharing import HOW, Arguments, partition, random_numbers, split, write_sites
from src.common.errors import CourseError, some_of
from src.mednist.card import CARD, Settings

SUFFIXES = (".jpeg", ".jpg", ".png", ".tif", ".tiff")
DRAWN_PER_CLASS = 150
REAL_PER_CLASS = 500  # all 59,000 take a CPU 15 minutes an epoch; these reach the same accuracy in the course's time
# By the device that makes them: of two hospitals, one has the CT scanner, the other X-ray and MRI.
BY_DEVICE = ("AbdomenCT", "ChestCT", "HeadCT", "CXR", "Hand", "BreastMRI")
FEW = 3  # images of each class that a hospital sees without having the device for it: patients bring them along


def find_or_make(source: str | None = None, root: Path | None = None, say: Callable[[str], None] = print) -> Path:
    """The MedNIST folder, with one folder of images for each of the classes. ``generated``: drawings in
    ``<root>/generated/MedNIST``, made if missing. ``real``: ``<root>/MedNIST``, used as it is when it is there, whatever its size,
    else downloaded (59 MB). A ``CourseError`` if a class is missing, or it cannot be fetched or written."""
    folder = raw_folder("MedNIST", source, root)
    if data_source(source) == "generated":
        folder = generated(folder, parameters(DRAWN_PER_CLASS, 0), lambda new: write(new, DRAWN_PER_CLASS, 0))
    elif folder.exists() and not folder.is_dir():
        raise CourseError(f"{folder} is a file where the folder of the images should be. Delete it and run this again.")
    elif not folder.is_dir() or not any(folder.iterdir()):
        fetch(folder, *_official(), _check, say=say)
    _check(folder)
    return folder


def _official() -> tuple[str, str]:  # address and MD5 sum of MONAI's copy of the archive
    from monai.apps import MedNISTDataset

    return MedNISTDataset.resource, MedNISTDataset.md5


def describe(folder: Path) -> str:
    """One line for the screen: which of the two data sets this is, with the number of images in each class."""
    counts = {name: len(_images(Path(folder) / name)) for name in CARD.labels}
    kind = "generated drawings, not patients" if is_generated(folder) else "real MedNIST"
    each = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return f"{kind}: {sum(counts.values()):,} images ({each}) in {folder}"


def _images(folder: Path) -> list[Path]:
    # Archives made on a Mac carry a hidden ._ file beside every image.
    return sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in SUFFIXES)


def _left_out(folder: Path) -> list[str]:
    """Files that are in no class's folder, or are no pictures, but for texts."""
    places = [folder / name for name in CARD.labels]  # a class may be a link, which rglob does not follow
    read = {image for place in places for image in _images(place)}
    others = {path for place in (folder, *places) for path in place.rglob("[!.]*") if path.is_file()} - read
    return sorted(str(path.relative_to(folder)) for path in others if path.suffix not in (".json", ".md", ".txt"))


def _check(folder: Path) -> None:
    if missing := [str(folder / name) for name in CARD.labels if not _images(folder / name)]:
        ways = f"Put them there, or delete {folder} and run this again to get all classes."
        raise CourseError(f"No images ({', '.join(SUFFIXES)}) in {', '.join(missing)}. {ways}")


def read_items(folder: Path, per_class: int | None = None, seed: int = 0) -> list[dict]:
    """Items of a MedNIST folder, ``{"image": path, "label": number of the class}``, sorted by class and file name. At most
    ``per_class`` of each class are drawn at random, fixed by the seed. Default: what ``COURSE_MEDNIST_PER_CLASS`` says (a number,
    or ``all``), else all drawings and 500 real images a class. A ``CourseError`` for less than 1, or if a class is missing."""
    folder = Path(folder).absolute()
    _check(folder)
    most = Arguments(per_class=_per_class(folder) if per_class is None else per_class).per_class
    items, rng = [], random_numbers(seed)
    for label, name in enumerate(CARD.labels):
        images = _images(folder / name)
        if most is not None and len(images) > most:
            images = [images[i] for i in sorted(rng.choice(len(images), most, replace=False))]
        items += [{"image": str(image), "label": label} for image in images]
    return items


def _per_class(folder: Path) -> int | None:
    told = os.environ.get("COURSE_MEDNIST_PER_CLASS")
    if not told:
        return None if is_generated(folder) else REAL_PER_CLASS
    try:
        return None if told == "all" else int(told)
    except ValueError:
        raise CourseError(f"COURSE_MEDNIST_PER_CLASS is {told!r}; set it to a number of images, or to 'all'.") from None


def share_out(
    sites: int | Sequence[str] = 2,
    how: str = "specialised",
    counts: Sequence[int] | None = None,
    alpha: float | None = None,
    few: int | None = None,
    seed: int = 0,
    data: str | None = None,
    folder: Path | None = None,
    per_class: int | None = None,
    skew: float | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Share the images out over pretend hospitals, each with a folder and three parts of its own; returns the name of the data.
    ``sites``, ``how``, ``counts``, ``alpha``, ``skew`` and ``few`` (default :data:`FEW`) are those of
    :func:`data_scripts.sharing.partition`; homes go by :data:`BY_DEVICE`, and with ``scanners`` each site sees its images by
    another scanner. ``per_class`` is that of :func:`read_items`. A ``CourseError`` for what cannot be shared out like that, or
    written."""
    folder = Path(folder or find_or_make(say=say)).absolute()
    data = Settings(data=data or CARD.name).data
    homes, base, is_drawn = None, folder, is_generated(folder)
    if how == "specialised":
        homes, few = [CARD.labels.index(name) for name in BY_DEVICE], FEW if few is None else few
    shares = partition(read_items(folder, per_class, seed), sites, how, counts, alpha, seed, homes, few, skew)
    if left_out := _left_out(folder):
        say(f"Left out, {len(left_out)} files that are no pictures or lie in no class's folder: {some_of(left_out)}")
    if how == "scanners":
        base = folder.with_name(f"{folder.name}-{data}")
        shares = rescan(shares, folder, base, seed)
    datalists = {site: split(items, CARD.validation, CARD.testing, seed, site) for site, items in shares.items()}
    about = {
        "task": CARD.name,
        "generated": is_drawn,
        "how": how,
        "counts": counts,
        "alpha": alpha,
        "few": few,
        "skew": skew,
    }
    return write_sites(data, datalists, base, {**about, "seed": seed}, say, CARD.classes)


def prepare(say: Callable[[str], None] = print) -> str:
    """All steps from nothing to the folders of the sites, with the notebook's settings; returns the name of the data."""
    return share_out(say=say)


def main() -> None:
    parser = command.parser("mednist_sites", __doc__)
    add = parser.add_argument
    add("mednist", nargs="?", type=command.folder, help="folder of the six classes; default: found or made")
    add("--name", help="what jobs call these data (default: mednist)")
    which = parser.add_mutually_exclusive_group().add_argument
    which("--num-sites", type=int, default=2, help="number of sites (default: %(default)s)")
    which("--sites", nargs="+", metavar="SITE", help="names of the sites")
    what = "each class at home at one site and --few images of it elsewhere, equal shares, the numbers of --counts, a random "
    what += "mix of classes at each site, --counts with --skew towards two home classes a site, or equal shares seen by another "
    what += "scanner at each site (default: %(default)s)"
    add("--how", default="specialised", choices=tuple(HOW), help=what)
    add("--few", type=int, metavar="N", help=f"for --how specialised (default: {FEW})")
    add("--counts", type=int, nargs="+", metavar="N", help="images of each site, for --how counts")
    add("--alpha", type=float, help="for --how dirichlet: 100 nearly equal, 0.1 very different")
    add("--skew", type=float, help="for --how mixed: from 0, all alike, to 1, two home classes a site")
    add("--per-class", type=int, metavar="N", help="at most so many images of each class")
    add("--seed", type=int, default=0, help="of the random generator (default: %(default)s)")
    a = parser.parse_args()
    folder = a.mednist or find_or_make()
    share_out(a.sites or a.num_sites, a.how, a.counts, a.alpha, a.few, a.seed, a.name, folder, a.per_class, a.skew)
    print(describe(folder))


if __name__ == "__main__":
    command.run(main)
