"""Prostate: the gland that a trained network finds, and how far it is from the outline. No site needs it."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from monai.data import MetaTensor
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from monai.transforms import ResampleToMatch
from scipy import ndimage

from src.federation.engine import pick_device
from src.prostate.card import Settings
from src.prostate.training import TASK as AT_A_SITE
from src.prostate.training import dice, gland_probability
from src.prostate.transforms import LoadCase, prepare


def predict(model: torch.nn.Module, items: Sequence[Mapping], settings: Settings, device=None) -> list[np.ndarray]:
    """The predicted gland of each item on the grid of its own image, ``uint8`` ``(x, y, z)``, by the ``settings`` of its training.

    The probability, not the mask, is resampled back, so that the outline is as fine as the image. Of what is then above one half
    the largest piece is kept: a patient has one prostate. ``label`` is not used."""
    device, on_own_grid, found = device or pick_device(), ResampleToMatch(mode="bilinear", padding_mode="zeros"), []
    for item in items:
        (prepared,) = prepare([item], settings)
        image = LoadCase()({"image": item["image"], "site": item.get("site", "")})["image"]
        probability = gland_probability(model.to(device), prepared, settings, device)
        gland = on_own_grid(MetaTensor(probability, affine=prepared["affine"]), image).as_tensor()[0].numpy() > 0.5
        pieces, count = ndimage.label(gland)  # MONAI's KeepLargestConnectedComponent needs scikit-image for this
        largest = 1 + np.bincount(pieces.ravel())[1:].argmax() if count else 0
        found.append((gland & (pieces == largest)).astype(np.uint8))
    return found


def evaluate_cases(model: torch.nn.Module, items: Sequence[Mapping], settings: Settings, device=None) -> pd.DataFrame:
    """Scores of each case on its own image's voxels: ``case, site, dice, hd95_mm, surface_dice_3mm, missed``.

    ``missed`` says that one of the masks is empty and one is not. There is no distance to nothing, so ``hd95_mm`` is NaN then: a
    table gives the median of the others and counts the missed beside it. In a mean of Dice or surface Dice they are 0."""
    rows = []
    for item in items:
        case = LoadCase()(item)
        prediction = torch.from_numpy(predict(model, [item], settings, device)[0])[None]
        masks, spacing = (prediction, case["label"].as_tensor() > 0), case["image"].pixdim.tolist()
        distance, close = surfaces(*masks, spacing)
        rows.append((case["case"], item.get("site", ""), dice(*masks), distance, close, math.isnan(distance)))
    return pd.DataFrame(rows, columns=["case", "site", "dice", "hd95_mm", "surface_dice_3mm", "missed"])


def surfaces(prediction: torch.Tensor, label: torch.Tensor, spacing: Sequence[float]) -> tuple[float, float]:
    """95% Hausdorff distance in mm of two masks ``(1, x, y, z)``, and their surface Dice, the share of both surfaces that is
    within 3 mm of the other one; 0 and 1 if both masks are empty, NaN and 0 if one is.

    Nikolov et al., *Clinically applicable segmentation of head and neck anatomy* (2021), https://arxiv.org/abs/1809.04430"""
    if not (prediction.any() and label.any()):
        return (math.nan, 0.0) if prediction.any() or label.any() else (0.0, 1.0)
    masks = prediction[None].float(), label[None].float()
    about = {"include_background": True, "spacing": list(spacing)}
    with warnings.catch_warnings():
        # MONAI's own call of its own deprecated argument.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        distance = compute_hausdorff_distance(*masks, percentile=95, **about)
        return float(distance), float(compute_surface_dice(*masks, [3.0], **about))


TASK = replace(AT_A_SITE, evaluate_cases=evaluate_cases)
