"""What a few seeds tell: mean, deviation, and intervals of paired differences."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit


class Interval(NamedTuple):
  """A mean, the ends of its confidence interval, and how many values it is of."""

  mean: float
  low: float
  high: float
  count: int


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float, float]:
  """Mean and standard deviation (of n - 1), NaN where there are too few values.

  None and NaN stand for a value that is not there.
  """
  values = _known(values)
  if not values.size:
    return np.nan, np.nan
  return float(values.mean()), float(values.std(ddof=1)) if values.size > 1 else np.nan


def paired_difference(
  values: Mapping[int, float | None],
  baseline: Mapping[int, float | None],
  *,
  confidence: float = 0.95,
) -> Interval:
  """By how much values exceed a baseline, seed by seed, with Student's t interval.

  What a seed does to both, such as a lucky start, is not counted as noise.

  Args:
    values: by seed; None and NaN stand for a value that is not there.
    baseline: as `values`; seeds that are not in both are left out.
    confidence: of the interval, in (0, 1).
  Returns:
    Without two seeds, an interval whose ends are NaN; without one, whose mean is NaN, too.
  Example:
    >>> difference = paired_difference({0: 4.0, 1: 5.0, 2: 9.0}, {0: 3.0, 1: 3.0, 2: 6.0})
    >>> [round(x, 2) for x in difference]
    [2.0, -0.48, 4.48, 3]

  """
  seeds = [seed for seed in values if seed in baseline]
  pairs = np.array([(values[seed], baseline[seed]) for seed in seeds], float).reshape(-1, 2)
  differences = _known(pairs[:, 0] - pairs[:, 1])
  mean, deviation = mean_and_deviation(differences)
  count = differences.size
  if count < 2:
    return Interval(mean, np.nan, np.nan, count)
  half = float(stdtrit(count - 1, (1 + confidence) / 2)) * deviation / np.sqrt(count)
  return Interval(mean, float(mean - half), float(mean + half), count)


def _known(values):
  values = np.asarray(values, float)
  return values[~np.isnan(values)]
