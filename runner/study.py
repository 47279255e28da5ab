"""The Optuna study: one coordinator opens it, proposes trials, commits epochs, tells outcomes.

The study's storage is the committed history. A trial is created in one transaction with all its parameters; each
epoch is one record on the trial; the outcome ends it. Tables, figures and MLflow are projections of that.

A proposal is a pure function of the history, the sweep's seed and the trial's number, so a resumed study proposes
what an uninterrupted one would have (with one sampler seed for all, a restart repeated half of the configurations).
"""

from __future__ import annotations

import math
import random
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from .document import Key, SpecError
from .place import redacted
from .schedules import Schedule, load
from .space import Space
from .spec import Engine, Objective, Record, Search, Sweep, TrialConfig, best_first, first_of_each
from .storage import connect, database, disconnect, persist, trouble, unusable

if TYPE_CHECKING:
    from .train import Epoch

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

SHUFFLES = 39
"""Of the results among the trials, to see what chance makes of a parameter; of many trials 19, which take seconds."""
STATES = {
    "complete": TrialState.COMPLETE,
    "diverged": TrialState.PRUNED,  # told as FAIL, samplers would ignore it and come back to the cliff
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
"""How a trial can end, and what Optuna calls it."""


class Study:
    """A sweep's study in its storage. Only the coordinator writes."""

    def __init__(self, sweep: Sweep, storage: str, allow: Sequence[str] = (), stage: str = "") -> None:
        self.sweep, self.allow, self.stage, self._study = sweep, allow, stage, opened(sweep, storage, stage)
        self._target = sweep.search.trials
        self._trials: dict[int, optuna.Trial] = {}
        # What is in storage, kept here too: nobody else writes it, so nothing needs to be read again.
        self._frozen = list(self._study.get_trials(deepcopy=False))
        self._records = {r.number: r for r in _records(self._study, self._frozen)}
        self._queue: dict[str, Any] = self.facts.get("queue", {})

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

    @property
    def target(self) -> int:
        """How many trials it has in the end, at most."""
        return self._target

    @property
    def epochs(self) -> int:
        """Of each of its trainings: a rung has fewer."""
        rung = self.stage.removeprefix("rung-")
        return int(rung) if rung.isdecimal() else self.sweep.train.epochs

    def remember(self, **facts: Any) -> None:
        for key, value in facts.items():
            persist(self._study, partial(self._study.set_user_attr, key, value))

    def remember_runs(self, runs: Mapping[tuple[str, int], str]) -> None:
        """Put on record under which run MLflow has each trial of this stage."""
        for record in self.records():
            run_id = runs.get((self.stage, record.number), record.run_id)
            if run_id != record.run_id:
                self.remember(**{f"run:{record.number}": run_id})
                self._records[record.number] = replace(record, run_id=run_id)

    def close(self) -> None:
        """Let go of the storage."""
        disconnect(database(self._study))

    def next(self) -> Record | None:
        """The trial to train now: one that an earlier process left running, else a new one.

        None at the target, and while the trial ``window`` before it has not ended: what is proposed depends on the
        trials up to that one, and on no other's result, however many lanes there are and whichever is faster.
        """
        for trial in self._frozen:
            if trial.state == TrialState.RUNNING and trial.number not in self._trials:
                return self._begin(trial)
        proposed = self._proposed()
        if proposed is None:
            return None
        self._frozen.append(persist(self._study, lambda: self._created(proposed)))
        return self._begin(self._frozen[-1])

    def _created(self, proposed: FrozenTrial) -> FrozenTrial:
        """The next trial in storage: put there now, or by an attempt whose answer was lost."""
        storage, study = self._study._storage, self._study._study_id
        try:
            trial_id = storage.get_trial_id_from_study_id_trial_number(study, len(self._frozen))
        except KeyError:
            trial_id = storage.create_new_trial(study, proposed)
        return self._read(trial_id)

    def _read(self, trial_id: int) -> FrozenTrial:
        return self._study._storage.get_trial(trial_id)

    def complete(self) -> bool:
        """Whether nothing is left to be trained."""
        return len(self.ended()) == len(self._frozen) and self._proposed() is None

    def _proposed(self) -> FrozenTrial | None:
        """The next trial; None where there is none, or none yet."""
        number = len(self._frozen)
        if number >= self.target:
            return None
        first = self._first_unknown(number)
        known, under_way = self._frozen[:first], self._frozen[first:]
        if any(not trial.state.is_finished() for trial in known):
            return None
        wished = self._queue.get(str(number))
        proposed, name, mapping = propose(number, [*known, *map(_as_running, under_way)], self.sweep, wished)
        schedule, train = load(mapping, allow=self.allow), {}
        if self.stage:  # a rung: the whole of the schedule in fewer epochs
            full, train = self.sweep.train.epochs, {"epochs": self.epochs}
            updates = self.facts["updates_per_epoch"] * full
            schedule = schedule.rescaled(self.epochs / full, updates, epochs=full)
        return created(
            name,
            schedule,
            train=train,
            params=proposed.params,
            distributions=proposed.distributions,
            system_attrs=proposed.system_attrs,  # CMA-ES keeps its state there
        )

    def go_on_with(self, chosen: Sequence[Mapping[str, Any]]) -> None:
        """Train these parameters and no others: what the rung before has left."""
        self.wish(chosen)
        self._target = len(self._queue)

    def survivors(self) -> list[Mapping[str, Any]]:
        """The parameters of the best share of a rung, best first, none of them twice."""
        done = best_first(self.records(), self.sweep.objective.sign)
        distinct = first_of_each(done, lambda r: frozenset(r.params.items()))
        return [r.params for r in distinct[: self.sweep.search.kept(self.target)]]

    def importance(self) -> dict[str, float]:
        """How much of what these explain each parameter explains (PED-ANOVA), the most first; empty where unknown.

        A parameter that only some types have counts within its type; one with fewer than ten trials is left out, and
        all are where there are fewer than five trials for each. So is one of which chance makes as much, by a test of
        permutations at 5 %: something has most of what is explained by chance, too.
        """
        counts = Counter(name for r in best_first(self.records(), 1) for name in r.params)
        wide = [name for name, n in counts.items() if n >= 10]
        if not wide or max(counts.values()) < 5 * len(wide):
            return {}
        found, done = _explained(self._study), self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        shuffles, by_chance = SHUFFLES if len(done) <= 200 else 19, {name: list[float]() for name in wide}
        all_alike, types = [0] * len(done), [t.params["type"] for t in done]
        for n in range(shuffles):
            anywhere, within = (_explained(self._shuffled(done, groups, n)) for groups in (all_alike, types))
            for name in wide:  # what a type's own parameter explains is beside what the type does
                by_chance[name].append((anywhere if name == "type" else within).get(name, 0.0))
        rank = (shuffles + 1) // 20
        told = {n: share for n, share in found.items() if n in wide and share > sorted(by_chance[n])[-rank]}
        return {name: share / math.fsum(told.values()) for name, share in told.items()}

    def _shuffled(self, done: Sequence[FrozenTrial], groups: Sequence[Hashable], seed: int) -> optuna.Study:
        """These trials in a study of their own, with their results shuffled in each group."""
        scratch, values = optuna.create_study(direction=self.sweep.objective.direction), [t.value for t in done]
        chance = random.Random(seed)
        for group in dict.fromkeys(groups):
            at = [i for i, other in enumerate(groups) if other == group]
            for i, j in zip(at, chance.sample(at, len(at)), strict=True):
                values[i] = done[j].value
        trials = (
            create_trial(value=v, params=t.params, distributions=t.distributions)
            for t, v in zip(done, values, strict=True)
        )
        scratch.add_trials(list(trials))
        return scratch

    def _first_unknown(self, number: int) -> int:
        """The first trial whose result trial ``number`` must not know, so that the number of lanes cannot matter."""
        return max(0, number + 1 - self.sweep.search.window)

    def wish(self, wishes: Iterable[Mapping[str, Any]]) -> int:
        """Try these parameters next, before the sampler's own; what the study has, or is to have, is not tried twice.

        Returns how many come after the study's last trial.
        """
        number = max([len(self._records), *(int(n) + 1 for n in self._queue)])
        tried = [record.params for record in self._records.values() if record.outcome != "failed"]
        for wish in map(dict, wishes):
            if wish not in [*tried, *self._queue.values()]:
                self._queue[str(number)] = wish
                number += 1
        self.remember(queue=self._queue)
        return sum(int(n) >= self.target for n in self._queue)

    def _begin(self, trial: FrozenTrial) -> Record:
        self._trials[trial.number] = optuna.Trial(self._study, trial._trial_id)
        return self._records.setdefault(trial.number, _record(trial, self.stage))

    def schedule(self, record: Record) -> Schedule:
        return load(record.schedule, allow=self.allow)

    def config(self, record: Record, example: TrialConfig) -> TrialConfig:
        """What a trial trains, given what all of them have in common."""
        return replace(example, schedule=self.schedule(record), train=record.recipe(self.sweep))

    def stops(self, number: int, epoch: Epoch | None) -> str | None:
        """``stopped`` where the sweep's pruner ends a trial after this epoch; None where it goes on.

        The pruner sees the trials that trial ``number`` was proposed from and its own values, no more: it decides
        alike with any number of lanes. A trial on parole goes on, and its record says where it would have ended.
        """
        record, search, metric = self._records[number], self.sweep.search, self.sweep.objective.metric
        if search.pruner == "none" or self.stage or epoch is None:
            return None
        if record.stop is not None and epoch.number > record.stop:  # on parole
            return None
        scratch = optuna.create_study(
            study_name=self.sweep.name,  # Hyperband's brackets depend on it
            direction=self.sweep.objective.direction,
            sampler=optuna.samplers.RandomSampler(),
            pruner=_pruner(search, self.sweep.train.epochs),
        )
        scratch.add_trials([_as_judged(trial) for trial in self._frozen[: self._first_unknown(number)]])
        for _ in range(self._first_unknown(number), number):
            scratch.add_trial(create_trial(state=TrialState.FAIL))  # its number decides its bracket
        values = {int(e["epoch"]): e[metric] for e in record.epochs if e["epoch"] < epoch.number}
        values |= {epoch.number: epoch.metrics()[metric]}
        scratch.add_trial(_as_judged(self._read(self._trials[number]._trial_id), values))
        judged = scratch.get_trials(deepcopy=False)[number]
        known, prune = dict(judged.system_attrs), scratch.pruner.prune(scratch, judged)
        after = scratch.get_trials(deepcopy=False)[number].system_attrs
        new = {k: v for k, v in after.items() if k not in known}
        if new:
            persist(self._study, lambda: self._trials[number].set_user_attr(f"pruner:{epoch.number}", new))
        if not prune:
            return None
        persist(self._study, lambda: self._trials[number].set_user_attr("stop", epoch.number))
        self._records[number] = replace(record, stop=epoch.number)
        lot = zlib.crc32(f"parole/{search.seed}/{number}".encode()) / 2**32
        return None if lot < search.parole else "stopped"

    def commit(self, number: int, epoch: int, metrics: Mapping[str, float]) -> Record:
        """Put an epoch on record; it is on disk when this returns. One on record already stays as it is."""
        record = self._records[number]
        if all(e["epoch"] != epoch for e in record.epochs):
            entry = {"epoch": epoch, "timestamp": int(time.time() * 1000), **metrics}
            persist(self._study, lambda: self._trials[number].set_user_attr(f"epoch:{epoch}", entry))
            self._records[number] = replace(record, epochs=(*record.epochs, entry))
        return self._records[number]

    def best(self) -> Record | None:
        """The best complete trial so far; of equals, the first."""
        return next(iter(best_first(self.records(), self.sweep.objective.sign)), None)

    def tell(self, number: int, outcome: str, cause: str | None = None) -> Record:
        """End a trial. The objective is read from its committed epochs."""
        trial, record = self._trials[number], self._records[number]
        value = objective(self.sweep.objective, record.epochs) if outcome == "complete" else None

        def write() -> FrozenTrial:
            known = self._read(trial._trial_id)
            if known.state.is_finished():  # an earlier attempt, whose answer was lost
                return known
            for key, text in (("outcome", outcome), ("cause", cause)):
                if text is not None:
                    trial.set_user_attr(key, text)
            for entry in record.epochs:
                if entry["epoch"] not in known.intermediate_values:
                    trial.report(entry[self.sweep.objective.metric], step=int(entry["epoch"]))
            return self._study.tell(trial, value, state=STATES[outcome])

        self._frozen[number] = persist(self._study, write)
        del self._trials[number]
        self._records[number] = replace(record, outcome=outcome, value=value, cause=cause)
        return self._records[number]


def _explained(study: optuna.Study) -> dict[str, float]:
    """What each parameter explains, the most first; nothing where all values are alike."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Some regimes")  # few trials: the report says so itself
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            found = optuna.importance.get_param_importances(study, normalize=False)
    except (RuntimeError, ValueError):
        return {}
    return {name: share for name, share in found.items() if math.isfinite(share)}


def created(
    name: str, schedule: Schedule, arm: str | None = None, train: Mapping[str, int] | None = None, **said: Any
) -> FrozenTrial:
    """A trial that has begun, as it is put into a study."""
    attrs = {"name": name, "schedule": schedule.to_json(), "train": dict(train or {}), "arm": arm}
    attrs = {key: value for key, value in attrs.items() if value}
    return create_trial(state=TrialState.RUNNING, user_attrs=attrs, **said)


def _as_running(trial: FrozenTrial) -> FrozenTrial:
    """A trial as it looked before its result was known."""
    return create_trial(
        state=TrialState.RUNNING,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs=trial.system_attrs,
    )


def _as_judged(trial: FrozenTrial, values: Mapping[int, float] | None = None) -> FrozenTrial:
    """A trial with what a pruner has noted of it, in all or until it had only these ``values`` by epoch."""
    noted: dict[str, Any] = {}
    for key, note in trial.user_attrs.items():
        if key.startswith("pruner:") and (values is None or int(key.removeprefix("pruner:")) < max(values)):
            noted |= note
    return create_trial(
        state=trial.state,
        values=trial.values,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=dict(trial.intermediate_values if values is None else values),
        system_attrs=trial.system_attrs | noted,
    )


def objective(wanted: Objective, epochs: Sequence[Mapping[str, float]]) -> float:
    """The value that a finished trial is judged by."""
    values = [e[wanted.metric] for e in epochs]
    if wanted.epoch == "last":
        return values[-1]
    return max(values) if wanted.direction == "maximize" else min(values)


def _records(study: optuna.Study, trials: Iterable[FrozenTrial]) -> list[Record]:
    facts = study.user_attrs
    stage = study.study_name.partition("@")[2]
    return [replace(_record(t, stage), run_id=facts.get(f"run:{t.number}")) for t in trials]


def _record(trial: FrozenTrial, stage: str) -> Record:
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
        stage=stage,
        train=attrs.get("train", {}),
        arm=attrs.get("arm"),
        stop=attrs.get("stop"),
    )


# --------------------------------------------------------------------------------------
# Proposals.

LEARN = ("tpe", "gp", "cmaes")
"""The samplers that look at the trials before."""
ATTEMPTS = 10
"""How often a sampler is asked for something new: of a few choices all may have been tried."""


def propose(
    number: int, history: Iterable[FrozenTrial], sweep: Sweep, wished: Mapping[str, Any] | None = None
) -> tuple[FrozenTrial, str, dict[str, Any]]:
    """Trial ``number``, given the trials before it: its parameters, the schedule's name, and its closed mapping.

    What is ``wished`` for is taken as it is, and the sampler chooses the rest. A sampler may come upon what has been
    tried, and begins anew then: the same numbers again say nothing.
    """
    before = list(history)
    tried = {frozenset(trial.params.items()) for trial in before}
    for attempt in range(1 if sweep.search.sampler in ("grid", "qmc") else ATTEMPTS):
        trial, name, mapping = _asked(number, attempt, before, tried, sweep, wished)
        if wished is not None or frozenset(trial.params.items()) not in tried:
            break
    return trial, name, mapping


def _asked(
    number: int,
    attempt: int,
    before: Sequence[FrozenTrial],
    tried: Collection[frozenset[tuple[str, Any]]],
    sweep: Sweep,
    wished: Mapping[str, Any] | None,
) -> tuple[FrozenTrial, str, dict[str, Any]]:
    """What ``propose`` gives in its n-th attempt."""
    search, space = sweep.search, sweep.schedules
    counts = dict.fromkeys(space.schedules, 0) | Counter(trial.params["type"] for trial in before)
    turn = min(counts, key=counts.__getitem__) if search.balance == "equal" else None
    sampler = _sampler(search, zlib.crc32(f"{search.seed}/{number}{f'/{attempt}' * (attempt > 0)}".encode()))
    scratch = optuna.create_study(direction=sweep.objective.direction, sampler=sampler)
    if search.sampler in LEARN:  # without what is on record of their epochs, which would be copied
        scratch.add_trials(map(_as_judged, before))
    if wished is not None:
        scratch.enqueue_trial(dict(wished))
    elif search.sampler == "grid":
        # wishes may be points of the grid
        scratch.enqueue_trial(next(point for point in space.grid_points() if frozenset(point.items()) not in tried))
    elif search.sampler == "qmc":
        point = number if turn is None else counts[turn]  # by turns, Sobol's would be half of each for one type
        scratch.enqueue_trial(_quasirandom(space, search.seed, point, turn))
    elif turn is not None:
        scratch.enqueue_trial({"type": turn})
    trial = scratch.ask()
    name, mapping = space.sample(trial)
    return scratch.get_trials(deepcopy=False)[-1], name, mapping


def _sampler(search: Search, seed: int) -> optuna.samplers.BaseSampler:
    if search.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed, deterministic_objective=False)
    if search.sampler == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=10, warn_independent_sampling=False)
    if search.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(search: Search, epochs: int) -> optuna.pruners.BasePruner:
    if search.pruner == "median":
        return optuna.pruners.MedianPruner()
    if search.pruner == "percentile":
        return optuna.pruners.PercentilePruner(25.0)
    if search.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(max_resource=epochs)
    return optuna.pruners.SuccessiveHalvingPruner()


def _quasirandom(space: Space, seed: int, number: int, name: str | None) -> dict[str, Any]:
    """Point ``number`` of a scrambled Sobol sequence, of type ``name`` where it is told. Optuna's own needs a space
    without conditions."""
    from scipy.stats import qmc

    names, sequence = list(space.schedules), qmc.Sobol(1 + len(space.axes()), scramble=True, rng=seed)
    if number:
        sequence.fast_forward(number)
    u = sequence.random(1)[0].tolist()
    return space.point(u if name is None else [(names.index(name) + 0.5) / len(names), *u[1:]])


# --------------------------------------------------------------------------------------
# Opening.


def opened(sweep: Sweep, storage: str, stage: str = "") -> optuna.Study:
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
    known = study.user_attrs.get("science")
    if known is None and (trials := study.get_trials(deepcopy=False)):
        if all("schedule" in trial.user_attrs for trial in trials):
            # What a sweep wrote while its study was being deleted: SQLite has given the number of that one again.
            optuna.delete_study(study_name=study.study_name, storage=there)
            disconnect(there)
            return opened(sweep, storage, stage)
        raise SpecError(f"{redacted(storage)} has a study {sweep.name!r} of another program; give this sweep a name")
    if known is None:
        study.set_user_attr("science", sweep.science())
    elif known != sweep.science():
        key, differs = _difference(known, sweep.science())
        what = f"{'.'.join(map(str, key))} ({differs})"
        raise SpecError(
            f"the study {sweep.name!r} was begun with another {what}; give this sweep another name (name: "
            f"{sweep.name}-2), or undo the change",
            key=key,
        )
    return study


def begun_with(sweep: Sweep, storage: str, wanted: str, seen: Mapping[str, Any], must: bool = False) -> Engine | None:
    """The engine that a study was begun with, for all of its trials; None where there is no study yet.

    ``seen`` is what the file only names and the study remembers: the images, and what one's own functions give.

    Raises:
        SpecError: the reference is ``wanted``, and it was the fast one; it was begun with other images or functions;
            or it ``must`` be there and is not.
    """
    name = sweep.name
    try:
        known, _ = load_study(name, storage)
    except SpecError:  # what else is wrong with the storage, ``opened`` says
        if must:
            raise
        return None
    same = known["science"] == sweep.science()  # else ``opened`` says what differs
    for what, now in seen.items() if same else ():
        if not _alike(known.get(what, now), now):
            other = "other images" if what == "images" else f"another {what}"
            in_files = what == "images" and sweep.data.function is None
            where = "what is in the data folder" if in_files else "what its function gives"
            raise SpecError(
                f"the study {name!r} was begun with {other}: {where} has changed since; bring it back, or give this "
                f"sweep another name (name: {name}-2)"
            )
    if "engine" not in known:  # it ended before anything was trained
        return None
    engine = Engine(**known["engine"])
    if wanted == "reference" and engine.name != "reference":
        raise SpecError(
            f"the study {name!r} was begun with the engine {engine}; leave --engine out, or name the sweep anew"
        )
    return engine


def earlier_noise(sweep: Sweep, storage: str) -> tuple[str, Mapping[str, float]] | None:
    """The latest other sweep in this storage that measured the seed noise of this training, and what it measured."""
    same, known = ("data", "model", "train", "objective"), connect(storage)
    try:
        for found in reversed(optuna.get_all_study_summaries(known)):
            facts, science = found.user_attrs, sweep.science()
            if found.study_name == sweep.name or "noise" not in facts:
                continue
            if all(facts["science"][section] == science[section] for section in same):
                return found.study_name, facts["noise"]
    finally:
        disconnect(known)
    return None


def load_study(name: str, storage: str) -> tuple[dict[str, Any], list[Record]]:
    """The facts and the trials of a study that exists, for reading.

    Raises:
        SpecError: there is no such study there.
    """
    there = connect(storage, create=False)
    try:
        names = optuna.get_all_study_names(there)
        if name not in names:
            names = [other for other in names if "@" not in other]
            has = f" (it has {', '.join(names[:9])}{', ...' * (len(names) > 9)})" * bool(names)
            raise SpecError(f"there is no study {name!r} in this storage{has}; run the sweep first")
        study = optuna.load_study(study_name=name, storage=there)
        if "science" not in study.user_attrs:
            raise SpecError(f"the study {name!r} in this storage is another program's")
        return dict(study.user_attrs), _records(study, study.get_trials(deepcopy=False))
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise unusable(storage, error) from None
    finally:
        disconnect(there)


def _alike(old: Any, new: Any) -> bool:
    """Whether it is the same thing: numbers may differ as they do from one machine to another."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and np.allclose(old, new, rtol=1e-2, atol=1e-3, equal_nan=True)
    return bool(old == new)


def _difference(old: Any, new: Any, key: Key = ()) -> tuple[Key, str]:
    """Where two nested mappings differ first, and how."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            if old.get(name) != new.get(name):
                return _difference(old.get(name), new.get(name), (*key, name))
    before, now = ("nothing" if value is None else repr(value) for value in (old, new))
    return key, f"{before}, now {now}"
