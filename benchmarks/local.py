"""Training without a federation, at one place or at each site alone: what a federated run is compared with."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from tqdm.auto import tqdm

from src.common.errors import CourseError
from src.common.settings import StudySettings
from src.common.task import Task
from src.federation.engine import pick_device
from src.federation.site import Site


@dataclass
class Trained:
    """A model that was trained without a federation."""

    model: torch.nn.Module  # after the last step
    history: list[dict] = field(
        default_factory=list
    )  # of each round's epochs: epoch, train_loss and, where it validates, metrics
    epochs: int = 0  # passes over the training items
    steps: int = 0  # of the optimiser
    seconds: float = 0.0  # wall time of training and validation, without preparing the data


def train_locally(
    task: Task,
    parts: Mapping[str, Sequence[Mapping]],
    settings: StudySettings,
    name: str = "pooled",
    progress: bool = False,
    validate: bool = True,
    **options,
) -> Trained:
    """Train on the items of one place: the yardstick of a federated run with the same settings.

    The same first model, optimiser, learning rates and augmentation, and as many epochs. Like a site of the federation, it
    validates after every round's worth of epochs, and like the federation it keeps its last model.

    Args:
        task: what is trained.
        parts: ``training`` and ``validation`` items.
        settings: as of the federation.
        name: fixes, with the seed, the order and the augmentation; with a site's name they are that site's.
        progress: show a progress bar.
        validate: False where nobody will look at the curves; the model is the same, and the validation part is not read.
        **options: of :class:`src.federation.site.Site`.

    Raises:
        CourseError: for settings of a federated method, of which nothing would be heeded here.
    """
    if settings.method != "fedavg":
        raise CourseError(
            f"Nothing is federated here, so method={settings.method!r} would not be heeded. Give settings.changed(method='fedavg')."
        )
    site = Site(task, settings, parts if validate else {**parts, "validation": []}, name, **options)
    result, start = Trained(site.model), time.perf_counter()
    for _ in tqdm(range(settings.rounds), desc=name, unit="round", leave=False, disable=not progress):
        loss = site.train()
        result.history.append({"epoch": site.trainer.state.epoch, "train_loss": loss, **site.evaluate()})
    result.epochs, result.steps = site.trainer.state.epoch, site.trainer.state.iteration
    result.seconds = time.perf_counter() - start
    return result


def train_each_site_alone(
    task: Task, datalists: Mapping[str, Mapping], settings: StudySettings, side_by_side: bool = False, **options
) -> dict[str, Trained]:
    """:func:`train_locally` for every site of ``datalists``, site → part → items, on its own.

    With ``side_by_side`` as many at a time as there are cores, each on one thread: a small network gains little from a second.
    """
    before = torch.get_num_threads()
    workers = min(before, len(datalists)) if side_by_side and pick_device().type == "cpu" else 1

    def one(site: str) -> Trained:
        torch.set_num_threads(max(1, before // workers))
        return train_locally(task, datalists[site], settings, site, **options)

    try:
        with ThreadPoolExecutor(workers) as pool:
            return dict(zip(datalists, pool.map(one, datalists), strict=True))
    finally:
        torch.set_num_threads(before)
