"""Search learning-rate schedules: train every trial, record every curve, say which was best.

    python -m runner.sweep                              the default sweep, sweeps/digits.yaml
    python -m runner.sweep sweeps/cifar10.yaml --data-dir ~/data
    python -m runner.sweep sweeps/cifar10.yaml --dry-run    check files, data, model and options, train nothing

The same command continues a sweep that was stopped, and adds trials to one whose file asks for more.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter, deque
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from .lanes.stop import Stop, exit_on_signals, exit_with

if __name__ == "__main__":
    exit_on_signals()  # what comes now takes half a second

from .cli import Options, TooManyFailedError, load_torch, run_stoppable, sweep_parser
from .files.document import Document, first_line, printable
from .files.place import Place, StorageError, load_place
from .files.secrets import redacted
from .files.sweep_file import Sweep, load_sweep
from .files.trial import Record
from .results.terminal import Display, be_quiet, echo, info

if TYPE_CHECKING:
    from .lanes.lane import Lane, Result
    from .prepare import Setup
    from .study.study import Study

MAX_FAILED = 0.5
"""A sweep stops when more than this share failed of at least three trials that ended since it was taken up."""
RETRIES = 2
"""How often a trial whose worker died is trained again."""


def main(argv: Sequence[str] | None = None) -> int:
    args = sweep_parser(__doc__).parse_args(argv)
    again = f"python -m runner.sweep {shlex.join(sys.argv[1:] if argv is None else argv)}".strip()
    return run_stoppable(lambda stop: command(args, stop), again)


def command(args: argparse.Namespace, stop: Stop) -> int:
    """What the command line asks for; returns the exit code."""
    be_quiet(args.quiet)
    options = Options.checked(args)
    sweep, document = load_sweep(args.sweep, args.allow, args.allow_command)
    place = load_place(args.mlflow)
    with document.locating():
        if args.dry_run:
            return dry_run(sweep, place, options)
        records = run(sweep, document, place, options, stop)
    if not args.sync and not any(record.outcome == "complete" for record in records):
        raise TooManyFailedError("no trial was completed: the report above says why")
    return 0


def run(
    sweep: Sweep, document: Document, place: Place, options: Options | None = None, stop: Stop | None = None
) -> list[Record]:
    """Train the trials that the sweep still lacks, and write its results; returns all trials.

    Raises:
        SpecError: data, device, study or tracking cannot be used; nothing was trained.
        TooManyFailedError, StorageError, GpuError, Stopped: the sweep was stopped, and can be continued.
    """
    info(f"{sweep.name}: {sweep.size}")
    load_torch()  # here: it takes seconds, and a wrong file has been refused by now
    from .prepare import prepare

    with prepare(sweep, document, place, options or Options(), Stop() if stop is None else stop) as setup:
        try:
            ended = search(setup) and confirm(setup)
        except BaseException as error:  # whatever ended it
            report_so_far(setup, stored=not isinstance(error, StorageError))
            raise
        report(setup) if ended else report_so_far(setup)
        lacking = setup.tracker.flush() if setup.options.sync else None
        records = setup.search.records()
    if lacking:
        raise StorageError(f"MLflow lacks something: {lacking}")
    return records


def search(setup: Setup) -> bool:
    """Train what the search lacks, shorter trainings first where the file has rungs; whether nothing is lacking."""
    stages = [*setup.rungs, setup.search]
    if not train_stage(setup, stages[0], "search"):
        return False
    for before, stage in pairwise(stages):
        stage.train_only(before.survivors())
        if not train_stage(setup, stage, "search"):
            return False
    if setup.sweep.schedules.size < setup.sweep.search.trials:
        info(f"every point of the space has been tried: the search ends after {len(stages[0].ended())} trials")
    return True


def confirm(setup: Setup) -> bool:
    """Train the best again, with fresh seeds, until they can be told apart or cannot; whether nothing is lacking."""
    from .study.confirm import best_of_each, choose_arms

    arms = choose_arms(setup.search.ended(), setup.sweep)
    if not arms:
        return True
    best = ", ".join(f"{r.value:.4g} {r.name} ({r.title})" for r in best_of_each(arms)[:3])
    info(f"the search's best, one seed each: {best}")
    replicates = setup.confirm(arms)
    if not replicates.complete():
        with setup.budget.paused():
            report_so_far(setup)
        again = f"{len(arms)} of them {'are' if len(arms) > 1 else 'is'} trained again"
        info(f"{again}, with up to {setup.sweep.confirm.seeds} fresh seeds each")
    return train_stage(setup, replicates, "fresh seeds")


def report(setup: Setup, ended: bool = True, stored: bool = True) -> None:
    """Write tables, figures and the report, and print what was found; ``ended``: nothing is lacking; ``stored``: the
    study's storage can be used."""
    from .results.report import write  # here: pandas and matplotlib take a second, before which lanes can train

    data, path = setup.options.data_dir, setup.tracker.document.path
    words = ["python", "-m", "runner.sweep", str(path), *(["--data-dir", data] if data != "data" else [])]
    again = shlex.join(words) + setup.sweep.allow_option + setup.place.option
    stages = setup.search, setup.rungs, setup.replicates
    write(*stages, setup.tracker, again, setup.stop, ended, stored, setup.kept)
    if ended:
        setup.lanes.checkpoints.clear()


def report_so_far(setup: Setup, stored: bool = True) -> None:
    """Write what is known of a sweep that goes on, or that has just been stopped."""
    try:
        report(setup, ended=False, stored=stored)
    except Exception as error:  # what stopped the sweep is worse
        info(f"warning: what is known so far could not be written: {redacted(first_line(error))}")


def train_stage(setup: Setup, stage: Study, title: str) -> bool:
    """Train what a stage still lacks, or with ``--sync`` send what MLflow lacks; whether nothing is lacking then."""
    stage.remember(updates_per_epoch=setup.updates)
    setup.tracker.update(*stage.ended())
    title = stage.stage if stage.stage.startswith("rung") else title
    if setup.options.sync:
        why = setup.tracker.flush()
        echo(f"{title}: {len(stage.ended())} ended, and MLflow {f'lacks some: {why}' if why else 'has them'}")
        return stage.complete()
    begun = {r.number: len(r.epochs) for r in stage.running()}
    display = Display(
        stage.target, stage.epochs, title, len(stage.ended()), stage.best(), begun, setup.sweep.objective
    )
    with display, setup.stop.listening():
        train_trials(setup, stage, display)
    setup.note_what_was_cut(stage)
    return True


def train_trials(setup: Setup, study: Study, display: Display) -> None:
    """The sweep itself: propose, train, record, tell, until the study has its trials."""
    lanes, tracker = setup.lanes, setup.tracker
    ready, attempts, ended = deque[Record](), Counter[int](), list[Record]()
    arrived: deque[tuple[Record, Result, str | None]] = deque()

    def propose_ahead() -> None:  # so that a lane that becomes free begins at once
        while len(ready) < len(lanes.all) and not lanes.stop and (trial := study.next()):
            ready.append(trial)

    def startable() -> bool:  # none for which there is no time any more
        return bool(ready) and setup.has_room(study, ready[0])

    def start(lane: Lane) -> None:
        trial = ready.popleft()
        lane.begin(trial, study.config(trial, setup.example))
        tracker.update(trial)

    propose_ahead()
    while arrived or lanes.busy() or (lanes.free() and startable()):
        for lane in lanes.free():
            if startable():
                start(lane)
        unrecorded = [trial.number for trial, _, _ in arrived]
        for lane in lanes.finished(not arrived, setup.check_files):  # first every lane goes on
            trial, result = lane.result()
            if trial.number in unrecorded:
                continue  # its epoch before is not on record yet
            outcome = result.outcome
            if outcome == "died" and attempts[trial.number] < RETRIES:
                attempts[trial.number] += 1
                ready.appendleft(trial)
                lanes.replace_worker(lane, result.error)
                fewer = "" if lane in lanes.all else f" (lanes left: {len(lanes.all)})"
                display.warn(f"{trial.title} begins again: {result.cause}{fewer}")
                continue
            arrived.append((trial, result, outcome))
            if outcome is None:
                lane.advance()
            else:
                if outcome == "complete":
                    setup.keep(study, trial, lane)
                lanes.replace_worker(lane) if result.worker_is_gone else lanes.release(lane)
                if lane in lanes.free() and startable():
                    start(lane)
        if arrived:  # then what arrived first is put on record
            trial, result, outcome = arrived.popleft()
            if result.epoch is not None:
                epoch = result.epoch
                trial = study.commit(trial.number, epoch.number, epoch.metrics(), epoch.facts())
                tracker.update(trial)
                display.epoch(trial)
            if outcome is not None:
                trial = study.tell(trial.number, outcome.replace("died", "failed"), *setup.why(trial, result))
                tracker.update(trial)
                lanes.checkpoints.drop(trial)
                setup.keep_best_of_each(study)
                display.ended(trial, study.best() is trial, result.error, study.target)
                ended.append(trial)
                stop_if_hopeless(ended)
        propose_ahead()


def stop_if_hopeless(ended: Sequence[Record]) -> None:
    """Raise TooManyFailedError where more trials failed than MAX_FAILED allows."""
    failed = [r for r in ended if r.outcome == "failed"]
    if len(ended) >= 3 and len(failed) > MAX_FAILED * len(ended):
        raise TooManyFailedError(f"{len(failed)} of {len(ended)} trials failed, the last with {failed[-1].cause}")


def dry_run(sweep: Sweep, place: Place, options: Options) -> int:
    """Check everything without training; print warnings and what was found."""
    load_torch()
    from .prepare import dry_run

    *warnings, summary = dry_run(sweep, place, options)
    for warning in warnings:
        print(warning, file=sys.stderr)
    print(summary)
    print(printable(f"study: {redacted(place.storage)}; MLflow: {redacted(place.tracking_uri)}, {place.experiment}"))
    return 0


if __name__ == "__main__":
    exit_with(main)
