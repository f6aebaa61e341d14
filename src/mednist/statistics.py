"""What sites tell about their data before any training: histograms and counts, for FLARE's ``FedStatsRecipe``.

https://nvflare.readthedocs.io/en/main/programming_guide/controllers/federated_statistics.html
"""

import pandas as pd
import torch
from nvflare.apis.fl_context import FLContext
from nvflare.app_opt.statistics.df.df_core_statistics import DFStatisticsCore

from src.common.datalists import read_site
from src.mednist.card import CARD, Settings
from src.mednist.transforms import prepare


class ImageStatistics(DFStatisticsCore):
    """Two features of a site's training images as the network sees them: ``intensity``, 0 to 1 a pixel, and ``class``, a number an
    image. Each site reads its own part of the shared-out ``data``, and sends what the recipe asks for and FLARE's filters let pass.
    """

    def __init__(self, data: str):
        super().__init__()
        self.data = data  # until it is read

    def initialize(self, fl_ctx: FLContext) -> None:
        """Read the images of this site; a ``CourseError`` names what cannot be read, and labels that are none of the classes."""
        items = prepare(read_site(self.data, fl_ctx.get_identity_name(), CARD.classes)["training"], Settings())
        pixels = torch.cat([item["image"].flatten() for item in items]).double()
        classes = pd.Series([item["label"] for item in items])
        self.data = {"training": {"intensity": pd.Series(pixels.numpy()), "class": classes}}
