"""Why a federated model fails at home, measured: ``python -m benchmarks.methods [PATTERN ...]``.

Four hospitals with 64 images of MedNIST each (160, 48, 24 and 24 where sizes differ) train a small network, alone, pooled, or
federated for 48 rounds of one epoch; what they end with is judged on a bank of 1,200 drawings that no training has seen. A
cell of the grid is a way in which hospitals differ, a way to train and a seed, for example ``s0.95-scaffold-0``; its report
has a row for each thing that can be done with the trained model. All cells of one seed have the same drawings and first
weights, another seed has new ones.

``--tune`` chooses, once, each method's own parameters on a bank and on drawings that take no part in any report. ``--flare``
trains each method in FLARE's simulator and in this plain loop, and reports how far the two are apart. ``--real`` measures on
the images of ``COURSE_DATA/MedNIST`` instead, with what is left over as the bank. Each cell is measured once and kept; run
again, the command goes on where it stopped, two cells at a time.
"""

import argparse
import base64
import datetime
import functools
import io
import itertools
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from benchmarks.__main__ import versions
from benchmarks.cells import Named, fitting, made_by, measure_missing
from benchmarks.federate import Federated, federate, with_network
from benchmarks.local import train_each_site_alone, train_locally
from benchmarks.remedies import GroupNormDenseNet, PriorCorrected, fine_tuned, own_statistics, reestimated
from data_scripts.folders import generated, raw_folder
from data_scripts.mednist_sites import find_or_make, read_items
from data_scripts.phantoms import mednist as phantoms
from data_scripts.scanners import STYLES, rescan, scan
from data_scripts.sharing import classes, mixed, partition, random_numbers, write_sites
from data_scripts.together import pooled, read_sites
from deploy.simulator import CourseSimEnv
from src.common.files import read_json, write_json
from src.federation.methods import DEFAULTS, METHODS
from src.federation.recipes import client_recipe
from src.federation.run import Run
from src.federation.site import STATE
from src.mednist.card import CARD, Settings
from src.mednist.evaluation import TASK
from src.mednist.transforms import prepare

RESULTS = Path(__file__).parent / "results" / "methods"
TUNING, FLARE = RESULTS / "tuning.json", RESULTS / "flare.json"
SITES = tuple(f"site-{number}" for number in range(1, 5))
SEEDS, FEWER = range(5), range(3)  # of what the findings rest on most; of the rest
BANK, PER_CLASS, ROUNDS = 200, 80, 48  # drawings of a class in a bank; to share out; rounds of one epoch
TUNING_SEED, FLARE_ROUNDS = 100, 3
# Seeds of drawings: of hospitals with seed 0, of the bank to choose by, and of the bank to report on with seed 0.
DRAWINGS, VALIDATION, TESTING = 7000, 7801, 7900


@dataclass(frozen=True)
class Skew:  # how four hospitals differ
    title: str
    labels: float = 0.0  # see data_scripts.sharing.mixes
    scanners: bool = False
    counts: tuple[int, ...] = (64, 64, 64, 64)
    trainings: tuple[str, ...] = ("local", "pooled", "fedavg")


ALL = ("local", "pooled", "fedavg", "groupnorm", "fedprox", "scaffold", "fedadam", "fedavgm", "fedbn", "ditto")
MAIN = ("local", "pooled", "fedavg", "groupnorm", "fedbn", "ditto")
LEFT_OUT = "leftout"  # for each hospital, FedAvg of the other three
SELDOM = "rounds12"  # FedAvg with a quarter of the rounds and as many epochs in all
SKEWS = {
    "s0": Skew("labels, s = 0"),
    "s0.6": Skew("labels, s = 0.6", 0.6),
    "s0.95": Skew("labels, s = 0.95", 0.95, trainings=(*ALL, SELDOM)),
    "scanners": Skew("scanners", scanners=True, trainings=(*ALL, LEFT_OUT)),
    "sizes": Skew("sizes", counts=(160, 48, 24, 24)),
}
"""Every method where hospitals differ in one thing and most; else the yardsticks, FedAvg, and what can be made of its model."""

BOTH = Skew("scanners and labels, s = 0.6", 0.6, True)  # of the notebook's own federation

ADAPTED_WITH = (1, 3, 10, 64)  # images of a hospital that took no part

TITLES = {
    "local": "each site alone",
    "pooled": "pooled",
    SELDOM: "FedAvg, 12 rounds of 4 epochs",
    "fedavg": "FedAvg",
    "statistics": "FedAvg, own statistics",
    "prior": "FedAvg, prior corrected",
    "statistics+prior": "FedAvg, own statistics, prior corrected",
    "finetuned": "FedAvg, fine-tuned at home",
    "reestimated": "FedAvg, statistics of all re-estimated",
    "groupnorm": "FedAvg with GroupNorm",
    "fedprox": "FedProx",
    "scaffold": "SCAFFOLD",
    "fedadam": "FedOpt, Adam",
    "fedadam+reestimated": "FedOpt, Adam, statistics re-estimated",
    "fedavgm": "FedOpt, momentum",
    "fedbn": "FedBN",
    "ditto": "Ditto",
    LEFT_OUT: "took no part",
    **{f"{LEFT_OUT}+statistics{count}": f"took no part, own statistics of {count}" for count in ADAPTED_WITH},
    **{
        f"{LEFT_OUT}+finetuned{count}": f"took no part, own statistics of {count}, fine-tuned" for count in ADAPTED_WITH
    },
}
"""Rows of the tables. Those that begin with FedAvg start from the same federated model."""

CHOICES: dict[str, Sequence] = {
    "local": (2.5e-3, 5e-3, 1e-2),  # learning rates
    "pooled": (2.5e-3, 5e-3, 1e-2),
    "fedavg": (5e-3, 1e-2, 2e-2, 4e-2),
    "fedprox": (0.01, 0.1, 1.0),  # weight of the proximal term
    "fedadam": (0.003, 0.01, 0.03),  # the server's rate
    "fedavgm": (0.3, 0.6, 0.9),  # the server's momentum
    "ditto": (0.01, 0.1, 1.0),  # weight of the hold
    LEFT_OUT: (0, 1, 4, 16),  # images that the federation's statistics count as, beside a new hospital's own
    "finetuned": ((2, 1e-3), (5, 1e-3), (2, 5e-3), (5, 5e-3), (10, 5e-3)),  # epochs, learning rate
}
"""What ``--tune`` chooses from; a learning rate of FedAvg is that of all federated methods."""

TUNED_ON = ("s0.95", "scanners")


def tuned() -> dict:
    """Training → what was chosen for it."""
    return {name: one["chosen"] for name, one in read_json(TUNING)["trainings"].items()}


# -- images ------------------------------------------------------------------------------------------------------------


def drawn(per_class: int, seed: int) -> Path:
    """The folder of so many drawings of each class, made where it is not there."""
    folder, about = raw_folder(f"MedNIST-{seed}", "generated"), phantoms.parameters(per_class, seed)
    return generated(folder, about, lambda new: phantoms.write(new, per_class, seed))


def draw(skew: Skew, seed: int, real: bool = False, few: int = 0) -> tuple[dict[str, dict], list[dict]]:
    """The datalists of four hospitals, which validate on ``few`` images and have no testing parts, and the items that no hospital
    trains on."""
    folder = find_or_make("real", say=lambda line: None) if real else drawn(PER_CLASS, DRAWINGS + seed)
    items = read_items(folder, 100 if real else PER_CLASS, seed)
    shares = partition(items, SITES, "mixed", counts=skew.counts, skew=skew.labels, seed=seed)
    taken = {item["image"] for own in shares.values() for item in own}
    left = [item for item in items if item["image"] not in taken]
    parts = {"training": shares, "validation": {site: left[k :: len(SITES)][:few] for k, site in enumerate(SITES)}}
    for part in ("training", "validation")[: 1 + bool(few)] if skew.scanners else ():
        name = f"MedNIST-scanners-{skew.labels:g}-{DRAWINGS + seed}-{part}"
        parts[part] = rescan(parts[part], folder, raw_folder(name, "real" if real else "generated"), seed)
    return {site: {part: own[site] for part, own in parts.items()} | {"testing": []} for site in SITES}, left


def share_out(skew: Skew, seed: int, real: bool = False) -> tuple[dict[str, dict], str]:
    """The same with a folder for each hospital, for FLARE's sites to find; returns the datalists, and the name of the data."""
    base, data = raw_folder("MedNIST", "real" if real else "generated").parent, "different-hospitals"
    about = {"task": CARD.name, "differ": skew.title, "seed": seed, "real": real}
    write_sites(data, draw(skew, seed, real, few=6)[0], base, about, lambda line: None, CARD.classes)
    return read_sites(data), data


def pixels(items: Sequence[dict]) -> torch.Tensor:
    """The images of items as the network sees them, ``(items, 1, 64, 64)``."""
    return torch.stack([one["image"] for one in prepare(items, Settings())])


class Bank:
    """Images that no training has seen, as each scanner shows them: the ``labels`` and, by number of a scanner, the pixels."""

    def __init__(self, items: Sequence[dict]):
        prepared = prepare(items, Settings())
        self.labels = np.array([one["label"] for one in prepared])
        self.plain = [np.rint(255 * one["image"][0].numpy()).astype(np.uint8) for one in prepared]

    @functools.lru_cache  # noqa: B019 (a bank lives as long as its process)
    def images(self, style: int) -> torch.Tensor:
        rng = random_numbers(style, "bank")
        return torch.stack([_stored(scan(one, STYLES[style], rng) if style else one) for one in self.plain])

    @torch.inference_mode()
    def right(self, model: torch.nn.Module, style: int) -> np.ndarray:
        """Whether the model is right, an image."""
        batches = self.images(style).split(100)
        model = TASK.to_device(model, torch.device("cpu")).eval()
        return torch.cat([model(one).argmax(dim=1) for one in batches]).numpy() == self.labels


def _stored(image: np.ndarray) -> torch.Tensor:  # as a site's images come back from their JPEG files
    Image.fromarray(image).save(jpeg := io.BytesIO(), "JPEG", quality=95)
    return torch.from_numpy(np.array(Image.open(jpeg)) / np.float32(255))[None]


@functools.cache
def bank(seed: int) -> Bank:
    """1,200 drawings."""
    return Bank(read_items(drawn(BANK, seed), BANK))


# -- training ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell(Named):
    """One measurement: how hospitals differ, how they train, and the seed of drawings, first model, order and augmentation."""

    skew: str
    training: str
    seed: int


def grid() -> Iterator[Cell]:
    """All cells, seed by seed."""
    for seed, (skew, about) in itertools.product(SEEDS, SKEWS.items()):
        for training in about.trainings:
            if seed in FEWER or (skew in TUNED_ON and training in MAIN):
                yield Cell(skew, training, seed)


def settings_of(training: str, seed: int, chosen: Mapping, data: str = "grid") -> Settings:
    """Settings of a training with the parameters that were chosen."""
    method = training if training in METHODS else "fedavg"
    rate = chosen[training if training in ("local", "pooled") else "fedavg"]
    own = {"fedproxloss_mu": chosen["fedprox"]} if method == "fedprox" else {}
    fixed = {"network": "CompactDenseNet", "rounds": ROUNDS, "local_epochs": 1, "batch_size": 8}
    fixed |= {"rounds": ROUNDS // 4, "local_epochs": 4} if training == SELDOM else {}
    return Settings(**fixed, **own, data=data, learning_rate=rate, seed=seed, method=method)


def server_optimizer(training: str, chosen: Mapping) -> dict | None:
    """The optimiser of FedOpt's server, as in :data:`src.federation.methods.METHODS`, with the chosen number."""
    if training not in ("fedadam", "fedavgm"):
        return None
    given = DEFAULTS[training]
    return {**given, "args": given["args"] | {"lr" if training == "fedadam" else "momentum": chosen[training]}}


Models = dict[str, torch.nn.Module]


def train(training: str, datalists: Mapping, settings: Settings, chosen: Mapping, watch=None) -> Models:
    """Site → the model that it ends with; ``watch`` is that of :func:`benchmarks.federate.federate`."""
    if training == "local":
        return {s: one.model for s, one in train_each_site_alone(TASK, datalists, settings, validate=False).items()}
    if training == "pooled":
        return dict.fromkeys(datalists, train_locally(TASK, pooled(datalists), settings, validate=False).model)
    if training == LEFT_OUT:
        others = {out: {site: parts for site, parts in datalists.items() if site != out} for out in datalists}
        return {out: federate(TASK, three, settings).model.eval() for out, three in others.items()}
    task = with_network(TASK, GroupNormDenseNet) if training == "groupnorm" else TASK
    with patch.dict(DEFAULTS, ditto=chosen["ditto"]):
        ended: Federated = federate(task, datalists, settings, server_optimizer(training, chosen), watch)
    return ended.models if METHODS[settings.method].personal else dict.fromkeys(datalists, ended.model.eval())


def remedied(
    training: str, models: Models, datalists: Mapping, settings: Settings, chosen: Mapping
) -> dict[str, Models]:
    """Row → site → model: what was trained, and what each site can make of it with its own images."""
    if training == LEFT_OUT:
        return {training: models} | _adapted(models, datalists, settings, chosen)
    if training not in ("fedavg", "fedadam"):
        return {training: models}
    images = {site: pixels(parts["training"]) for site, parts in datalists.items()}
    model = models[SITES[0]]
    of_all = dict.fromkeys(datalists, reestimated(model, images))
    if training == "fedadam":
        return {training: models, "fedadam+reestimated": of_all}
    counts = counted(datalists)
    everybody = sum(counts.values())
    own = {site: own_statistics(model, batch) for site, batch in images.items()}
    at_home = {
        site: fine_tuned(TASK, model, parts["training"], settings, site, *chosen["finetuned"])
        for site, parts in datalists.items()
    }
    return {
        training: models,
        "statistics": own,
        "prior": {site: PriorCorrected(model, counts[site], everybody) for site in datalists},
        "statistics+prior": {site: PriorCorrected(own[site], counts[site], everybody) for site in datalists},
        "finetuned": at_home,
        "reestimated": of_all,
    }


def _adapted(models: Models, datalists: Mapping, settings: Settings, chosen: Mapping) -> dict[str, Models]:
    rows: dict[str, Models] = {}
    for count, (site, model) in itertools.product(ADAPTED_WITH, models.items()):
        # Statistics first, which need no labels. The first of an order in which each stretch has the classes in their proportions.
        few = mixed(datalists[site]["training"], random_numbers(settings.seed, site))[:count]
        own = own_statistics(model, pixels(few), chosen[LEFT_OUT])
        rows.setdefault(f"{LEFT_OUT}+statistics{count}", {})[site] = own
        tuned_at_home = fine_tuned(TASK, own, few, settings, site, *chosen["finetuned"])
        rows.setdefault(f"{LEFT_OUT}+finetuned{count}", {})[site] = tuned_at_home
    return rows


def counted(datalists: Mapping) -> dict[str, np.ndarray]:
    """Site → number of training images of each class."""
    table = classes({site: parts["training"] for site, parts in datalists.items()}, CARD.labels)
    return {site: table.loc[site].to_numpy() for site in datalists}


class Cosines:
    """Watches a federation: the mean cosine between the changes of any two sites in each round, by part of the network."""

    def __init__(self):
        self.rounds: list[dict[str, float]] = []

    def __call__(self, number: int, received: Mapping, sent: Mapping) -> None:
        names = [name for name in received if not re.search("running|num_batches", name)]
        groups = {"all": names}
        for name in names:
            groups.setdefault(".".join(name.split(".")[:2]), []).append(name)
        changes = [{name: (one[name] - received[name]).flatten() for name in names} for one in sent.values()]
        vectors = {part: [torch.cat([one[n] for n in own]) for one in changes] for part, own in groups.items()}
        self.rounds.append({part: _mean_cosine(own) for part, own in vectors.items()})

    def table(self) -> dict[str, list[float]]:
        """Part of the network → its cosine in each round."""
        return {part: [round(one[part], 3) for one in self.rounds] for part in (self.rounds or [{}])[0]}


def _mean_cosine(vectors: Sequence[torch.Tensor]) -> float:
    pairs = itertools.combinations(vectors, 2)
    return float(np.mean([torch.cosine_similarity(one, other, dim=0).item() for one, other in pairs]))


# -- judging -----------------------------------------------------------------------------------------------------------


def judge(models: Models, datalists: Mapping, skew: Skew, images: Bank) -> dict:
    """What the sites' models are worth.

    Returns:
        ``home``: site → accuracy of its model at home, the sum over classes of its own share of the class times the accuracy
        in that class, on the bank as its scanner shows it. ``everywhere``: site → mean accuracy of its model over classes and
        all sites' scanners. ``right``: site → by scanner, whether the model is right on each image, as packed bits in base64;
        of a model that all sites have, the first site's are enough.
    """
    styles = dict(zip(datalists, range(4), strict=True)) if skew.scanners else dict.fromkeys(datalists, 0)
    counts, known, found = counted(datalists), {}, {"home": {}, "everywhere": {}, "right": {}}
    for site, model in models.items():
        if id(model) not in known:
            known[id(model)] = {style: images.right(model, style) for style in sorted({*styles.values()})}
            found["right"][site] = {str(style): packed(right) for style, right in known[id(model)].items()}
        right = known[id(model)]
        found["home"][site] = float(by_class(right[styles[site]], images.labels) @ counts[site] / counts[site].sum())
        found["everywhere"][site] = float(np.mean([by_class(one, images.labels).mean() for one in right.values()]))
    return found


def by_class(right: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Accuracy in each class."""
    return np.array([right[labels == label].mean() for label in range(len(CARD.labels))])


def packed(right: np.ndarray) -> str:
    """Bits as text."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpacked(text: str, length: int) -> np.ndarray:
    """The opposite of :func:`packed`."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=length).astype(bool)


def measure(cell: Cell, real: bool = False) -> dict:
    """Train one cell and judge it; returns its report."""
    torch.set_num_threads(1)
    chosen, skew = tuned(), SKEWS[cell.skew]
    datalists, left = draw(skew, cell.seed, real)
    settings, cosines = settings_of(cell.training, cell.seed, chosen), Cosines()
    models = train(cell.training, datalists, settings, chosen, cosines if cell.training == "fedavg" else None)
    images = Bank(left) if real else bank(TESTING + cell.seed)
    rows = remedied(cell.training, models, datalists, settings, chosen)
    return {
        "cell": str(cell),
        "rows": {name: judge(own, datalists, skew, images) for name, own in rows.items()},
        "counts": {site: own.tolist() for site, own in counted(datalists).items()},
        "labels": np.bincount(images.labels).tolist(),  # of the bank, which is sorted by class
        "cosines": cosines.table(),
        "chosen": chosen,
        "settings": settings.model_dump(mode="json"),
        **made_by(f"benchmarks.methods {'--real ' if real else ''}{cell}"),
    }


# -- choosing ----------------------------------------------------------------------------------------------------------


def tune(say=print) -> dict:
    """Choose each method's own parameter on the validation bank, with drawings and a seed that no report has.

    The score is the mean over :data:`TUNED_ON` of the accuracy everywhere where all sites end with one model, else of that at
    home; FedOpt's Adam is judged with statistics re-estimated.
    """
    report = read_json(TUNING) or {"trainings": {}, "seed": TUNING_SEED, "bank": VALIDATION}
    first = {name: values[0] for name, values in CHOICES.items()}  # of what is not chosen yet
    for training, values in CHOICES.items():
        if training in report["trainings"]:
            continue
        chosen = first | {name: one["chosen"] for name, one in report["trainings"].items()}
        # Fine-tuning starts from one FedAvg, which is trained once; another training is one for each value.
        together = [values] if training in (LEFT_OUT, "finetuned") else [[value] for value in values]
        skews = ("scanners",) if training == LEFT_OUT else TUNED_ON
        tried = [*itertools.product(together, skews)]
        with ProcessPoolExecutor(2, get_context("spawn")) as pool:
            scores = pool.map(_scores, itertools.repeat(training), itertools.repeat(chosen), *zip(*tried, strict=True))
        found = {skew: [] for skew in skews}
        for (_, skew), own in zip(tried, scores, strict=True):
            found[skew] += own
        best = values[int(np.mean([*found.values()], axis=0).argmax())]
        report["trainings"][training] = {"chosen": best, "values": values, **found}
        report |= {"date": datetime.date.today().isoformat(), "versions": versions()}
        write_json(TUNING, report)
        say(f"{training}: {report['trainings'][training]}", flush=True)
    return report


def _scores(training: str, chosen: Mapping, values: Sequence, skew: str) -> list[float]:
    torch.set_num_threads(1)
    datalists, _ = draw(SKEWS[skew], TUNING_SEED)
    base = "fedavg" if training == "finetuned" else training
    found, models = [], None
    for value in values:
        chosen = {**chosen, training: value}
        settings = settings_of(base, TUNING_SEED, chosen)
        models = models or train(base, datalists, settings, chosen)
        made = remedied(base, models, datalists, settings, chosen) if training != "fedavg" else {training: models}
        rows = ["fedadam+reestimated"] if training == "fedadam" else [row for row in made if row.startswith(training)]
        judged = [judge(made[row], datalists, SKEWS[skew], bank(VALIDATION)) for row in rows]
        # Of one model that all sites have the bits are there once.
        scores = [[*one["everywhere" if len(one["right"]) == 1 else "home"].values()] for one in judged]
        found.append(round(float(np.mean(scores)), 4))
    return found


def compare_with_flare(say=print) -> dict:
    """Train with each method in FLARE's simulator and in the plain loop, on the same hospitals; returns and keeps, for each,
    how far the final global weights are apart, and what both are worth at home."""
    torch.set_num_threads(1)
    report, skew, chosen = {}, SKEWS["s0.95"], tuned()
    datalists, data = share_out(skew, 0)
    for method in METHODS:
        settings = settings_of(method, 0, chosen).changed(rounds=FLARE_ROUNDS, data=data)
        plain: Federated = federate(TASK, datalists, settings)
        with tempfile.TemporaryDirectory(prefix="course-flare-") as folder:
            simulator = CourseSimEnv(list(datalists), folder=Path(folder) / "run")
            simulator.run_folder.mkdir()
            run = Run(client_recipe(TASK, len(datalists), settings).execute(simulator).get_result())
            ours, flares = plain.model.state_dict(), run.weights(run.final_model)
            models = site_models(run, settings)
        apart = max(
            float((ours[n].double() - flares[n].double()).abs().max()) for n in ours if ours[n].is_floating_point()
        )
        home = {"plain": judge(plain.models, datalists, skew, bank(TESTING))["home"]}
        home["flare"] = judge(models, datalists, skew, bank(TESTING))["home"]
        report[method] = {
            "weights_apart": apart,
            "home": {how: float(np.mean([*one.values()])) for how, one in home.items()},
        }
        say(f"{method}: {report[method]}")
    report = {
        "methods": report,
        "rounds": FLARE_ROUNDS,
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
    }
    write_json(FLARE, report)
    return report


def site_models(run: Run, settings: Settings) -> Models:
    """Site → the model that it ends with after a run of FLARE: the global one, with what the site has kept in its place."""
    weights = run.weights(run.final_model)
    if not METHODS[settings.method].personal:
        return dict.fromkeys(run.sites, TASK.load_model(weights, settings.network))
    kept = {site: next(run.folder.glob(f"*/{site}/**/{STATE}")) for site in run.sites}
    return {site: TASK.load_model(weights | run.weights(file), settings.network) for site, file in kept.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, then print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="cells to measure; default: all of the grid")
    parser.add_argument("--again", action="store_true", help="measure also what is there")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what is there")
    parser.add_argument("--tune", action="store_true", help="choose the methods' parameters, where that was not done")
    parser.add_argument("--flare", action="store_true", help="compare the plain loop with FLARE, method by method")
    parser.add_argument("--real", action="store_true", help="on real images instead of drawings")
    parser.add_argument("--workers", type=int, default=2, help="cells at a time (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the reports")
    options = parser.parse_args(arguments)
    if options.tune or options.flare:
        (tune if options.tune else compare_with_flare)()
        return 0
    out = options.out or (RESULTS / "real" if options.real else RESULTS)
    cells = fitting(grid(), options.patterns, parser)
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        at_once = lambda cells: pool.map(functools.partial(measure, real=options.real), cells)  # noqa: E731
        for which, report in () if options.table else measure_missing(cells, out, at_once, options.again):
            home = {row: round(float(np.mean([*one["home"].values()])), 3) for row, one in report["rows"].items()}
            print(f"{which}: at home {home}", flush=True)
    from benchmarks import findings  # reads what this writes

    for value in ("home", "everywhere") if findings.reports(out) else ():
        print(f"\n{value}\n{findings.table(value, out).to_string()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
