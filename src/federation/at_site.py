"""What a site does in a round, method by method. Each class is one method's difference from FedAvg; both tasks' clients use them.

Which one a site uses is the study's setting ``method``. What the server does is in :mod:`src.federation.methods`.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AlgorithmConstants
from nvflare.app_common.utils.fedprox_utils import get_fedprox_mu
from nvflare.app_opt.pt.ditto import PTDittoHelper
from nvflare.app_opt.pt.scaffold import PTScaffoldHelper

from src.common.engine import FedProx as ProximalTerm
from src.common.engine import train_for
from src.common.settings import StudySettings

PERSONAL = "personalized_model.pt"
"""Where a site keeps weights of its own: beside the client script, in the job's folder on its own disk. They are never sent."""


class FedAvg:
    """Take the global weights, train them on the site's own items, and send them back.

    McMahan et al., *Communication-Efficient Learning of Deep Networks from Decentralized Data*, AISTATS 2017.

    Args:
        trainer: of :func:`src.common.engine.make_trainer`; its network is what is received and sent.
        settings: of the study.
        another: makes a second trainer like the first one, with a network of its own.
        folder: where the site may keep a model of its own.
    """

    def __init__(
        self,
        trainer: SupervisedTrainer,
        settings: StudySettings,
        another: Callable[[], SupervisedTrainer],
        folder: Path,
    ):
        self.trainer, self.settings, self.model, self.folder = trainer, settings, trainer.network, folder

    def receive(self, received: FLModel) -> None:
        """Put the received weights into the network."""
        self.model.load_state_dict(received.params)

    def train(self, received: FLModel) -> float:
        """Train one round; returns the mean loss of its last pass."""
        return train_for(self.trainer, self.settings.local_epochs)

    def extra(self) -> dict[str, object]:
        """What is sent beside weights, metrics and counts."""
        return {}


class FedProx(FedAvg):
    """FedAvg that holds a site near the model that it received, as strongly as the server says.

    Li et al., *Federated Optimization in Heterogeneous Networks*, MLSys 2020; FLARE's ``FedProxRecipe`` sends the weight along.
    """

    def __init__(self, trainer, settings, another, folder):
        super().__init__(trainer, settings, another, folder)
        self.pull = ProximalTerm(0.0)
        self.pull.attach(trainer)

    def train(self, received: FLModel) -> float:
        """Train with the proximal term, whose weight came with the model."""
        self.pull.mu = get_fedprox_mu(received)
        return super().train(received)


class Scaffold(FedAvg):
    """FedAvg that corrects each step by how a site's direction differs from all sites' mean direction.

    Karimireddy et al., *SCAFFOLD: Stochastic Controlled Averaging for Federated Learning*, ICML 2020, by FLARE's helper. It is
    derived for plain gradient steps; here the "direction" is what the task's own optimiser makes of the gradients.
    """

    def __init__(self, trainer, settings, another, folder):
        super().__init__(trainer, settings, another, folder)
        self.helper = PTScaffoldHelper()
        self.helper.init(self.model)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self.correct)

    def train(self, received: FLModel) -> float:
        """Train with the correction, then work out this site's new direction."""
        before = copy.deepcopy(self.model)
        self.helper.load_global_controls(received.meta[AlgorithmConstants.SCAFFOLD_CTRL_GLOBAL])
        self.controls, self.rates = self.helper.get_params(), []
        loss = super().train(received)
        # The learning rate falls from step to step: the mean times the number of steps is the way that could be gone.
        self.helper.terms_update(self.model, sum(self.rates) / len(self.rates), *self.controls, before)
        return loss

    def correct(self, trainer: Engine) -> None:
        """Add the correction after the optimiser's step, at its learning rate."""
        self.rates.append(trainer.optimizer.param_groups[0]["lr"])
        self.helper.model_update(self.model, self.rates[-1], *self.controls)

    def extra(self) -> dict[str, object]:
        """How this site's direction has changed."""
        return {AlgorithmConstants.SCAFFOLD_CTRL_DIFF: self.helper.get_delta_controls()}


class FedBN(FedAvg):
    """FedAvg in which each site keeps its own BatchNorm: statistics, scales and shifts are neither taken nor averaged.

    Li et al., *FedBN: Federated Learning on Non-IID Features via Local Batch Normalization*, ICLR 2021. A filter of FLARE's holds
    them back when the update leaves the site; see :func:`src.federation.methods.client_recipe`.
    """

    def __init__(self, trainer, settings, another, folder):
        super().__init__(trainer, settings, another, folder)
        self.own = batchnorm_tensors(self.model)

    def receive(self, received: FLModel) -> None:
        """Take all but the normalisation."""
        shared = {name: value for name, value in received.params.items() if name not in self.own}
        self.model.load_state_dict(shared, strict=False)

    def train(self, received: FLModel) -> float:
        """Train as FedAvg does, and keep the normalisation."""
        loss = super().train(received)
        weights = self.model.state_dict()
        torch.save({"model": {name: weights[name] for name in self.own}}, self.folder / PERSONAL)
        return loss


class Ditto(FedAvg):
    """FedAvg, and beside it a second model that each site trains for itself, held near the global one.

    Li et al., *Ditto: Fair and Robust Federated Learning Through Personalization*, ICML 2021, with FLARE's helper for what is
    kept. It takes twice the work at a site. The hold is ``lambda / 2 * |v - w|^2``, the gradient that FedProx has.
    """

    LAMBDA = 0.1

    def __init__(self, trainer, settings, another, folder):
        super().__init__(trainer, settings, another, folder)
        self.personal = another()
        network, optimizer = self.personal.network, self.personal.optimizer
        # The helper wants to know the loss, which the trainer applies here.
        self.helper = PTDittoHelper(torch.nn.MSELoss(), network, optimizer, None, str(folder), self.LAMBDA)
        ProximalTerm(self.LAMBDA, towards=self.model).attach(self.personal)

    def train(self, received: FLModel) -> float:
        """Train this site's own model towards the received one and keep it, then the global one as FedAvg does."""
        train_for(self.personal, self.settings.local_epochs)
        self.helper.save_model()
        return super().train(received)


METHODS: dict[str, type[FedAvg]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "fedadam": FedAvg,  # what is new happens at the server
    "fedavgm": FedAvg,
    "fedbn": FedBN,
    "ditto": Ditto,
}


def batchnorm_tensors(model: torch.nn.Module) -> list[str]:
    """Names of all tensors that belong to BatchNorm layers: scale, shift, running mean and variance, number of batches."""
    layers = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
    return [name for name in model.state_dict() if name.rpartition(".")[0] in layers]


def at_site(
    settings: StudySettings, trainer: SupervisedTrainer, another: Callable[[], SupervisedTrainer], folder: Path
) -> FedAvg:
    """This site's part in the study's method; see :class:`FedAvg` for the arguments."""
    return METHODS[settings.method](trainer, settings, another, folder)
