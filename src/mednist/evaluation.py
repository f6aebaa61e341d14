"""MedNIST: what a site tells of its images beforehand, and what a trained classifier says of each. No training needs it."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch
from nvflare.apis.fl_context import FLContext
from nvflare.app_opt.statistics.df.df_core_statistics import DFStatisticsCore

from src.common.datalists import plain_item, read_site
from src.federation.engine import pick_device
from src.mednist.card import CARD, Settings
from src.mednist.training import TASK as AT_A_SITE
from src.mednist.transforms import batches, prepare


@torch.inference_mode()
def evaluate_cases(model: torch.nn.Module, items: Sequence[dict], settings: Settings, device=None) -> pd.DataFrame:
    """A row an image: ``case`` (class and file name), ``site``, ``label``, ``predicted``, ``confidence``, ``accuracy`` (0 or 1)."""
    device, items = device or pick_device(), [plain_item(item, CARD.classes) for item in items]
    model, loader = AT_A_SITE.to_device(model, device).eval(), batches(prepare(items, settings), settings, train=False)
    found = [model(batch["image"].to(device)).softmax(dim=1).cpu() for batch in loader]
    confidence, predicted = torch.cat([torch.zeros(0, len(CARD.labels)), *found]).max(dim=1)  # none of no items
    rows = [("/".join(one["image"].split("/")[-2:]), one.get("site", ""), one["label"]) for one in items]
    table = pd.DataFrame(rows, columns=["case", "site", "label"])
    table = table.assign(predicted=predicted.numpy(), confidence=confidence.numpy())
    return table.assign(accuracy=(table["label"] == table["predicted"]).astype(float))


class ImageStatistics(DFStatisticsCore):
    """For FLARE's ``FedStatsRecipe``: ``intensity``, 0 to 1 a pixel, and ``class``, a number an image, of a site's training part of
    ``data``. A site sends what is asked for and FLARE's filters let pass; they let a class pass that it has once.
    https://nvflare.readthedocs.io/en/main/programming_guide/controllers/federated_statistics.html"""

    def __init__(self, data: str):
        super().__init__()
        self.data = data  # until it is read

    def initialize(self, fl_ctx: FLContext) -> None:
        """Read the images of this site; a ``CourseError`` names what cannot be read, or has a wrong label."""
        images = prepare(read_site(self.data, fl_ctx.get_identity_name(), CARD.classes)["training"], Settings())
        intensity = pd.Series(torch.cat([one["image"].flatten() for one in images]).double().numpy())
        self.data = {"training": {"intensity": intensity, "class": pd.Series([one["label"] for one in images])}}


TASK = replace(AT_A_SITE, evaluate_cases=evaluate_cases)
