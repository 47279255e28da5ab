"""Confirmation: the best of a search, trained again with fresh seeds until they can be told apart, or cannot.

The replicates are a study of their own beside the sweep's, with the same committed history, lanes and recovery. What
is trained next is a pure function of that history, so the number of lanes does not matter here either. Where a
training may not be repeatable, one is done twice before anything is compared: that decides whether seeds are blocks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..files.sweep_file import STRIP, Sweep
from ..files.trial import Config, Record, TrialConfig, baseline_of, best_first, first_of_each, same_schedule
from ..schedules.schedule import Schedule
from .confidence import Contest, Noise, contest, interval, looks, noise
from .study import Study, new_trial

STAGE = "confirm"
AGAIN = "again"
"""What is changed where a training is done twice: nothing."""
Rows = Sequence[Mapping[str, Any]]
"""The table of a confirmation: see ``_row``."""


def choose_arms(records: Sequence[Record], sweep: Sweep) -> list[Record]:
    """The trials to confirm, best first: the ``top`` of all, and the best of every schedule; none of them twice.

    Where anything is confirmed, so is the baseline, in place of what is the same schedule."""
    done = best_first(records, sweep.objective.sign)
    found = [r for r in done if r.chosen]
    ranked = first_of_each(found, lambda r: (r.name, json.dumps(dict(r.schedule), sort_keys=True)))
    chosen = ranked[: sweep.confirm.top] + (best_of_each(ranked) if sweep.confirm.types else [])
    if (today := baseline_of(done, sweep)) and sweep.arms:
        chosen = [today, *(r for r in chosen if not same_schedule(r.schedule, today.schedule))]
    return [r for r in done if r in chosen]


def best_of_each(ranked: Sequence[Record]) -> list[Record]:
    """The first trial of every schedule's name."""
    return first_of_each(ranked, lambda r: r.name)


class Confirmation(Study):
    """The study of the replicates of ``arms``; ``next`` is what is to be trained now."""

    def __init__(self, sweep: Sweep, storage: str, arms: Sequence[Record], updates: int) -> None:
        super().__init__(sweep, storage, STAGE)
        self.arms, self.updates = arms, updates
        self._seeds = [confirmation_seed(sweep, n) for n in range(sweep.confirm.seeds)]

    @property
    def target(self) -> int:
        """Those on record, those that are planned by now, and all that may follow."""
        confirm, plan, records = self.sweep.confirm, list(self._plan()), self.records()
        found = repeatability(records, self.arms, self.sweep)
        result = compare(scores(records, self.arms, self.sweep), found, self.sweep)
        alive = [] if result.decided else result.alive
        trainings = {(str(number), seed) for number in alive for seed in self._seeds}
        trainings |= {(_key(arm, change), seed) for arm, change, seed in plan}
        trainings |= {(str(record.arm), record.train["seed"]) for record in records}
        planned = not result.alive or any(change in STRIP for _, change, _ in plan)
        return len(trainings) + (0 if planned else len(STRIP) * confirm.strip_seeds)

    def _proposed(self) -> Any:
        begun = {(r.arm, r.train["seed"]) for r in self.records()}
        for arm, change, seed in self._plan():
            key, T = _key(arm, change), self.sweep.train.epochs
            if (key, seed) not in begun:
                schedule, epochs = apply_change(self.sweep.schedule(arm.schedule), T, change, self.updates)
                train = {"seed": seed} | ({"epochs": epochs} if epochs != T else {})
                return new_trial(arm.name, schedule, arm=key, train=train)
        return None

    def _plan(self) -> Iterator[tuple[Record, str, int]]:
        """Everything to train as far as it is known now, in order: (arm, what is changed, seed)."""
        confirm, done = self.sweep.confirm, scores(self.records(), self.arms, self.sweep)
        on_record = {(r.arm, r.train["seed"]) for r in self.ended()}
        alive, before, upto = list(self.arms), looks(confirm.seeds)[:-1], confirm.seeds
        found = repeatability(self.records(), self.arms, self.sweep)
        twice = ("", AGAIN) if self.sweep.checks_repeatability else ()
        yield from ((self.arms[0], change, self._seeds[0]) for change in twice)

        def ended(n: int) -> bool:  # those that are alive, with the first n seeds, and what was done twice
            known = found is not None or not twice
            return known and all((str(arm.number), seed) in on_record for arm in alive for seed in self._seeds[:n])

        for n, seed in enumerate(self._seeds):
            if n in before:  # a look lies between: it needs everything before it
                if not ended(n):
                    return
                so_far = {number: values[:n] for number, values in done.items()}
                alive = [arm for arm in alive if arm.number in compare(so_far, found, self.sweep).alive]
                if len(alive) < 2:
                    upto = n
                    break
            yield from ((arm, "", seed) for arm in alive)
        result = compare(done, found, self.sweep)
        if confirm.strip and ended(upto) and result.decided and result.alive:
            winner = next(arm for arm in self.arms if arm.number == result.alive[0])
            changes = possible_changes(self.sweep.schedule(winner.schedule), self.sweep.train.epochs, self.updates)
            yield from ((winner, change, seed) for seed in self._seeds[: confirm.strip_seeds] for change in changes)

    def config(self, record: Record, example: Config) -> Config:
        config = super().config(record, example)
        return replace(config, test=True) if isinstance(config, TrialConfig) else config

    def best(self) -> None:
        """None: who is best is not said while they are being told apart."""


def _key(arm: Record, change: str) -> str:
    """What a replicate says of what it repeats."""
    return f"{arm.number} {change}".strip()


def confirmation_seed(sweep: Sweep, n: int) -> int:
    """The n-th fresh seed; never the one that selected the trials."""
    return (sweep.train.seed + 1 + n) % 2**32


def apply_change(schedule: Schedule, epochs: int, change: str, updates: int) -> tuple[Schedule, int]:
    """A schedule and a number of epochs with one of ``STRIP`` done to them."""
    what, _, by = change.partition(" x")
    if what == "init_lr":
        return replace(schedule, init_lr=schedule.init_lr * float(by)), epochs
    if what == "warmup":
        length = schedule.warmup.length
        longer = replace(schedule.warmup, length=replace(length, value=length.value * float(by)))
        return replace(schedule, warmup=longer), epochs
    if what == "epochs":
        other = max(1, round(epochs * float(by)))
        return schedule.rescaled(other / epochs, updates * epochs, epochs=epochs), other
    return schedule, epochs


def possible_changes(schedule: Schedule, epochs: int, updates: int) -> list[str]:
    """Those of ``STRIP`` that change one thing of a schedule, and leave one that can be."""

    def facts(one: Schedule, n: int) -> tuple[float, int, int]:
        moment = one.moment(0, updates * n, n)
        return one.init_lr, moment.w, moment.total

    found, before = list[str](), facts(schedule, epochs)
    for change in STRIP:
        other, n = apply_change(schedule, epochs, change, updates)
        lr, w, total = after = facts(other, n)
        bounds, follows = Schedule.SHARED["init_lr"], change.startswith("warmup") and schedule.type == "inverse_sqrt"
        if after != before and not follows and bounds.low <= lr <= bounds.high and w < total:
            found.append(change)
    return found


def scores(records: Sequence[Record], arms: Sequence[Record], sweep: Sweep) -> dict[int, list[float]]:
    """Per arm the scores of its replicates, in the order of seeds up to the first that is missing; higher is better.

    An arm that diverged or failed with some seed has no place here: it is no answer.
    """
    ended = {(r.arm, r.train["seed"]): r for r in records if r.outcome is not None}
    by_arm: dict[int, list[float]] = {}
    for arm in arms:
        mine = [ended.get((str(arm.number), confirmation_seed(sweep, n))) for n in range(sweep.confirm.seeds)]
        first = mine[: mine.index(None)] if None in mine else mine
        values = [r.value for r in first if r and r.value is not None]
        if len(values) == len(first):
            by_arm[arm.number] = [sweep.objective.sign * value for value in values]
    return by_arm


@dataclass(frozen=True)
class Repeatability:
    """One training and the same one again, with the same seed: each as it ended."""

    first: Record
    again: Record

    @property
    def same(self) -> bool:
        """Whether both ended alike, with exactly the same numbers after every epoch: an objective that is coarse may
        agree by chance."""
        return _numbers(self.first) == _numbers(self.again)

    @property
    def apart(self) -> float | None:
        """By how much the two differ; None where one of them has no objective."""
        first, again = self.first.value, self.again.value
        return None if first is None or again is None else abs(first - again)


def _numbers(record: Record) -> tuple[str | None, list[str]]:
    """How a training ended, and all that was measured, but for the time it took; NaN equals NaN."""
    without = ("timestamp", "seconds")
    return record.outcome, [str(sorted((k, v) for k, v in e.items() if k not in without)) for e in record.epochs]


def repeatability(records: Sequence[Record], arms: Sequence[Record], sweep: Sweep) -> Repeatability | None:
    """What the first arm gave twice with the first fresh seed; None where that is not asked for, or not known yet."""
    if not sweep.checks_repeatability or not arms:
        return None
    seed = confirmation_seed(sweep, 0)
    ended = {r.arm: r for r in records if r.outcome is not None and r.train["seed"] == seed}
    first, again = (ended.get(_key(arms[0], change)) for change in ("", AGAIN))
    return Repeatability(first, again) if first and again else None


def compare(done: Mapping[int, Sequence[float]], found: Repeatability | None, sweep: Sweep) -> Contest[int]:
    """The contest over ``scores``: paired, or unpaired where a training was not repeatable. Nothing is compared
    before that is known."""
    seeds = sweep.confirm.seeds
    if sweep.checks_repeatability and found is None:
        done = {number: values[: looks(seeds)[0] - 1] for number, values in done.items()}
    return contest(done, seeds, paired=found is None or found.same)


@dataclass(frozen=True)
class Verdict:
    """The answer of a confirmation: rows for the table, the contest and its scores by arm, the noise, the strip, and
    what was trained twice."""

    rows: list[dict[str, Any]]
    contest: Contest[int]
    scores: Mapping[int, Sequence[float]]
    noise: Noise | None
    strip: list[dict[str, Any]]
    repeatability: Repeatability | None = None

    @property
    def alive(self) -> list[int]:
        """The set that holds the best arm."""
        return self.contest.alive

    @property
    def begun(self) -> bool:
        """Whether every arm that is in has a seed, so that there is something to compare."""
        return all(self.scores[number] for number in self.alive)

    @property
    def left(self) -> int:
        """How many arms were in at the last look that was taken; two where there was none."""
        at = [gap.seeds for gap in self.contest.differences.values()]
        return max(2, at.count(max(at))) if at else 2


def verdict(records: Sequence[Record], arms: Sequence[Record], sweep: Sweep) -> Verdict:
    """What the replicates say of the arms. Values are in the objective's own unit and direction."""
    sign, done, found = sweep.objective.sign, scores(records, arms, sweep), repeatability(records, arms, sweep)
    result = compare(done, found, sweep)
    typed = {r.number for r in best_of_each(arms) if r.chosen}
    rows = [_row(arm, records, done, result, sweep) | {"best_of_type": arm.number in typed} for arm in arms]
    place = {number: i for i, number in enumerate(result.alive)}  # the set first, ties as the sentence has them
    rows.sort(key=lambda r: (place.get(r["trial"], len(place)), math.inf if r["mean"] is None else -sign * r["mean"]))
    strip = [_strip(change, records, result.alive[0]) for change in STRIP] if result.alive else []
    measured = noise(list(done.values()), paired=found is None or found.same)
    return Verdict(rows, result, done, measured, [s for s in strip if s["seeds"]], found)


def best_trainings(records: Sequence[Record], sweep: Sweep) -> dict[str, Record]:
    """Of every arm the training with the best objective, the first of equals. What it is worth, the test split says:
    on the validation split it is flattered by having been chosen."""
    done = best_first((r for r in records if r.arm and r.arm.isdecimal()), sweep.objective.sign)
    return {str(record.arm): record for record in first_of_each(done, lambda r: r.arm)}


def _row(
    arm: Record, records: Sequence[Record], done: Mapping[int, Sequence[float]], result: Contest[int], sweep: Sweep
) -> dict[str, Any]:
    values = [sweep.objective.sign * s for s in done.get(arm.number, [])]
    seeds = [confirmation_seed(sweep, n) for n in range(len(values))]  # the same that the values are of
    mine = [r for r in records if r.arm == str(arm.number) and r.train["seed"] in seeds]
    ends = [r.epochs[-1] for r in mine if r.outcome == "complete"]
    tests = [end["test/accuracy"] for end in ends if "test/accuracy" in end]
    (low, high), (test_low, test_high) = interval(values), interval(tests)
    gap = result.differences.get(arm.number)
    return {
        "trial": arm.number,
        "name": arm.name,
        "type": arm.schedule["type"],
        "init_lr": arm.schedule["init_lr"],
        "baseline": not arm.chosen,
        "seeds": len(values),
        "values": values,
        "mean": float(np.mean(values)) if values else None,
        "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "low": low,
        "high": high,
        "behind": gap.behind if gap else None,
        "behind_low": gap.low if gap else None,
        "behind_high": gap.high if gap else None,
        "behind_seeds": gap.seeds if gap else None,
        "in_set": arm.number in result.alive,
        "test_accuracy": float(np.mean(tests)) if tests else None,
        "test_low": test_low,
        "test_high": test_high,
        "selected_at": arm.value,
    }


def _strip(change: str, records: Sequence[Record], winner: int) -> dict[str, Any]:
    own = {r.train["seed"]: r.value for r in records if r.arm == str(winner) and r.value is not None}
    mine = [r for r in records if r.arm == f"{winner} {change}" and r.outcome is not None]
    apart = [r.value - own[r.train["seed"]] for r in mine if r.value is not None]  # seed by seed
    low, high = interval(apart)
    return {
        "change": change,
        "seeds": len(mine),
        "diverged": sum(r.outcome == "diverged" for r in mine),
        "failed": sum(r.outcome == "failed" for r in mine),
        "difference": float(np.mean(apart)) if apart else None,
        "low": low,
        "high": high,
    }
