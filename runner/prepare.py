"""What a sweep is run with: device, data, engine, lanes, tracker and study, made once and in one place."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .cli import Options
from .files.document import Document, SpecError
from .files.place import Place, StorageError
from .files.space import problems
from .files.sqlite import Unmoved
from .files.sweep_file import Sweep
from .files.trial import Config, Engine, OwnConfig, Record, TrialConfig
from .lanes.lane import Lane, Lanes, Result
from .lanes.open import open_lanes, start_forkserver
from .lanes.ray import NO_RAY
from .lanes.stop import Stop
from .results.answer import difference
from .results.terminal import echo, info, shown
from .schedules.schedule import load
from .study import storage
from .study.budget import Budget
from .study.confirm import Confirmation, best_trainings
from .study.study import Study, check_stages, stored_engine
from .tracking import client
from .tracking.tracker import Tracker
from .training import data, model
from .training.checkpoint import Checkpoints
from .training.data import Dataset
from .training.device import pick_device
from .training.fast import choice
from .training.kept import Kept
from .training.log import tail
from .training.own import source_files
from .training.plan import NOMINAL

CONSTANT = load({"type": "constant"})
"""The schedule of what all trials have in common, which has none."""


@dataclass
class Setup:
    """All that a sweep needs while it runs."""

    sweep: Sweep
    place: Place
    options: Options
    stop: Stop
    example: Config
    """What all trials have in common."""
    updates: int
    """In an epoch."""
    lanes: Lanes
    tracker: Tracker
    hold: storage.Hold
    results: Unmoved
    rungs: list[Study]
    """Shorter trainings that come first; often none."""
    search: Study
    resources: ExitStack = field(repr=False)
    kept: Kept
    budget: Budget
    replicates: Confirmation | None = None

    def confirm(self, arms: Sequence[Record]) -> Confirmation:
        """Open the study of the replicates of ``arms``."""
        opened = Confirmation(self.sweep, self.place.storage, arms, self.updates)
        self.replicates = self.resources.enter_context(closing(opened))
        return self.replicates

    def has_room(self, stage: Study, trial: Record) -> bool:
        """Whether there is time for a training, and for what is to follow its stage."""
        if self.budget.seconds == math.inf:
            return True
        following, stages = 0, [*self.rungs, self.search]
        if stage in stages:
            later = self.sweep.stages[stages.index(stage) + 1 :]
            following = sum(trials * epochs for trials, epochs in later) + self.sweep.fresh_epochs
        epochs = trial.train.get("epochs", stage.epochs)
        measured = [record for one in filter(None, [*stages, self.replicates]) for record in one.records()]
        return self.budget.has_room(epochs, following, len(self.lanes.all), measured)

    def note_what_was_cut(self, stage: Study) -> None:
        """Put on record how far a stage came for want of time; or that it came to its end, after all."""
        before = self.search.facts.get("cut", {})
        cut = {name: what for name, what in before.items() if name != (stage.stage or "search")}
        if self.budget.over and not stage.complete():
            cut[stage.stage or "search"] = [len(stage.ended()), stage.target, self.options.said_time]
        if cut != before:
            self.search.remember(cut=cut)

    def why(self, trial: Record, result: Result) -> tuple[str | None, Sequence[str]]:
        """Why a trial ended as it did, with the place of its log, and the last lines of that, where it failed."""
        config = self.search.config(trial, self.example)
        if result.cause is None or not isinstance(config, OwnConfig):
            return result.cause, ()
        lines = tail(config.log)
        return f"{result.cause}{f' (log: {shown(config.log)})' if lines else ''}", lines

    def keep(self, stage: Study, trial: Record, lane: Lane) -> None:
        """Keep what a training has learnt that has just ended, where the sweep wants that of the best one."""
        if self.sweep.confirm.keep and isinstance(stage, Confirmation):
            if isinstance(config := stage.config(trial, self.example), OwnConfig):
                self.kept.files(trial, config.folder)
            else:
                self.kept.weights(trial, lane.weights())

    def keep_best_of_each(self, stage: Study) -> None:
        """Forget what is kept of trainings that are not the best of their arm."""
        if self.sweep.confirm.keep and isinstance(stage, Confirmation):
            self.kept.only([*best_trainings(stage.ended(), self.sweep).values(), *stage.running()])

    def check_files(self) -> None:
        """Raise StorageError where something that the sweep stands on is no longer what it opened."""
        stages = list(filter(None, [self.search, *self.rungs, self.replicates]))
        for stage in stages:
            stage.check_file()
        if self.hold.check():
            for stage in stages:
                stage.check_trials()
        self.tracker.check_file()
        if not self.results:
            wrong = f"the results {self.results.path} were removed or replaced while the sweep ran"
            raise StorageError(f"{wrong}; the same command goes on, from what is on record")


@dataclass(frozen=True)
class Checked:
    """What a sweep would run with, when nothing of it has been refused."""

    device: torch.device
    example: Config
    """What all trials have in common, but for the engine where the study is new."""
    engine: Engine | None
    """The engine that the study was begun with."""
    about: str
    """What is trained, in a line."""
    summary: str
    """How long a training is, and of what."""
    updates: int
    """In an epoch; of a training of one's own that does not say it, a number to draw with."""
    data: Mapping[str, Any]
    """What MLflow says of the data; nothing of those that are not ours."""
    fingerprints: Mapping[str, Any]
    warnings: Sequence[str]


def check(sweep: Sweep, place: Place, options: Options) -> Checked:
    """Check all that can be checked without training and without a cluster; makes nothing, changes nothing.

    Raises:
        SpecError: what a sweep refuses before its first trial.
    """
    with place.locating("study.storage"):
        storage.check(place.storage)
    storage.check_lock(sweep.name, place.storage)
    client.check(place)
    place.check_results(sweep.name)
    if options.ray is not None and importlib.util.find_spec("ray") is None:
        raise SpecError(NO_RAY)
    device = pick_device(options.device)
    checked = (_check_ours if sweep.own is None else _check_own)(sweep, place, options, device)
    check_stages(sweep, place.storage)
    return checked


def _check_ours(sweep: Sweep, place: Place, options: Options, device: torch.device) -> Checked:
    """``check``, for our own trainer."""
    images, network, recipe = sweep.ours
    dataset = data.load(images, options.data_dir)
    fingerprints = take_fingerprints(sweep, dataset)
    engine = stored_engine(sweep, place.storage, options.engine, fingerprints, must=options.sync)
    example = TrialConfig(images, network, recipe, CONSTANT, options.data_dir, images=dataset.digest)
    example = replace(example, objective=sweep.objective)
    if engine is not None:
        example = replace(example, engine=engine)
        if not options.sync and (reason := choice.obstacle(example, device)):
            wrong = f"the study {sweep.name!r} was begun with the engine {engine}, which cannot go on here: {reason}"
            raise SpecError(
                f"{wrong}; continue it where it can (--sync reports what there is), or name the sweep anew"
            )
    updates, warnings = recipe.updates(len(dataset.train)), data_warnings(sweep, dataset)
    summary = f"{recipe.length(updates)}; {dataset}"
    about = str(dataset)
    return Checked(device, example, engine, about, summary, updates, dataset.facts(), fingerprints, warnings)


def _check_own(sweep: Sweep, place: Place, options: Options, device: torch.device) -> Checked:
    """``check``, for a training of one's own."""
    training, results = sweep.own, place.folder / "results" / sweep.name
    assert training is not None
    if options.engine != "auto":
        raise SpecError("--engine is a matter of our own trainer: leave it out", key=("train",))
    schedules = schedule_fingerprints(sweep)
    stored_engine(sweep, place.storage, options.engine, schedules, must=options.sync)
    folder, logs = results / "checkpoints", results / "logs"
    example = OwnConfig(training, CONSTANT, sweep.objective, sweep.allow, folder, logs)
    updates, about = training.updates_per_epoch or NOMINAL, f"each training is {training.said}"
    summary, warnings = f"{training.epochs} epochs; {about}", schedule_warnings(sweep, updates)
    return Checked(device, example, None, about, summary, updates, {}, schedules, warnings)


@contextmanager
def prepare(sweep: Sweep, document: Document, place: Place, options: Options, stop: Stop) -> Iterator[Setup]:
    """Make what a sweep needs; whatever is wrong with it is said before anything is made.

    Raises:
        SpecError: data, device, study or tracking cannot be used.
    """
    budget = Budget(options.seconds)
    lanes, ray = ("0", None) if options.sync else (options.lanes, options.ray)
    checked = check(sweep, place, options)
    device, example, about = checked.device, checked.example, dict(checked.fingerprints)
    info(checked.about)
    tags = {"device": str(device)}
    if isinstance(example, TrialConfig):
        if device.type == "cpu" and ray is None and lanes != "0":
            start_forkserver()  # it imports what workers need, beside what follows
        if device.type == "cuda":
            info(f"getting {device} ready, which takes up to a minute")
        chosen = checked.engine or choice.choose(example, device, sweep.all_epochs, options.engine)
        example = replace(example, engine=chosen)
        about["engine"] = asdict(chosen)
        tags["engine"] = str(chosen)
    elif ray is None and lanes != "0":
        start_forkserver(own=example.train.function is not None)
    folder = place.folder / "results" / sweep.name / "checkpoints"
    checkpoints = Checkpoints(folder, place.file.study.checkpoint_seconds, echo)
    resources = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
    with (
        open_lanes(
            lanes, str(device), sweep.most_lanes, ray, example, stop=stop, checkpoints=checkpoints, **resources
        ) as opened,
        Tracker(place, sweep, document, checked.data, checked.updates, tags, echo, sync=options.sync) as tracker,
        storage.hold(sweep.name, place.storage) as hold,  # one coordinator at a time
        ExitStack() as stack,
    ):
        opened.stall = options.stall_minutes * 60 if options.stall_minutes else math.inf
        results = Unmoved(place.results(sweep.name))
        search = stack.enter_context(closing(Study(sweep, place.storage)))
        begun_with, engine = search.facts.get("engine"), about.get("engine")
        if begun_with is not None and engine is not None and Engine(**begun_with) != Engine(**engine):
            raise SpecError(f"the study {sweep.name!r} has just been begun with another engine; try again")
        begun = search.facts.get("id") or uuid.uuid4().hex
        code = code_of_ones_own(sweep)
        changed = [name for name, digest in search.facts.get("code", {}).items() if code.get(name, digest) != digest]
        search.remember(id=begun, code=code, **about)
        tracker.resume(begun)
        info(f"{opened} on {device}" + (f"; engine: {tags['engine']}" if engine else ""))
        if device.type == "cpu" and engine and engine["precision"] == "bf16" and not choice.has_bf16():
            info("warning: this CPU does not compute in bf16, which takes several times as long; auto does without")
        for problem in checked.warnings:
            info(f"warning: {problem}")
        if changed:
            names = ", ".join(Path(name).name for name in changed)
            info(
                f"warning: {names} has changed since this study began: trials before and after are of different code"
            )
        if search.others:
            info(f"warning: {len(search.others)} trials of this study are another program's, and are left out")
        if search.former:
            info("warning: a former baseline is left out: its function is not permitted, or not there, any more")
        rungs = [stack.enter_context(closing(Study(sweep, place.storage, f"rung-{n}"))) for n in sweep.rungs[:-1]]
        kept = Kept(results.path, echo)
        made = opened, tracker, hold, results, rungs, search, stack, kept, budget
        yield Setup(sweep, place, options, stop, example, checked.updates, *made)


def code_of_ones_own(sweep: Sweep) -> dict[str, str]:
    """The SHA-256 of every file that a training of one's own is named by."""
    own = sweep.own
    files = source_files(own.function, own.command) if own is not None else []
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def dry_run(sweep: Sweep, place: Place, options: Options) -> list[str]:
    """Warnings, then a summary, of a sweep that would not be refused; errors as in ``check``."""
    checked = check(sweep, place, options)
    warnings = [f"warning: {problem}" for problem in checked.warnings]
    return [*warnings, f"{sweep.name}: {sweep.size}; {checked.summary}"]


def take_fingerprints(sweep: Sweep, dataset: Dataset) -> dict[str, Any]:
    """What a sweep file only names, for the study to remember: the images, and what one's own functions give.

    Raises:
        SpecError: the model cannot be built, or does not take these images.
    """
    answers = model.check(sweep.model, dataset.classes, *dataset.size)
    network = answers if sweep.model.function is not None else {}
    return {"images": dataset.digest, **network, **schedule_fingerprints(sweep)}


def schedule_fingerprints(sweep: Sweep) -> dict[str, Any]:
    """What one's own schedule functions give, for the study to remember."""
    return {f"schedule {name}": lrs for name, lrs in sweep.schedules.custom_lrs(sweep.allow).items()}


def schedule_warnings(sweep: Sweep, updates: int) -> list[str]:
    """What a sweep asks for and will not get, and what its schedules cannot do with so many updates in an epoch."""
    epochs = sweep.train.epochs
    return sweep.warnings + problems(sweep.schedules.check(sweep.allow), updates * epochs, epochs)


def data_warnings(sweep: Sweep, dataset: Dataset) -> list[str]:
    """What is wrong with data that are too few for the question, and with schedules that do not do what they say."""
    _, _, recipe = sweep.ours
    said, size = dataset.notes.all_warnings(), recipe.batch_size
    images, val = len(dataset.train), len(dataset.val)
    if (updates := recipe.updates(images)) < 5:
        said.append(
            f"batches of {size} from {images} images are {updates} update{'s' * (updates > 1)} of the weights in an "
            "epoch: a smaller train.batch_size gives the schedules more to do"
        )
    if val < 200:
        said.append(
            f"{val} validation image{'s' * (val != 1)}: one of them is {difference(1 / val, 'points')} of accuracy"
        )
    metric = sweep.objective.known
    if metric and metric.whole:
        alike = np.full((val, dataset.classes), 1 / dataset.classes)
        if math.isnan(metric.whole(dataset.val.labels.numpy(), alike)):
            lacking = dataset.classes - len(dataset.val.labels.unique())
            said.append(
                f"{sweep.objective.metric} is not defined for a validation split without images of {lacking} of "
                f"{dataset.classes} classes: every trial would fail"
            )
    counts = dataset.train.labels.bincount(minlength=dataset.classes).tolist()
    if absent := [label for label, n in enumerate(counts) if not n]:
        said.append(
            f"{len(absent)} of {dataset.classes} classes without a training image, the first is {absent[0]}: labels "
            "count from 0 without gaps; data.limit and the other splits may have the images of a small class"
        )
    return said + schedule_warnings(sweep, updates)
