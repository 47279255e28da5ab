"""What a sweep found, for people: tables, figures, the report, and what the terminal says at the end."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..files.document import SpecError
from ..files.place import Place, StorageError
from ..files.sweep_file import Sweep
from ..files.trial import Record, best_first
from ..study.confirm import Confirmation, Verdict, verdict
from ..study.importance import importance
from ..study.study import Study
from ..tracking.tracker import Tracker, escape
from . import figures
from .answer import next_steps, plural, sentences
from .tables import best_table, code_of, epochs_table, for_people, markdown, trainings_table, trials_table
from .tables import write as write_table
from .terminal import echo, print_table

SHOWN = ("lr_curves_by_accuracy.png", "confidence_set.png", "accuracy_against_lr.png")
"""The figures in the parent run's description."""


@dataclass(frozen=True)
class Answer:
    """What a report says: sentences, what next, the best trials, and how many ended how."""

    question: str
    sentences: Sequence[str]
    next_steps: Sequence[str]
    best: pd.DataFrame
    counts: str
    again: str
    """The command that continues the sweep."""

    def page(self, drawn: Sequence[str], at: Callable[[str], str]) -> str:
        """The report in markdown, with figures where ``at`` finds them."""
        parts = [
            f"**{escape(self.question)}**",
            *map(escape, self.sentences),
            markdown(self.best, escape),
            self.counts,
        ]
        parts += [f"![{name.removesuffix('.png')}]({at(name)})" for name in SHOWN if name in drawn]
        no_markup = re.fullmatch(r"[\w ./~:='\"-]+", self.again)
        command = f"`{self.again}`" if no_markup else "the command that ran it"
        parts += [*map(escape, self.next_steps), f"Reproduce, continue, or add trials: {command}."]
        return "\n\n".join(parts) + "\n"


def write(
    history: Study, rungs: Sequence[Study], replicates: Confirmation | None, tracker: Tracker, again: str
) -> None:
    """Write tables and figures, put them on the parent run, and print what was found and where it lies; ``again`` is
    the command that continues the sweep."""
    sweep, place = history.sweep, tracker.place
    stages = [history, *rungs, *filter(None, [replicates])]

    def trainings() -> list[Record]:
        return [record for stage in stages for record in stage.ended()]

    tracker.flush(trainings())
    for stage in stages:
        stage.remember_runs(tracker.runs)
    found = verdict(replicates.ended(), replicates.arms, sweep) if replicates else None
    rows = found.rows if found else []
    history.remember(confirmed=rows)
    if found and found.noise:
        history.remember(noise={"seed": found.noise.seed, "paired": found.noise.paired})
    answer = _answer(history, rungs, found, tracker.data["majority"], again)
    history.remember(answer=[*answer.sentences, *answer.next_steps])
    try:
        path = place.results(sweep.name)
        paths = _tables_and_code(path, history, trainings())
    except SpecError as error:
        raise StorageError(str(error)) from None
    records, epochs = history.ended(), sweep.train.epochs
    plans, T = {r.number: sweep.schedule(r.schedule) for r in records}, history.facts["updates_per_epoch"] * epochs
    drawn = figures.sweep_figures(records, plans, T, epochs, rows, sweep.objective.sign)
    paths |= {name: figures.save(figure, path / name) for name, figure in drawn.items()}
    paths["report.md"] = path / "report.md"
    paths["report.md"].write_text(answer.page(list(drawn), str), encoding="utf-8")
    ended = max((int(r.epochs[-1]["timestamp"]) for r in trainings() if r.epochs), default=0)
    missed = tracker.finish(paths.values(), lambda at: answer.page(list(drawn), at), _summary(history, found), ended)
    _print(answer, sweep, place, path, tracker, missed)


def _answer(history: Study, rungs: Sequence[Study], found: Verdict | None, majority: float, again: str) -> Answer:
    sweep, records, rows = history.sweep, history.ended(), found.rows if found else []
    table, outcomes = best_table(records, sweep.objective.sign, 10, rows), _outcomes(records)
    first = rungs[0].ended() if rungs else None
    steps = next_steps(records, rows, sweep, found.noise if found else None, majority, first)
    counts = f"{plural(len(records), 'trial')}: "
    counts += ", ".join(f"{n} {outcome}" for outcome, n in outcomes.items() if n) + "."
    if len(table) < outcomes["complete"]:
        counts += f" The table has the first {len(table)}."
    if rungs:
        before = ", ".join(f"{plural(len(r.ended()), 'training')} of {plural(r.epochs, 'epoch')}" for r in rungs)
        counts += f" Before them, on rungs: {before} (trainings.csv)."
    said = sentences(history, rungs, found, importance(history))
    return Answer(sweep.question, said, steps, table, counts, again)


def _print(answer: Answer, sweep: Sweep, place: Place, path: Path, tracker: Tracker, missed: str | None) -> None:
    echo(f"\n{answer.question}\n")
    echo("\n".join(f"- {sentence}" for sentence in answer.sentences), markdown=True)
    print_table(for_people(answer.best))
    echo("\n".join(f"- {step}" for step in [answer.counts, *answer.next_steps]), markdown=True)
    here = Path.cwd()
    echo(f"report, tables, figures and code: {path.relative_to(here) if path.is_relative_to(here) else path}/")
    if len(answer.best):
        options = f"{sweep.allow_option}{place.option}"
        echo(f"the first one's code: python -m runner.export {sweep.name} --code 1{options}")
    if missed:
        echo(f"MLflow lacks something ({missed}); {answer.again} --sync sends it")
    ui = f" python -m runner.ui {sweep.name}{place.option}   and open"
    echo(f"browse:{'' if place.served else ui}")
    for what, link in tracker.links().items():
        echo(f"  {what}: {link}")


def _tables_and_code(folder: Path, study: Study, trainings: Sequence[Record]) -> dict[str, Path]:
    """Write the tables, the first one's JSON and its code into ``folder``; the paths by name."""
    facts, records, sign = study.facts, study.ended(), study.sweep.objective.sign
    best = best_table(records, sign, confirmed=facts["confirmed"])
    tables = {
        "best_schedules.csv": best,
        "best_schedules.parquet": best,
        "trials.csv": trials_table(records),
        "epochs.csv": epochs_table(records),
        "trainings.csv": trainings_table(trainings),
    }
    for name, table in tables.items():
        write_table(table, name.partition(".")[2], folder / name)
    texts = {}
    if first := best_first(records, sign, facts["confirmed"])[:1]:
        code = code_of(first[0], facts, allow=study.sweep.allow)
        texts = {"best_schedule.json": json.dumps(dict(first[0].schedule), indent=1) + "\n", "best_schedule.py": code}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return {name: folder / name for name in [*tables, *texts]}


def _outcomes(records: Sequence[Record]) -> dict[str, int]:
    ended = Counter(str(r.outcome) for r in records)
    return {outcome: ended[outcome] for outcome in ("complete", "diverged", "stopped", "failed")}


def _summary(history: Study, answer: Verdict | None) -> dict[str, float]:
    """The parent run's metrics."""
    metrics: dict[str, float | None] = {f"study/{how}": n for how, n in _outcomes(history.ended()).items()}
    if best := history.best():
        metrics["study/best"] = best.value
    if answer is not None and answer.rows:
        first = answer.rows[0]
        metrics |= {"study/confirmed": first["mean"], "study/test_accuracy": first["test_accuracy"]}
        metrics["study/confidence_set"] = len(answer.alive)
        if answer.noise:
            metrics["study/seed_deviation"] = answer.noise.seed
    return {name: float(value) for name, value in metrics.items() if value is not None}
