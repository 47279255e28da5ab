"""Figures of schedules and sweeps, as matplotlib figures: readable in grey, the same colour for a type everywhere."""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

chosen = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)  # a wrong one ends the import

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..files.place import load_place
from ..files.sweep_file import ACCURACY, Objective
from ..files.trial import Record, best_first, label
from ..schedules.colours import colour, place
from ..schedules.schedule import Schedule, load
from ..study.confirm import Rows
from ..study.study import load_study
from .answer import headline, labels, plural, score

if chosen is not None:
    os.environ["MPLBACKEND"] = chosen
    with suppress(ValueError):
        matplotlib.rcParams["backend"] = chosen  # a notebook's

STYLES = ("-", "--", "-.", ":")
WIDTH, DPI = 7.1, 100
"""Inches, and pixels in each: what MLflow's page of a run shows whole in a window of 1,300 pixels."""
plain = matplotlib.style.context("default")
"""Inside, and in what it decorates, figures are as they are here, whatever a matplotlibrc says."""


def style(kind: str) -> dict[str, Any]:
    """The colour and the line of a schedule type, the same in every figure."""
    return {"color": colour(kind), "linestyle": STYLES[place(kind) % len(STYLES)]}


def curve(schedule: Schedule, T: int, epochs: int, history: Sequence[float] = ()) -> tuple[list[float], list[float]]:
    """Epochs (fractional) and learning rates of at most a thousand updates, the last one's until training ends."""
    at = range(T) if T <= 1000 else sorted({round(i * (T - 1) / 999) for i in range(1000)})
    lrs = [schedule.lr(t, T, epochs=epochs, history=history) for t in at]
    return [*(t * epochs / T for t in at), float(epochs)], [*lrs, lrs[-1]]


@plain
def schedules(curves: Mapping[str, Sequence[Schedule]], T: int, epochs: int, title: str = "") -> Figure:
    """A panel for each name with its schedules' learning-rate curves, all on one scale."""
    figure, panels = _panels(list(curves), 4, 3.2, 2.2, "epoch", "learning rate", title)
    for axes, several in zip(panels, curves.values(), strict=True):
        for schedule in several:
            look = style(schedule.type) | {"linestyle": "-"}
            x, y = curve(schedule, T, epochs)
            axes.plot(x, y, drawstyle="steps-post", linewidth=1.2, alpha=0.9 if len(several) == 1 else 0.55, **look)
    panels[0].set_ylim(bottom=0)  # and so of all of them
    return figure


@plain
def curves_by_objective(
    records: Sequence[Record],
    plans: Mapping[int, Schedule],
    T: int,
    epochs: int,
    objective: Objective = ACCURACY,
    title: str = "",
) -> Figure:
    """Every trial's learning-rate curve, coloured by its objective after its last epoch, a panel for each schedule.

    ``plans``: schedules by trial; the order of the panels is that of ``records``.
    """
    sign, ends = objective.sign, {r.number: (r.values(objective.metric) or [math.nan])[-1] for r in records}
    low, high = _spread([sign * v for v in ends.values() if math.isfinite(v)] or [0.0, 1.0])
    scale = Normalize(min(sign * low, sign * high), max(sign * low, sign * high))
    colours = ScalarMappable(scale, "cividis" if sign > 0 else "cividis_r")
    names = list(dict.fromkeys(r.label for r in records))
    figure, panels = _panels(names, 3, WIDTH / 3, 1.9, "epoch", "learning rate", title)
    top = max(r.schedule["init_lr"] for r in records)
    for axes, name in zip(panels, names, strict=True):
        axes.set(yscale="log", ylim=(top * 1e-4, top * 1.5))  # what falls below is zero to the eye
        several = [r for r in records if r.label == name]
        for record in sorted(
            several, key=lambda r: (math.isfinite(ends[r.number]), sign * ends[r.number])
        ):  # best on top
            x, y = curve(plans[record.number], T, epochs, record.history(objective))
            value = ends[record.number]
            look: dict[str, Any] = {"color": "#999999", "linestyle": ":"}
            if math.isfinite(value):
                look = {"color": to_hex(colours.get_cmap()(scale(value))), "linestyle": "-"}
            axes.plot(x, y, linewidth=1.4, drawstyle="steps-post", **look)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    worse = "min" if sign > 0 else "max"
    bar = figure.colorbar(colours, ax=panels, extend=worse, format=_percent if objective.points else None, aspect=30)
    bar.set_label(f"{said(objective)}, one seed" + ("; dotted: none" * _lost(ends)), fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


@plain
def objective_against_lr(
    records: Sequence[Record], confirmed: Rows = (), objective: Objective = ACCURACY, title: str = ""
) -> Figure:
    """The objective against ``init_lr``, a panel for each schedule; what fresh seeds gave has its interval."""
    names = list(dict.fromkeys(r.label for r in records))
    figure, panels = _panels(names, 3, WIDTH / 3, 1.9, "init_lr", title=title)
    low, high = _upper([r.value for r in records if r.value is not None], objective.sign)
    means = [row for row in confirmed if row["mean"] is not None]
    near = [row for row in means if row["in_set"] or low <= row["mean"] <= high]
    ends = [row[end] for row in near for end in ("low", "high", "mean") if math.isfinite(row[end])]
    limits, lrs = (min([low, *ends]), max([high, *ends])), [r.schedule["init_lr"] for r in records]
    square: dict[str, Any] = {"fmt": "s", "color": "black", "markersize": 4, "capsize": 2}
    for axes, name in zip(panels, names, strict=True):
        several = [r for r in records if r.label == name]
        points = [(r.schedule["init_lr"], r.value) for r in several if r.value is not None]
        _points(axes, points, limits, color=colour(several[0].schedule["type"]), marker="o", alpha=0.6, markersize=4)
        for row in (row for row in means if label(row["name"], row["type"]) == name):
            if row not in near:
                _points(axes, [(row["init_lr"], row["mean"])], limits, color="black", marker="s", markersize=4)
                continue
            wide = None
            if math.isfinite(row["low"]):
                wide = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
            axes.errorbar([row["init_lr"]], [row["mean"]], yerr=wide, **square)
        axes.set(xscale="log", xlim=(min(lrs) / 1.5, max(lrs) * 1.5))  # however close they are
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        if objective.points:
            axes.yaxis.set_major_formatter(_percent)
    key = "circle: one seed; arrow: farther out" + "; square: fresh seeds, with 95 % interval" * bool(means)
    figure.supylabel(said(objective), fontsize=8)
    figure.supxlabel(key, fontsize=8)
    return figure


@plain
def confidence_set(confirmed: Rows, objective: Objective = ACCURACY, title: str = "") -> Figure:
    """How far each confirmed schedule is behind the best, with simultaneous intervals; filled: it may be the best.
    The baseline is a diamond with a bold name."""
    names, unit = labels(confirmed), 100 if objective.points else 1
    rows = sorted((r for r in confirmed if r["behind"] is not None), key=lambda r: r["behind"])[::-1]
    far = -4 * max((r["behind_high"] for r in rows if r["in_set"]), default=1.0) or -math.inf
    figure = Drawn(WIDTH, 0.32 * len(rows) + 1.4)
    axes = figure.add_subplot()
    for y, row in enumerate(rows):
        own = colour(row["type"])
        if -row["behind"] < far:  # so that it does not press the others together
            axes.plot([far], [y], "<", color=own, markerfacecolor="white")
            apart, low, high = (f"{unit * row[key]:.2g}" for key in ("behind", "behind_low", "behind_high"))
            axes.annotate(f"  {apart} behind ({low} to {high})", (far, y), va="center", fontsize=7)
            continue
        axes.plot([-row["behind_high"], -row["behind_low"]], [y, y], color=own, linewidth=1.6)
        mark = "D" if row.get("baseline") else "o"
        axes.plot([-row["behind"]], [y], mark, color=own, markerfacecolor=own if row["in_set"] else "white")
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.set_xlim(left=max(far, -1.1 * max(r["behind_high"] for r in rows)) * 1.03 or -0.01)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_yticks(range(len(rows)), [f"{names[r['trial']]}, {plural(r['behind_seeds'], 'seed')}" for r in rows])
    for row, text in zip(rows, axes.get_yticklabels(), strict=True):
        text.set_fontweight("bold" if row.get("baseline") else "normal")
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{abs(round(unit * x, 9)):g}"))
    what = f"{objective.unit} behind the best mean (right of the line: better),\nwith 95 % intervals for all together"
    filled = "; filled: may be the best" * any(not r["in_set"] for r in rows)
    axes.set_xlabel(what.lstrip() + filled, fontsize=7)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(axis="x", alpha=0.3)
    return figure


def makers(
    records: Sequence[Record],
    plans: Mapping[int, Schedule],
    T: int,
    epochs: int,
    confirmed: Rows = (),
    objective: Objective = ACCURACY,
    decided: bool = True,
) -> dict[str, Callable[[], Figure]]:
    """What draws the figures of a sweep, by file name. Trials that failed or have no finished epoch are left out."""
    seen = [r for r in records if r.epochs and r.outcome != "failed"]
    done = best_first(seen, objective.sign, confirmed)  # as the table has them
    known, made = {r.number for r in done}, dict[str, Callable[[], Figure]]()
    if seen:
        shown = [*done, *(r for r in seen if r.number not in known)]
        title = _searched(best_first(seen, objective.sign), len(seen), objective)
        made["lr_curves.png"] = partial(curves_by_objective, shown, plans, T, epochs, objective, title)
    if done:
        title = _rates(done, confirmed)
        made["objective_against_lr.png"] = partial(objective_against_lr, done, confirmed, objective, title)
    if any(row["behind"] is not None for row in confirmed):
        made["confidence_set.png"] = partial(confidence_set, confirmed, objective, headline(confirmed, decided))
    return made


def said(objective: Objective) -> str:
    """The objective, as an axis is called."""
    name = "validation accuracy" if objective.metric == "val/accuracy" else objective.metric
    return f"{name} ({objective.unit})" if objective.unit not in ("", "points") else name


def _searched(done: Sequence[Record], n: int, objective: Objective) -> str:
    """What the curves of a search show, as a title."""
    if not done:
        return f"None of {n} came to its end" if n > 1 else "It did not come to its end"
    first, value = done[0], done[0].value or 0.0
    reached = score(value, objective)
    return (
        f"With one seed {first.label} is the best of {plural(n, 'trial')} ({reached})"
        if n > 1
        else f"{first.label}: {reached}"
    )


def _rates(done: Sequence[Record], confirmed: Rows) -> str:
    """With which learning rates the best ones begin, as a title."""
    alive = [row for row in confirmed if row["in_set"] and row["mean"] is not None]
    if not alive:
        return f"With one seed {done[0].label} is best at init_lr {done[0].schedule['init_lr']:.2g}"
    low, high = (end(row["init_lr"] for row in alive) for end in (min, max))
    if len(alive) == 1:
        name = label(alive[0]["name"], alive[0]["type"])
        return f"{name}{' is best' * (len(confirmed) > 1)} at init_lr {low:.2g}"
    return f"Those that may be best have init_lr {low:.2g} to {high:.2g}"


def sweep_figures(*args: Any, **settings: Any) -> dict[str, Figure]:
    """The figures of a sweep, by file name: those of ``makers``."""
    return {name: make() for name, make in makers(*args, **settings).items()}


def sweep(name: str = "digits", mlflow_yaml: str | None = None) -> dict[str, Figure]:
    """The figures of a sweep that has been run, by name; each shows itself in a notebook.

    Raises:
        SpecError: there is no such sweep.
    """
    facts, records = load_study(name, load_place(mlflow_yaml).storage)
    epochs = max((len(r.epochs) for r in records), default=1)
    loadable = [r for r in records if "function" not in r.schedule]
    plans, T = {r.number: load(r.schedule) for r in loadable}, facts["updates_per_epoch"] * epochs
    about = facts["objective"], facts.get("decided", True)
    made = sweep_figures(loadable, plans, T, epochs, facts["confirmed"], *about)
    return {file.removesuffix(".png"): figure for file, figure in made.items()}


@plain
def save(figure: Figure, path: Path) -> Path:
    if path.suffix == ".png":
        figure.set_dpi(DPI)
        # savefig would draw it once more, for its layout
        FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]
    else:
        figure.savefig(path)
    return path


class Drawn(Figure):
    """A figure that shows itself in a notebook; without pyplot: no window, no state shared between threads."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained")

    @plain
    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, dpi=110)
        return buffer.getvalue()


def _panels(
    names: Sequence[str], most: int, width: float, height: float, xlabel: str, ylabel: str = "", title: str = ""
) -> tuple[Figure, list[Axes]]:
    """A figure with a small panel for each name, all on the same scales; ``most`` of them beside one another."""
    columns = min(most, math.ceil(math.sqrt(len(names))))
    rows = math.ceil(len(names) / columns)
    figure, panels = Drawn(max(width * columns, 4.7), height * rows + 0.6), list[Axes]()
    if title:
        figure.suptitle(title, fontsize=10)
    for i, name in enumerate(names):
        first = panels[0] if panels else None
        axes = figure.add_subplot(rows, columns, i + 1, sharex=first, sharey=first)
        axes.set_title(name, fontsize=9)
        lowest, leftmost = i >= len(names) - columns, i % columns == 0
        axes.tick_params(labelsize=7, labelbottom=lowest, labelleft=leftmost)
        axes.set_xlabel(xlabel if lowest else "", fontsize=8)
        axes.set_ylabel(ylabel if leftmost else "", fontsize=8)
        panels.append(axes)
    return figure, panels


def _points(axes: Axes, points: Sequence[tuple[float, float]], limits: tuple[float, float], **look: Any) -> None:
    """Those within the limits, with room around them so that the frame cuts none; arrows at its edges for others."""
    low, high = limits
    room = 0.04 * (high - low)
    axes.set_ylim(low - room, high + room)
    inside = [y if low <= y <= high else math.nan for _, y in points]
    axes.plot([x for x, _ in points], inside, linestyle="", **look)
    for x, y in points:
        if not low <= y <= high:
            edge, mark = (low - room, "v") if y < low else (high + room, "^")
            axes.plot([x], [edge], mark, color=look["color"], markerfacecolor="white", markersize=5, clip_on=False)


def _upper(values: Sequence[float], sign: int) -> tuple[float, float]:
    """Limits of an axis that show what is good: failures to learn lie outside."""
    bar, best = _quartile([sign * v for v in values]) * sign, max(values, key=lambda v: sign * v)
    room = 0.08 * abs(best - bar) or 0.01
    return tuple(sorted((bar - sign * 4 * room, best + sign * room)))  # type: ignore[return-value]


def _quartile(values: Sequence[float]) -> float:
    """The first quartile, higher being better; the median where that one is beyond all others, as a metric without
    bounds may be when a training explodes."""
    ordered = sorted(values)
    low, middle, best = ordered[len(ordered) // 4], ordered[len(ordered) // 2], ordered[-1]
    return low if best - low <= 20 * (best - middle) else middle


def _spread(values: Sequence[float]) -> tuple[float, float]:
    # From the first quartile upward: one trial that failed to learn must not make all others look alike.
    low, high = _quartile(values), max(values)
    return (low, high) if high > low else (low - 0.01, high + 0.01)


def _lost(accuracies: Mapping[int, float]) -> bool:
    return any(not math.isfinite(a) for a in accuracies.values())


_percent = FuncFormatter(lambda x, _: f"{round(100 * x, 6):g} %")
