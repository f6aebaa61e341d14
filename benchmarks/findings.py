"""What the kept reports of :mod:`benchmarks.methods` say: tables, and differences with what chance leaves open.

A difference is measured on each image of a bank and in each seed, which has drawings, a bank and first weights of its own.
"""

import functools
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.methods import LEFT_OUT, RESULTS, SKEWS, TITLES, grid, unpacked
from benchmarks.uncertainty import Estimate, bootstrap, holm
from src.common.files import read_json


@functools.cache
def reports(folder: Path = RESULTS) -> dict[tuple[str, str, int], dict]:
    """All that is there: (skew, row, seed) → the report of the cell that the row is in."""
    found = {}
    for cell in grid():
        if report := read_json(folder / f"{cell}.json"):
            found |= {(cell.skew, row, cell.seed): report for row in report["rows"]}
    return found


def read(folder: Path = RESULTS) -> pd.DataFrame:
    """A row for each that is there: ``skew``, ``row``, ``seed``; ``home`` and ``everywhere``, means over sites; ``date``."""
    rows = []
    for (skew, row, seed), report in reports(folder).items():
        one = report["rows"][row]
        means = {value: float(np.mean([*one[value].values()])) for value in ("home", "everywhere")}
        rows.append({"skew": skew, "row": row, "seed": seed, **means, "date": report["date"]})
    return pd.DataFrame(rows)


def table(value: str = "home", folder: Path = RESULTS) -> pd.DataFrame:
    """Mean ± standard error over the seeds, a row a way to train or to mend, a column a way to differ; of those who took part."""
    groups = read(folder).groupby(["row", "skew"])[value]
    text = groups.mean().map("{:.3f}".format) + " ± " + groups.sem().map("{:.3f}".format)
    shown = text.unstack().reindex(
        index=[one for one in TITLES if one in text and not one.startswith(LEFT_OUT)], columns=[*SKEWS]
    )
    shown = shown.rename_axis(index=None, columns=None).fillna("")
    return shown.rename(index=TITLES, columns={name: skew.title for name, skew in SKEWS.items()})


def by_image(
    skew: str, row: str, seed: int, value: str = "home", site: str | None = None, folder: Path = RESULTS
) -> np.ndarray:
    """What each image of the bank adds: numbers whose mean is the accuracy ``value`` of the row, at one site or over all."""
    report = reports(folder)[skew, row, seed]
    judged, sizes = report["rows"][row], np.array(report["labels"])
    labels, sites = np.repeat(np.arange(len(sizes)), sizes), [*report["counts"]]
    styles = {name: str(number if SKEWS[skew].scanners else 0) for number, name in enumerate(sites)}
    parts = []
    for name in [site] if site else sites:
        bits = judged["right"].get(name) or judged["right"][sites[0]]  # those of the model that all have
        right = {style: unpacked(text, len(labels)) for style, text in bits.items()}
        counts = np.array(report["counts"][name])
        shares = counts / counts.sum() if value == "home" else np.full(len(sizes), 1 / len(sizes))
        seen = right[styles[name]] if value == "home" else np.mean([*right.values()], axis=0)
        parts.append(seen * (shares / sizes)[labels] * len(labels))
    return np.mean(parts, axis=0)


def gain(
    skew: str, row: str, over: str, value: str = "home", site: str | None = None, folder: Path = RESULTS
) -> Estimate:
    """How much better one row is than another with the same seeds, in accuracy, with its interval."""
    seeds, other = ({seed for *key, seed in reports(folder) if key == [skew, one]} for one in (row, over))
    tables = []
    for seed in sorted(seeds & other):
        one, rival = (by_image(skew, name, seed, value, site, folder) for name in (row, over))
        tables.append(pd.DataFrame({"seed": seed, "patient": np.arange(len(one)), "difference": one - rival}))
    return bootstrap(pd.concat(tables))


def gains(skew: str, over: str, rows: list[str], value: str = "home", folder: Path = RESULTS) -> pd.DataFrame:
    """:func:`gain` of several rows, and whether it is more than chance: ``p`` by Holm for all of them together."""
    found = {row: gain(skew, row, over, value, folder=folder) for row in rows}
    shown = pd.DataFrame(found, index=Estimate._fields).T
    return shown.assign(p=holm(shown["p"]))


def fairness(skew: str, row: str, over: str = "local", folder: Path = RESULTS) -> pd.DataFrame:
    """Each hospital's gain over staying alone, at home, with its interval; a row a site."""
    sites = [*next(report for (name, *_), report in reports(folder).items() if name == skew)["counts"]]
    return pd.DataFrame(
        {site: gain(skew, row, over, site=site, folder=folder) for site in sites}, index=Estimate._fields
    ).T


def cosines(skew: str, folder: Path = RESULTS) -> pd.DataFrame:
    """Mean cosine between two sites' changes in FedAvg, over the seeds: a row a round, a column a part of the network."""
    found = [report["cosines"] for (name, row, _), report in reports(folder).items() if (name, row) == (skew, "fedavg")]
    return sum(pd.DataFrame(one) for one in found) / len(found)
