"""Figures of schedules and sweeps, as matplotlib figures: readable in grey, the same colour for a type everywhere."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from ..files.place import load_place
from ..files.trial import Record, best_first
from ..schedules.schedule import Schedule, load
from ..schedules.zoo import TYPES
from ..study.confirm import Rows
from ..study.study import load_study

# Okabe and Ito's colours, which colour-blind people tell apart; the line style tells the rest.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
COMMON = ("cosine", "linear", "one_cycle", "wsd", "step", "constant", "exponential")
"""The types that stand side by side most often: a colour for each."""


def style(kind: str) -> dict[str, Any]:
    """The colour and the line of a schedule type, the same in every figure."""
    i = list(dict.fromkeys([*COMMON, *TYPES, "custom"])).index(kind)
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[(i // len(COLOURS)) % len(STYLES)]}


def curve(schedule: Schedule, T: int, epochs: int, history: Sequence[float] = ()) -> tuple[list[float], list[float]]:
    """Epochs (fractional) and learning rates of at most a thousand updates, the last one's until training ends."""
    at = range(T) if T <= 1000 else sorted({round(i * (T - 1) / 999) for i in range(1000)})
    lrs = [schedule.lr(t, T, epochs=epochs, history=history) for t in at]
    return [*(t * epochs / T for t in at), float(epochs)], [*lrs, lrs[-1]]


def schedules(curves: Mapping[str, Sequence[Schedule]], T: int, epochs: int, title: str = "") -> Figure:
    """A panel for each name with its schedules' learning-rate curves, all on one scale."""
    figure, panels = _panels(list(curves), 3.2, 2.2, "epoch", "learning rate")
    for axes, several in zip(panels, curves.values(), strict=True):
        for schedule in several:
            look = style(schedule.type) | {"linestyle": "-"}
            x, y = curve(schedule, T, epochs)
            axes.plot(x, y, drawstyle="steps-post", linewidth=1.2, alpha=0.9 if len(several) == 1 else 0.55, **look)
    panels[0].set_ylim(bottom=0)  # and so of all of them
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def curves_by_accuracy(records: Sequence[Record], plans: Mapping[int, Schedule], T: int, epochs: int) -> Figure:
    """Every trial's learning-rate curve, coloured by its validation accuracy; ``plans``: schedules by trial."""
    accuracies = {r.number: r.history[-1] if r.history else math.nan for r in records}
    scale = Normalize(*_spread([a for a in accuracies.values() if math.isfinite(a)] or [0.0, 1.0]))
    colours, figure = ScalarMappable(scale, "cividis"), Drawn(7.5, 4.2)
    axes, top = figure.add_subplot(), max(r.schedule["init_lr"] for r in records)
    axes.set(yscale="log", ylim=(top * 1e-4, top * 1.5))  # what falls below is zero to the eye
    for record in sorted(records, key=lambda r: (accuracies[r.number] > 0, accuracies[r.number])):  # best on top
        x, y = curve(plans[record.number], T, epochs, record.history)
        accuracy = accuracies[record.number]
        look: dict[str, Any] = {"color": "#999999", "linestyle": ":"}
        if math.isfinite(accuracy):
            look = {"color": to_hex(colours.get_cmap()(scale(accuracy))), "linestyle": "-"}
        axes.plot(x, y, linewidth=1.2, drawstyle="steps-post", **look)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="epoch", ylabel="learning rate")
    figure.colorbar(colours, ax=axes, label="validation accuracy, one seed", extend="min")
    return figure


def accuracy_against_lr(records: Sequence[Record], confirmed: Rows = (), sign: int = 1) -> Figure:
    """Validation accuracy against ``init_lr``, a panel for each schedule; what fresh seeds gave has its interval."""
    names = list(dict.fromkeys(r.name for r in records))
    figure, panels = _panels(names, 2.6, 2.1, "init_lr")
    low, high = _upper([r.value for r in records if r.value is not None], sign)
    ends = [row[end] for row in confirmed if row["in_set"] for end in ("low", "high") if math.isfinite(row[end])]
    limits = min([low, *ends]), max([high, *ends])
    lrs = [r.schedule["init_lr"] for r in records]
    square: dict[str, Any] = {"fmt": "s", "color": "black", "markersize": 4, "capsize": 2}
    for axes, name in zip(panels, names, strict=True):
        several = [r for r in records if r.name == name]
        colour = style(several[0].schedule["type"])["color"]
        points = [(r.schedule["init_lr"], r.value) for r in several if r.value is not None]
        _points(axes, points, limits, color=colour, marker="o", alpha=0.6, markersize=4)
        for row in confirmed:
            if row["name"] == name and row["mean"] is not None and math.isfinite(row["low"]):
                wide = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
                axes.errorbar([row["init_lr"]], [row["mean"]], yerr=wide, **square)
        axes.set(xscale="log", xlim=(min(lrs) / 1.5, max(lrs) * 1.5))  # however close they are
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    figure.supylabel("objective (o one seed;\nsquare: fresh seeds, 95 %;\narrow: farther out)", fontsize=8)
    return figure


def confidence_set(confirmed: Rows) -> Figure:
    """How far each confirmed schedule is behind the best, with simultaneous intervals; filled: it may be the best."""
    rows = [r for r in confirmed if r["behind"] is not None][::-1]
    far = -4 * max((r["behind_high"] for r in rows if r["in_set"]), default=1.0) or -math.inf
    figure = Drawn(7.5, 0.32 * len(rows) + 1.2)
    axes = figure.add_subplot()
    for y, row in enumerate(rows):
        colour = style(row["type"])["color"]
        if -row["behind"] < far:  # so that it does not press the others together
            axes.plot([far], [y], "<", color=colour, markerfacecolor="white")
            behind = f"  {row['behind']:.2g} behind ({row['behind_low']:.2g} to {row['behind_high']:.2g})"
            axes.annotate(behind, (far, y), va="center", fontsize=7)
            continue
        axes.plot([-row["behind_high"], -row["behind_low"]], [y, y], color=colour, linewidth=1.6)
        axes.plot([-row["behind"]], [y], "o", color=colour, markerfacecolor=colour if row["in_set"] else "white")
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.set_xlim(left=max(far, -1.1 * max(r["behind_high"] for r in rows)) * 1.03 or -0.01)
    axes.set_yticks(range(len(rows)), [f"{r['name']} (trial {r['trial']}, {r['behind_seeds']} seeds)" for r in rows])
    what = "how far behind the best mean, with 95 % intervals for all together (filled: may be the best)"
    axes.set_xlabel(what, fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    return figure


def sweep_figures(
    records: Sequence[Record], plans: Mapping[int, Schedule], T: int, epochs: int, confirmed: Rows = (), sign: int = 1
) -> dict[str, Figure]:
    """The figures of a sweep, by file name. Trials that failed or have no finished epoch are left out."""
    seen = [r for r in records if r.epochs and r.outcome != "failed"]
    done = best_first(seen, sign, confirmed)  # as the table has them
    made = {}
    if seen:
        made["lr_curves_by_accuracy.png"] = curves_by_accuracy(seen, plans, T, epochs)
    if done:
        made["accuracy_against_lr.png"] = accuracy_against_lr(done, confirmed, sign)
    if any(row["behind"] is not None for row in confirmed):
        made["confidence_set.png"] = confidence_set(confirmed)
    return made


def sweep(name: str = "digits", mlflow_yaml: str | None = None) -> dict[str, Figure]:
    """The figures of a sweep that has been run, by name; each shows itself in a notebook.

    Raises:
        SpecError: there is no such sweep.
    """
    facts, records = load_study(name, load_place(mlflow_yaml).storage)
    epochs = max((len(r.epochs) for r in records), default=1)
    loadable = [r for r in records if "function" not in r.schedule]
    plans, T = {r.number: load(r.schedule) for r in loadable}, facts["updates_per_epoch"] * epochs
    made = sweep_figures(loadable, plans, T, epochs, facts["confirmed"], sign=facts["sign"])
    return {file.removesuffix(".png"): figure for file, figure in made.items()}


def save(figure: Figure, path: Path) -> Path:
    if path.suffix == ".png":
        figure.set_dpi(140)
        # savefig would draw it once more, for its layout
        FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]
    else:
        figure.savefig(path)
    return path


class Drawn(Figure):
    """A figure that shows itself in a notebook; without pyplot: no window, no state shared between threads."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained")

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, dpi=110)
        return buffer.getvalue()


def _panels(
    names: Sequence[str], width: float, height: float, xlabel: str, ylabel: str = ""
) -> tuple[Figure, list[Axes]]:
    """A figure with a small panel for each name, all on the same scales."""
    columns = min(4, math.ceil(math.sqrt(len(names))))
    rows = math.ceil(len(names) / columns)
    figure, panels = Drawn(width * columns, height * rows + 0.4), list[Axes]()
    for i, name in enumerate(names):
        first = panels[0] if panels else None
        axes = figure.add_subplot(rows, columns, i + 1, sharex=first, sharey=first)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        if i >= len(names) - columns:
            axes.set_xlabel(xlabel, fontsize=8)
        if i % columns == 0:
            axes.set_ylabel(ylabel, fontsize=8)
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
    ordered = sorted(values, key=lambda v: sign * v)
    bar, best = ordered[len(ordered) // 4], ordered[-1]
    room = 0.08 * abs(best - bar) or 0.01
    return tuple(sorted((bar - sign * 4 * room, best + sign * room)))  # type: ignore[return-value]


def _spread(values: Sequence[float]) -> tuple[float, float]:
    # From the first quartile upward: one trial that failed to learn must not make all others look alike.
    low, high = sorted(values)[len(values) // 4], max(values)
    return (low, high) if high > low else (low - 0.01, high + 0.01)
