"""Learning-rate schedules: pure functions of progress, and frozen data that names them.

>>> schedule = load({"type": "cosine", "init_lr": 0.4, "warmup": 0.1})
>>> [round(schedule.lr(t, 20), 4) for t in (0, 1, 2, 11, 19)]
[0.2, 0.4, 0.4, 0.2, 0.003]
>>> load(schedule.to_json()) == schedule
True

``t`` is the 0-based index of an update and ``T`` the number of updates; the learning rate of update ``t`` is
``init_lr * factor(t, T)``. A length (of the warmup, of a step, of a cooldown) is a fraction of training, ``0.1``,
or a number of epochs, ``{"epochs": 5}``, or of updates, ``{"updates": 500}``. Without ``epochs=`` an update
counts as one epoch, which is the classic use: ``schedule.factor(epoch, epochs)``. The clock of the decay starts after
the warmup (``clock: prefix``) or with training (``clock: absolute``).
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import pickle
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from . import words
from .plugins import find_function
from .words import advice, did_you_mean, quoted, schedule_type, shown
from .zoo import LONG, TYPES, UNITS, WARMUPS, Function, Length, Param, ScheduleError, choice, length

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

NOTHING = Length(0.0)


@dataclass(frozen=True)
class Warmup:
    """The prefix of every schedule: how long, in which form, from which factor."""

    length: Length = NOTHING
    form: str = "linear"
    start: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {self.length.unit: self.length.value, "form": self.form, "start": self.start}


class Params(dict[str, Any]):
    """The parameters of one schedule: a dict that cannot change, so that a schedule is a value."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a schedule cannot change: load another one")

    __setitem__ = __delitem__ = __ior__ = update = pop = popitem = clear = setdefault = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self)))

    def __reduce__(self) -> tuple[type[Params], tuple[dict[str, Any]]]:
        return Params, (dict(self),)


@dataclass(frozen=True)
class Schedule:
    """One learning-rate schedule; build it with ``load``. ``lr(t, T) = init_lr * factor(t, T)``."""

    type: str
    init_lr: float = 0.1
    warmup: Warmup = Warmup()
    clock: str = "prefix"
    interval: str = "update"
    floor: float = 0.0
    params: Params = field(default_factory=Params)
    function: Function | None = field(default=None, repr=False, compare=False)

    SHARED: ClassVar[dict[str, Param]] = {
        "init_lr": Param(0.1, low=1e-12, high=100.0),
        "clock": choice("prefix", "absolute"),
        "interval": choice("update", "epoch"),
        "floor": Param(0.0, low=0.0, high=1.0),
    }

    def factor(self, t: int, T: int, *, epochs: int | None = None, history: Sequence[float] = ()) -> float:
        """The multiplier of ``init_lr`` at update ``t`` of ``T``; past the end it stays where it ended.

        Args:
            t: 0-based index of the update.
            T: number of updates, at least 1.
            epochs: number of epochs these updates make up; ``T`` (one update each) by default.
            history: the validation metric of the finished epochs, higher is better; only plateau looks at it.

        Raises ValueError where ``t < 0``, ``T < 1`` or ``epochs < 1``.
        """
        moment = self.moment(t, T, epochs)
        if moment.t < moment.w:
            warm = WARMUPS[self.warmup.form][0](moment.t, moment.w, self.warmup.start)
            return float(warm * self.decay(0, moment))
        skipped = moment.w if self.clock == "prefix" else 0
        seen = history[math.ceil(skipped * moment.epochs / moment.total) : moment.epoch]
        return self.decay(moment.t - skipped, moment, seen)

    def lr(self, t: int, T: int, *, epochs: int | None = None, history: Sequence[float] = ()) -> float:
        """The learning rate of update ``t``; arguments and errors as in ``factor``."""
        return self.init_lr * self.factor(t, T, epochs=epochs, history=history)

    def lrs(self, T: int, *, epochs: int | None = None, history: Sequence[float] = ()) -> list[float]:
        """The learning rates of all ``T`` updates."""
        return [self.lr(t, T, epochs=epochs, history=history) for t in range(T)]

    def moment(self, t: int, T: int, epochs: int | None = None) -> Moment:
        """Where update ``t`` stands on this schedule's own clock (see ``Moment``)."""
        epochs = T if epochs is None else epochs
        if t < 0 or T < 1 or epochs < 1:
            raise ValueError(f"t must be >= 0, T and epochs >= 1; got t={t}, T={T}, epochs={epochs}")
        epoch = min(t * epochs // T, epochs)
        if self.interval == "epoch":  # the same schedule, with an epoch for an update
            t, total, per_epoch, per_update = epoch, epochs, 1.0, epochs / T
        else:
            total, per_epoch, per_update = T, T / epochs, 1.0
        units = {"fraction": float(total), "epochs": per_epoch, "updates": per_update}
        w = min(math.floor(self.warmup.length.value * units[self.warmup.length.unit] + 0.5), total)
        D = max(total - w, 1) if self.clock == "prefix" else total
        return Moment(min(t, total), total, w, D, units | {"fraction": float(D)}, epoch, epochs)

    def arguments(self, moment: Moment) -> dict[str, Any]:
        """The keyword arguments of this type's function: the parameters with every length in updates."""

        def plain(value: Any) -> Any:
            if isinstance(value, Length):
                return value.value * moment.units[value.unit]
            return tuple(map(plain, value)) if isinstance(value, tuple) else value

        if self.type == "custom":
            return dict(self.params["params"])
        context = {"epoch": moment.units["epochs"], "warmup": moment.w, "floor": self.floor}
        context = {name: value for name, value in context.items() if name in TYPES[self.type].context}
        return {name: plain(value) for name, value in self.params.items()} | context

    def decay(self, tau: int, moment: Moment, history: Sequence[float] = ()) -> float:
        """The factor at ``tau`` updates on the decay's clock, floor included."""
        D, arguments = moment.D, self.arguments(moment)
        if self.type == "custom":
            if self.function is None:
                raise ScheduleError(["function"], "is not loaded: build the schedule with load()")
            given = self.function(tau, D, **arguments)
            try:
                value = float(given)
            except (TypeError, ValueError, OverflowError):
                value = math.nan
            if not 0 <= value <= 1e9:  # NaN is neither
                wrong = f"{self.params['function']} returned {given!r:.40} at t={tau}, T={D}"
                raise ScheduleError(["function"], f"{wrong}; a factor is from 0 to 1e9")
            return max(self.floor, value)
        kind = TYPES[self.type]
        if self.type == "plateau":
            arguments["history"] = history
        value = kind.function(tau, D, **arguments)
        if kind.floor == "affine":
            return self.floor + (1 - self.floor) * value
        return max(self.floor, value) if kind.floor == "clamp" else value

    def rescaled(self, scale: float, T: int, *, epochs: int | None = None) -> Schedule:
        """This schedule, made for ``T`` updates, for a training of ``scale`` times that length.

        Fractions of training stay fractions, so the shape is the same; lengths in epochs or updates, plateau's
        patience and cooldown and a ``gamma`` per epoch shrink or grow with the training. The warmup keeps its number
        of updates, which is what it is for, and takes at most half of the training.
        """
        moment = self.moment(0, T, epochs)
        warmup = replace(self.warmup, length=Length(min(0.5, moment.w / moment.total / scale)))
        table = {} if self.type == "custom" else TYPES[self.type].params

        def scaled(name: str, value: Any) -> Any:  # and still what it may be
            if isinstance(value, Length):
                longer = min(max(value.value * scale, table[name].low), LONG)
                return value if value.unit == "fraction" else Length(longer, value.unit)
            if isinstance(value, tuple):
                return tuple(scaled(name, v) for v in value)
            if self.type == "plateau" and name in ("patience", "cooldown"):
                return min(round(value * scale), int(table[name].high))
            per_epoch = name == "gamma" and value is not None and "final" in table
            return max(table[name].low, value ** (1 / scale)) if per_epoch else value

        params = Params({name: scaled(name, value) for name, value in self.params.items()})
        return replace(self, warmup=warmup if moment.w else self.warmup, params=params)

    def to_json(self) -> dict[str, Any]:
        """The schedule as plain JSON data, every default written out; ``load`` turns it back."""
        shared: dict[str, Any] = {"type": self.type, "init_lr": self.init_lr, "warmup": self.warmup.to_json()}
        shared |= {"clock": self.clock, "interval": self.interval, "floor": self.floor}
        if self.type == "custom":
            return shared | {"function": self.params["function"], "params": dict(self.params["params"])}
        table = TYPES[self.type].params
        return shared | {name: table[name].write(value) for name, value in self.params.items()}

    def problems(self, T: int, *, epochs: int | None = None) -> list[str]:
        """What this schedule cannot do in ``T`` updates, in words; an empty list where it does what it says."""
        moment = self.moment(0, T, epochs)
        if moment.w >= moment.total:
            return [f"never leaves its warmup ({moment.w} of {moment.total} {self.interval}s)"]
        if self.type == "plateau" and self.params["patience"] + 2 > moment.epochs:
            return [f"has no time to drop: a patience of {self.params['patience']} in {moment.epochs} epochs"]
        short = self._too_short(moment)
        if self.type in ("constant", "custom", "plateau"):
            return short
        looked_at = range(T) if T <= 500 else sorted({round(i * (T - 1) / 499) for i in range(500)})
        factors = [self.factor(t, T, epochs=epochs) for t in looked_at]
        after = [f for t, f in zip(looked_at, factors, strict=True) if self.moment(t, T, epochs).t >= moment.w]
        top, last, limit = max(factors), factors[-1], self.factor(T, T, epochs=epochs)
        found, unit = short, f"{self.interval}s"
        if len({round(f, 12) for f in after}) == 1:
            found.append(f"never decays in {moment.total} {unit}: it is constant at {after[0]:.3g}")
        elif last - limit >= 0.2 - 1e-9 and TYPES[self.type].floor != "clamp":
            found.append(f"is cut off at {last:.0%} of init_lr on its way to {limit:.0%}: {moment.D} {unit} are few")
        if moment.w and (target := self.decay(0, moment)) < 0.5:
            found.append(f"warms up only to {target:.0%} of init_lr, where its own rise begins: give it no warmup")
        if top < 0.95 and len(after) > 1:
            found.append(f"never reaches init_lr: its highest factor is {top:.3g}")
        if self.type == "one_cycle" and self.params["pct_start"] * moment.D <= 1:
            found.append("has no room to rise: pct_start is at most one update, so it starts at the peak")
        if self.type == "triangular" and 0 < self.params["peak"] * moment.D < 1:
            found.append(f"has no room to rise: its peak is after less than one {self.interval}")
        return found

    def _too_short(self, moment: Moment) -> list[str]:
        """The lengths that round to nothing."""
        lengths = [
            (n, v) for n, value in self.params.items() for v in (value if isinstance(value, tuple) else (value,))
        ]
        amounts = {n: v.value * moment.units[v.unit] for n, v in reversed(lengths) if isinstance(v, Length)}
        wanted = self.warmup.length
        units, found = {**moment.units, "fraction": float(moment.total)}, list[str]()
        if wanted.value and not moment.w:
            amount = wanted.value * units[wanted.unit]
            found.append(
                f"never warms up: its warmup is {amount:.2g} of one {self.interval}, which rounds to nothing"
            )
        for name, amount in amounts.items():
            if amount < 1 and (amount or name == "step_size"):  # others may well be 0
                found.append(f"has next to no {name}: it is {amount:.2g} of one {self.interval}")
        return found


@dataclass(frozen=True)
class Moment:
    """Update ``t`` of ``total`` in a schedule's own intervals, the decay's clock being ``D`` of them long."""

    t: int
    total: int
    w: int  # of them warmup
    D: int
    units: Mapping[str, float]  # how many intervals a whole fraction, an epoch, an update are
    epoch: int  # epochs finished before this update
    epochs: int


def load(mapping: Mapping[str, Any] | Path, *, allow: Sequence[str] = ()) -> Schedule:
    """Build a schedule from its JSON form; whatever is not named has its default. Raises ScheduleError, which names
    the key, for an unknown type or key, or a value that cannot be.

    Args:
        mapping: the path of a file such as ``best_schedule.json``, or what stands in it: ``type`` and any of
            ``init_lr``, ``warmup`` (a length, or a mapping of a length with ``form`` and ``start``), ``clock``,
            ``interval``, ``floor``, and the parameters of the type.
        allow: dotted prefixes (``"my_package."``) under which a custom function may be named by its path.
    """
    if isinstance(mapping, Path):
        mapping = json.loads(mapping.read_text(encoding="utf-8"))
    if not isinstance(mapping, Mapping):
        raise ScheduleError([], f"a schedule must be a mapping with a type, not {shown(mapping)}")
    given = dict(mapping)
    kind = given.pop("type", None)
    if not isinstance(kind, str) or (kind != "custom" and kind not in TYPES):
        wrong = "needs a type" if kind is None else f"unknown type {quoted(kind)}"
        raise ScheduleError(["type"], f"{wrong}; {schedule_type(kind, [*TYPES, 'custom'])}")
    if kind == "cyclic":
        given.setdefault("floor", 0.1)  # a cycle down to 0 would waste updates
    shared = {k: p.read(given.pop(k, p.default), [k]) for k, p in Schedule.SHARED.items()}
    warmup = _load_warmup(given.pop("warmup", 0.0))
    if kind == "custom":
        params, function = _load_custom(given, allow)
        return Schedule(kind, warmup=warmup, params=params, function=function, **shared)
    table = TYPES[kind].params
    refuse_others(kind, given)
    if "final" in table and given.get("gamma") is not None:  # the same thing, said per epoch
        if given.get("final") is not None:
            raise ScheduleError(["gamma"], "gamma (per epoch) and final (in all) exclude each other: give one")
        given["final"] = None
    params = Params({k: p.read(given[k], [k]) if k in given else p.default for k, p in table.items()})
    if "final" in table and params["final"] is params["gamma"] is None:
        raise ScheduleError(["final"], "needs a number here, or gamma, the factor per epoch")
    if kind == "piecewise":
        at, factors = params["at"], params["factors"]
        if len(at) != len(factors):
            wrong = f"needs one factor for each point: {len(at)} points, {len(factors)} factors"
            raise ScheduleError(["factors"], wrong)
        if any(a.value > b.value for a, b in pairwise(at)):
            raise ScheduleError(["at"], "the points must stand in order")
    return Schedule(kind, warmup=warmup, params=params, **shared)


def summary(schedule: Mapping[str, Any], also: Collection[str] = ()) -> str:
    """The parameters in a schedule's JSON that differ from its type's defaults, and others, in one line."""
    custom = schedule["type"] == "custom"
    own = dict(schedule["params"]) if custom else {}
    defaults = {} if custom else {k: p.write(p.default) for k, p in TYPES[schedule["type"]].params.items()}
    defaults |= {"clock": "prefix", "interval": "update", "floor": 0.0}
    own |= {k: schedule[k] for k, default in defaults.items() if schedule[k] != default or k in also}

    def short(value: Any) -> str:
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join(map(short, value)) + "]"
        if isinstance(value, Mapping):
            return ", ".join(f"{short(v)} {k}" for k, v in value.items())
        return f"{value:.3g}" if isinstance(value, float) else shown(value)

    return ", ".join(f"{k} {short(v)}" for k, v in own.items() if v is not None)


def _load_warmup(value: Any) -> Warmup:
    rest = dict(value) if isinstance(value, Mapping) else {}
    form = choice(*WARMUPS).read(rest.pop("form", "linear"), ["warmup", "form"])
    low = 1e-9 if form == "exponential" else 0.0
    start = Param(None, low=low, high=1.0, optional=True).read(rest.pop("start", None), ["warmup", "start"])
    if isinstance(value, Mapping):
        for key in (key for key in rest if key not in UNITS):
            hint = advice(words.WARMUP, key, rest[key]) or did_you_mean(key, [*UNITS, "form", "start"])
            raise ScheduleError(["warmup", key], f"unknown key; {hint}")
        if len(rest) != 1:
            raise ScheduleError(["warmup"], "needs exactly one length: fraction, epochs or updates")
        value = rest
    return Warmup(length(0.0).read(value, ["warmup"]), form, WARMUPS[form][1] if start is None else start)


def refuse_others(kind: str, given: Mapping[str, Any]) -> None:
    """Raise ScheduleError for the first key that a type does not have."""
    own = [*(("function", "params") if kind == "custom" else TYPES[kind].params), *Schedule.SHARED, "warmup"]
    for key, value in given.items():
        if key not in own:
            hint = advice(words.PARAMETERS, key, value) or did_you_mean(key, own)
            having = [name for name, other in TYPES.items() if key in other.params]
            if having and hint.startswith("known: "):
                hint = f"it belongs to {', '.join(having)}; {hint}"
            raise ScheduleError([key], f"{kind} has no such parameter; {hint}")


def _load_custom(given: dict[str, Any], allow: Sequence[str]) -> tuple[Params, Function]:
    """The parameters and the function of ``{"type": "custom", "function": name, "params": {...}}``."""
    name, params = given.pop("function", None), given.pop("params", {})
    refuse_others("custom", given)
    if not isinstance(name, str) or not name:
        raise ScheduleError(["function"], "must be the name of an installed entry point, or a dotted path")
    if not isinstance(params, Mapping) or not all(isinstance(k, str) and k.isidentifier() for k in params):
        raise ScheduleError(["params"], f"must be a mapping of Python names to values, not {shown(params)}")
    function = find_function(name, allow)
    try:
        inspect.signature(function).bind(0, 1, **params)
    except TypeError as error:
        raise ScheduleError(["params"], f"{name} is called as fn(t, T, **params): {error}") from None
    try:
        pickle.dumps(function)
    except Exception as error:  # whatever its author made of it
        wrong = f"{name!r} cannot be sent to a worker process ({error}): write it with def at the top of its module"
        raise ScheduleError(["function"], wrong) from None
    return Params(function=name, params=Params(copy.deepcopy(dict(params)))), function


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Set every param group's learning rate to ``factor`` times its own base (its ``initial_lr``)."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def lambda_lr(
    optimizer: Optimizer,
    schedule: Schedule,
    T: int,
    *,
    epochs: int | None = None,
    history: Sequence[float] = (),
    done: int = 0,
) -> LambdaLR:
    """``schedule`` as a ``LambdaLR``, to step after every update; each param group keeps its own base.

    ``history`` is read anew at every step: append to the list that you pass (plateau only). ``done``: how many
    updates lie behind, where a training goes on. The multiplier is a plain closure on purpose: ``LambdaLR`` would
    save, and overwrite on loading, the fields of a callable object.
    """
    from torch.optim.lr_scheduler import LambdaLR

    def multiplier(t: int) -> float:
        return schedule.factor(t, T, epochs=epochs, history=history)

    for group in optimizer.param_groups if done else ():
        group.setdefault("initial_lr", group["lr"])  # LambdaLR asks for it where it does not begin
    return LambdaLR(optimizer, multiplier, last_epoch=done - 1)
