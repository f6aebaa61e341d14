"""MedNIST: what a trained classifier says of each image. No site needs it."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch

from src.common.datalists import plain_item
from src.federation.engine import pick_device
from src.mednist.card import CARD, Settings
from src.mednist.training import TASK as AT_A_SITE
from src.mednist.training import to_device
from src.mednist.transforms import batches, prepare


@torch.inference_mode()
def predict(model: torch.nn.Module, items: Sequence[dict], settings: Settings, device=None) -> torch.Tensor:
    """Class probabilities ``(images, classes)`` of items, in their order, on the CPU."""
    device = device or pick_device()
    model = to_device(model, device).eval()
    loader = batches(prepare(items, settings), settings, train=False)
    return torch.cat([model(batch["image"].to(device)).softmax(dim=1).cpu() for batch in loader])


def evaluate_cases(model: torch.nn.Module, items: Sequence[dict], settings: Settings, device=None) -> pd.DataFrame:
    """A row an image: its class and file name as ``case``, and what the network says of it.

    ``label`` and ``predicted`` are numbers of classes, ``confidence`` is the prediction's probability, ``accuracy`` 1 or 0.
    """
    items = [plain_item(item, CARD.classes) for item in items]
    probabilities = predict(model, items, settings, device)
    table = pd.DataFrame({"case": ["/".join(item["image"].split("/")[-2:]) for item in items]})
    table["site"] = [item.get("site", "") for item in items]
    table["label"] = [item["label"] for item in items]
    table["predicted"] = probabilities.argmax(dim=1).numpy()
    table["confidence"] = probabilities.amax(dim=1).numpy()
    table["accuracy"] = (table["label"] == table["predicted"]).astype(float)
    return table


TASK = replace(AT_A_SITE, evaluate_cases=evaluate_cases)
