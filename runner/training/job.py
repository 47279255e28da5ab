"""What a training of one's own is given: what to train, with which schedule, and whom to tell.

It is read without torch: a command in another framework has it, too (``from runner.job import job``).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..schedules.schedule import Schedule, lambda_lr

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

State = Mapping[str, Any]


class TrialStopped(BaseException):
    """Raised by ``report`` where a trial is stopped: let it through, so that the training ends."""


@dataclass(frozen=True)
class Report:
    """What a training says after an epoch."""

    metrics: Mapping[str, float]
    """By name, whatever the training measured."""
    lrs: Sequence[float] = ()
    """With which the optimizer made its updates since the last report, in order; none where it was not seen."""
    updates_per_epoch: int | None = None
    """What the training said of it, where it did."""
    state: State | Callable[[], State] | None = None
    epoch: int | None = None
    """Its number, from 0."""


class Job:
    """One training: ``schedule``, ``epochs``, ``seed`` and ``device`` are what it is to train with.

    ``folder``: a folder of the trial's own, which outlives its worker and is removed with the trial's end.
    ``state``: what the training gave with its last report before it was interrupted; None where it begins.
    ``epoch``: how many epochs lie behind it: those reported, and those before ``state``. A training that goes on by
    itself, from files in ``folder``, sets it.
    """

    def __init__(
        self,
        schedule: Schedule,
        epochs: int,
        seed: int,
        device: str,
        folder: Path,
        send: Callable[[Report], None],
        *,
        sign: int = 1,
        metric: str = "",
        epoch: int = 0,
        state: State | None = None,
        history: Sequence[float] = (),
        updates: int | None = None,
    ) -> None:
        self.epochs, self.seed, self.device, self.folder = epochs, seed, device, folder
        self.epoch, self.state = epoch, state
        self._schedule, self._send, self._judged_by, self._history = schedule, send, (sign, metric), [*history]
        self._updates, self._rates = updates, Rates()

    @property
    def schedule(self) -> Schedule:
        """``schedule.lr(t, T, epochs=job.epochs)`` is the learning rate of update t of T: for who sets it by hand."""
        self._rates.watch()
        return self._schedule

    def scheduler(self, optimizer: Optimizer, updates_per_epoch: int) -> LambdaLR:
        """A scheduler of torch's, to ``step()`` after every update of the weights.

        Of several param groups the one with the highest learning rate gets ``schedule.init_lr``; the others keep
        their ratios to it. Where the training goes on from a state, it stands at update
        ``epoch * updates_per_epoch`` already; loading its own ``state_dict`` does no harm.

        Args:
            optimizer: any of torch's, or one built on it.
            updates_per_epoch: how often it steps in an epoch: with accumulation that is less than the batches.
        """
        if updates_per_epoch < 1:
            raise ValueError(f"updates_per_epoch counts from 1, not {updates_per_epoch}")
        bases = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        highest = max(bases)
        for group, base in zip(optimizer.param_groups, bases, strict=True):
            group["initial_lr"] = self._schedule.init_lr * (base / highest if highest else 1.0)
            group["lr"] = group["initial_lr"]
        self._updates = updates_per_epoch
        self._rates.watch()
        self._rates.main = optimizer
        T, done = updates_per_epoch * self.epochs, self.epoch * updates_per_epoch
        made = lambda_lr(optimizer, self._schedule, T, epochs=self.epochs, history=self._history)
        if done:
            made.last_epoch = done
            made._step_count = done + 1
            for group, factor in zip(optimizer.param_groups, made.lr_lambdas, strict=True):
                group["lr"] = group["initial_lr"] * factor(done)
            made._last_lr = [group["lr"] for group in optimizer.param_groups]
        return made

    def report(self, metrics: Mapping[str, Any], state: State | Callable[[], State] | None = None) -> None:
        """Say what was measured after an epoch; returns when the training is to go on.

        Args:
            metrics: numbers by name. The sweep's objective is one of them.
            state: what ``state`` is to be where the trial is interrupted after this epoch and goes on: tensors,
                numbers, text, lists and mappings, by name. A function is called for it when it is wanted.

        Raises:
            TrialStopped: this training is stopped; let it through.
            TypeError: these are no numbers by name.
        """
        self._rates.watch()
        measured, (sign, metric) = numbers(metrics), self._judged_by
        number, self.epoch = self.epoch, self.epoch + 1
        self._history.append(sign * measured.get(metric, math.nan))
        self._send(Report(measured, self._rates.take(), self._updates, state, number))


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as plain numbers: those of tensors and arrays with one element, on any device, too; raises TypeError
    where they are none."""
    if not isinstance(metrics, Mapping):
        raise TypeError(f"an epoch gives a mapping of names to numbers, not {metrics!r:.60}")
    found = dict[str, float]()
    for name, value in metrics.items():
        try:
            number = value.item() if hasattr(value, "item") else value
            if not isinstance(name, str) or isinstance(number, (str, bytes)):
                raise TypeError
            found[name] = float(number)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise TypeError(f"an epoch gives numbers by name, and {name!r:.60} is {value!r:.60}") from None
    return found


class Rates:
    """The learning rates that optimizers of torch's really use: read when one of them makes an update."""

    def __init__(self) -> None:
        self.main: Any = None
        """The optimizer whose rates are meant; the first that steps, where nobody says."""
        self._handle: Any = None
        self._group = 0
        self._lrs: list[Any] = []

    def watch(self) -> None:
        """Begin to, once torch is there; it is not loaded for this."""
        if self._handle is None and "torch" in sys.modules:
            from torch.optim.optimizer import register_optimizer_step_pre_hook

            self._handle = register_optimizer_step_pre_hook(self._step)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def take(self) -> list[float]:
        """Those since the last time."""
        taken, self._lrs = [float(lr) for lr in self._lrs], []
        return taken

    def _step(self, optimizer: Any, *_: Any) -> None:
        if self.main is None:
            self.main = optimizer
        if optimizer is not self.main:
            return
        groups = optimizer.param_groups
        if not self._lrs or self._group >= len(groups):
            bases = [float(group.get("initial_lr", group["lr"])) for group in groups]
            self._group = bases.index(max(bases))
        lr = groups[self._group]["lr"]
        self._lrs.append(lr.detach().clone() if hasattr(lr, "detach") else lr)
