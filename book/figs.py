"""Draw the pictures in ``figs/`` again: ``python -m book.figs [NAME ...] [--out DIR]``, which is what ``make figures`` calls.

The two schemes there are drawn by hand. All others show drawn data, whatever the reader's own settings are. Those that show a run
make that run first, which takes minutes.
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks import findings
from benchmarks.methods import LEFT_OUT, SKEWS, TITLES
from book import figures
from data_scripts import mednist_sites, prostate_download
from data_scripts.prepare import prepare
from data_scripts.sharing import classes, partition
from data_scripts.together import sites_of
from deploy.simulator import CourseSimEnv
from src.common.files import read_json
from src.federation.recipes import client_recipe
from src.federation.run import Run
from src.mednist.card import CARD as MEDNIST
from src.tasks import tasks

CHECKOUT = Path(__file__).resolve().parents[1]
WORK = CHECKOUT / "build" / "figures"  # data and runs of these pictures: the reader's own are left alone


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


def methods() -> plt.Figure:
    """Scores of all ways to train and to mend, from the kept reports of ``python -m benchmarks.methods``; nothing is trained."""
    results = findings.read().query("not row.str.startswith(@left_out)", local_dict={"left_out": LEFT_OUT})
    titles = TITLES | {name: skew.title for name, skew in SKEWS.items()}
    title = "MedNIST: the model that each site ends with, at home, on 1,200 new drawings; a dot a seed"
    return figures.method_scores(results, titles, "home", "accuracy at home", title)


PICTURES: dict[str, Callable[[], plt.Figure]] = {
    "mednist_classes.png": mednist_classes,
    "mednist_partition.svg": mednist_partition,
    "prostate_cases.png": prostate_cases,
    "methods_mednist.svg": methods,
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
