"""What a training of one's own is given: what to train, with which schedule, and whom to tell.

It is read without torch: a command in another framework has it, too (``from runner.job import job``).
"""

from __future__ import annotations

import math
import sys
import weakref
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


class TrainingError(Exception):
    """What went wrong in a training of one's own, in a sentence."""


class KilledError(TrainingError):
    """Its process was killed: the trial begins again."""


@dataclass(frozen=True)
class Report:
    """What a training says after an epoch."""

    metrics: Mapping[str, float]
    """By name, whatever the training measured."""
    lrs: Sequence[float] = ()
    """With which the optimizer made its updates since the last report, in order; none where it was not seen."""
    at: Sequence[int] = ()
    """Where in the schedule its scheduler stood at each of them, and behind them; none where it has no scheduler."""
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
        stands: int | None = None,
    ) -> None:
        self.epochs, self.seed, self.device, self.folder = epochs, seed, device, folder
        self.epoch, self.state = epoch, state
        self._schedule, self._send, self._judged_by, self._history = schedule, send, (sign, metric), [*history]
        self._updates, self._stands, self._rates = updates, (epoch, stands), Rates()

    @property
    def schedule(self) -> Schedule:
        """``schedule.lr(t, T, epochs=job.epochs)`` is the learning rate of update t of T: for who sets it by hand."""
        self._rates.watch()
        return self._schedule

    def scheduler(self, optimizer: Optimizer, updates_per_epoch: int) -> LambdaLR:
        """A scheduler of torch's, to ``step()`` after every update of the weights.

        Of several param groups the one with the highest learning rate gets ``schedule.init_lr``; the others keep
        their ratios to it. Where the training goes on from a state, it stands where it stood then; loading its own
        ``state_dict`` does no harm. Of several optimizers the one that was given last is the one that is read.

        Args:
            optimizer: any of torch's, or one built on it.
            updates_per_epoch: how often it steps in an epoch: with accumulation that is less than the batches.
        """
        if updates_per_epoch < 1:
            raise ValueError(f"updates_per_epoch counts from 1, not {updates_per_epoch}")
        bases = [_base(group) for group in optimizer.param_groups]
        highest = max(bases)
        for group, base in zip(optimizer.param_groups, bases, strict=True):
            group["initial_lr"] = self._schedule.init_lr * (base / highest if highest else 1.0)
            _set_lr(group, group["initial_lr"])
        self._updates = updates_per_epoch
        epoch, stands = self._stands
        done = stands if stands is not None and epoch == self.epoch else self.epoch * updates_per_epoch
        T, history = updates_per_epoch * self.epochs, self._history
        made = lambda_lr(optimizer, self._schedule, T, epochs=self.epochs, history=history, done=done)
        self._rates.follow(made)
        return made

    def report(self, metrics: Mapping[str, Any], state: State | Callable[[], State] | None = None) -> None:
        """Say what was measured after an epoch; returns when the training is to go on.

        Args:
            metrics: numbers by name. The sweep's objective is one of them.
            state: what ``state`` is to be where the trial is interrupted after this epoch and goes on: tensors,
                NumPy's arrays, numbers, text, lists, tuples, sets and mappings; of a command what JSON has. A
                function is called for it when it is wanted.

        Raises:
            TrialStopped: this training is stopped; let it through.
            TypeError: these are no numbers by name.
        """
        self._rates.watch()
        measured, (sign, metric) = numbers(metrics), self._judged_by
        number, self.epoch = self.epoch, self.epoch + 1
        self._history.append(sign * measured.get(metric, math.nan))
        lrs, at = self._rates.take()
        if self._schedule.type == "plateau":
            self._rates.set_anew()
        self._send(Report(measured, lrs, at, self._updates, state, number))


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
    """The learning rates that an optimizer of torch's really uses: read when it makes an update.

    It is that of the scheduler that was made last; where there is none, or while it makes no update, the first that
    makes one.
    """

    def __init__(self) -> None:
        self._schedulers = list[Any]()
        self._due = list[Any]()
        self._first: Callable[[], Any] = lambda: None
        self._handle: Any = None
        self._group = 0
        self._followed = False
        self._made = list[tuple[Any, int]]()

    def watch(self) -> None:
        """Begin to, once torch is there; it is not loaded for this."""
        if self._handle is None and "torch" in sys.modules:
            from torch.optim.optimizer import register_optimizer_step_pre_hook

            self._handle = register_optimizer_step_pre_hook(self._step)

    def follow(self, scheduler: LambdaLR) -> None:
        """Read the optimizer of this scheduler."""
        self.watch()
        self._schedulers.append(scheduler)
        if scheduler.last_epoch:
            self._due.append(scheduler)  # a state of the optimizer that is loaded after this may have another rate

    def set_anew(self) -> None:
        """Before the next update the schedulers look again: at what was measured since they made their last step."""
        self._due = [*self._schedulers]

    def close(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def take(self) -> tuple[list[float], list[int]]:
        """The rates since the last time, and where in the schedule they were used: see ``Report``."""
        self.watch()
        made, self._made = self._made, []
        at = [stood for _, stood in made] if self._followed else []
        if self._followed:
            stands = self._schedulers[-1].last_epoch
            at.append(max(stands, at[-1] + 1) if at else stands)  # it may make its step only after the report
        return [float(lr) for lr, _ in made], at

    def _step(self, optimizer: Any, *_: Any) -> None:
        groups = optimizer.param_groups  # the same list in what others wrap around the optimizer
        for scheduler in [s for s in self._due if s.optimizer.param_groups is groups]:
            self._due.remove(scheduler)
            for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
                _set_lr(group, base * factor(scheduler.last_epoch))
        scheduler = self._schedulers[-1] if self._schedulers else None
        if scheduler is not None and scheduler.optimizer.param_groups is groups:
            if not self._followed:  # what others did before does not count
                self._followed, self._made = True, []
        elif self._followed or self._first() not in (None, optimizer):
            return
        else:
            self._first = weakref.ref(optimizer)
        if any(group["lr"] is None for group in groups):  # Adafactor's, with a rule of its own
            return
        if not self._made or self._group >= len(groups):
            bases = [_base(group) for group in groups]
            self._group = bases.index(max(bases))
        lr = groups[self._group]["lr"]
        stood = scheduler.last_epoch if scheduler is not None else 0
        self._made.append((lr.detach().clone() if hasattr(lr, "detach") else lr, stood))


def _base(group: Mapping[str, Any]) -> float:
    """The learning rate that a param group began with."""
    base = group.get("initial_lr", group["lr"])
    if base is None:
        raise ValueError("the optimizer has no learning rate that can be set: give it one, and no rule of its own")
    return float(base)


def _set_lr(group: dict[str, Any], lr: float) -> None:
    if hasattr(group["lr"], "fill_"):  # a compiled or captured update reads this very tensor
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr
