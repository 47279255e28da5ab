"""What a sweep found, for people: tables, figures, the report, and what the terminal says at the end."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ..files.document import SpecError, first_line
from ..files.place import Place, StorageError
from ..files.sweep_file import Sweep
from ..files.trial import Record, best_first
from ..lanes.stop import Stop
from ..study.confirm import Confirmation, Verdict, best_trainings, verdict
from ..study.importance import importance
from ..study.study import Study
from ..tracking.tracker import Tracker, escape
from ..training.kept import Kept
from .answer import never_ended, next_steps, plural, sentences
from .tables import best_table, code_of, epochs_table, for_people, markdown, trainings_table, trials_table
from .tables import write as write_table
from .terminal import echo, info, print_table, shown

SHOWN = ("lr_curves.png", "confidence_set.png", "objective_against_lr.png")
"""The figures in the parent run's description."""
SHOWN_TRIALS = 10
NARROW = ("seeds", "test")
"""The columns that MLflow's page of a run, which is narrow, does without."""


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

    def page(self, drawn: Sequence[str], at: Callable[[str], str], without: Collection[str] = ()) -> str:
        """The report in markdown, with figures where ``at`` finds them; ``without`` these columns of the table."""
        table = [markdown(self.best, escape, without)] if len(self.best) else []
        parts = [f"**{escape(self.question)}**", *map(escape, self.sentences), *table, self.counts]
        parts += [f"![{name.removesuffix('.png')}]({at(name)})" for name in SHOWN if name in drawn]
        no_markup = re.fullmatch(r"[\w ./~:='\"-]+", self.again)
        command = f"`{self.again}`" if no_markup else "the command that ran it"
        parts += [*map(escape, self.next_steps), f"Reproduce, continue, or add trials: {command}."]
        return "\n\n".join(parts) + "\n"


def write(
    history: Study,
    rungs: Sequence[Study],
    replicates: Confirmation | None,
    tracker: Tracker,
    again: str,
    stop: Stop,
    ended: bool = True,
    stored: bool = True,
    kept: Kept | None = None,
) -> None:
    """Write tables and figures, put them on the parent run, and print what was found and where it lies.

    Args:
        history, rungs, replicates: the studies of the stages, as far as there are any.
        tracker: where runs go.
        again: the command that continues the sweep.
        stop: whether a signal has come, of which a library may make an error of its own.
        ended: nothing is lacking; else what is known so far is written, quickly, and MLflow is not waited for.
        stored: the study's storage can be used; else files alone are written.
        kept: what confirmed trainings have learnt.
    """
    sweep, place = history.sweep, tracker.place
    stages = [history, *rungs, *filter(None, [replicates])]
    if not any(stage.ended() for stage in stages):
        return
    if not ended and stored and replicates is None and history.facts.get("confirmed"):
        return  # what was found before more trials were asked for stands until they have ended

    def trainings() -> list[Record]:
        return [record for stage in stages for record in stage.ended()]

    if ended:
        tracker.flush(trainings())
    for stage in stages if stored else ():
        stage.remember_runs(tracker.runs)
    found = verdict(replicates.ended(), replicates.arms, sweep) if replicates else None
    rows = found.rows if found and found.begun else []
    best = best_table(history.ended(), sweep.objective, confirmed=rows)
    cut = history.facts.get("cut", {}) if stored else {}
    answer = _answer(history, rungs, found, tracker.data.get("majority", 0.0), again, best, ended, cut)
    facts: dict[str, Any] = {"confirmed": rows, "decided": found is None or found.contest.decided}
    if stored:
        noise = {"noise": asdict(found.noise)} if found and found.noise else {}
        history.remember(**facts, **noise, answer=[*answer.sentences, *answer.next_steps])
    facts |= {"science": sweep.science(), "updates_per_epoch": tracker.updates}
    try:
        path = place.results(sweep.name)
        paths = _tables_and_code(path, history, trainings(), best, facts)
    except SpecError as error:
        raise StorageError(str(error)) from None
    if kept is not None and found and replicates and sweep.confirm.keep:
        said, learnt = _learnt(kept, found, replicates, ended)
        answer = replace(answer, sentences=[*answer.sentences, *said])
        paths |= {path.name: path for path in learnt}
    drawn = _figures(path, history, facts, stop)
    paths |= drawn | {"report.md": path / "report.md"}
    paths["report.md"].write_text(answer.page(list(drawn), str), encoding="utf-8")
    timestamp = max((int(r.epochs[-1]["timestamp"]) for r in trainings() if r.epochs), default=0)

    def note(at: Callable[[str], str]) -> str:
        return answer.page(list(drawn), at, NARROW)

    if ended:
        missed = tracker.finish(paths.values(), note, _summary(history, found), timestamp)
        _print(answer, sweep, place, path, tracker, missed)
    else:
        tracker.report(paths.values(), note)
        info(f"so far: {' '.join(answer.sentences[:2])}\nreport so far: {shown(paths['report.md'])}")


def _learnt(kept: Kept, found: Verdict, replicates: Confirmation, ended: bool) -> tuple[list[str], list[Path]]:
    """Put what the winner's best seed has learnt among the results: a sentence, and the file for MLflow."""
    if not (found.contest.decided and found.alive):
        return [], []
    best = best_trainings(replicates.ended(), replicates.sweep)[str(found.alive[0])]
    path = kept.best(best)
    if ended:
        kept.only([best])
    if path is None:
        return [f"Nothing of {best.title} was kept: it was trained before confirm.keep was set."], []
    said = f"What {best.title} has learnt, the best seed of {best.name}, is in {path.name}."
    return [said], [path] if path.is_file() else []


def _answer(
    history: Study,
    rungs: Sequence[Study],
    found: Verdict | None,
    majority: float,
    again: str,
    best: pd.DataFrame,
    ended: bool,
    cut: Mapping[str, Any],
) -> Answer:
    sweep, records, outcomes = history.sweep, history.ended(), _outcomes(history.ended())
    first = rungs[0].ended() if rungs else None
    decided = found if found and found.begun and found.contest.decided else None
    rows, measured = (decided.rows, decided.noise) if decided else ([], None)
    steps = never_ended(records if first is None else first, sweep)
    if ended:
        steps = next_steps(records, rows, sweep, measured, majority, first)
    counts = f"{plural(len(records), 'trial')}: "
    counts += ", ".join(f"{n} {outcome}" for outcome, n in outcomes.items() if n) + "."
    if (size := sweep.schedules.size) < sweep.search.trials:
        counts += f" The space has no more than {plural(int(size), 'point')}."
    if outcomes["complete"] > SHOWN_TRIALS:
        counts += f" The table has the first {SHOWN_TRIALS}."
    if rungs:
        before = ", ".join(f"{plural(len(r.ended()), 'training')} of {plural(r.epochs, 'epoch')}" for r in rungs)
        counts += f" Before them, on rungs: {before} (trainings.csv)."
    said = sentences(history, rungs, found, importance(history) if ended else {}, cut)
    return Answer(sweep.question, said, steps, best[:SHOWN_TRIALS], counts, again)


def _figures(folder: Path, study: Study, facts: Mapping[str, Any], stop: Stop) -> dict[str, Path]:
    """Draw the figures into ``folder``; the paths by name. One that fails costs itself alone."""
    sweep, records, before = study.sweep, study.ended(), stop.raised
    plans, drawn = {r.number: sweep.schedule(r.schedule) for r in records}, dict[str, Path]()
    try:
        from . import figures  # with matplotlib, whose settings are the user's

        epochs, about = sweep.train.epochs, (sweep.objective, facts["decided"])
        made = figures.makers(records, plans, facts["updates_per_epoch"] * epochs, epochs, facts["confirmed"], *about)
    except Exception as error:
        echo(f"warning: no figure was drawn: {type(error).__name__}: {first_line(error)}")
        return {}
    for name, make in made.items():
        try:
            drawn[name] = figures.save(make(), folder / name)
        except Exception as error:
            if stop.raised is not before:
                raise
            echo(f"warning: {name} was not drawn: {type(error).__name__}: {first_line(error)}")
    return drawn


def _print(answer: Answer, sweep: Sweep, place: Place, path: Path, tracker: Tracker, missed: str | None) -> None:
    echo(f"\n{answer.question}\n")
    echo("\n".join(f"- {sentence}" for sentence in answer.sentences), markdown=True)
    print_table(for_people(answer.best))
    echo("\n".join(f"- {step}" for step in [answer.counts, *answer.next_steps]), markdown=True)
    echo(f"report, tables, figures and code: {shown(path)}/")
    if len(answer.best):
        options = f"{sweep.allow_option}{place.option}"
        echo(f"the first one's code: python -m runner.export {sweep.name} --code 1{options}")
    if missed:
        echo(f"MLflow lacks something ({missed}); {answer.again} --sync sends it")
    ui = f" python -m runner.ui {sweep.name}{place.option}   and open"
    echo(f"browse:{'' if place.served else ui}")
    for what, link in tracker.links().items():
        echo(f"  {what}: {link}")


def _tables_and_code(
    folder: Path, study: Study, trainings: Sequence[Record], best: pd.DataFrame, facts: Mapping[str, Any]
) -> dict[str, Path]:
    """Write the tables, the first one's JSON and its code into ``folder``; the paths by name."""
    records, objective = study.ended(), study.sweep.objective
    tables = {
        "best_schedules.csv": best,
        "best_schedules.parquet": best,
        "trials.csv": trials_table(records, objective),
        "epochs.csv": epochs_table(records),
        "trainings.csv": trainings_table(trainings, objective),
    }
    for name, table in tables.items():
        write_table(table, name.partition(".")[2], folder / name)
    texts = {}
    if first := best_first(records, objective.sign, facts["confirmed"])[:1]:
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
