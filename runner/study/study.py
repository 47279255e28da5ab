"""The Optuna study: one coordinator opens it, proposes trials, commits epochs, tells outcomes.

The study's storage is the committed history. A trial is created in one transaction with all its parameters; each
epoch is one record on the trial; the outcome ends it. Tables, figures and MLflow are projections of that.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from ..files import sqlite
from ..files.document import Key, SpecError
from ..files.place import StorageError
from ..files.secrets import redacted
from ..files.space import BASELINE
from ..files.sweep_file import Objective, Sweep
from ..files.trial import Config, Engine, Record, baseline_of, best_first, first_of_each
from ..schedules.schedule import Schedule
from ..schedules.words import quoted
from ..schedules.zoo import ScheduleError
from .proposals import as_running, propose
from .storage import NoStudyError, connect, database, disconnect, persist, rescue, trouble, unusable
from .stored import as_shown, facts_of, facts_of_trial, is_ours, record_of, records_of, trials_of

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

T = TypeVar("T")
RETIRED = ("pruner", "parole")
"""Keys of ``search`` that older studies have, and that did nothing without a pruner."""
STATES = {
    "complete": TrialState.COMPLETE,
    "diverged": TrialState.PRUNED,  # told as FAIL, samplers would ignore it and come back to the cliff
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
"""How a trial can end, and what Optuna calls it."""


class Study:
    """A sweep's study in its storage. Only the coordinator writes."""

    def __init__(self, sweep: Sweep, storage: str, stage: str = "") -> None:
        self.sweep, self.stage, self._study = sweep, stage, open_study(sweep, storage, stage)
        path = sqlite.path_of(storage)
        self._file = sqlite.Unmoved(path) if path else None
        self._target = sweep.search.trials
        self._trials: dict[int, optuna.Trial] = {}
        # What is in storage, kept here too: nobody else writes these, so nothing needs to be read again.
        trials, facts = trials_of(self._study), self.facts
        self._records = {r.number: r for r in records_of(self._study, trials, facts) if _is_known(r, sweep)}
        self._frozen = {trial.number: trial for trial in trials if trial.number in self._records}
        self._queue: dict[str, Any] = facts.get("queue", {})
        self.others = [trial.number for trial in trials if not is_ours(trial)]
        """The numbers of trials that another program has put into this study: they are left out."""
        self.former = len(trials) - len(self._records) - len(self.others)
        """How many more are left out: of a former baseline whose function is not permitted any more, or is gone."""

    def records(self) -> list[Record]:
        """All trials, in the order of their numbers."""
        return [self._records[number] for number in sorted(self._records)]

    def ended(self) -> list[Record]:
        """The trials that have ended, in any way."""
        return [record for record in self.records() if record.outcome is not None]

    def running(self) -> list[Record]:
        """The trials that have begun and not ended."""
        return [record for record in self.records() if record.outcome is None]

    @property
    def facts(self) -> dict[str, Any]:
        """What is true of the study as a whole, such as its parent run."""
        return facts_of(self._study)

    @property
    def target(self) -> int:
        """How many trials it has in the end, at most: no point of the space is tried twice, and baselines come on
        top."""
        beside = sum(not record.chosen for record in self._records.values()) + self._lacks_baseline
        return int(min(self._target, self.sweep.schedules.size)) + beside

    @property
    def _lacks_baseline(self) -> bool:
        """Whether the baseline, which no rung has, is still to be trained."""
        wanted = self.sweep.baseline is not None and not self.stage
        return wanted and baseline_of(self._records.values(), self.sweep) is None

    @property
    def epochs(self) -> int:
        """Of each of its trainings: a rung has fewer."""
        rung = self.stage.removeprefix("rung-")
        return int(rung) if rung.isdecimal() else self.sweep.train.epochs

    def remember(self, **facts: Any) -> None:
        for key, value in facts.items():
            self._persist(partial(self._study.set_user_attr, key, value))

    def _persist(self, write: Callable[[], T]) -> T:
        """``persist``, into the file that was opened: one that was removed or replaced keeps nothing."""
        try:
            written = persist(self._study, write)
        except StorageError:
            self.check_file()
            raise
        self.check_file()
        return written

    def check_file(self) -> None:
        """Raise StorageError where the study's file was removed or replaced."""
        if self._file is not None and not self._file:
            raise rescue(self._study, self._file.path)

    def remember_runs(self, runs: Mapping[tuple[str, int], str]) -> None:
        """Put on record under which run MLflow has each trial of this stage."""
        for record in self.records():
            run_id = runs.get((self.stage, record.number), record.run_id)
            if run_id != record.run_id:
                self.remember(**{f"run:{record.number}": run_id})
                self._records[record.number] = replace(record, run_id=run_id)

    def check_trials(self) -> None:
        """Raise StorageError where somebody has put trials into the study since it was opened."""
        there = self._persist(lambda: len(trials_of(self._study)))
        if there != len(self._frozen) + len(self.others) + self.former:
            wrong = f"the study {self._study.study_name!r} has been gone on with by another process"
            raise StorageError(f"{wrong}, while this one did not hold its lock; the same command goes on")

    def close(self) -> None:
        """Let go of the storage."""
        disconnect(database(self._study))

    def next(self) -> Record | None:
        """The trial to train now: one that an earlier process left running, else a new one.

        None at the target, and while the trial ``window`` before it has not ended: what is proposed depends on the
        trials up to that one, and on no other's result, however many lanes there are and whichever is faster.
        """
        for trial in self._frozen.values():
            if trial.state == TrialState.RUNNING and trial.number not in self._trials:
                return self._persist(partial(self._begin, trial))
        proposed = self._proposed()
        if proposed is None:
            return None
        attempts = itertools.count()
        created = self._persist(lambda: self._create(proposed, next(attempts)))
        self._frozen[created.number] = created
        return self._persist(partial(self._begin, created))

    def _create(self, proposed: FrozenTrial, attempt: int) -> FrozenTrial:
        """The next trial in storage: put there now, or by an attempt whose answer was lost."""
        storage, study = self._study._storage, self._study._study_id
        for trial in storage.get_all_trials(study, deepcopy=False) if attempt else ():
            if trial.number not in self._frozen and trial.user_attrs == proposed.user_attrs:
                return trial
        return self._read(storage.create_new_trial(study, proposed))

    def _read(self, trial_id: int) -> FrozenTrial:
        return self._study._storage.get_trial(trial_id)

    def complete(self) -> bool:
        """Whether nothing is left to be trained."""
        return len(self.ended()) == len(self._frozen) and self._proposed() is None

    def _proposed(self) -> FrozenTrial | None:
        """The next trial; None where there is none, or none yet. First the baseline, of which no other one knows."""
        if self.sweep.baseline is not None and self._lacks_baseline:
            return new_trial(BASELINE, self.sweep.baseline)
        trials = [trial for trial in self._frozen.values() if _is_chosen(trial)]
        number = len(trials)
        if number >= self._target:
            return None
        first = max(0, number + 1 - self.sweep.search.window)  # whose result it must not know, however few the lanes
        known, unknown = trials[:first], trials[first:]
        if any(not trial.state.is_finished() for trial in known):
            return None
        enqueued = self._queue.get(str(number))
        found = propose(number, [*known, *map(as_running, unknown)], self.sweep, enqueued)
        if found is None:
            return None
        proposed, name, mapping = found
        schedule, train = self.sweep.schedule(mapping), {}
        if self.stage:  # a rung: the whole of the schedule in fewer epochs
            full, train = self.sweep.train.epochs, {"epochs": self.epochs}
            updates = self.facts["updates_per_epoch"] * full
            schedule = schedule.rescaled(self.epochs / full, updates, epochs=full)
        return new_trial(
            name,
            schedule,
            train=train,
            params=proposed.params,
            distributions=proposed.distributions,
            system_attrs=proposed.system_attrs,  # TPE reads those of running trials
        )

    def train_only(self, params: Sequence[Mapping[str, Any]]) -> None:
        """Train these parameters and no others: those that the rung before has kept."""
        number = max([sum(r.chosen for r in self._records.values()), *(int(n) + 1 for n in self._queue)])
        tried = [record.params for record in self._records.values() if record.outcome != "failed"]
        for one in map(dict, params):
            if one not in [*tried, *self._queue.values()]:
                self._queue[str(number)] = one
                number += 1
        self.remember(queue=self._queue)
        self._target = len(self._queue)

    def survivors(self) -> list[Mapping[str, Any]]:
        """The parameters of the best share of a rung, best first, none of them twice."""
        done = best_first(self.records(), self.sweep.objective.sign)
        distinct = first_of_each(done, lambda r: frozenset(r.params.items()))
        return [r.params for r in distinct[: self.sweep.search.kept(self._target)]]

    def _begin(self, trial: FrozenTrial) -> Record:
        self._trials[trial.number] = optuna.Trial(self._study, trial._trial_id)
        return self._records.setdefault(trial.number, record_of(trial, self.stage))

    def config(self, record: Record, example: Config) -> Config:
        """What a trial trains, given what all of them have in common."""
        return example.of(record, self.sweep)

    def commit(
        self, number: int, epoch: int, metrics: Mapping[str, float], facts: Mapping[str, Any] | None = None
    ) -> Record:
        """Put an epoch on record, and ``facts`` that it has shown of its trial; they are on disk when this returns.
        One on record already stays as it is."""
        record = self._records[number]
        if all(e["epoch"] != epoch for e in record.epochs):
            entry = {"epoch": epoch, "timestamp": int(time.time() * 1000), **metrics}
            found = facts_of_trial(facts or {})
            news = {k: v for k, v in (facts or {}).items() if k.startswith("lrs:") or getattr(record, k) != v}
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # by another program: see ``tell``
                for key, value in news.items():
                    self._persist(partial(self._trials[number].set_user_attr, key, value))
                self._persist(lambda: self._trials[number].set_user_attr(f"epoch:{epoch}", entry))
            used = {**record.used, **found.pop("used", {})}
            self._records[number] = replace(record, epochs=(*record.epochs, entry), used=used, **found)
        return self._records[number]

    def complete_trials(self) -> list[FrozenTrial]:
        """Optuna's own view of the trials that the search chose and that have an objective."""
        done = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [trial for trial in done if is_ours(trial) and _is_chosen(trial)]

    def best(self) -> Record | None:
        """The best complete trial so far; of equals, the first."""
        return next(iter(best_first(self.records(), self.sweep.objective.sign)), None)

    def tell(self, number: int, outcome: str, cause: str | None = None, output: Sequence[str] = ()) -> Record:
        """End a trial; ``output``: what it printed last, where it failed. The objective is read from its committed
        epochs."""
        trial, record = self._trials[number], self._records[number]
        value = objective(self.sweep.objective, record.epochs) if outcome == "complete" else None
        if value is not None and not math.isfinite(value):  # a metric that is not defined for what was learnt
            outcome, value, cause = "failed", None, _undefined(self.sweep.objective, record.epochs)

        def write() -> FrozenTrial:
            stored = self._read(trial._trial_id)
            if stored.state.is_finished():  # by an earlier attempt, whose answer was lost, or by another program
                return stored
            for key, said in (("outcome", outcome), ("cause", cause), ("output", list(output) or None)):
                if said is not None:
                    trial.set_user_attr(key, said)
            for entry in record.epochs:
                if entry["epoch"] not in stored.intermediate_values and self.sweep.objective.metric in entry:
                    trial.report(entry[self.sweep.objective.metric], step=int(entry["epoch"]))
            return self._study.tell(trial, value, state=STATES[outcome])

        self._frozen[number] = ended = self._persist(write)
        del self._trials[number]
        if "outcome" not in ended.user_attrs:
            outcome, value, cause = "failed", None, f"another program ended it ({ended.state.name})"
        self._records[number] = replace(record, outcome=outcome, value=value, cause=cause, output=tuple(output))
        return self._records[number]


def _is_known(record: Record, sweep: Sweep) -> bool:
    """Whether a trial's schedule can be built: a former baseline's function is in no file any more."""
    if not record.chosen:
        with contextlib.suppress(ScheduleError):
            return sweep.schedule(record.schedule) is not None
    return record.chosen


def _is_chosen(trial: FrozenTrial) -> bool:
    """Whether the search chose a trial, as ``Record.chosen``."""
    return "type" in trial.params


def new_trial(
    name: str, schedule: Schedule, arm: str | None = None, train: Mapping[str, int] | None = None, **proposed: Any
) -> FrozenTrial:
    """A trial that has begun, as it is put into a study."""
    attrs = {"name": name, "schedule": schedule.to_json(), "train": dict(train or {}), "arm": arm}
    attrs = {key: value for key, value in attrs.items() if value}
    return create_trial(state=TrialState.RUNNING, user_attrs=attrs, **proposed)


def objective(wanted: Objective, epochs: Sequence[Mapping[str, float]]) -> float:
    """The value that a finished trial is judged by; NaN where it has none."""
    values = [e.get(wanted.metric, math.nan) for e in epochs]
    if wanted.epoch == "last":
        return values[-1]
    numbers = [value for value in values if math.isfinite(value)]
    return wanted.sign * max((wanted.sign * value for value in numbers), default=math.nan)


def _undefined(wanted: Objective, epochs: Sequence[Mapping[str, float]]) -> str:
    """Why there is no such value."""
    having = [int(e["epoch"]) for e in epochs if wanted.metric in e]
    if having and "epoch" in epochs[-1] and wanted.metric in epochs[-1]:
        return f"{wanted.metric} is {epochs[-1][wanted.metric]}"
    there = [name for name in epochs[-1] if name not in ("epoch", "timestamp", "lr", "seconds")]
    gave = f"its last epoch gave {', '.join(there[:9]) or 'no metric'}"
    only = f", and only {len(having)} of {len(epochs)} epochs had it" * bool(having)
    return f"the objective {wanted.metric} is missing: {gave}{only}"


def open_study(sweep: Sweep, storage: str, stage: str = "") -> optuna.Study:
    """Open the sweep's study, or create it; with ``stage`` the one beside it that holds another stage's trials.

    Raises:
        SpecError: the study was begun with another search space, data, model, recipe or objective.
    """
    there = connect(storage)
    try:
        study = optuna.create_study(
            study_name=f"{sweep.name}@{stage}" if stage else sweep.name,  # no sweep's name has an @
            storage=there,
            direction=sweep.objective.direction,
            sampler=optuna.samplers.RandomSampler(),
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise SpecError(f"the study's storage {redacted(storage)} {trouble(error)[0]}") from None
    begun_with = _science(facts_of(study))
    if begun_with is None and (trials := trials_of(study)):
        if all(map(is_ours, trials)):
            # What a sweep wrote while its study was being deleted: SQLite has given the number of that one again.
            optuna.delete_study(study_name=study.study_name, storage=there)
            disconnect(there)
            return open_study(sweep, storage, stage)
        raise SpecError(_foreign(sweep.name, storage))
    if begun_with is None:
        study.set_user_attr("science", sweep.science())
    else:
        refuse_another(sweep, begun_with)
    return study


def refuse_another(sweep: Sweep, begun_with: Mapping[str, Any]) -> None:
    """Raise SpecError where a study was begun with another search space, data, model, recipe or objective."""
    begun, science = as_shown(begun_with), as_shown(sweep.science())  # a command may have lines in it
    if begun != science:
        key, differs = _difference(begun, science)
        wrong = f"the study {sweep.name!r} was begun with another {'.'.join(map(str, key))} ({differs})"
        mend = f"give this sweep another name (name: {sweep.name}-2), or undo the change"
        raise SpecError(f"{wrong}; {mend}", key=key)


def _foreign(name: str, storage: str) -> str:
    return f"{redacted(storage)} has a study {name!r} of another program; give this sweep another name"


def stored_engine(
    sweep: Sweep, storage: str, wanted: str, fingerprints: Mapping[str, Any], must: bool = False
) -> Engine | None:
    """The engine that a study was begun with, for all of its trials; None where there is no study yet.

    ``fingerprints`` are of what the file only names: the images, and what one's own functions give.

    Raises:
        SpecError: the storage cannot be used; the study is another program's, or was begun with another sweep file,
            other images or functions; the reference is ``wanted``, and it was the fast one; or it ``must`` be there
            and is not.
    """
    try:
        facts, _ = load_study(sweep.name, storage)
    except NoStudyError:
        if must:
            raise
        return None
    begun = f"the study {sweep.name!r} was begun with"
    refuse_another(sweep, _science(facts) or {})
    for what, now in fingerprints.items():
        if not _alike(facts.get(what, now), now):
            other = "other images" if what == "images" else f"another {what}"
            in_files = what == "images" and sweep.ours[0].function is None
            where = "what is in the data folder, or how it is read," if in_files else "what its function gives"
            mend = f"bring it back, or give this sweep another name (name: {sweep.name}-2)"
            raise SpecError(f"{begun} {other}: {where} has changed since; {mend}")
    if "engine" not in facts:  # it ended before anything was trained
        return None
    engine = Engine(**facts["engine"])
    if wanted == "reference" and engine.name != "reference":
        raise SpecError(f"{begun} the engine {engine}; leave --engine out, or name the sweep anew")
    return engine


def check_stages(sweep: Sweep, storage: str) -> None:
    """Raise SpecError where what is on record of a sweep's rungs and fresh seeds cannot be read."""
    for stage in ("confirm", *(f"rung-{n}" for n in sweep.rungs[:-1])):
        with contextlib.suppress(NoStudyError):
            load_study(f"{sweep.name}@{stage}", storage)


def load_study(name: str, storage: str) -> tuple[dict[str, Any], list[Record]]:
    """The facts and the trials of a study that exists, for reading.

    Among the facts: the ``objective``, and the rows of what was ``confirmed``.

    Raises:
        SpecError: there is no such study there.
    """
    there = connect(storage, create=False)
    try:
        names = optuna.get_all_study_names(there)
        if name not in names:
            names = [other for other in names if "@" not in other]
            has = f" (it has {', '.join(names[:9])}{', ...' * (len(names) > 9)})" * bool(names)
            raise NoStudyError(f"there is no study {name!r} in this storage{has}; run the sweep first")
        study = optuna.load_study(study_name=name, storage=there)
        trials = trials_of(study)
        facts = facts_of(study)
        if "science" not in facts:
            if all(map(is_ours, trials)):  # one that ended before anything was trained, or is being deleted
                raise NoStudyError(f"there is no study {name!r} in this storage yet; run the sweep first")
            raise SpecError(_foreign(name, storage))
        records = records_of(study, trials, facts)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise unusable(storage, error) from None
    finally:
        disconnect(there)
    # of a study that was reported before rows said by how many seeds
    rows = [{"behind_seeds": row.get("seeds"), **row} for row in facts.get("confirmed", ())]
    return facts | {"objective": Objective(**facts["science"]["objective"]), "confirmed": rows}, records


def _science(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a study was begun with, without the keys that sweep files no longer have."""
    if "science" not in facts:
        return None
    search = facts["science"]["search"]
    if search.get("pruner") == "none":
        search = {key: value for key, value in search.items() if key not in RETIRED}
    objective = Objective(**facts["science"]["objective"]).model_dump(mode="json")  # a study may be older than a key
    return {**facts["science"], "search": search, "objective": objective}


def _alike(old: Any, new: Any) -> bool:
    """Whether it is the same thing: numbers may differ as they do from one machine to another."""
    if isinstance(old, list) and isinstance(new, list):
        numbers = all(isinstance(value, (int, float)) for value in [*old, *new])
        return numbers and len(old) == len(new) and np.allclose(old, new, rtol=1e-2, atol=1e-3, equal_nan=True)
    return bool(old == new)


def _difference(old: Any, new: Any, key: Key = ()) -> tuple[Key, str]:
    """Where two nested mappings differ first, and how."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            if old.get(name) != new.get(name):
                return _difference(old.get(name), new.get(name), (*key, name))
    before, now = ("nothing" if value is None else quoted(value) for value in (old, new))
    return key, f"{before}, now {now}"
