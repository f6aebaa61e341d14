"""The federated job of MedNIST: hospitals train a DenseNet121, and FedAvg averages it."""

from nvflare.app_opt.pt.recipes import FedAvgRecipe

from src.federation.recipes import fedavg
from src.mednist.card import CARD, Settings


def recipe(sites: int = 2, settings: Settings | None = None, **options) -> FedAvgRecipe:
    """FedAvg of the Client API script.

    Args:
        sites: how many sites are asked in each round.
        settings: of the study, by default the notebook's.
        **options: of :func:`src.federation.recipes.fedavg`.
    """
    return fedavg(CARD, "src.densenet.DenseNet121", sites, settings or Settings(), **options)
