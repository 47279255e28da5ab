"""The zoo: every schedule type as one pure function, with what its parameters may be.

Each function is ``fn(t, T, **params) -> factor`` on the decay's own clock (``t`` of ``T`` updates; lengths arrive in
updates; one's own has the same form). ``schedule.py`` puts warmup, clock, interval and floor around it.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import words
from .words import as_number, as_range, did_you_mean, quoted, shown


class ScheduleError(ValueError):
    """A schedule that cannot be: ``key`` is where (a path of names), the message what and what would be right."""

    def __init__(self, key: Sequence[str | int], message: str) -> None:
        self.key, self.message = tuple(key), message
        super().__init__(f"{'.'.join(map(str, key))}: {message}" if key else message)

    def __reduce__(self) -> tuple[type[ScheduleError], tuple[Sequence[str | int], str]]:
        return type(self), (self.key, self.message)  # as a worker process sends it


# Parameters: what a value may be. One table per type drives validation, JSON, the docs and the search space.


UNITS = ("fraction", "epochs", "updates")


@dataclass(frozen=True)
class Length:
    """A stretch of training: a fraction of it, a number of epochs, or a number of updates."""

    value: float
    unit: str = "fraction"

    def to_json(self) -> float | dict[str, float]:
        return self.value if self.unit == "fraction" else {self.unit: self.value}


@dataclass(frozen=True)
class Param:
    """One parameter of a schedule type: its default and what it may be."""

    default: Any
    low: float = -math.inf
    high: float = math.inf
    integer: bool = False
    choices: tuple[str, ...] = ()
    optional: bool = False
    kind: str = "number"  # number | choice | flag | length | lengths | numbers

    def read(self, value: Any, key: Sequence[str | int]) -> Any:
        """``value`` in its own type; raises ScheduleError where it is none of this parameter's."""
        if value is None and self.optional:
            return None
        if self.kind == "choice" and value not in self.choices:
            hint = did_you_mean(value, self.choices, str(key[-1]))
            raise ScheduleError(key, f"unknown value {quoted(value)}; {hint}")
        if self.kind == "flag" and not isinstance(value, bool):
            raise ScheduleError(key, f"must be true or false, not {shown(value)}")
        if self.kind in ("choice", "flag"):
            return value
        if self.kind == "lengths":
            bare = not _is_length(value)
            unit, values = ("fraction", value) if bare else next(iter(value.items()))
            given = [v if bare and isinstance(v, Mapping) else {unit: v} for v in _items(values, key, unit)]
            lengths = tuple(self._length(v, [*key, i], values) for i, v in enumerate(given))
            if len({length.unit for length in lengths}) > 1:
                raise ScheduleError(key, "must have one unit, as in {epochs: [30, 60]}")
            return lengths
        if self.kind == "numbers":
            return tuple(self._number(v, [*key, i]) for i, v in enumerate(_items(value, key)))
        return self._length(value, key, value) if self.kind == "length" else self._number(value, key)

    def write(self, value: Any) -> Any:
        """The JSON form of a value that ``read`` returned."""
        if isinstance(value, Length):
            return value.to_json()
        if self.kind == "lengths" and value and value[0].unit != "fraction":
            return {value[0].unit: [length.value for length in value]}
        return [v.value if isinstance(v, Length) else v for v in value] if isinstance(value, tuple) else value

    def _number(self, value: Any, key: Sequence[str | int]) -> float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        number = number and -1e300 < value < 1e300  # as good as infinite, and a comparison that no value breaks
        if not number or (self.integer and value != int(value)):
            meant = as_number(value, whole=self.integer) or as_range(value)
            hint = f"; did you mean {meant}?" if meant else ""
            wanted = "a whole number" if self.integer else "a number"
            raise ScheduleError(key, f"must be {wanted}, not {shown(value)}{hint}")
        if value <= 0 < self.low and self.kind in ("length", "lengths"):
            raise ScheduleError(key, f"must be above 0, not {value!r}")
        if not self.low <= value <= self.high:
            raise ScheduleError(key, f"must be between {self.low:g} and {self.high:g}, not {value!r}")
        return int(value) if self.integer else float(value)

    def _length(self, value: Any, key: Sequence[str | int], whole: Any) -> Length:
        """``whole`` is the value, or the list that it stands in, as it was written."""
        unit, amount = "fraction", value
        if isinstance(value, Mapping):
            if not _is_length(value):
                hint = f"; did you mean {meant}?" if (meant := as_range(value) or _as_length(value)) else ""
                wanted = "must be a fraction of training, {epochs: N} or {updates: N}"
                raise ScheduleError(key, f"{wanted}, not {shown(value)}{hint}")
            unit, amount = next(iter(value.items()))
        if unit == "fraction" and isinstance(amount, int) and amount > self.high:
            wrong = f"must be between 0 and {self.high:g}, as a fraction of training, not {amount!r}"
            raise ScheduleError(key, wrong + _in_units(whole if isinstance(whole, (list, tuple)) else amount))
        high = self.high if unit == "fraction" else LONG
        return Length(replace(self, low=self.low, high=high)._number(amount, key), str(unit))


def _is_length(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in UNITS


def _as_length(value: Mapping[Any, Any]) -> str | None:
    """A length with another tool's unit, as it is written here."""
    unit = words.UNITS.get(str(next(iter(value), "")))
    return f"{{{unit}: {shown(next(iter(value.values())))}}}" if unit and len(value) == 1 else None


def _in_units(value: Any) -> str:
    """A hint, where whole numbers were written for lengths without a unit."""
    if not all(isinstance(v, int) for v in (value if isinstance(value, (list, tuple)) else [value])):
        return ""
    return f"; did you mean {{epochs: {shown(value)}}} or {{updates: {shown(value)}}}?"


def _items(value: Any, key: Sequence[str | int], unit: str = "") -> list[Any]:
    if not isinstance(value, (list, tuple)) or not value:
        hint = f"; did you mean [{shown(value)}]?" if isinstance(value, (int, float)) else ""
        if unit == "fraction" and isinstance(value, int) and value > 1:
            hint = _in_units([value])
        raise ScheduleError(key, f"must be a list of numbers, not {shown(value)}{hint}")
    return list(value)


TINY = 1e-6  # keeps divisions away from zero
LONG = 1e9  # epochs or updates
GAMMA = Param(0.1, low=TINY, high=1.0)  # the factor of one drop: means the same in step, multistep and plateau
PER_EPOCH = Param(None, low=TINY, high=1.0, optional=True)
FINAL = Param(0.01, low=1e-9, high=1.0, optional=True)  # null where gamma says it per epoch


def length(default: float | None, low: float = 0.0, high: float = 1.0) -> Param:
    value = None if default is None else Length(default)
    return Param(value, low=low, high=high, optional=default is None, kind="length")


def choice(default: str, *others: str) -> Param:
    return Param(default, choices=(default, *others), kind="choice")


# The zoo. Each docstring: the formula on z = t / T, then its source and its name elsewhere.

Function = Callable[..., float]


@dataclass(frozen=True)
class Type:
    """A schedule type: its function, its parameters, and how a floor is put under it."""

    function: Function
    params: Mapping[str, Param]
    floor: str  # "affine": floor + (1 - floor) * f, for shapes on [0, 1]; "clamp": max(floor, f); "own"
    context: frozenset[str]  # what it wants to know beyond its parameters: epoch, warmup, floor, history


TYPES: dict[str, Type] = {}


def _type(floor: str, **params: Param) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        names = inspect.signature(function).parameters
        TYPES[function.__name__] = Type(function, params, floor, frozenset(names) - {"t", "T"} - frozenset(params))
        return function

    return register


@_type("clamp")
def constant(t: int, T: int) -> float:
    """1. The control arm: how much of the gain is "any decay at all"?"""
    return 1.0


@_type("clamp", step_size=length(1 / 3, low=TINY), gamma=GAMMA)
def step(t: int, T: int, step_size: float, gamma: float) -> float:
    """gamma ** (t // ceil(step_size)). He et al. 2016, arXiv 1512.03385; torch StepLR, timm step."""
    drops = t // max(1, math.ceil(step_size - 1e-9))
    return gamma**drops


@_type("clamp", milestones=Param((Length(0.5), Length(0.75)), low=TINY, high=1.0, kind="lengths"), gamma=GAMMA)
def multistep(t: int, T: int, milestones: Sequence[float], gamma: float) -> float:
    """gamma ** |{m : m <= t}|: a drop at the first update at or after each milestone. torch MultiStepLR."""
    return gamma ** sum(t >= math.ceil(m - 1e-9) for m in milestones)


@_type("clamp", final=FINAL, gamma=PER_EPOCH)
def exponential(t: int, T: int, final: float, gamma: float, epoch: float) -> float:
    """final ** z, or gamma ** (t / epoch) where gamma, the factor per epoch, is given. torch ExponentialLR."""
    return math.pow(gamma, t / epoch) if final is None else math.pow(final, t / T)


@_type("affine", power=Param(2.0, low=0.01, high=100))
def polynomial(t: int, T: int, power: float) -> float:
    """(1 - z) ** power. torch PolynomialLR, keras PolynomialDecay, timm poly."""
    return math.pow(1 - t / T, power)


@_type("affine")
def linear(t: int, T: int) -> float:
    """1 - z. Li, Yumer and Ramanan 2020, arXiv 1905.04753; torch LinearLR(1, 0, T)."""
    return 1 - t / T


@_type("affine")
def cosine(t: int, T: int) -> float:
    """(1 + cos(pi z)) / 2. Loshchilov and Hutter 2017, arXiv 1608.03983; torch CosineAnnealingLR."""
    return 0.5 * (1 + math.cos(math.pi * t / T))


@_type(
    "own",
    cycles=Param(2, low=1, high=100, integer=True),
    t_mult=Param(1.0, low=1, high=10),
    peak_decay=Param(1.0, low=TINY, high=1),
    t_0=length(None, low=TINY),
)
def cosine_restarts(
    t: int, T: int, cycles: int, t_mult: float, peak_decay: float, t_0: float | None, floor: float
) -> float:
    """floor + (p - floor) (1 + cos(pi z_i)) / 2, p = max(peak_decay**i, floor), cycle i t_mult**i times the first.

    The first cycle is as long as it takes for training to end with a cycle, or t_0 where that is given.
    Loshchilov and Hutter 2017, arXiv 1608.03983; torch CosineAnnealingWarmRestarts, timm cosine.
    """
    length = T / (cycles if t_mult == 1 else (t_mult**cycles - 1) / (t_mult - 1)) if t_0 is None else max(t_0, 1.0)
    if t_mult == 1:
        last = max(0, math.ceil(T / length - 1e-9) - 1)
        i = min(math.floor(t / length + 1e-9), last)
        start = i * length
    else:
        i, start = 0, 0.0
        while start + length <= t + 1e-9 * T and start + length < T * (1 - 1e-9):
            i, start, length = i + 1, start + length, length * t_mult
    z = min(max(t - start, 0.0) / length, 1.0)
    return floor + (max(peak_decay**i, floor) - floor) * 0.5 * (1 + math.cos(math.pi * z))


@_type("affine", mode=choice("decay", "cycle"), cycles=Param(1.5, low=0.25, high=1000))
def sine(t: int, T: int, mode: str, cycles: float) -> float:
    """decay: sin(pi (1 - z) / 2), a quarter sine. cycle: (1 - cos(2 pi cycles (1 - z))) / 2, ending at the minimum.

    One and a half cycles start at the peak, whole cycles at the minimum.
    """
    if mode == "decay":
        return math.sin(0.5 * math.pi * (1 - t / T))
    return 0.5 * (1 - math.cos(2 * math.pi * cycles * (1 - t / T)))


@_type(
    "affine",
    mode=choice("triangular", "triangular2", "exp_range"),
    cycles=Param(2.0, low=0.25, high=1e6),
    up=Param(0.5, low=TINY, high=1 - TINY),
    final=Param(0.1, low=1e-9, high=1.0, optional=True),
    gamma=PER_EPOCH,
)
def cyclic(t: int, T: int, mode: str, cycles: float, up: float, final: float, gamma: float, epoch: float) -> float:
    """x s: x rises 0 to 1 over the share `up` of a cycle and falls back; s is 1, 2**-cycle, or final**z (exp_range).

    The floor is the base learning rate as a ratio of the peak. gamma (per epoch) instead of final for exp_range.
    Smith 2017, arXiv 1506.01186; torch CyclicLR.
    """
    cycle = math.floor(cycles * t / T + 1e-9)
    x = max(cycles * t / T - cycle, 0.0)
    ramp = x / up if x <= up else (1 - x) / (1 - up)
    if mode == "triangular2":
        return ramp * 0.5**cycle
    if mode == "exp_range":
        return ramp * (math.pow(gamma, t / epoch) if final is None else math.pow(final, t / T))
    return ramp


@_type(
    "affine",
    pct_start=Param(0.3, low=0.0, high=1.0),
    div_factor=Param(25.0, low=1.0, high=1e9),
    final_div_factor=Param(1e4, low=1.0, high=1e12),
    anneal=choice("cos", "linear"),
    three_phase=Param(False, kind="flag"),
)
def one_cycle(
    t: int, T: int, pct_start: float, div_factor: float, final_div_factor: float, anneal: str, three_phase: bool
) -> float:
    """1/div_factor up to 1 at update pct_start T - 1, down to 1/(div_factor final_div_factor) at update T - 1.

    three_phase goes back to 1/div_factor first, at update 2 pct_start T - 2. Where there is no room to rise,
    it starts at the peak. Smith and Topin 2019, arXiv 1708.07120; torch OneCycleLR (init_lr is its max_lr).
    """
    start, end = 1 / div_factor, 1 / (div_factor * final_div_factor)
    top = max(pct_start * T - 1, 0.0)
    knots = [(0.0, start), (top, 1.0), (T - 1.0, end)]
    if three_phase and top > 0:
        knots.insert(2, (2 * top, start))
    if t > T - 1 > 0:
        return end
    for (t0, f0), (t1, f1) in itertools.pairwise(knots):
        if t <= t1 and t1 > t0:
            z = (t - t0) / (t1 - t0)
            return f0 + (f1 - f0) * z if anneal == "linear" else f1 + (f0 - f1) / 2 * (1 + math.cos(math.pi * z))
    return 1.0


@_type(
    "affine",
    peak=Param(0.2, low=0.0, high=1.0),
    start=Param(0.04, low=0.0, high=1.0),
    end=Param(0.0, low=0.0, high=1.0),
)
def triangular(t: int, T: int, peak: float, start: float, end: float) -> float:
    """start up to 1 at z = peak, then down to end: the slanted triangle of every short-budget record.

    Howard and Ruder 2018, arXiv 1801.06146 (slanted triangular); Page 2018 (cifar10-fast, PiecewiseLinear).
    """
    z = t / T
    if z < peak:
        return start + (1 - start) * z / peak
    return 1 + (end - 1) * (z - peak) / (1 - peak) if peak < 1 else 1.0


@_type("clamp", timescale=length(None, low=TINY))
def inverse_sqrt(t: int, T: int, timescale: float | None, warmup: int) -> float:
    """sqrt(s / (t + s)), s = timescale, by default the warmup's length, or a tenth of training without one.

    Vaswani et al. 2017, arXiv 1706.03762; transformers inverse_sqrt, timm rsqrt.
    """
    s = (warmup or T / 10) if timescale is None else timescale
    return math.sqrt(s / (t + s))


@_type("clamp", rate=Param(9.0, low=0.0, high=1e9))
def inverse_time(t: int, T: int, rate: float) -> float:
    """1 / (1 + rate z). Robbins and Monro 1951; keras InverseTimeDecay."""
    return 1 / (1 + rate * t / T)


@_type(
    "affine",
    cooldown=length(0.2),
    shape=choice("linear", "1-sqrt", "cosine", "1-square", "exponential"),
    rho=Param(0.01, low=1e-9, high=1 - TINY),
)
def wsd(t: int, T: int, cooldown: float, shape: str, rho: float) -> float:
    """1, then over the last `cooldown` g(u): 1-u, 1-sqrt(u), (1+cos(pi u))/2, 1-u**2, (rho**u-rho)/(1-rho).

    Warmup-stable-decay, or trapezoid. Zhai et al. 2022, arXiv 2106.04560; Hu et al. 2024, arXiv 2404.06395;
    Haegele et al. 2024, arXiv 2405.18392 (1-sqrt).
    """
    u = min(max(0.0, (t - (T - cooldown)) / cooldown), 1.0) if cooldown > 0 else 0.0
    if shape == "linear":
        return 1 - u
    if shape == "1-sqrt":
        return 1 - math.sqrt(u)
    if shape == "cosine":
        return 0.5 * (1 + math.cos(math.pi * u))
    if shape == "1-square":
        return 1 - u * u
    return (math.pow(rho, u) - rho) / (1 - rho)


@_type("affine", explore=length(0.5))
def knee(t: int, T: int, explore: float) -> float:
    """1 while exploring, then linear to 0. Iyer et al. 2023, JMLR 24 (wide-minima density), arXiv 2003.03977."""
    return min(1.0, (T - t) / (T - explore)) if explore < T else 1.0


@_type("affine", beta=Param(0.5, low=0.0, high=1 - TINY))
def rex(t: int, T: int, beta: float) -> float:
    """(1 - z) / (1 - beta z): linear at beta 0, REX at 1/2. Chen, Wolfe and Kyrillidis 2022, arXiv 2107.04197."""
    return (1 - t / T) / (1 - beta * t / T)


@_type("affine", lower=Param(-7.0, low=-100, high=100), upper=Param(3.0, low=-100, high=100))
def tanh(t: int, T: int, lower: float, upper: float) -> float:
    """(1 - tanh(lower (1 - z) + upper z)) / 2. Hsueh et al. 2019, arXiv 1806.01593; timm tanh."""
    return 0.5 * (1 - math.tanh(lower * (1 - t / T) + upper * t / T))


@_type(
    "clamp",
    at=Param((Length(0.0), Length(0.2), Length(1.0)), low=0.0, high=1.0, kind="lengths"),
    factors=Param((0.04, 1.0, 0.0), low=0.0, high=1e6, kind="numbers"),
    interpolation=choice("linear", "step"),
)
def piecewise(t: int, T: int, at: Sequence[float], factors: Sequence[float], interpolation: str) -> float:
    """Through the points (at, factors): straight lines, or the last one reached. numpy.interp; keras
    PiecewiseConstantDecay, optax piecewise_interpolate_schedule."""
    i = sum(a - 1e-9 <= t for a in at)
    if i == 0 or i == len(at) or interpolation == "step":
        return factors[max(i - 1, 0)]
    return factors[i - 1] + (factors[i] - factors[i - 1]) * (t - at[i - 1]) / (at[i] - at[i - 1])


@_type(
    "clamp",
    gamma=GAMMA,
    patience=Param(2, low=0, high=1e6, integer=True),
    threshold=Param(1e-4, low=0.0, high=1e6),
    cooldown=Param(0, low=0, high=1e6, integer=True),
)
def plateau(
    t: int, T: int, gamma: float, patience: int, threshold: float, cooldown: int, history: Sequence[float]
) -> float:
    """gamma ** (how often the validation metric stood still for more than `patience` epochs).

    A pure function of the metric's history (one value per finished epoch, higher is better, NaN is no progress),
    so it needs no state of its own. torch ReduceLROnPlateau(mode="max", threshold_mode="abs", eps=0).
    """
    best, bad, resting, drops = -math.inf, 0, 0, 0
    for value in history:
        if value > best + threshold:
            best, bad = value, 0
        else:
            bad += 1
        if resting > 0:
            resting, bad = resting - 1, 0
        if bad > patience:
            drops, resting, bad = drops + 1, cooldown, 0
    return gamma**drops


def warmup_linear(t: int, w: int, start: float | None) -> float:
    """(t + 1) / w, which wastes no update at 0; with a start factor start + (1 - start) t / w (torch, timm)."""
    return (t + 1) / w if start is None else start + (1 - start) * t / w


def warmup_constant(t: int, w: int, start: float) -> float:
    """start. He et al. 2016 warm up so; torch ConstantLR."""
    return start


def warmup_exponential(t: int, w: int, start: float) -> float:
    """start ** (1 - t / w)."""
    return math.pow(start, 1 - t / w)


def warmup_cosine(t: int, w: int, start: float) -> float:
    """start + (1 - start) (1 - cos(pi t / w)) / 2. transformers' warmup_stable_decay has it, from 0."""
    return start + (1 - start) * 0.5 * (1 - math.cos(math.pi * t / w))


WARMUPS: dict[str, tuple[Function, float | None]] = {
    "linear": (warmup_linear, None),
    "constant": (warmup_constant, 0.1),
    "exponential": (warmup_exponential, 0.1),
    "cosine": (warmup_cosine, 0.01),
}
"""The forms of a warmup: the function and the start factor it has where none is given."""
