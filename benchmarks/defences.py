"""What a site does to its change before it sends it, what a server does with what it gets, and what an attacker knows of the first.

The filters are FLARE's, as a recipe takes them: ``recipe.add_client_output_filter(PercentilePrivacy(90), tasks=["train"])``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.filters.exclude_vars import ExcludeVars
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.app_common.filters.svt_privacy import SVTPrivacy
from torch import nn

from benchmarks.attacks import Change, sgd_change
from benchmarks.federate import federate
from src.densenet import SmallNet
from src.federation.aggregation import CoordinateMedian, SampleWeightedMean
from src.federation.engine import make_trainer, train_for
from src.federation.methods import METHODS, FedAvg
from src.federation.private import DELTA, make_private
from src.mednist.card import Settings
from src.mednist.evaluation import TASK as MEDNIST

PLAIN = Settings(network="SmallNet", rounds=20, batch_size=16, learning_rate=0.02, data="privacy")  # of every study
DP = {"rounds": 100, "batch_size": 315, "learning_rate": 1.0, "dp_clip": 1.0}  # instead of these, of a private one
GAMMA, NORM = 1e-4, 0.1  # most of a weight's change in a step; of the norm of a whole change
CPU = torch.device("cpu")

# -- what a site does --------------------------------------------------------------------------------------------------


def with_sgd(model, loader, settings: Settings, device, handlers=(), kind=torch.optim.SGD):
    """The trainer of the task with plain SGD, whose step is what the attack reads."""
    optimizer = kind(model.parameters(), lr=settings.learning_rate)
    return make_trainer(model, loader, optimizer, nn.CrossEntropyLoss(), device, settings.epochs, handlers=handlers)


def unchanged(prepared: Sequence[Mapping], settings: Settings, train: bool, seed: int = 0) -> DataLoader:
    """Batches of images as they are: a private training, which hardly learns any by heart, gains nothing by augmentation."""
    chance = torch.Generator().manual_seed(seed)
    return DataLoader(Dataset(prepared), batch_size=settings.batch_size, shuffle=train, generator=chance)


TASK = replace(MEDNIST, make_trainer=with_sgd, batches=unchanged)


def sent(model: nn.Module, images, labels, settings: Settings, kind=torch.optim.SGD) -> Change:
    """The change that a site's own trainer makes of the model in a round on these images, as they are."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    items = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
    trainer = with_sgd(model, unchanged(items, settings, train=False), settings, CPU, kind=kind)
    if settings.dp_clip:
        make_private(trainer, settings)
    train_for(trainer, settings.local_epochs)
    after = {name: value.detach().clone() for name, value in model.named_parameters()}
    model.load_state_dict(model.state_dict() | before)
    return {name: before[name] - after[name] for name in before}


@dataclass(frozen=True)
class Defence:
    title: str
    filter: Callable[[], object] | None = None  # FLARE's, as on a recipe
    settings: Mapping = field(default_factory=dict)  # of the study
    epsilon: float | None = None  # of a private training, whose settings follow
    knows: Callable | None = None  # (arrived, model, images, labels) → change: what an attacker who knows it imitates


def where_sent(arrived: Change, *guess) -> Change:
    """The attacker compares only what was sent."""
    return {name: value * (arrived[name] != 0) for name, value in sgd_change(*guess).items()}


def cut_off(arrived: Change, *guess) -> Change:
    """The attacker cuts the own change off where the site does."""
    return {n: value.clamp(-GAMMA, GAMMA) for n, value in sgd_change(*guess, rate=PLAIN.learning_rate).items()}


def norm_of(change: Mapping[str, np.ndarray]) -> float:
    """Of all its tensors together."""
    return np.sqrt(sum(float(np.square(value).sum()) for value in change.values()))


class NormClip(PercentilePrivacy):
    """Scales a change down to a norm; FLARE has no such filter."""

    def process_dxo(self, dxo, shareable, fl_ctx):
        share = min(1.0, self.gamma / norm_of(dxo.data))
        dxo.data = {name: value * share for name, value in dxo.data.items()}
        return dxo


DEFENCES = {
    "none": Defence("nothing"),
    "percentile10": Defence("PercentilePrivacy(10)", lambda: PercentilePrivacy(10, gamma=1.0), knows=where_sent),
    "percentile90": Defence("PercentilePrivacy(90)", lambda: PercentilePrivacy(90, gamma=1.0), knows=where_sent),
    "percentile99": Defence("PercentilePrivacy(99)", lambda: PercentilePrivacy(99, gamma=1.0), knows=where_sent),
    "first": Defence("first layer left out", lambda: ExcludeVars(["0.weight", "0.bias"])),
    "last": Defence("last layer left out", lambda: ExcludeVars(["7.weight", "7.bias"])),
    "norm": Defence("norm clip", lambda: NormClip(gamma=NORM)),
    "clip": Defence("value clip", lambda: PercentilePrivacy(0, gamma=GAMMA), knows=cut_off),
    "svt": Defence("SVTPrivacy()", SVTPrivacy),
    "sigma0.01": Defence("DP-SGD, σ = 0.01", settings=DP | {"dp_noise": 0.01}),
    "epsilon8": Defence("DP-SGD, ε = 8", epsilon=8.0),
    "epsilon3": Defence("DP-SGD, ε = 3", epsilon=3.0),
}


def filtered(filter, change: Change, steps: int) -> Change:
    """What FLARE's filter lets leave of a change, as a site sends it: trained less received weights, and its number of steps."""
    data = {name: -value.numpy() for name, value in change.items()}
    dxo = DXO(DataKind.WEIGHT_DIFF, data=data, meta={MetaKey.NUM_STEPS_CURRENT_ROUND: steps})
    left = from_shareable(filter.process(dxo.to_shareable(), FLContext())).data
    return {name: -torch.from_numpy(np.asarray(value, dtype=np.float32)) for name, value in left.items()}


def sending(make: Callable) -> type[FedAvg]:
    """A site that sends what ``make(site, change)`` gives in the place of its change."""

    class Sends(FedAvg):
        def train(self, received: FLModel) -> float:
            loss = super().train(received)
            made = make(self.site, {name: received.params[name] - value for name, value in self.trained.items()})
            self.trained.clear()
            self.trained.update((name, received.params[name] - value) for name, value in made.items())
            return loss

    return Sends


def private(epsilon: float, images: int = 315) -> dict:
    """Settings of a training that spends ``epsilon`` of each of a hospital's images in all its rounds."""
    from opacus.accountants.utils import get_noise_multiplier  # an extra of the course

    steps = -(-images // min(DP["batch_size"], images))
    noise = get_noise_multiplier(
        target_epsilon=epsilon, target_delta=DELTA, sample_rate=1 / steps, steps=DP["rounds"] * steps, accountant="prv"
    )
    return DP | {"dp_noise": round(noise, 3)}


# -- what a server does ------------------------------------------------------------------------------------------------


class TrimmedMean(CoordinateMedian):
    """The mean of each weight without the largest and the smallest of the sites: Yin et al., ICML 2018."""

    def _combine(self, held: np.ndarray) -> np.ndarray:
        return np.sort(held, axis=0)[1:-1].mean(axis=0)


def clipped_mean(seed: int) -> type[SampleWeightedMean]:
    """A rule for :func:`trained`: the weighted mean of changes, none with a norm above the median of the round (after Sun et
    al., *Can You Really Backdoor Federated Learning?*, 2019, whose limit is a number). ``seed``: of the first model."""
    now = {name: value.numpy() for name, value in SmallNet(seed).state_dict().items()}

    class Clipped(SampleWeightedMean):
        def reset_stats(self) -> None:
            super().reset_stats()
            self.waiting: list[FLModel] = []

        def accept_model(self, model: FLModel) -> None:
            self.waiting.append(model)

        def aggregate_model(self) -> FLModel:
            changes = [{name: value - now[name] for name, value in one.params.items()} for one in self.waiting]
            norms = [norm_of(one) for one in changes]
            shares = np.minimum(1, np.median(norms or [0]) / np.maximum(norms, 1e-30))
            for model, change, share in zip(self.waiting, changes, shares, strict=True):
                params = {name: now[name] + np.float32(share) * value for name, value in change.items()}
                super().accept_model(FLModel(params=params, meta=model.meta))
            made = super().aggregate_model()
            now.update(made.params)
            return made

    return Clipped


RULES = {
    "mean": lambda seed: SampleWeightedMean,
    "median": lambda seed: CoordinateMedian,
    "trimmed": lambda seed: TrimmedMean,
    "clipped": clipped_mean,
}


def trained(
    datalists: Mapping, settings: Settings, at_site: type[FedAvg] = FedAvg, rule=SampleWeightedMean, task=TASK
) -> nn.Module:
    """The global model of a federation whose sites send what ``at_site`` makes of it, and whose server averages by ``rule``."""
    with (
        patch.dict(METHODS, fedavg=replace(METHODS["fedavg"], at_site=at_site)),
        patch("benchmarks.federate.SampleWeightedMean", rule),
    ):
        return federate(task, datalists, settings).model.eval()
