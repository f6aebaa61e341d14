"""FedAvg equals its definition: the weighted mean, for floats and for BatchNorm's integer counters; and what it refuses."""

import re

import numpy as np
import pytest
import torch
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.app_constant import AppConstants

from deploy.simulator import CourseSimEnv
from src.federation.aggregation import CoordinateMedian, SampleWeightedMean
from src.federation.flare_2_9 import server_of
from src.federation.methods import METHODS
from src.federation.recipes import client_recipe
from src.federation.run import Run
from src.mednist.card import Settings
from src.mednist.training import TASK
from tests.runs_support import configuration, toy_recipe
from tests.tests_support import course_error, rows

GOOD = {"w": np.ones((2, 3), np.float32), "n": np.array(5)}


def floats(*values):
    return np.array(values, dtype=np.float32)


def update(site, samples, params, kind=ParamsType.FULL, metrics=None):
    meta = {"client_name": site, FLMetaKey.NUM_STEPS_CURRENT_ROUND: samples}
    return FLModel(params_type=kind, params=params, meta=meta, current_round=2, metrics=metrics)


@pytest.fixture
def aggregator(monkeypatch):
    """Keeps warnings where a test can read them; outside a run there is no FLContext to log with."""
    one = SampleWeightedMean()
    one.warnings = []
    monkeypatch.setattr(one, "warning", one.warnings.append)
    return one


def mean(aggregator, *updates):
    for one in updates:
        aggregator.accept_model(one)
    return aggregator.aggregate_model()


def test_floats_are_averaged_by_number_of_samples_in_double_precision_whoever_comes_first(aggregator):
    rng = np.random.default_rng(0)
    models = {f"site-{n}": rng.normal(size=(40, 30)).astype(np.float32) for n in range(7)}
    samples = dict(zip(models, (10, 30, 2, 7, 1, 427, 341), strict=True))
    expected = sum(samples[site] * models[site].astype(np.float64) for site in models) / sum(samples.values())
    sent = {site: weights.copy() for site, weights in models.items()}
    for order in (list(models), list(models)[::-1]):
        aggregator.reset_stats()
        found = mean(aggregator, *(update(site, samples[site], {"w": sent[site]}) for site in order)).params["w"]
        np.testing.assert_array_equal(found, expected.astype(np.float32))
        assert found.dtype == np.float32 and aggregator.accepted == samples
    np.testing.assert_equal(sent, models, "what a site sent is not written to")


@rows(
    ("equal ones", (427, 341), (14, 14), 14),
    ("equal ones of few and more", (1, 3), (14, 14), 14),
    ("equal ones of many and one", (768, 1), (14, 14), 14),
    ("equal ones of many and few", (999, 7), (14, 14), 14),
    ("rounded and not cut", (1, 1, 1), (1, 2, 2), 2),
)
def test_integer_counters_stay_integers(counts, values, expected, aggregator):
    sent = zip("abc", counts, values, strict=False)
    sites = (update(site, count, {"n": np.array(value)}) for site, count, value in sent)
    found = mean(aggregator, *sites).params["n"]
    assert found == expected and found.dtype == np.int64


def test_one_site_comes_back_unchanged_differences_stay_differences_and_metrics_are_averaged_too(aggregator):
    """A site without validation images has no metrics, and one may have more than the others."""
    weights = np.random.default_rng(2).normal(size=50).astype(np.float32)
    found = mean(aggregator, update("only", 123, {"w": weights}, kind=ParamsType.DIFF))
    np.testing.assert_array_equal(found.params["w"], weights)
    assert found.params_type == ParamsType.DIFF and found.metrics is None
    aggregator.reset_stats()
    metrics = {"a": {"val_accuracy": 0.4, "val_loss": 2.0}, "b": {"val_accuracy": 0.8, "val_loss": 1.0}, "c": None}
    metrics["d"], samples = {"val_more": 1.0}, {"a": 1, "b": 3, "c": 9, "d": 9}
    found = mean(aggregator, *(update(one, samples[one], {"w": floats(1)}, metrics=metrics[one]) for one in samples))
    assert found.metrics == pytest.approx({"val_accuracy": 0.7, "val_loss": 1.25, "val_more": 1.0})


def test_averaged_running_variances_lack_the_variance_between_the_sites(aggregator):
    """The law of total variance, on the statistics that BatchNorm itself has taken of each site's values."""
    draw, layers = torch.Generator().manual_seed(0), {}
    values = {"a": torch.randn(300, 1, generator=draw) - 1, "b": 2 * torch.randn(100, 1, generator=draw) + 3}
    for site, own in (values | {"all": torch.cat([*values.values()])}).items():
        layers[site] = torch.nn.BatchNorm1d(1, momentum=None)  # a mean over batches, here of one
        layers[site](own)
    arrays = {site: {n: v.numpy() for n, v in layer.state_dict().items()} for site, layer in layers.items()}
    found = mean(aggregator, *(update(site, len(values[site]), arrays[site]) for site in values)).params
    between = sum(len(values[s]) / 400 * (arrays[s]["running_mean"] - found["running_mean"]) ** 2 for s in values)
    assert found["running_mean"] == pytest.approx(arrays["all"]["running_mean"], abs=1e-5) and between > 1
    assert found["running_var"] + between == pytest.approx(arrays["all"]["running_var"], rel=0.01)


def test_half_precision_loses_a_late_small_update_of_weights_and_keeps_it_of_differences(aggregator):
    before, change = floats(1.0), floats(1e-4)
    weights, difference = ((value.astype(np.float16)).astype(np.float32) for value in (before + change, change))
    assert mean(aggregator, update("a", 1, {"w": weights})).params["w"] == before, "nothing was learned"
    aggregator.reset_stats()
    kept = mean(aggregator, update("a", 1, {"w": difference}, kind=ParamsType.DIFF)).params["w"]
    assert before + kept == pytest.approx(before + change, abs=1e-7)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_broken_update_is_refused_by_name(aggregator, poison):
    good = update("good", 5, {"w": floats(1, 1, 1)}, metrics={"val_accuracy": 0.5})
    found = mean(aggregator, good, update("bad", 5, {"w": floats(1, poison, 1)}, metrics={"val_accuracy": 1.0}))
    np.testing.assert_array_equal(found.params["w"], [1, 1, 1])
    assert found.metrics == {"val_accuracy": 0.5}, "the metrics of a refused update do not count"
    assert list(aggregator.refused) == ["bad"] and list(aggregator.accepted) == ["good"]
    assert all(word in aggregator.warnings[0] for word in ("bad", "round 2", "'w'"))


def test_a_weight_is_a_positive_number_of_samples(aggregator):
    for samples in (3, 3.0, np.int64(3), np.float32(3)):
        aggregator.accept_model(update(f"{type(samples)}", samples, {"w": floats(1, 1)}))
    assert [*aggregator.accepted.values()] == [3.0] * 4 and not aggregator.refused
    for samples in (0, -1, None, True, False, float("nan"), float("inf"), "many", [3], 1j):
        aggregator.accept_model(update("a", samples, {"w": floats(1, 1)}))
        assert aggregator.refused.pop("a") == f"its number of samples is {samples!r}, not a positive number"
    assert len(aggregator.accepted) == 4


@rows(
    ("turned", [], {**GOOD, "w": np.ones((3, 2), np.float32)}, r"1 of its tensors .*'w': \(3, 2\) instead of \(2, 3\)"),
    ("a number", [], {**GOOD, "w": np.float32(1)}, r"'w': \(\) instead of \(2, 3\)"),
    ("one more", [], {**GOOD, "more": floats(1)}, r"1 of its tensors .*'more': \(1,\) instead of none"),
    ("one less", [], {"w": GOOD["w"]}, r"1 of its tensors .*'n': missing instead of \(\)"),
    ("another name", [], {"W": GOOD["w"], "n": GOOD["n"]}, r"2 of its tensors .*'W': \(2, 3\) instead of none"),
    ("what sites keep", ["n"], GOOD, r"1 of its tensors .*'n': \(\) instead of none"),
)
def test_other_tensors_than_the_global_models_are_refused_whoever_answers_first(held_back, params, says, aggregator):
    aggregator.fl_ctx, aggregator.held_back = FLContext(), held_back
    model = make_model_learnable({"w": np.zeros((2, 3), np.float32), "n": np.array(4)}, {})
    aggregator.fl_ctx.set_prop(AppConstants.GLOBAL_MODEL, model, private=True, sticky=True)
    due = {name: value for name, value in GOOD.items() if name not in held_back}
    np.testing.assert_equal(mean(aggregator, update("odd", 5, params), update("good", 5, due)).params, due)
    assert list(aggregator.accepted) == ["good"] and re.search(says, aggregator.refused["odd"])


def test_no_usable_update_is_an_error_that_lists_all_and_reset_forgets_the_round(aggregator):
    with pytest.raises(ValueError, match=r"site-1.*site-2"):
        mean(aggregator, *(update(site, 5, {"w": floats(np.nan)}) for site in ("site-1", "site-2")))
    aggregator.accept_model(update("site-3", 1, {"w": floats(1, 1)}, metrics={"val_accuracy": 1.0}))
    aggregator.reset_stats()
    assert not aggregator.accepted and not aggregator.refused
    with pytest.raises(ValueError, match="no site answered"):
        aggregator.aggregate_model()
    # Outside of a run all must send what the first one sent.
    found = mean(aggregator, update("a", 1, {"other": floats(2)}), update("second", 1, {"other": floats(1, 1, 1)}))
    assert aggregator.refused["second"].endswith("'other': (3,) instead of (1,)")
    np.testing.assert_equal((found.params, found.metrics), ({"other": floats(2)}, None))


def median(*updates):
    return mean(CoordinateMedian(), *updates)


@rows(("odd", 5), ("even", 4), ("one site gone", 6), ("one site alone", 1))
def test_the_median_is_that_of_each_coordinate_whatever_number_of_samples_a_site_claims(sites):
    rng = np.random.default_rng(sites)
    models = [rng.normal(size=(3, 4)).astype(np.float32) for _ in range(sites)]
    if sites == 6:
        models.pop()
    updates = [update(f"site-{n}", 1 + 10**n, {"w": model, "n": np.array(10 * n)}) for n, model in enumerate(models)]
    found, count = median(*updates).params, len(models)
    for place in np.ndindex(3, 4):
        ordered = sorted(float(model[place]) for model in models)
        middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2  # Yin et al., definition 1
        assert found["w"][place] == np.float32(middle)
    assert found["w"].dtype == np.float32 and found["n"].dtype == np.int64
    assert found["n"] == 5 * (count - 1)


def test_the_median_forgets_the_round_before_and_averages_metrics_by_samples():
    aggregator = CoordinateMedian()
    mean(aggregator, *(update(site, 1, {"w": floats(100)}) for site in "abc"))
    aggregator.reset_stats()
    metrics = {"a": 0.4, "b": 0.8, "c": 0.8}
    sent = [
        update(site, n, {"w": floats(n)}, ParamsType.DIFF, {"val": metrics[site]}) for n, site in enumerate("abc", 1)
    ]
    found = mean(aggregator, *sent)
    assert found.params == {"w": floats(2)} and found.params_type == ParamsType.DIFF
    assert found.metrics == pytest.approx({"val": (1 * 0.4 + 2 * 0.8 + 3 * 0.8) / 6})


def test_one_site_of_four_moves_the_mean_as_far_as_it_likes_and_the_median_within_the_others(aggregator, monkeypatch):
    honest = [update(f"site-{n}", 10, {"w": floats(0.9 + 0.1 * n, -1)}) for n in range(3)]
    liar = update("liar", 10, {"w": floats(-20, 20)})
    assert mean(aggregator, *honest, liar).params["w"] == pytest.approx([-4.25, 4.25])
    found = median(*honest, liar).params["w"]
    assert found == pytest.approx([0.95, -1])
    robust = CoordinateMedian()
    monkeypatch.setattr(robust, "warning", lambda said: None)
    broken = update("broken", 10, {"w": floats(np.nan, 1)})
    other = update("other", 10, {"w": floats(1, 1, 1)})
    assert mean(robust, *honest, broken, other, liar).params["w"] == pytest.approx([0.95, -1])
    assert robust.refused.keys() == {"broken", "other"}


def test_the_course_s_recipe_takes_another_aggregator_where_flare_s_does(tmp_path):
    settings = Settings(network="CompactDenseNet", method="fedbn")
    parts = configuration(client_recipe(TASK, 2, settings, aggregator=CoordinateMedian), tmp_path)["workflows"]
    (taken,) = [part["args"]["aggregator"] for part in parts if "aggregator" in part["args"]]
    assert taken["path"] == "src.federation.aggregation.CoordinateMedian"
    assert taken["args"]["held_back"] == METHODS["fedbn"].stays(TASK.new_model(network="CompactDenseNet"))
    for method in ("fedadam", "scaffold"):
        own = Settings(network="CompactDenseNet", method=method)
        course_error("averages in a way of its own", client_recipe, TASK, 2, own, aggregator=CoordinateMedian)


@pytest.mark.slow
@rows(("median", CoordinateMedian, True), ("mean", SampleWeightedMean, False))
def test_in_a_run_a_site_that_multiplies_its_update_moves_the_mean_and_not_the_median(kind, holds, tmp_path):
    """Each honest site adds one in each of two rounds."""
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "start.pt")
    lie = 'if site == "site-3":\n    params = {name: -20 * value for name, value in params.items()}'
    recipe = toy_recipe(tmp_path, 3, 2, lie, tmp_path / "start.pt", final_evaluation=False)
    server_of(recipe).workflows[0].controller.aggregator = kind()
    run = Run(recipe.execute(CourseSimEnv(3)).get_result())
    assert run.contributions["accepted"].all() and len(run.contributions) == 6
    final, first = run.weights(run.final_model), torch.load(tmp_path / "start.pt", weights_only=True)
    assert all(torch.allclose(final[name], first[name] + 2) == holds for name in first)
