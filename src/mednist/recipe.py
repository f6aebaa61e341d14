"""The federated job of MedNIST: hospitals train a DenseNet121, and FedAvg averages it."""

import os
from pathlib import Path

from nvflare.app_opt.pt.recipes import FedAvgRecipe

from src.federation.aggregation import SampleWeightedMean
from src.federation.server import add_everything
from src.mednist.card import CARD, Settings

CLIENT = Path(__file__).parents[1] / CARD.client


def recipe(
    sites: int = 2,
    settings: Settings | None = None,
    at_least: int | None = None,
    tracker: str = "tensorboard",
    client: Path = CLIENT,
    initial: Path | None = None,
) -> FedAvgRecipe:
    """FedAvg with all that the course adds, as notebook 02 puts it together.

    Args:
        sites: how many sites are asked in each round.
        settings: of the study, by default the notebook's.
        at_least: see :func:`src.federation.server.add_record`.
        tracker: where the server writes the curves: ``tensorboard`` or ``mlflow``.
        client: script that every site runs; takes the settings as its arguments.
        initial: checkpoint to start from, for example ``run.final_model``; by default a new model of the settings' seed.
    """
    settings = settings or Settings()
    made = FedAvgRecipe(
        name=CARD.name,
        min_clients=sites,
        num_rounds=settings.rounds,
        model={"class_path": "src.densenet.DenseNet121", "args": {"seed": settings.seed}},
        initial_ckpt=initial and os.path.relpath(initial),  # FLARE carries the file along if its path is relative
        train_script=str(client),
        train_args=settings.words(),
        key_metric=CARD.key_metric,
        aggregator=SampleWeightedMean(),
        client_memory_gc_rounds=1,
    )
    return add_everything(made, at_least, tracker)
