"""FedAvg equals its definition: the weighted mean, for floats and for BatchNorm's integer counters."""

import numpy as np
import pytest
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from src.aggregation import SampleWeightedMean


class Quiet(SampleWeightedMean):
    """Keeps warnings where a test can read them; outside a run there is no FLContext to log with."""

    def __init__(self):
        super().__init__()
        self.warnings = []

    def warning(self, message):
        self.warnings.append(message)


def update(site, samples, params, number=1, kind=ParamsType.FULL):
    meta = {"client_name": site, FLMetaKey.NUM_STEPS_CURRENT_ROUND: samples}
    return FLModel(params_type=kind, params=params, meta=meta, current_round=number)


@pytest.fixture
def aggregator():
    return Quiet()


def test_floats_are_averaged_by_number_of_samples(aggregator):
    rng = np.random.default_rng(0)
    models = {site: rng.normal(size=(4, 3)).astype(np.float32) for site in ("a", "b", "c")}
    samples = {"a": 10, "b": 30, "c": 2}
    for site, weights in models.items():
        aggregator.accept_model(update(site, samples[site], {"w": weights}))
    mean = aggregator.aggregate_model().params["w"]
    expected = sum(samples[s] * models[s].astype(np.float64) for s in models) / sum(samples.values())
    np.testing.assert_array_equal(mean, expected.astype(np.float32))
    assert mean.dtype == np.float32


@pytest.mark.parametrize("samples", [(427, 341), (1, 3), (768, 1), (999, 7)])
def test_equal_counters_stay_what_they_are(aggregator, samples):
    for site, weight in zip("ab", samples, strict=True):
        aggregator.accept_model(update(site, weight, {"num_batches_tracked": np.array(14, dtype=np.int64)}))
    counter = aggregator.aggregate_model().params["num_batches_tracked"]
    assert counter == 14
    assert counter.dtype == np.int64


def test_integer_means_are_rounded_not_cut(aggregator):
    for site, value in (("a", 1), ("b", 2), ("c", 2)):
        aggregator.accept_model(update(site, 1, {"n": np.array([value], dtype=np.int64)}))
    np.testing.assert_array_equal(aggregator.aggregate_model().params["n"], [2])


def test_order_of_arrival_does_not_show(aggregator):
    rng = np.random.default_rng(1)
    updates = [update(f"s{i}", i + 1, {"w": rng.normal(size=1000).astype(np.float32)}) for i in range(7)]
    means = []
    for order in (updates, updates[::-1]):
        aggregator.reset_stats()
        for one in order:
            aggregator.accept_model(one)
        means.append(aggregator.aggregate_model().params["w"])
    np.testing.assert_array_equal(*means)


def test_one_site_comes_back_unchanged(aggregator):
    weights = np.random.default_rng(2).normal(size=50).astype(np.float32)
    aggregator.accept_model(update("only", 123, {"w": weights}))
    np.testing.assert_array_equal(aggregator.aggregate_model().params["w"], weights)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_broken_update_is_refused_by_name(aggregator, poison):
    good = np.ones(3, dtype=np.float32)
    aggregator.accept_model(update("good", 5, {"w": good}))
    aggregator.accept_model(update("bad", 5, {"w": np.array([1, poison, 1], dtype=np.float32)}, number=2))
    np.testing.assert_array_equal(aggregator.aggregate_model().params["w"], good)
    assert list(aggregator.refused) == ["bad"]
    assert "bad" in aggregator.warnings[0] and "round 2" in aggregator.warnings[0] and "'w'" in aggregator.warnings[0]


@pytest.mark.parametrize("samples", [0, -1, None, float("nan"), "many"])
def test_a_weight_that_is_no_number_of_samples_is_refused(aggregator, samples):
    aggregator.accept_model(update("odd", samples, {"w": np.ones(2, dtype=np.float32)}))
    assert "odd" in aggregator.refused


def test_no_usable_update_is_an_error_that_lists_all(aggregator):
    for site in ("site-1", "site-2"):
        aggregator.accept_model(update(site, 5, {"w": np.array([np.nan], dtype=np.float32)}))
    with pytest.raises(ValueError, match=r"site-1.*site-2"):
        aggregator.aggregate_model()


def test_differences_stay_differences(aggregator):
    aggregator.accept_model(update("a", 1, {"w": np.ones(2, dtype=np.float32)}, kind=ParamsType.DIFF))
    assert aggregator.aggregate_model().params_type == ParamsType.DIFF


def test_reset_forgets_the_round(aggregator):
    aggregator.accept_model(update("a", 1, {"w": np.ones(2, dtype=np.float32)}))
    aggregator.reset_stats()
    with pytest.raises(ValueError, match="no site answered"):
        aggregator.aggregate_model()
