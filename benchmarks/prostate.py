"""What the federated prostate run of notebook 03 costs, and brings: ``python -m benchmarks.prostate``.

The limit is a plain MONAI loop with the same transforms, prepared volumes and steps, on all cores, with nothing else to do.
That loop over the cases of all sites is also the pooled training that the federated Dice is compared with.
"""

import argparse
import sys
import time
from pathlib import Path

from benchmarks.common import Watch, model_bytes, parts_of, report
from src import prostate, prostate_training
from src.jobs import prostate_fedavg
from src.prostate_settings import read_settings
from src.prostate_transforms import prepare


def data() -> tuple[Path, Path]:
    """The converted volumes and the datalists of the chosen data source, made where they are missing."""
    raw, converted, datalists = prostate.folders()
    prostate.find_or_make()
    prostate.convert(raw, converted)
    hospitals = raw / "hospitals.json"
    prostate.make_datalists(converted, datalists, prostate.read_sites(hospitals) if hospitals.is_file() else 4)
    return converted, datalists


def seconds_to_first_step(run) -> tuple[float, float]:
    """Seconds between a site's start and its first training step, without imports: with and without the validation of the
    received model, which comes before it in every round; means over the sites."""
    all_of_it = run.curve("seconds_to_first_step").iloc[0]
    return float(all_of_it.mean()), float((all_of_it - run.curve("seconds_validation").iloc[0]).mean())


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark. Returns 0 if all bars were met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prostate", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/prostate.json"), help="JSON file to write")
    options = parser.parse_args(arguments)
    converted, datalists = data()

    def build(rounds: int | None = None, **settings):
        return prostate_fedavg(
            datalists=datalists, dataset=converted, **({"rounds": rounds} if rounds else {}), **settings
        )

    # A cache of its own, empty at first: the first run prepares the volumes, the second one finds them.
    job = build()
    fresh = {"cache_dir": str(job.folder / "cache")}
    first, second = (seconds_to_first_step(build(rounds=1, **fresh).simulate()) for _ in range(2))

    settings = read_settings(dataset_base_dir=converted, datalist_json_path=datalists)
    training = [{**item, "site": site} for site, parts in job.datalists.items() for item in parts["training"]]
    validation = [{**item, "site": site} for site, parts in job.datalists.items() for item in parts["validation"]]
    epochs = job.rounds * job.about["local_epochs"]
    pooled = prostate_training.local_training(training, settings, epochs)

    prepared, device = prepare(validation, settings), prostate_training.pick_device()
    started = time.perf_counter()
    prostate_training.validate(pooled.model, prepared, settings, device)
    one_validation = time.perf_counter() - started
    limit = pooled.seconds + (job.rounds + 1) * one_validation

    started = time.time()
    with Watch() as watch:
        run = job.simulate()
    parts = parts_of(run, started, watch.seconds)

    best = prostate_training.load_model(run.weights(run.best_model))
    scores = {
        name: prostate_training.evaluate_cases(model, job.test, settings)[["dice", "hd95_mm"]].mean().to_dict()
        for name, model in {"federated": best, "pooled": pooled.model}.items()
    }
    site_memory = max(memory for name, memory in watch.peak_memory.items() if name != "server") / 1e9
    figures = {
        "data": prostate.describe(prostate.folders().raw).split(" (/")[0],
        "cases": {"training": len(training), "validation": len(validation), "testing": len(job.test)},
        "epochs": epochs,
        "limit_seconds": {"training": pooled.seconds, "validation": (job.rounds + 1) * one_validation},
        "wall_seconds": watch.seconds,
        "seconds": parts,
        "seconds_to_first_step": {"first_run": first[0], "second_run": second[0]},
        "seconds_to_first_step_without_validation": {"first_run": first[1], "second_run": second[1]},
        "peak_memory_gb": {name: memory / 1e9 for name, memory in sorted(watch.peak_memory.items())},
        "bytes_per_round": {
            "weights": 2 * len(job.sites) * model_bytes(run),
            "loopback": watch.loopback_bytes // (job.rounds + 1) if watch.loopback_bytes else "not measured",
        },
        "test": {f"{name}_{measure}": value for name, row in scores.items() for measure, value in row.items()},
    }
    dice = {name: row["dice"] for name, row in scores.items()}
    bars = {
        "wall time / limit": (watch.seconds / limit, 2.0),
        "second / first run, time to first step": (second[0] / first[0], 1 / 3),
        "second / first run, first step without validation": (second[1] / first[1], 1 / 3),
        "peak memory of a site (GB)": (site_memory, 1.5),
        "mean test Dice of the best global model": (dice["federated"], -0.85),
        "federated / pooled test Dice": (dice["federated"] / dice["pooled"], -0.95),
    }
    return report("Prostate FedAvg", figures, bars, options.out)


if __name__ == "__main__":
    sys.exit(main())
