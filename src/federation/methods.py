"""Federated methods as FLARE recipes, for every task whose sites run a Client API script; ``settings.method`` says which.

What changes at a site is in :mod:`src.federation.at_site`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nvflare.app_common.filters.exclude_vars import ExcludeVars
from nvflare.app_opt.pt.recipes import FedAvgRecipe, FedOptRecipe, FedProxRecipe, ScaffoldRecipe
from nvflare.client.config import TransferType
from nvflare.fuel.utils.constants import FrameworkType
from nvflare.recipe.spec import Recipe

from src.common.errors import CourseError
from src.common.settings import StudySettings
from src.common.task import Card
from src.federation.aggregation import SampleWeightedMean
from src.federation.at_site import batchnorm_tensors
from src.federation.server import RecordedScaffold, add_everything


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        title: for tables and figures.
        recipe: FLARE's class.
        arguments: of that class, beside those that all recipes have.
        personal: every site ends with a model of its own.
    """

    title: str
    recipe: type[Recipe] = FedAvgRecipe
    arguments: Mapping[str, object] = field(default_factory=dict)
    personal: bool = False


# Reddi et al., Adaptive Federated Optimization, ICLR 2021: the mean of the sites' changes is a gradient for the server's optimiser.
_ADAM = {"path": "torch.optim.Adam", "args": {"lr": 0.01, "betas": [0.9, 0.99], "eps": 1e-3}}
_MOMENTUM = {"path": "torch.optim.SGD", "args": {"lr": 1.0, "momentum": 0.5}}

METHODS: dict[str, Method] = {
    "fedavg": Method("FedAvg"),
    "fedprox": Method("FedProx", FedProxRecipe),
    "scaffold": Method("SCAFFOLD", ScaffoldRecipe),
    "fedadam": Method("FedOpt, Adam", FedOptRecipe, {"optimizer_args": _ADAM}),
    "fedavgm": Method("FedOpt, momentum", FedOptRecipe, {"optimizer_args": _MOMENTUM}),
    # Differences, because what is held back then stays as it is in the global model.
    "fedbn": Method("FedBN", arguments={"params_transfer_type": TransferType.DIFF}, personal=True),
    "ditto": Method("Ditto", personal=True),
}


def client_recipe(
    card: Card,
    sites: int,
    settings: StudySettings,
    client: Path | None = None,
    initial: Path | None = None,
    transfer: TransferType | None = None,
    **options,
) -> Recipe:
    """The recipe of a task and a method, with all that the course adds, as notebook 02 puts it together for FedAvg.

    Args:
        card: of the task.
        sites: how many sites are asked in each round.
        settings: of the study; ``method`` names one of :data:`METHODS`.
        client: script that every site runs, by default the card's; takes the settings as its arguments.
        initial: checkpoint to start from, for example ``run.final_model``; by default a new model of the settings' seed.
        transfer: what a site sends: its weights (``FULL``) or by how much it changed them (``DIFF``); by default what the method
            is made for.
        **options: of :func:`src.federation.server.add_everything`.

    Raises:
        CourseError: for what would be FedAvg under another name: FedProx without a weight, FedBN of a network without BatchNorm;
            for ``at_least`` with FedOpt, whose controller waits for every site; for an ``initial`` that is not there.
    """
    method, network = METHODS[settings.method], card.room("training").NETWORKS[settings.network]
    arguments = {
        "name": card.name,
        "min_clients": sites,
        "num_rounds": settings.rounds,
        "model": {"class_path": f"{network.__module__}.{network.__name__}", "args": {"seed": settings.seed}},
        "initial_ckpt": initial and os.path.relpath(initial),  # FLARE carries the file along if its path is relative
        "train_script": str(client or Path(__file__).parents[1] / card.client),
        "client_memory_gc_rounds": 1,
        **method.arguments,
        **({"params_transfer_type": transfer} if transfer else {}),
    }
    if options.get("at_least") is not None and method.recipe is FedOptRecipe:
        raise CourseError(
            f"{method.title} needs every site in each round; leave at_least out, or choose another method."
        )
    held_back = batchnorm_tensors(network(seed=settings.seed)) if settings.method == "fedbn" else []
    if issubclass(method.recipe, FedAvgRecipe):
        arguments["key_metric"] = card.key_metric
        arguments["aggregator"] = SampleWeightedMean(held_back)
    if settings.method == "fedprox":
        if not settings.fedproxloss_mu:
            raise CourseError("FedProx with fedproxloss_mu=0 is FedAvg. Give it a weight, for example 0.01.")
        arguments["fedprox_mu"] = settings.fedproxloss_mu
        settings = settings.changed(fedproxloss_mu=0.0)  # a site takes it from the server
    made = method.recipe(**arguments, train_args=settings.words())
    _know_the_parts(made, card)
    if settings.method == "fedbn":
        if not held_back:
            raise CourseError(f"{settings.network} has no BatchNorm, so FedBN would be FedAvg. Choose another method.")
        made.add_client_output_filter(ExcludeVars(held_back), tasks=["train"])
    if settings.method == "scaffold":
        (workflow,) = made._job._deploy_map["server"].app_config.workflows
        workflow.controller = RecordedScaffold(num_clients=sites, num_rounds=settings.rounds, persistor_id="persistor")
    return add_everything(made, **options)


def _know_the_parts(recipe: Recipe, card: Card) -> None:
    """Tell FLARE's helpers what the recipes for SCAFFOLD and FedOpt leave open: framework, names of parts, key metric."""
    recipe.framework = FrameworkType.PYTORCH
    job = recipe._job
    components = job._deploy_map["server"].app_config.components
    job.comp_ids |= {f"{part}_id": part for part in ("persistor", "locator") if part in components}
    components["model_selector"].key_metric = card.key_metric
