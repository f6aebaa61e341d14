"""What sites tell about their data before any training: histograms and counts, for FLARE's ``FedStatsRecipe``.

https://nvflare.readthedocs.io/en/main/programming_guide/controllers/federated_statistics.html
"""

import numpy as np
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.statistics_spec import (
    BinRange,
    DataType,
    Feature,
    Histogram,
    HistogramType,
    Statistics,
)
from nvflare.app_common.statistics.numpy_utils import get_std_histogram_buckets
from PIL import Image

from src.common.datalists import read_site

PART = "training"


class ImageStatistics(Statistics):
    """Intensities and classes of the training images of one site, for pictures with a class, as MedNIST's.

    Features: ``intensity``, one value a pixel, from 0 to 1, and ``class``, one number an image.

    Args:
        data: name of the shared-out data; each site reads its own, and sends what the recipe asks for and FLARE's filters let pass.
    """

    def __init__(self, data: str):
        super().__init__()
        self.data = data
        self.values: dict[str, np.ndarray] = {}

    def initialize(self, fl_ctx: FLContext) -> None:
        """Read the images of this site."""
        items = read_site(self.data, fl_ctx.get_identity_name())[PART]
        pixels = [np.asarray(Image.open(item["image"]).convert("L")).ravel() / 255.0 for item in items]
        self.values = {"intensity": np.concatenate(pixels), "class": np.array([item["label"] for item in items], float)}

    def features(self) -> dict[str, list[Feature]]:
        """Both features of the one part that is looked at."""
        return {PART: [Feature("intensity", DataType.FLOAT), Feature("class", DataType.INT)]}

    def count(self, dataset_name: str, feature_name: str) -> int:
        """Number of pixels, or of images."""
        return len(self.values[feature_name])

    def sum(self, dataset_name: str, feature_name: str) -> float:
        """Sum of the values."""
        return float(self.values[feature_name].sum())

    def mean(self, dataset_name: str, feature_name: str) -> float:
        """Mean of the values."""
        return float(self.values[feature_name].mean())

    def stddev(self, dataset_name: str, feature_name: str) -> float:
        """Standard deviation of this site's values from its own mean."""
        return float(self.values[feature_name].std(ddof=1))

    def variance_with_mean(
        self, dataset_name: str, feature_name: str, global_mean: float, global_count: float
    ) -> float:
        """This site's share of the variance of all sites' values."""
        return float(np.square(self.values[feature_name] - global_mean).sum() / (global_count - 1))

    def histogram(
        self, dataset_name: str, feature_name: str, num_of_bins: int, global_min_value: float, global_max_value: float
    ) -> Histogram:
        """Counts in equally wide bins."""
        between = BinRange(global_min_value, global_max_value)
        bins = get_std_histogram_buckets(self.values[feature_name], num_of_bins, between)
        return Histogram(HistogramType.STANDARD, bins)
