"""Training, validation and final evaluation of the prostate U-Net: the same pieces for a site, a federation and pooled data."""

import threading
import time
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss
from monai.metrics import compute_dice, compute_hausdorff_distance
from monai.transforms import ResampleToMatch
from monai.utils import convert_to_tensor
from scipy import ndimage
from tqdm.auto import tqdm

from src.prostate_settings import TrainSettings
from src.prostate_transforms import LoadCase, Normalise, augmentation, prepare
from src.training_loop import LocalTrainer, constant, cosine, pick_device
from src.unet import UNet

WINDOW_OVERLAP = 0.25
HEAD_RATE = 10
_global_state = threading.Lock()


def new_model(seed: int) -> UNet:
    """A fresh U-Net whose weights depend on ``seed`` alone."""
    # PyTorch's initialisers draw from one state for all threads.
    with _global_state, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet()


def load_model(weights: Mapping[str, torch.Tensor]) -> UNet:
    """The U-Net with given weights, for example ``run.weights(run.best_model)``, ready to predict."""
    model = new_model(seed=0)
    model.load_state_dict(weights)
    return model.eval()


def make_loss(settings: TrainSettings) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss on logits and masks, both ``(batch, 1, x, y, z)``.

    Dice looks at the overlap and does not care that the gland fills only some percent of a patch; cross-entropy gives every
    voxel a gradient from the first step, also where there is no gland. Their sum is the usual choice for one organ
    (Isensee et al., *nnU-Net*, Nature Methods 2021).
    """
    kinds = {"dice_ce": DiceCELoss, "dice_focal": DiceFocalLoss, "dice": DiceLoss}
    return kinds[settings.loss](sigmoid=True, batch=True)


def make_trainer(model: UNet, settings: TrainSettings, device: torch.device, fedprox_mu: float = 0.0) -> LocalTrainer:
    """AdamW and its schedule for a model, see :class:`src.training_loop.LocalTrainer`.

    The few weights of :meth:`src.unet.UNet.head` take steps ten times as large: with those of the other weights, the network
    would know early where the gland is and spend most of a short training on saying so with confidence.
    """
    head = list(model.head().parameters())
    of_head = {id(parameter) for parameter in head}
    body = [parameter for parameter in model.parameters() if id(parameter) not in of_head]
    optimizer = torch.optim.AdamW(
        [{"params": body}, {"params": head, "lr": HEAD_RATE * settings.learning_rate}],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    return LocalTrainer(
        model,
        optimizer,
        make_loss(settings),
        device,
        schedule=cosine if settings.lr_schedule == "cosine" else constant,
        amp=settings.amp,
        fedprox_mu=fedprox_mu,
    )


def site_seed(seed: int, site: str) -> int:
    """A seed of its own for every site, the same in each run: else all sites would draw the same augmentation."""
    return seed + zlib.crc32(site.encode()) % 100_000


def train_loader(prepared: Sequence[dict], settings: TrainSettings, seed: int) -> DataLoader:
    """Batches of augmented patches, one patch of every case an epoch. ``seed`` fixes the order and the augmentation."""
    return DataLoader(
        Dataset(prepared, augmentation(settings)),
        batch_size=settings.batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),  # MONAI's loader seeds the random transforms from it, too
    )


@torch.inference_mode()
def gland_probability(model: torch.nn.Module, prepared: Mapping, settings: TrainSettings, device) -> torch.Tensor:
    """Probability of gland ``(1, x, y, z)`` on the grid of a prepared volume, by a sliding window of the patch's size.

    Windows overlap by a quarter, and their middle counts more than their rim, where the network has seen less around.
    https://monai.readthedocs.io/en/stable/inferers.html#sliding-window-inference-function
    """
    model.eval()
    image = convert_to_tensor(Normalise()({"image": prepared["image"]})["image"], track_meta=False)
    logits = sliding_window_inference(
        image[None].to(device), settings.patch_size, 2, model, overlap=WINDOW_OVERLAP, mode="gaussian"
    )
    return logits[0].float().sigmoid().cpu()


def dice(prediction: torch.Tensor, label: torch.Tensor) -> float:
    """Dice of two masks ``(1, x, y, z)``; 1 if both are empty, 0 if one is."""
    return float(compute_dice(prediction[None].float(), label[None].float(), ignore_empty=False))


def validate(
    model: torch.nn.Module,
    prepared: Sequence[Mapping],
    settings: TrainSettings,
    device: torch.device,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[float]:
    """Dice of each prepared case, on the grid that the network sees; fewer if ``should_stop`` said so."""
    scores = []
    for case in prepared:
        if should_stop():
            break
        scores.append(dice(gland_probability(model, case, settings, device) > 0.5, case["label"] > 0))
    return scores


def predict_case(model: torch.nn.Module, item: Mapping, settings: TrainSettings, device: torch.device | None = None):
    """The predicted gland of one case on the grid of its own image.

    The probability, not the mask, is resampled back, so that the outline is as fine as the image. Of what is then above one half
    the largest piece is kept: a patient has one prostate.

    Args:
        model: the network, on ``device``.
        item: ``image``, an absolute path; ``label`` is not used for the prediction.
        settings: the settings that the model was trained with.
        device: by default :func:`pick_device`.

    Returns:
        ``uint8`` array ``(x, y, z)`` with the shape of the image.
    """
    device = device or pick_device()
    prepared = prepare([item], settings)[0]
    probability = MetaTensor(gland_probability(model.to(device), prepared, settings, device), affine=prepared["affine"])
    own_grid = LoadCase()({"image": item["image"], "site": item.get("site", "")})["image"]
    probability = ResampleToMatch(mode="bilinear", padding_mode="zeros")(probability, own_grid)
    return largest_piece(probability.as_tensor()[0].numpy() > 0.5)


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece (by faces) of a mask ``(x, y, z)``, as ``uint8``."""
    pieces, count = ndimage.label(mask)
    if count < 2:
        return mask.astype(np.uint8)
    sizes = np.bincount(pieces.ravel())
    return (pieces == 1 + sizes[1:].argmax()).astype(np.uint8)


def evaluate_cases(
    model: torch.nn.Module, items: Sequence[Mapping], settings: TrainSettings, device: torch.device | None = None
) -> "pandas.DataFrame":  # noqa: F821
    """Dice and 95% Hausdorff distance of each case, on the voxels of its own image.

    Args:
        model: the network.
        items: ``image`` and ``label``, absolute paths, and ``site``.
        settings: the settings that the model was trained with.
        device: by default :func:`pick_device`.

    Returns:
        A table with the columns ``case``, ``site``, ``dice`` (1 if both masks are empty, 0 if one is) and ``hd95_mm`` (0 if both
        are empty, NaN if one is: there is no distance to nothing).
    """
    import pandas as pd  # a site never gets here, and does without pandas

    rows = []
    for item in items:
        case = LoadCase()(item)
        prediction = torch.from_numpy(predict_case(model, item, settings, device))[None]
        label = case["label"].as_tensor() > 0
        rows.append(
            {
                "case": case["case"],
                "site": item.get("site", ""),
                "dice": dice(prediction, label),
                "hd95_mm": hausdorff95(prediction, label, case["image"].pixdim.tolist()),
            }
        )
    return pd.DataFrame(rows, columns=["case", "site", "dice", "hd95_mm"])


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


@dataclass
class Trained:
    """A model that was trained without a federation.

    Attributes:
        model: the network after the last epoch.
        losses: mean training loss of each epoch.
        steps: number of optimiser steps.
        seconds: wall time of the training, without preparation of the volumes.
    """

    model: UNet
    losses: list[float]
    steps: int
    seconds: float


def local_training(
    items: Sequence[Mapping],
    settings: TrainSettings,
    epochs: int,
    name: str = "pooled",
    initial_weights: Mapping[str, torch.Tensor] | None = None,
    device: torch.device | None = None,
    show_progress: bool = False,
) -> Trained:
    """Train on the cases of one site, or of all, without FLARE: what a federation is compared with.

    At equal work: ``epochs`` is rounds times local epochs of the federation, so that every case is seen as often; optimiser,
    schedule, loss and augmentation are the very same code.

    Args:
        items: training cases: ``image`` and ``label``, absolute paths.
        settings: as of the federation.
        epochs: passes over the items.
        name: fixes, with ``settings.seed``, the order and the augmentation; with a site's name they are that site's.
        initial_weights: by default those of :func:`new_model` with ``settings.seed``, which a federation starts from, too.
        device: by default :func:`pick_device`.
        show_progress: show a progress bar.
    """
    device = device or pick_device()
    prepared = prepare(items, settings)
    model = new_model(settings.seed)
    if initial_weights is not None:
        model.load_state_dict(initial_weights)
    trainer = make_trainer(model.to(device), settings, device)
    loader = train_loader(prepared, settings, site_seed(settings.seed, name))
    start = time.perf_counter()
    with tqdm(total=epochs * len(loader), desc=name, unit="step", leave=False, disable=not show_progress) as bar:
        losses = trainer.run(loader, epochs, first_epoch=0, total_epochs=epochs, after_step=bar.update)
    return Trained(model, losses, epochs * len(loader), time.perf_counter() - start)


def train_each_site_alone(
    datalists: Mapping[str, Mapping], settings: TrainSettings, epochs: int, show_progress: bool = False
) -> dict[str, Trained]:
    """:func:`local_training` for every site on its own ``training`` items, as many sites at a time as there are cores.

    A small network keeps one core busy and gains little from a second, so sites train side by side, each on one thread.

    Args:
        datalists: site → ``{"training": items, ...}``.
        settings: as of the federation.
        epochs: passes of each site over its own items.
        show_progress: show a progress bar a site.
    """
    before = torch.get_num_threads()
    workers = 1 if pick_device().type == "cuda" else min(before, len(datalists))

    def one(site: str) -> Trained:
        torch.set_num_threads(max(1, before // workers))
        return local_training(datalists[site]["training"], settings, epochs, name=site, show_progress=show_progress)

    try:
        with ThreadPoolExecutor(workers) as pool:
            return dict(zip(datalists, pool.map(one, datalists), strict=True))
    finally:
        torch.set_num_threads(before)
