"""What a hospital can do with a federated model that fails at home, from one forward pass to a few epochs.

A model fails at home for three reasons: BatchNorm holds other hospitals' *statistics*, the last layer other hospitals'
*prior* of the classes, and the weights have *drifted* between two averages. The first two are mended here without training.
"""

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from benchmarks.local import train_locally
from src.common.settings import StudySettings
from src.common.task import Task
from src.densenet import DenseNet121
from src.federation.methods import batchnorm_tensors


@torch.no_grad()
def own_statistics(model: nn.Module, images: torch.Tensor, prior: float = 0.0) -> nn.Module:
    """A copy of the model whose BatchNorm layers hold the means and variances of these images, ``(n, 1, height, width)``.

    One forward pass, without labels: Li et al., *Revisiting Batch Normalization for Practical Domain Adaptation*, 2016,
    https://arxiv.org/abs/1603.04779. Each layer sees what the layers before it give with their new statistics. Of few images
    these are poor; then those that the model came with may count as ``prior`` images more: Schneider et al., *Improving
    Robustness Against Common Corruptions by Covariate Shift Adaptation*, NeurIPS 2020, https://arxiv.org/abs/2006.16971."""
    before, model = model.state_dict(), copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches, of which there is one, instead of a moving one
    model.train()(images)
    share = len(images) / (len(images) + prior)
    for name, value in model.state_dict().items() if prior else ():
        if name.endswith(("running_mean", "running_var")):
            value.mul_(share).add_(before[name], alpha=1 - share)
    return model.eval()


def reestimated(model: nn.Module, images: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of the model with the BatchNorm statistics of all sites' images, as a server can make them from each site's own.

    ``images``: site → ``(n, 1, height, width)``. The variance of all is the mean of the sites' variances **and the variance
    of their means** (law of total variance), which an average of ``running_var`` lacks. After a server's step that moves the
    weights, the averaged statistics are those of other weights; these are not."""
    own = {site: own_statistics(model, batch).state_dict() for site, batch in images.items()}
    shares = torch.tensor([len(batch) for batch in images.values()], dtype=torch.float64)
    shares /= shares.sum()
    state = copy.deepcopy(model.state_dict())
    for name in (one for one in batchnorm_tensors(model) if one.endswith("running_mean")):
        layer = name.removesuffix("running_mean")
        mean, var = (
            torch.stack([one[layer + kind].double() for one in own.values()])
            for kind in ("running_mean", "running_var")
        )
        middle = shares @ mean
        state[name] = middle.float()
        state[layer + "running_var"] = (shares @ (var + (mean - middle) ** 2)).float()
    model = copy.deepcopy(model)
    model.load_state_dict(state)
    return model.eval()


class PriorCorrected(nn.Module):
    """The model with another prior of the classes: adds ``log(own share / all sites' share)`` to its logits.

    What the network learned is ``p(class | image)`` under the mix of all training images. By Bayes' rule a hospital with
    another mix, where each class looks alike, has that times the ratio of the two mixes: Saerens et al., *Adjusting the
    Outputs of a Classifier to New a Priori Probabilities*, Neural Computation 14:21 (2002); Menon et al., *Long-Tail Learning
    via Logit Adjustment*, ICLR 2021.
    ``own`` and ``everybody`` are numbers of images by class, to each of which one half is added: none counted is not
    impossible."""

    def __init__(self, model: nn.Module, own: Sequence[float], everybody: Sequence[float]):
        super().__init__()
        shares = [(np.asarray(counts) + 0.5) / (np.asarray(counts) + 0.5).sum() for counts in (own, everybody)]
        self.model = model
        self.register_buffer("shift", torch.tensor(np.log(shares[0] / shares[1]), dtype=torch.float32))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images) + self.shift


def fine_tuned(
    task: Task, model: nn.Module, items: Sequence[Mapping], settings: StudySettings, site: str, epochs: int, rate: float
) -> nn.Module:
    """A copy of the model, trained for some epochs on a site's own items from a learning rate that falls to 0."""
    local = settings.changed(method="fedavg", fedproxloss_mu=0.0, rounds=epochs, local_epochs=1, learning_rate=rate)
    parts = {"training": items, "validation": []}
    # Another order than in the federation's first epochs, with which the seed would begin.
    trained = train_locally(
        task, parts, local.changed(seed=settings.seed + 1), site, validate=False, weights=model.state_dict()
    )
    return trained.model.eval()


class GroupNormDenseNet(DenseNet121):
    """The compact network with GroupNorm, which keeps no statistics, in the place of BatchNorm: Hsieh et al., *The Non-IID Data
    Quagmire of Decentralized Machine Learning*, ICML 2020, https://arxiv.org/abs/1910.00189."""

    def __init__(self, seed: int | None = None):
        sizes = {"init_features": 16, "growth_rate": 8, "block_config": (2, 4, 4, 2), "bn_size": 2}
        super().__init__(seed=seed, **sizes, norm=("group", {"num_groups": 4}))
