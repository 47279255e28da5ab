"""What a sweep is run with: device, data, engine, lanes, tracker and study, made once and in one place."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from .cli import Options
from .files.document import Document, SpecError
from .files.place import Place, StorageError
from .files.space import problems
from .files.sqlite import Unmoved
from .files.sweep_file import Sweep
from .files.trial import Engine, Record, TrialConfig
from .lanes.lane import Lanes
from .lanes.open import open_lanes, start_forkserver
from .lanes.ray import NO_RAY
from .lanes.stop import Stop
from .results.answer import difference
from .results.terminal import echo, info
from .schedules.schedule import load
from .study import storage
from .study.confirm import Confirmation
from .study.study import Study, check_stages, stored_engine
from .tracking import client
from .tracking.tracker import Tracker
from .training import data, model
from .training.checkpoint import Checkpoints
from .training.data import Dataset
from .training.device import pick_device
from .training.fast import choice


@dataclass
class Setup:
    """All that a sweep needs while it runs."""

    sweep: Sweep
    place: Place
    options: Options
    stop: Stop
    example: TrialConfig
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
    replicates: Confirmation | None = None

    def confirm(self, arms: Sequence[Record]) -> Confirmation:
        """Open the study of the replicates of ``arms``."""
        opened = Confirmation(self.sweep, self.place.storage, arms, self.updates)
        self.replicates = self.resources.enter_context(closing(opened))
        return self.replicates

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
    dataset: Dataset
    fingerprints: Mapping[str, Any]
    example: TrialConfig
    """What all trials have in common, but for the engine where the study is new."""
    engine: Engine | None
    """The engine that the study was begun with."""

    @property
    def summary(self) -> str:
        """How long a training is, and with which images."""
        recipe = self.example.train
        return f"{recipe.length(recipe.updates(len(self.dataset.train)))}; {self.dataset}"


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
    dataset = data.load(sweep.data, options.data_dir)
    fingerprints = take_fingerprints(sweep, dataset)
    engine = stored_engine(sweep, place.storage, options.engine, fingerprints, must=options.sync)
    check_stages(sweep, place.storage)
    constant = load({"type": "constant"})
    example = TrialConfig(sweep.data, sweep.model, sweep.train, constant, options.data_dir, images=dataset.digest)
    if engine is not None:
        example = replace(example, engine=engine)
        if not options.sync and (reason := choice.obstacle(example, device)):
            wrong = f"the study {sweep.name!r} was begun with the engine {engine}, which cannot go on here: {reason}"
            raise SpecError(
                f"{wrong}; continue it where it can (--sync reports what there is), or name the sweep anew"
            )
    return Checked(device, dataset, fingerprints, example, engine)


@contextmanager
def prepare(sweep: Sweep, document: Document, place: Place, options: Options, stop: Stop) -> Iterator[Setup]:
    """Make what a sweep needs; whatever is wrong with it is said before anything is made.

    Raises:
        SpecError: data, device, study or tracking cannot be used.
    """
    lanes, ray = ("0", None) if options.sync else (options.lanes, options.ray)
    checked = check(sweep, place, options)
    device, dataset = checked.device, checked.dataset
    info(str(dataset))
    if device.type == "cpu" and ray is None and lanes != "0":
        start_forkserver()  # it imports what workers need, beside what follows
    if device.type == "cuda":
        info(f"getting {device} ready, which takes up to a minute")
    chosen = checked.engine or choice.choose(checked.example, device, sweep.all_epochs, options.engine)
    example = replace(checked.example, engine=chosen)
    folder = place.folder / "results" / sweep.name / "checkpoints"
    checkpoints = Checkpoints(folder, place.file.study.checkpoint_seconds, echo)
    resources = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
    tags = {"device": str(device), "engine": str(example.engine)}
    with (
        open_lanes(
            lanes, str(device), sweep.most_lanes, ray, example, stop=stop, checkpoints=checkpoints, **resources
        ) as opened,
        Tracker(place, sweep, document, dataset.facts(), tags, echo, sync=options.sync) as tracker,
        storage.hold(sweep.name, place.storage) as hold,  # one coordinator at a time
        ExitStack() as stack,
    ):
        results = Unmoved(place.results(sweep.name))
        search = stack.enter_context(closing(Study(sweep, place.storage)))
        if "engine" in search.facts and Engine(**search.facts["engine"]) != example.engine:  # begun in the meantime
            raise SpecError(f"the study {sweep.name!r} has just been begun with another engine; try again")
        begun = search.facts.get("id") or uuid.uuid4().hex
        search.remember(engine=asdict(example.engine), id=begun, **checked.fingerprints)
        tracker.resume(begun)
        info(f"{opened} on {device}; engine: {example.engine}")
        if device.type == "cpu" and example.engine.precision == "bf16" and not choice.has_bf16():
            info("warning: this CPU does not compute in bf16, which takes several times as long; auto does without")
        for problem in data_warnings(sweep, dataset):
            info(f"warning: {problem}")
        if search.others:
            info(f"warning: {len(search.others)} trials of this study are another program's, and are left out")
        if search.former:
            info("warning: a former baseline is left out: its function is not permitted, or not there, any more")
        rungs = [stack.enter_context(closing(Study(sweep, place.storage, f"rung-{n}"))) for n in sweep.rungs[:-1]]
        updates = sweep.train.updates(len(dataset.train))
        yield Setup(
            sweep, place, options, stop, example, updates, opened, tracker, hold, results, rungs, search, stack
        )


def dry_run(sweep: Sweep, place: Place, options: Options) -> list[str]:
    """Warnings, then a summary, of a sweep that would not be refused; errors as in ``check``."""
    checked = check(sweep, place, options)
    warnings = [f"warning: {problem}" for problem in data_warnings(sweep, checked.dataset)]
    return [*warnings, f"{sweep.name}: {sweep.size}; {checked.summary}"]


def take_fingerprints(sweep: Sweep, dataset: Dataset) -> dict[str, Any]:
    """What a sweep file only names, for the study to remember: the images, and what one's own functions give.

    Raises:
        SpecError: the model cannot be built, or does not take these images.
    """
    answers = model.check(sweep.model, dataset.classes, *dataset.size)
    network = answers if sweep.model.function is not None else {}
    schedules = {f"schedule {name}": lrs for name, lrs in sweep.schedules.custom_lrs(sweep.allow).items()}
    return {"images": dataset.digest, **network, **schedules}


def data_warnings(sweep: Sweep, dataset: Dataset) -> list[str]:
    """What is wrong with data that are too few for the question, and with schedules that do not do what they say."""
    said, size = dataset.notes.all_warnings(), sweep.train.batch_size
    images, val = len(dataset.train), len(dataset.val)
    if (updates := sweep.train.updates(images)) < 5:
        said.append(
            f"batches of {size} from {images} images are {updates} update{'s' * (updates > 1)} of the weights in an "
            "epoch: a smaller train.batch_size gives the schedules more to do"
        )
    if val < 200:
        said.append(
            f"{val} validation image{'s' * (val != 1)}: one of them is {difference(1 / val, 'points')} of accuracy"
        )
    counts = dataset.train.labels.bincount(minlength=dataset.classes).tolist()
    if absent := [label for label, n in enumerate(counts) if not n]:
        said.append(
            f"{len(absent)} of {dataset.classes} classes without a training image, the first is {absent[0]}: labels "
            "count from 0 without gaps; data.limit and the other splits may have the images of a small class"
        )
    epochs = sweep.train.epochs
    return said + sweep.warnings + problems(sweep.schedules.check(sweep.allow), updates * epochs, epochs)
