"""What the federated MedNIST run of notebook 02 costs: ``python -m benchmarks.mednist``.

The limit is a plain PyTorch loop on all cores, with the images in memory and nothing else to do. The federated run is
the notebook's default. Both run here, one after the other, on the same images.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.common import Watch, model_bytes, parts_of, report
from src import mednist, training
from src.densenet import DenseNet121
from src.jobs import mednist_fedavg


def plain_loop(items: list, batch_size: int, device: torch.device) -> tuple[float, float]:
    """Images a second that a plain PyTorch loop trains and evaluates, on all cores."""
    batches = [
        (batch["image"].to(device, memory_format=torch.channels_last), batch["label"].to(device))
        for batch in mednist.loader(items, batch_size=batch_size, train=False)
    ]
    model = training.prepare_model(DenseNet121(), device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(images, labels):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    step(*batches[0])  # the first step also plans the memory
    started = _now(device)
    for images, labels in batches:
        step(images, labels)
    trained = len(items) / (_now(device) - started)

    model.eval()
    with torch.inference_mode():
        model(batches[0][0])
        started = _now(device)
        for images, _ in batches:
            model(images)
        return trained, len(items) / (_now(device) - started)


def _now(device: torch.device) -> float:
    """Seconds on a clock, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark. Returns 0 if all bars were met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mednist", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/mednist.json"), help="JSON file to write")
    options = parser.parse_args(arguments)

    job = mednist_fedavg()
    everything = [item for datalist in job.datalists.values() for item in datalist["training"]]
    device = training.pick_device()
    train_rate, evaluation_rate = plain_loop(everything, job.about["batch_size"], device)

    started = time.time()
    with Watch() as watch:
        run = job.simulate()
    parts = parts_of(run, started, watch.seconds)

    trained = job.rounds * job.about["local_epochs"] * len(everything)
    evaluated = (job.rounds + 1) * sum(len(datalist["validation"]) for datalist in job.datalists.values())
    limit = trained / train_rate + evaluated / evaluation_rate

    model = training.prepare_model(DenseNet121(), device)
    model.load_state_dict(run.weights(run.best_model))
    accuracy = training.evaluate(model, mednist.loader(job.test, batch_size=64, train=False), device)["accuracy"]

    site_memory = max(memory for name, memory in watch.peak_memory.items() if name != "server") / 1e9
    figures = {
        "data": mednist.describe(mednist.find_or_make()).split(" in /")[0],
        "plain_loop_images_per_second": {"training": train_rate, "evaluation": evaluation_rate},
        "images": {"trained": trained, "evaluated": evaluated},
        "limit_seconds": limit,
        "wall_seconds": watch.seconds,
        "seconds": parts,
        "peak_memory_gb": {name: memory / 1e9 for name, memory in sorted(watch.peak_memory.items())},
        "bytes_per_round": {
            "weights": 2 * len(job.sites) * model_bytes(run),
            "loopback": watch.loopback_bytes // (job.rounds + 1) if watch.loopback_bytes else "not measured",
        },
    }
    bars = {
        "wall time / limit": (watch.seconds / limit, 2.0),
        "wall time without start-up and tear-down / limit": (parts["rounds"] / limit, 1.3),
        "peak memory of a site (GB)": (site_memory, 1.2),
        "test accuracy of the best global model": (accuracy, -0.97),
    }
    return report("MedNIST FedAvg", figures, bars, options.out)


if __name__ == "__main__":
    sys.exit(main())
