"""Shares data out: who gets which images, and the folders of the sites on a machine that plays several hospitals.

A hospital makes its own folder by whatever means; here :func:`write_sites` puts them side by side. See :mod:`src.common.datalists`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_scripts.folders import link_or_copy, one_at_a_time, staged
from src.common.datalists import DATALIST, PARTS, Datalists, _each, _files, _is_file, _shared, site_names
from src.common.errors import CourseError, all_of
from src.common.files import read_json, stamp, write_json
from src.common.paths import sites_folder

ABOUT = "about.json"
"""Beside the sites' folders, where this course made them: what they were made of."""


def random_numbers(seed: int, site: str = "") -> np.random.Generator:
    """NumPy's generator, fixed by a seed and the name of a site; a ``CourseError`` for a negative seed."""
    if seed < 0:
        raise CourseError(f"seed is {seed}; it must be 0 or more.")
    return np.random.default_rng([seed, *site.encode()])


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


def _below(item: dict, base: Path) -> dict:
    return {
        **item,
        **{key: Path(item[key]).relative_to(base).as_posix() for key in ("image", "label") if _is_file(item, key)},
    }


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
