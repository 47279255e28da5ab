"""What a training of one's own was to do, beside what it did: its epochs, and the learning rates that it used."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..files.sweep_file import Objective
from ..files.trial import OwnConfig
from .checkpoint import State
from .job import Report

NOMINAL = 100
"""Updates of an epoch of which nobody says how many it has: for the drawing of curves alone."""


@dataclass(frozen=True)
class OwnEpoch:
    """What one epoch gave; the interface of ``loop.Epoch``."""

    number: int
    values: Mapping[str, float]
    """What the training reported, by name."""
    lr: float
    """Of the epoch's first update, as it was used; the plan's where that is not known."""
    seconds: float
    updates: int | None = None
    """In an epoch, as the training said, or made in its first one."""
    used: Sequence[tuple[int, float]] | None = None
    """The learning rates that were used, and for how many updates, where they are not the plan's."""
    remark: str | None = None
    """Where the training was not what it was to be."""
    keep: bool = False
    """Whether its state is to be kept now: it is not made for that alone."""
    state: Callable[[], State] | None = field(default=None, compare=False, repr=False)

    def metrics(self) -> dict[str, float]:
        """The names and values under which it is logged."""
        own = {name: value for name, value in self.values.items() if name not in ("epoch", "timestamp")}
        return {**own, "lr": self.lr, "seconds": self.seconds}

    def facts(self) -> dict[str, Any]:
        """What is put on record of its trial."""
        said = {"updates": self.updates, "remark": self.remark, f"lrs:{self.number}": self.used}
        return {key: value for key, value in said.items() if value is not None}


def epoch_of(**fields: Any) -> OwnEpoch:
    """An epoch from what a state has of it."""
    used = fields.pop("used", None)
    return OwnEpoch(**fields, used=None if used is None else [(int(n), float(lr)) for n, lr in used])


def judged(epochs: Sequence[OwnEpoch], objective: Objective) -> list[float]:
    """What ``plateau`` looks at, as ``loop.judged``; NaN where an epoch has no objective."""
    return [objective.sign * epoch.values.get(objective.metric, math.nan) for epoch in epochs]


class Plan:
    """What a training was to do, beside what it does: its learning rates, update by update.

    A training's own scheduler says where in the schedule it stands. Where it has none, updates are counted.
    """

    def __init__(self, config: OwnConfig, done: Sequence[OwnEpoch], kept: Mapping[str, Any]) -> None:
        """``kept``: the ``state`` that this had after the epochs that are ``done``."""
        self.schedule, self.epochs, self.objective = config.schedule, config.train.epochs, config.objective
        self.in_file = config.train.updates_per_epoch
        self.history = judged(done, self.objective)
        self.number = len(done)
        self.per_epoch: int | None = kept.get("per_epoch")
        self.stands: int | None = kept.get("stands", 0)
        """At which update of the schedule it is; None where that was not seen."""
        self.apart: int = kept.get("apart", 0)
        """How many updates, or epochs, had another learning rate than the schedule's."""
        self.remarks: dict[str, str] = dict(kept.get("remarks", {}))
        """What was not as it was to be: one sentence of each kind."""

    def state(self) -> dict[str, Any]:
        return {"per_epoch": self.per_epoch, "stands": self.stands, "apart": self.apart, "remarks": {**self.remarks}}

    def epoch(self, number: int, report: Report, seconds: float) -> OwnEpoch:
        """An epoch from what was said of it, compared with what was to be."""
        lrs, values, said = list(report.lrs), dict(report.metrics), report.updates_per_epoch or self.in_file
        if self.in_file not in (None, said):
            wrong = f"it has {said} updates in an epoch, where the sweep file says updates_per_epoch: {self.in_file}"
            self.remarks["file"] = wrong
        counted = said is None and self.per_epoch not in (None, len(lrs))
        self.per_epoch = said or self.per_epoch or len(lrs) or None
        planned = [self._at(number * self._length + i) for i in range(self._length)]
        used = None
        if lrs or report.at:
            begins = number * self._length if self.stands is None else self.stands
            at = report.at or range(begins, begins + len(lrs) + 1)
            self.stands = at[-1]
            if counted:  # nobody has said how many updates there are, and the first epoch's were a guess
                before = f"epoch {number} made {len(lrs)} updates, and the first one {self.per_epoch}"
                self.remarks["apart"] = f"which learning rates it was to use is not known: {before}"
            elif "not known" not in self.remarks.get("apart", ""):
                self._compare(lrs, at)
            if len(lrs) != len(planned) or not all(map(self._alike, lrs, planned)):
                used = [(len(list(same)), lr) for lr, same in itertools.groupby(lrs)]
        else:
            self.stands = None
            if "lr" in values:
                used = self._compare_one(values["lr"], [*planned, self._at(number, self.epochs)])
            else:
                unknown = f"it did not say which learning rate it used in epoch {number}: the schedule's is shown"
                self.remarks.setdefault("unknown", unknown)
        self.number = number + 1
        if self.number == self.epochs and said and self.stands is not None:
            self._compare_length(bool(report.at))
        lr = lrs[0] if lrs else values.get("lr", planned[0])
        found = OwnEpoch(number, values, lr, seconds, self.per_epoch, used, "; ".join(self.remarks.values()) or None)
        self.history += judged([found], self.objective)
        return found

    @property
    def _length(self) -> int:
        return self.per_epoch or NOMINAL

    def _at(self, update: int, updates: int = 0) -> float:
        T = updates or self._length * self.epochs
        return self.schedule.lr(update, T, epochs=self.epochs, history=self.history)

    def _compare(self, lrs: Sequence[float], at: Sequence[int]) -> None:
        """The rates of an epoch's updates with those of the schedule."""
        for t, lr in zip(at, lrs, strict=False):
            planned = self._at(t)
            if not self._alike(lr, planned):
                digits = next((n for n in (4, 6, 9) if f"{lr:.{n}g}" != f"{planned:.{n}g}"), 17)
                both = f"lr {lr:.{digits}g}, where the schedule has {planned:.{digits}g}"
                self._say_apart(f"update {t} was made at {both}", "updates")

    def _compare_one(self, lr: float, planned: Sequence[float]) -> list[tuple[int, float]] | None:
        """The same for a training that says one rate for an epoch: any is right that the schedule has in it."""
        low, high = min(planned), max(planned)
        if low * (1 - 1e-3) <= lr <= high * (1 + 1e-3):
            return None
        has = f"{low:.4g}" if self._alike(low, high) else f"{low:.4g} to {high:.4g}"
        self._say_apart(f"epoch {self.number} was trained at lr {lr:.4g}, where the schedule has {has}", "epochs")
        return [(self._length, lr)]

    def _say_apart(self, wrong: str, what: str) -> None:
        self.apart += 1
        first = self.remarks.get("apart", wrong).partition(" (")[0]
        self.remarks["apart"] = f"{first} ({self.apart} {what} differ)" if self.apart > 1 else first

    def _compare_length(self, scheduler: bool) -> None:
        """Whether the schedule and the training ended together."""
        total, stands = self._length * self.epochs, self.stands or 0
        if stands != total:
            came = f"its scheduler came to update {stands}" if scheduler else f"{stands} were made"
            when = "before" if stands > total else "after"
            self.remarks["length"] = f"the schedule ends {when} the training: it is {total} updates long, and {came}"

    def _alike(self, lr: float, planned: float) -> bool:
        """Whether two rates are the same but for rounding: in single precision a cosine is known to some 1e-7."""
        return math.isclose(lr, planned, rel_tol=1e-5, abs_tol=1e-6 * self.schedule.init_lr)
