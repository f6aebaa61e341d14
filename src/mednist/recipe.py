"""The federated job of MedNIST: hospitals train a network by a Client API script, and FLARE makes one model of theirs."""

from nvflare.recipe.spec import Recipe

from src.federation.methods import client_recipe
from src.mednist.card import CARD, Settings


def recipe(sites: int = 2, settings: Settings | None = None, **options) -> Recipe:
    """The Client API script, by the method of the settings.

    Args:
        sites: how many sites are asked in each round.
        settings: of the study, by default the notebook's.
        **options: of :func:`src.federation.methods.client_recipe`.
    """
    return client_recipe(CARD, sites, settings or Settings(), **options)
