"""Figures of schedules and sweeps, as matplotlib figures: readable in grey, the same colour for a type everywhere."""

from __future__ import annotations

import html
import io
import math
import operator
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from .schedules import Schedule, load, summary
from .spec import Record, best_first
from .zoo import TYPES

PAGE = 300
"""Curves on a web page: more of them no browser likes, and nobody looks at."""
# Okabe and Ito's colours, which colour-blind people tell apart; the line style tells the rest.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = "os^DvPX*hd"
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


def with_curves(records: Sequence[Record]) -> list[Record]:
    """The trials that have something to draw."""
    return [r for r in records if r.epochs and r.outcome != "failed"]


def curves_by_accuracy(records: Sequence[Record], plans: Mapping[int, Schedule], T: int, epochs: int) -> Figure:
    """Every trial's learning-rate curve, coloured by its validation accuracy; ``plans``: schedules by trial."""
    figure = Drawn(7.5, 4.2)
    axes = figure.add_subplot()
    axes.set_yscale("log")
    axes.set_ylim(*_log_limits(records))
    colours, ranked = _by_accuracy(records)
    for record, accuracy, colour in ranked:
        x, y = curve(plans[record.number], T, epochs, record.history)
        line = "-" if math.isfinite(accuracy) else ":"
        axes.plot(x, y, color=colour, linestyle=line, linewidth=1.2, drawstyle="steps-post")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate")
    figure.colorbar(colours, ax=axes, label="validation accuracy, one seed", extend="min")
    return figure


def _by_accuracy(records: Sequence[Record]) -> tuple[ScalarMappable, list[tuple[Record, float, str]]]:
    """The colours of accuracies; the trials with theirs and its colour, the best last, so drawn above the others."""
    accuracies = [r.history[-1] if r.history else math.nan for r in records]
    scale = Normalize(*_spread([a for a in accuracies if math.isfinite(a)] or [0.0, 1.0]))
    colours = ScalarMappable(scale, "cividis")
    drawn = [to_hex(colours.get_cmap()(scale(a))) if math.isfinite(a) else "#999999" for a in accuracies]
    return colours, sorted(zip(records, accuracies, drawn, strict=True), key=lambda x: (x[1] > 0, x[1]))


def page(records: Sequence[Record], plans: Mapping[int, Schedule], T: int, epochs: int, title: str = "") -> str:
    """``curves_by_accuracy`` as a web page: point at a curve to see which it is, click a schedule to hide its own.

    It holds all it needs, plotly's code too, and asks no network. Of many trials the ``PAGE`` best are on it.
    """
    import plotly.graph_objects as go  # here: half a second that only a report needs

    figure, (colours, ranked) = go.Figure(), _by_accuracy(records)
    best = {record.name: record.number for record, *_ in ranked if record.outcome == "complete"}
    kept = [row for row in ranked[:-PAGE] if row[0].number in best.values()] + ranked[-PAGE:]
    lines = textwrap.wrap(title, 100) + [f"{len(kept)} of {len(ranked)} trials"] * (len(kept) < len(ranked))
    for record, accuracy, colour in kept:
        x, y = curve(plans[record.number], T, epochs, record.history)
        whole = record.outcome == "complete" and math.isfinite(accuracy)
        said = f"{record.name}, {record.title}: " + f"{accuracy:.4g}, one seed" * math.isfinite(accuracy)
        said += "" if whole else f" {record.outcome} after {len(record.epochs)} epochs"
        peak = f"init_lr {record.schedule['init_lr']:.3g}"
        own = html.escape(", ".join(filter(None, [peak, summary(record.schedule)])))
        figure.add_scatter(
            x=np.asarray(x, dtype="float32"),  # which plotly packs
            y=np.asarray(y, dtype="float32"),
            name=record.name,
            legendgroup=record.name,
            showlegend=record.number == best.get(record.name),
            line={"shape": "hv", "width": 2, "color": colour, "dash": "solid" if whole else "dot"},
            hovertemplate=f"<b>{html.escape(said)}</b><br>{own}<br>epoch %{{x:.2f}}: lr %{{y:.3g}}<extra></extra>",
        )
    low, high = colours.get_clim()
    bar = {"colorscale": "Cividis", "cmin": low, "cmax": high, "color": [low], "showscale": True, "opacity": 0}
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        showlegend=False,
        marker={**bar, "colorbar": {"title": "accuracy, one seed", "x": 1.02}},
    )
    bottom, top = _log_limits(records)
    limits = {"log": [math.log10(bottom), math.log10(top)], "linear": [0, top]}
    scales = [
        {"label": kind, "method": "relayout", "args": [{"yaxis.type": kind, "yaxis.range": ends}]}
        for kind, ends in limits.items()
    ]
    figure.update_layout(
        title="<br>".join(map(html.escape, lines)),
        margin={"t": 80 + 20 * len(lines)},
        template="simple_white",
        xaxis_title="epoch",
        yaxis={"title": "learning rate", "type": "log", "range": limits["log"], "tickformat": "~g"},
        legend={
            "orientation": "h",
            "y": -0.15,
            "traceorder": "reversed",
            "title": "the best of each; click to hide: ",
        },
        updatemenus=[{"buttons": scales, "type": "buttons", "direction": "right", "x": 1, "y": 1.1}],
    )
    return str(figure.to_html(include_plotlyjs=True, config={"displaylogo": False}))


def best_curves(records: Sequence[Record], plans: Mapping[int, Schedule], T: int, epochs: int) -> Figure:
    """Learning rate above validation accuracy for the given trials."""
    figure = Drawn(7.5, 5.2)
    above, below = figure.subplots(2, 1, sharex=True)
    for record, marker in zip(records, MARKERS * len(records), strict=False):
        label = f"{record.name} (trial {record.number}, one seed {record.history[-1]:.2%})"
        x, y = curve(plans[record.number], T, epochs, record.history)
        look = style(record.schedule["type"]) | {"marker": marker, "markersize": 4, "linewidth": 1.2}
        above.plot(x, y, label=label, drawstyle="steps-post", markevery=max(1, len(x) // 8), **look)
        below.plot([e["epoch"] + 1 for e in record.epochs], record.history, **look)
    above.set_ylabel("learning rate")
    below.set_ylabel("validation accuracy")
    below.set_xlabel("epoch")
    above.legend(fontsize=7, loc="best")
    return figure


def accuracy_by_type(
    records: Sequence[Record],
    confirmed: Sequence[Mapping[str, Any]] = (),
    sign: int = 1,
    names: Sequence[str] = (),
) -> Figure:
    """Every trial's objective by schedule, the best on top; below them the fresh seeds of its best.

    ``names``: schedules that have a row even where no trial of theirs came to its end.
    """
    kinds = {r.name: r.schedule["type"] for r in records}
    values = {name: [r.value for r in records if r.name == name and r.value is not None] for name in [*names, *kinds]}
    seeds = {row["name"]: row for row in confirmed if row["best_of_type"] and row["mean"] is not None}

    def worth(name: str) -> float:
        if name in seeds:
            return float(sign * seeds[name]["mean"])
        return max((sign * v for v in values[name]), default=-1e9) - 1e9

    order = sorted(values, key=worth)
    figure = Drawn(7.5, 0.42 * len(order) + 1.2)
    axes = figure.add_subplot()
    low, high = _in_view([r.value for r in records if r.value is not None], seeds.values(), sign)
    for y, name in enumerate(order):
        colour = style(kinds[name])["color"] if name in kinds else "0.5"
        _dots(axes, values[name], y + 0.15, (low, high), marker="o", alpha=0.5, color=colour)
        if name in seeds:
            look = {"marker": "D", "color": colour, "mec": "black"}
            _dots(axes, seeds[name]["values"], y - 0.2, (low, high), mean=seeds[name]["mean"], **look)
    room = 0.02 * (high - low)
    axes.set_xlim(low - room, high + room)
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.set_yticks(range(len(order)), [f"{n} ({len(values[n])})" for n in order])
    said = "o: a trial, one seed; diamonds: fresh seeds of its best, | their mean; arrow: farther out"
    axes.set_xlabel(f"objective ({said})", fontsize=7)
    axes.grid(axis="x", alpha=0.3)
    return figure


def _in_view(values: Sequence[float], confirmed: Iterable[Mapping[str, Any]], sign: int) -> tuple[float, float]:
    """Limits that tell those apart that may be the best: their seeds; else the better trials."""
    near = [v for row in confirmed if row["in_set"] for v in row["values"]]
    if not near:
        return _upper(values, sign)
    low, high = min(near), max(near)
    worse, better = 3 * max(high - low, 0.005 * abs(high)), 0.1 * (high - low) or 0.01
    if sign > 0:
        return max(low - worse, min([*values, low]) - better), high + better
    return low - better, min(high + worse, max([*values, high]) + better)


def _dots(
    axes: Any, values: Sequence[float], y: float, limits: tuple[float, float], mean: float | None = None, **look: Any
) -> None:
    """Values in a row, their mean as a bar; an arrow at the edge for those farther out, and how far they are."""
    low, high = limits
    inside = [v for v in values if low <= v <= high]
    axes.plot(inside, [y] * len(inside), linestyle="", markersize=4.5, **look)
    if mean is not None and low <= mean <= high:
        axes.plot([mean], [y], "|", color="black", markersize=14)
    for edge, mark, side, beyond in ((low, "<", 6, operator.lt), (high, ">", -6, operator.gt)):
        if out := sorted(v for v in values if beyond(v, edge)):
            axes.plot([edge], [y], mark, color=look["color"], markersize=5, clip_on=False)
            said = ", ".join(f"{v:.3g}" for v in out[:3]) + ", ..." * (len(out) > 3)
            if mean is not None and beyond(mean, edge):
                said = f"mean {mean:.3g}"
            at = {"va": "center", "ha": "left" if side > 0 else "right", "fontsize": 6}
            axes.annotate(said, (edge, y), (side, 0), textcoords="offset points", **at)


def history(records: Sequence[Record], sign: int = 1) -> Figure:
    """The search in the order of its trials: what each gave, and how far the best so far was behind at last."""
    done = [(r.number, r.value, r.name) for r in records if r.value is not None]
    figure = Drawn(7.5, 4.2)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    best = list(accumulate((sign * v for _, v, _ in done), max))
    kinds = {r.name: r.schedule["type"] for r in records if r.value is not None}
    limits = low, high = _upper([v for _, v, _ in done], sign)
    for (name, kind), marker in zip(kinds.items(), MARKERS * len(done), strict=False):
        mine = [(n, v) for n, v, other in done if other == name]
        _points(above, mine, limits, label=name, color=style(kind)["color"], marker=marker, markersize=5)
    numbers = [n for n, _, _ in done]
    above.plot(numbers, [sign * b for b in best], color="black", linewidth=1, drawstyle="steps-post")
    if lost := [r.number for r in records if r.value is None]:  # an empty line would collapse the axes
        worst = above.get_ylim()[0 if sign > 0 else 1]
        above.plot(lost, [worst] * len(lost), "x", color="0.5", markersize=5, clip_on=False)
    regret = [best[-1] - b for b in best]
    below.set_ylim(-0.02 * (high - low), min(1.05 * max(regret), high - low) or high - low)
    above.set_ylabel("objective, one seed\n(line: best so far; arrow: farther out)", fontsize=8)
    above.legend(fontsize=6, ncols=4)
    below.plot(numbers, regret, color="black", drawstyle="steps-post")
    below.set_ylabel("regret, one seed", fontsize=8)
    below.set_xlabel("trial")
    below.xaxis.get_major_locator().set_params(integer=True)
    return figure


def importance(weights: Mapping[str, float]) -> Figure:
    """How much of what they explain each parameter explains."""
    rows = list(weights.items())[:10][::-1]
    figure = Drawn(6, 0.32 * len(rows) + 1.0)
    axes = figure.add_subplot()
    axes.barh(
        [name for name, _ in rows], [share for _, share in rows], color="0.55", edgecolor="black", linewidth=0.6
    )
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of what these explain (PED-ANOVA)", fontsize=8)
    return figure


def accuracy_against_lr(
    records: Sequence[Record], confirmed: Sequence[Mapping[str, Any]] = (), sign: int = 1
) -> Figure:
    """Validation accuracy against ``init_lr``, a panel for each schedule; what fresh seeds gave has its interval."""
    names = list(dict.fromkeys(r.name for r in records))
    figure, panels = _panels(names, 2.6, 2.1, "init_lr")
    low, high = _upper([r.value for r in records if r.value is not None], sign)
    ends = [row[end] for row in confirmed if row["in_set"] for end in ("low", "high") if math.isfinite(row[end])]
    limits = min([low, *ends]), max([high, *ends])
    lrs = [r.schedule["init_lr"] for r in records]
    for axes, name in zip(panels, names, strict=True):
        several = [r for r in records if r.name == name]
        colour = style(several[0].schedule["type"])["color"]
        points = [(r.schedule["init_lr"], r.value) for r in several if r.value is not None]
        _points(axes, points, limits, color=colour, marker="o", alpha=0.6, markersize=4)
        for row in confirmed:
            if row["name"] == name and row["mean"] is not None and math.isfinite(row["low"]):
                wide = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
                axes.errorbar(
                    [row["init_lr"]], [row["mean"]], yerr=wide, fmt="s", color="black", markersize=4, capsize=2
                )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(min(lrs) / 1.5, max(lrs) * 1.5)  # however close they are
        axes.grid(alpha=0.3)
    figure.supylabel("objective (o one seed;\nsquare: fresh seeds, 95 %;\narrow: farther out)", fontsize=8)
    return figure


def confidence_set(confirmed: Sequence[Mapping[str, Any]]) -> Figure:
    """How far each confirmed schedule is behind the best, with simultaneous intervals; filled: it may be the best."""
    rows = [r for r in confirmed if r["behind"] is not None][::-1]
    far = -4 * max((r["behind_high"] for r in rows if r["in_set"]), default=1.0) or -math.inf
    figure = Drawn(7.5, 0.32 * len(rows) + 1.2)
    axes = figure.add_subplot()
    for y, row in enumerate(rows):
        colour = style(row["type"])["color"]
        if -row["behind"] < far:  # so that it does not press the others together
            axes.plot([far], [y], "<", color=colour, markerfacecolor="white")
            said = f"  {row['behind']:.2g} behind ({row['behind_low']:.2g} to {row['behind_high']:.2g})"
            axes.annotate(said, (far, y), va="center", fontsize=7)
            continue
        axes.plot([-row["behind_high"], -row["behind_low"]], [y, y], color=colour, linewidth=1.6)
        axes.plot([-row["behind"]], [y], "o", color=colour, markerfacecolor=colour if row["in_set"] else "white")
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.set_xlim(left=max(far, -1.1 * max(r["behind_high"] for r in rows)) * 1.03 or -0.01)
    axes.set_yticks(range(len(rows)), [f"{r['name']} (trial {r['trial']}, {r['behind_seeds']} seeds)" for r in rows])
    axes.set_xlabel(
        "how far behind the best mean, with 95 % intervals for all together (filled: may be the best)", fontsize=8
    )
    axes.grid(axis="x", alpha=0.3)
    return figure


def robustness(strip: Sequence[Mapping[str, Any]]) -> Figure:
    """What halving and doubling the winner's init_lr, warmup and budget does."""
    known = [row for row in strip if row["difference"] is not None]
    figure = Drawn(6, 0.32 * len(known) + 1.0)
    axes = figure.add_subplot()
    for y, row in enumerate(known):
        if math.isfinite(row["low"]):
            axes.plot([row["low"], row["high"]], [y, y], color="black", linewidth=1.4)
        axes.plot([row["difference"]], [y], "o", color="black")
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.set_ylim(-0.6, len(known) - 0.4)
    axes.set_yticks(range(len(known)), [row["change"] for row in known])
    axes.set_xlabel("difference to the first of the table, same seeds (95 %)")
    return figure


def sweep_figures(
    records: Sequence[Record],
    plans: Mapping[int, Schedule],
    T: int,
    epochs: int,
    confirmed: Sequence[Mapping[str, Any]] = (),
    strip: Sequence[Mapping[str, Any]] = (),
    weights: Mapping[str, float] | None = None,
    sign: int = 1,
    names: Sequence[str] = (),
) -> dict[str, Figure]:
    """The figures of a sweep, by file name. Trials that failed or have no finished epoch are left out."""
    seen = with_curves(records)
    done = best_first(seen, sign, confirmed)  # as the table has them
    made = {}
    if seen:
        made["lr_curves_by_accuracy.png"] = curves_by_accuracy(seen, plans, T, epochs)
    if done:
        made["best_curves.png"] = best_curves(done[:5], plans, T, epochs)
        made["accuracy_by_type.png"] = accuracy_by_type(done, confirmed, sign, names)
        made["history.png"] = history(records, sign)
        made["accuracy_against_lr.png"] = accuracy_against_lr(done, confirmed, sign)
    if any(row["behind"] is not None for row in confirmed):
        made["confidence_set.png"] = confidence_set(confirmed)
    if strip:
        made["robustness.png"] = robustness(strip)
    if weights and len(weights) > 1:  # one alone has all of it
        made["importance.png"] = importance(weights)
    return made


def sweep(name: str = "digits", mlflow_yaml: str | None = None) -> dict[str, Figure]:
    """The figures of a sweep that has been run, by name; each shows itself in a notebook.

    Raises:
        SpecError: there is no such sweep.
    """
    from . import export
    from .place import load_place

    facts, records = export.read(name, load_place(mlflow_yaml))
    if "missing" in facts:
        warnings.warn(facts["missing"], stacklevel=2)
    epochs = max((len(r.epochs) for r in records), default=1)
    plans = {r.number: load(r.schedule) for r in records if "function" not in r.schedule}
    known = [r for r in records if r.number in plans]
    T = facts["updates_per_epoch"] * epochs
    made = sweep_figures(known, plans, T, epochs, facts.get("confirmed", []), sign=facts["sign"])
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


def _log_limits(records: Sequence[Record]) -> tuple[float, float]:
    """Four decades below the highest peak: what falls below is zero to the eye."""
    top = max(r.schedule["init_lr"] for r in records)
    return top * 1e-4, top * 1.5
