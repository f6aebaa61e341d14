"""Training without a federation, at one place or at each site alone: what a federated run is compared with."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm

from src.common.engine import pick_device, train_for
from src.common.seeds import site_seed
from src.common.settings import StudySettings
from src.common.task import Card


@dataclass
class Trained:
    """A model that was trained without a federation.

    Attributes:
        model: the network after the last step.
        history: a dictionary for each round's worth of epochs: ``epoch``, ``train_loss`` and, where it validates, the metrics
            ``val_…``.
        epochs: passes over the training items.
        steps: number of optimiser steps.
        seconds: wall time of training and, where it validates, validation, without preparing the data.
    """

    model: torch.nn.Module
    history: list[dict] = field(default_factory=list)
    epochs: int = 0
    steps: int = 0
    seconds: float = 0.0


def train_locally(
    card: Card,
    parts: Mapping[str, Sequence[Mapping]],
    settings: StudySettings,
    site: str = "pooled",
    initial_weights: Mapping[str, torch.Tensor] | None = None,
    cache: Path | None = None,
    progress: bool = False,
    validate: bool = True,
) -> Trained:
    """Train on the items of one place: the yardstick of a federated run with the same settings.

    The same first model, optimiser, learning rates and augmentation, and as many epochs. Like a site of the federation, it
    validates after every round's worth of epochs, and like the federation it keeps its last model.

    Args:
        card: of the task.
        parts: ``training`` and ``validation`` items.
        settings: as of the federation.
        site: fixes, with the seed, the order and the augmentation; with a site's name they are that site's.
        initial_weights: by default those of a new model with the settings' seed.
        cache: folder for prepared volumes, for tasks that keep them on disk.
        progress: show a progress bar.
        validate: False where nobody will look at the curves; the model is the same, and the validation part is not read.
    """
    # Under the names by which a site's script imports them, so that the two can be read side by side.
    transforms, task = card.room("transforms"), card.room("training")
    prepare, batches, new_model, to_device = transforms.prepare, transforms.batches, task.new_model, task.to_device
    make_trainer, evaluate = task.make_trainer, task.evaluate
    device = pick_device()

    parts = parts if validate else {**parts, "validation": []}
    training, validation = prepare(parts["training"], settings, cache), prepare(parts["validation"], settings, cache)
    loader = batches(training, settings, train=True, seed=site_seed(settings.seed, site))
    model = to_device(new_model(settings.seed, settings.network), device)
    trainer = make_trainer(model, loader, settings, device)
    if initial_weights:
        model.load_state_dict(initial_weights)

    result, start = Trained(model), time.perf_counter()
    for _ in tqdm(range(settings.rounds), desc=site, unit="round", leave=False, disable=not progress):
        loss = train_for(trainer, settings.local_epochs)
        metrics = evaluate(model, validation, settings, device)
        result.history.append({"epoch": trainer.state.epoch, "train_loss": loss, **metrics})
    result.epochs, result.steps = trainer.state.epoch, trainer.state.iteration
    result.seconds = time.perf_counter() - start
    return result


def train_each_site_alone(
    card: Card, datalists: Mapping[str, Mapping], settings: StudySettings, side_by_side: bool = False, **options
) -> dict[str, Trained]:
    """:func:`train_locally` for every site on its own items.

    Args:
        card: of the task.
        datalists: site → part → items.
        settings: as of the federation.
        side_by_side: as many sites at a time as there are cores, each on one thread: a small network keeps one core busy and
            gains little from a second.
        **options: of :func:`train_locally`.
    """
    before = torch.get_num_threads()
    workers = min(before, len(datalists)) if side_by_side and pick_device().type == "cpu" else 1

    def one(site: str) -> Trained:
        torch.set_num_threads(max(1, before // workers))
        return train_locally(card, datalists[site], settings, site, **options)

    try:
        with ThreadPoolExecutor(workers) as pool:
            return dict(zip(datalists, pool.map(one, datalists), strict=True))
    finally:
        torch.set_num_threads(before)
