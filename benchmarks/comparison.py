"""Alone, pooled and federated at equal work, over seeds: ``python -m benchmarks.comparison [TASK ...] [--seeds N ...]``.

One report a task, in ``benchmarks/results/comparison/``; notebooks show it beside the one seed that they run themselves. A seed
that the report holds already is not run again, unless settings, data or share have changed since.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

from benchmarks.__main__ import machine, versions
from benchmarks.local import train_each_site_alone, train_locally
from data_scripts.prepare import described, prepare, share_out
from data_scripts.together import pooled, read_sites
from deploy.simulator import CourseSimEnv
from src.common.files import read_json, write_json
from src.common.settings import StudySettings
from src.common.task import Task
from src.federation.recipes import client_recipe
from src.federation.run import Run
from src.tasks import tasks

RESULTS = Path(__file__).with_name("results") / "comparison"
SHARES: dict[str, dict[str, dict]] = {"mednist": {"specialised": {}, "even": {"how": "even"}}}
"""Task → name of a share, the main one first → arguments of ``share_out``; a task without an entry has its own share alone."""


def compare(task: Task, share: str, options: dict, seed: int, settings: StudySettings, longer: bool) -> dict:
    """Train and test all models for one share of the data and one seed.

    Args:
        task: which.
        share: name of the share, for the rows.
        options: arguments of the task's ``share_out``.
        seed: fixes who gets what, first weights, order and augmentation.
        settings: of the study, for any seed.
        longer: also train each site alone for as many steps as pooled training makes, which takes as long as all the rest.

    Returns:
        ``rows``: for each model and site's testing part ``items`` and the mean of each measure; a row a case where a case is not
        just right or wrong. ``training``: epochs, optimiser steps and training items of each model.
    """
    data = share_out(task.name, **options, seed=seed, data=f"{task.name}-{share}-{seed}")
    settings = settings.changed(data=data, seed=seed)
    datalists = read_sites(data)
    everything = pooled(datalists)

    recipe = client_recipe(task, len(datalists), settings)
    run = Run(recipe.execute(CourseSimEnv(list(datalists), f"{task.name}_comparison")).get_result())
    trained = {"pooled": train_locally(task, everything, settings, validate=False)}
    trained |= {
        f"{site} alone": one for site, one in train_each_site_alone(task, datalists, settings, validate=False).items()
    }
    if longer:
        changed = _as_many_steps_as(trained["pooled"].steps, settings, trained[f"{next(iter(datalists))} alone"].steps)
        more = train_each_site_alone(task, datalists, changed, validate=False)
        trained |= {f"{site} alone, pooled's steps": one for site, one in more.items()}

    items = {name: len(parts["training"]) for name, parts in {**datalists, "pooled": everything}.items()}
    steps = {site: settings.epochs * math.ceil(items[site] / settings.batch_size) for site in datalists}
    work = [
        {"model": name, "epochs": one.epochs, "steps": one.steps, "items": items[name.split(" alone")[0]]}
        for name, one in trained.items()
    ]
    work.append({"model": "federated", "epochs": settings.epochs, "steps": steps, "items": items["pooled"]})
    models = {name: one.model for name, one in trained.items()}
    models["federated"] = task.load_model(run.weights(run.final_model))
    rows = []
    for name, model in models.items():
        table = task.evaluate_cases(model, everything["testing"], settings)
        rows += [{"model": name, **row} for row in _rows(table, task.key_metric.removeprefix("val_"))]
    about = {"share": share, "seed": seed}
    return {"rows": [{**about, **row} for row in rows], "training": [{**about, **one} for one in work]}


def _as_many_steps_as(steps: int, settings: StudySettings, own: int) -> StudySettings:
    """Settings with which a site that makes ``own`` steps makes about ``steps``, in whole rounds."""
    return settings.changed(rounds=max(1, round(settings.rounds * steps / own)))


def _rows(table, measure: str) -> list[dict]:
    """A row a site where cases are right or wrong, else a row a case; measures rounded to four digits, missing ones None."""
    measures = [name for name in ("accuracy", "dice", "hd95_mm", "surface_dice_3mm") if name in table]
    if set(table[measure]) <= {0.0, 1.0}:
        grouped = table.groupby("site")[measures].mean().assign(items=table.groupby("site").size()).reset_index()
    else:
        grouped = table[["site", "case", *measures]]
    return json.loads(grouped.round(4).to_json(orient="records"))


def main(arguments: list[str] | None = None) -> int:
    """Run what the reports lack, and keep each result as soon as it is there."""
    known = tasks()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comparison", description=__doc__.splitlines()[0])
    parser.add_argument(
        "tasks", nargs="*", choices=[[], *known], metavar="TASK", help=f"{', '.join(known)}; default: all"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N", help="default: 0 to 4")
    parser.add_argument("--shares", nargs="+", metavar="SHARE", help="default: all of the task")
    parser.add_argument(
        "--longer", action="store_true", help="also each site alone, with as many steps as pooled training"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the reports")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.tasks or known:
        task, file = known[name], options.out / f"{name}.json"
        settings = task.settings()
        prepare(name)  # draws, fetches or converts what the shares below are made of
        about = {
            "task": name,
            "data": described(name),
            "settings": settings.model_dump(mode="json", exclude={"data", "seed"}),
        }
        report = read_json(file) or {}
        if {key: report.get(key) for key in about} != about:
            report = {**about, "rows": [], "training": []}
        for share, arguments_of_share in SHARES.get(name, {"hospitals": {}}).items():
            for seed in options.seeds:
                done = any((row["share"], row["seed"]) == (share, seed) for row in report["rows"])
                if done or (options.shares and share not in options.shares):
                    continue
                found = compare(task, share, arguments_of_share, seed, settings, options.longer)
                report |= {key: report[key] + found[key] for key in ("rows", "training")}
                report |= {"date": time.strftime("%Y-%m-%d"), "command": f"python -m benchmarks.comparison {name}"}
                report |= {"machine": machine(), "versions": versions()}
                write_json(file, report)
                print(f"{name}, {share}, seed {seed}: done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
