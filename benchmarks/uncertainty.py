"""How sure one may be of a difference between two models that were judged on the same images.

Two models see the same patients, so that what counts is the difference on each of them; two intervals that overlap say
little. Chance has two sources: other patients might have been tested, and another seed would have trained other models.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from src.common.errors import CourseError


class Estimate(NamedTuple):
    """A mean and what chance leaves open, in the unit of what was given; ``f"{estimate:+.3f}"`` shows its interval, too.

    ``low`` and ``high`` are the ends of the interval, ``p`` is the two-sided p-value of "the mean is 0"."""

    mean: float
    low: float
    high: float
    standard_error: float
    p: float

    def __format__(self, digits: str) -> str:
        return f"{self.mean:{digits}} ({self.low:{digits}} to {self.high:{digits}})"


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The exact two-sided p-value of "both models are equally often right", from which of the images ``(n,)`` each got right.

    Only images count that one model gets right and the other wrong: if both are equally good, each of these is a fair coin.
    McNemar, *Note on the sampling error of the difference between correlated proportions*, Psychometrika 12:153 (1947).

    Raises:
        CourseError: if they were not judged on as many images.
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if first.shape != second.shape:
        raise CourseError(f"Two models were judged on {first.size} and {second.size} images; give both the same ones.")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    apart = only_first + only_second
    return float(stats.binomtest(only_first, apart).pvalue) if apart else 1.0


def bootstrap(
    table: pd.DataFrame, value: str = "difference", draws: int = 2000, level: float = 0.95, seed: int = 0
) -> Estimate:
    """The mean of paired differences over seeds and patients, with an interval, by the hierarchical bootstrap.

    Each draw takes as many seeds as there are, with replacement, and then in each of them as many patients as it has. The
    spread of the draws' means is the standard error. The interval reaches as far as Student's t of the seeds says or, where
    there is one seed, of the patients: it then says nothing of other seeds. The draws' own percentiles would be too close
    together: five things drawn with replacement spread a tenth less than they should, which √(n / (n − 1)) makes good.
    The chance of patients is in both steps, so that the interval is rather too wide where it is the greater one.

    Efron and Tibshirani, *An Introduction to the Bootstrap* (1993); of levels: Saravanan, Berman and Sober, Neurons,
    Behavior, Data Analysis and Theory 3(5) (2020); of few: Hesterberg, *What Teachers Should Know About the Bootstrap*,
    The American Statistician 69:371 (2015).

    Args:
        table: columns ``seed``, ``patient`` and ``value``. Several rows of a patient with one seed count as their mean.
            Seeds count alike, and so do a seed's patients; else give differences times weights whose mean is 1.
        value: the column of differences, or of what else has a mean.
        draws: how many.
        level: of the interval.
        seed: of the draws.

    Raises:
        CourseError: for a difference that is not a number, and for fewer than two patients.
    """
    if not np.isfinite(table[value]).all():
        raise CourseError(f"A {value} is missing. Say what became of such patients, and leave them out yourself.")
    each = table.groupby(["seed", "patient"])[value].mean()
    of_seeds = [rows.to_numpy() for _, rows in each.groupby("seed")]
    count = len(of_seeds) if len(of_seeds) > 1 else len(each)
    if count < 2:
        raise CourseError("One patient says nothing of the next one; give two or more.")
    chance = np.random.default_rng(seed)
    drawn = chance.integers(len(of_seeds), size=(draws, len(of_seeds)))
    means = np.empty(drawn.shape)
    for number, values in enumerate(of_seeds):
        wanted = drawn == number
        patients = chance.integers(len(values), size=(np.count_nonzero(wanted), len(values)), dtype=np.int32)
        means[wanted] = values[patients].mean(axis=1)
    mean, error = float(np.mean([values.mean() for values in of_seeds])), float(means.mean(axis=1).std(ddof=1))
    error *= math.sqrt(count / (count - 1))
    reach = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, count - 1)) if error else float(mean == 0)
    return Estimate(mean, mean - reach, mean + reach, error, p)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """The p-values of several comparisons, each made as large as their number demands, in the same order.

    The smallest is multiplied by their number, the next by one less, and so on; none becomes smaller than one before it.
    Where nothing differs, at most one study in twenty then finds anything below 0.05.
    Holm, *A simple sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 6:65 (1979)."""
    values = np.asarray(p_values, dtype=float)
    order, adjusted = np.argsort(values), np.empty(len(values))
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1)
    return adjusted


def patients_needed(spread: float, difference: float = 0.02, alpha: float = 0.05, power: float = 0.8) -> int:
    """How many patients a paired t-test needs to tell ``difference`` from 0, in ``power`` of such studies.

    n = ((z of 1 − α/2 + z of power) · spread / difference)², if the spread were known; then patients are added until
    Student's t, which has it from the sample, has the power. Cohen, *Statistical Power Analysis* (1988), chapter 2.

    Args:
        spread: standard deviation of the paired differences, in the same unit.
        difference: the smallest that matters.
        alpha: two-sided level of the test.
        power: chance to find a difference that is there.

    Raises:
        CourseError: for a spread or a difference of 0.
    """
    if not (spread > 0 and difference):
        raise CourseError(f"A spread of {spread} and a difference of {difference} need no study; give both above 0.")
    effect = abs(difference) / spread
    n = max(2, math.ceil((float(np.sum(stats.norm.ppf([1 - alpha / 2, power]))) / effect) ** 2))
    while _power(n, effect, alpha) < power:
        n += 1
    return n


def _power(n: int, effect: float, alpha: float) -> float:
    limit, shift = stats.t.ppf(1 - alpha / 2, n - 1), effect * math.sqrt(n)
    return float(stats.nct.sf(limit, n - 1, shift) + stats.nct.cdf(-limit, n - 1, shift))
