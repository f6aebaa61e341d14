"""What sites tell about their data before any training: histograms and counts, for FLARE's ``FedStatsRecipe``.

https://nvflare.readthedocs.io/en/main/programming_guide/controllers/federated_statistics.html
"""

import numpy as np
import pandas as pd
from nvflare.apis.fl_context import FLContext
from nvflare.app_opt.statistics.df.df_core_statistics import DFStatisticsCore
from PIL import Image

from src.common.datalists import read_site


class ImageStatistics(DFStatisticsCore):
    """Two features of a site's training images: ``intensity``, 0 to 1 a pixel, and ``class``, a number an image.

    Each site reads its own part of the shared-out ``data``, and sends what the recipe asks for and FLARE's filters let pass.
    """

    def __init__(self, data: str):
        super().__init__()
        self.data = data  # until it is read

    def initialize(self, fl_ctx: FLContext) -> None:
        """Read the images of this site."""
        items = read_site(self.data, fl_ctx.get_identity_name())["training"]
        pixels = [np.asarray(Image.open(item["image"]).convert("L")).ravel() / 255.0 for item in items]
        classes = pd.Series([item["label"] for item in items])
        self.data = {"training": {"intensity": pd.Series(np.concatenate(pixels)), "class": classes}}
