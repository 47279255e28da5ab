"""One trial: what it is asked to train (``TrialConfig``, ``Engine``), and what is on record of it (``Record``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..schedules.schedule import Schedule
from .sweep_file import Data, Model, Objective, Sweep, Train


@dataclass(frozen=True)
class Engine:
    """How the trials of a sweep are computed: all of them alike, on every lane."""

    name: Literal["reference", "fast"] = "reference"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What the recipe's ``auto`` stands for here."""
    compiled: bool = False
    tiled: int = 0
    """On a CPU: the channels from which 3x3 convolutions are done in tiles (Winograd's F(4x4, 3x3)); 0 for none."""
    unfolded: tuple[int, ...] = (0, 0, 0)
    """On a CPU: the sides, in pixels, up to which a convolution's output, its input's gradient and its weight's are
    matrix products; 0 for none."""
    reason: str = field(default="", compare=False)
    """Why it is not a faster one, where nobody asked for that."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "unfolded", tuple(self.unfolded))  # a study's storage has a list

    def __str__(self) -> str:
        tiles = f", tiles from {self.tiled} channels" if self.tiled else ""
        products = f", products up to {'/'.join(map(str, self.unfolded))} pixels" if any(self.unfolded) else ""
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.name}, {self.precision}{', compiled' if self.compiled else ''}{tiles}{products}{reason}"


@dataclass(frozen=True)
class TrialConfig:
    """Everything that one training needs to know."""

    data: Data
    model: Model
    train: Train
    schedule: Schedule
    data_dir: str = "data"
    engine: Engine = Engine()
    images: str = ""
    """The SHA-256 of the data as they were read: what a checkpoint belongs to."""
    test: bool = False
    """Whether the last epoch is measured on the test split too: for confirmed winners only."""

    @property
    def precision(self) -> Literal["auto", "fp32", "bf16"]:
        return self.train.precision if self.engine.precision == "auto" else self.engine.precision


@dataclass(frozen=True)
class Record:
    """One trial of the committed history, typed."""

    number: int
    name: str
    """The schedule's name in the sweep file."""
    schedule: Mapping[str, Any]
    """Its JSON."""
    params: Mapping[str, Any]
    """What the study chose."""
    outcome: str | None = None
    """complete, diverged, stopped, failed; None while it runs."""
    value: float | None = None
    """The objective; None where it never got one."""
    epochs: Sequence[Mapping[str, float]] = field(default_factory=tuple)
    """Per epoch: ``epoch``, ``timestamp`` (ms), and the metrics under the names they are logged by."""
    run_id: str | None = None
    cause: str | None = None
    """Why a failed trial failed."""
    stage: str = ""
    """Empty for a trial of the search; else the study beside it: ``confirm``, or ``rung-5``, a rung of 5 epochs."""
    train: Mapping[str, int] = field(default_factory=dict)
    """What differs from the sweep's recipe: a fresh ``seed``, other ``epochs``."""
    arm: str | None = None
    """Of a replicate: which trial it repeats, and what was changed, as in ``7`` or ``7 init_lr x0.5``; ``7 again``
    has the seed of another one, too."""

    def values(self, metric: str) -> list[float]:
        """A metric after every epoch; NaN where an epoch has none."""
        return [e.get(metric, math.nan) for e in self.epochs]

    def history(self, objective: Objective) -> list[float]:
        """What ``plateau`` looks at: the objective after every epoch, higher is better."""
        return [objective.sign * value for value in self.values(objective.metric)]

    @property
    def slug(self) -> str:
        """What its files are called: ``search-00003``."""
        return f"{self.stage or 'search'}-{self.number:05d}"

    @property
    def title(self) -> str:
        """What a person calls it: ``trial 3``, of a replicate ``trial 3 seed 1``, of a rung ``rung-5 trial 3``."""
        if self.arm:
            return f"trial {self.arm} seed {self.train['seed']}"
        return f"{self.stage} trial {self.number}".lstrip()

    def recipe(self, sweep: Sweep) -> Train:
        """How it is trained."""
        return sweep.train.model_copy(update=dict(self.train))

    @property
    def seconds(self) -> float:
        return math.fsum(e["seconds"] for e in self.epochs)


def best_first(records: Iterable[Record], sign: int, confirmed: Iterable[Mapping[str, Any]] = ()) -> list[Record]:
    """The complete trials by objective, ``sign`` 1 where higher is better; equals in the order they were tried.

    Before them those in the rows of ``confirmed``, in that order: fresh seeds know better than one. Behind them all
    those that did not come to their end with every fresh seed."""
    place = {row["trial"]: math.inf if row["mean"] is None else i for i, row in enumerate(confirmed)}
    done = [r for r in records if r.outcome == "complete" and r.value is not None]
    return sorted(done, key=lambda r: (place.get(r.number, len(place)), -sign * (r.value or 0.0)))


def first_of_each(records: Iterable[Record], key: Callable[[Record], Hashable]) -> list[Record]:
    """The first record of every key, in the order in which they come."""
    found: dict[Hashable, Record] = {}
    for record in records:
        found.setdefault(key(record), record)
    return list(found.values())
