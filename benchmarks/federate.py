"""A federation in one process: the sites, the methods and the mean of a real one, in a plain loop without FLARE's processes.

Each site is the object that FLARE's client scripts drive, so that only what FLARE does in between is missing: the transfer,
and the server's controller, of which :func:`federate` has the few lines that change weights. ``python -m benchmarks.methods
--flare`` trains with each method in both ways and reports how far the weights differ.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AlgorithmConstants

from src.common.settings import StudySettings
from src.common.task import Task
from src.federation.aggregation import SampleWeightedMean
from src.federation.methods import METHODS, at_site
from src.federation.site import Site

Tensors = dict[str, torch.Tensor]


@dataclass
class Federated:
    """What a federation ends with."""

    model: torch.nn.Module  # the global one
    models: dict[str, torch.nn.Module]  # site → the model that it ends with: the global one, or one of its own
    curve: list[dict[str, float]]  # of each round: site → mean loss of its last pass


def federate(
    task: Task,
    datalists: Mapping[str, Mapping],
    settings: StudySettings,
    optimizer: Mapping | None = None,
    watch: Callable[[int, Tensors, dict[str, Tensors]], None] | None = None,
) -> Federated:
    """Train by ``settings.method`` for ``settings.rounds`` rounds; the sites' validation parts are not read.

    Args:
        task: what is trained.
        datalists: site → part → items.
        settings: of the study; its seed gives the first weights, and each site's order and augmentation.
        optimizer: of FedOpt's server, ``{"path": ..., "args": {...}}``, in the place of the method's.
        watch: called after each round with its number, the weights that the sites received, and site → weights that it sent.
    """
    sites = {name: Site(task, settings, {**own, "validation": []}, name) for name, own in datalists.items()}
    parts = {name: at_site(site) for name, site in sites.items()}
    method, model = METHODS[settings.method], task.new_model(settings.seed, settings.network)
    stays, controls = set(method.stays(model)), {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    about = {"fedprox_mu": settings.fedproxloss_mu} if settings.method == "fedprox" else {}
    chosen = optimizer or method.arguments(settings).get("optimizer_args")
    step = _server_optimizer(model, chosen) if chosen else None
    curve = []
    for number in range(settings.rounds):
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        if settings.method == "scaffold":
            about[AlgorithmConstants.SCAFFOLD_CTRL_GLOBAL] = {n: value.numpy() for n, value in controls.items()}
        mean, change, losses, sent = SampleWeightedMean(), SampleWeightedMean(), {}, {}
        for name, part in parts.items():
            # What the server holds back need not be there: see src.federation.methods.FedBN.
            given = {n: value for n, value in weights.items() if number == 0 or n not in stays}
            received = FLModel(params=given, meta=dict(about), current_round=number)
            part.receive(received)
            losses[name] = part.train(received)
            sent[name] = {n: value.cpu() for n, value in part.trained.items()}
            meta = part.meta() | {"client_name": name}
            mean.accept_model(FLModel(params={n: value.numpy() for n, value in sent[name].items()}, meta=meta))
            if difference := meta.get(AlgorithmConstants.SCAFFOLD_CTRL_DIFF):
                change.accept_model(FLModel(params=difference, meta=meta))
        made = {n: torch.from_numpy(np.asarray(value)) for n, value in mean.aggregate_model().params.items()}
        if step:
            _take_step(model, made, step)
        else:
            model.load_state_dict(weights | made)
        for n, value in change.aggregate_model().params.items() if change.accepted else ():
            controls[n] += torch.from_numpy(np.asarray(value))
        if watch:
            watch(number, weights, sent)
        curve.append(losses)
    return Federated(model, {name: _ends_with(task, model, site, method) for name, site in sites.items()}, curve)


def _server_optimizer(model: torch.nn.Module, chosen: Mapping) -> torch.optim.Optimizer:
    return getattr(torch.optim, chosen["path"].rpartition(".")[2])(model.parameters(), **chosen["args"])


def _take_step(model: torch.nn.Module, mean: Tensors, optimizer: torch.optim.Optimizer) -> None:
    # The mean of the sites' changes is the server's gradient, its sign turned; statistics of BatchNorm are no parameters.
    trained = dict(model.named_parameters())
    for name, parameter in trained.items():
        parameter.grad = parameter.detach() - mean[name]
    optimizer.step()
    model.load_state_dict(model.state_dict() | {n: value for n, value in mean.items() if n not in trained})


def _ends_with(task: Task, model: torch.nn.Module, site: Site, method) -> torch.nn.Module:
    own = site.keeps["model"].state_dict() if method.personal else {}
    ended = copy.deepcopy(model)
    ended.load_state_dict(model.state_dict() | own)
    return task.to_device(ended, torch.device("cpu")).eval()


def with_network(task: Task, build: Callable[[int], torch.nn.Module]) -> Task:
    """The same task with another network under the same name."""
    return replace(task, networks=dict.fromkeys(task.networks, build))
