"""What a federated run costs and brings, task by task: ``python -m benchmarks [TASK ...] [--out FOLDER]``.

Every folder of ``src`` that has a card is a task. For each one: a plain PyTorch loop on the pooled data (the limit), the
federated run of its recipe, and pooled training at equal work, on the same data in the same run. One JSON report a task.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks import threads
from benchmarks.costs import megabytes_per_round, parts
from benchmarks.local import train_locally
from benchmarks.measure import Watch, plain_seconds, plain_seconds_side_by_side
from benchmarks.peer_flower.run import flower_seconds
from data_scripts.prepare import described, prepare
from data_scripts.together import pooled, read_sites
from deploy.simulator import CourseSimEnv, Forker
from src.common.files import write_json
from src.common.paths import sites_folder
from src.common.task import Task
from src.federation.engine import pick_device
from src.federation.recipes import client_recipe
from src.federation.run import Run
from src.tasks import tasks

REPEATS = 3  # of all that takes time, one after the other; medians count
BARS = Path(__file__).with_name("bars.json")
"""Task → figure → limit; a negative limit means "at least". A task without an entry is measured and has no bar."""


def measure(task: Task) -> dict:
    """All figures of one task."""
    settings, data = task.settings(), prepare(task.name)
    datalists = read_sites(data)
    everything = pooled(datalists)

    _forget_caches(data)
    _federated(task, datalists, settings.changed(rounds=1))  # it prepares what a task keeps of its volumes
    limits, cold, warm, flower = [], [], [], []
    for _ in range(REPEATS):
        limits.append(limit(task, everything, settings))
        Forker.drop()
        cold.append(_federated(task, datalists, settings))
        warm.append(_federated(task, datalists, settings))
        flower.append(flower_seconds(task.name))
    together, apart, whole, bare = _middle(limits, lambda one: one[2])
    (run, watch), (cold_run, cold_watch) = (_middle(runs, lambda one: one[1].seconds) for runs in (warm, cold))
    peer = _middle(flower, lambda one: one[0]) if all(flower) else None

    local = train_locally(task, everything, settings)
    models = {"federated": task.load_model(run.weights(run.final_model)), "pooled": local.model}
    if peer:
        models["Flower"] = task.load_model(peer[1])
    scores = {name: task.evaluate_cases(one, everything["testing"], settings) for name, one in models.items()}
    measure_name = task.key_metric.removeprefix("val_")
    test = {name: float(table[measure_name].mean()) for name, table in scores.items()}
    busy = {"alone": threads.measure(threads.CHOSEN), "beside": threads.measure(threads.CHOSEN, 1)}
    busy["alone, spinning as long as usual"] = threads.measure({})
    sites = [memory for name, memory in watch.peak_memory.items() if name != "server"]
    figures = {
        "wall time / limit": watch.seconds / whole,
        "wall time / limit, the first run of a notebook": cold_watch.seconds / whole,
        **({"wall time of Flower / wall time": peer[0] / watch.seconds} if peer else {}),
        "peak memory of a site (GB)": max(sites) / 1e9,
        f"test {measure_name} of the global model": test["federated"],
        f"federated / pooled test {measure_name}": test["federated"] / test["pooled"],
        "threads that spin briefly, alone / as usual": busy["alone"] / busy["alone, spinning as long as usual"],
        "threads that spin briefly, beside a busy program / alone": busy["beside"] / busy["alone"],
    }
    return {
        "task": task.name,
        "title": task.title,
        "data": described(task.name),
        "machine": machine(),
        "items": {part: len(items) for part, items in everything.items()},
        "epochs": settings.epochs,
        "rounds": settings.rounds,
        "plain_loop_seconds_an_epoch": {"all threads": together[1], "a process a core": apart[1]},
        "limit_seconds": whole,
        "limit_seconds_without_augmentation": bare,
        "wall_seconds": watch.seconds,
        "seconds": parts(run),
        "all_wall_seconds": {"warm": [w.seconds for _, w in warm], "cold": [w.seconds for _, w in cold]},
        "flower_seconds": [one[0] for one in flower if one],
        "first_start_up_seconds": parts(cold_run)["start-up"],
        "peak_memory_gb": {name: memory / 1e9 for name, memory in sorted(watch.peak_memory.items())},
        "bytes_per_round": {
            "weights": round(1e6 * megabytes_per_round(run)),
            "loopback": watch.loopback_bytes // (run.rounds + 2) if watch.loopback_bytes else "not measured",
        },
        "images_per_second": busy,
        "test": {"metric": measure_name, **test},
        "figures": {name: round(value, 3) for name, value in figures.items()},
    }


def _middle(measured: list, seconds: Callable) -> object:
    """The one of the median time."""
    return sorted(measured, key=seconds)[len(measured) // 2]


def limit(task: Task, everything: dict, settings) -> tuple:
    """Seconds of a plain loop an epoch by all threads and by a process a core, each without and with augmentation; the faster one's
    for the whole study with its validation, the limit of what a federation on this machine can reach; and without augmentation."""
    few, device = max(1, round(4000 / len(everything["training"]) / settings.epochs)), pick_device()
    together = plain_seconds(task.name, everything["training"], settings, few)
    apart = plain_seconds_side_by_side(task.name, everything["training"], settings, few)
    prepared = task.prepare(everything["validation"], settings, None)
    model = task.to_device(task.new_model(), device)
    task.evaluate(model, prepared[:1], settings, device)
    started = time.perf_counter()
    task.evaluate(model, prepared, settings, device)
    validation = (settings.rounds + 1) * (time.perf_counter() - started)
    bare, whole = (min(a, b) * settings.epochs + validation for a, b in zip(together, apart, strict=True))
    return together, apart, whole, bare


def _federated(task: Task, datalists: dict, settings) -> tuple[Run, Watch]:
    recipe = client_recipe(task, len(datalists), settings)
    with Watch() as watch:
        run = Run(recipe.execute(CourseSimEnv(list(datalists), task.name)).get_result())
    return run, watch


def _forget_caches(data: str) -> None:
    for site in read_sites(data):
        folder = sites_folder(data) / site / "cache"
        for file in folder.glob("*.pt") if folder.is_dir() else ():
            file.unlink()


def versions() -> dict[str, str]:
    """What decides the numbers beside settings and data."""
    return {name: version(name) for name in ("torch", "monai", "nvflare")}


def machine() -> dict[str, object]:
    """What the figures were measured with."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def verdicts(report: dict) -> dict[str, dict]:
    """Which bars of ``bars.json`` a report meets: figure → measured, bar, met."""
    bars = json.loads(BARS.read_text(encoding="utf-8")).get(report["task"], {})
    found = {}
    for name, limit in bars.items():
        value = report["figures"][name]
        met = value <= limit if limit > 0 else value >= -limit
        found[name] = {
            "measured": value,
            "bar": ("at most " if limit > 0 else "at least ") + f"{abs(limit):g}",
            "met": met,
        }
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks. Returns 0 if all bars were met, else 1."""
    known = tasks()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "tasks", nargs="*", choices=[[], *known], metavar="TASK", help=f"{', '.join(known)}; default: all"
    )
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="folder for the reports")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    missed = 0
    for name in options.tasks or known:
        report = measure(known[name])
        report["bars"] = verdicts(report)
        write_json(options.out / f"{name}.json", report)
        print(
            json.dumps(
                {key: report[key] for key in ("seconds", "wall_seconds", "limit_seconds", "figures", "bars")}, indent=1
            )
        )
        missed += sum(not bar["met"] for bar in report["bars"].values())
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
