"""What a curious or dishonest party makes of what leaves a hospital: the attacks of chapter 05, each a function to read.

A *change* is what a site's training did to the weights, tensors by name: received weights less those that were sent back. After
one step of plain SGD it is the learning rate times the gradient. Images are ``(n, 1, height, width)`` floats in 0…1.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from monai.metrics import SSIMMetric
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import auc, roc_curve
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

Change = Mapping[str, torch.Tensor]

# -- inversion: images from a change -----------------------------------------------------------------------------------


def sgd_change(model: nn.Module, images, labels, rate: float = 1.0, steps: int = 1, batch: int | None = None) -> Change:
    """The change after ``steps`` steps of SGD on these images, ``batch`` at a time, by default all, from the first on again where
    they end. It can be differentiated by the images: so an attacker can ask which images would have made a change."""
    first = weights = dict(model.named_parameters())
    batch = batch or len(images)
    for number in range(steps):
        which = torch.arange(number * batch, (number + 1) * batch) % len(images)
        loss = cross_entropy(functional_call(model, weights, images[which]), labels[which])
        slopes = torch.autograd.grad(loss, [*weights.values()], create_graph=True)
        weights = {name: w - rate * slope for (name, w), slope in zip(weights.items(), slopes, strict=True)}
    return {name: first[name] - weights[name] for name in first}


def label_of(change: Change) -> int:
    """The class of a single image: the one whose last bias alone grows (Zhao et al., *iDLG*, 2020)."""
    return int([*change.values()][-1].argmin())


def invert(
    model: nn.Module,
    change: Change,
    labels: torch.Tensor,
    imitate: Callable[..., Change] = sgd_change,
    steps: int = 300,
    smooth: float = 0.01,
    seed: int = 0,
    size: int = 64,
) -> torch.Tensor:
    """Images whose change points where the given one does: Geiping et al., *Inverting Gradients*, NeurIPS 2020.

    Begins with noise and takes ``steps`` steps of Adam on the signs of the slope of 1 - cosine + ``smooth`` · total variation.

    Args:
        model: with the weights that the site received.
        change: what arrived; tensors that a site kept back may be missing.
        labels: of the images, in any order; of one image :func:`label_of` reads it from the change.
        imitate: ``(model, images, labels)`` → the change that they would make. Who knows the site's defence puts it in here.
        steps: of the search.
        smooth: weight of the total variation.
        seed: of the first noise.
        size: height and width of the images.
    """
    chance = torch.Generator().manual_seed(seed)
    guess = torch.rand(len(labels), 1, size, size, generator=chance).requires_grad_()
    optimizer = torch.optim.Adam([guess], lr=0.1)
    slower = torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps * part // 8 for part in (3, 5, 7)])
    arrived = _flat(change)
    for _ in range(steps):
        own = imitate(model, guess, labels)
        apart = 1 - torch.cosine_similarity(_flat({name: own[name] for name in change}), arrived, dim=0)
        edges = guess.diff(dim=2).abs().mean() + guess.diff(dim=3).abs().mean()
        guess.grad = torch.autograd.grad(apart + smooth * edges, guess)[0].sign()
        optimizer.step()
        slower.step()
        guess.data.clamp_(0, 1)
    return guess.detach()


def _flat(change: Change) -> torch.Tensor:
    return torch.cat([value.flatten() for value in change.values()])


# -- how good a picture is ---------------------------------------------------------------------------------------------


def ssim(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each pair, ``(n,)``: 1 for the same image, about 0 for unrelated ones (Wang et al., 2004)."""
    return SSIMMetric(2, data_range=1.0)(images, others).flatten()


def recovered(found: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """SSIM of each true image with the found one that is given to it, ``(n,)``, in the assignment with the greatest sum."""
    table = torch.stack([ssim(one.expand_as(found), found) for one in images])
    return table[linear_sum_assignment(table.numpy(), maximize=True)]


def baselines(image: torch.Tensor, public: torch.Tensor, same_class: torch.Tensor) -> dict[str, float]:
    """SSIM with what an attacker has without an attack: the mean of public images of its class, and the most similar public
    image of any class, which only who knows the answer could pick. ``image``: ``(1, 1, height, width)``."""
    nearest = ssim(image.expand_as(public), public).max()
    return {"class mean": float(ssim(image, same_class.mean(0, keepdim=True))), "nearest public": float(nearest)}


# -- a server that changes the model -----------------------------------------------------------------------------------


class Imprint(nn.Module):
    """A layer in front of a network that writes each image into a row of its own: Fowl et al., *Robbing the Fed*, ICLR 2022.

    Every row of ``bins`` measures the same, the image's brightness, and fires above a threshold of its own; the thresholds are
    quantiles of ``brightness``, means of public images. What fires is added to the image, faintly, as a pattern, so that the
    loss depends on it."""

    def __init__(self, network: nn.Module, brightness: torch.Tensor, bins: int = 512, size: int = 64, seed: int = 0):
        super().__init__()
        self.bins, self.network = nn.Linear(size * size, bins), network
        thresholds = torch.quantile(brightness, torch.linspace(0, 1, bins))
        thresholds[0] = 0  # every image fires the first row
        # All of it is small, so that the change of a weight is not lost in the rounding of the weight.
        self.bins.weight.data.fill_(1e-3 / size**2)
        self.bins.bias.data = -1e-3 * thresholds
        chance = torch.Generator().manual_seed(seed)
        self.register_buffer("pattern", torch.randn(1, 1, size, size, generator=chance) / bins)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        fired = self.bins(images.flatten(1)).relu().sum(dim=1)
        return self.network(images + fired[:, None, None, None] * self.pattern)


def read_imprint(change: Change, size: int = 64) -> torch.Tensor:
    """The images that one step wrote into an :class:`Imprint`: row less next row, over bias less next bias. Where one image alone
    lies between two thresholds this is it, exactly; where several do, their mixture. ``(n, 1, size, size)``, n ≤ bins."""
    rows, slopes = change["bins.weight"].double(), change["bins.bias"].double()
    rows, slopes = (torch.cat([one[:-1] - one[1:], one[-1:]]) for one in (rows, slopes))
    hit = slopes.abs() > 1e-4 * slopes.abs().max()
    return (rows[hit] / slopes[hit, None]).reshape(-1, 1, size, size).float()


def shrunken(model: nn.Module, last: str, by: float = 1e-7) -> nn.Module:
    """The model with its layer ``last`` times ``by``. Every gradient before that layer then is far below Adam's epsilon, and its
    step, elsewhere the gradient's sign, is the gradient itself, times the rate and over epsilon."""
    with torch.no_grad():
        for value in model.get_submodule(last).parameters():
            value.mul_(by)
    return model


# -- membership --------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def losses(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Cross-entropy of each image, ``(n,)``."""
    return cross_entropy(model.eval()(images), labels, reduction="none").numpy()


def membership(members: Sequence[float], others: Sequence[float]) -> dict[str, object]:
    """Whoever has a loss below a threshold is taken for a patient of the training: Yeom et al., *Privacy Risk in Machine Learning*,
    CSF 2018. ``auc``, 0.5 for a blind guess, and of all thresholds the ROC: ``false`` and ``true`` positive rates."""
    score = -np.concatenate([members, others])
    is_member = np.repeat([1, 0], [len(members), len(others)])
    wrong, right, _ = roc_curve(is_member, score, drop_intermediate=False)
    return {"auc": float(auc(wrong, right)), "false": wrong, "true": right}
