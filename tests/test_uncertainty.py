"""How sure one may be of a difference: values of the books, and intervals that hold what they promise."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks.uncertainty import bootstrap, holm, mcnemar, patients_needed
from src.common.errors import CourseError


def table(differences: np.ndarray) -> pd.DataFrame:
    """A row a seed and a column a patient."""
    seeds, patients = np.indices(differences.shape)
    values = {"seed": seeds, "patient": patients, "difference": differences}
    return pd.DataFrame({name: value.ravel() for name, value in values.items()})


def test_only_images_that_tell_two_models_apart_count_and_each_is_a_coin():
    assert mcnemar([1, 0, 0, 0, 0, 0, 1], [0, 1, 1, 1, 1, 1, 1]) == pytest.approx(2 * (1 + 6) / 2**6)
    # Agresti, Categorical Data Analysis, approval of a minister in two surveys: χ² = 34.7 without exactness.
    first, second = np.repeat([[1, 1, 0, 0], [1, 0, 1, 0]], [794, 150, 86, 570], axis=1)
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(3.716e-5, rel=1e-3)
    assert mcnemar([True, False], [True, False]) == 1.0
    with pytest.raises(CourseError, match="2 and 1 images"):
        mcnemar([True, False], [True])


@pytest.mark.parametrize(("seeds", "patients", "of_seeds"), [(5, 40, 1.0), (1, 20, 0.0)])
def test_intervals_hold_the_truth_as_often_as_they_say_also_of_five_seeds(seeds, patients, of_seeds):
    chance, truth, held, errors = np.random.default_rng(0), 0.3, 0, []
    for _ in range(200):
        drawn = truth + chance.normal(0, of_seeds, (seeds, 1)) + chance.normal(0, 1, (seeds, patients))
        found = bootstrap(table(drawn), draws=200)
        held, errors = held + (found.low <= truth <= found.high), [*errors, found.standard_error]
    assert 0.91 <= held / 200 <= 0.99
    assert np.mean(errors) == pytest.approx((of_seeds / seeds + 1 / (seeds * patients)) ** 0.5, rel=0.15)


def test_the_bootstrap_is_that_of_a_t_test_where_there_is_one_seed_and_quick_where_there_are_many_images():
    values = np.random.default_rng(0).normal(0.1, 1, (5, 1200))
    before = time.perf_counter()
    found = bootstrap(table(values))
    assert time.perf_counter() - before < 3 and found.mean == pytest.approx(values.mean())
    assert f"{found:+.1f}".startswith("+0.1 (")
    one, right = bootstrap(table(values[:1, :50])), stats.ttest_1samp(values[0, :50], 0)
    assert one[1:3] == pytest.approx(tuple(right.confidence_interval()), abs=0.03)
    assert one.p == pytest.approx(right.pvalue, abs=0.05)
    twice = pd.concat([table(values[:2]), table(values[:2] + 2)])  # two slices of each patient are one patient
    assert bootstrap(twice) == pytest.approx(bootstrap(table(values[:2] + 1)))
    assert bootstrap(table(np.zeros((3, 2)))).p == 1
    for useless in (table(np.array([[1.0, np.nan]])), table(np.ones((1, 1)))):
        with pytest.raises(CourseError):
            bootstrap(useless)


def test_of_several_comparisons_each_must_do_better_and_two_hundredths_of_dice_need_many_patients():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1, 1]
    assert [patients_needed(1, effect) for effect in (0.2, 0.5, 0.8)] == [199, 34, 15]  # Cohen's small, medium, large
    assert patients_needed(0.06, -0.02) == 73
    with pytest.raises(CourseError, match="need no study"):
        patients_needed(0.0)
