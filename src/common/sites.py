"""Sites and their data: who has which images, and the folder in which a site finds its own.

A site's folder is ``$COURSE_DATA/sites/<data name>/<site>/``. It holds ``datalist.json``, in the format of the Medical Segmentation
Decathlon: the parts ``training``, ``validation`` and ``testing``, each a list of ``{"image": path, "label": path or number}`` with
paths relative to the folder. A hospital makes its own by whatever means; here, where one machine plays several hospitals,
:func:`write_sites` puts their folders side by side. A job names the data and never says where they are.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from src.common.errors import CourseError, all_of
from src.common.files import link_or_copy, one_at_a_time, read_json, staged, stamp, write_json
from src.common.paths import sites_folder

PARTS = ("training", "validation", "testing")
DATALIST = "datalist.json"
ABOUT = "about.json"
"""Beside the sites' folders, where this course made them: what they were made of."""

Datalists = Mapping[str, Mapping[str, list[dict]]]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_RESERVED = ("server", "all")


def site_names(sites: int | Sequence[str]) -> list[str]:
    """``site-1``, ``site-2``, … for a number; a list of names is checked and returned.

    Raises:
        CourseError: for fewer than one site, a name that occurs twice, or one that cannot be a file's and a host's name.
    """
    if isinstance(sites, int) and sites > 0:
        return [f"site-{number}" for number in range(1, sites + 1)]
    names = [] if isinstance(sites, int | str) else list(sites)
    if not names or len({str(name).lower() for name in names}) != len(names):  # on a Mac, A and a are one folder
        raise CourseError(
            f"sites is {sites!r}; give a number of at least 1, or a list of names that differ in more than capitals."
        )
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name.lower() in _RESERVED:
            raise CourseError(
                f"{name!r} cannot be the name of a site: use letters, digits, - and _ alone, for it becomes a file's and a "
                f"host's name, and none of {', '.join(_RESERVED)}."
            )
    return names


def random_numbers(seed: int, site: str = "") -> np.random.Generator:
    """NumPy's generator, fixed by a seed and the name of a site; a ``CourseError`` for a negative seed."""
    if seed < 0:
        raise CourseError(f"seed is {seed}; it must be 0 or more.")
    return np.random.default_rng([seed, *site.encode()])


# -- who gets what -----------------------------------------------------------------------------------------------------


def mixed(items: Sequence[dict], rng: np.random.Generator) -> list[dict]:
    """Shuffle so that every stretch of the list has the classes in their overall proportions, to within one item.

    Cutting such a list gives stratified parts of any size. scikit-learn's stratified splitters refuse a class with one
    item and a part smaller than the number of classes, and a hospital may well have both. Items whose label is a file (a mask)
    count as one class.
    """
    keyed = []
    classes = [item["label"] if isinstance(item["label"], int) else 0 for item in items]
    for label in sorted(set(classes)):
        own = [item for item, one in zip(items, classes, strict=True) if one == label]
        order = rng.permutation(len(own))
        places = (np.arange(len(own)) + rng.random()) / len(own)
        keyed += [(place, own[i]) for place, i in zip(places, order, strict=True)]
    return [item for _, item in sorted(keyed, key=lambda pair: pair[0])]


def split(
    items: Sequence[dict], validation: float, testing: float, seed: int = 0, site: str = ""
) -> dict[str, list[dict]]:
    """Split the items of one site into the three parts, each with the same share of every class.

    Training gets at least one item; validation and testing get one each as soon as there are enough.

    Args:
        items: what the site has.
        validation: share of the items on which the site validates received models.
        testing: share that is kept for the end.
        seed: fixes the split, together with the site's name.
        site: name of the site: one site's split does not depend on the others.

    Raises:
        CourseError: for no items, or shares that leave nothing for training.
    """
    if validation < 0 or testing < 0 or validation + testing >= 1:
        raise CourseError(f"The shares validation={validation} and testing={testing} must leave some for training.")
    if not items:
        raise CourseError(f"{site or 'This place'} has no items to split.")
    order = mixed(items, random_numbers(seed, site))
    count = len(order)
    tests = round(count * testing)
    held = round(count * (testing + validation)) - tests
    if count >= 3:
        tests, held = max(tests, 1 if testing else 0), max(held, 1 if validation else 0)
    else:
        tests, held = 0, count - 1 if validation else 0
    ends = count - tests - held, count - tests
    return {"training": order[: ends[0]], "validation": order[ends[0] : ends[1]], "testing": order[ends[1] :]}


def partition(
    items: Sequence[dict],
    sites: int | Sequence[str],
    how: str = "even",
    counts: Sequence[int] | None = None,
    alpha: float = 0.5,
    seed: int = 0,
    homes: Sequence[int] = (),
    few: int = 0,
) -> dict[str, list[dict]]:
    """Share items out over sites; no item is at two sites.

    Args:
        items: of all sites, each with its class as ``label``.
        sites: how many, or their names.
        how: ``even``: equal numbers and the same mix of classes everywhere. ``counts``: ``counts[i]`` items for site
            ``i``, the same mix; what is left over is not used. ``dirichlet``: equal numbers, but each site draws its
            mix of classes from a Dirichlet distribution whose mean is the overall mix (Hsu et al., 2019,
            https://arxiv.org/abs/1909.06335). ``specialised``: every class is at home at one site, and each other site
            sees a ``few`` items of it.
        counts: items a site.
        alpha: concentration of the Dirichlet distribution, summed over the classes: 100 gives nearly equal sites, 0.1
            one or two classes each, as long as there are images of these.
        seed: fixes everything.
        homes: all classes, for ``specialised``: the first ones are at home at the first site, and so on, in equal numbers.
        few: items of each class at each site where it is not at home.

    Raises:
        CourseError: for an unknown ``how``, more sites than items or than ``homes``, wrong ``counts``, ``alpha`` ≤ 0, or a
            ``few`` that leaves a home with less than that.
    """
    names, rng = site_names(sites), random_numbers(seed)
    if len(names) > len(items):
        raise CourseError(f"{len(items)} items cannot be shared out over {len(names)} sites; every site needs one.")
    if how == "even":
        order = sorted(mixed(items, rng), key=lambda item: item["label"] if isinstance(item["label"], int) else 0)
        shares = [order[i :: len(names)] for i in range(len(names))]
    elif how == "counts":
        counts = list(counts or ())
        if len(counts) != len(names) or min(counts, default=0) < 1 or sum(counts) > len(items):
            raise CourseError(
                f"counts is {counts}; give one number of at least 1 for each of the {len(names)} sites, at most "
                f"{len(items)} in all."
            )
        order, ends = mixed(items, rng), np.cumsum(counts)
        shares = [order[end - count : end] for end, count in zip(ends, counts, strict=True)]
    elif how == "dirichlet":
        shares = _by_dirichlet(items, alpha, len(names), rng)
    elif how == "specialised":
        shares = _specialised(items, homes, few, len(names), rng)
    else:
        raise CourseError(f"Unknown partition {how!r}; choose one of even, counts, dirichlet, specialised.")
    return dict(zip(names, shares, strict=True))


def _by_dirichlet(items: Sequence[dict], alpha: float, sites: int, rng: np.random.Generator) -> list[list[dict]]:
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
    # One item a site in turn, so that no site is left with what all others did not want.
    for turn in range(len(items)):
        left = np.array([len(pool) for pool in pools])
        wanted = np.where(left > 0, mixes[turn % sites], 0)
        if not wanted.sum() > 0:
            wanted = left
        shares[turn % sites].append(pools[rng.choice(len(pools), p=wanted / wanted.sum())].pop())
    return shares


def _specialised(
    items: Sequence[dict], homes: Sequence[int], few: int, sites: int, rng: np.random.Generator
) -> list[list[dict]]:
    if len(homes) < sites:
        raise CourseError(f"{len(homes)} classes cannot be at home at {sites} sites; every site needs one of its own.")
    shares = [[] for _ in range(sites)]
    for home, classes in enumerate(np.array_split(homes, sites)):
        for label in classes:
            own = [item for item in items if item["label"] == label]
            given = few * (sites - 1)
            if few < 0 or len(own) - given < max(few, 1):
                raise CourseError(
                    f"few is {few}: of the {len(own)} items of class {label} {given} would go to the sites where it is not "
                    "at home, which leaves too few at its own."
                )
            order = iter(rng.permutation(len(own)))
            for site, share in enumerate(shares):
                share += [own[next(order)] for _ in range(few)] if site != home else []
            shares[home] += [own[i] for i in order]
    return shares


# -- the folders -------------------------------------------------------------------------------------------------------


def write_sites(
    data: str, datalists: Datalists, base: Path, about: Mapping[str, object], say: Callable[[str], None] = print
) -> str:
    """Write a folder for every site, with its datalist and files of its own, below ``$COURSE_DATA/sites/<data>``.

    All folders appear together, whole, or not at all. When the same was written before, from files that are unchanged, nothing
    is done; what this function wrote for other settings is replaced.

    Args:
        data: name of the shared-out data, which the job will give.
        datalists: site → part → items with absolute paths.
        base: folder that holds all files; their places below it are kept in the site's folder.
        about: settings that were used, kept in ``about.json``.
        say: called with each line of progress.

    Returns:
        ``data``.

    Raises:
        CourseError: for an image at two sites or in two parts, or a folder that is not this function's or cannot be written.
    """
    folder, base = sites_folder(data), Path(base)
    site_names(list(datalists))
    if problems := _shared(datalists):
        raise all_of("Nothing was shared out", problems)
    relative = {
        site: {part: [_below(item, base) for item in items] for part, items in parts.items()}
        for site, parts in datalists.items()
    }
    files = {(site, name) for site, _, item in _each(relative) for name in _files(item)}
    stamps = [stamp(base / name) for name in sorted({name for _, name in files})]
    about = {"data": data, **about, "sites": list(datalists)}
    about["contents"] = hashlib.sha256(json.dumps([relative, stamps]).encode()).hexdigest()
    with one_at_a_time(folder.parent):
        found = read_json(folder / ABOUT)
        there = all((folder / site / name).is_file() for site, name in files | {(site, DATALIST) for site in relative})
        if there and found == json.loads(json.dumps(about)):
            say(f"{folder}: shared out already over {', '.join(datalists)}, nothing to do.")
            return data
        if found is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CourseError(
                f"{folder} holds sites that were not made by sharing out here. Choose another name for the data, or move "
                "the folder away."
            )
        with staged(folder) as new:
            for site, name in files:
                target = new / site / name
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(base / name, target)
            for site, parts in relative.items():
                write_json(new / site / DATALIST, parts)
            write_json(new / ABOUT, about)
    for site, parts in datalists.items():
        say(f"{folder / site}: " + ", ".join(f"{len(items)} {part}" for part, items in parts.items()))
    return data


def _each(datalists: Datalists) -> Iterator[tuple[str, str, dict]]:
    """Site, part and item of all items."""
    return ((site, part, item) for site, parts in datalists.items() for part, items in parts.items() for item in items)


def _shared(datalists: Datalists) -> list[str]:
    """Images in two places, a scan under another name too, one problem each. Small pictures with a class may well be equal."""
    seen: dict[str, tuple[str, str]] = {}
    problems = []
    for site, part, item in _each(datalists):
        image, here = item["image"], f"{site} {part}".strip()
        try:
            volume = _is_file(item, "label") and Path(image).is_file()
            key = hashlib.sha256(Path(image).read_bytes()).hexdigest() if volume else image
        except OSError as error:
            raise CourseError(f"Cannot read {image}: {error.strerror}.", "an image cannot be read") from error
        if key in seen:
            other, there = seen[key]
            names = " and ".join(dict.fromkeys((other, image)))
            problems.append(f"{names}: the same image is in {there} and in {here}; take it out of one of them")
        seen.setdefault(key, (image, here))
    return problems


def _below(item: dict, base: Path) -> dict:
    return {
        **item,
        **{key: Path(item[key]).relative_to(base).as_posix() for key in ("image", "label") if _is_file(item, key)},
    }


def _is_file(item: Mapping, key: str) -> bool:
    return isinstance(item.get(key), str | Path)


def _files(item: Mapping) -> list[str]:
    return [item[key] for key in ("image", "label") if _is_file(item, key)]


def cache_folder(data: str, site: str) -> Path:
    """Where a site keeps what it prepared from its data, for its next run."""
    return sites_folder(data) / site / "cache"


def sites_of(data: str) -> list[str]:
    """Names of the sites whose folders of this data lie on this machine.

    Raises:
        CourseError: if there is none; says how to make them.
    """
    folder = sites_folder(data)
    names = sorted(path.parent.name for path in folder.glob(f"*/{DATALIST}") if not path.parent.name.startswith("."))
    if not names:
        raise CourseError(
            f"No site has data in {folder}. Share the data out first: data_scripts/mednist_sites.sh, or the prostate's "
            "prostate_download.sh, data_conversion.sh and datalists_gen.sh. Or put <site>/datalist.json there yourself."
        )
    return names


def read_site(data: str, site: str) -> dict[str, list[dict]]:
    """The datalist of one site on this machine; see :func:`read_datalist`."""
    return read_datalist(sites_folder(data) / site / DATALIST, site)


def read_sites(data: str) -> dict[str, dict[str, list[dict]]]:
    """The datalists of all sites on this machine. In a real federation nobody can call this: it is for teaching and tests."""
    return {site: read_site(data, site) for site in sites_of(data)}


def read_datalist(path: Path, site: str = "") -> dict[str, list[dict]]:
    """Read a datalist and look whether its files are there.

    Args:
        path: the JSON file; paths in it start from its folder.
        site: name of the site, added to each item so that messages can name it.

    Returns:
        ``{"training": items, "validation": items, "testing": items}``, with absolute paths.

    Raises:
        CourseError: names all that is wrong: a file that cannot be read, a part or key that is missing, nothing to train on, an
            image in two places, files that are missing.
    """
    path, kind = Path(path).absolute(), "its datalist cannot be used"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise CourseError(
            f"Cannot read the datalist {path}: {said}. It comes from data_scripts/mednist_sites.sh or datalists_gen.sh.",
            "its datalist is missing or cannot be read",
        ) from error
    if not isinstance(content, dict):
        raise CourseError(f"The datalist {path} is not a JSON object with the parts {', '.join(PARTS)}.", kind)
    problems: list[str] = []
    parts: dict[str, list[dict]] = {}
    for part in PARTS:
        parts[part] = []
        entries = content.get(part)
        if not isinstance(entries, list) or (part == "training" and not entries):
            problems.append(f"part {part!r} is missing or empty")
            continue
        for number, entry in enumerate(entries):
            if (
                not isinstance(entry, dict)
                or not _is_file(entry, "image")
                or not isinstance(entry.get("label"), str | int)
            ):
                problems.append(f"{part}[{number}]: no 'image' with its 'label'")
                continue
            item = {**entry, "site": site}
            item |= {key: str(path.parent / entry[key]) for key in ("image", "label") if _is_file(entry, key)}
            problems += [
                f"{part}[{number}]: {name} does not exist" for name in _files(item) if not Path(name).is_file()
            ]
            parts[part].append(item)
    if problems := problems + _shared({site: parts}):
        raise all_of(f"The datalist {path} cannot be used", problems, kind)
    return parts


def pooled(datalists: Datalists) -> dict[str, list[dict]]:
    """The items of all sites in one place, part by part: what only a teacher can have."""
    return {part: [item for parts in datalists.values() for item in parts[part]] for part in PARTS}


def who_has_what(datalists: Datalists, labels: Sequence[str] = ()):
    """Number of items by site.

    Args:
        datalists: site → part → items.
        labels: names of the classes, where labels are numbers.

    Returns:
        pandas.DataFrame: a row a site and one for all; a column for each part, one for all parts, and one for each class.
    """
    import pandas as pd

    rows = {}
    for site, parts in datalists.items():
        rows[site] = {part: len(parts[part]) for part in PARTS} | {"all parts": sum(map(len, parts.values()))}
        for number, label in enumerate(labels):
            rows[site][label] = sum(item["label"] == number for items in parts.values() for item in items)
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("site")
    table.loc["all sites"] = table.sum()
    return table


def classes(shares: Mapping[str, Sequence[Mapping]], labels: Sequence[str]):
    """Number of items of each class by site: a row a site, a column a class."""
    parts = {site: {**dict.fromkeys(PARTS, ()), "training": items} for site, items in shares.items()}
    return who_has_what(parts, labels)[list(labels)]


def distances(counts):
    """How far each site's mix of classes is from that of all the others together: total variation, half the sum of differences.

    Args:
        counts: table of :func:`classes`; the row ``all sites`` is the sum of the others.

    Returns:
        pandas.Series: by site, from 0 for the same mix to 1 for no class in common.
    """
    whole, own = counts.loc["all sites"], counts.drop(index="all sites")
    mixes, others = own.div(own.sum(axis=1), axis=0), whole - own
    return (mixes - others.div(others.sum(axis=1), axis=0)).abs().sum(axis=1) / 2
