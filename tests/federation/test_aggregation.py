"""FedAvg equals its definition: the weighted mean, for floats and for BatchNorm's integer counters; and what it refuses."""

import re

import numpy as np
import pytest
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.app_constant import AppConstants

from src.federation.aggregation import SampleWeightedMean


class Quiet(SampleWeightedMean):
    """Keeps warnings where a test can read them; outside a run there is no FLContext to log with."""

    def __init__(self):
        super().__init__()
        self.warnings = []

    def warning(self, message):
        self.warnings.append(message)


def floats(*values):
    return np.array(values, dtype=np.float32)


def update(site, samples, params, number=1, kind=ParamsType.FULL, metrics=None):
    meta = {"client_name": site, FLMetaKey.NUM_STEPS_CURRENT_ROUND: samples}
    return FLModel(params_type=kind, params=params, meta=meta, current_round=number, metrics=metrics)


@pytest.fixture
def aggregator():
    return Quiet()


@pytest.fixture
def in_a_run(aggregator):
    """The same, in a run whose global model has a matrix ``w`` and a counter ``n``."""
    aggregator.fl_ctx = FLContext()
    model = make_model_learnable({"w": np.zeros((2, 3), np.float32), "n": np.array(4)}, {})
    aggregator.fl_ctx.set_prop(AppConstants.GLOBAL_MODEL, model, private=True, sticky=True)
    return aggregator


GOOD = {"w": np.ones((2, 3), np.float32), "n": np.array(5)}


# -- the mean ----------------------------------------------------------------------------------------------------------


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
    assert aggregator.accepted == samples


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


def test_what_a_site_sent_is_not_written_to(aggregator):
    weights = floats(1, 2)
    for site in "ab":
        aggregator.accept_model(update(site, 3, {"w": weights}))
    aggregator.aggregate_model()
    np.testing.assert_array_equal(weights, [1, 2])


def test_metrics_are_averaged_by_number_of_samples(aggregator):
    aggregator.accept_model(update("a", 1, {"w": floats(1)}, metrics={"val_accuracy": 0.4, "val_loss": 2.0}))
    aggregator.accept_model(update("b", 3, {"w": floats(1)}, metrics={"val_accuracy": 0.8, "val_loss": 1.0}))
    # A site without validation images has no metrics, and one may have more than the others.
    aggregator.accept_model(update("c", 9, {"w": floats(1)}, metrics=None))
    aggregator.accept_model(update("d", 9, {"w": floats(1)}, metrics={"val_more": 1.0}))
    assert aggregator.aggregate_model().metrics == pytest.approx(
        {"val_accuracy": 0.7, "val_loss": 1.25, "val_more": 1.0}
    )


def test_without_any_metrics_there_are_none(aggregator):
    aggregator.accept_model(update("a", 1, {"w": floats(1)}))
    assert aggregator.aggregate_model().metrics is None


def test_differences_stay_differences(aggregator):
    aggregator.accept_model(update("a", 1, {"w": floats(1, 1)}, kind=ParamsType.DIFF))
    assert aggregator.aggregate_model().params_type == ParamsType.DIFF


# -- what is refused, by name ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_broken_update_is_refused_by_name(aggregator, poison):
    aggregator.accept_model(update("good", 5, {"w": floats(1, 1, 1)}, metrics={"val_accuracy": 0.5}))
    aggregator.accept_model(update("bad", 5, {"w": floats(1, poison, 1)}, number=2, metrics={"val_accuracy": 1.0}))
    mean = aggregator.aggregate_model()
    np.testing.assert_array_equal(mean.params["w"], [1, 1, 1])
    assert mean.metrics == {"val_accuracy": 0.5}, "the metrics of a refused update do not count"
    assert list(aggregator.refused) == ["bad"] and list(aggregator.accepted) == ["good"]
    assert "bad" in aggregator.warnings[0] and "round 2" in aggregator.warnings[0] and "'w'" in aggregator.warnings[0]


@pytest.mark.parametrize("samples", [0, -1, None, True, False, float("nan"), float("inf"), "many", [3], 1j])
def test_a_weight_that_is_no_number_of_samples_is_refused(aggregator, samples):
    aggregator.accept_model(update("odd", samples, {"w": floats(1, 1)}))
    assert aggregator.refused["odd"] == f"its number of samples is {samples!r}, not a positive number"
    assert not aggregator.accepted


@pytest.mark.parametrize("samples", [3, 3.0, np.int64(3), np.float32(3)])
def test_any_kind_of_positive_number_will_do(aggregator, samples):
    aggregator.accept_model(update("a", samples, {"w": floats(1)}))
    assert aggregator.accepted == {"a": 3.0}


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({**GOOD, "w": np.ones((3, 2), np.float32)}, r"1 of its tensors .*'w': \(3, 2\) instead of \(2, 3\)"),
        ({**GOOD, "w": np.float32(1)}, r"'w': \(\) instead of \(2, 3\)"),
        ({**GOOD, "more": floats(1)}, r"1 of its tensors .*'more': \(1,\) instead of none"),
        ({"w": GOOD["w"]}, r"1 of its tensors .*'n': missing instead of \(\)"),
        ({"W": GOOD["w"], "n": GOOD["n"]}, r"2 of its tensors .*'W': \(2, 3\) instead of none"),
    ],
)
def test_other_tensors_than_the_global_models_are_refused_by_name_whoever_answers_first(in_a_run, params, says):
    in_a_run.accept_model(update("odd", 5, params))
    in_a_run.accept_model(update("good", 5, GOOD))
    mean = in_a_run.aggregate_model().params
    assert list(in_a_run.accepted) == ["good"]
    np.testing.assert_equal(mean, GOOD)
    assert re.search(says, in_a_run.refused["odd"])


def test_what_sites_keep_must_not_be_sent(in_a_run):
    in_a_run.held_back = ["n"]
    in_a_run.accept_model(update("sends it", 5, GOOD))
    in_a_run.accept_model(update("keeps it", 5, {"w": GOOD["w"]}))
    assert list(in_a_run.accepted) == ["keeps it"]
    np.testing.assert_equal(in_a_run.aggregate_model().params, {"w": GOOD["w"]})
    assert "'n': () instead of none" in in_a_run.refused["sends it"]


def test_outside_of_a_run_all_must_send_what_the_first_one_sent(aggregator):
    aggregator.accept_model(update("first", 1, {"w": floats(1, 1)}))
    aggregator.accept_model(update("second", 1, {"w": floats(1, 1, 1)}))
    assert aggregator.refused["second"].endswith("'w': (3,) instead of (2,)")


def test_no_usable_update_is_an_error_that_lists_all(aggregator):
    for site in ("site-1", "site-2"):
        aggregator.accept_model(update(site, 5, {"w": floats(np.nan)}))
    with pytest.raises(ValueError, match=r"site-1.*site-2"):
        aggregator.aggregate_model()


def test_reset_forgets_the_round(aggregator):
    aggregator.accept_model(update("a", 1, {"w": floats(1, 1)}, metrics={"val_accuracy": 1.0}))
    aggregator.accept_model(update("b", 0, {"w": floats(1, 1)}))
    aggregator.reset_stats()
    assert not aggregator.accepted and not aggregator.refused
    with pytest.raises(ValueError, match="no site answered"):
        aggregator.aggregate_model()
    aggregator.accept_model(update("a", 1, {"other": floats(2)}))
    np.testing.assert_equal(aggregator.aggregate_model().params, {"other": floats(2)})
