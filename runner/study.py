"""The Optuna study: one coordinator opens it, proposes trials, commits epochs, tells outcomes.

The study's storage is the committed history. A trial is created in one transaction with all its parameters; each
epoch is one record on the trial; the outcome ends it. Tables, figures and MLflow are projections of that.

A proposal is a pure function of the history, the sweep's seed and the trial's number, so a resumed study proposes
what an uninterrupted one would have (with one sampler seed for all, a restart repeated half of the configurations).
"""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import time
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from .document import SpecError
from .place import redacted
from .schedules import Schedule, load
from .space import Space
from .spec import Engine, Objective, Record, Search, Sweep

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

STATES = {
    "complete": TrialState.COMPLETE,
    "diverged": TrialState.PRUNED,  # told as FAIL, samplers would ignore it and come back to the cliff
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
"""How a trial can end, and what Optuna calls it."""


class Study:
    """A sweep's study in its storage. Only the coordinator writes."""

    def __init__(self, sweep: Sweep, study: optuna.Study, allow: Sequence[str] = ()) -> None:
        self.sweep, self.allow, self._study = sweep, allow, study
        self._trials: dict[int, optuna.Trial] = {}
        # What is in storage, kept here too: nobody else writes it, so nothing needs to be read again.
        self._records = {r.number: r for r in _records(study)}

    def records(self) -> list[Record]:
        """All trials, in the order of their numbers."""
        return [self._records[number] for number in sorted(self._records)]

    def ended(self) -> list[Record]:
        """The trials that have ended, in any way."""
        return [record for record in self.records() if record.outcome is not None]

    @property
    def facts(self) -> dict[str, Any]:
        """What is true of the study as a whole, such as its parent run."""
        return dict(self._study.user_attrs)

    def remember(self, **facts: Any) -> None:
        for key, value in facts.items():
            self._study.set_user_attr(key, value)

    def remember_runs(self, runs: Mapping[int, str]) -> None:
        """Put on record under which run MLflow has each trial."""
        for number, run_id in runs.items():
            if self._records[number].run_id != run_id:
                self._study.set_user_attr(f"run:{number}", run_id)
                self._records[number] = replace(self._records[number], run_id=run_id)

    def close(self) -> None:
        """Let go of the storage."""
        _disconnect(self._study)

    def next(self) -> Record | None:
        """The trial to train now: one that an earlier process left running, else a new one.

        None at the target, and while the trial ``window`` before it has not ended: what is proposed depends on the
        trials up to that one, and on no other's result, however many lanes there are and whichever is faster.
        """
        trials = self._study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == TrialState.RUNNING and trial.number not in self._trials:
                return self._begin(trial)
        number, window = len(trials), self.sweep.search.window
        if number >= self.sweep.search.trials:
            return None
        known, under_way = trials[: max(0, number + 1 - window)], trials[max(0, number + 1 - window) :]
        if any(not trial.state.is_finished() for trial in known):
            return None
        proposed, name, mapping = propose(number, [*known, *map(_as_running, under_way)], self.sweep)
        schedule = load(mapping, allow=self.allow)
        trial = create_trial(
            state=TrialState.RUNNING,
            params=proposed.params,
            distributions=proposed.distributions,
            system_attrs=proposed.system_attrs,  # CMA-ES keeps its state there
            user_attrs={"name": name, "schedule": schedule.to_json()},
        )
        self._study.add_trial(trial)
        return self._begin(self._study.get_trials(deepcopy=False)[number])

    def _begin(self, trial: FrozenTrial) -> Record:
        self._trials[trial.number] = optuna.Trial(self._study, trial._trial_id)
        return self._records.setdefault(trial.number, _record(trial))

    def schedule(self, record: Record) -> Schedule:
        return load(record.schedule, allow=self.allow)

    def commit(self, number: int, epoch: int, metrics: Mapping[str, float]) -> Record:
        """Put an epoch on record; it is on disk when this returns. One on record already stays as it is."""
        record = self._records[number]
        if all(e["epoch"] != epoch for e in record.epochs):
            entry = {"epoch": epoch, "timestamp": int(time.time() * 1000), **metrics}
            self._trials[number].set_user_attr(f"epoch:{epoch}", entry)
            self._records[number] = replace(record, epochs=(*record.epochs, entry))
        return self._records[number]

    def best(self) -> Record | None:
        """The best complete trial so far; of equals, the first."""
        done = [r for r in self.records() if r.outcome == "complete" and r.value is not None]
        sign = 1 if self.sweep.objective.direction == "maximize" else -1
        return max(done, key=lambda r: sign * (r.value or 0.0), default=None)

    def tell(self, number: int, outcome: str, cause: str | None = None) -> Record:
        """End a trial. The objective is read from its committed epochs."""
        trial, record = self._trials.pop(number), self._records[number]
        for key, text in (("outcome", outcome), ("cause", cause)):
            if text is not None:
                trial.set_user_attr(key, text)
        for entry in record.epochs:
            trial.report(entry[self.sweep.objective.metric], step=int(entry["epoch"]))
        value = objective(self.sweep.objective, record.epochs) if outcome == "complete" else None
        self._study.tell(number, value, state=STATES[outcome])
        self._records[number] = replace(record, outcome=outcome, value=value, cause=cause)
        return self._records[number]


def _as_running(trial: FrozenTrial) -> FrozenTrial:
    """A trial as it looked before its result was known."""
    return create_trial(
        state=TrialState.RUNNING,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs=trial.system_attrs,
    )


def objective(wanted: Objective, epochs: Sequence[Mapping[str, float]]) -> float:
    """The value that a finished trial is judged by."""
    values = [e[wanted.metric] for e in epochs]
    if wanted.epoch == "last":
        return values[-1]
    return max(values) if wanted.direction == "maximize" else min(values)


def _records(study: optuna.Study) -> list[Record]:
    facts = study.user_attrs
    return [replace(_record(t), run_id=facts.get(f"run:{t.number}")) for t in study.get_trials(deepcopy=False)]


def _record(trial: FrozenTrial) -> Record:
    attrs = trial.user_attrs
    epochs = sorted((v for k, v in attrs.items() if k.startswith("epoch:")), key=lambda e: e["epoch"])
    return Record(
        number=trial.number,
        name=attrs["name"],
        schedule=attrs["schedule"],
        params=trial.params,
        outcome=attrs.get("outcome") if trial.state.is_finished() else None,
        value=trial.values[0] if trial.state == TrialState.COMPLETE and trial.values else None,
        epochs=tuple(epochs),
        cause=attrs.get("cause"),
    )


# --------------------------------------------------------------------------------------
# Proposals.


def propose(number: int, history: Iterable[FrozenTrial], sweep: Sweep) -> tuple[FrozenTrial, str, dict[str, Any]]:
    """Trial ``number``, given the trials before it: its parameters, the schedule's name, and its closed mapping."""
    search, space = sweep.search, sweep.schedules
    scratch = optuna.create_study(direction=sweep.objective.direction, sampler=_sampler(search, number))
    scratch.add_trials(list(history))
    if search.sampler == "grid":
        scratch.enqueue_trial(space.grid_point(number))
    elif search.sampler == "qmc":
        scratch.enqueue_trial(_quasirandom(space, search.seed, number))
    trial = scratch.ask()
    name, mapping = space.sample(trial)
    return scratch.trials[-1], name, mapping


def _sampler(search: Search, number: int) -> optuna.samplers.BaseSampler:
    seed = zlib.crc32(f"{search.seed}/{number}".encode())
    if search.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed, deterministic_objective=False)
    if search.sampler == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=10, warn_independent_sampling=False)
    if search.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def _quasirandom(space: Space, seed: int, number: int) -> dict[str, Any]:
    """Point ``number`` of a scrambled Sobol sequence. Optuna's own needs a space without conditions."""
    from scipy.stats import qmc

    sequence = qmc.Sobol(1 + len(space.axes()), scramble=True, rng=seed)
    if number:
        sequence.fast_forward(number)
    return space.point(sequence.random(1)[0].tolist())


# --------------------------------------------------------------------------------------
# Opening.


def open_study(sweep: Sweep, storage: str, allow: Sequence[str] = ()) -> Study:
    """Open the sweep's study, or create it.

    Raises:
        SpecError: the study was begun with another search space, data, model, recipe or objective.
    """
    study = optuna.create_study(
        study_name=sweep.name,
        storage=connect(storage),
        direction=sweep.objective.direction,
        sampler=optuna.samplers.RandomSampler(),
        pruner=optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    known = study.user_attrs.get("science")
    if known is None and study.get_trials(deepcopy=False):
        raise SpecError(f"{redacted(storage)} has a study {sweep.name!r} of another program; give this sweep a name")
    if known is None:
        study.set_user_attr("science", sweep.science())
    elif known != sweep.science():
        raise SpecError(
            f"the study {sweep.name!r} was begun with another {_difference(known, sweep.science())}; give this sweep "
            f"another name (name: {sweep.name}-2), or undo the change"
        )
    return Study(sweep, study, allow)


def begun_with(name: str, storage: str, wanted: str) -> Engine | None:
    """The engine that a study was begun with, for all of its trials; None where there is no study yet.

    Raises:
        SpecError: the reference is ``wanted``, and it was the fast one.
    """
    try:
        known, _ = load_study(name, storage)
    except SpecError:  # what else is wrong with the storage, ``open_study`` says
        return None
    engine = Engine(**known.get("engine", {}))
    if wanted == "reference" and engine.name != "reference":
        raise SpecError(
            f"the study {name!r} was begun with the engine {engine}; leave --engine out, or name the sweep anew"
        )
    return engine


def hold(name: str, storage: str) -> contextlib.ExitStack:
    """Become the one coordinator of a study, until the stack is closed or this process ends, however it ends.

    A lock of the operating system beside a SQLite file, an advisory lock of the server in PostgreSQL.

    Raises:
        SpecError: another process holds it; the message names its host and pid.
    """
    me, stack = f"{socket.gethostname()} (pid {os.getpid()})", contextlib.ExitStack()
    path = _sqlite_path(storage)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(path.with_name(f"{path.name}.{name}.lock").open("a+", encoding="utf-8"))
        if _locked(file):
            file.seek(0)
            holder = file.read().strip()
            stack.close()
            raise _taken(name, holder)
        file.truncate(0)
        file.write(me)
        file.flush()
        return stack
    import sqlalchemy

    engine = sqlalchemy.create_engine(storage, poolclass=sqlalchemy.pool.NullPool)
    try:
        connection = stack.enter_context(engine.connect().execution_options(isolation_level="AUTOCOMMIT"))
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise _unusable(storage, error) from None
    key = zlib.crc32(f"runner/{name}".encode())
    connection.execute(sqlalchemy.text("SELECT set_config('application_name', :me, false)"), {"me": me[:63]})
    if not connection.execute(sqlalchemy.text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar():
        query = "SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE locktype = 'advisory'"
        who = connection.execute(sqlalchemy.text(f"{query} AND objid = :key"), {"key": key}).scalar()
        stack.close()
        raise _taken(name, who)
    return stack


def _locked(file: IO[str]) -> bool:
    """Try to lock a file; whether another process has it."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _taken(name: str, holder: str | None) -> SpecError:
    return SpecError(f"the study {name!r} is being run by {holder or 'another process'}; wait for it, or stop it")


def _unusable(storage: str, error: Exception) -> SpecError:
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    said = redacted((str(error).strip().splitlines() or [""])[0])
    return SpecError(f"the study's storage {redacted(storage)} cannot be used: {said}")


def load_study(name: str, storage: str) -> tuple[dict[str, Any], list[Record]]:
    """The facts and the trials of a study that exists, for reading.

    Raises:
        SpecError: there is no such study there.
    """
    try:
        study = optuna.load_study(study_name=name, storage=connect(storage, create=False))
    except KeyError:
        raise SpecError(f"there is no study {name!r} in this storage; run the sweep first") from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise _unusable(storage, error) from None
    try:
        if "science" not in study.user_attrs:
            raise SpecError(f"the study {name!r} in this storage is another program's")
        return dict(study.user_attrs), _records(study)
    finally:
        _disconnect(study)


def _disconnect(study: optuna.Study) -> None:
    storage = study._storage
    storage.remove_session()
    inner = getattr(storage, "_backend", storage)  # Optuna puts a cache around a database
    if isinstance(inner, optuna.storages.RDBStorage):
        inner.engine.dispose()


def connect(storage: str, create: bool = True) -> optuna.storages.RDBStorage:
    """Optuna's storage at a database URL. SQLite writes ahead and waits for locks.

    Raises:
        SpecError: the database cannot be used, or is a SQLite file that is not there, with ``create=False``.
    """
    path = _sqlite_path(storage)
    if path is not None and not create and not path.exists():
        raise SpecError(f"there is no study in {path}; run a sweep first, with python -m runner.sweep")
    try:
        if path is None:
            if not create and not _has_studies(storage):
                raise SpecError(f"there is no study in {redacted(storage)}; run a sweep first")
            return optuna.storages.RDBStorage(
                storage, engine_kwargs={"pool_pre_ping": True}, skip_table_creation=not create
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        if create:
            with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
        return optuna.storages.RDBStorage(
            storage, engine_kwargs={"connect_args": {"timeout": 60}}, skip_table_creation=not create
        )
    except (OSError, sqlite3.Error, SQLAlchemyError, RuntimeError, ImportError) as error:
        raise _unusable(storage, error) from None


def _has_studies(storage: str) -> bool:
    """Whether a server's database has Optuna's tables."""
    import sqlalchemy

    with sqlalchemy.create_engine(storage, poolclass=sqlalchemy.pool.NullPool).connect() as connection:
        return sqlalchemy.inspect(connection).has_table("studies")


def _sqlite_path(storage: str) -> Path | None:
    prefix = "sqlite:///"
    return Path(storage.removeprefix(prefix)) if storage.startswith(prefix) else None


def _difference(old: Any, new: Any, key: str = "") -> str:
    """Where two nested mappings differ first, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            if old.get(name) != new.get(name):
                return _difference(old.get(name), new.get(name), f"{key}.{name}".strip("."))
    return f"{key} ({old!r}, now {new!r})"
