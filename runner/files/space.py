"""The search space: a schedule with open leaves for every name, sampled, enumerated, and checked at its corners.

An open leaf is a mapping of one of four words to its range: ``{uniform: [0, 0.3]}``, ``{log_uniform: [0.01, 1]}``,
``{int: [1, 4]}``, ``{choice: [linear, 1-sqrt]}``. One that stands beside ``schedules`` is shared: every type that has
such a parameter searches it under one name (one shared ``init_lr`` halves the regret of one for each type). A leaf
inside a schedule has the schedule's name in front.

Beside them may stand the ``baseline``, a whole schedule with nothing open, to compare all others with.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..schedules.schedule import Schedule, load, refuse_others, summary
from ..schedules.words import (
    PARAMETERS,
    SWEEP_KEYS,
    advice,
    as_range,
    did_you_mean,
    quoted,
    schedule_type,
    shown,
    where,
)
from ..schedules.zoo import GAMMA, TYPES, UNITS, ScheduleError
from .document import SECTIONS, first_line

LONGEST = 100
"""How long a sweep's or a schedule's name may be: it becomes part of files' names, tags and columns."""

KINDS = ("uniform", "log_uniform", "int", "choice")
SHARED = ("init_lr", "warmup", "gamma", "floor", "clock", "interval")
BASELINE = "baseline"
"""What the schedule of today is called, as a key and as a schedule."""
OWN_WARMUP = ("one_cycle", "triangular", "cyclic", "piecewise")  # they rise by themselves
MAX_CORNERS = 5_000
TRIED = 8
"""Updates of the training for which one's own function is tried: few, should it count in updates."""
LIMIT = 1e100


class Suggester(Protocol):
    """The part of ``optuna.Trial`` that a search space needs."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = ...) -> float: ...
    def suggest_int(self, name: str, low: int, high: int) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Leaf:
    """One open value: its name in the study, its kind, and its range or options."""

    name: str
    kind: str
    values: tuple[Any, ...]

    def suggest(self, trial: Suggester) -> Any:
        if self.kind == "choice":
            return self.decode(trial.suggest_categorical(self.name, self.encoded()))
        low, high = self.values
        if self.kind == "int":
            return trial.suggest_int(self.name, low, high)
        return trial.suggest_float(self.name, low, high, log=self.kind == "log_uniform")

    def at(self, u: float) -> Any:
        """The value at ``u`` in [0, 1) of the range, as the study stores it."""
        if self.kind == "choice":
            return self.encoded()[min(int(u * len(self.values)), len(self.values) - 1)]
        low, high = self.values
        if self.kind == "int":
            return min(low + int(u * (high - low + 1)), high)
        if self.kind == "log_uniform":
            return min(max(math.exp(math.log(low) + u * (math.log(high) - math.log(low))), low), high)
        return min(max(low + u * (high - low), low), high)

    def encoded(self) -> list[Any]:
        """The options as a study can hold them: lists and mappings as their JSON."""
        return [json.dumps(v) if isinstance(v, (list, dict)) else v for v in self.values]

    def decode(self, stored: Any) -> Any:
        return self.values[self.encoded().index(stored)] if self.kind == "choice" else stored

    @property
    def finite(self) -> bool:
        """Whether it has an end of values: a choice, a whole number, or a range from a number to itself."""
        return self.kind in ("choice", "int") or self.values[0] == self.values[1]

    def count(self) -> int:
        """How many values a leaf with an end of them has."""
        return len(set(self.encoded())) if self.kind == "choice" else int(self.values[1] - self.values[0]) + 1

    def all(self) -> Sequence[Any]:
        """The values of a leaf with an end of them, as the study stores them."""
        if self.kind == "choice":
            return list(dict.fromkeys(self.encoded()))
        low, high = self.values
        return range(low, high + 1) if self.kind == "int" else [float(low)]

    def ends(self) -> tuple[Any, ...]:
        return self.values if self.kind == "choice" else tuple(dict.fromkeys(self.values))


@dataclass(frozen=True)
class Space:
    """What the study searches: for every name a schedule's mapping, some of whose values are ``Leaf``."""

    schedules: Mapping[str, Mapping[str, Any]]
    baseline: Mapping[str, Any] | None = None
    """A schedule's JSON, which is no part of what is searched."""

    def leaves(self, name: str) -> list[Leaf]:
        """The open values of schedule ``name``, in the order in which they are suggested."""
        found: list[Leaf] = []
        _fill(self.schedules[name], found.append)
        return found

    def sample(self, trial: Suggester) -> tuple[str, dict[str, Any]]:
        """A name and a closed schedule mapping, suggested by ``trial``."""
        name = trial.suggest_categorical("type", list(self.schedules))
        return name, _fill(self.schedules[name], lambda leaf: leaf.suggest(trial))

    def closed(self, name: str, u: Callable[[Leaf], float]) -> dict[str, Any]:
        """The mapping of ``name`` with every leaf at ``u(leaf)`` in [0, 1) of its range."""
        return _fill(self.schedules[name], lambda leaf: leaf.decode(leaf.at(u(leaf))))  # type: ignore[no-any-return]

    def grid(self) -> int:
        """The number of points of the grid; raises ScheduleError where a leaf has infinitely many values."""
        for name in self.schedules:
            for leaf in self.leaves(name):
                if leaf.kind in ("uniform", "log_uniform"):
                    key = ["schedules", *leaf.name.split(".")] if "." in leaf.name else [leaf.name]
                    raise ScheduleError(key, f"{leaf.kind} has no end of values: a grid needs choice or int")
        return sum(math.prod(leaf.count() for leaf in self.leaves(name)) for name in self.schedules)

    def count(self, name: str) -> float:
        """How many points schedule ``name`` has: 1 where nothing is open, infinity where a range has no end."""
        return math.prod(leaf.count() if leaf.finite else math.inf for leaf in self.leaves(name))

    @property
    def size(self) -> float:
        """How many points there are, of all schedules."""
        return sum(map(self.count, self.schedules))

    def grid_points(self) -> Iterator[dict[str, Any]]:
        """The parameters of every point of the grid: schedule after schedule, the last leaf fastest."""
        for name in self.schedules:
            yield from self.points(name)

    def points(self, name: str) -> Iterator[dict[str, Any]]:
        """The parameters of every point of a schedule that has an end of them, the last leaf fastest."""
        leaves = self.leaves(name)
        for values in itertools.product(*(leaf.all() for leaf in leaves)):
            yield {"type": name} | {leaf.name: v for leaf, v in zip(leaves, values, strict=True)}

    def point(self, u: Sequence[float]) -> dict[str, Any]:
        """The parameters at ``u`` in the unit cube: first the type, then the leaves of that type."""
        name = Leaf("type", "choice", tuple(self.schedules)).at(u[0])
        axis = {leaf: i + 1 for i, leaf in enumerate(self.axes())}
        return {"type": name} | {leaf.name: leaf.at(u[axis[leaf.name]]) for leaf in self.leaves(name)}

    def axes(self) -> list[str]:
        """The names of all leaves, shared ones once."""
        return list(dict.fromkeys(leaf.name for name in self.schedules for leaf in self.leaves(name)))

    def corners(self, name: str) -> Iterator[dict[str, Any]]:
        """The schedule mapping at every corner of its ranges and every option of its choices."""
        leaves = self.leaves(name)
        for values in itertools.product(*(leaf.ends() for leaf in leaves)):
            iterator = iter(values)
            yield _fill(self.schedules[name], lambda _, it=iterator: next(it))  # type: ignore[misc]

    def custom_lrs(self, allow: Sequence[str] = ()) -> dict[str, list[float]]:
        """What one's own functions give in the middle of their ranges, by the schedule's name."""
        middle = {name: self._inside(name, allow) for name in self.schedules}
        if self.baseline is not None:  # another baseline is no change of this one
            said = json.dumps(self.baseline, sort_keys=True)
            middle[f"{BASELINE} {zlib.crc32(said.encode()):08x}"] = load(self.baseline, allow=allow)
        return {name: schedule.lrs(TRIED) for name, schedule in middle.items() if schedule.type == "custom"}

    def _inside(self, name: str, allow: Sequence[str]) -> Schedule:
        """The schedule of ``name`` in the middle of its ranges, where a number is not whole: 1.76."""
        return load(self.closed(name, lambda _: 0.381966), allow=allow)

    def check(self, allow: Sequence[str] = ()) -> dict[str, list[Schedule]]:
        """Build the schedule at every corner, and the baseline, and call one's own function there for a training of
        TRIED updates; raises ScheduleError at a corner that cannot be, its key starting with ``schedules`` and the
        name."""
        built: dict[str, list[Schedule]] = {}
        count = sum(math.prod(len(leaf.ends()) for leaf in self.leaves(name)) for name in self.schedules)
        if count > MAX_CORNERS:
            raise ScheduleError(["schedules"], f"has {count} corners; more than {MAX_CORNERS} cannot be checked")
        for name in self.schedules:
            try:
                built[name] = [load(corner, allow=allow) for corner in self.corners(name)]
                for schedule in [*built[name], self._inside(name, allow)]:
                    _try(schedule)
            except ScheduleError as error:
                raise ScheduleError(["schedules", name, *error.key], error.message) from None
        if self.baseline is not None:
            try:
                built[BASELINE] = [load(self.baseline, allow=allow)]
                _try(built[BASELINE][0])
            except ScheduleError as error:
                raise ScheduleError([BASELINE, *error.key], error.message) from None
        return built


def _try(schedule: Schedule) -> None:
    """Call one's own function as a short training would."""
    try:
        if schedule.type == "custom":
            schedule.lrs(TRIED)
    except ScheduleError:
        raise
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{schedule.params['function']} raised {type(error).__name__}: {first_line(error)}"
        raise ScheduleError(["function"], f"{message} ({Path(at.filename).name}, line {at.lineno})") from error


def problems(schedules: Mapping[str, Sequence[Schedule]], T: int, epochs: int) -> list[str]:
    """What schedules (by name) cannot do in ``T`` updates: one sentence for each name and problem."""
    found: dict[str, str] = {}
    for name, corners in schedules.items():
        for schedule in corners[:: max(1, len(corners) // 64)]:
            for problem in schedule.problems(T, epochs=epochs):
                kind = " ".join(problem.split()[:2])
                found.setdefault(f"{name} {kind}", _sentence(name, problem, schedule))
    return list(found.values())


def _sentence(name: str, problem: str, schedule: Schedule) -> str:
    warmup = f"warmup {shown(schedule.warmup.length.to_json())}" if schedule.warmup.length.value else ""
    parameters = ", ".join(filter(None, [warmup, summary(schedule.to_json())]))
    return f"{name} {problem}" + (f" (with {parameters})" if parameters else "")


def parse(section: Mapping[str, Any]) -> Space:
    """The ``space`` section of a sweep file; raises ScheduleError, whose key is the path inside the section."""
    for key, value in section.items():
        if key not in ("schedules", BASELINE, *SHARED):
            raise ScheduleError([key], f"unknown key; {_elsewhere(key, value)}")
    schedules = section.get("schedules")
    if not isinstance(schedules, Mapping) or not schedules:
        listed = schedules if isinstance(schedules, list) else [schedules] if isinstance(schedules, str) else []
        named = ", ".join(f"{name}: {{}}" for name in listed if name in TYPES) or "cosine: {}"
        raise ScheduleError(["schedules"], f"should be a mapping of names to schedules, such as {{{named}}}")
    baseline = _whole(section[BASELINE], schedules) if BASELINE in section else None
    shared = {k: _open(v, [k], k) for k, v in section.items() if k in SHARED}
    for key, value in shared.items():  # here, so that a mistake is named where it stands
        for end in value.ends() if isinstance(value, Leaf) else (_fill(value, lambda leaf: leaf.ends()[0]),):
            load({"type": "step" if key == "gamma" else "linear", key: end})
    result = {}
    for name, own in schedules.items():
        at, own = ["schedules", name], {} if own is None else own
        if wrong := name_fault(name):
            raise ScheduleError(at, wrong)
        if not isinstance(own, Mapping):
            hint = f"; under a name, as in {{{shown(own)}: {{}}}}" if name == "type" else "; {} takes the defaults"
            raise ScheduleError(at, f"should be a mapping of parameters, not {shown(own)}{hint}")
        kind = own.get("type", name)
        if not isinstance(kind, str) or (kind != "custom" and kind not in TYPES):
            hint = schedule_type(kind, [*TYPES, "custom"])
            hint = "a function of one's own has type: custom" if "function" in own else hint
            if "type" not in own and hint.startswith("known: "):
                hint = f"a name of one's own has a type beside it, as in {{type: cosine}}; {hint}"
            raise ScheduleError([*at, "type"], f"unknown type {quoted(kind)}; {hint}")
        try:
            refuse_others(kind, {key: value for key, value in own.items() if key != "type"})
        except ScheduleError as error:
            raise ScheduleError([*at, *error.key], error.message) from None
        opened = {k: _open(v, [*at, k], f"{name}.{k}") for k, v in own.items()}
        result[name] = {"type": kind} | {k: v for k, v in shared.items() if _has(kind, k)} | opened
    space, names = Space(result, baseline), dict[str, Leaf]()
    for name in result:
        for leaf in space.leaves(name):
            if names.setdefault(leaf.name, leaf) != leaf:
                wrong = f"{leaf.name} means another range elsewhere: rename this one"
                raise ScheduleError(["schedules", name], wrong)
    return space


def _whole(value: Any, schedules: Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON of the baseline, which is all there is to know of it: nothing of it is open, or shared."""
    if not isinstance(value, Mapping):
        kind = value if isinstance(value, str) and value in TYPES else "multistep"
        such = f"{{type: {kind}, init_lr: 0.1}}"
        raise ScheduleError([BASELINE], f"should be one whole schedule, such as {such}, not {shown(value)}")
    if BASELINE in schedules:
        raise ScheduleError(["schedules", BASELINE], f"is what space.{BASELINE} is called: rename this one")
    _refuse_ranges(value, [BASELINE])
    return value


def _refuse_ranges(value: Any, key: list[str | int]) -> None:
    """Raise ScheduleError for the first range in the baseline, ours or another tool's."""
    if isinstance(value, list):
        for i, inner in enumerate(value):
            _refuse_ranges(inner, [*key, i])
    if not isinstance(value, Mapping):
        return
    ours = next((kind for kind in KINDS if kind in value and len(value) == 1), None)
    if ours or ("params" not in key and len(key) > 1 and as_range(value)):
        one = "is one schedule, and nothing of it is searched: write one value"
        raise ScheduleError([*key, *([ours] if ours else [])], f"the {BASELINE} {one}, not {shown(value)}")
    for name, inner in value.items():
        _refuse_ranges(inner, [*key, name])


def _has(kind: str, key: str) -> bool:
    """Whether a shared value means something to a type: gamma is the factor of a drop, and nothing else here."""
    if key == "gamma":
        return kind != "custom" and TYPES[kind].params.get("gamma") is GAMMA
    return key != "warmup" or kind not in OWN_WARMUP


def _open(value: Any, key: list[str | int], name: str) -> Any:
    """``value`` with a Leaf in place of every open leaf."""
    if isinstance(value, list):
        return [_open(v, [*key, i], f"{name}.{i}") for i, v in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    if len(value) != 1 or (kind := next(iter(value))) not in KINDS:
        _refuse_ranges_of_other_tools(value, key)
        return {k: _open(v, [*key, k], f"{name}.{k}") for k, v in value.items()}
    values, key = value[kind], [*key, kind]
    if not isinstance(values, list) or not values:
        such = as_range({kind: values}) or f"{{{kind}: {'[a, b]' if kind == 'choice' else '[low, high]'}}}"
        raise ScheduleError(key, f"needs a list, such as {such}")
    if kind == "choice":
        if any(isinstance(v, (int, float)) and abs(v) > LIMIT for v in values):
            raise ScheduleError(key, f"has a number beyond {LIMIT:g}")
        for one, other in itertools.combinations(values, 2):
            if one == other and isinstance(one, bool) == isinstance(other, bool):
                twice = shown(one) if repr(one) == repr(other) else f"{shown(one)} and {shown(other)}"
                raise ScheduleError(key, f"has the same option twice: {twice}")
        return Leaf(name, kind, tuple(values))
    numbers = int if kind == "int" else (int, float)
    if len(values) != 2 or any(isinstance(v, bool) or not isinstance(v, numbers) for v in values):
        wanted = "two whole numbers" if kind == "int" else "two numbers"
        raise ScheduleError(key, f"needs {wanted}, [low, high], not {shown(values)}")
    low, high = values
    if max(abs(low), abs(high)) > LIMIT:
        raise ScheduleError(key, f"ends beyond {LIMIT:g}")
    if low > high:
        raise ScheduleError(key, f"the lower end {low!r} is above the upper end {high!r}: write [{high!r}, {low!r}]")
    if kind == "log_uniform" and low <= 0:
        raise ScheduleError(key, f"a logarithmic range starts above 0, not at {low!r}")
    return Leaf(name, kind, (low, high))


def _refuse_ranges_of_other_tools(value: Mapping[str, Any], key: list[str | int]) -> None:
    """Raise ScheduleError where a mapping is a range as W&B, Optuna, Ray or Hydra write one, with ours."""
    if "params" in key:  # of one's own function, which may have such names
        return
    meant = as_range(value)
    if kind := next((kind for kind in KINDS if kind in value), None):
        raise ScheduleError([*key, kind], f"a range stands alone: {meant or '{uniform: [low, high]}'}")
    if len(value) == 1 and (word := next(iter(value))) not in UNITS and isinstance(value[word], list):
        hint = f"did you mean {meant}?" if meant else f"known: {', '.join(KINDS)}"
        near = did_you_mean(word, KINDS).removesuffix("?")
        hint = f"{near}, as in {meant}?" if meant and near.startswith("did") else hint
        if meant or all(isinstance(v, (int, float)) for v in value[word]):
            raise ScheduleError([*key, word], f"is no kind of range; {hint}")
    if meant:
        raise ScheduleError(key, f"must be a number or a range, not {shown(value)}; did you mean {meant}?")


def _elsewhere(key: str, value: Any) -> str:
    """What an unknown key beside ``schedules`` means."""
    if said := advice(PARAMETERS, key, value):
        return said
    if key in SECTIONS:
        return "it is a section of its own, beside space, and not in it"
    said = where(SWEEP_KEYS, key, value, ["schedules", BASELINE, *SHARED])
    if said == "here it is space":
        return "leave it out: its keys stand in space itself"
    fixed = said.startswith(("here it is train.", "here it is data.", "here it is model."))
    return f"{said}, which is fixed for all trials: write one value there" if fixed else said


def name_fault(name: str) -> str:
    """What is wrong with the name of a sweep or a schedule; empty where nothing is."""
    if foreign := next((c for c in name if not re.fullmatch("[A-Za-z0-9._-]", c)), ""):
        return f"a name has letters (a to z), digits, dots, dashes and underscores only, not {quoted(foreign)}"
    if len(name) > LONGEST:
        return f"a name has at most {LONGEST} characters, not {len(name)}"
    return f"a name begins with a letter or a digit, not {quoted(name[:1])}" if name[:1] in "._-" else ""


def has_key(value: Any, name: str) -> bool:
    """Whether a mapping, or one inside it, has this key."""
    if isinstance(value, Mapping):
        return name in value or any(has_key(inner, name) for inner in value.values())
    return isinstance(value, list) and any(has_key(inner, name) for inner in value)


def _fill(value: Any, leaf: Callable[[Leaf], Any]) -> Any:
    """``value`` with every Leaf replaced by ``leaf(it)``."""
    if isinstance(value, Leaf):
        return leaf(value)
    if isinstance(value, Mapping):
        return {k: _fill(v, leaf) for k, v in value.items()}
    return [_fill(v, leaf) for v in value] if isinstance(value, list) else value
