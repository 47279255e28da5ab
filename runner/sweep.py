"""Search learning-rate schedules: train every trial, record every curve, say which was best.

    python -m runner.sweep                              the default sweep, sweeps/digits.yaml
    python -m runner.sweep sweeps/cifar10.yaml --data-dir ~/data
    python -m runner.sweep sweeps/cifar10.yaml --dry-run    check everything, train nothing

The same command continues a sweep that was stopped, and adds trials to one whose file asks for more.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .document import SpecError, no_control
from .place import Place, load_place
from .space import problems
from .spec import Record, Sweep, TrialConfig, load_sweep

if TYPE_CHECKING:
    from .study import Study
    from .tracking import Tracker

DEFAULT = "sweeps/digits.yaml"
MAX_FAILED = 0.5
"""A sweep stops when more than this share of at least three ended trials failed."""


@dataclass(frozen=True)
class Options:
    """What is said on the command line: this invocation."""

    file: Path
    data_dir: str = "data"
    device: str = "auto"
    allow: tuple[str, ...] = field(default_factory=tuple)


class TooManyFailedError(Exception):
    """More trials failed than a sweep can bear; the message says why the last one did."""


def run(sweep: Sweep, place: Place, options: Options) -> list[Record]:
    """Train the trials that the sweep still lacks, and write its results; returns all trials.

    Raises:
        SpecError: data, device, study or tracking cannot be used; nothing was trained.
        TooManyFailedError: the sweep was stopped, and can be continued.
    """
    from . import data, model, study, tracking, train  # here, so that a wrong file is refused before torch is loaded
    from .terminal import Display

    device = train.pick_device(options.device)
    dataset = data.load(sweep.data, options.data_dir)
    model.build(sweep.model, dataset.classes, sweep.train.seed)  # refuses what cannot be built
    updates = data.updates_per_epoch(len(dataset.train), sweep.train.batch_size)
    total, epochs = updates * sweep.train.epochs, sweep.train.epochs
    history = study.open_study(sweep, place.storage, options.allow)
    tracker = tracking.Tracker.open(place, sweep, history.facts.get("parent_run"))
    facts = tracking.facts(str(device))
    facts |= {"sweep.updates_per_epoch": str(updates), "sweep.direction": sweep.objective.direction}
    if history.facts.get("parent_run") != tracker.parent:
        tracker.describe(options.file, dataset, facts)
        history.remember(parent_run=tracker.parent, updates_per_epoch=updates)

    with Display(sweep.search.trials, epochs) as display:
        for problem in problems(sweep.schedules.check(options.allow), total, epochs):
            display.warn(problem)
        display.resume([r for r in history.records() if r.outcome], history.best())
        while trial := history.next():
            schedule = history.schedule(trial)
            config = TrialConfig(sweep.data, sweep.model, sweep.train, schedule, options.data_dir)
            run_id = tracker.begin(trial, schedule, dataset, facts)
            history.attach(trial.number, run_id)
            outcome, cause = "complete", None
            try:
                for epoch in train.train(config, device):
                    trial = history.commit(trial.number, epoch.number, epoch.metrics())
                    tracker.epoch(run_id, trial.epochs[-1])
                    display.epoch(trial)
            except train.DivergedError as error:
                trial = history.commit(trial.number, error.epoch.number, error.epoch.metrics())
                tracker.epoch(run_id, trial.epochs[-1])
                outcome = "diverged"
            except Exception as error:  # a trial's failure is never a score, and never the end of the others
                outcome, cause = "failed", f"{type(error).__name__}: {error}"
                display.warn(f"trial {trial.number} failed: {cause}\n{traceback.format_exc()}")
            before = history.best()
            trial = history.tell(trial.number, outcome, cause)
            tracker.end(trial, schedule.lrs(total, epochs=epochs, history=trial.history))
            display.ended(trial, better=history.best() != before)
            _stop_if_hopeless(history, tracker)
    records = history.records()
    report(sweep, place, options, records, history, tracker, updates)
    return records


def _stop_if_hopeless(history: Study, tracker: Tracker) -> None:
    ended = [r for r in history.records() if r.outcome]
    failed = [r for r in ended if r.outcome == "failed"]
    if len(ended) >= 3 and len(failed) > MAX_FAILED * len(ended):
        tracker.close("FAILED", {"study/trials": len(ended)})
        raise TooManyFailedError(f"{len(failed)} of {len(ended)} trials failed, the last with {failed[-1].cause}")


def report(
    sweep: Sweep,
    place: Place,
    options: Options,
    records: Sequence[Record],
    history: Study,
    tracker: Tracker,
    updates: int,
) -> None:
    """Write tables and figures, put them on the parent run, and print what was found and where it lies."""
    from rich.console import Console
    from rich.markdown import Markdown

    from . import export, figures

    console, epochs = Console(), sweep.train.epochs
    folder = place.folder / "results" / sweep.name
    paths = dict(export.result_files(folder, records, sweep.objective.direction, updates, epochs, options.allow))
    plans = {r.number: history.schedule(r) for r in records}
    for name, figure in figures.sweep_figures(records, plans, updates * epochs, epochs).items():
        paths[name] = figures.save(figure, folder / name)
    for path in paths.values():
        tracker.file(path, "figures" if path.suffix == ".png" else "tables")
    table = export.markdown(export.best_table(records, sweep.objective.direction, top=10))
    counts = {o: sum(r.outcome == o for r in records) for o in ("complete", "diverged", "failed")}
    said = ", ".join(f"{n} {outcome}" for outcome, n in counts.items() if n)
    caveat = "One seed each: differences of tenths of a point are within what another seed changes."
    note = f"**{_escaped(sweep.question)}**\n\n{len(records)} trials: {said}.\n\n{table}\n{caveat}\n\n"
    tracker.note(f"{note}Reproduce: `python -m runner.sweep {options.file.name}`")
    best = history.best()
    summary = {f"study/{outcome}": float(n) for outcome, n in counts.items()}
    tracker.close("FINISHED", summary | ({"study/best": best.value} if best and best.value is not None else {}))

    console.print(Markdown(f"{len(records)} trials of {sweep.name}: {said}.\n\n{table}\n\n{caveat}"), soft_wrap=True)
    console.print(f"tables, figures and code: {_relative(folder)}/", highlight=False, soft_wrap=True)
    console.print(f"code of the best schedule: python -m runner.export {sweep.name} --code 1", highlight=False)
    if place.tracking_uri.startswith("sqlite:///"):
        default = place.tracking_uri == f"sqlite:///{Path.cwd().resolve() / 'mlflow.db'}"
        store = "" if default else f" --backend-store-uri {place.tracking_uri}"
        console.print(f"browse: mlflow ui{store}   and open", highlight=False, soft_wrap=True)
    else:
        console.print("browse:", highlight=False)
    console.print(f"  {tracker.link()}", highlight=False, soft_wrap=True)


def _escaped(text: str) -> str:
    from .tracking import escape

    return escape(text)


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
        options = Options(document.path, args.data_dir, args.device, tuple(args.allow_plugin))
        run(sweep, place, options)
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
    from . import data
    from .place import redacted

    dataset = data.load(sweep.data, data_dir)
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
