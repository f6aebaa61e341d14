"""Prostate: the pieces of training the U-Net, evaluating it and predicting with it."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss
from monai.metrics import compute_dice, compute_hausdorff_distance
from monai.transforms import ResampleToMatch
from monai.utils import convert_to_tensor
from scipy import ndimage

from src.common.engine import make_trainer as make_any_trainer
from src.common.engine import pick_device
from src.prostate.card import CARD, Settings
from src.prostate.transforms import LoadCase, Normalise, prepare
from src.unet import UNet

WINDOW_OVERLAP = 0.25
HEAD_RATE = 10


NETWORKS = {UNet.__name__: UNet}


def new_model(seed: int, network: str = UNet.__name__) -> UNet:
    """A fresh network whose weights depend on ``seed`` alone."""
    return NETWORKS[network](seed=seed)


def load_model(weights: Mapping[str, torch.Tensor], network: str = UNet.__name__) -> UNet:
    """The network with given weights, for example ``run.weights(run.final_model)``, ready to predict."""
    model = new_model(0, network)
    model.load_state_dict(weights)
    return model.eval()


def to_device(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Move the network to the device."""
    return model.to(device)


class Loss(torch.nn.Module):
    """The loss on logits and masks, both ``(batch, 1, x, y, z)``.

    Dice looks at the overlap and does not care that the gland fills only some percent of a patch; cross-entropy gives every
    voxel a gradient from the first step, also where there is no gland. Their sum is the usual choice for one organ
    (Isensee et al., *nnU-Net*, Nature Methods 2021).

    Args:
        kind: ``dice_ce``, ``dice_focal`` or ``dice``.
    """

    def __init__(self, kind: str = "dice_ce"):
        super().__init__()
        kinds = {"dice_ce": DiceCELoss, "dice_focal": DiceFocalLoss, "dice": DiceLoss}
        self.loss = kinds[kind](sigmoid=True, batch=True)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # In single precision, also where the network computed in half of it.
        return self.loss(logits.float(), labels.float())


def make_trainer(
    model: UNet, loader: Iterable, settings: Settings, device: torch.device, handlers: Sequence = ()
) -> SupervisedTrainer:
    """AdamW on the course's loss, in MONAI's trainer; see :func:`src.common.engine.make_trainer`.

    The few weights of :meth:`src.unet.UNet.head` take steps ten times as large: with those of the other weights, the network
    would know early where the gland is and spend most of a short training on saying so with confidence.
    """
    head = list(model.head().parameters())
    of_head = {id(parameter) for parameter in head}
    body = [parameter for parameter in model.parameters() if id(parameter) not in of_head]
    groups = [{"params": body}, {"params": head, "lr": HEAD_RATE * settings.learning_rate}]
    return make_any_trainer(
        model,
        loader,
        torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True),
        Loss(settings.loss),
        device,
        epochs=settings.epochs,
        fedprox_mu=settings.fedproxloss_mu,
        amp=settings.amp,
        handlers=handlers,
    )


@torch.inference_mode()
def gland_probability(
    model: torch.nn.Module, prepared: Mapping, settings: Settings, device: torch.device
) -> torch.Tensor:
    """Probability of gland ``(1, x, y, z)`` on the grid of a prepared volume, by a sliding window of the patch's size.

    Windows overlap by a quarter, and their middle counts more than their rim, where the network has seen less around.
    https://monai.readthedocs.io/en/stable/inferers.html#sliding-window-inference-function
    """
    image = convert_to_tensor(Normalise()({"image": prepared["image"]})["image"], track_meta=False)
    logits = sliding_window_inference(
        image[None].to(device), settings.patch_size, 2, model.eval(), overlap=WINDOW_OVERLAP, mode="gaussian"
    )
    return logits[0].float().sigmoid().cpu()


def dice(prediction: torch.Tensor, label: torch.Tensor) -> float:
    """Dice of two masks ``(1, x, y, z)``; 1 if both are empty, 0 if one is."""
    return float(compute_dice(prediction[None].float(), label[None].float(), ignore_empty=False))


def evaluate(
    model: torch.nn.Module,
    prepared: Sequence[Mapping],
    settings: Settings,
    device: torch.device,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Mean Dice of prepared cases as ``val_dice``, on the grid that the network sees; empty without cases."""
    scores = []
    for case in prepared:
        if should_stop():
            break
        scores.append(dice(gland_probability(model, case, settings, device) > 0.5, case["label"] > 0))
    return {CARD.key_metric: float(np.mean(scores))} if scores else {}


def predict(
    model: torch.nn.Module, items: Sequence[Mapping], settings: Settings, device: torch.device | None = None
) -> list[np.ndarray]:
    """The predicted gland of each item on the grid of its own image, ``uint8`` ``(x, y, z)``.

    The probability, not the mask, is resampled back, so that the outline is as fine as the image. Of what is then above one half
    the largest piece is kept: a patient has one prostate.

    Args:
        model: the network.
        items: ``image``, an absolute path; ``label`` is not used for the prediction.
        settings: the settings that the model was trained with.
        device: by default :func:`pick_device`.
    """
    images = (LoadCase()({"image": item["image"], "site": item.get("site", "")})["image"] for item in items)
    return [_predict(model, item, image, settings, device) for item, image in zip(items, images, strict=True)]


def _predict(
    model: torch.nn.Module, item: Mapping, image: MetaTensor, settings: Settings, device: torch.device | None
) -> np.ndarray:
    """The predicted gland of one item on the grid of its loaded ``image``."""
    device = device or pick_device()
    (prepared,) = prepare([item], settings)
    probability = gland_probability(model.to(device), prepared, settings, device)
    on_own_grid = ResampleToMatch(mode="bilinear", padding_mode="zeros")
    gland = on_own_grid(MetaTensor(probability, affine=prepared["affine"]), image).as_tensor()[0].numpy() > 0.5
    pieces, count = ndimage.label(gland)  # MONAI's KeepLargestConnectedComponent needs scikit-image for this
    largest = 1 + np.bincount(pieces.ravel())[1:].argmax() if count else 0
    return (gland & (pieces == largest)).astype(np.uint8)


def evaluate_cases(
    model: torch.nn.Module, items: Sequence[Mapping], settings: Settings, device: torch.device | None = None
):
    """Dice and 95% Hausdorff distance of each case, on the voxels of its own image.

    Returns:
        pandas.DataFrame: a row an item with ``case``, ``site``, ``dice`` (1 if both masks are empty, 0 if one is), ``hd95_mm``
        (0 if both are empty) and ``missed``: only one of the masks is empty. There is no distance to nothing, so that a missed
        case gets the longest one that its image has room for, the diagonal of the volume: it must not leave the mean.
    """
    import pandas as pd  # a site never gets here, and does without pandas

    rows = []
    for item in items:
        case = LoadCase()(item)
        prediction = torch.from_numpy(_predict(model, item, case["image"], settings, device))[None]
        label = case["label"].as_tensor() > 0
        spacing = case["image"].pixdim.tolist()
        distance = hausdorff95(prediction, label, spacing)
        missed = math.isnan(distance)
        row = {"case": case["case"], "site": item.get("site", ""), "dice": dice(prediction, label)}
        diagonal = math.dist((0, 0, 0), np.multiply(label.shape[1:], spacing))
        rows.append({**row, "hd95_mm": diagonal if missed else distance, "missed": missed})
    return pd.DataFrame(rows, columns=["case", "site", "dice", "hd95_mm", "missed"])


def hausdorff95(prediction: torch.Tensor, label: torch.Tensor, spacing: Sequence[float]) -> float:
    """95% Hausdorff distance in mm of two masks ``(1, x, y, z)``; 0 if both are empty, NaN if one is."""
    filled = bool(prediction.any()), bool(label.any())
    if not all(filled):
        return float("nan") if any(filled) else 0.0
    with warnings.catch_warnings():
        # MONAI's own call of its own deprecated argument.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        distance = compute_hausdorff_distance(
            prediction[None].float(), label[None].float(), include_background=True, percentile=95, spacing=list(spacing)
        )
    return float(distance)
