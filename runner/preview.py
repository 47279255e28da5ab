"""Draw the learning-rate curves of a sweep file, or of any schedule, before anything is trained.

python -m runner.preview                                    the default sweep: its curves, size, time, warnings
python -m runner.preview sweeps/cifar10.yaml
python -m runner.preview --schedule '{"type": "cosine", "warmup": 0.1}' --epochs 90
python -m runner.preview --schedule step --schedule rex --out compare.png
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from . import cli
from .files.document import SpecError, first_line, printable
from .files.images import cores
from .files.place import load_place
from .files.sources import DataError
from .files.space import BASELINE, problems
from .files.sweep_file import ACCURACY, Objective, Sweep, load_sweep
from .files.trial import DivergedError, TrialConfig, label
from .lanes.stop import exit_with
from .results.terminal import duration, sparkline
from .schedules.schedule import Schedule, load
from .schedules.zoo import ScheduleError

EPOCHS, UPDATES = 90, 100
"""How long the training of a schedule without a sweep file is."""
SAMPLES = 12
"""How many curves of a schedule with open leaves are drawn."""
FEW = 64
"""Images of an update that is timed on a CPU."""


def samples(sweep: Sweep) -> dict[str, list[Schedule]]:
    """For every name the schedules that a sweep may try, one where nothing is open, else a random handful; and the
    baseline."""
    drawn, space = {}, sweep.schedules
    for name in space.schedules:
        chance = random.Random(f"preview/{name}")
        count = SAMPLES if space.leaves(name) else 1
        drawn[name] = [sweep.schedule(space.closed(name, lambda _: chance.random())) for _ in range(count)]  # noqa: B023
    if sweep.baseline is not None:
        drawn[label(BASELINE, sweep.baseline.type)] = [sweep.baseline]
    return drawn


def seconds_per_epoch(sweep: Sweep, schedule: Schedule, data_dir: str, device: str) -> float:
    """Measured on one lane: a few updates and their share of an evaluation, extrapolated to an epoch."""
    from .training import data
    from .training.device import one_thread, pick_device
    from .training.fast import choice, engine

    images, network, recipe = sweep.ours
    place, full = pick_device(device), data.load(images, data_dir)
    # on a CPU a large batch takes a minute for an update, and an image as long as in a smaller one
    size = min(recipe.batch_size, FEW) if place.type == "cpu" else recipe.batch_size
    small = recipe.model_copy(update={"epochs": 2, "batch_size": size})
    share = min(1.0, max(100, 6 * size) / len(full.train))

    def part(split: data.Split) -> data.Split:
        several = slice(max(1, round(share * len(split))))
        return data.Split(split.images[several], split.labels[several])

    few = replace(full, train=part(full.train), val=part(full.val), test=part(full.test))
    place_of = f"a part of {data_dir}"
    config = TrialConfig(images, network, small, schedule, place_of, objective=sweep.objective)
    data.preload(config.data, config.data_dir, few.to_arrays())  # read once: all CIFAR-10 takes seconds
    config = replace(config, engine=choice.choose(config, place, sweep.all_epochs))
    with one_thread() if place.type == "cpu" else nullcontext():
        try:
            epochs = engine.train_function(config)(config, place)
            next(epochs)  # the first epoch pays for what happens once
            spent = next(epochs).seconds
        except DivergedError as error:
            spent = error.epoch.seconds
    return spent * len(full.train) / len(few.train)


def preview(sweep: Sweep, args: argparse.Namespace, out: Path) -> None:
    """Print what a sweep would do and draw its curves into ``out``."""
    cli.load_torch()
    from .prepare import data_warnings, schedule_warnings
    from .training import data, model
    from .training.device import pick_device

    epochs, drawn, timing = sweep.train.epochs, samples(sweep), not args.no_timing and sweep.own is None
    updates, doubts = sweep.own.updates_per_epoch if sweep.own else None, None
    images = f"; each training is {printable(sweep.own.said)}" if sweep.own else ""
    if sweep.own is None:
        source, network, recipe = sweep.ours
        try:
            dataset = data.load(source, args.data_dir)
            model.check(network, dataset.classes, *dataset.size)
            updates, images = recipe.updates(len(dataset.train)), f"; {dataset}"
            doubts = data_warnings(sweep, dataset)
        except DataError as error:
            print(f"warning: {error}; drawn with 100 updates per epoch", file=sys.stderr)
            timing = False
    length = f"{epochs} epochs" if updates is None else sweep.train.length(updates)
    updates = updates or UPDATES
    print(f"{sweep.name}: {printable(sweep.question)}")
    print(f"{sweep.size}; {length}{images}; searched by {sweep.search.sampler}")
    width = max(len(n) for n in drawn)
    print(f"  {'shared':<{width}}  {open_leaves(sweep, None)}")
    for name, several in drawn.items():
        line = sparkline(several[0].lrs(updates * epochs, epochs=epochs), 32)
        print(f"  {name:<{width}}  {line}  {open_leaves(sweep, name)}".rstrip())
    if timing:
        print("measuring a few updates (--no-timing does without)", file=sys.stderr, flush=True)
        one = seconds_per_epoch(sweep, next(iter(drawn.values()))[0], args.data_dir, args.device)
        lanes = min(cores(), sweep.most_lanes) if pick_device(args.device).type == "cpu" else 1
        turns = sum(epochs * math.ceil(trials / lanes) for trials, epochs in sweep.stages)  # one lane's, then
        search, again = (duration(one * n) for n in (turns, max(sweep.fresh_epochs / lanes, epochs)))
        more = f", and at most {again} for fresh seeds" * bool(sweep.replicates)
        long = f"{one:.2g} s" if one < 60 else duration(one)
        where = f"its {lanes} lanes" if lanes > 1 else "one lane"
        print(f"about {long} per epoch on a lane of this machine: on {where} {search} for the search{more}")
    for problem in schedule_warnings(sweep, updates) if doubts is None else doubts:
        print(f"warning: {problem}", file=sys.stderr)
    draw(drawn, updates * epochs, epochs, out, f"Some of what {sweep.name} may try", sweep.objective)


def open_leaves(sweep: Sweep, name: str | None) -> str:
    """What is open in one schedule, or (None) in all of them under a shared name."""
    space = sweep.schedules
    leaves = {leaf.name: leaf for n in space.schedules for leaf in space.leaves(n) if name in (None, n)}
    own = [leaf for leaf in leaves.values() if ("." not in leaf.name) == (name is None)]
    ranges = (f"{leaf.name.removeprefix(f'{name}.')} {leaf.kind} {list(leaf.values)}" for leaf in own)
    return ", ".join(ranges) or ("nothing open" if name is None else "")


def draw(
    curves: Mapping[str, Sequence[Schedule]],
    T: int,
    epochs: int,
    out: Path,
    title: str,
    judged_by: Objective = ACCURACY,
) -> None:
    try:
        from .results import figures
    except (ImportError, ValueError) as error:
        wrong = f"matplotlib cannot be loaded ({type(error).__name__}: {first_line(error)})"
        raise SpecError(f"{wrong}; its settings in a matplotlibrc may be damaged") from None
    figure = figures.schedules(curves, T, epochs, title)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figures.save(figure, out)
    except OSError as error:
        raise SpecError(f"--out {out}: {error.strerror}") from None
    if any(schedule.type == "plateau" for several in curves.values() for schedule in several):
        better = "rose" if judged_by.sign > 0 else "fell"
        depends = f"when it drops depends on the {printable(figures.said(judged_by))}; drawn as if that {better}"
        print(f"plateau: {depends}", file=sys.stderr)
    print(f"drawn: {printable(str(out))}")


def parse_schedule(text: str, allow: Sequence[str]) -> tuple[str, Schedule]:
    """A schedule from its JSON, or from the name of its type, and what to call it; SpecError where it is neither."""
    try:
        mapping = json.loads(text) if text.lstrip().startswith("{") else {"type": text}
        schedule = load(mapping, allow=allow)
    except ScheduleError as error:
        raise SpecError(f"--schedule: {error}") from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"--schedule is not JSON: {error}") from None
    own = {k: v for k, v in mapping.items() if k != "type"}
    return schedule.type + (f" {json.dumps(own)}" if own else ""), schedule


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("preview", __doc__)
    parser.add_argument("sweep", nargs="?", help=f"the sweep file (default: {cli.DEFAULT})")
    parser.add_argument("--schedule", action="append", metavar="JSON", help="draw this instead: a type or its JSON")
    parser.add_argument("--epochs", type=int, help=f"with --schedule: how many epochs (default: {EPOCHS})")
    parser.add_argument("--updates", type=int, help=f"with --schedule: updates per epoch (default: {UPDATES})")
    cli.add_data_dir(parser)
    parser.add_argument("--device", default="auto", help="for the estimate of time (default: auto)")
    parser.add_argument("--no-timing", action="store_true", help="do not measure how long an epoch takes")
    default = "results/<sweep>/preview.png, or schedules.png"
    parser.add_argument("--out", type=Path, metavar="FILE", help=f".png, .svg, .pdf (default: {default})")
    cli.add_allow_plugin(parser)
    cli.add_allow_command(parser)
    return cli.run(command, parser.parse_args(argv))


def command(args: argparse.Namespace) -> int:
    if args.out and args.out.suffix not in (".png", ".svg", ".pdf"):
        raise SpecError(f"--out {args.out}: a figure is a .png, .svg or .pdf")
    lengths = [n for n in (args.epochs, args.updates) if n is not None]
    if args.schedule:
        if args.sweep is not None:
            raise SpecError(f"{args.sweep} or --schedule, not both: a schedule is drawn instead of a sweep file")
        if min(lengths, default=1) < 1:
            raise SpecError("--epochs and --updates count from 1")
        curves: dict[str, list[Schedule]] = {}
        for text in args.schedule:
            name, schedule = parse_schedule(text, args.allow)
            curves.setdefault(name, []).append(schedule)
        epochs = args.epochs or EPOCHS
        T = epochs * (args.updates or UPDATES)
        for problem in problems(curves, T, epochs):
            print(f"warning: {problem}", file=sys.stderr)
        draw(curves, T, epochs, args.out or Path("schedules.png"), "")
        return 0
    if lengths:
        raise SpecError("--epochs, --updates: only with --schedule; a sweep file says how long it trains")
    sweep, document = load_sweep(cli.DEFAULT if args.sweep is None else args.sweep, args.allow, args.allow_command)
    out = args.out or load_place().folder / "results" / sweep.name / "preview.png"
    with document.locating():
        preview(sweep, args, out)
    return 0


if __name__ == "__main__":
    exit_with(main)
