"""The sweep file: frozen models, and errors with file, line and key."""

from __future__ import annotations

import math
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    GetPydanticSchema,
    field_validator,
    model_validator,
)
from pydantic_core import core_schema

from ..schedules.plugins import find_function
from ..schedules.schedule import Schedule, load
from ..schedules.words import did_you_mean, quoted, shown
from ..schedules.zoo import ScheduleError
from . import space as spaces
from .document import Document, Frozen, SpecError, at, matching, read
from .metrics import ALWAYS, METRICS, Metric
from .optimizers import OPTIMIZERS
from .secrets import refuse_secrets
from .sources import SOURCES

FIRST_LOOK = 3
"""Fresh seeds of each before anything is compared."""
ENOUGH = 10
"""Trials for each parameter below which importance is a hint."""
STRIP = ("init_lr x0.5", "init_lr x2", "warmup x0", "warmup x2", "epochs x0.5", "epochs x2")
"""What the strip does to the winner, with as many seeds; of a warmup only where it has one."""
Function = Annotated[
    str,
    Field(max_length=200),
    matching(r"[A-Za-z_][\w.:]*", "must be the name of a function and its module, as in my_package.images"),
    AfterValidator(lambda name: name.replace(":", ".")),
]
"""The name of a user's own function: a dotted path that ``--allow-plugin`` permits."""


PLACEHOLDERS = ("schedule", "seed", "epochs", "folder", "device")
"""What an argument of a command may stand for."""
PLACEHOLDER = re.compile(r"\{\{\w+\}\}|\{(\w+)\}")
"""One of them, or ``{{seed}}``, which is the word itself."""


def one_of(names: Iterable[str]) -> GetPydanticSchema:
    """``Annotated[str, one_of(names)]``: a ``Literal`` of the rows of a table."""
    schema = core_schema.literal_schema(list(names))
    return GetPydanticSchema(lambda *_: schema)


class Augment(Frozen):
    """Random augmentation of the training images: shift by up to ``pad`` pixels, mirror."""

    pad: Annotated[int, Field(ge=0, le=64)] = 0
    flip: bool = False


class Data(Frozen):
    """Which images, how they are split, how they are augmented."""

    source: Annotated[str, one_of(SOURCES)]
    path: Annotated[str, Field(min_length=1)] | None = None
    """folder, parquet: where, relative to --data-dir."""
    function: Function | None = None
    """custom: a function without arguments that gives images (uint8, ``[N, H, W, 3]``) and labels, or two such pairs,
    for training and test."""
    size: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Resize what is in the middle to this many pixels square; needed for a folder, and where images differ."""
    val: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """The share of the training images that the search is judged on, where the data bring no validation split beside
    a test split."""
    test: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """The share held back for the confirmed winners, where the data bring no test split of their own. Of folders and
    Parquet files ``test`` beside ``train`` is one, or ``val`` where that is alone."""
    limit: Annotated[int, Field(ge=20)] | None = None
    """Use at most this many images for training, and for validation where that is a share of them; others are not
    decoded."""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    augment: Augment = Augment()

    @model_validator(mode="after")
    def _fits_its_source(self) -> Data:
        needs = SOURCES[self.source].needs
        if ("path" in needs) != (self.path is not None):
            wants = "needs a path" if self.path is None else "has no path of its own"
            having = " and ".join(name for name, source in SOURCES.items() if "path" in source.needs)
            raise at(("path",), f"source {self.source} {wants}; {having} have one")
        if ("function" in needs) != (self.function is not None):
            raise at(
                ("function",), "source custom has a function, such as my_package.images, and no other source has"
            )
        if "size" in needs and self.size is None:
            raise at(("size",), f"source {self.source} needs a size, such as 64: its images differ")
        return self


def _torchvisions(name: str) -> str:
    """A name as torchvision's models have them."""
    if not re.fullmatch("[a-z0-9_]+", name):
        bare = re.sub("[-_. ]", "", name.lower())
        hint = f"; did you mean '{bare}'?" if re.fullmatch("[a-z]+[0-9]+", bare) else ""
        raise ValueError(
            f"torchvision's names have letters (a to z), digits and underscores only, not {name!r}{hint}"
        )
    return name


class Model(Frozen):
    """A torchvision classification model, or one's own."""

    name: Annotated[str, Field(max_length=60), AfterValidator(_torchvisions)] = "resnet18"
    function: Function | None = None
    """With ``name: custom``: ``function(classes)`` gives a ``torch.nn.Module``; stem and width are its own matter."""
    stem: Literal["small", "imagenet"] = "small"
    """small: 3x3 stride 1 and no max-pool, for images of up to about 64 pixels (ResNets only)."""
    width: Annotated[int, Field(ge=8, le=1024)] = 64  # with fewer, oneDNN's AVX2 kernels (torch 2.14) corrupt memory
    """Channels of the first stage; 64 is the published network (ResNets only)."""

    @model_validator(mode="after")
    def _is_theirs_or_ones_own(self) -> Model:
        if (self.name == "custom") != (self.function is not None):
            raise at(("function",), "name custom has a function, such as my_package.network, and no other name has")
        return self


class Training(Frozen):
    """What every training has."""

    epochs: Annotated[int, Field(ge=1, le=100_000)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Initial weights, order of the data and augmentation: the same for every trial, so trials are paired."""

    def length(self, updates: int) -> str:
        """How long a training is with so many updates in an epoch, in words."""
        return f"{self.epochs} epochs of {updates} update{'s each' * (updates > 1)}"


class OwnTraining(Training):
    """A training of one's own, in place of ours: a function, or a command. It brings its own data and network."""

    name: Literal["custom"] = "custom"
    function: Function | None = None
    """``function(job)`` yields a mapping of metrics after every epoch, or calls ``job.report``."""
    command: Annotated[list[str], Field(min_length=1, max_length=200)] | None = None
    """What is started, word by word; ``{schedule}``, ``{seed}``, ``{epochs}``, ``{folder}`` and ``{device}`` are
    filled in. Needs ``--allow-command``."""
    updates_per_epoch: Annotated[int, Field(ge=1)] | None = None
    """Updates of the weights in an epoch; needed where schedules are rescaled that have a length in updates, and by a
    command that wants the learning rate of each."""

    @property
    def said(self) -> str:
        """What it is, as one would type it."""
        return self.function or shlex.join(self.command or ())

    @model_validator(mode="after")
    def _is_a_function_or_a_command(self) -> OwnTraining:
        if (self.function is None) == (self.command is None):
            wrong = "a training of one's own has a function, such as my_package.train, or a command; one of the two"
            raise at(("function",), wrong)
        for i, argument in enumerate(self.command or ()):
            for word in PLACEHOLDER.findall(argument):
                if word and word not in PLACEHOLDERS:
                    hint = did_you_mean(word, PLACEHOLDERS)
                    wrong = f"unknown placeholder {{{word}}}; {hint}; {{{{{word}}}}} is the word itself"
                    raise at(("command", i), wrong)
        return self


class Train(Training):
    """The training recipe of our own trainer, the same for every trial."""

    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 128
    optimizer: Annotated[str, one_of(OPTIMIZERS)] = "sgd"
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0.0, le=10.0)] = 5e-4
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def updates(self, images: int) -> int:
        """In an epoch of so many images: whole batches, at least one; the rest waits for the next epoch's order."""
        return max(1, images // self.batch_size)

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Train:
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise at(("momentum",), "nesterov needs a momentum above 0; set nesterov: false")
        return self


def _rung(value: Any) -> Any:
    text = isinstance(value, str | int) and not isinstance(value, bool)
    if not text or not re.fullmatch("T(/[1-9][0-9]?)?|[1-9][0-9]{0,4}", str(value)):
        raise ValueError(f"a rung is T, T/3, or a number of epochs, not {shown(value)}")
    return value


Rung = Annotated[str | int, BeforeValidator(_rung)]


class Search(Frozen):
    """How the study searches."""

    trials: Annotated[int, Field(ge=1, le=100_000)]
    """How many; with rungs, how many on the first one."""
    sampler: Literal["tpe", "random", "qmc", "grid"] = "tpe"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    window: Annotated[int, Field(ge=1, le=4096)] = 8
    """Trial n is proposed when the trials up to n - window have ended, so at most this many lanes have work."""
    balance: Literal["free", "equal"] = "free"
    """equal: every type gets the same number of trials, and the sampler chooses the rest."""
    rungs: Annotated[list[Rung], Field(min_length=2, max_length=6)] | None = None
    """Screening: complete trainings with the schedules rescaled to these lengths, such as [T/3, T]."""
    keep: Annotated[float, Field(gt=0.0, lt=1.0)] = 1 / 3
    """The share of a rung's trials that goes on to the next."""

    def kept(self, trials: int) -> int:
        """How many of a rung's trials go on to the next."""
        return max(1, round(self.keep * trials))

    @model_validator(mode="after")
    def _grids_and_rungs_have_an_order_of_their_own(self) -> Search:
        if self.sampler == "grid" and self.balance == "equal":
            raise at(("balance",), "a grid has every point once: leave balance out")
        if self.rungs and self.sampler == "grid":
            raise at(("rungs",), "rungs go with no grid: screening chooses among trials by itself")
        return self


class Confirm(Frozen):
    """What is trained again, with fresh seeds, when the search has ended."""

    top: Annotated[int, Field(ge=0, le=50)] = 3
    """The best of all; 0, with ``types: false``, confirms nothing."""
    types: bool = True
    """The best of every schedule, too."""
    seeds: Annotated[int, Field(ge=2, le=1000)] = 5
    """At most this many for each; one that is clearly worse than another gets no more."""
    strip: bool = False
    """The winner at half and twice its init_lr and its budget, without its warmup and with twice of it."""
    keep: bool = False
    """What the winner's best seed has learnt stays with the results: its weights, or the folder of one's own code."""

    @classmethod
    def _meant(cls, value: Any) -> str:
        return "; {top: 0, types: false} confirms nothing" if value is False else super()._meant(value)

    @property
    def strip_seeds(self) -> int:
        """With how many seeds the strip is trained."""
        return min(FIRST_LOOK, self.seeds) if self.strip else 0


class Objective(Frozen):
    """What a trial is judged by."""

    metric: Annotated[str, Field(min_length=1, max_length=100)] = "val/accuracy"
    """One of those that our own trainer measures on the validation split: ``METRICS``; a training of one's own yields
    what it likes."""
    # Nobody who holds an Objective meets the None of these two: the check below puts the right value in its place.
    direction: Literal["maximize", "minimize"] = None  # type: ignore[assignment]
    """Needed for a metric of one's own; of the others it is known."""
    unit: Annotated[str, Field(max_length=20)] = None  # type: ignore[assignment]
    """points: a share, of which 0.01 is one point, as an accuracy is; else what stands behind a number, as in mm."""
    epoch: Literal["last", "best"] = "last"
    """best: of all epochs; the test accuracy of a confirmed winner is the last one's all the same."""

    @property
    def known(self) -> Metric | None:
        """The metric, where it is one that our own trainer measures."""
        return METRICS.get(self.metric.removeprefix("val/")) if self.metric.startswith("val/") else None

    @property
    def measured(self) -> dict[str, Metric]:
        """What our own trainer measures, by name: the loss, the accuracy, and this metric."""
        return {name: row for name, row in METRICS.items() if name in ALWAYS or f"val/{name}" == self.metric}

    @model_validator(mode="after")
    def _has_a_direction(self) -> Objective:
        known = self.known
        if known is not None and self.direction not in (None, known.direction):
            raise at(("direction",), f"is {known.direction} for {self.metric}: leave it out")
        unit = self.unit if self.unit is not None else "points" if known and known.points else ""
        for name, value in (("unit", unit), ("direction", known.direction if known else self.direction)):
            object.__setattr__(self, name, value)  # it is frozen for everybody else
        return self

    @property
    def points(self) -> bool:
        """Whether a value is a share, and a difference is said in points."""
        return self.unit == "points"

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1."""
        return 1 if self.direction == "maximize" else -1


ACCURACY = Objective()
"""What a trial is judged by where nothing else is said."""


class Sweep(Frozen):
    """A sweep file: the science. Where it is recorded stands in mlflow.yaml."""

    model_config = ConfigDict(ignored_types=(cached_property,))

    name: str
    question: Annotated[str, Field(min_length=1)]
    data: Data | None = None
    """Needed, but for a training of one's own."""
    model: Model = Model()
    train: Train | OwnTraining
    space: dict[str, Any]
    search: Search
    confirm: Confirm = Confirm()
    objective: Objective = Objective()
    _allow: tuple[str, ...] = ()
    _allow_command: bool = False

    @property
    def allow(self) -> tuple[str, ...]:
        """The packages whose functions this file may name, as its reader was told."""
        return self._allow

    @property
    def allow_option(self) -> str:
        """What a command needs to permit the same code, with a leading space; empty without any."""
        plugins = "".join(f" --allow-plugin {shlex.quote(prefix)}" for prefix in self._allow)
        return plugins + " --allow-command" * self._allow_command

    def schedule(self, mapping: Mapping[str, Any]) -> Schedule:
        """A schedule from its JSON, which may name a function of those packages."""
        return load(mapping, allow=self._allow)

    @field_validator("name")
    @classmethod
    def _can_be_a_file(cls, value: str) -> str:
        if wrong := spaces.name_fault(value):
            raise ValueError(wrong)
        if value.rstrip(".").lower() in ("con", "prn", "aux", "nul") or value.endswith("."):
            raise ValueError(f"{value} is a reserved name of Windows, or ends with a dot: call it otherwise")
        return value

    @field_validator("train", mode="before")
    @classmethod
    def _our_recipe_or_ones_own(cls, value: Any) -> Any:
        if isinstance(value, Training):
            return value
        own = isinstance(value, Mapping) and not value.keys().isdisjoint(("name", "function", "command"))
        return (OwnTraining if own else Train).model_validate(value)

    @model_validator(mode="after")
    def _has_data_or_brings_them(self) -> Sweep:
        if self.own is None and self.data is None:
            raise at(("data",), "is missing")
        for section in ("data", "model") if self.own is not None else ():
            if section in self.model_fields_set:
                raise at((section,), f"a training of one's own brings its {section}: leave this section out")
        return self

    @property
    def own(self) -> OwnTraining | None:
        """The training of one's own, where that is what is trained."""
        return self.train if isinstance(self.train, OwnTraining) else None

    @property
    def ours(self) -> tuple[Data, Model, Train]:
        """Data, network and recipe of our own trainer; not for a training of one's own."""
        assert self.data is not None
        assert isinstance(self.train, Train)
        return self.data, self.model, self.train

    @model_validator(mode="after")
    def _judges_by_what_is_measured(self) -> Sweep:
        if self.own is not None:
            if self.objective.direction is None:
                raise at(("objective", "direction"), f"is needed for {self.objective.metric}: maximize, or minimize")
            rescaled = self.confirm.strip or self.search.rungs
            if rescaled and self.own.updates_per_epoch is None and spaces.has_key(self.space, "updates"):
                wrong = "is needed: schedules are rescaled here, and one of their lengths is in updates"
                raise at(("train", "updates_per_epoch"), wrong)
        elif self.objective.known is None:
            known = [f"val/{name}" for name in METRICS]
            metric = self.objective.metric
            raise at(
                ("objective", "metric"), f"unknown value {quoted(metric)}; {did_you_mean(metric, known, 'metric')}"
            )
        return self

    @cached_property
    def schedules(self) -> spaces.Space:
        """The search space with its leaves open."""
        return spaces.parse(self.space)

    @cached_property
    def baseline(self) -> Schedule | None:
        """The schedule of today, to compare with; None where the file has none."""
        said = self.schedules.baseline
        return None if said is None else self.schedule(said)

    @property
    def rungs(self) -> list[int]:
        """The lengths of the rungs in epochs; raises SpecError where they do not rise to ``train.epochs``."""
        T = self.train.epochs
        rungs = self.search.rungs or ["T"]
        lengths = [max(1, T // int(str(r)[2:] or 1)) if str(r).startswith("T") else int(r) for r in rungs]
        if lengths[-1] != T or any(a >= b for a, b in pairwise(lengths)):
            wrong = f"{shown(rungs)} are {lengths} epochs; they must rise to train.epochs, {T}"
            raise SpecError(wrong, key=("search", "rungs"))
        return lengths

    @property
    def warnings(self) -> list[str]:
        """What it asks for and will not get, in sentences."""
        names, trials = len(self.schedules.schedules), self.search.trials
        if self.search.balance == "free" or trials >= names:
            return []
        left = f"{names - trials} of them {'is' if names - trials == 1 else 'are'} never trained"
        return [f"search.trials: {trials} are fewer than the {names} schedules: {left}"]

    @property
    def arms(self) -> int:
        """How many trials are confirmed at most: the best of all has its place among the best of every schedule, and
        the baseline one of its own."""
        names, top = len(self.schedules.schedules), self.confirm.top
        arms = min(names + max(0, top - 1) if self.confirm.types else top, self.search.trials)
        return arms + self._extra * (arms > 0)

    @property
    def _extra(self) -> int:
        """How many trainings of the search are none of its trials."""
        return int(self.schedules.baseline is not None)

    @property
    def checks_repeatability(self) -> bool:
        """Whether one seed is trained twice before the confirmation: for a training of one's own, which may not be
        repeatable."""
        return self.own is not None

    @property
    def replicates(self) -> int:
        """How many trainings with fresh seeds follow the search at most."""
        more = len(STRIP) * self.confirm.strip_seeds + self.checks_repeatability
        return self.arms * self.confirm.seeds + more * (self.arms > 0)

    @property
    def most_lanes(self) -> int:
        """No more lanes than this ever have work at once."""
        return min(self.search.window + self._extra, max(self.search.trials + self._extra, self.replicates))

    @property
    def size(self) -> str:
        """How many trainings it is, in words."""
        trials, rungs = self.search.trials, " on the first rung" if self.search.rungs else ""
        again = f", then at most {self.replicates} with fresh seeds" if self.replicates else ""
        baseline = " and the baseline" * self._extra
        return f"{trials} training{'s' * (trials > 1)}{rungs}{baseline}{again}"

    @property
    def stages(self) -> list[tuple[int, int]]:
        """Its search's rungs, one where nothing is said of them: how many trials at most, of how many epochs. The
        baseline is on the last."""
        trials, stages = self.search.trials, list[tuple[int, int]]()
        for epochs in self.rungs:
            stages.append((trials, epochs))
            trials = self.search.kept(trials)
        stages[-1] = (stages[-1][0] + self._extra, stages[-1][1])
        return stages

    @property
    def search_epochs(self) -> int:
        """How many epochs its search trains at most, rungs and all."""
        return sum(trials * epochs for trials, epochs in self.stages)

    @property
    def fresh_epochs(self) -> int:
        """How many epochs are trained with fresh seeds at most."""
        strips, T = self.confirm.strip_seeds * (self.arms > 0), self.train.epochs
        return self.replicates * T + strips * math.ceil(T / 2)  # of its two other lengths one is T more, one T/2 less

    @property
    def all_epochs(self) -> int:
        """How many epochs are trained at most, those with fresh seeds too."""
        return self.search_epochs + self.fresh_epochs

    def science(self) -> dict[str, Any]:
        """What makes two sweeps the same study: all but the question, the number of trials, the baseline, and what
        follows them."""
        others: Any = {"data": True, "model": True} if self.own is not None else {}
        beside: Any = {"search": {"trials"}, "space": {spaces.BASELINE}}
        return self.model_dump(mode="json", exclude={"question": True, "confirm": True} | beside | others)


def load_sweep(path: Path | str, allow: Sequence[str] = (), allow_command: bool = False) -> tuple[Sweep, Document]:
    """Read a sweep file, which may name functions of the packages in ``allow``, and a command if it may, and check
    every corner of its space; raises SpecError for the first thing that is wrong, with file, line and key."""
    document = read(path)
    refuse_secrets(document, "this file is kept with the sweep's runs")
    stem = document.path.stem
    if "name" not in document.data and (fault := spaces.name_fault(stem)):
        wrong = f"a sweep is called as its file is, and may not be called {stem!r}: {fault}"
        raise SpecError(f"{wrong}; write its name: into the file, or rename that", path=document.path)
    document.data.setdefault("name", stem)
    sweep = document.parse(Sweep)
    sweep._allow, sweep._allow_command = tuple(allow), allow_command
    if sweep.own is not None and sweep.own.command is not None:
        _check_command(sweep.own.command, allow_command, document)
    for section in ("data", "model", "train"):
        if function := getattr(getattr(sweep, section), "function", None):
            try:
                find_function(function, allow)
            except ScheduleError as error:
                raise document.error((section, "function"), error.message) from None
    trials = sweep.search.trials
    try:
        sweep.schedules.check(allow)
        points = sweep.schedules.grid() if sweep.search.sampler == "grid" else trials
    except ScheduleError as error:
        raise document.error(("space", *error.key), error.message) from None
    with document.locating():
        _ = sweep.rungs
    if trials > points:
        raise document.error(("search", "trials"), f"the grid has {points} points; ask for {points} trials or fewer")
    return sweep, document


def _check_command(command: Sequence[str], allowed: bool, document: Document) -> None:
    """Raise SpecError where a command may not be started, or cannot be."""
    key = ("train", "command")
    if not allowed:
        wrong = f"a sweep file starts no command ({shlex.join(command):.200}) unless you permit it: --allow-command"
        raise document.error(key, wrong)
    if shutil.which(command[0]) is None:
        raise document.error((*key, 0), f"there is no command {quoted(command[0])}, or it may not be run")
