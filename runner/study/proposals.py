"""What is trained next: a pure function of the history.

A proposal depends on the history, the sweep's seed and the trial's number alone, so a resumed study proposes what an
uninterrupted one would have (with one sampler seed for all, a restart repeated half of the configurations).
"""

from __future__ import annotations

import copy
import math
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from ..files.space import Space
from ..files.sweep_file import Sweep

ATTEMPTS = 10
"""How often a sampler is asked for something new; then it is the first point that is left."""


def propose(
    number: int, history: Iterable[FrozenTrial], sweep: Sweep, enqueued: Mapping[str, Any] | None = None
) -> tuple[FrozenTrial, str, dict[str, Any]] | None:
    """Trial ``number``, given the trials before it: its parameters, the schedule's name, and its closed mapping.

    What is ``enqueued`` is taken as it is, and the sampler chooses the rest. The same numbers again say nothing: a
    sampler that comes upon what has been tried begins anew, and a schedule of which every point was tried has no
    turn. None where that is so of all schedules.
    """
    search, space, before = sweep.search, sweep.schedules, list(history)
    tried = {frozenset(trial.params.items()) for trial in before}
    counts = dict.fromkeys(space.schedules, 0) | Counter(trial.params["type"] for trial in before)
    points = Counter(dict(point)["type"] for point in tried)
    left = [name for name in space.schedules if space.count(name) > points[name]]
    if enqueued is None and not left:
        return None
    turn = min(left, key=counts.__getitem__) if enqueued is None and search.balance == "equal" else None
    kind = optuna.samplers.TPESampler if search.sampler == "tpe" else optuna.samplers.RandomSampler
    for attempt in range(ATTEMPTS + 1):
        if enqueued is not None:
            fixed = dict(enqueued)
        elif search.sampler == "grid" or attempt == ATTEMPTS:
            fixed = _untried(space, left[0] if search.sampler == "grid" else min(left, key=counts.__getitem__), tried)
        elif search.sampler == "qmc":
            point = number if turn is None else counts[turn]  # by turns, Sobol's would be half of each for one type
            fixed = _quasirandom(space, search.seed, point + attempt, turn)
        else:
            fixed = {} if turn is None else {"type": turn}
        sampler = kind(seed=zlib.crc32(f"{search.seed}/{number}{f'/{attempt}' * (attempt > 0)}".encode()))
        scratch = optuna.create_study(direction=sweep.objective.direction, sampler=sampler)
        if search.sampler == "tpe":
            scratch.add_trials(map(_bare, before))
        if fixed:
            scratch.enqueue_trial(fixed)
        name, mapping = space.sample(scratch.ask())
        trial = scratch.get_trials(deepcopy=False)[-1]
        if enqueued is not None or frozenset(trial.params.items()) not in tried:
            break
    return trial, name, mapping


def _untried(space: Space, name: str, tried: Collection[frozenset[tuple[str, Any]]]) -> dict[str, Any]:
    """The first point of a schedule that was not tried; of one without an end of points, its name."""
    if space.count(name) == math.inf:
        return {"type": name}
    return next(point for point in space.points(name) if frozenset(point.items()) not in tried)


def _quasirandom(space: Space, seed: int, number: int, name: str | None) -> dict[str, Any]:
    """Point ``number`` of a scrambled Sobol sequence, of type ``name`` where it is told. Optuna's own needs a space
    without conditions."""
    from scipy.stats import qmc

    names, sequence = list(space.schedules), qmc.Sobol(1 + len(space.axes()), scramble=True, rng=seed)
    if number:
        sequence.fast_forward(number)
    u = sequence.random(1)[0].tolist()
    return space.point(u if name is None else [(names.index(name) + 0.5) / len(names), *u[1:]])


def as_running(trial: FrozenTrial) -> FrozenTrial:
    """A trial as it looked before its result was known."""
    return create_trial(
        state=TrialState.RUNNING,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs=trial.system_attrs,
    )


def _bare(trial: FrozenTrial) -> FrozenTrial:
    """A trial without what is on record of its epochs, which would be copied."""
    bare = copy.copy(trial)
    bare.user_attrs = {}
    return bare
