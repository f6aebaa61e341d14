"""Shares data out: who gets which images, and the folders of the sites on a machine that plays several hospitals.

A hospital makes its own folder by whatever means; here :func:`write_sites` puts them side by side. See :mod:`src.common.datalists`.
"""

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from data_scripts.folders import link_or_copy, one_at_a_time, staged
from src.common.datalists import CHECKED, DATALIST, PARTS, each, in_two_places, plain_item, site_names, volumes
from src.common.errors import CourseError, all_of
from src.common.files import read_json, stamp, write_json
from src.common.paths import sites_folder
from src.common.settings import Checked, Count, NotNegative, Number, Positive

Items = Sequence[dict]
ABOUT = "about.json"  # beside the sites' folders, where this course made them: what they were made of


class Arguments(Checked):
    """What somebody asks for here, as it is given: a text is no number, and True is not 1."""

    seed: Number = 0
    site: str = ""
    counts: tuple[Count, ...] | None = None
    alpha: Positive | None = None
    homes: tuple[Number, ...] | None = None
    few: Number | None = None
    skew: Annotated[NotNegative, Field(le=1)] | None = None
    validation: NotNegative = 0.0
    testing: NotNegative = 0.0
    per_class: Count | None = None


def random_numbers(seed: int, site: str = "") -> np.random.Generator:
    """NumPy's generator, fixed by a seed and the name of a site; a ``CourseError`` for what is none."""
    Arguments(seed=seed, site=site)
    return np.random.default_rng([seed, *site.encode()])


def _class(item: Mapping) -> int:  # items with a mask are one class
    return 0 if volumes(item) else item["label"]


def _plain(items: Items, homes: Sequence[int] = ()) -> list[dict]:  # no image, and no class, may be given out twice
    plain = [*map(plain_item, items)]
    for one, number in Counter([*(os.path.normpath(item["image"]) for item in plain), *homes]).items():
        if number > 1:
            raise CourseError(f"{one!r} is given {number} times to be shared out; give it once.")
    return plain


def mixed(items: Items, rng: np.random.Generator) -> list[dict]:
    """Shuffle so that every stretch of the list has the classes in their overall proportions, to within one item. Cutting it gives
    stratified parts of any size; scikit-learn's stratified splitters refuse a class with one item and a part smaller than the
    number of classes, and a hospital may well have both."""
    placed = []
    for _, own in itertools.groupby(sorted(items, key=_class), _class):
        own = list(own)
        order, start = rng.permutation(len(own)), rng.random()
        placed += [((k + start) / len(own), own[i]) for k, i in enumerate(order)]
    return [item for _, item in sorted(placed, key=lambda pair: pair[0])]


def split(items: Items, validation: float, testing: float, seed: int = 0, site: str = "") -> dict[str, list[dict]]:
    """Split one site's items into the three parts, by the shares of two of them; seed and name fix it, each has the mix of classes.
    Training gets at least one item; validation and testing get one each as soon as there are enough. A ``CourseError`` for no
    items, an image given twice, wrong labels or types, or shares that leave nothing for training."""
    Arguments(validation=validation, testing=testing)
    if validation + testing >= 1:
        raise CourseError(f"The shares validation={validation} and testing={testing} must leave some for training.")
    if not items:
        raise CourseError(f"{site or 'This place'} has no items to split.")
    order, count = mixed(_plain(items), random_numbers(seed, site)), len(items)
    tests = round(count * testing)
    held = round(count * (testing + validation)) - tests
    if count >= 3:
        tests, held = max(tests, 1 if testing else 0), max(held, 1 if validation else 0)
    else:
        tests, held = 0, count - 1 if validation else 0
    end = count - tests
    return {"training": order[: end - held], "validation": order[end - held : end], "testing": order[end:]}


def _even(items: Items, sites: int, rng: np.random.Generator) -> list[Items]:
    order = sorted(mixed(items, rng), key=_class)
    return [order[i::sites] for i in range(sites)]


def _by_counts(items: Items, sites: int, rng: np.random.Generator, counts: Sequence[int] = ()) -> list[Items]:
    counts = list(counts)
    if len(counts) != sites or sum(counts) > len(items):
        said = f"give one number of at least 1 for each of the {sites} sites, at most {len(items)} in all."
        raise CourseError(f"counts is {counts}; {said}")
    order = iter(mixed(items, rng))
    return [list(itertools.islice(order, count)) for count in counts]


def _by_dirichlet(items: Items, sites: int, rng: np.random.Generator, alpha: float = 0.5) -> list[Items]:
    pools = [list(own) for _, own in itertools.groupby(sorted(items, key=_class), _class)]
    for pool in pools:
        rng.shuffle(pool)
    # A concentration below NumPy's smallest number means the limit: each site sees one class.
    overall = np.array([len(pool) for pool in pools]) / len(items)
    mixes = rng.dirichlet(np.maximum(alpha * overall, 1e-6), size=sites)
    shares = [[] for _ in range(sites)]
    # One item a site in turn, so that no site is left with what all others did not want.
    for turn in range(len(items)):
        left = np.array([len(pool) for pool in pools])
        wanted = np.where(left > 0, mixes[turn % sites], 0)
        wanted = wanted if wanted.sum() > 0 else left
        shares[turn % sites].append(pools[rng.choice(len(pools), p=wanted / wanted.sum())].pop())
    return shares


def _specialised(items: Items, sites: int, rng: np.random.Generator, homes: Sequence[int] = (), few: int = 0):
    if len(homes) < sites:
        raise CourseError(f"{len(homes)} classes cannot be at home at {sites} sites; every site needs one of its own.")
    if homeless := {item["label"] for item in items}.difference(homes):
        raise CourseError(f"homes is {homes}: no site would get the items of class {', '.join(map(str, homeless))}.")
    shares = [[] for _ in range(sites)]
    for home, label in ((home, one) for home, own in enumerate(np.array_split(homes, sites)) for one in own):
        own, given = [item for item in items if item["label"] == label], few * (sites - 1)
        if len(own) - given < max(few, 1):
            where = "the sites where it is not at home, which leaves too few at its own."
            raise CourseError(f"few is {few}: of the {len(own)} items of class {label} {given} would go to {where}")
        order = [own[i] for i in rng.permutation(len(own))]
        for turn, share in enumerate(shares[:home] + shares[home + 1 :]):
            share += order[few * turn : few * (turn + 1)]
        shares[home] += order[given:]
    return shares


def mixes(sites: int, labels: int, skew: float) -> np.ndarray:
    """Share of each class at each site, ``(sites, labels)``: ``(1 - skew) * uniform + skew * home classes``. Each site has two home
    classes, in turn: of six classes, four sites have 0 and 1, 2 and 3, 4 and 5, 1 and 2."""
    homes = [(2 * site + 2 * site // labels + np.arange(2)) % labels for site in range(sites)]
    return (1 - skew) / labels + skew / 2 * np.array([np.isin(np.arange(labels), home) for home in homes])


def _mixed(items: Items, sites: int, rng: np.random.Generator, counts: Sequence[int] = (), skew: float = 0.0):
    pools = {label: list(own) for label, own in itertools.groupby(sorted(items, key=_class), _class)}
    for pool in pools.values():
        rng.shuffle(pool)
    if len(counts) != sites or len(pools) < 2:
        raise CourseError(
            f"counts is {counts}; give one number for each of the {sites} sites, and two classes or more."
        )
    shares = [[] for _ in range(sites)]
    for site, mix in enumerate(mixes(sites, len(pools), skew)):
        due = counts[site] * mix
        numbers = due.astype(int)  # and one more of those classes that lost most by rounding down
        numbers[np.argsort(numbers - due, kind="stable")[: counts[site] - numbers.sum()]] += 1
        for (label, pool), number in zip(pools.items(), numbers, strict=True):
            if number > len(pool):
                said = f"Site {site + 1} would get {number} items of class {label}, of which {len(pool)} are left."
                raise CourseError(f"{said} Share out more, or lower counts.")
            shares[site] += [pool.pop() for _ in range(number)]
    return shares


# The ways of `partition`: what shares out, and the options that it heeds.
HOW = {"specialised": (_specialised, "homes", "few"), "even": (_even,), "counts": (_by_counts, "counts")}
HOW |= {"dirichlet": (_by_dirichlet, "alpha"), "scanners": (_even,), "mixed": (_mixed, "counts", "skew")}


def partition(
    items: Items,
    sites: int | Sequence[str],
    how: str = "even",
    counts: Sequence[int] | None = None,
    alpha: float | None = None,
    seed: int = 0,
    homes: Sequence[int] | None = None,
    few: int | None = None,
    skew: float | None = None,
) -> dict[str, list[dict]]:
    """Share items out over sites, so many or of these names; no item is at two sites. ``even``: equal numbers and the same mix of
    classes everywhere; ``scanners``: the same, for :mod:`data_scripts.scanners`. ``counts``: so many items a site, the same mix;
    what is left over is not used. ``dirichlet``: equal numbers, the mix of each site drawn from a Dirichlet distribution whose mean
    is the overall mix (Hsu et al., 2019, https://arxiv.org/abs/1909.06335); ``alpha``, by default 0.5, is its concentration, summed
    over the classes: 100 gives nearly equal sites, 0.1 one or two classes each, as long as there are images of these.
    ``specialised``: every class is at home at one site, the first of ``homes``, which are all classes, at the first site, and so
    on, in equal numbers; ``few`` of its items, by default none, are at each other site. ``mixed``: ``counts`` items a site, in the
    proportions of :func:`mixes`, by ``skew`` from 0, all alike, to 1, home classes alone; what is left over is not used. A
    ``CourseError`` for an unknown ``how``, an option that it does not heed, an image or class given twice, wrong labels or types,
    and numbers that are not possible."""
    options = {"counts": counts, "alpha": alpha, "homes": homes, "few": few, "skew": skew}
    Arguments(**options)
    names, rng, items = site_names(sites), random_numbers(seed), _plain(items, homes or ())
    if how not in [*HOW]:  # it may be a list
        raise CourseError(f"Unknown partition {how!r}; choose one of {', '.join(HOW)}.")
    options = {name: value for name, value in options.items() if value is not None}
    for name, value in options.items():
        if name not in HOW[how]:
            right = next(one for one in HOW if name in HOW[one])
            raise CourseError(f"{name} is {value}, which {how!r} does not heed; leave it out, or choose {right!r}.")
    if len(names) > len(items):
        raise CourseError(f"{len(items)} items cannot be shared out over {len(names)} sites; every site needs one.")
    return dict(zip(names, HOW[how][0](items, len(names), rng, **options), strict=True))


def write_sites(
    data: str, datalists: Mapping, base: Path, about: Mapping, say: Callable = print, labels: Sequence | None = None
) -> str:
    """Write a folder for every site, with its datalist and files of its own, below ``$COURSE_DATA/sites/<data>``; returns ``data``.
    All appear together, whole, or not at all. When the same was written before, from files that are unchanged, nothing is done;
    what this function wrote for other settings, ``about``, is replaced. Volumes are hashed here alone, into ``checked.json``. Items
    have absolute paths, all below ``base``: their places there are kept in the site's folder. ``labels`` are the ``classes`` of the
    task's card. A ``CourseError`` for a label that is none of them, a part that is none of :data:`PARTS`, an image that is missing,
    not below ``base``, at two sites or in two parts, or a folder that is not this function's or cannot be written."""
    folder, base = sites_folder(data), Path(os.path.normpath(base))
    site_names(list(datalists))
    datalists = {
        site: {part: [plain_item(one, labels) for one in own] for part, own in parts.items()}
        for site, parts in datalists.items()
    }
    relative = {site: {part: [] for part in parts} for site, parts in datalists.items()}
    for site, part, item in each(datalists):
        relative[site][part].append(item | _below(base, item))
    files = {(site, name) for site, _, item in each(relative) for name in (item["image"], *volumes(item).values())}
    stamps = [stamp(base / name) for name in sorted({name for _, name in files})]
    about = {"data": data, **about, "sites": list(datalists)}
    about["contents"] = hashlib.sha256(json.dumps([relative, stamps]).encode()).hexdigest()
    checked = {site: {} for site, _, item in each(relative) if volumes(item)}
    lists = {(site, DATALIST) for site in relative} | {(site, CHECKED) for site in checked}
    with one_at_a_time(folder.parent):
        found = read_json(folder / ABOUT)
        there = all((folder / site / name).is_file() for site, name in files | lists)
        if there and found == json.loads(json.dumps(about)):
            say(f"{folder}: shared out already over {', '.join(datalists)}, nothing to do.")
            return data
        if found is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            said = "Choose another name for the data, or move the folder away."
            raise CourseError(f"{folder} holds sites that were not made by sharing out here. {said}")
        # Known by their content, for a scan may be there under two names; small pictures with a class may well be equal.
        sums = {}
        for (site, _, item), (_, _, own) in zip(each(datalists), each(relative), strict=True):
            for key, file in volumes(item).items():
                checked[site][own[key]] = known = _sum(file)
                sums[file] = known["sha256"]
        if problems := in_two_places(datalists, sums):
            raise all_of("Nothing was shared out", problems)
        with staged(folder) as new:
            for site, name in files:
                (new / site / name).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(base / name, new / site / name)
            for site, name in lists:
                write_json(new / site / name, (relative if name == DATALIST else checked)[site])
            write_json(new / ABOUT, about)
    for site, parts in datalists.items():
        say(f"{folder / site}: " + ", ".join(f"{len(items)} {part}" for part, items in parts.items()))
    return data


def _below(base: Path, item: Mapping) -> dict[str, str]:  # the files of an item, as they are found from a folder
    files = {"image": item["image"], **volumes(item)}
    files = {key: Path(os.path.normpath(file)) for key, file in files.items()}
    for file in files.values():
        if not file.is_relative_to(base) or not os.access(file, os.R_OK):
            raise CourseError(f"{file} is not in {base}, or cannot be read.", "an image cannot be read")
    return {key: file.relative_to(base).as_posix() for key, file in files.items()}


def _sum(file: str) -> dict:
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise CourseError(f"Cannot read {file}: {error.strerror}.", "an image cannot be read") from error
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def who_has_what(datalists: Mapping, labels: Sequence[str] = ()):
    """Number of items: a pandas.DataFrame with a row a site and one for all, a column a part, one for all, and one a label; a
    ``CourseError`` for a label that is none of those, or a part that is none of :data:`PARTS`."""
    import pandas as pd

    items = [plain_item(item | {"site": site, "part": part}, labels or None) for site, part, item in each(datalists)]
    items = pd.DataFrame(items, columns=["site", "part", "label"])
    parts = pd.crosstab(items["site"], items["part"]).reindex(columns=[*PARTS])
    named = pd.crosstab(items["site"], items["label"].map(dict(enumerate(labels)))).reindex(columns=[*labels])
    table = pd.concat([parts, parts.sum(axis=1).rename("all parts"), named], axis=1).reindex(list(datalists))
    table = table.fillna(0).astype(int).rename_axis(index="site")
    table.loc["all sites"] = table.sum()
    return table


def classes(shares: Mapping[str, Sequence[Mapping]], labels: Sequence[str]):
    """Number of items of each class by site: a row a site, a column a class."""
    return who_has_what({site: {"training": items} for site, items in shares.items()}, labels)[list(labels)]


def distances(counts):
    """Total variation, 0 to 1, between each site's mix in a table of :func:`classes` and all others': a pandas.Series."""
    whole, own = counts.loc["all sites"], counts.drop(index="all sites")
    mixes, others = own.div(own.sum(axis=1), axis=0), whole - own
    return (mixes - others.div(others.sum(axis=1), axis=0)).abs().sum(axis=1) / 2
