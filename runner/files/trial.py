"""One trial: what it is asked to train (``TrialConfig``, ``OwnConfig``), and what is on record of it (``Record``)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..schedules.schedule import Schedule
from .space import BASELINE
from .sweep_file import ACCURACY, Data, Model, Objective, OwnTraining, Sweep, Train


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
    objective: Objective = ACCURACY
    """What it is judged by: that is measured beside loss and accuracy, and ``plateau`` follows it."""

    def of(self, record: Record, sweep: Sweep) -> TrialConfig:
        """What a trial trains, where this is what all of them have in common."""
        recipe = record.recipe(sweep)
        assert isinstance(recipe, Train)
        return replace(self, schedule=sweep.schedule(record.schedule), train=recipe)

    @property
    def identity(self) -> str:
        """All that decides the numbers: not where the data lie."""
        return str(replace(self, data_dir="", engine=replace(self.engine, reason="")))

    @property
    def precision(self) -> Literal["auto", "fp32", "bf16"]:
        return self.train.precision if self.engine.precision == "auto" else self.engine.precision


@dataclass(frozen=True)
class OwnConfig:
    """Everything that one training of a user's own is told."""

    train: OwnTraining
    schedule: Schedule
    objective: Objective
    allow: tuple[str, ...] = ()
    """The packages whose functions the sweep file may name."""
    folder: Path = Path()
    """Of the trial alone."""
    log: Path = Path()
    """The file of what it prints."""

    def of(self, record: Record, sweep: Sweep) -> OwnConfig:
        """What a trial trains, where this is what all of them have in common: folders, in which it has its own."""
        recipe = record.recipe(sweep)
        assert isinstance(recipe, OwnTraining)
        folder, log = self.folder / record.slug / "files", self.log / f"{record.slug}.log"
        return replace(self, schedule=sweep.schedule(record.schedule), train=recipe, folder=folder, log=log)

    @property
    def identity(self) -> str:
        """All that decides the numbers: not where its files are."""
        return str(replace(self, folder=Path(), log=Path(), allow=()))


Config = TrialConfig | OwnConfig


class DivergedError(Exception):
    """The loss, in training or after it, became NaN or infinite; ``epoch`` is what was measured until then."""

    def __init__(self, epoch: Any) -> None:
        self.epoch = epoch
        super().__init__(epoch)

    def __str__(self) -> str:
        wrong = [f"{name} {value}" for name, value in self.epoch.metrics().items() if not math.isfinite(value)]
        return f"what was measured became {', '.join(wrong)} in epoch {self.epoch.number}"


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
    updates: int | None = None
    """In an epoch, of a training of one's own that says it or shows it."""
    used: Mapping[int, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """By epoch the learning rates that it used, and for how many updates, where they are not the schedule's."""
    remark: str | None = None
    """Where it was not what it was to be, in a sentence."""
    output: Sequence[str] = ()
    """The last lines that it printed, where it failed."""

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

    @property
    def chosen(self) -> bool:
        """Whether the search chose its schedule; else it is a baseline, that of today's file or of an earlier one."""
        return self.name != BASELINE or bool(self.params)

    @property
    def label(self) -> str:
        """What its schedule is called."""
        return label(self.name, self.schedule["type"])

    def recipe(self, sweep: Sweep) -> Train | OwnTraining:
        """How it is trained."""
        return sweep.train.model_copy(update=dict(self.train))

    @property
    def seconds(self) -> float:
        return math.fsum(e["seconds"] for e in self.epochs)


def label(name: str, kind: str) -> str:
    """What a schedule is called: by its name, and the baseline by its type too."""
    return f"{name} ({kind})" if name == BASELINE else name


def same_schedule(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two schedules' JSON, of which one may have been in a storage, says the same."""
    return json.dumps(dict(one), sort_keys=True) == json.dumps(dict(other), sort_keys=True)


def baseline_of(records: Iterable[Record], sweep: Sweep) -> Record | None:
    """The trial of the baseline that the sweep's file has now; None where there is none."""
    if sweep.baseline is None:
        return None
    wanted = sweep.baseline.to_json()
    return next((r for r in records if not r.chosen and same_schedule(r.schedule, wanted)), None)


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
