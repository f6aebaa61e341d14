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
from book import figures
from book.figures import INK, site_color
from data_scripts import mednist_sites, prostate_download
from data_scripts.prepare import prepare
from data_scripts.sharing import classes, partition
from src.common.datalists import sites_of
from src.common.files import read_json
from src.federation.recipes import client_recipe
from src.federation.run import Run
from src.federation.simulator import CourseSimEnv
from src.mednist.card import CARD as MEDNIST
from src.tasks import tasks

CHECKOUT = Path(__file__).resolve().parents[1]
WORK = CHECKOUT / "build" / "figures"
"""Drawn data and runs of these pictures: the reader's own data, shares and runs are left alone."""

SERVER_COLOR, LEAD_COLOR = "#33415c", "#6b7a90"


def mednist_classes() -> plt.Figure:
    """Examples of every class."""
    images = figures.example_images(_mednist_items(), MEDNIST.labels, columns=12)
    return figures.class_montage(images, "MedNIST's six classes, as the course draws them: no patients")


def mednist_partition() -> plt.Figure:
    """Who would hold what with skewed labels; nothing is shared out."""
    shares = partition(_mednist_items(), 4, how="dirichlet", alpha=0.3)
    title = "Four sites with skewed labels: Dirichlet with α = 0.3"
    return figures.partition_bars(classes(shares, MEDNIST.labels), MEDNIST.labels, title)


def _mednist_items() -> list[dict]:
    return mednist_sites.read_items(mednist_sites.find_or_make("generated"))


def prostate_cases() -> plt.Figure:
    """Two T2 volumes of each hospital, one above the other."""
    raw = prostate_download.find_or_make("generated")
    hospitals = read_json(raw / "hospitals.json")
    cases = []
    for row in range(2):
        for site, names in hospitals.items():
            image = raw / "imagesTr" / f"{names[row]}.nii.gz"
            item = {"image": image, "label": raw / "labelsTr" / image.name}
            cases.append(figures.load_case(item, f"{site} · {names[row]}"))
    title = "T2 volumes of four hospitals, as the course draws them: no patients"
    return figures.case_grid(cases, title, len(hospitals))


def curves(name: str) -> plt.Figure:
    """Curves of a run of one task, on its data and with its settings as they are by default."""
    task = tasks()[name]
    sites = sites_of(prepare(name))
    run = client_recipe(task, len(sites)).execute(CourseSimEnv(sites, name))
    return figures.federated_curves(Run(run.get_result()), ("train_loss", task.key_metric))


def methods(name: str) -> plt.Figure:
    """Scores of all methods of one task, from the kept reports of ``python -m benchmarks.methods``; nothing is trained."""
    results = grid.read()
    title = f"{tasks()[name].title}: what each site ends with, on its own testing part; a dot a seed"
    titles = grid.TITLES | grid.SKEW_TITLES
    return figures.method_scores(results[results["task"] == name], titles, "home", "score at home", title)


def fedavg_flow() -> plt.Figure:
    """The six steps of a FedAvg round between a server and two sites."""
    figure, axis = _sheet(5.4)
    load, update = "❶  load the first global model: persistor", "❻  update, save, keep the best: persistor"
    average = r"❺  average  $w = \sum_k \frac{n_k}{n} w_k$ : aggregator"
    _box(axis, (2.3, 3.45, 5.4, 1.82), SERVER_COLOR, "Server · FedAvg controller", load, average, update)
    for number, left in enumerate((0.3, 5.7)):
        color, name = site_color(number), number + 1
        steps = "❸  validate the received model", f"❹  train it on its own $n_{name}$ images"
        _box(axis, (left, 0.25, 4.0, 1.42), color, f"site-{name}", *steps)
        # The right half mirrors the left one, about the middle of the figure.
        outwards, outer, inner = (-1, "right", "left") if number == 0 else (1, "left", "right")
        _arrow(axis, (5 + outwards * 2.25, 3.4), (5 + outwards * 3.0, 1.75), SERVER_COLOR)
        _arrow(axis, (5 + outwards * 2.25, 1.75), (5 + outwards * 1.5, 3.4), color)
        look = {"va": "center", "fontsize": 10}
        axis.text(5 + outwards * 2.94, 2.62, "❷", ha="center", va="center", color=SERVER_COLOR, fontsize=15)
        axis.text(5 + outwards * 3.17, 2.62, "global weights", ha=outer, color=SERVER_COLOR, **look)
        answer = f"$w_{name}$, $n_{name}$, metrics"
        axis.text(5 + outwards * 1.575, 2.4, answer, ha=inner, color=color, weight="bold", **look)
    axis.text(5, 1.0, "no image\nleaves\na site", ha="center", va="center", color=INK, style="italic", fontsize=10.5)
    return figure


def federation_kits() -> plt.Figure:
    """Who dials whom in a real federation, and what is in a site's start-up kit."""
    figure, axis = _sheet(5.2)
    server = "one open port", "start-up kit with its own key", "jobs, models, record"
    _box(axis, (3.3, 3.6, 3.4, 1.4), SERVER_COLOR, "server", *server)
    _box(axis, (7.9, 3.75, 1.9, 1.1), LEAD_COLOR, "lead", "a kit with a key", "submits recipes")
    _arrow(axis, (7.85, 4.3), (6.75, 4.3), LEAD_COLOR)
    own = "own key and certificate", "own rules in local/", "own data, which stay here"
    for number, left in enumerate((0.2, 3.5, 6.8)):
        _box(axis, (left, 0.2, 3.0, 1.4), site_color(number), f"site-{number + 1}", *own)
        _arrow(axis, (left + 1.5, 1.65), (4.2 + 0.8 * number, 3.55), site_color(number))
    look = {"va": "center", "fontsize": 10, "color": INK}
    axis.text(0.2, 2.75, "sites dial out,\nover mutual TLS", ha="left", style="italic", **look)
    axis.text(9.8, 2.75, "nobody calls\na hospital", ha="right", style="italic", **look)
    axis.text(0.2, 4.3, "project owner:\nthe root's key, offline.\nSigns every kit, once", **look)
    return figure


def _sheet(height: float):
    figure, axis = plt.subplots(figsize=(10, height), layout="constrained")
    axis.set(xlim=(0, 10), ylim=(0, height))
    axis.set_axis_off()
    return figure, axis


def _box(axis, place: tuple[float, float, float, float], color: str, head: str, *lines: str) -> None:
    """A coloured box at ``(left, bottom, width, height)`` with a heading and, below it, lines of text."""
    left, bottom, width, height = place
    rounded = "round,pad=0,rounding_size=0.12"
    axis.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle=rounded, fc=color, ec="none"))
    look = {"va": "center", "color": "white"}
    axis.text(left + 0.2, bottom + height - 0.28, head, weight="bold", fontsize=11.5, **look)
    for row, line in enumerate(reversed(lines)):
        axis.text(left + 0.2, bottom + 0.07 + (height - 0.55) / len(lines) * (row + 0.5), line, fontsize=10, **look)


def _arrow(axis, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=18, color=color, lw=2))


PICTURES: dict[str, Callable[[], plt.Figure]] = {
    "mednist_classes.png": mednist_classes,
    "mednist_partition.svg": mednist_partition,
    "fedavg_flow.svg": fedavg_flow,
    "federation_kits.svg": federation_kits,
    "prostate_cases.png": prostate_cases,
    "methods_mednist.svg": partial(methods, "mednist"),
    **{f"{name}_curves.svg": partial(curves, name) for name in tasks()},
}


def use_drawings() -> None:
    """Put the reader's own settings of this course aside, and draw, share out and run in :data:`WORK`."""
    for name in [name for name in os.environ if name.startswith("COURSE_")]:
        del os.environ[name]
    own = {"COURSE_DATA": str(WORK / "data"), "COURSE_RUNS": str(WORK / "runs")}
    os.environ.update(own, COURSE_DATA_SOURCE="generated")


def main(arguments: list[str] | None = None) -> int:
    """Draw pictures; by default all of them, into ``figs/``."""
    parser = argparse.ArgumentParser(prog="python -m book.figs", description="Draw the pictures in figs/ again.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default all: {', '.join(PICTURES)}")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "figs", help="folder of the pictures, by default figs")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(PICTURES):
        parser.error(f"there is no picture {', '.join(sorted(unknown))}; choose from {', '.join(PICTURES)}")
    plt.switch_backend("agg")
    figures.use_style()
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
