"""How sure: statistics over seeds. Pure functions of numbers; scipy's routines do the work.

All arms are trained with the same seeds (the same initial weights, order of the data and augmentation), so a seed is
a block and schedules are compared inside it: paired. Where the same training with the same seed may end otherwise, a
seed is no block, and schedules are compared unpaired. Scores are oriented: higher is better.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import scipy  # whose parts it loads when they are used, in a second

from ..files.sweep_file import FIRST_LOOK

K = TypeVar("K", bound=Hashable)

ALPHA = 0.05
NODES, WEIGHTS = np.polynomial.legendre.leggauss(48)
"""Gauss and Legendre's, for integrals from -1 to 1."""


def looks(seeds: int) -> list[int]:
    """The numbers of seeds at which the arms are compared, each half as many again as the one before."""
    at = [seeds]
    while round(at[-1] / 1.5) >= FIRST_LOOK:
        at.append(round(at[-1] / 1.5))
    return at[::-1]


def levels(seeds: int, alpha: float = ALPHA) -> dict[int, float]:
    """What each look may spend of ``alpha``, by the number of seeds at which it is taken; they sum to ``alpha``.

    O'Brien and Fleming's spending function in Lan and DeMets' form (Biometrika 70, 1983): little early, most of it at
    the end. The looks' errors are added up, which is conservative; so there are few looks.
    """
    bound, spent, by_look = scipy.stats.norm.isf(alpha / 2), 0.0, {}
    for n in looks(seeds):
        until = float(2 * scipy.stats.norm.sf(bound / math.sqrt(n / seeds)))
        by_look[n], spent = until - spent, until
    return by_look


@dataclass(frozen=True)
class Difference:
    """How far an arm is behind the best one, after so many seeds, with its simultaneous interval."""

    behind: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Contest(Generic[K]):
    """``alive``: the arms that cannot be told from the best, the best first; ``decided``: no seed can change that."""

    alive: list[K]
    differences: dict[K, Difference]
    decided: bool


def contest(scores: Mapping[K, Sequence[float]], seeds: int, alpha: float = ALPHA, paired: bool = True) -> Contest[K]:
    """Replay the looks that the scores allow: who is in the confidence set for the best arm.

    At each look an arm is out when another one is better: multiple comparisons with the best (Hsu, Annals of
    Statistics 9, 1981) by ``_errors``, with Bonferroni's bound over arms and ``levels`` over looks. The set holds the
    best arm with probability 1 - ``alpha`` at least, however often it is looked at.

    Args:
        scores: per arm the scores by seed, the same seeds in the same order; arms that are out may have fewer.
        seeds: the number of seeds that were planned for each arm.
        paired: whether a seed is a block: two arms have something in common in the same one.
    """
    alive, differences = list(scores), dict[K, Difference]()
    others = _others(len(scores))
    for n, level in levels(seeds, alpha).items():
        if len(alive) < 2 or any(len(scores[arm]) < n for arm in alive):
            break
        table = np.array([scores[arm][:n] for arm in alive], dtype=float)
        best = int(table.mean(axis=1).argmax())
        behind = (table[best] - table).mean(axis=1)
        error, freedom = _errors(table, best, paired)
        margin = error * scipy.stats.t.isf(level / others, freedom)
        for arm, gap, wide in zip(alive, behind.tolist(), margin.tolist(), strict=True):
            differences[arm] = Difference(gap, gap - wide, gap + wide, n)
        alive = [alive[i] for i in np.argsort(behind, kind="stable") if behind[i] <= margin[i] + 1e-12]
    decided = len(alive) < 2 or all(len(scores[arm]) >= seeds for arm in alive)
    if not decided:
        shared = min(len(scores[arm]) for arm in alive)
        alive.sort(key=lambda arm: -math.fsum(scores[arm][:shared]))
    return Contest(alive, differences, decided)


def _errors(table: np.ndarray, best: int, paired: bool) -> tuple[np.ndarray, np.ndarray | int]:
    """The standard errors of how far the arms of ``[arms, seeds]`` are behind the best, and their degrees of freedom.

    Paired: the two-way layout without replication. Its residual variance is pooled over the arms, with
    (k - 1)(n - 1) degrees of freedom; where the two arms' own differences vary more, those count. Unpaired: Welch's
    t, by the variances of the two arms alone.
    """
    k, n = table.shape
    if paired:
        own = (table[best] - table).var(axis=1, ddof=1)
        return np.sqrt(np.maximum(2 * _residual_variance(table), own) / n), (k - 1) * (n - 1)
    variances = table.var(axis=1, ddof=1)
    return np.sqrt((variances[best] + variances) / n), _welch(variances[best], variances, n - 1)


def _welch(first: np.ndarray | float, second: np.ndarray, freedom: int) -> np.ndarray:
    """The degrees of freedom of the sum of two variances that have ``freedom`` each (Welch, Biometrika 34, 1947):
    f (v + w)^2 / (v^2 + w^2), from f to 2 f; f where neither arm varies."""
    total = first + second
    share = np.divide(second, total, out=np.ones_like(total), where=total > 0)
    return np.asarray(freedom / (share**2 + (1 - share) ** 2))


def _others(arms: int) -> int:
    """Among how many comparisons a look's level is shared: two alike must not crown one of them, be it either."""
    return max(2, arms - 1)


def _residual_variance(table: np.ndarray) -> float:
    """Of the two-way layout ``[arms, seeds]``: what neither arm nor seed explains."""
    k, n = table.shape
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    return float((rest**2).sum() / ((k - 1) * (n - 1)))


def interval(values: Sequence[float], alpha: float = ALPHA) -> tuple[float, float]:
    """The mean's Student interval at 1 - ``alpha``; of fewer than two values, nothing is known."""
    if len(values) < 2:
        return math.nan, math.nan
    wide = float(scipy.stats.t.isf(alpha / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return float(np.mean(values)) - wide, float(np.mean(values)) + wide


@dataclass(frozen=True)
class Noise:
    """What a seed does: the deviation of one arm over seeds, and of the difference of two arms as they are compared:
    ``paired``, in the same seed, or in any two."""

    seed: float
    difference: float
    paired: bool = True


def noise(scores: Sequence[Sequence[float]], paired: bool = True) -> Noise | None:
    """The seed noise in ``scores`` by arm; None where two arms do not have two seeds in common.

    An arm that learns with some seeds only (nine times the median's variance) says nothing of the others. Where
    some were out early, so many seeds count as say the most of a paired difference: all of a few arms, or a few of
    all. Unpaired, a difference has the variances of two arms.
    """
    several = [list(s) for s in scores if len(s) >= 2]
    if len(several) < 2:
        return None
    variances = [float(np.var(s, ddof=1)) for s in several]
    calm = [(s, v) for s, v in zip(several, variances, strict=True) if v <= 9 * float(np.median(variances))]
    seed = math.sqrt(float(np.mean([v for _, v in calm])))
    if not paired:
        return Noise(seed, math.sqrt(2) * seed, paired=False)
    n = max({len(s) for s, _ in calm}, key=lambda n: (n - 1) * (sum(len(s) >= n for s, _ in calm) - 1))
    return Noise(seed, math.sqrt(2 * _residual_variance(np.array([s[:n] for s, _ in calm if len(s) >= n]))))


def power(
    difference: float, deviation: float, seeds: int, arms: int = 2, left: int = 2, paired: bool = True
) -> float:
    """How likely the last look of ``contest`` over ``arms`` tells two of them apart, by normal scores.

    Paired, the mean difference over ``seeds`` is measured against the larger of the pair's own variance and the
    pooled one, of which the pair's is a part; unpaired, against the sum of the two arms' variances, the true ones
    alike. So it is averaged over two independent chi-squared variables.

    Args:
        difference: the true one of the two.
        deviation: of the difference of two arms, in the same seed where they are paired.
        left: how many arms are in at the last look. Two is the fewest, and the least power; paired only.
    """
    freedom, at, weights = seeds - 1, (NODES + 1) / 2, WEIGHTS / 2
    level, one = levels(seeds)[seeds] / _others(arms), scipy.stats.chi2.ppf(at, freedom)[:, None]
    if paired:
        rest = scipy.stats.chi2.ppf(at, (left - 2) * freedom) if left > 2 else np.zeros_like(at)
        variance = np.maximum(one / freedom, (one + rest) / ((left - 1) * freedom))
        critical = scipy.stats.t.isf(level, (left - 1) * freedom)
    else:
        variance, critical = (one + one.T) / (2 * freedom), scipy.stats.t.isf(level, _welch(one, one.T, freedom))
    above = scipy.stats.norm.sf(critical * np.sqrt(variance) - difference * math.sqrt(seeds) / deviation)
    return float(weights @ above @ weights)


def smallest_difference(
    deviation: float, seeds: int, arms: int = 2, wanted: float = 0.8, left: int = 2, paired: bool = True
) -> float:
    """The smallest true difference that ``seeds`` show with power ``wanted``, in the deviation's unit."""

    def lacking(difference: float) -> float:
        return power(difference, 1.0, seeds, arms, left, paired) - wanted

    return deviation * float(scipy.optimize.brentq(lacking, 1e-6, 1e3))


def seeds_needed(
    difference: float, deviation: float, arms: int = 2, wanted: float = 0.8, left: int = 2, paired: bool = True
) -> int:
    """How many seeds per arm show a true ``difference`` with power ``wanted``."""
    at = range(2, 2**20)
    return 2 + bisect_left(at, wanted, key=lambda n: power(difference, deviation, n, arms, left, paired))


def calibration(cheap: Sequence[float], full: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Kendall's tau between two scores of the same trials, with a 95 % bootstrap interval.

    Fewer than four trials, or scores that are all alike, say nothing: (nan, -1, 1).
    """
    if len(cheap) < 4 or len(set(cheap)) < 2 or len(set(full)) < 2:
        return math.nan, -1.0, 1.0

    def tau(x: np.ndarray, y: np.ndarray) -> float:
        statistic = scipy.stats.kendalltau(x, y).statistic
        return 0.0 if math.isnan(statistic) else float(statistic)  # a resample of one trial alone

    limits = scipy.stats.bootstrap(
        (np.array(cheap), np.array(full)), tau, paired=True, vectorized=False, n_resamples=999,
        method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return tau(np.array(cheap), np.array(full)), float(limits.low), float(limits.high)
