"""Prostate: the gland that a trained network finds, and how far it is from the outline. No site needs it."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from monai.data import MetaTensor
from monai.metrics import compute_hausdorff_distance
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
    """Dice and 95% Hausdorff distance of each case, on the voxels of its own image: ``case``, ``site``, ``dice``, ``hd95_mm``.

    ``missed`` says that one of the masks is empty and one is not: there is no distance to nothing. Such a case must not leave the
    mean, and gets the longest distance that its image has room for, the diagonal of the volume."""
    rows = []
    for item in items:
        case = LoadCase()(item)
        prediction = torch.from_numpy(predict(model, [item], settings, device)[0])[None]
        label, spacing = case["label"].as_tensor() > 0, case["image"].pixdim.tolist()
        distance = hausdorff95(prediction, label, spacing)
        longest = math.dist((0, 0, 0), np.multiply(label.shape[1:], spacing))
        row = case["case"], item.get("site", ""), dice(prediction, label)
        rows.append((*row, longest, True) if math.isnan(distance) else (*row, distance, False))
    return pd.DataFrame(rows, columns=["case", "site", "dice", "hd95_mm", "missed"])


def hausdorff95(prediction: torch.Tensor, label: torch.Tensor, spacing: Sequence[float]) -> float:
    """95% Hausdorff distance in mm of two masks ``(1, x, y, z)``; 0 if both are empty, NaN if one is."""
    if not (prediction.any() and label.any()):
        return math.nan if prediction.any() or label.any() else 0.0
    with warnings.catch_warnings():
        # MONAI's own call of its own deprecated argument.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        masks, about = (prediction[None].float(), label[None].float()), {"percentile": 95, "spacing": list(spacing)}
        return float(compute_hausdorff_distance(*masks, include_background=True, **about))


TASK = replace(AT_A_SITE, evaluate_cases=evaluate_cases)
