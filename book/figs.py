"""Draw the pictures in ``figs/`` again: ``python -m book.figs [NAME ...] [--out DIR]``, which is what ``make figures`` calls.

All of them show drawn data, whatever the reader's own settings are. Those that show a run make that run first, as the notebook
does; that takes minutes.
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from benchmarks import methods as grid
from book.figures import (
    INK,
    case_grid,
    class_montage,
    example_images,
    federated_curves,
    load_case,
    method_scores,
    partition_bars,
    site_color,
    use_style,
)
from data_scripts import mednist as mednist_data
from data_scripts import prostate as prostate_data
from data_scripts.sharing import partition, who_has_what
from src.common.datalists import sites_of
from src.common.files import read_json
from src.common.task import Card, tasks
from src.federation.run import Run
from src.federation.simulator import CourseSimEnv
from src.mednist.card import CARD as MEDNIST

CHECKOUT = Path(__file__).resolve().parents[1]
WORK = CHECKOUT / "build" / "figures"
"""Drawn data and runs of these pictures: the reader's own data, shares and runs are left alone."""

SERVER_COLOR = "#33415c"


def mednist_classes() -> plt.Figure:
    """Examples of every class."""
    images = example_images(_mednist_items(), MEDNIST.labels, columns=12)
    return class_montage(images, "MedNIST's six classes, as the course draws them: no patients")


def mednist_partition() -> plt.Figure:
    """Who would hold what with skewed labels; nothing is shared out."""
    shares = partition(_mednist_items(), 4, how="dirichlet", alpha=0.3)
    table = who_has_what(
        {site: {"training": own, "validation": [], "testing": []} for site, own in shares.items()}, MEDNIST.labels
    )
    return partition_bars(table, MEDNIST.labels, "Four sites with skewed labels: Dirichlet with α = 0.3")


def _mednist_items() -> list[dict]:
    return mednist_data.read_items(mednist_data.find_or_make("generated"))


def prostate_cases() -> plt.Figure:
    """Two T2 volumes of each hospital, one above the other."""
    raw = prostate_data.find_or_make("generated")
    hospitals = read_json(raw / "hospitals.json")
    cases = []
    for row in range(2):
        for site, names in hospitals.items():
            file = f"{names[row]}.nii.gz"
            item = {"image": raw / "imagesTr" / file, "label": raw / "labelsTr" / file}
            cases.append(load_case(item, f"{site} · {names[row]}"))
    return case_grid(cases, "T2 volumes of four hospitals, as the course draws them: no patients", len(hospitals))


def curves(card: Card) -> plt.Figure:
    """Curves of a run of one task, with the sites and settings that its rooms have by default."""
    data = card.room("data").prepare()
    sites = sites_of(data)
    result = card.room("recipe").recipe(len(sites)).execute(CourseSimEnv(sites, card.name)).get_result()
    return federated_curves(Run(result), ("train_loss", card.key_metric))


def methods(task: str) -> plt.Figure:
    """Scores of all methods of one task, from the kept reports of ``python -m benchmarks.methods``; nothing is trained."""
    results = grid.read()
    title = f"{tasks()[task].title}: what each site ends with, on its own testing part; a dot a seed"
    return method_scores(
        results[results["task"] == task], grid.TITLES | grid.SKEW_TITLES, "home", "score at home", title
    )


def fedavg_flow() -> plt.Figure:
    """The six steps of a FedAvg round between a server and two sites."""
    figure, axis = plt.subplots(figsize=(10, 5.4), layout="constrained")
    axis.set(xlim=(0, 10), ylim=(0, 5.4))
    axis.set_axis_off()
    steps = {
        "1": "load the first global model: persistor",
        "5": r"average  $w = \sum_k \frac{n_k}{n} w_k$ : aggregator",
        "6": "update, save, keep the best: persistor",
    }
    _box(axis, 2.3, 3.45, 5.4, SERVER_COLOR, "Server · FedAvg controller", steps)
    for number, left in enumerate((0.3, 5.7)):
        color, name = site_color(number), number + 1
        steps = {"3": "validate the received model", "4": f"train it on its own $n_{name}$ images"}
        _box(axis, left, 0.25, 4.0, color, f"site-{name}", steps)
        # The right half mirrors the left one, about the middle of the figure.
        outwards, outer, inner = (-1, "right", "left") if number == 0 else (1, "left", "right")
        _arrow(axis, (5 + outwards * 2.25, 3.4), (5 + outwards * 3.0, 1.75), SERVER_COLOR)
        _arrow(axis, (5 + outwards * 2.25, 1.75), (5 + outwards * 1.5, 3.4), color)
        _badge(axis, 5 + outwards * 2.94, 2.62, "2", SERVER_COLOR, "white")
        look = {"va": "center", "fontsize": 10}
        axis.text(5 + outwards * 3.17, 2.62, "global weights", ha=outer, color=SERVER_COLOR, **look)
        answer = f"$w_{name}$, $n_{name}$, metrics"
        axis.text(5 + outwards * 1.575, 2.4, answer, ha=inner, color=color, weight="bold", **look)
    axis.text(5, 1.0, "no image\nleaves\na site", ha="center", va="center", color=INK, style="italic", fontsize=10.5)
    return figure


def federation_kits() -> plt.Figure:
    """Who dials whom in a real federation, and what is in a site's start-up kit."""
    figure, axis = plt.subplots(figsize=(10, 5.2), layout="constrained")
    axis.set(xlim=(0, 10), ylim=(0, 5.2))
    axis.set_axis_off()
    rounded, look = "round,pad=0,rounding_size=0.12", {"va": "center", "fontsize": 10}

    def box(left: float, bottom: float, width: float, height: float, color: str, head: str, lines: str) -> None:
        axis.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle=rounded, fc=color, ec="none"))
        axis.text(left + 0.15, bottom + height - 0.25, head, va="center", color="white", weight="bold", fontsize=11)
        axis.text(left + 0.15, bottom + height - 0.48, lines, va="top", color="white", fontsize=9.5, linespacing=1.5)

    box(
        3.3, 3.6, 3.4, 1.4, SERVER_COLOR, "server", "one open port\nstart-up kit with its own key\njobs, models, record"
    )
    box(7.9, 3.8, 1.9, 1.0, "#6b7a90", "lead", "a kit with a key\nsubmits recipes")
    _arrow(axis, (7.85, 4.3), (6.75, 4.3), "#6b7a90")
    for number, left in enumerate((0.2, 3.5, 6.8)):
        site = f"site-{number + 1}"
        box(
            left,
            0.2,
            3.0,
            1.75,
            site_color(number),
            site,
            "own key and certificate\nown rules in local/\nown data, which stay here",
        )
        _arrow(axis, (left + 1.5, 1.85), (4.2 + 0.8 * number, 3.55), site_color(number))
    axis.text(0.2, 2.75, "sites dial out,\nover mutual TLS", ha="left", color=INK, style="italic", **look)
    axis.text(9.8, 2.75, "nobody calls\na hospital", ha="right", color=INK, style="italic", **look)
    axis.text(0.2, 4.3, "project owner:\nthe root's key, offline.\nSigns every kit, once", color=INK, **look)
    return figure


def _box(axis, left: float, bottom: float, width: float, color: str, head: str, steps: dict[str, str]) -> None:
    """A coloured box with a heading and, below it, numbered steps."""
    top = bottom + 0.62 + 0.4 * len(steps)
    rounded = "round,pad=0,rounding_size=0.12"
    axis.add_patch(FancyBboxPatch((left, bottom), width, top - bottom, boxstyle=rounded, fc=color, ec="none"))
    axis.text(left + 0.25, top - 0.3, head, va="center", color="white", weight="bold", fontsize=12)
    for row, (number, text) in enumerate(steps.items()):
        middle = top - 0.72 - 0.4 * row
        _badge(axis, left + 0.42, middle, number, "white", color)
        axis.text(left + 0.72, middle, text, va="center", color="white", fontsize=10.5)


def _badge(axis, x: float, y: float, number: str, color: str, ink: str) -> None:
    circle = {"boxstyle": "circle,pad=0.25", "fc": color, "ec": "none"}
    axis.text(x, y, number, ha="center", va="center", color=ink, weight="bold", fontsize=9.5, bbox=circle)


def _arrow(axis, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=18, color=color, lw=2))


PICTURES: dict[str, Callable[[], plt.Figure]] = {
    "mednist_classes.png": mednist_classes,
    "mednist_partition.svg": mednist_partition,
    "fedavg_flow.svg": fedavg_flow,
    "federation_kits.svg": federation_kits,
    "prostate_cases.png": prostate_cases,
    "methods_mednist.svg": partial(methods, "mednist"),
    **{f"{name}_curves.svg": partial(curves, card) for name, card in tasks().items()},
}


def use_drawings() -> None:
    """Put the reader's own settings of this course aside, and draw, share out and run in :data:`WORK`."""
    for name in [name for name in os.environ if name.startswith("COURSE_")]:
        del os.environ[name]
    os.environ["COURSE_DATA_SOURCE"] = "generated"
    os.environ["COURSE_DATA"] = str(WORK / "data")
    os.environ["COURSE_RUNS"] = str(WORK / "runs")


def main(arguments: list[str] | None = None) -> int:
    """Draw pictures; by default all of them, into ``figs/``."""
    parser = argparse.ArgumentParser(prog="python -m book.figs", description="Draw the pictures in figs/ again.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default all: {', '.join(PICTURES)}")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "figs", help="folder of the pictures, by default figs")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(PICTURES):
        parser.error(f"there is no picture {', '.join(sorted(unknown))}; choose from {', '.join(PICTURES)}")
    plt.switch_backend("agg")
    use_style()
    use_drawings()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or PICTURES:
        figure = PICTURES[name]()
        # Without a date, the same picture is the same file.
        undated = {"metadata": {"Date": None}} if name.endswith(".svg") else {}
        figure.savefig(options.out / name, facecolor="white", **undated)
        plt.close(figure)
        print(f"drew {options.out / name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
