"""Federated statistics: what each site counts adds up to what one place would count, and images stay."""

import copy
import json
import time
from pathlib import Path

import numpy as np
import pytest
from nvflare.app_common.abstract.statistics_spec import Bin, Histogram, HistogramType
from nvflare.app_common.statistics.histogram_bins_cleanser import HistogramBinsCleanser
from nvflare.app_common.statistics.min_count_cleanser import MinCountCleanser
from nvflare.recipe.fedstats import FedStatsRecipe
from PIL import Image

from data_scripts.mednist_sites import share_out
from data_scripts.together import pooled, read_sites
from deploy.simulator import CourseSimEnv
from src.common.errors import CourseError
from src.federation.recipes import add_record
from src.mednist.evaluation import ImageStatistics
from tests.runs_support import complaints, drawings, holders

BINS = {"intensity": {"bins": 8, "range": [0, 1]}, "class": {"bins": 6, "range": [0, 6]}}


@pytest.fixture
def shared(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    folder = drawings(tmp_path, per_class=12, seed=1)
    return share_out(2, "dirichlet", alpha=0.5, data="statistics", folder=folder, say=lambda line: None)


def pixels_of(items) -> np.ndarray:
    return np.concatenate([np.asarray(Image.open(item["image"])).ravel() / 255 for item in items])


def counting(data: str, percent: float) -> FedStatsRecipe:
    recipe = FedStatsRecipe(
        name="statistics",
        stats_output_path="statistics.json",
        sites=["site-1", "site-2"],
        statistic_configs={"count": {}, "sum": {}, "mean": {}, "stddev": {}, "histogram": BINS},
        stats_generator=ImageStatistics(data),
        max_bins_percent=percent,
    )
    add_record(recipe)
    return recipe


@pytest.mark.slow
@pytest.mark.parametrize("percent", [30, 10], ids=["enough bins", "too few bins"])
def test_a_real_run_adds_up_and_the_filter_decides_what_leaves(shared, percent):
    """With six classes and some fifty images, a tenth of the images is too few bins for FLARE's filter, and 30% are enough."""
    simulator = CourseSimEnv(2, "statistics")
    counting(shared, percent).execute(simulator)
    assert not complaints(simulator.run_folder)
    found = json.loads(next(simulator.run_folder.rglob("statistics.json")).read_text())
    everything, one = pooled(read_sites(shared))["training"], read_sites(shared)["site-2"]["training"]
    pixels = pixels_of(everything)
    assert found["intensity"]["mean"]["site-2"]["training"] == pytest.approx(pixels_of(one).mean(), abs=1e-3)
    assert found["class"]["count"]["site-2"]["training"] == len(one)
    assert found["class"]["sum"]["site-2"]["training"] == sum(item["label"] for item in one)
    assert found["intensity"]["mean"]["Global"]["training"] == pytest.approx(pixels.mean(), abs=1e-3)
    together = [bin[2] for bin in found["intensity"]["histogram"]["Global"]["training"]]
    assert together == np.histogram(pixels, 8, (0, 1))[0].tolist()
    classes = found["class"].get("histogram", {}).get("Global", {}).get("training")
    labels = np.bincount([item["label"] for item in everything], minlength=6)
    assert ([bin[2] for bin in classes] == labels.tolist()) if percent == 30 else not classes


def test_flares_filters_count_images_and_bins_and_let_a_class_pass_that_was_counted_once():
    bins = [Bin(number, number + 1, count) for number, count in enumerate((50, 1))]
    told = {"count": {"training": {"class": 51}}, "failure_count": {"training": {"class": 0}}}
    told["histogram"] = {"training": {"class": Histogram(HistogramType.STANDARD, bins)}}
    for cleanser in (MinCountCleanser(min_count=10), HistogramBinsCleanser(max_bins_percent=10)):
        left, changed = cleanser.apply(copy.deepcopy(told), "site-1")
        assert not changed and left["histogram"]["training"]["class"].bins[1].sample_count == 1


@pytest.mark.slow
def test_a_site_with_a_spoiled_image_ends_the_run_by_name(shared):
    """FLARE alone would wait for it without end."""
    spoiled, simulator, started = (
        Path(read_sites(shared)["site-2"]["training"][0]["image"]),
        CourseSimEnv(2),
        time.time(),
    )
    spoiled.write_bytes(spoiled.read_bytes()[:200])
    with pytest.raises(CourseError, match=r"failed at the task fed_stats\. site-2: an image cannot be read\. More is"):
        counting(shared, 30).execute(simulator)
    assert time.time() - started < 60 and holders(spoiled.name, simulator.run_folder / "statistics" / "server") == []
