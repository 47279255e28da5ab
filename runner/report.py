"""What a sweep found: tables, figures, the parent run's description, and what the terminal says at the end."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .confidence import Noise, calibration, seeds_needed, share
from .confirm import Confirmation, Verdict, amount, ledger, verdict
from .document import SpecError
from .place import Place, StorageError
from .space import problems
from .spec import ENOUGH, Record, Sweep, best_first, first_of_each
from .study import Study, earlier_noise
from .terminal import event, say, show
from .tracking import Tracker, escape

if TYPE_CHECKING:
    from .data import Dataset

SHOWN = ("lr_curves_by_accuracy.png", "confidence_set.png", "accuracy_by_type.png", "accuracy_against_lr.png")
"""The figures in the parent run's description."""
FEW = 5
"""Trials of a schedule below which its best init_lr is hardly known."""
MANY = 100
"""Seeds for each schedule that nobody will spend."""
ONE_SEED = (
    "One seed each: what tells the first ones apart may be no more than what another seed changes. With confirm: "
    "{top: 3} in the sweep file, the same command trains the best again with fresh seeds."
)


def folder(place: Place, sweep: Sweep) -> Path:
    """Where a sweep's results go; made, so that a sweep is not trained for nothing.

    Raises:
        SpecError: it cannot be written to.
    """
    path = place.folder / "results" / sweep.name
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / ".write").touch()
        (path / ".write").unlink()
    except OSError as error:
        raise SpecError(f"the results cannot be written to {path}: {error.strerror}") from None
    return path


def doubts(sweep: Sweep, dataset: Dataset, allow: Sequence[str] = ()) -> list[str]:
    """What is wrong with data that are too few for the question, and with schedules that do not do what they say."""
    said, size, images, val = [], sweep.train.batch_size, len(dataset.train), len(dataset.val)
    if (updates := sweep.train.updates(images)) < 5:
        said.append(
            f"batches of {size} from {images} images are {updates} update{'s' * (updates > 1)} of the weights in an "
            "epoch: a smaller train.batch_size gives the schedules more to do"
        )
    if val < 200:
        said.append(f"{_many(val, 'validation image')}: one of them is {amount(1 / val, True)} of accuracy")
    counts = dataset.train.labels.bincount(minlength=dataset.classes).tolist()
    if absent := [label for label, n in enumerate(counts) if not n]:
        said.append(
            f"{len(absent)} of {dataset.classes} classes without a training image, the first is {absent[0]}: labels "
            "count from 0 without gaps; data.limit and the other splits may have the images of a small class"
        )
    epochs = sweep.train.epochs
    return said + problems(sweep.schedules.check(allow), updates * epochs, epochs)


def caveats(sweep: Sweep, place: Place, dataset: Dataset, allow: Sequence[str] = ()) -> list[str]:
    """What should be known before anything is trained."""
    said, pruner = [f"warning: {problem}" for problem in doubts(sweep, dataset, allow)], sweep.search.pruner
    if pruner != "none":
        said.append(
            f"warning: the {pruner} pruner judges truncated curves, which favour schedules that decay early "
            f"(docs/trust.md has what that cost); {sweep.search.parole:.0%} of what it stops is trained to its end, "
            "to measure that"
        )
    known = earlier_noise(sweep, place.storage)
    if known is not None:
        name, measured = known
        sentence = ledger(Noise(**measured), sweep.confirm.seeds, sweep.objective.points, max(2, sweep.arms))
        said.append(f"known from {name}: {sentence}")
    return said


def write(history: Study, rungs: Sequence[Study], replicates: Confirmation | None, tracker: Tracker) -> None:
    """Write tables and figures, put them on the parent run, and print what was found and where it lies."""
    from . import export, figures  # here: pandas and matplotlib take a second, before which lanes can train

    sweep, place, options = tracker.sweep, tracker.place, tracker.options
    stages = [history, *rungs, *filter(None, [replicates])]

    def trainings() -> list[Record]:
        return [record for stage in stages for record in stage.ended()]

    tracker.settle(trainings())
    for stage in stages:
        stage.remember_runs(tracker.runs)
    records, epochs = history.ended(), sweep.train.epochs
    answer = verdict(replicates.ended(), replicates.arms, sweep) if replicates else None
    rows = answer.rows if answer else []
    history.remember(confirmed=rows)
    if answer and answer.noise:
        history.remember(noise={"seed": answer.noise.seed, "paired": answer.noise.paired})
    sign, facts = sweep.objective.sign, history.facts
    try:
        path = folder(place, sweep)
        paths = export.result_files(path, history, trainings())
    except SpecError as error:
        raise StorageError(str(error)) from None
    T, plans = facts["updates_per_epoch"] * epochs, {r.number: history.schedule(r) for r in records}
    strip, weights = answer.strip if answer else [], history.importance()
    names = list(sweep.schedules.schedules)
    drawn = figures.sweep_figures(records, plans, T, epochs, rows, strip, weights, sign, names)
    paths |= {name: figures.save(figure, path / name) for name, figure in drawn.items()}
    if seen := figures.with_curves(records):
        paths["lr_curves.html"] = path / "lr_curves.html"
        html = figures.page(seen, plans, T, epochs, sweep.question)
        paths["lr_curves.html"].write_text(html, encoding="utf-8")

    table, sentences = export.best_table(records, sign, 10, rows), _sentences(history, rungs, answer, weights)
    measured, first = answer.noise if answer else None, rungs[0].ended() if rungs else None
    labels = tracker.dataset.val.labels
    chance = float(labels.bincount().max()) / len(labels)  # of always giving the most frequent class
    steps = next_steps(records, rows, sweep, measured, chance, first)
    history.remember(answer=[*sentences, *steps])
    counts = {o: sum(r.outcome == o for r in records) for o in ("complete", "diverged", "stopped", "failed")}
    said = (
        f"{_many(len(records), 'trial')}: " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items() if n) + "."
    )
    if len(table) < counts["complete"]:
        said += f" The table has the first {len(table)}."
    if rungs:
        before = ", ".join(f"{_many(len(r.ended()), 'training')} of {_many(r.epochs, 'epoch')}" for r in rungs)
        said += f" Before them, on rungs: {before} (trainings.csv)."

    again = options.command + place.option

    def page(at: Callable[[str], str]) -> str:
        """The report in markdown, with figures where ``at`` finds them."""
        parts = [f"**{escape(sweep.question)}**", *map(escape, sentences), export.markdown(table, escape), said]
        parts += [f"![{name.removesuffix('.png')}]({at(name)})" for name in SHOWN if name in drawn]
        parts += [f"[Every curve, to point at]({at('lr_curves.html')})"] * ("lr_curves.html" in paths)
        no_markup = re.fullmatch(r"[\w ./~:='\"-]+", again)
        command = f"`{again}`" if no_markup else "the command that ran it"
        return "\n\n".join([*parts, *map(escape, steps), f"Reproduce, continue, or add trials: {command}."]) + "\n"

    paths["report.md"] = path / "report.md"
    paths["report.md"].write_text(page(str), encoding="utf-8")
    missed = tracker.finish(paths.values(), page, _summary(counts, history, answer))

    files = {name: str(file) for name, file in paths.items()}
    event(
        "answer",
        sweep=sweep.name,
        sentences=sentences,
        next=steps,
        confirmed=rows,
        outcomes=counts,
        mlflow_lacks=missed,
        files=files,
        pages=tracker.links(),
    )
    say(f"\n{sweep.question}\n")
    say("\n".join(f"- {sentence}" for sentence in sentences), markdown=True)
    show(export.for_people(table))
    say("\n".join(f"- {step}" for step in [said, *steps]), markdown=True)
    here = Path.cwd()
    say(f"report, tables, figures and code: {path.relative_to(here) if path.is_relative_to(here) else path}/")
    if len(table):
        say(f"the first one's code: python -m runner.export {sweep.name} --code 1{options.plugins}{place.option}")
    if missed:
        say(f"MLflow lacks something ({missed}); {again} --sync sends it")
    ui = f" python -m runner.ui {sweep.name}{place.option}   and open"
    say(f"browse:{'' if place.served else ui}")
    for what, link in tracker.links().items():
        say(f"  {what}: {link}")


def next_steps(
    records: Sequence[Record],
    rows: Sequence[Mapping[str, Any]],
    sweep: Sweep,
    measured: Noise | None,
    chance: float = 0.0,
    searched: Sequence[Record] | None = None,
) -> list[str]:
    """What would make the answer better, each with how to do it; most urgent first.

    ``chance`` is the accuracy that no learning at all would give; ``searched`` are the trials of the first rung, of a
    search that has rungs.
    """
    said = list[str]()
    best = max((a for r in records for a in r.history if math.isfinite(a)), default=1.0)
    if best < chance + (1 - chance) / 10:
        said.append(
            f"Hardly anything was learnt: the best accuracy is {best:.3g}, and always giving the most frequent class "
            f"has {chance:.3g}. More images, more epochs or another range of init_lr come first."
        )
    said += _hardly_tried(records if searched is None else searched, sweep)
    ended, full = {r.name for r in best_first(searched or [], 1)}, {r.name for r in records}
    if gone := [name for name in sweep.schedules.schedules if name in ended - full]:
        said.append(
            f"On shorter trainings not among the best, and not trained in full: {', '.join(gone)}. The answer says "
            f"nothing about {_them(gone)} at full length; a new sweep with a larger search.keep takes more along."
        )
    alive = [row for row in rows if row["in_set"] and row["mean"] is not None]
    if len(alive) > 1 and measured is not None and measured.paired > 0:
        first, second = alive[:2]
        apart, arms = abs(first["mean"] - second["mean"]), sum(row["mean"] is not None for row in rows)
        unit = amount(apart, sweep.objective.points)
        pair = " and ".join(f"{row['name']} (trial {row['trial']})" for row in (first, second))
        needed = seeds_needed(apart, measured.paired, arms) if apart > measured.paired / 50 else math.inf
        if apart == 0:
            said.append(f"{pair} have the same mean: how many seeds would tell them apart is not known.")
        elif needed > MANY:
            said.append(f"{pair} differ by {unit} as measured; to show that takes more than {MANY} seeds each.")
        else:
            said.append(
                f"If {pair} differ by the {unit} that was measured, about {max(needed, first['seeds'] + 1)} seeds "
                "each show it: raise confirm.seeds, and the same command goes on with them."
            )
    alike = {row["trial"] for row in rows if row["in_set"]}
    ends = {f"{r.name} (trial {r.number})": edge(r, sweep) for r in records if r.number in alike}
    for end in ("lower", "upper"):
        if at := [name for name, where in ends.items() if where == end]:
            said.append(f"init_lr at the {end} end of its range: {', '.join(at)}. A new sweep may widen it there.")
    if alike and not sweep.confirm.strip:
        winner = next(r for r in records if r.number == rows[0]["trial"])
        warmup = any(winner.schedule["warmup"].get(unit) for unit in ("fraction", "epochs", "updates"))
        needs = "its init_lr, and whether its warmup" if warmup else "its init_lr"
        said.append(
            f"How exactly {winner.name} (trial {winner.number}) needs {needs}: with confirm.strip: true in the file, "
            "the same command trains it with less and more of each."
        )
    return said


def _hardly_tried(searched: Sequence[Record], sweep: Sweep) -> list[str]:
    """The schedules of which the search knows little or nothing, and how many trials would change that."""
    said, names = list[str](), list(sweep.schedules.schedules)
    tried, ended = Counter(r.name for r in searched), Counter(r.name for r in best_first(searched, 1))
    ways = {n: Counter(str(r.outcome) for r in searched if r.name == n) for n in names if tried[n] and not ended[n]}
    if lost := [name for name, way in ways.items() if set(way) == {"diverged"}]:
        said.append(f"Always diverged: {', '.join(lost)}. A lower init_lr may help.")
    if others := {name: way for name, way in ways.items() if name not in lost}:
        causes = {r.name: f": {r.cause}" for r in searched if r.cause}
        listed = (
            f"{name} ({', '.join(f'{n} {outcome}' for outcome, n in way.items())}{causes.get(name, '')})"
            for name, way in others.items()
        )
        said.append(f"Never came to an end: {'; '.join(listed)}.")
    missing = [name for name in names if not tried[name]]
    if missing:
        said.append(f"Never tried: {', '.join(missing)}. The answer says nothing about {_them(missing)}.")
    few = [name for name in names if 0 < ended[name] < FEW]
    if few:
        even = 1 < len(few) == len(names) and len(set(ended.values())) == 1
        listed_few = f"{ended[few[0]]} of each schedule" if even else ", ".join(f"{n} {ended[n]}" for n in few)
        said.append(f"Few trials: {listed_few}. Another init_lr may be better there.")
    lacking = [FEW - ended[name] for name in [*missing, *few]]
    points = sweep.schedules.grid() if sweep.search.sampler == "grid" else math.inf
    if lacking and len(searched) < points:
        if points < math.inf:  # schedule after schedule
            more, goes_on = int(points) - len(searched), " is the whole grid; the same command goes on with it."
        elif sweep.search.balance == "equal" or len(names) < 2:
            turns = Counter({name: tried[name] for name in names})
            while any(turns[name] < tried[name] + FEW - ended[name] for name in [*missing, *few]):
                turns[min(names, key=turns.__getitem__)] += 1  # as the study goes on
            more = turns.total() - len(searched)
            goes_on = f" gives {FEW}{' of each' * (len(names) > 1)}; the same command goes on with them."
        else:
            more = sum(lacking)
            goes_on = " or more, and the same command goes on with them; "
            goes_on += "balance: equal, in a new sweep, gives each as many."
        said[-1] += f" In the file, search.trials: {len(searched) + more}{goes_on}"
    return said


def _them(names: Sequence[str]) -> str:
    return "them" if len(names) > 1 else "it"


def _many(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def edge(record: Record, sweep: Sweep) -> str | None:
    """``lower`` or ``upper`` where a trial's init_lr is in the outer twentieth of its range, else None."""
    for leaf in sweep.schedules.leaves(record.name):
        if leaf.name in ("init_lr", f"{record.name}.init_lr") and leaf.kind in ("uniform", "log_uniform"):
            scale = math.log if leaf.kind == "log_uniform" else float
            low, high, at = (scale(v) for v in (*leaf.values, record.params[leaf.name]))
            if at - low < (high - low) / 20:
                return "lower"
            if high - at < (high - low) / 20:
                return "upper"
    return None


def _sentences(
    history: Study, rungs: Sequence[Study], answer: Verdict | None, weights: Mapping[str, float]
) -> list[str]:
    sweep, records = history.sweep, history.ended()
    said = answer.sentences if answer else [ONE_SEED] * any(r.outcome == "complete" for r in records)
    said = [*said, *(calibrated(rung.ended(), records, sweep) for rung in rungs)]
    if sweep.search.pruner != "none":
        said.append(audited(records, sweep))
    if weights:
        shares = ", ".join(f"{name} {share:.0%}" if len(weights) > 1 else name for name, share in weights.items())
        biased = " The sampler looked where it was good, which flatters what it exploited." * (
            sweep.search.sampler in ("tpe", "gp", "cmaes")
        )
        names = (["type"] if len(sweep.schedules.schedules) > 1 else []) + sweep.schedules.axes()
        hint = len(records) < ENOUGH * len(names)
        few = f" {len(records)} trials are few for {len(names)} parameters: take it as a hint." * hint
        rest = [name for name in names if name not in weights]
        others = ", ".join(rest) if len(rest) < 6 else f"the other {len(rest)} parameters"
        unknown = f" As for {others}: no more than chance explains, or tried too rarely to say." * bool(rest)
        said.append(f"What mattered: {shares}.{unknown}{few}{biased}")
    if answer and answer.strip:
        winner = f"{answer.rows[0]['name']} (trial {answer.rows[0]['trial']})"
        said.append(around(winner, answer.strip, sweep.objective.points))
    return said


def around(winner: str, strip: Sequence[Mapping[str, Any]], points: bool) -> str:
    """What the strip's changes did to the first of the table, in a sentence."""
    unit, scale, parts = (" in points" if points else ", less is better"), (100 if points else 1), []
    for row in strip:
        lost = [f"{row[how]} of {row['seeds']} {how}" for how in ("diverged", "failed") if row[how]]
        if row["difference"] is None:
            said = "diverged" if row["diverged"] == row["seeds"] else ", ".join(lost)
        else:
            apart, low, high = (f"{row[k] * scale:+.2g}" for k in ("difference", "low", "high"))
            within = f" ({low} to {high})" if math.isfinite(row["low"]) else ""
            said = ", ".join([apart + within, *lost])
        parts.append(f"{row['change']} {said}")
    return f"Around {winner}, seed by seed (mean difference{unit}, 95 % interval): {'; '.join(parts)}."


def calibrated(rung: Sequence[Record], full: Sequence[Record], sweep: Sweep) -> str:
    """What a rung's scores said of the full ones, on the trials that have both."""

    def key(record: Record) -> frozenset[tuple[str, Any]]:
        return frozenset(record.params.items())

    ends = {key(r): r.value for r in full if r.value is not None}
    ended = [r for r in rung if r.value is not None and key(r) in ends]
    both = [(r.value or 0.0, ends[key(r)]) for r in first_of_each(ended, key)]
    epochs = next((r.train["epochs"] for r in rung), 0)
    tau, low, high = calibration([a for a, _ in both], [b for _, b in both])
    said = f"Screening at {epochs} of {sweep.train.epochs} epochs: on the {len(both)} trials that went on, "
    if math.isnan(tau):
        return f"{said}too few to say whether its order is that of full training."
    advice = " Its order says little of the full one: search at full length (leave rungs out)." if low <= 0 else ""
    return f"{said}Kendall's tau with full training is {tau:.2f} (95 % interval {low:.2f} to {high:.2f}).{advice}"


def audited(records: Sequence[Record], sweep: Sweep) -> str:
    """What a pruner saved, and how often it was wrong, by the trials on parole.

    A stop is false where the trial, trained to its end, beats the median of the trials that were let pass; one that
    then diverged does not.
    """
    sign = sweep.objective.sign
    passed = [sign * r.value for r in records if r.value is not None and r.stop is None]
    stopped = [r for r in records if r.outcome == "stopped"]
    ended = [r for r in records if r.stop is not None and r.outcome in ("complete", "diverged")]
    parole = [(r, -math.inf if r.value is None else sign * r.value) for r in ended]
    saved = sum(sweep.train.epochs - len(r.epochs) for r in stopped) / max(1, len(records) * sweep.train.epochs)
    said = f"The {sweep.search.pruner} pruner stopped {len(stopped)} trials and saved {saved:.0%} of the epochs."
    if not parole or not passed:
        return f"{said} None was on parole: how often it was wrong is not known."
    bar = statistics.median(passed)
    wrong, of = Counter(r.name for r, v in parole if v > bar), Counter(r.name for r, _ in parole)
    rate, low, high = share(wrong.total(), len(parole))
    by_type = ", ".join(f"{name} {wrong[name]} of {n}" for name, n in of.items())
    lost = " One of them beat all that it let pass." if max(v for _, v in parole) > max(passed) else ""
    return (
        f"{said} Of {len(parole)} on parole {wrong.total()} ended above the median of those that it let pass: "
        f"{rate:.0%} false stops (95 % interval {low:.0%} to {high:.0%}; {by_type}).{lost}"
    )


def _summary(counts: Mapping[str, int], history: Study, answer: Verdict | None) -> dict[str, float]:
    """The parent run's metrics."""
    found = {f"study/{outcome}": float(n) for outcome, n in counts.items()}
    best = history.best()
    if best is not None and best.value is not None:
        found["study/best"] = best.value
    if answer is not None and answer.rows:
        first = answer.rows[0]
        named = {"study/confirmed": first["mean"], "study/test_accuracy": first["test_accuracy"]}
        found |= {name: value for name, value in named.items() if value is not None}
        found["study/confidence_set"] = float(len(answer.alive))
        if answer.noise:
            found["study/seed_deviation"] = answer.noise.seed
    return found
