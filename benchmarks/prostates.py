"""Prostates that each hospital outlines in its own way, and what helps: ``python -m benchmarks.prostates [PATTERN ...]``.

Four drawn hospitals with 12, 8, 10 and 6 training cases train the U-Net, with 60 passes over them, and are judged on new cases of
their own, on native voxels. A cell is how they outline (each by its ``own`` protocol, or by one that is ``shared``), a way to train
and a seed, such as ``own-alone-0``; its report has a row for each thing done with what was trained. ``without-site-2`` is federated
without that hospital, then fine-tuned with so many of its cases. What there is to choose is chosen on drawings of seed 100.
Each cell is measured once and kept; run again, the command goes on where it stopped. ``*`` in a pattern is any part of a name.
"""

import argparse
import functools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

from benchmarks.cells import fitting, made_by, measure_missing
from benchmarks.federate import federate, with_network
from benchmarks.local import train_each_site_alone, train_locally
from benchmarks.prostate_remedies import AffineUNet, OwnAffine, affine_tensors, batches_with_coils, n4
from benchmarks.remedies import fine_tuned
from data_scripts.data_conversion import convert
from data_scripts.datalists_gen import read_hospitals
from data_scripts.folders import generated, raw_folder
from data_scripts.phantoms.prostate import HOSPITALS, parameters, write
from data_scripts.together import pooled
from src.common.errors import CourseError
from src.common.files import read_json
from src.federation.methods import DEFAULTS, METHODS
from src.prostate.card import Settings
from src.prostate.evaluation import TASK, predict
from src.prostate.training import dice
from src.prostate.transforms import LoadCase

RESULTS = Path(__file__).parent / "results" / "prostates"
SITES = [style.name for style in HOSPITALS]
SEEDS, VALIDATION = (0, 1, 2), 100
SETS = {"training": (36, 5000), "new": (27, 6000), "adapting": (60, 7000)}  # cases, and the seed of the first drawings
NEW, FEW = 5, (0, 1, 3, 10)  # cases of each hospital to be judged on; of the one that took no part, to adapt with
ROUNDS = {"fedavg10x6": (10, 6), "fedavg20x3": (20, 3), "fedavg30x2": (30, 2), "fedavg60x1": (60, 1)}
CHOICES: dict[str, Sequence] = {
    "tuned": ((10, 3e-4), (10, 1e-3), (30, 1e-3)),  # epochs and learning rate
    "ditto": (0.1, 1.0),  # λ
    "fedprox": (0.01, 0.1),  # μ
}
TUNED = ("fedavg30x2", "fedavg60x1", "coil")  # trainings after which each site also fine-tunes at home
TITLES = {
    "alone": "each site alone",
    "pooled": "pooled",
    "fedavg10x6": "FedAvg, 10 rounds of 6 epochs",
    "fedavg20x3": "FedAvg, 20 rounds of 3 epochs",
    "fedavg30x2": "FedAvg, 30 rounds of 2 epochs",
    "fedavg60x1": "FedAvg, 60 rounds of 1 epoch",
    "fedavg30x2+tuned": "30 rounds of 2, fine-tuned at home",
    "fedavg60x1+tuned": "60 rounds of 1, fine-tuned at home",
    "coil": "30 rounds of 2, coils at random",
    "coil+tuned": "30 rounds of 2, coils at random, fine-tuned at home",
    "n4": "30 rounds of 2, N4",
    "affine": "30 rounds of 2, own affine normalisation",
    "ditto": "Ditto, 30 rounds of 2",
    "fedprox": "FedProx, 30 rounds of 2",
}


@dataclass(frozen=True)
class Cell:
    """One training: how hospitals outline, how they train, and the seed of drawings, first model, order and augmentation; ``value``
    is what is chosen for the training, and None where there is nothing to choose, or where the choice is kept."""

    outlines: str
    training: str
    seed: int
    value: float | None = None

    def __str__(self) -> str:
        return "-".join([self.outlines, self.training + (f"@{self.value:g}" if self.value else ""), str(self.seed)])


def grid() -> Iterator[Cell]:
    """All cells, what matters most first; those that choose come before those that heed the choice."""
    yield from (Cell("own", training, VALIDATION) for training in ("pooled", "fedavg30x2"))
    for outlines in ("own", "shared"):
        yield from (Cell(outlines, training, seed) for seed in SEEDS for training in ("pooled", "fedavg30x2"))
    for seed in SEEDS:
        yield from (Cell("own", f"without-{site}", seed) for site in SITES)
        yield from (Cell("own", training, seed) for training in ("fedavg10x6", "fedavg60x1", "coil", "affine", "alone"))
        if seed == SEEDS[0]:  # the rounds of notebook 03
            yield from (Cell("own", training, VALIDATION) for training in ROUNDS if training != "fedavg30x2")
            yield from (Cell("shared", training, VALIDATION) for training in ROUNDS)
    for training in ("ditto", "fedprox"):
        yield from (Cell("own", training, VALIDATION, one) for one in CHOICES[training])
    for training in ("ditto", "n4", "fedavg20x3", "fedprox"):
        yield from (Cell("own", training, seed) for seed in SEEDS)


def draw(outlines: str, which: str, seed: int) -> dict[str, list[dict]]:
    """Site → items of one of the :data:`SETS`, drawn and converted where that was not done before."""
    count, more = SETS[which]
    folder = raw_folder("prostates", "generated") / f"{outlines}-{which}-{seed}"
    asked = count, more + seed, outlines
    raw = generated(folder / "raw", parameters(*asked), lambda new: write(new, *asked))
    converted = convert(raw, folder / "t2", say=lambda line: None)
    files = lambda name: {"image": f"{converted}/images/{name}.nii.gz", "label": f"{converted}/labels/{name}.nii.gz"}  # noqa: E731
    found = read_hospitals(raw / "hospitals.json")
    return {site: [{**files(name), "site": site} for name in found[site]] for site in SITES}


def chosen(training: str, folder: Path = RESULTS) -> float | tuple:
    """The one of :data:`CHOICES` with the best mean at home on the drawings for choosing."""
    scores = {}
    for one in CHOICES[training]:
        at, row = (("fedavg30x2", None), _row(one)) if training == "tuned" else ((training, one), training)
        name = str(Cell("own", at[0], VALIDATION, at[1]))
        if not (report := read_json(folder / f"{name}.json")):
            raise CourseError(f"{training} is chosen by {name}, which is not measured yet.")
        scores[one] = report["rows"][row]["mean"]
    return max(scores, key=scores.get)


def _row(choice: tuple) -> str:
    return f"fedavg30x2+tuned@{choice[0]}x{choice[1]:g}"


def train(cell: Cell, datalists: Mapping, settings: Settings) -> dict[str, torch.nn.Module]:
    """Site → the model that it ends with."""
    training, task = cell.training, TASK
    if training == "alone":
        return {s: one.model for s, one in train_each_site_alone(task, datalists, settings, validate=False).items()}
    if training == "pooled":
        return dict.fromkeys(datalists, train_locally(task, pooled(datalists), settings, validate=False).model)
    own, value = METHODS["fedbn"], cell.value or (chosen(training) if training in CHOICES else None)
    if training == "coil":
        task = replace(task, batches=batches_with_coils)
    elif training == "ditto":
        settings = settings.changed(method="ditto")
    elif training == "fedprox":
        settings = settings.changed(method="fedprox", fedproxloss_mu=value)
    elif training == "affine":
        task = with_network(task, AffineUNet)
        settings, own = settings.changed(method="fedbn"), replace(own, at_site=OwnAffine, stays=affine_tensors)
    with patch.dict(METHODS, fedbn=own), patch.dict(DEFAULTS, {"ditto": value} if training == "ditto" else {}):
        return federate(task, datalists, settings).models


def remedied(cell: Cell, models: Mapping, training: Mapping, settings: Settings) -> dict[str, Mapping]:
    """Row → site → model: what was trained, and what each hospital makes of it."""
    if cell.training.startswith("without-"):
        out, (_, rate) = cell.training.removeprefix("without-"), chosen("tuned")
        more, model = draw(cell.outlines, "adapting", cell.seed)[out], next(iter(models.values()))
        # As many patches whatever the number of cases.
        rows = {n: fine_tuned(TASK, model, more[:n], settings, out, -(-100 // n), rate) for n in FEW if n}
        return {f"{n} cases": {out: rows.get(n, model)} for n in FEW}
    ways = {}
    if cell.training == "fedavg30x2" and cell.seed == VALIDATION:
        ways = {_row(one): one for one in CHOICES["tuned"]}
    elif cell.training in TUNED and cell.seed != VALIDATION:
        ways = {f"{cell.training}+tuned": chosen("tuned")}
    at_home = {
        row: {site: fine_tuned(TASK, models[site], own, settings, site, *one) for site, own in training.items()}
        for row, one in ways.items()
    }
    return {cell.training: models, **at_home}


def judged(model: torch.nn.Module, items: Sequence[Mapping], settings: Settings) -> list[float]:
    """Dice of each case on its own image's voxels, that of ``evaluate_cases`` without the time that its distances take."""
    masks = [LoadCase()(item)["label"].as_tensor() > 0 for item in items]
    found = predict(model, items, settings, torch.device("cpu"))
    return [round(dice(torch.from_numpy(one)[None], mask), 4) for one, mask in zip(found, masks, strict=True)]


def measure(cell: Cell) -> dict:
    """Train one cell and judge every row on the new cases of each of its hospitals, by the Dice of native voxels."""
    rounds, epochs = ROUNDS.get(cell.training, ROUNDS["fedavg30x2"])
    settings = Settings(rounds=rounds, local_epochs=epochs, seed=cell.seed)
    own, new = (draw(cell.outlines, which, cell.seed) for which in ("training", "new"))
    new = {site: items[:NEW] for site, items in new.items()}
    if cell.training == "n4":
        own, new = ({site: n4(items) for site, items in one.items()} for one in (own, new))
    out, started = cell.training.removeprefix("without-"), time.time()
    datalists = {s: {"training": items, "validation": [], "testing": []} for s, items in own.items() if s != out}
    rows = remedied(cell, train(cell, datalists, settings), own, settings)
    seconds, found = time.time() - started, {}
    for row, models in rows.items():
        cases = {site: judged(model.eval(), new[site], settings) for site, model in models.items()}
        home = {site: float(np.mean(scores)) for site, scores in cases.items()}
        found[row] = {"mean": float(np.mean([*home.values()])), "home": home, "cases": cases}
    about = {"cell": str(cell), "outlines": cell.outlines, "training": cell.training, "seed": cell.seed, "rows": found}
    if cell.seed != VALIDATION:
        about["chosen"] = {one: chosen(one) for one in CHOICES if any(one in row for row in found)}
    about |= {"settings": settings.model_dump(mode="json"), "seconds": round(seconds, 1)}
    return about | made_by(f"benchmarks.prostates {cell}")


def read(folder: Path = RESULTS, seeds: Sequence[int] = SEEDS):
    """All that is kept as a pandas.DataFrame, a row a case: ``outlines, training, row, seed, site, case, dice``."""
    reports = [one for cell in grid() if cell.seed in seeds and (one := read_json(folder / f"{cell}.json"))]
    rows = [
        (report["outlines"], report["training"], report["seed"], row, site, case, dice)
        for report in reports
        for row, scores in report["rows"].items()
        for site, cases in scores["cases"].items()
        for case, dice in enumerate(cases)
    ]
    return pd.DataFrame(rows, columns=["outlines", "training", "seed", "row", "site", "case", "dice"])


def table(results, outlines: str):
    """Dice at home, mean over cases and seeds: a row a way to train; a column a site, ``mean`` of the sites, ``of pooled`` (the
    mean as a share of pooled training's with the same seeds), ``worst site`` (the lowest of the sites' shares) and ``seeds``."""
    own = results[results["outlines"] == outlines].groupby(["row", "seed", "site"])["dice"].mean().unstack()
    found = {}
    for row in (one for one in TITLES if one in own.index):
        home, rival = own.loc[row].mean(), own.loc["pooled"].loc[own.loc[row].index].mean()
        shares = {
            "of pooled": home.mean() / rival.mean(),
            "worst site": (home / rival).min(),
            "seeds": len(own.loc[row]),
        }
        found[TITLES[row]] = {**home, "mean": home.mean(), **shares}
    return pd.DataFrame(found.values(), index=[*found])


def left_out(results):
    """Dice of a hospital that took no part, on its own new cases, before and after it adapted with cases of its own; and of pooled
    training with it: a row a site, mean over cases and over the seeds that have both."""
    without, is_pooled = results["training"].str.startswith("without-"), results["row"].eq("pooled")
    both = results["outlines"].eq("own") & results["seed"].isin(set(results["seed"][without]))
    found = results[both & (without | is_pooled)].groupby(["site", "row"])["dice"].mean().unstack()
    return found[["pooled", *(f"{n} cases" for n in FEW)]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, then print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prostates", description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="cells to measure; default: all of the grid")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what is there")
    options = parser.parse_args(arguments)
    cells = fitting(grid(), options.patterns, parser)
    torch.set_num_threads(1)
    one_by_one = functools.partial(map, measure)  # later ones heed what earlier ones choose
    for which, report in () if options.table else measure_missing(cells, RESULTS, one_by_one):
        scores = ", ".join(f"{row} {scores['mean']:.3f}" for row, scores in report["rows"].items())
        print(f"{which}: {scores}, {report['seconds']:.0f} s", flush=True)
    results = read(RESULTS)
    for outlines in (one for one in ("own", "shared") if one in set(results["outlines"])):
        print(f"\n{outlines} outlines\n{table(results, outlines).to_string(float_format='{:.3f}'.format)}")
    if results["training"].str.startswith("without-").any():
        print(f"\nleft out\n{left_out(results).to_string(float_format='{:.3f}'.format)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
