"""Local, pooled and federated training as hospitals grow different: ``python -m benchmarks.methods [PATTERN ...]``.

A cell of the grid is one way that hospitals differ, one method and one seed, for example ``mednist-alpha0.1-scaffold-0``. Each cell
is measured once and kept as a JSON file; run again, the command goes on where it stopped. ``--table`` prints what is there.
A pattern is a cell's name, ``*`` for any part of it. All cells of a task see each training image equally often (Ditto: twice).
Measured again on the same machine by this command, which gives each process one thread, a cell's numbers come out the same. In a
notebook pooled training has all threads, and a few test images may fall otherwise; so they may with SCAFFOLD and FedOpt, for whose
means FLARE adds in single precision as answers come.
"""

import argparse
import datetime
import fnmatch
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.__main__ import versions
from benchmarks.local import train_each_site_alone, train_locally
from benchmarks.warm import warm_python
from data_scripts import data_conversion, datalists_gen, mednist_sites, prostate_download
from data_scripts.together import pooled, read_sites
from src.common.errors import CourseError
from src.common.files import read_json, write_json
from src.common.settings import StudySettings
from src.federation.methods import METHODS
from src.federation.recipes import client_recipe
from src.federation.run import Run
from src.federation.simulator import CourseSimEnv
from src.federation.site import STATE
from src.tasks import tasks

RESULTS = Path(__file__).parent / "results" / "methods"
SITES = 4
SEEDS = (0, 1, 2)
PER_CLASS = 60
SKEWS: dict[str, dict[str, dict]] = {
    "mednist": {
        "alpha100": {"how": "dirichlet", "alpha": 100.0},
        "alpha1": {"how": "dirichlet", "alpha": 1.0},
        "alpha0.1": {"how": "dirichlet", "alpha": 0.1},
        "scanners": {"how": "scanners"},
        "sizes": {"how": "counts", "counts": [240, 60, 30, 30]},
    },
    "prostate": {"hospitals": {}},
}
"""Task → how its hospitals differ → arguments of ``share_out``."""

SKEW_TITLES = {"alpha100": "labels, α = 100", "alpha1": "labels, α = 1", "alpha0.1": "labels, α = 0.1", "hospitals": ""}
"""Names of those that are not named by themselves, for a figure's panels; a task with one panel needs none."""

SETTINGS: dict[str, dict] = {
    "mednist": {
        "network": "CompactDenseNet",
        "rounds": 12,
        "local_epochs": 1,
        "batch_size": 8,
        "learning_rate": 5e-3,
        "fedproxloss_mu": 0.0,
    },
    "prostate": {"rounds": 10, "local_epochs": 6, "fedproxloss_mu": 0.0},
}
"""MedNIST: a smaller network and fewer images than in the notebooks, so that the whole grid takes an hour and not a day."""

VARIANTS: dict[str, dict[str, dict]] = {
    "prostate": {
        "rounds20": {"rounds": 20, "local_epochs": 3},
        "rounds30": {"rounds": 30, "local_epochs": 2},
    },
}
"""Task → FedAvg in another way, with as many epochs in all → the settings that differ."""

TITLES = {
    "local": "each site alone",
    "pooled": "pooled",
    **{name: method.title for name, method in METHODS.items()},
    "rounds20": "FedAvg, twice the rounds",
    "rounds30": "FedAvg, three times the rounds",
}

PROXIMAL_WEIGHTS = {"mednist": 0.1, "prostate": 0.05}


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        task: name of a task.
        skew: how its hospitals differ, a key of :data:`SKEWS`.
        method: ``local``, ``pooled``, a key of :data:`src.federation.methods.METHODS`, or one of :data:`VARIANTS`.
        seed: of partition, first model, order and augmentation.
    """

    task: str
    skew: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task}-{self.skew}-{self.method}-{self.seed}"

    @property
    def settings(self):
        """Settings of the study."""
        variants = VARIANTS.get(self.task, {})
        method = {"method": self.method} if self.method in METHODS else variants.get(self.method, {})
        if self.method == "fedprox":
            method["fedproxloss_mu"] = PROXIMAL_WEIGHTS[self.task]
        settings = {"data": f"grid-{self.task}-{self.skew}-{self.seed}", "seed": self.seed}
        return tasks()[self.task].settings(**SETTINGS[self.task], **settings).changed(**method)

    def share_out(self) -> dict[str, dict]:
        """Prepare the data of all sites, where that was not done before; returns their datalists."""
        how = {**SKEWS[self.task][self.skew], "seed": self.seed, "data": self.settings.data, "say": lambda line: None}
        if self.task == "mednist":
            mednist_sites.share_out(SITES, per_class=PER_CLASS, **how)
        else:
            raw = prostate_download.find_or_make(say=how["say"])
            folder = data_conversion.convert(raw, raw.with_name("prostate_t2"), say=how["say"])
            datalists_gen.share_out(folder=folder, **how)
        return read_sites(self.settings.data)


def grid() -> Iterator[Cell]:
    """All cells, the quick ones first."""
    for task, skews in SKEWS.items():
        for seed in SEEDS:
            for skew in skews:
                for method in ("local", "pooled", *METHODS, *VARIANTS.get(task, ())):
                    if (task, method) != ("prostate", "fedbn"):  # the U-Net has no BatchNorm
                        yield Cell(task, skew, method, seed)


def measure(cell: Cell, python: Path | None = None) -> dict:
    """Train one cell and judge it on the testing parts.

    Args:
        cell: which.
        python: program that FLARE's processes are started with, by default this one's.

    Returns:
        ``home``: site → score of the model that this site ends with, on its own testing part. ``everywhere``: site → score of that
        model on all sites' testing parts. And how it came about.
    """
    task, datalists, settings = tasks()[cell.task], cell.share_out(), cell.settings
    started = time.time()
    if cell.method == "local":
        models = {
            site: one.model for site, one in train_each_site_alone(task, datalists, settings, validate=False).items()
        }
    elif cell.method == "pooled":
        models = dict.fromkeys(datalists, train_locally(task, pooled(datalists), settings, validate=False).model)
    else:
        models = _federated(cell, datalists, python)
    seconds = time.time() - started
    device = torch.device("cpu")
    parts = {site: task.prepare(parts["testing"], settings, None) for site, parts in datalists.items()}

    counts = [len(items) for items in parts.values()]
    judged: dict[int, dict[str, float]] = {}  # every model once: most methods end with one for all sites
    for model in models.values():
        if id(model) not in judged:
            model = task.to_device(model, device)
            scores = {s: task.evaluate(model, items, settings, device)[task.key_metric] for s, items in parts.items()}
            judged[id(model)] = scores
    home = {site: judged[id(model)][site] for site, model in models.items()}
    everywhere = {
        site: float(np.average([*judged[id(model)].values()], weights=counts)) for site, model in models.items()
    }
    return {
        "cell": str(cell),
        "task": cell.task,
        "skew": cell.skew,
        "method": cell.method,
        "seed": cell.seed,
        "metric": task.key_metric.removeprefix("val_"),
        "home": home,
        "everywhere": everywhere,
        "mean": {"home": float(np.mean([*home.values()])), "everywhere": float(np.mean([*everywhere.values()]))},
        "training_items": {site: len(parts["training"]) for site, parts in datalists.items()},
        "settings": settings.model_dump(mode="json"),
        "seconds": round(seconds, 1),
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "command": f"python -m benchmarks.methods {cell}",
    }


def _federated(cell: Cell, datalists: dict, python: Path | None) -> dict[str, torch.nn.Module]:
    """Site → the model that it ends with, after a run in FLARE's simulator."""
    folder = Path(tempfile.mkdtemp(prefix="course-grid-"))
    try:
        simulator = CourseSimEnv(list(datalists), folder=folder / "run")
        simulator.run_folder.mkdir()
        simulator.python = python or simulator.python
        recipe = client_recipe(tasks()[cell.task], len(datalists), cell.settings)
        run = Run(recipe.execute(simulator).get_result())
        if not run.contributions["accepted"].all():
            raise CourseError(f"{cell}: an update is missing.\n{run.contributions}")
        return site_models(run, cell.settings)
    finally:
        shutil.rmtree(folder)


def site_models(run: Run, settings: StudySettings) -> dict[str, torch.nn.Module]:
    """Site → the model that it ends with: the global one, with what the site has kept for itself in its place."""
    weights = run.weights(run.final_model)
    load = tasks()[run.about["job"]].load_model
    if not METHODS[settings.method].personal:
        return dict.fromkeys(run.sites, load(weights, settings.network))
    kept = {site: next(run.folder.glob(f"*/{site}/**/{STATE}")) for site in run.sites}
    return {site: load(weights | run.weights(file), settings.network) for site, file in kept.items()}


def read(folder: Path = RESULTS):
    """All results that are there, as a table: a row a cell.

    Returns:
        pandas.DataFrame with ``task``, ``skew``, ``method``, ``seed``, ``home`` and ``everywhere`` (means over sites) and
        ``worst`` (the site with the lowest score at home), ``date``.
    """
    import pandas as pd

    rows = []
    for cell in grid():
        if report := read_json(folder / f"{cell}.json"):
            row = {name: report[name] for name in ("task", "skew", "method", "seed", "date")}
            rows.append({**row, **report["mean"], "worst": min(report["home"].values())})
    return pd.DataFrame(rows)


def table(results, task: str, value: str = "home"):
    """Mean ± standard deviation over the seeds, a row a method and a column a skew."""
    chosen = results[results["task"] == task]
    groups = chosen.groupby(["method", "skew"])[value]
    text = groups.mean().map("{:.3f}".format) + " ± " + groups.std(ddof=1).map("{:.3f}".format)
    methods = [name for name in TITLES if name in set(chosen["method"])]
    shown = text.unstack().reindex(index=methods, columns=[name for name in SKEWS[task] if name in set(chosen["skew"])])
    return shown.rename(index=TITLES)


def by_site(task: str, skew: str, folder: Path = RESULTS):
    """What each site ends with on its own testing part, mean over the seeds, and how that compares with pooled training.

    Returns:
        pandas.DataFrame: a row a method; a column a site, ``mean``, ``of pooled`` (mean as a share of pooled training's) and
        ``worst site`` (the lowest of the sites' shares).
    """
    import pandas as pd

    reports = [read_json(folder / f"{cell}.json") for cell in grid() if (cell.task, cell.skew) == (task, skew)]
    rows = [{"method": report["method"], **report["home"]} for report in reports if report]
    found = (
        pd.DataFrame(rows)
        .groupby("method")
        .mean()
        .reindex([name for name in TITLES if name in {r["method"] for r in rows}])
    )
    shares = found / found.loc["pooled"]
    found["mean"] = found.mean(axis=1)
    found["of pooled"] = found["mean"] / found.loc["pooled", "mean"]
    found["worst site"] = shares.min(axis=1)
    return found.rename(index=TITLES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="cells to measure; default: all of the grid")
    parser.add_argument("--again", action="store_true", help="measure also what is there")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what is there")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the reports (default: %(default)s)")
    options = parser.parse_args(arguments)
    cells = [cell for cell in grid() if any(fnmatch.fnmatch(str(cell), one) for one in options.patterns or ["*"])]
    if not cells:
        parser.error(f"no cell fits {options.patterns}; a name is like {next(grid())}")
    missing = [] if options.table else [c for c in cells if options.again or not (options.out / f"{c}.json").exists()]
    os.environ["COURSE_DATA_SOURCE"] = "generated"
    with ExitStack() as stack:
        federated = any(cell.method not in ("local", "pooled") for cell in missing)
        python = stack.enter_context(warm_python()) if federated else None
        torch.set_num_threads(1)
        for number, cell in enumerate(missing, start=1):
            report = measure(cell, python)
            options.out.mkdir(parents=True, exist_ok=True)
            write_json(options.out / f"{cell}.json", report)
            scores = ", ".join(f"{name} {value:.3f}" for name, value in report["mean"].items())
            print(f"{number} of {len(missing)}: {cell}: {scores}, {report['seconds']:.0f} s", flush=True)
    results = read(options.out)
    for task in SKEWS if len(results) else ():
        if (results["task"] == task).any():
            for value in ("home", "everywhere"):
                print(f"\n{task}, {value}\n{table(results, task, value).to_string()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
