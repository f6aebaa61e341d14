"""The recipe of every task whose sites run a Client API script."""

import os
from pathlib import Path

from nvflare.app_opt.pt.recipes import FedAvgRecipe

from src.common.settings import StudySettings
from src.common.task import Card
from src.federation.aggregation import SampleWeightedMean
from src.federation.server import add_everything


def fedavg(
    card: Card,
    model: str,
    sites: int,
    settings: StudySettings,
    client: Path | None = None,
    initial: Path | None = None,
    transfer: str = "FULL",
    **options,
) -> FedAvgRecipe:
    """FedAvg with all that the course adds, as notebook 02 puts it together.

    Args:
        card: of the task.
        model: class of the network as ``module.name``; it is made with the settings' seed.
        sites: how many sites are asked in each round.
        settings: of the study.
        client: script that every site runs, by default the card's; takes the settings as its arguments.
        initial: checkpoint to start from, for example ``run.final_model``; by default a new model of the settings' seed.
        transfer: what a site sends: its weights (``FULL``) or by how much it changed them (``DIFF``).
        **options: of :func:`src.federation.server.add_everything`.
    """
    made = FedAvgRecipe(
        name=card.name,
        min_clients=sites,
        num_rounds=settings.rounds,
        model={"class_path": model, "args": {"seed": settings.seed}},
        initial_ckpt=initial and os.path.relpath(initial),  # FLARE carries the file along if its path is relative
        train_script=str(client or Path(__file__).parents[1] / card.client),
        train_args=settings.words(),
        key_metric=card.key_metric,
        aggregator=SampleWeightedMean(),
        client_memory_gc_rounds=1,
        params_transfer_type=transfer,
    )
    return add_everything(made, **options)
