"""Federated methods for all tasks, in one table: FLARE's recipe, its arguments, and what a site does in a round."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from ignite.engine import Engine, Events
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AlgorithmConstants
from nvflare.app_common.utils.fedprox_utils import get_fedprox_mu
from nvflare.app_opt.pt.scaffold import PTScaffoldHelper
from nvflare.client.config import TransferType

from src.common.errors import CourseError
from src.common.settings import StudySettings
from src.federation.engine import ProximalTerm
from src.federation.site import Site

DIFFERENCES = {"params_transfer_type": TransferType.DIFF}  # where none comes, the global model stays as it is
DEFAULTS = {  # where the settings leave it open, chosen on validation drawings by python -m benchmarks.methods --tune
    "fedadam": {"path": "torch.optim.Adam", "args": {"lr": 0.01, "betas": [0.9, 0.99], "eps": 1e-3}},
    "fedavgm": {"path": "torch.optim.SGD", "args": {"lr": 1.0, "momentum": 0.3}},
    "ditto": 0.1,
}


class Tensors(dict):
    """Tensors by name that are kept as a network's are."""

    state_dict, load_state_dict = dict.copy, dict.update


class FedAvg:
    """Take the global weights, train them on the site's own items, and send back ``trained``, less what ``stays`` at the site.

    McMahan et al., *Communication-Efficient Learning of Deep Networks from Decentralized Data*, AISTATS 2017."""

    stays: Sequence[str] = ()  # names of the tensors that never leave the site

    def __init__(self, site: Site):
        self.site, self.model = site, site.model
        self.trained = site.keeps["trained"] = Tensors()

    def receive(self, received: FLModel) -> None:
        """Take over a model, the global one or another site's; what ``stays`` at the sites is this site's own."""
        self.model.load_state_dict(received.params)

    def train(self, received: FLModel) -> float:
        """Train one round and keep its weights; returns the mean loss of the last pass. The methods differ in :meth:`fit`."""
        start = time.perf_counter()
        loss = self.fit(received)
        state = self.model.state_dict()
        self.trained.update((name, value.clone()) for name, value in state.items() if name not in self.stays)
        self.site.remember(received.current_round)
        self.site.seconds["seconds_training"] = time.perf_counter() - start
        return loss

    def fit(self, received: FLModel) -> float:
        return self.site.train(received.current_round)

    def meta(self) -> dict[str, object]:
        """What is sent beside weights and metrics."""
        return self.site.meta()

    def submit(self) -> FLModel:
        """What the site sent last, for the others to try on their images; a ``CourseError`` where it has not trained."""
        if not self.trained:
            raise CourseError(f"{self.site.name} has no model of its own: it has not trained.", "it has not trained")
        return FLModel(params=self.trained)


class FedProx(FedAvg):
    """FedAvg that holds a site near the received model: Li et al., *Federated Optimization in Heterogeneous Networks*, 2020.

    The paper's sites take plain gradient steps. Adam scales gradient and hold together, so its ``mu`` is not the paper's."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.pull = ProximalTerm(0.0)
        self.pull.attach(site.trainer)

    def fit(self, received: FLModel) -> float:
        self.pull.mu = get_fedprox_mu(received)
        return super().fit(received)


class Scaffold(FedAvg):
    """FedAvg that corrects each step by how a site's direction differs from all sites' mean direction.

    Karimireddy et al., *SCAFFOLD: Stochastic Controlled Averaging for Federated Learning*, ICML 2020. It is derived for plain
    gradient steps; here the "direction" is what the task's own optimiser makes of the gradients. And FLARE's mean weighs the sites'
    control terms by their samples, where the paper's counts all sites alike."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.helper = PTScaffoldHelper()
        self.helper.init(self.model)
        site.keeps["controls"] = self.helper.c_local
        site.trainer.add_event_handler(Events.ITERATION_COMPLETED, self.correct)

    def fit(self, received: FLModel) -> float:
        before = copy.deepcopy(self.model)
        self.helper.load_global_controls(received.meta[AlgorithmConstants.SCAFFOLD_CTRL_GLOBAL])
        self.controls, self.rates = self.helper.get_params(), []
        loss = super().fit(received)
        # The learning rate falls from step to step: the mean times the number of steps is the way that could be gone.
        self.helper.terms_update(self.model, sum(self.rates) / len(self.rates), *self.controls, before)
        return loss

    def correct(self, trainer: Engine) -> None:
        """After the optimiser's step, at its learning rate."""
        self.rates.append(trainer.optimizer.param_groups[0]["lr"])
        self.helper.model_update(self.model, self.rates[-1], *self.controls)

    def meta(self) -> dict[str, object]:
        return super().meta() | {AlgorithmConstants.SCAFFOLD_CTRL_DIFF: self.helper.get_delta_controls()}


class FedBN(FedAvg):
    """FedAvg in which each site keeps its own BatchNorm, and tries another site's model, which comes without, with its own.

    Li et al., *FedBN: Federated Learning on Non-IID Features via Local Batch Normalization*, ICLR 2021."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.stays, self.kept = batchnorm_tensors(self.model), Tensors()
        site.keeps["model"] = self.kept

    def receive(self, received: FLModel) -> None:
        # In its first round, a site takes all that it is given; later, what stays at the sites need not be there.
        present = {name: value for name, value in self.model.state_dict().items() if name in self.stays}
        self.model.load_state_dict(present | received.params | self.kept)

    def fit(self, received: FLModel) -> float:
        loss = super().fit(received)
        self.kept.update((name, value.clone()) for name, value in self.model.state_dict().items() if name in self.stays)
        return loss


class Ditto(FedAvg):
    """FedAvg, and beside it a second model that each site trains for itself, held near the global one.

    Li et al., *Ditto: Fair and Robust Federated Learning Through Personalization*, ICML 2021. The hold is FedProx's. A
    site works twice as much, and the second model never leaves it."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.personal = site.trainer_of(copy.deepcopy(self.model))
        site.keeps |= {"model": self.personal.network, "steps": self.personal.optimizer}
        ProximalTerm(DEFAULTS["ditto"], towards=self.model).attach(self.personal)

    def fit(self, received: FLModel) -> float:
        if not self.site.has_state:  # it starts where the global model does
            self.personal.network.load_state_dict(self.model.state_dict())
        self.site.train(received.current_round, self.personal)
        return super().fit(received)


def batchnorm_tensors(model: torch.nn.Module) -> list[str]:
    """Names of the tensors of all BatchNorm layers, its statistics too; a ``CourseError`` if there is none."""
    kinds = torch.nn.BatchNorm1d | torch.nn.BatchNorm2d | torch.nn.BatchNorm3d
    layers = [name for name, layer in model.named_modules() if isinstance(layer, kinds)]
    if not layers:
        said = "has no BatchNorm, so FedBN would be FedAvg. Choose another method."
        raise CourseError(f"{type(model).__name__} {said}", "its settings are wrong")
    return [name for name in model.state_dict() if name.rpartition(".")[0] in layers]


@dataclass(frozen=True)
class Method:  # a row of the table
    title: str  # for tables and figures
    recipe: str = "FedAvgRecipe"  # FLARE's class in nvflare.app_opt.pt.recipes, which sites need not load
    at_site: type[FedAvg] = FedAvg  # what a site does in a round
    arguments: Callable[[StudySettings], dict] = lambda settings: {}  # of the recipe, beside those that all have
    stays: Callable[[torch.nn.Module], list[str]] = lambda model: []  # names of the tensors that stay at a site
    personal: bool = False  # every site ends with a model of its own


METHODS: dict[str, Method] = {
    "fedavg": Method("FedAvg"),
    "fedprox": Method("FedProx", "FedProxRecipe", FedProx, lambda settings: {"fedprox_mu": settings.fedproxloss_mu}),
    "scaffold": Method("SCAFFOLD", "ScaffoldRecipe", Scaffold),
    # Reddi et al., *Adaptive Federated Optimization*, ICLR 2021: the mean of the sites' changes is the server's gradient.
    # BatchNorm's statistics are averaged as in FedAvg, and so are those of other weights than the server's step arrives at.
    "fedadam": Method("FedOpt, Adam", "FedOptRecipe", arguments=lambda _: {"optimizer_args": DEFAULTS["fedadam"]}),
    "fedavgm": Method("FedOpt, momentum", "FedOptRecipe", arguments=lambda _: {"optimizer_args": DEFAULTS["fedavgm"]}),
    "fedbn": Method("FedBN", at_site=FedBN, arguments=lambda _: DIFFERENCES, stays=batchnorm_tensors, personal=True),
    "ditto": Method("Ditto", at_site=Ditto, personal=True),
}


def at_site(site: Site) -> FedAvg:
    """This site's part in its study's method, as it was where the site has been in this job before."""
    part = METHODS[site.settings.method].at_site(site)
    site.recall()
    return part
