"""Prostate: how a site trains the U-Net and validates it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile

import numpy as np
import torch
from monai.engines import SupervisedTrainer
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss
from monai.metrics import compute_dice
from monai.utils import convert_to_tensor

from src.common.task import Task
from src.federation.engine import make_trainer as make_any_trainer
from src.prostate.card import CARD, Settings
from src.prostate.transforms import batches, normalise, prepare
from src.unet import UNet


def make_loss(kind: str, batch: bool = True) -> Callable:
    """The loss ``dice_ce``, ``dice_focal`` or ``dice`` of logits and masks, ``(batch, 1, x, y, z)``: of the whole ``batch``, or
    the mean of its patches', each of which then has a gradient of its own, as private training needs.

    Dice looks at the overlap and does not care that the gland fills only some percent of a patch; cross-entropy gives every voxel a
    gradient from the first step. Their sum is the usual choice for one organ (Isensee et al., *nnU-Net*, Nature Methods 2021)."""
    loss = {"dice_ce": DiceCELoss, "dice_focal": DiceFocalLoss, "dice": DiceLoss}[kind](sigmoid=True, batch=batch)
    # In single precision, also where the network computed in half of it.
    return lambda logits, labels: loss(logits.float(), labels.float())


def make_trainer(model: UNet, loader: Iterable, settings: Settings, device, handlers=()) -> SupervisedTrainer:
    """AdamW on the course's loss, in MONAI's trainer; see :func:`src.federation.engine.make_trainer`.

    The few weights of :meth:`src.unet.UNet.head` take steps ten times as large: else the network would spend most of a short
    training on saying with confidence what it knows early, where the gland is."""
    head = list(model.head().parameters())
    body = list(model.parameters())[: -len(head)]
    groups = [{"params": body}, {"params": head, "lr": 10 * settings.learning_rate}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    loss = make_loss(settings.loss, batch=not settings.dp_clip)
    return make_any_trainer(model, loader, optimizer, loss, device, settings.epochs, settings.amp, handlers)


@torch.inference_mode()
def gland_probability(model: UNet, prepared: Mapping, settings: Settings, device: torch.device) -> torch.Tensor:
    """Probability of gland ``(1, x, y, z)`` on the grid of a prepared volume, by a sliding window of the patch's size.

    Windows overlap by a quarter, and their middle counts more than their rim, where the network has seen less around."""
    image = convert_to_tensor(normalise({"image": prepared["image"]})["image"], track_meta=False)[None].to(device)
    logits = sliding_window_inference(image, settings.patch_size, 2, model.eval(), overlap=0.25, mode="gaussian")
    return logits[0].float().sigmoid().cpu()


def dice(prediction: torch.Tensor, label: torch.Tensor) -> float:
    """Dice of two masks ``(1, x, y, z)``; 1 if both are empty, 0 if one is."""
    return float(compute_dice(prediction[None].float(), label[None].float(), ignore_empty=False))


def evaluate(model: UNet, prepared: Sequence[Mapping], settings: Settings, device, should_stop=lambda: False) -> dict:
    """Mean Dice of prepared cases, until ``should_stop()``, as ``val_dice`` on the network's grid; empty without cases."""
    cases = takewhile(lambda _: not should_stop(), prepared)
    scores = [dice(gland_probability(model, case, settings, device) > 0.5, case["label"] > 0) for case in cases]
    return {CARD.key_metric: float(np.mean(scores))} if scores else {}


TASK = Task(
    **vars(CARD),
    settings=Settings,
    networks={"UNet": UNet},
    prepare=prepare,
    batches=batches,
    make_trainer=make_trainer,
    evaluate=evaluate,
)
