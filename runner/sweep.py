"""Search learning-rate schedules: train every trial, record every curve, say which was best.

    python -m runner.sweep                              the default sweep, sweeps/digits.yaml
    python -m runner.sweep sweeps/cifar10.yaml --data-dir ~/data
    python -m runner.sweep sweeps/cifar10.yaml --dry-run    check everything, train nothing

The same command continues a sweep that was stopped, and adds trials to one whose file asks for more.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .document import SpecError, no_control
from .place import Place, load_place
from .schedules import load
from .space import problems
from .spec import Record, Sweep, TrialConfig, load_sweep

if TYPE_CHECKING:
    from .lanes import Lane, Lanes
    from .study import Study
    from .terminal import Display
    from .tracking import Tracker

DEFAULT = "sweeps/digits.yaml"
MAX_FAILED = 0.5
"""A sweep stops when more than this share of at least three ended trials failed."""
RETRIES = 2
"""How often a trial whose worker died is trained again."""


@dataclass(frozen=True)
class Options:
    """What is said on the command line: this invocation."""

    file: Path
    data_dir: str = "data"
    device: str = "auto"
    lanes: str = "auto"
    ray: str | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    engine: str = "auto"
    allow: tuple[str, ...] = field(default_factory=tuple)


class TooManyFailedError(Exception):
    """More trials failed than a sweep can bear; the message says why the last one did."""


def run(sweep: Sweep, place: Place, options: Options) -> list[Record]:
    """Train the trials that the sweep still lacks, and write its results; returns all trials.

    Raises:
        SpecError: data, device, study or tracking cannot be used; nothing was trained.
        TooManyFailedError: the sweep was stopped, and can be continued.
    """
    from . import (  # here: a wrong file is refused before torch is loaded
        data,
        engine,
        lanes,
        model,
        study,
        tracking,
        train,
    )
    from .terminal import Display

    device = train.pick_device(options.device)
    dataset = data.load(sweep.data, options.data_dir)
    model.build(sweep.model, dataset.classes, sweep.train.seed)  # refuses what cannot be built
    updates, epochs = data.updates_per_epoch(len(dataset.train), sweep.train.batch_size), sweep.train.epochs
    most = min(sweep.search.window, sweep.search.trials)
    example = TrialConfig(sweep.data, sweep.model, sweep.train, load({"type": "constant"}), options.data_dir)
    chosen = study.begun_with(sweep.name, place.storage, options.engine) or engine.choose(
        example, device, sweep.search.trials, options.engine
    )
    example = replace(example, engine=chosen)
    resources = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
    where = {"device": str(device), "engine": str(chosen)}
    with (
        lanes.open_lanes(options.lanes, str(device), most, options.ray, example, **resources) as places,
        tracking.Tracker.open(place, sweep, dataset, where, options.allow) as tracker,
        study.hold(sweep.name, place.storage),  # one coordinator at a time
    ):
        results_folder(place, sweep)
        with closing(study.open_study(sweep, place.storage, options.allow)) as history:
            tracker.go_on(history.facts.get("parent_run"), options.file)
            history.remember(parent_run=tracker.parent, updates_per_epoch=updates, engine=asdict(chosen))
            tracker.catch_up(history.ended(), everything=history.facts.get("mlflow_lacks") is not None)
            with Display(sweep.search.trials, epochs) as display:
                for problem in problems(sweep.schedules.check(options.allow), updates * epochs, epochs):
                    display.warn(problem)
                display.say(f"{places} on {device}; engine: {chosen}")
                search(history, tracker, places, display, example)
            report(sweep, place, options, history, tracker, updates)
            return history.records()


def search(history: Study, tracker: Tracker, places: Lanes, display: Display, example: TrialConfig) -> None:
    """The sweep itself: propose, train, record, tell, until the study has its trials."""
    ready, attempts = deque[Record](), Counter[int]()
    display.resume(history.ended(), history.best())

    def propose_ahead() -> None:  # so that a lane that becomes free begins at once
        while len(ready) < len(places.all) and (trial := history.next()):
            ready.append(trial)

    def start(lane: Lane) -> None:
        trial = ready.popleft()
        lane.begin(trial, replace(example, schedule=history.schedule(trial)))
        tracker.begin(trial)

    propose_ahead()
    while ready or places.busy():
        for lane in places.free()[: len(ready)]:
            start(lane)
        for lane in places.finished():
            trial, result = lane.result()
            if result.outcome is None:
                lane.advance()
            elif result.outcome == "died" and attempts[trial.number] < RETRIES:
                attempts[trial.number] += 1
                display.warn(f"trial {trial.number} begins again: {result.cause}")
                ready.appendleft(trial)
                places.renew(lane)
                continue
            else:
                places.renew(lane) if result.outcome == "died" else places.rest(lane)
                if ready and lane in places.all:
                    start(lane)
            if result.epoch is not None:
                trial = history.commit(trial.number, result.epoch.number, result.epoch.metrics())
                tracker.epoch(trial)
                display.epoch(trial)
            if result.outcome is not None:
                outcome = result.outcome.replace("died", "failed")
                trial = history.tell(trial.number, outcome, result.cause)
                tracker.end(trial)
                display.ended(trial, history.best() is trial, result.error)
                stop_if_hopeless(history.ended())
        propose_ahead()


def results_folder(place: Place, sweep: Sweep) -> Path:
    """Where a sweep's results go; made, so that a sweep is not trained for nothing.

    Raises:
        SpecError: it cannot be written to.
    """
    folder = place.folder / "results" / sweep.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".write").touch()
        (folder / ".write").unlink()
    except OSError as error:
        raise SpecError(f"the results cannot be written to {folder}: {error.strerror}") from None
    return folder


def stop_if_hopeless(ended: Sequence[Record]) -> None:
    """Raise TooManyFailedError where more trials failed than MAX_FAILED allows."""
    failed = [r for r in ended if r.outcome == "failed"]
    if len(ended) >= 3 and len(failed) > MAX_FAILED * len(ended):
        raise TooManyFailedError(f"{len(failed)} of {len(ended)} trials failed, the last with {failed[-1].cause}")


def report(sweep: Sweep, place: Place, options: Options, history: Study, tracker: Tracker, updates: int) -> None:
    """Write tables and figures, put them on the parent run, and print what was found and where it lies."""
    from rich.console import Console
    from rich.markdown import Markdown

    from . import export, figures
    from .tracking import escape

    tracker.settle(history.ended())
    history.remember_runs(tracker.runs)
    console, epochs, records = Console(), sweep.train.epochs, history.ended()
    folder = results_folder(place, sweep)
    paths = dict(export.result_files(folder, records, sweep.objective.direction, updates, epochs, options.allow))
    plans = {r.number: history.schedule(r) for r in records}
    for name, figure in figures.sweep_figures(records, plans, updates * epochs, epochs).items():
        paths[name] = figures.save(figure, folder / name)
    best_ten = export.best_table(records, sweep.objective.direction, top=10)
    table = export.markdown(best_ten)
    counts = {o: sum(r.outcome == o for r in records) for o in ("complete", "diverged", "stopped", "failed")}
    said = ", ".join(f"{n} {outcome}" for outcome, n in counts.items() if n)
    caveat = "One seed each: differences of tenths of a point are within what another seed changes."
    note = f"**{escape(sweep.question)}**\n\n{len(records)} trials: {said}.\n\n"
    note += f"{export.markdown(best_ten, escape)}\n{caveat}\n\n"
    best = history.best()
    summary = {f"study/{outcome}": float(n) for outcome, n in counts.items()}
    summary |= {"study/best": best.value} if best and best.value is not None else {}
    reproduce = f"Reproduce: python -m runner.sweep {escape(options.file.name)}"
    missed = tracker.finish(paths.values(), note + reproduce, summary)
    history.remember(mlflow_lacks=missed)

    console.print(Markdown(f"{len(records)} trials of {sweep.name}: {said}.\n\n{table}\n\n{caveat}"), soft_wrap=True)
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    say(f"tables, figures and code: {_relative(folder)}/")
    say(f"code of the best schedule: python -m runner.export {sweep.name} --code 1")
    if missed:
        say(f"MLflow lacks something ({missed}); the same command again sends it")
    if place.tracking_uri.startswith("sqlite:///"):
        default = place.tracking_uri == f"sqlite:///{Path.cwd().resolve() / 'mlflow.db'}"
        store = "" if default else f" --backend-store-uri {place.tracking_uri}"
        say(f"browse: mlflow ui{store}   and open")
    else:
        say("browse:")
    say(f"  {tracker.link()}")


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


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
        help="trials at once: a number, or auto (default): one per core or GPU; 0: one, in this process",
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
            help=f"{resource.upper()} of each Ray actor, or a share of one",
        )
    parser.add_argument(
        "--engine",
        choices=["auto", "reference"],
        default="auto",
        help="auto (default): the fast one where it can train this; reference: the plain loop",
    )
    parser.add_argument("--mlflow", metavar="FILE", help="the place (default: mlflow.yaml in this folder)")
    parser.add_argument("--dry-run", action="store_true", help="check the files, print the warnings, and stop")
    parser.add_argument(
        "--allow-plugin",
        action="append",
        default=[],
        metavar="PACKAGE.",
        help="let the sweep file name schedule functions of this package (repeatable); it runs their code",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    try:
        no_control([args.sweep, args.data_dir, args.device, args.mlflow or ""])
        sweep, document = load_sweep(args.sweep, args.allow_plugin)
        place = load_place(args.mlflow)
        if args.dry_run:
            return dry_run(sweep, place, args.data_dir, args.allow_plugin)
        options = Options(
            document.path,
            args.data_dir,
            args.device,
            args.lanes,
            args.ray,
            args.num_cpus,
            args.num_gpus,
            args.engine,
            tuple(args.allow_plugin),
        )
        if not any(record.outcome == "complete" for record in run(sweep, place, options)):
            raise TooManyFailedError("no trial was completed: see their outcomes above; a lower init_lr may help")
    except SpecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TooManyFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 5
    except KeyboardInterrupt:
        print(f"\nstopped; continue with: python -m runner.sweep {args.sweep}", file=sys.stderr)
        return 130
    return 0


def dry_run(sweep: Sweep, place: Place, data_dir: str, allow: Sequence[str]) -> int:
    """Check what can be checked without training; prints what was found."""
    from . import data, model
    from .place import redacted

    dataset = data.load(sweep.data, data_dir)
    model.build(sweep.model, dataset.classes, sweep.train.seed)
    updates = data.updates_per_epoch(len(dataset.train), sweep.train.batch_size)
    for problem in problems(sweep.schedules.check(allow), updates * sweep.train.epochs, sweep.train.epochs):
        print(f"warning: {problem}", file=sys.stderr)
    sizes = f"{len(dataset.train)} training, {len(dataset.val)} validation, {len(dataset.test)} test images"
    print(
        f"{sweep.name}: {sweep.search.trials} trials of {sweep.train.epochs} epochs, {updates} updates each; {sizes}"
    )
    print(f"study: {redacted(place.storage)}; MLflow: {redacted(place.tracking_uri)}, {place.experiment}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
