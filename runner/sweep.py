"""Search learning-rate schedules: train every trial, record every curve, say which was best.

    python -m runner.sweep                              the default sweep, sweeps/digits.yaml
    python -m runner.sweep sweeps/cifar10.yaml --data-dir ~/data
    python -m runner.sweep sweeps/cifar10.yaml --dry-run    check files, data, model and options, train nothing

The same command continues a sweep that was stopped, and adds trials to one whose file asks for more.
"""

from __future__ import annotations

import argparse
import errno
import json
import re
import shlex
import sys
import traceback
import uuid
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .stop import GpuError, Stop, Stopped, early, leave

if __name__ == "__main__":
    early()  # what comes now takes half a second

from .document import SpecError, first_line, no_control, printable
from .place import Place, StorageError, load_place, redacted
from .schedules import load
from .spec import Engine, Record, Sweep, TrialConfig, best_first, load_sweep
from .terminal import Display, remark, say, speak
from .zoo import ScheduleError

if TYPE_CHECKING:
    from .data import Dataset
    from .lanes import Lane, Lanes, Result
    from .study import Study
    from .tracking import Tracker

DEFAULT = "sweeps/digits.yaml"
MAX_FAILED = 0.5
"""A sweep stops when more than this share failed of at least three trials that ended since it was taken up."""
WARM = 5
"""How many of an earlier study's best are tried first."""
RETRIES = 2
"""How often a trial whose worker died is trained again."""


@dataclass(frozen=True)
class Options:
    """What is said on the command line: this invocation."""

    file: Path
    text: str = ""
    """Of the file, as it was read."""
    data_dir: str = "data"
    device: str = "auto"
    lanes: str = "auto"
    ray: str | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    engine: str = "auto"
    warm: Sequence[str] = ()
    enqueue: Sequence[str] = ()
    allow: Sequence[str] = ()
    sync: bool = False

    @property
    def plugins(self) -> str:
        """As every command needs them that reads one's own schedules."""
        return "".join(f" --allow-plugin {shlex.quote(prefix)}" for prefix in self.allow)

    @property
    def command(self) -> str:
        """What goes on with the same sweep, but for where it is recorded."""
        data = f" --data-dir {shlex.quote(self.data_dir)}" * (self.data_dir != "data")
        return f"python -m runner.sweep {shlex.quote(str(self.file))}{data}{self.plugins}"


class TooManyFailedError(Exception):
    """More trials failed than a sweep can bear; the message says why the last one did."""


def run(sweep: Sweep, place: Place, options: Options, stop: Stop | None = None) -> list[Record]:
    """Train the trials that the sweep still lacks, and write its results; returns all trials.

    Raises:
        SpecError: data, device, study or tracking cannot be used; nothing was trained.
        TooManyFailedError, StorageError, GpuError, Stopped: the sweep was stopped, and can be continued.
    """
    remark(f"{sweep.name}: {sweep.size}")
    # here: a wrong file is refused before torch is loaded, which takes seconds
    from . import checkpoint, choice, confirm, data, lanes, report, storage, study, tracking, train

    storage.check(sweep.name, place.storage)
    tracking.check(place)
    stop, device = Stop() if stop is None else stop, train.pick_device(options.device)
    dataset = data.load(sweep.data, options.data_dir)
    remark(str(dataset))
    wanted, ray = ("0", None) if options.sync else (options.lanes, options.ray)
    if device.type == "cpu" and ray is None and wanted != "0":
        lanes.make_ready()  # beside what follows
    seen = named(sweep, dataset, options.allow)
    updates = sweep.train.updates(len(dataset.train))
    flat = load({"type": "constant"})
    example = TrialConfig(sweep.data, sweep.model, sweep.train, flat, options.data_dir, images=dataset.digest)
    if device.type == "cuda":
        remark(f"getting {device} ready, which takes up to a minute")
    known = study.begun_with(sweep, place.storage, options.engine, seen, must=options.sync)
    chosen = known or choice.choose(example, device, sweep.all_epochs, options.engine)
    example = replace(example, engine=chosen)
    if known and not options.sync and (reason := choice.obstacle(example, device)):
        wrong = f"the study {sweep.name!r} was begun with the engine {known}, which cannot go on here: {reason}"
        raise SpecError(f"{wrong}; continue it where it can (--sync reports what there is), or name the sweep anew")
    resources = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
    where = {"device": str(device), "engine": str(chosen)}
    wishes = wished(sweep, place, options)
    with (
        lanes.open_lanes(wanted, str(device), most_lanes(sweep), ray, example, **resources) as places,
        tracking.Tracker(place, sweep, dataset, where, options) as tracker,
        storage.hold(sweep.name, place.storage),  # one coordinator at a time
        ExitStack() as stack,
    ):
        folder = report.folder(place, sweep) / "checkpoints"
        checkpoints = checkpoint.Checkpoints(folder, place.file.study.checkpoint_seconds, say)
        places.heed(stop, checkpoints)

        def opened(stage: str = "") -> Study:
            return stack.enter_context(closing(study.Study(sweep, place.storage, options.allow, stage)))

        def carry_out(stage: Study) -> bool:
            """Train what a stage still lacks; whether nothing is lacking then."""
            stage.remember(updates_per_epoch=updates)
            tracker.show(*stage.ended())
            title = {"": "search", confirm.STAGE: "fresh seeds"}.get(stage.stage, stage.stage)
            if options.sync:
                why = tracker.settle()
                has = f"lacks some: {why}" if why else "has them"
                say(f"{title}: {len(stage.ended())} ended, and MLflow {has}")
                return stage.complete()
            begun = {r.number: len(r.epochs) for r in stage.records() if r.outcome is None}
            display = Display(stage.target, stage.epochs, title, len(stage.ended()), stage.best(), begun)
            with display, stop.listening():
                search(stage, tracker, places, display, example)
            return True

        history = opened()
        if "engine" in history.facts and Engine(**history.facts["engine"]) != chosen:  # begun in the meantime
            raise SpecError(f"the study {sweep.name!r} has just been begun with another engine; try again")
        history.remember(engine=asdict(chosen), id=history.facts.get("id", uuid.uuid4().hex), **seen)
        tracker.go_on(history.facts["id"])
        remark(f"{places} on {device}; engine: {chosen}")
        if device.type == "cpu" and chosen.precision == "bf16" and not choice.has_bf16():
            remark("warning: this CPU does not compute in bf16, which takes several times as long; auto does without")
        for caveat in report.caveats(sweep, place, dataset, options.allow):
            remark(caveat)
        rungs = [opened(f"rung-{n}") for n in sweep.rungs[:-1]]
        for before, stage in zip([None, *rungs], [*rungs, history], strict=True):
            if before is not None:
                stage.go_on_with(before.survivors())
            elif (late := stage.wish(wishes)) and wishes:
                room = f"search: {{trials: {stage.target + late}}} has room for all"
                remark(f"{late} of the trials that are asked for come after the study's {stage.target}; {room}")
            if not carry_out(stage):
                return history.records()
        arms, replicates = confirm.arms(history.ended(), sweep), None
        if arms:
            best = ", ".join(f"{r.value:.4g} {r.name} ({r.title})" for r in confirm.best_of_each(arms)[:3])
            remark(f"the search's best, one seed each: {best}")
            replicates = confirm.Confirmation(sweep, place.storage, arms, updates, options.allow)
            stack.enter_context(closing(replicates))
            if not replicates.complete():
                again = f"{len(arms)} of them {'are' if len(arms) > 1 else 'is'} trained again"
                remark(f"{again}, with up to {sweep.confirm.seeds} fresh seeds each")
            if not carry_out(replicates):
                return history.records()
        report.write(history, rungs, replicates, tracker)
        checkpoints.sweep()
        return history.records()


def named(sweep: Sweep, dataset: Dataset, allow: Sequence[str]) -> dict[str, Any]:
    """What a sweep file only names, for the study to remember: the images, and what one's own functions give.

    Raises:
        SpecError: the model cannot be built, or does not take these images.
    """
    from . import model

    answers = model.check(sweep.model, dataset.classes, *dataset.size)
    network = answers if sweep.model.function is not None else {}
    schedules = {f"schedule {name}": lrs for name, lrs in sweep.schedules.own(allow).items()}
    return {"images": dataset.digest, **network, **schedules}


def most_lanes(sweep: Sweep) -> int:
    """No more lanes than this ever have work at once."""
    return min(sweep.search.window, max(sweep.search.trials, sweep.replicates))


def wished(sweep: Sweep, place: Place, options: Options) -> list[Mapping[str, Any]]:
    """The parameters that ``--from`` and ``--enqueue`` ask to be tried first.

    Raises:
        SpecError: there is no such study, or a schedule that this search space does not hold.
    """
    from . import export

    wishes: list[Mapping[str, Any]] = []
    for text in options.enqueue:
        try:
            wishes.append(sweep.schedules.params(load(json.loads(text), allow=options.allow), options.allow))
        except (ValueError, ScheduleError, RecursionError) as error:
            raise SpecError(f"--enqueue {text}: {error}") from None
    for name in options.warm:
        facts, records = export.read(name, place)
        if "missing" in facts:
            remark(f"--from {name}: {facts['missing']}")
        best, before = best_first(records, facts["sign"], facts.get("confirmed", ()))[:WARM], len(wishes)
        for record in best:
            try:
                wishes.append(sweep.schedules.params(load(record.schedule, allow=options.allow), options.allow))
            except ScheduleError:
                continue  # another space: what it does not hold cannot be tried
        remark(f"--from {name}: {len(wishes) - before} of its best {len(best)} lie in this search space")
    return wishes


def search(history: Study, tracker: Tracker, places: Lanes, display: Display, example: TrialConfig) -> None:
    """The sweep itself: propose, train, record, tell, until the study has its trials."""
    ready, attempts, ended_now = deque[Record](), Counter[int](), list[Record]()
    came: deque[tuple[Record, Result, str | None]] = deque()

    def propose_ahead() -> None:  # so that a lane that becomes free begins at once
        while len(ready) < len(places.all) and not places.stop and (trial := history.next()):
            ready.append(trial)

    def start(lane: Lane) -> None:
        trial = ready.popleft()
        lane.begin(trial, history.config(trial, example))
        tracker.show(trial)

    propose_ahead()
    while came or places.busy() or (ready and places.free()):
        for lane in places.free()[: len(ready)]:
            start(lane)
        behind = [trial.number for trial, _, _ in came]
        for lane in places.finished(wait_for_one=not came):  # first every lane goes on
            trial, result = lane.result()
            if trial.number in behind:
                continue  # its epoch before is not on record yet
            outcome = result.outcome or history.stops(trial.number, result.epoch)
            if outcome == "died" and attempts[trial.number] < RETRIES:
                attempts[trial.number] += 1
                ready.appendleft(trial)
                places.renew(lane, result.error)
                fewer = "" if lane in places.all else f" (lanes left: {len(places.all)})"
                display.warn(f"{trial.title} begins again: {result.cause}{fewer}")
                continue
            came.append((trial, result, outcome))
            if outcome is None:
                lane.advance()
            else:
                places.renew(lane) if outcome == "died" else places.rest(lane)
                if ready and lane in places.free():
                    start(lane)
        if came:  # then what came first is put on record
            trial, result, outcome = came.popleft()
            if result.epoch is not None:
                trial = history.commit(trial.number, result.epoch.number, result.epoch.metrics())
                tracker.show(trial)
                display.epoch(trial)
            if outcome is not None:
                trial = history.tell(trial.number, outcome.replace("died", "failed"), result.cause)
                tracker.show(trial)
                places.forget(trial)
                display.ended(trial, history.best() is trial, result.error, history.target)
                ended_now.append(trial)
                stop_if_hopeless(ended_now)
        propose_ahead()


def stop_if_hopeless(ended: Sequence[Record]) -> None:
    """Raise TooManyFailedError where more trials failed than MAX_FAILED allows."""
    failed = [r for r in ended if r.outcome == "failed"]
    if len(ended) >= 3 and len(failed) > MAX_FAILED * len(ended):
        raise TooManyFailedError(f"{len(failed)} of {len(ended)} trials failed, the last with {failed[-1].cause}")


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m runner.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", nargs="?", default=DEFAULT, help=f"the sweep file (default: {DEFAULT})")
    parser.add_argument("--data-dir", default="data", metavar="DIR", help="where data sets are or go (default: data)")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps, cpu (default: auto)")
    parser.add_argument(
        "--lanes",
        default="auto",
        help="trials at once: a number, or auto (default): one per core, or as many as make a GPU busy, but no more "
        "than search.window; 0: one, in this process",
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="train on a Ray cluster; without ADDRESS a local one",
    )
    for resource in ("cpus", "gpus"):
        parser.add_argument(
            f"--num-{resource}",
            type=float,
            metavar="N",
            help=f"with --ray: {resource.upper()} of each actor, or a share of one",
        )
    parser.add_argument(
        "--engine",
        choices=["auto", "reference"],
        default="auto",
        help="auto (default): the fast one where it can train this; reference: the plain loop",
    )
    parser.add_argument(
        "--from",
        dest="warm",
        action="append",
        default=[],
        metavar="SWEEP",
        help=f"try the {WARM} best schedules of an earlier sweep first, as far as this space holds them (repeatable)",
    )
    parser.add_argument(
        "--enqueue",
        action="append",
        default=[],
        metavar="JSON",
        help="try this schedule first, as best_schedule.json has it (repeatable)",
    )
    parser.add_argument("--mlflow", metavar="FILE", help="the place (default: mlflow.yaml in this folder)")
    shown = parser.add_mutually_exclusive_group()
    for output, said in (("quiet", "warnings and the result alone"), ("json", "a line of JSON for each event")):
        shown.add_argument(
            f"--{output}", dest="output", action="store_const", const=output, default="text", help=said
        )
    parser.add_argument("--sync", action="store_true", help="train nothing; send what MLflow lacks, and report")
    parser.add_argument(
        "--dry-run", action="store_true", help="check files, data, model and options, print warnings, and stop"
    )
    parser.add_argument(
        "--allow-plugin",
        dest="allow",
        action="append",
        default=[],
        metavar="PACKAGE.",
        help="let the sweep file name schedules, models and data of this package (repeatable); it runs their code",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    again = f"python -m runner.sweep {shlex.join(sys.argv[1:] if argv is None else argv)}".strip()
    stop = Stop()
    try:
        with stop:
            return command(args, stop)
    except SpecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TooManyFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 5
    except KeyboardInterrupt as stopped:
        print(f"\nstopped; continue with: {again}", file=sys.stderr)
        return stopped.code if isinstance(stopped, Stopped) else 130
    except Exception as error:
        if said := no_fault_of_ours(error):
            print(f"error: {said}\ncontinue with: {again}", file=sys.stderr)
            return 4
        if stop.raised is not None:  # in a library, which made an error of its own of it
            why = f"{type(error).__name__}: {printable(redacted(first_line(error)))}"
            print(f"\nstopped ({why}); continue with: {again}", file=sys.stderr)
            return stop.raised.code
        # a bug: its traceback helps, the secrets in it do not
        print(redacted("".join(traceback.format_exception(error))), file=sys.stderr)
        return 1


def no_fault_of_ours(error: Exception) -> str | None:
    """What is wrong with the storage, the disk or the GPU, in a sentence; None where it is a bug."""
    if isinstance(error, StorageError):
        return str(error)
    if isinstance(error, GpuError):
        return f"the GPU failed, and everything on it with it: {error} (CUDA_LAUNCH_BLOCKING=1 shows where)"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}{f': {error.filename}' * (error.filename is not None)}; make room"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}; put right what is in its place, or make it writable"
    return None


def command(args: argparse.Namespace, stop: Stop) -> int:
    """What the command line asks for; returns the exit code."""
    speak(args.output)
    no_control([args.sweep, args.data_dir, args.device, args.mlflow or ""])
    if not re.fullmatch("auto|[0-9]{1,4}", args.lanes):
        raise SpecError(f"--lanes must be auto, or a number up to 9999, not {args.lanes!r}")
    if args.ray is None and (args.num_cpus, args.num_gpus) != (None, None):
        raise SpecError("--num-cpus, --num-gpus: only with --ray, whose actors have them")
    if any(n is not None and (n < 0 or (n > 1 and n % 1)) for n in (args.num_cpus, args.num_gpus)):
        raise SpecError("--num-cpus, --num-gpus: 0, a part of one, or a whole number")
    sweep, document = load_sweep(args.sweep, args.allow)
    place = load_place(args.mlflow)
    said = {option.name: getattr(args, option.name) for option in fields(Options) if option.name in args}
    options = Options(document.path, document.text, **said)
    with document.locating():
        if args.dry_run:
            return dry_run(sweep, place, options)
        records = run(sweep, place, options, stop)
    if not args.sync and not any(record.outcome == "complete" for record in records):
        raise TooManyFailedError("no trial was completed: the report above says why")
    return 0


def dry_run(sweep: Sweep, place: Place, options: Options) -> int:
    """Check what can be checked without training, and without a cluster; makes nothing, prints what was found."""
    from . import data, report, study, tracking, train

    tracking.check(place)
    train.pick_device(options.device)
    dataset = data.load(sweep.data, options.data_dir)
    seen = named(sweep, dataset, options.allow)
    updates = sweep.train.updates(len(dataset.train))
    if study.begun_with(sweep, place.storage, options.engine, seen, must=options.sync):
        study.Study(sweep, place.storage, options.allow).close()  # which says what differs
    wished(sweep, place, options)
    for problem in report.doubts(sweep, dataset, options.allow):
        print(f"warning: {problem}", file=sys.stderr)
    print(f"{sweep.name}: {sweep.size}; {sweep.train.length(updates)}; {dataset}")
    print(printable(f"study: {redacted(place.storage)}; MLflow: {redacted(place.tracking_uri)}, {place.experiment}"))
    return 0


if __name__ == "__main__":
    leave(main)
