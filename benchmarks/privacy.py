"""What leaves a hospital, attacked and defended, measured: ``python -m benchmarks.privacy [PATTERN ...]``.

A cell of the grid is an attack, a case of it and a seed, for example ``defence-percentile99-0``. Two hospitals with 315 drawings of
MedNIST each train ``SmallNet`` with plain SGD for 20 rounds, without augmentation; accuracy is that on 1,200 drawings that no
training has seen, which are also what an attacker has as public images. An inversion is tried on ten images of the first hospital,
one a time, where its case does not say otherwise. All cells of one seed have the same drawings and first weights.
``--real`` takes the images of ``COURSE_DATA/MedNIST``, half of them for the two hospitals. Settings were chosen on seed 100.
Each cell is measured once and kept; run again, the command goes on where it stopped.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from benchmarks import attacks
from benchmarks.attacks import Imprint, invert, read_imprint, recovered, sgd_change, shrunken
from benchmarks.cells import Named, fitting, made_by, measure_missing
from benchmarks.defences import DEFENCES, PLAIN, RULES, TASK, Defence, filtered, private, sending, sent, trained
from benchmarks.methods import drawn
from data_scripts.mednist_sites import find_or_make, read_items
from data_scripts.sharing import partition, random_numbers
from src.common.files import read_json
from src.densenet import DenseNet121, SmallNet
from src.federation.methods import FedAvg
from src.mednist.card import CARD, Settings
from src.mednist.evaluation import TASK as MEDNIST
from src.mednist.transforms import prepare

RESULTS = Path(__file__).parent / "results" / "privacy"
SEEDS, TUNING_SEED = range(3), 100
PER_CLASS, BANK = 105, 200  # drawings of a class to train on, and to judge on
TRIED = 10  # images that are attacked, one at a time
DRAWINGS, TESTING = 8000, 8900  # seeds of drawings, of hospitals and of the bank with seed 0


# -- images and trainings ----------------------------------------------------------------------------------------------


@dataclass
class Place:
    """Where a cell is measured: hospitals' items by site, and what nobody trains on, ``(n, 1, 64, 64)`` with ``labels``."""

    datalists: dict[str, dict]
    images: torch.Tensor
    labels: torch.Tensor
    victims: list[dict]  # prepared items of the first hospital, in an order by chance


@functools.lru_cache(maxsize=2)
def place(seed: int, real: bool = False, sites: int = 2) -> Place:
    """Draw hospitals and bank, or share out the real images."""
    if real:
        items = read_items(find_or_make("real", say=lambda line: None), 100, seed)
        order = random_numbers(seed, "half").permutation(len(items))
        items, left = ([items[k] for k in half] for half in np.array_split(order, 2))
    else:
        wanted = (PER_CLASS, DRAWINGS + seed), (BANK, TESTING + seed)
        items, left = (read_items(drawn(*one), *one) for one in wanted)
    shares = partition(items, [f"site-{k + 1}" for k in range(sites)], "even", seed=seed)
    datalists = {site: {"training": own, "validation": [], "testing": []} for site, own in shares.items()}
    images, labels = tensors(prepare(left, PLAIN))
    own = shares["site-1"]
    order = random_numbers(seed, "victims").permutation(len(own))[:64]
    return Place(datalists, images, labels, prepare([own[k] for k in order], PLAIN))


def tensors(prepared: Sequence[Mapping]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images ``(n, 1, 64, 64)`` and labels ``(n,)`` of prepared items."""
    return torch.stack([one["image"] for one in prepared]), torch.tensor([one["label"] for one in prepared])


@torch.inference_mode()
def accuracy(model: nn.Module, where: Place) -> float:
    """On the images that nobody trains on."""
    return float((model(where.images).argmax(dim=1) == where.labels).float().mean())


# -- defences ----------------------------------------------------------------------------------------------------------


def settings_of(defence: Defence, where: Place, seed: int) -> Settings:
    """Settings of a study with this defence."""
    count = len(where.datalists["site-1"]["training"])
    more = private(defence.epsilon, count) if defence.epsilon else dict(defence.settings)
    return PLAIN.changed(**more, seed=seed)


def measure_defence(where: Place, name: str, seed: int) -> dict:
    """SSIM of the naive and of the knowing attacker on one image after another, and the accuracy of a study with the defence."""
    defence, settings, found = DEFENCES[name], settings_of(DEFENCES[name], where, seed), {}
    one_step, rows = settings.changed(rounds=100, local_epochs=1, batch_size=1), {"naive": []}
    images, labels = tensors(where.victims[:TRIED])
    for number, (image, label) in enumerate(zip(images.split(1), labels.split(1), strict=True)):
        model = SmallNet(seed)
        change = sent(SmallNet(seed), image, label, one_step)
        change = filtered(defence.filter(), change, 1) if defence.filter else change
        ways = {"naive": sgd_change} | ({"knowing": functools.partial(defence.knows, change)} if defence.knows else {})
        for row, imitate in ways.items():
            score = recovered(invert(model, change, label, imitate, seed=number), image)
            rows.setdefault(row, []).append(score.item())
    ledger = defence.filter and defence.filter()
    filter_it = lambda site, change: filtered(ledger, change, len(site.training))  # noqa: E731
    ended = trained(where.datalists, settings, sending(filter_it) if ledger else FedAvg)
    if name == "svt":  # its own account of what both sites spent in all rounds
        found = {"spent a round and site": ledger.get_privacy_spent() / (len(where.datalists) * settings.rounds)}
    return {"ssim": rows, "accuracy": accuracy(ended, where), "settings": settings.model_dump(mode="json"), **found}


# -- inversion, and where it stops -------------------------------------------------------------------------------------

INVERSIONS = {
    "one": {},
    "batch4": {"images": 4},
    "batch8": {"images": 8},
    "batch32": {"images": 32},
    "steps5": {"epochs": 5},
    "steps2x4": {"images": 8, "batch": 4},
    "trained": {},
    "adam": {"kind": torch.optim.Adam},
    "batchnorm": {},
    "relu": {},
    "pooling": {},
}


def variant(kind: str, seed: int) -> nn.Module:
    """SmallNet with another layer: ``relu``, ``pooling`` in the place of strides, or ``batchnorm``; else itself."""
    layers = []
    for layer in SmallNet(seed):
        pools = kind == "pooling" and getattr(layer, "stride", None) == (2, 2)
        if pools:
            layer.stride = (1, 1)
        layers.append(nn.ReLU() if kind == "relu" and isinstance(layer, nn.ELU) else layer)
        layers += [nn.MaxPool2d(2)] if pools else []
        layers += [nn.BatchNorm2d(12)] if kind == "batchnorm" and isinstance(layer, nn.Conv2d) else []
    return nn.Sequential(*layers) if kind in ("relu", "pooling", "batchnorm") else SmallNet(seed)


def measure_inversion(where: Place, name: str, seed: int) -> dict:
    """SSIM of each image: of one after another, or of one batch; the attacker knows rate, number of steps, and labels."""
    about = {"images": 1, "epochs": 1, "kind": torch.optim.SGD} | INVERSIONS[name]
    count, batch = about["images"], about.get("batch", about["images"])
    settings = PLAIN.changed(rounds=100, local_epochs=about["epochs"], batch_size=batch, seed=seed)
    model = trained(where.datalists, PLAIN.changed(seed=seed)) if name == "trained" else variant(name, seed)
    steps = about["epochs"] * count // batch
    imitate = functools.partial(sgd_change, rate=settings.learning_rate, steps=steps, batch=batch)
    images, labels = tensors(where.victims[: max(TRIED, count) if count == 1 else count])
    found, public = [], []
    for number, (some, whose) in enumerate(zip(images.split(count), labels.split(count), strict=True)):
        model.train()
        change = sent(model, some, whose, settings, about["kind"])
        found += recovered(invert(model, change, whose, imitate, seed=number), some).tolist()
    for image, label in zip(images.split(1), labels, strict=True):
        public.append(attacks.baselines(image, where.images[::4], where.images[where.labels == label]))
    return {"ssim": {"found": found} | {key: [one[key] for one in public] for key in public[0]}}


# -- a server that changes the model -----------------------------------------------------------------------------------

IMPRINTS = {"sgd8": (8, torch.optim.SGD, 1.0), "sgd32": (32, torch.optim.SGD, 1.0)}
IMPRINTS |= {"adam16": (16, torch.optim.Adam, 1.0), "shrunken16": (16, torch.optim.Adam, 1e-7)}


def measure_imprint(where: Place, name: str, seed: int) -> dict:
    """SSIM of each image of a batch with what is read from one step of DenseNet121 behind an :class:`Imprint`."""
    count, kind, by = IMPRINTS[name]
    model = Imprint(DenseNet121(seed=seed), where.images.mean(dim=(1, 2, 3)), bins=1024)
    shrunken(model.network, "class_layers.out", by)
    images, labels = tensors(where.victims[:count])
    settings = PLAIN.changed(batch_size=count, rounds=1, seed=seed, learning_rate=1e-3)
    read = read_imprint(sent(model, images, labels, settings, kind)).clamp(0, 1)
    read = torch.cat([read, torch.zeros(max(0, count - len(read)), *read.shape[1:])])
    return {"ssim": {"found": recovered(read, images).tolist()}}


# -- membership --------------------------------------------------------------------------------------------------------

MEMBERSHIPS = {"plain": (None, 0.0), "plain-wrong": (None, 0.2), "epsilon8": (8.0, 0.0), "epsilon8-wrong": (8.0, 0.2)}


def relabelled(labels: Sequence[int], share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels with a share of them wrong, and which are."""
    rng = random_numbers(seed, "wrong")
    wrong = rng.random(len(labels)) < share
    return np.where(wrong, (labels + rng.integers(1, len(CARD.labels), len(labels))) % len(CARD.labels), labels), wrong


def measure_membership(where: Place, name: str, seed: int) -> dict:
    """AUC and ROC of the threshold on the loss: patients of both hospitals against images that nobody trained on; of the unusual
    ones alone where some labels are wrong, in the training and among the others alike."""
    epsilon, share = MEMBERSHIPS[name]
    items = {site: [*parts["training"]] for site, parts in where.datalists.items()}
    unusual = []
    for site, own in items.items():
        labels, wrong = relabelled(np.array([one["label"] for one in own]), share, seed + 7)
        items[site] = [{**one, "label": int(label)} for one, label in zip(own, labels, strict=True)]
        unusual += wrong.tolist()
    datalists = {site: {**where.datalists[site], "training": own} for site, own in items.items()}
    settings = settings_of(Defence("", epsilon=epsilon), where, seed)
    # The course's own Adam learns its training images by heart sooner than SGD.
    settings = settings if epsilon else settings.changed(rounds=MEMORISED, learning_rate=1e-3)
    model = trained(datalists, settings, task=TASK if epsilon else replace(TASK, make_trainer=MEDNIST.make_trainer))
    members = attacks.losses(model, *tensors(prepare([one for own in items.values() for one in own], PLAIN)))
    labels, odd = relabelled(where.labels.numpy(), share, seed + 50)
    others = attacks.losses(model, where.images, torch.from_numpy(labels))
    found = {"all": attacks.membership(members, others)}
    if share:
        found["unusual"] = attacks.membership(members[np.array(unusual)], others[odd])
    rows = {row: {key: np.round(value, 4).tolist() for key, value in one.items()} for row, one in found.items()}
    return {"membership": rows, "accuracy": accuracy(model, where), "settings": settings.model_dump(mode="json")}


MEMORISED = 80  # rounds of the training that is asked for its patients


# -- a malicious site --------------------------------------------------------------------------------------------------


MALICE = ("honest", "scaled", "flipped", "skewed")


def measure_malicious(where: Place, name: str, seed: int) -> dict:
    """Accuracy where the first of five sites sends -20 times its change, or trains with its labels turned round; or where all are
    honest and see different classes, which is what a robust mean may take for a lie."""
    malice, rule = name.split("-")
    scale = lambda site, change: {n: v * (-20 if site.name == "site-1" else 1) for n, v in change.items()}  # noqa: E731
    if malice == "flipped":
        turned = [
            {**one, "label": len(CARD.labels) - 1 - one["label"]} for one in where.datalists["site-1"]["training"]
        ]
        where = replace(
            where, datalists=where.datalists | {"site-1": {**where.datalists["site-1"], "training": turned}}
        )
    if malice == "skewed":
        items = [one for parts in where.datalists.values() for one in parts["training"]]
        shares = partition(items, [*where.datalists], "mixed", counts=[60] * len(where.datalists), skew=0.95, seed=seed)
        where = replace(where, datalists={s: {**where.datalists[s], "training": own} for s, own in shares.items()})
    settings, found = PLAIN.changed(seed=seed), {}
    try:
        model = trained(where.datalists, settings, sending(scale) if malice == "scaled" else FedAvg, RULES[rule](seed))
        found = {"accuracy": accuracy(model, where)}
    except (FloatingPointError, ValueError) as error:  # an honest site cannot train any more: there is no model
        found = {"accuracy": 0.0, "ended": str(error)}
    return found | {"settings": settings.model_dump(mode="json")}


# -- the grid ----------------------------------------------------------------------------------------------------------

PARTS: dict[str, tuple[Callable, Sequence[str]]] = {
    "inversion": (measure_inversion, tuple(INVERSIONS)),
    "imprint": (measure_imprint, tuple(IMPRINTS)),
    "defence": (measure_defence, tuple(DEFENCES)),
    "membership": (measure_membership, tuple(MEMBERSHIPS)),
    "malicious": (measure_malicious, tuple(f"{one}-{rule}" for one in MALICE for rule in RULES)),
}


TITLES = {
    "one": "one image, one step of SGD",
    "batch4": "a batch of 4",
    "batch8": "a batch of 8",
    "batch32": "a batch of 32",
    "steps5": "5 steps on one image",
    "steps2x4": "2 steps, 4 images each",
    "trained": "one image, a trained network",
    "adam": "one step of Adam",
    "batchnorm": "with batch normalisation",
    "relu": "ReLU for ELU",
    "pooling": "pooling for strides",
    "sgd8": "8 images, SGD",
    "sgd32": "32 images, SGD",
    "adam16": "16 images, Adam",
    "shrunken16": "16 images, Adam, last layer shrunken",
    "plain": "no label wrong, no defence",
    "epsilon8": "no label wrong, DP-SGD with ε = 8",
    "plain-wrong": "a fifth of the labels wrong, no defence",
    "epsilon8-wrong": "a fifth of the labels wrong, DP-SGD with ε = 8",
    "honest": "all honest",
    "scaled": "update × −20",
    "flipped": "labels flipped",
    "skewed": "all honest, skewed labels",
}
"""Of cases, for tables; those of defences are in :data:`benchmarks.defences.DEFENCES`."""


@dataclass(frozen=True)
class Cell(Named):
    """One measurement: the attack, its case, and the seed of drawings, first model and chance."""

    part: str
    case: str
    seed: int


def grid() -> Iterator[Cell]:
    """All cells, seed by seed."""
    return (Cell(part, case, seed) for seed in SEEDS for part, (_, cases) in PARTS.items() for case in cases)


def measure(cell: Cell, real: bool = False) -> dict:
    """Measure one cell; returns its report."""
    start = time.time()
    found = PARTS[cell.part][0](place(cell.seed, real, 5 if cell.part == "malicious" else 2), cell.case, cell.seed)
    about = {"cell": str(cell), "part": cell.part, "case": cell.case, "seed": cell.seed, **found}
    about.setdefault("settings", PLAIN.model_dump(mode="json"))
    about["seconds"] = round(time.time() - start, 1)
    return about | made_by(f"benchmarks.privacy {'--real ' if real else ''}{cell}")


def read(folder: Path = RESULTS) -> pd.DataFrame:
    """All reports, a row a number: ``part, case, seed, row, value``; ``accuracy``, ``auc`` or a kind of SSIM, per image."""
    reports = [one for cell in grid() if (one := read_json(folder / f"{cell}.json"))]
    rows = []
    for one in reports:
        own = one["part"], one["case"], one["seed"]
        rows += [(*own, row, value) for row, values in one.get("ssim", {}).items() for value in values]
        rows += [(*own, f"auc, {row}", value["auc"]) for row, value in one.get("membership", {}).items()]
        rows += [(*own, "accuracy", one["accuracy"])] if "accuracy" in one else []
    return pd.DataFrame(rows, columns=["part", "case", "seed", "row", "value"])


def table(results: pd.DataFrame) -> pd.DataFrame:
    """A row a case and kind of number: its mean, median, least and greatest over images and seeds, and how many are 0.7 or more."""
    groups = results.groupby(["part", "case", "row"], sort=False)["value"]
    made = groups.agg(["mean", "median", "min", "max", "count"])
    return made.assign(**{"≥ 0.7": groups.apply(lambda one: int((one >= 0.7).sum()))})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.privacy", description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="cells to measure; default: all of the grid")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what is there")
    parser.add_argument("--real", action="store_true", help="on real images instead of drawings")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cells, folder = fitting(grid(), options.patterns, parser), RESULTS / "real" if options.real else RESULTS
    one_by_one = functools.partial(map, functools.partial(measure, real=options.real))
    for which, report in () if options.table else measure_missing(cells, folder, one_by_one):
        print(f"{which}: {report['seconds']:.0f} s", flush=True)
    print(table(read(folder)).to_string(float_format="{:.3f}".format))
    return 0


if __name__ == "__main__":
    sys.exit(main())
