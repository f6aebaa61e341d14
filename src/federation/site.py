"""A site's own side: what it trains with, and what it decides for itself."""

import gc
import io
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from nvflare.apis.fl_constant import FLMetaKey, WorkspaceConstants
from typing_extensions import Self

from src.common.datalists import read_site
from src.common.errors import CourseError
from src.common.files import write_file, writing
from src.common.paths import sites_folder
from src.common.seeds import site_seed
from src.common.settings import CONFIG, Checked, Count, Number, StudySettings
from src.common.task import Task
from src.federation.engine import SupervisedTrainer, pick_device, train_for
from src.federation.flare_2_9 import process_kind
from src.federation.private import make_private, spent
from src.federation.reasons import REASON, WITHOUT_STATE

EPSILON, KEPT, STATE = "epsilon", "kept", "site_state.pt"  # kept/<job>/site_state.pt in a site's workspace; never sent


class SiteOptions(Checked):
    """What a site decides for itself: ``options.json`` in its folder, where there is one."""

    threads: Number = 0  # of the CPU; 0 leaves PyTorch's choice, which follows OMP_NUM_THREADS
    cache: bool = True  # keep prepared volumes in the site's folder, so that a second run need not make them again
    batch_size: Count | None = None  # items a step instead of the study's, for a GPU with little memory


class Site:
    """One place that trains: its items, its network and its trainer, put together once, whoever drives it.

    ``name`` fixes, with the seed, the order of the items and the augmentation; ``cache`` is a folder for prepared volumes;
    ``weights``, a ``state_dict`` to start from, are by default a new model's, of the settings' seed. ``seconds`` is what the last
    round took. ``keeps`` is, by name, what has a ``state_dict`` that must outlive the site's process, in the folder ``kept``."""

    def __init__(self, task: Task, settings: StudySettings, parts: Mapping, name, cache=None, weights=None, kept=None):
        self.task, self.settings, self.name, self.device, self.kept = task, settings, name, pick_device(), kept
        self.training = task.prepare(parts["training"], settings, cache)
        self.validation = task.prepare(parts["validation"], settings, cache)
        self.model = task.to_device(task.new_model(settings.seed, settings.network), self.device)
        if weights:
            self.model.load_state_dict(weights)
        self.trainer = self.trainer_of(self.model)
        self.seconds: dict[str, float] = {}
        self.keeps = {"optimizer": self.trainer.optimizer} | ({"privacy": self.accountant} if settings.dp_clip else {})
        # Whether it has trained in this job, now or in a process before; what the server should know beside a good update.
        self.has_state, self.remark = False, None

    @classmethod
    def open(cls, task: Task, name: str, job: Path, app: Path | None = None) -> Self:
        """A hospital's own: datalist and options are in its folder, settings in the job; a ``CourseError`` if one is wrong.

        ``job`` is the settings' file, or the folder of the job's script, in the job's folder ``app``, which FLARE empties when the
        job comes again: what the site keeps lies in its workspace."""
        app = app or next((one for one in job.parents if one.name.startswith(WorkspaceConstants.APP_PREFIX)), job)
        places = job, job / "src" / CONFIG, job / CONFIG
        settings = task.settings.read(next(filter(Path.is_file, places), places[-1]))
        parts, kept = read_site(settings.data, name, task.classes), app.parents[1] / KEPT / app.parent.name
        own = sites_folder(settings.data) / name
        file = own / "options.json"
        options = SiteOptions.read(file) if file.exists() else SiteOptions()
        if options.threads:
            torch.set_num_threads(options.threads)
        if options.batch_size:
            settings = settings.changed(batch_size=options.batch_size)
        # FLARE collects garbage after each round. To look at half a million objects that stay anyway takes as long as some steps.
        gc.freeze()
        return cls(task, settings, parts, name, own / "cache" if options.cache else None, kept=kept)

    def trainer_of(self, model: torch.nn.Module) -> SupervisedTrainer:
        """What trains a model on the site's items, with a loader of its own; the site's model has one already."""
        private = self.settings.dp_clip  # then order and augmentation are secret: the server knows the study's seed
        seed = secrets.randbits(62) if private else site_seed(self.settings.seed, self.name)
        loader = self.task.batches(self.training, self.settings, train=True, seed=seed)
        trainer = self.task.make_trainer(model, loader, self.settings, self.device)
        self.accountant = make_private(trainer, self.settings) if private else None
        return trainer

    def evaluate(self, should_stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Metrics of the model on the site's validation part; empty where it has none."""
        start = time.perf_counter()
        metrics = self.task.evaluate(self.model, self.validation, self.settings, self.device, should_stop)
        self.seconds["seconds_validation"] = time.perf_counter() - start
        return metrics

    def train(self, number: int | None = None, trainer: SupervisedTrainer | None = None) -> float:
        """Train for the epochs of round ``number``, by default the next; returns the mean loss of the last one."""
        epochs = self.settings.local_epochs
        return train_for(trainer or self.trainer, epochs, done=None if number is None else number * epochs)

    def meta(self) -> dict[str, object]:
        """What is sent beside weights and metrics: the number of training items, what a private one has spent, and a remark."""
        known = {REASON: self.remark, EPSILON: self.seconds.get(EPSILON)}
        return {FLMetaKey.NUM_STEPS_CURRENT_ROUND: len(self.training)} | {key: one for key, one in known.items() if one}

    def remember(self, number: int | None) -> None:
        """Write what the site keeps after round ``number``, and remark if it cannot, or if the round began without what it kept. Of
        a simulated site, which never comes back, it is ``model`` alone, weights of the site's own, which are a result."""
        self.remark = WITHOUT_STATE if number and not self.has_state else None
        self.has_state, simulated = True, process_kind() == "simulated site"
        if self.settings.dp_noise:
            self.seconds[EPSILON] = spent(self.accountant)  # a curve like the seconds
        state = {name: one.state_dict() for name, one in self.keeps.items() if name == "model" or not simulated}
        if not self.kept or not state:
            return
        torch.save(state, content := io.BytesIO())
        try:
            with writing(self.kept):
                self.kept.mkdir(parents=True, exist_ok=True)
            write_file(self.kept / STATE, content.getvalue())
        except CourseError as error:  # the update is good all the same
            logging.getLogger(__name__).warning("does not keep its state: %s", error)
            self.remark = error.kind

    def recall(self) -> None:
        """Take up what the site kept in this job before its process ended, if it is there and whole."""
        if not self.kept or not (file := self.kept / STATE).is_file():
            return
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            for name, one in self.keeps.items():
                one.load_state_dict(state[name])
            self.has_state = True
        except Exception as error:  # half a file makes PyTorch raise a dozen kinds; the site's answer will say so too
            logging.getLogger(__name__).warning("starts without its own state: cannot read %s: %s", file, error)
