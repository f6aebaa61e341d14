"""Draw the pictures in ``figs/`` again: ``python -m book.figs [NAME ...] [--out DIR]``, which is what ``make figures`` calls.

All show drawn data, whatever the reader's own settings are. Those that show a run make that run first, which takes minutes.
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

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
WORK = CHECKOUT / "build" / "figures"  # data and runs of these pictures: the reader's own are left alone
SERVER_COLOR, LEAD_COLOR = "#33415c", "#6b7a90"
ARROW = {"arrowstyle": "-|>", "mutation_scale": 18, "lw": 2}


def mednist_classes() -> plt.Figure:
    """Examples of every class."""
    images = figures.example_images(_mednist_items(), MEDNIST.labels, columns=12)
    return figures.class_montage(images, "MedNIST's six classes, as the course draws them: no patients")


def mednist_partition() -> plt.Figure:
    """Who would hold what with skewed labels; nothing is shared out."""
    counts = classes(partition(_mednist_items(), 4, how="dirichlet", alpha=0.3), MEDNIST.labels)
    return figures.partition_bars(counts, MEDNIST.labels, "Four sites with skewed labels: Dirichlet with α = 0.3")


def _mednist_items() -> list[dict]:
    return mednist_sites.read_items(mednist_sites.find_or_make("generated"))


def prostate_cases() -> plt.Figure:
    """Two T2 volumes of each hospital, one above the other."""
    raw, cases = prostate_download.find_or_make("generated"), []
    hospitals = read_json(raw / "hospitals.json")
    for site, name in [(site, names[row]) for row in range(2) for site, names in hospitals.items()]:
        item = {"image": raw / "imagesTr" / f"{name}.nii.gz", "label": raw / "labelsTr" / f"{name}.nii.gz"}
        cases.append(figures.load_case(item, f"{site} · {name}"))
    title = "T2 volumes of four hospitals, as the course draws them: no patients"
    return figures.case_grid(cases, title, len(hospitals))


def curves(name: str) -> plt.Figure:
    """Curves of a run of one task, on its data and with its settings as they are by default."""
    task, sites = tasks()[name], sites_of(prepare(name))
    run = client_recipe(task, len(sites)).execute(CourseSimEnv(sites, name))
    return figures.federated_curves(Run(run.get_result()), ("train_loss", task.key_metric))


def methods(name: str) -> plt.Figure:
    """Scores of all methods of one task, from the kept reports of ``python -m benchmarks.methods``; nothing is trained."""
    results, titles = grid.read().query("task == @name"), grid.TITLES | grid.SKEW_TITLES
    title = f"{tasks()[name].title}: what each site ends with, on its own testing part; a dot a seed"
    return figures.method_scores(results, titles, "home", "score at home", title)


def fedavg_flow() -> plt.Figure:
    """The six steps of a FedAvg round between a server and two sites."""
    axis = _sheet(5.4)
    load, update = "❶  load the first global model: persistor", "❻  update, save, keep the best: persistor"
    average = r"❺  average  $w = \sum_k \frac{n_k}{n} w_k$ : aggregator"
    _box(axis, (2.3, 3.45), (5.4, 1.82), SERVER_COLOR, "Server · FedAvg controller", load, average, update)
    # The right half mirrors the left one, about the middle of the figure.
    for name, (left, side, outer, inner) in enumerate(((0.3, -1, "right", "left"), (5.7, 1, "left", "right")), start=1):
        color = site_color(name - 1)
        steps = "❸  validate the received model", f"❹  train it on its own $n_{name}$ images"
        _box(axis, (left, 0.25), (4.0, 1.42), color, f"site-{name}", *steps)
        axis.annotate("", (5 + side * 3.0, 1.75), (5 + side * 2.25, 3.4), arrowprops={"color": SERVER_COLOR, **ARROW})
        axis.annotate("", (5 + side * 1.5, 3.4), (5 + side * 2.25, 1.75), arrowprops={"color": color, **ARROW})
        axis.text(5 + side * 2.94, 2.62, "❷", ha="center", va="center", color=SERVER_COLOR, fontsize=15)
        axis.text(5 + side * 3.17, 2.62, "global weights", ha=outer, va="center", color=SERVER_COLOR)
        answer = f"$w_{name}$, $n_{name}$, metrics"
        axis.text(5 + side * 1.575, 2.4, answer, ha=inner, va="center", color=color, weight="bold")
    axis.text(5, 1.0, "no image\nleaves\na site", ha="center", va="center", color=INK, style="italic", fontsize=10.5)
    return axis.figure


def federation_kits() -> plt.Figure:
    """Who dials whom in a real federation, and what is in a site's start-up kit."""
    axis = _sheet(5.2)
    server = "one open port", "start-up kit with its own key", "jobs, models, record"
    _box(axis, (3.3, 3.6), (3.4, 1.4), SERVER_COLOR, "server", *server)
    _box(axis, (7.9, 3.75), (1.9, 1.1), LEAD_COLOR, "lead", "a kit with a key", "submits recipes")
    axis.annotate("", (6.75, 4.3), (7.85, 4.3), arrowprops={"color": LEAD_COLOR, **ARROW})
    own = "own key and certificate", "own rules in local/", "own data, which stay here"
    for number, left in enumerate((0.2, 3.5, 6.8)):
        _box(axis, (left, 0.2), (3.0, 1.4), site_color(number), f"site-{number + 1}", *own)
        axis.annotate(
            "", (4.2 + 0.8 * number, 3.55), (left + 1.5, 1.65), arrowprops={"color": site_color(number), **ARROW}
        )
    axis.text(0.2, 2.75, "sites dial out,\nover mutual TLS", va="center", color=INK, style="italic")
    axis.text(9.8, 2.75, "nobody calls\na hospital", va="center", ha="right", color=INK, style="italic")
    axis.text(0.2, 4.3, "project owner:\nthe root's key, offline.\nSigns every kit, once", va="center", color=INK)
    return axis.figure


def _sheet(height: float) -> plt.Axes:
    axis = plt.figure(figsize=(10, height), layout="constrained").subplots()
    axis.set(xlim=(0, 10), ylim=(0, height))
    axis.set_axis_off()
    return axis


def _box(axis, corner: tuple[float, float], size: tuple[float, float], color: str, head: str, *lines: str) -> None:
    """A coloured box with its lower left ``corner``, a heading and, below it, lines of text."""
    axis.add_patch(FancyBboxPatch(corner, *size, boxstyle="round,pad=0,rounding_size=0.12", fc=color, ec="none"))
    (left, bottom), room = corner, size[1] - 0.55
    look = {"va": "center", "color": "white"}
    axis.text(left + 0.2, bottom + room + 0.27, head, weight="bold", fontsize=11.5, **look)
    for row, line in enumerate(reversed(lines)):
        axis.text(left + 0.2, bottom + 0.07 + room / len(lines) * (row + 0.5), line, **look)


PICTURES: dict[str, Callable[[], plt.Figure]] = {
    "mednist_classes.png": mednist_classes,
    "mednist_partition.svg": mednist_partition,
    "fedavg_flow.svg": fedavg_flow,
    "federation_kits.svg": federation_kits,
    "prostate_cases.png": prostate_cases,
    "methods_mednist.svg": partial(methods, "mednist"),
    **{f"{name}_curves.svg": partial(curves, name) for name in tasks()},
}


def main(arguments: list[str] | None = None) -> int:
    """Draw pictures; by default all of them, into ``figs/``."""
    parser = argparse.ArgumentParser(prog="python -m book.figs", description="Draw the pictures in figs/ again.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="by default all")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "figs", help="folder of the pictures, by default figs")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(PICTURES):
        parser.error(f"there is no picture {', '.join(sorted(unknown))}; choose from {', '.join(PICTURES)}")
    for name in [name for name in os.environ if name.startswith("COURSE_")]:
        del os.environ[name]
    os.environ |= {"COURSE_DATA": f"{WORK}/data", "COURSE_RUNS": f"{WORK}/runs", "COURSE_DATA_SOURCE": "generated"}
    plt.switch_backend("agg")
    figures.use_style()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or PICTURES:
        # Without a date, the same picture is the same file.
        undated = {"metadata": {"Date": None}} if name.endswith(".svg") else {}
        PICTURES[name]().savefig(options.out / name, facecolor="white", **undated)
        plt.close("all")
        print(f"drew {options.out / name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
