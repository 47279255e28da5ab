"""A training of one's own, a function or a command, as a generator that yields after every epoch, as our own does.

What it reports is compared with what it was to do (``plan``). A function gets a ``Job``: it is a generator itself, or
it calls ``job.report``. A command finds the same in a file.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..files.document import first_line
from ..files.trial import DivergedError, OwnConfig
from . import command, function
from .checkpoint import State
from .job import Report, TrainingError
from .own_state import plain
from .plan import OwnEpoch, Plan, epoch_of


def train(config: OwnConfig, device: Any, state: State | None = None) -> Iterator[OwnEpoch]:
    """Run the training, yielding after every epoch; or from an epoch's ``state``, yielding what was before again.

    Raises TrainingError where it fails, DivergedError where one of its losses is NaN or infinite, or its objective
    after the last epoch.
    """
    recipe, done = config.train, [epoch_of(**epoch) for epoch in state["epochs"]] if state else []
    yield from done
    plan = Plan(config, done, state["plan"] if state else {})
    begin = function.reports if recipe.function is not None else command.reports
    started = time.perf_counter()
    with contextlib.closing(begin(config, str(device), state, done)) as reports:
        for report, now in _up_to_the_end(reports, recipe.epochs, plan):
            number = len(done) if report.epoch is None else report.epoch
            if number != len(done):
                lacking = f"epoch {number} comes after {len(done)} of them"
                raise TrainingError(f"it goes on at another epoch than is on record: {lacking}")
            kept = _kept(report.state, plan)
            epoch = plan.epoch(number, report, now - started)
            _refuse_nonfinite(epoch, config)
            done.append(epoch)
            if kept is not None:
                epoch = replace(epoch, keep=not callable(report.state), state=_state_of(kept, done, plan))
            yield epoch
            started = time.perf_counter()  # it was not asked to go on before
    if len(done) < recipe.epochs:
        raise TrainingError(f"it ended after {len(done)} of {recipe.epochs} epochs")


def _state_of(kept: Callable[[], Any], done: Sequence[OwnEpoch], plan: Plan) -> Callable[[], State]:
    """The whole state of a trial after an epoch: the training's own, the epochs so far, and their comparison."""
    epochs = [{k: v for k, v in asdict(replace(e, state=None)).items() if k not in ("state", "keep")} for e in done]
    compared = plan.state()
    return lambda: {"own": kept(), "epochs": epochs, "plan": compared}


def _kept(given: State | Callable[[], State] | None, plan: Plan) -> Callable[[], Any] | None:
    """How to get a training's own state, as it can be kept; None where it gave none, or one that cannot be."""

    def keep() -> Any:
        try:
            return plain(given() if callable(given) else given)
        except Exception as error:
            what = first_line(error) if isinstance(error, TrainingError) else f"{type(error).__name__}: {error}"
            plan.remarks["state"] = f"its state was not kept, and it cannot be resumed: {what}"
            raise

    if given is None or callable(given):
        return None if given is None else keep
    try:
        whole = keep()
    except Exception:
        return None
    return lambda: whole


def _up_to_the_end(reports: Iterator[Report], epochs: int, plan: Plan) -> Iterator[tuple[Report, float]]:
    """Its reports, and when they came; the last one is given when the training has come to its end, so that it can
    put its things away."""
    for report in reports:
        now = time.perf_counter()
        if plan.number + 1 < epochs:
            yield report, now
            continue
        try:
            if next(reports, None) is not None:
                more = f"it reported more than the {epochs} epochs that it was asked for; they are left out"
                plan.remarks["more"] = more
        except Exception as error:
            plan.remarks["failed"] = f"after its last epoch it failed: {first_line(error)}"
        yield report, now
        return


def _refuse_nonfinite(epoch: OwnEpoch, config: OwnConfig) -> None:
    """Raise DivergedError for a loss that is no number, or for the objective at the end."""
    last = epoch.number + 1 == config.train.epochs
    for name, value in epoch.values.items():
        judged = name == config.objective.metric and last
        if not math.isfinite(value) and (judged or name.replace("_", "/").rpartition("/")[2] == "loss"):
            raise DivergedError(replace(epoch, state=None))


def source_files(name: str | None, words: Sequence[str] | None) -> list[Path]:
    """The files of one's own code that a sweep file names: a function's module, a command's arguments."""
    if name is not None:
        spec = importlib.util.find_spec(name.rpartition(".")[0])
        return [Path(spec.origin)] if spec and spec.origin else []
    return [path for path in map(Path, words or ()) if path.is_file()]
