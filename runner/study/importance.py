"""What mattered: parameter importance (PED-ANOVA), with a permutation test."""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Literal

import optuna
from optuna.trial import FrozenTrial, create_trial

from .study import Study

SHUFFLES = 39
"""Of the results among the trials, to see what chance makes of a parameter; of many trials 19, which take seconds."""


def importance(study: Study) -> dict[str, float]:
    """How much of what these explain each parameter explains (PED-ANOVA), the most first; empty where unknown.

    A parameter that only some types have counts within its type; one with fewer than ten trials is left out, and
    all are where there are fewer than five trials for each. So is one of which chance makes as much, by a test of
    permutations at 5 %: something has most of what is explained by chance, too.
    """
    done, direction = study.complete_trials(), study.sweep.objective.direction
    counts = Counter(name for trial in done for name in trial.params)
    wide = [name for name, n in counts.items() if n >= 10]
    if not wide or max(counts.values()) < 5 * len(wide):
        return {}
    found = _explained(direction, done, [trial.value for trial in done])
    shuffles, by_chance = SHUFFLES if len(done) <= 200 else 19, {name: list[float]() for name in wide}
    all_alike, types = [0] * len(done), [trial.params["type"] for trial in done]
    for n in range(shuffles):
        anywhere, within = (_explained(direction, done, _shuffled(done, groups, n)) for groups in (all_alike, types))
        for name in wide:  # what a type's own parameter explains is beside what the type does
            by_chance[name].append((anywhere if name == "type" else within).get(name, 0.0))
    rank = (shuffles + 1) // 20
    kept = {n: share for n, share in found.items() if n in wide and share > sorted(by_chance[n])[-rank]}
    return {name: share / math.fsum(kept.values()) for name, share in kept.items()}


def _shuffled(done: Sequence[FrozenTrial], groups: Sequence[Hashable], seed: int) -> list[float | None]:
    """The results of these trials, shuffled in each group."""
    values, chance = [trial.value for trial in done], random.Random(seed)
    for group in dict.fromkeys(groups):
        at = [i for i, other in enumerate(groups) if other == group]
        for i, j in zip(at, chance.sample(at, len(at)), strict=True):
            values[i] = done[j].value
    return values


def _explained(
    direction: Literal["maximize", "minimize"], done: Sequence[FrozenTrial], values: Sequence[float | None]
) -> dict[str, float]:
    """What each parameter explains of these results, the most first; nothing where all are alike."""
    scratch = optuna.create_study(direction=direction)
    for trial, value in zip(done, values, strict=True):
        scratch.add_trial(create_trial(value=value, params=trial.params, distributions=trial.distributions))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Some regimes")  # few trials: the report says so itself
            warnings.filterwarnings("ignore", "Target and region")  # all alike
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            found = optuna.importance.get_param_importances(scratch, normalize=False)
    except (RuntimeError, ValueError):
        return {}
    return {name: share for name, share in found.items() if math.isfinite(share)}
