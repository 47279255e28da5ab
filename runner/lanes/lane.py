"""Lanes as the coordinator sees them: executors with room for one trial each, replaced where a worker dies.

A thread owns a slot on a GPU, a process owns a CPU core, a Ray actor owns a share of some machine; the sweep submits
"begin this config" and "the next epoch" and does not know which.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import re
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    InvalidStateError,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..files.document import first_line, printable
from ..files.secrets import redacted
from ..files.trial import Config, DivergedError, OwnConfig, Record
from ..training.command import signal_name
from ..training.job import KilledError, TrainingError
from .process import WAY_OUT
from .stop import GpuError, Stop, kill, signals_blocked
from .worker import advance, begin, end, save, weights

if TYPE_CHECKING:
    from ..training.checkpoint import Checkpoints
    from ..training.loop import Epoch
    from ..training.plan import OwnEpoch

T = TypeVar("T")


class StalledError(Exception):
    """A training gave nothing for longer than was to be waited for; its worker has been killed."""


@dataclass(frozen=True)
class Result:
    """What came from a lane: an epoch, or the end of the trial, or both."""

    epoch: Epoch | OwnEpoch | None = None
    outcome: str | None = None
    """complete, diverged, failed; ``died`` where the worker and not the trial is to blame; None while it goes on."""
    error: BaseException | None = None

    @property
    def worker_is_gone(self) -> bool:
        return self.outcome == "died" or isinstance(self.error, StalledError)

    @property
    def cause(self) -> str | None:
        """Why the trial ended without being complete or diverged, in a sentence."""
        if self.outcome not in ("failed", "died"):
            return None
        message = printable(redacted(first_line(self.error)))
        if isinstance(self.error, (TrainingError, StalledError)):
            return message
        if out_of_memory(self.error):
            return f"out of memory: {message}; take smaller batches or fewer lanes"
        if isinstance(self.error, BrokenExecutor):
            return _how_it_died(getattr(self.error, "exitcode", None))
        return f"{type(self.error).__name__}: {message}"


@dataclass
class Lane:
    """One lane: where it trains, its executor, and the trial and the epoch that are under way on it."""

    index: int
    device: str
    executor: Executor
    lanes: Lanes
    trial: Record | None = None
    epochs: int = 0
    number: int = -1
    future: Future[Any] | None = None
    keep: bool = False
    own_code: bool = False
    ending: Future[None] | None = None
    """What its last trial has begun is being ended."""
    saved: float = 0.0
    asked: float = 0.0
    """When it was asked for the epoch that is under way."""

    def begin(self, trial: Record, config: Config) -> None:
        """Begin a trial, from its last checkpoint where it has one."""
        self.trial, self.epochs, self.own_code = trial, config.train.epochs, isinstance(config, OwnConfig)
        self.saved = self.asked = time.monotonic()
        self.future = self._submit(begin, config, self.device, self.lanes.checkpoints.latest(trial, config))

    def advance(self) -> None:
        """Train the next epoch, and every so often keep what there is first; when stopped, keep it and end here."""
        if self.lanes.stop:
            kept = self._save()
            with contextlib.suppress(TimeoutError):
                kept.result(self.lanes.stop.left)
            self.release()
            return
        self.asked = time.monotonic()
        if self.keep or self.asked - self.saved >= self.lanes.checkpoints.seconds:
            self._save()
        self.future = self._submit(advance)

    def weights(self) -> Future[dict[str, Any] | None]:
        """The weights that the trial has ended with; asked for before another one begins."""
        return self._submit(weights)

    def _save(self) -> Future[None]:
        """Keep a checkpoint of the trial as it is: the lane packs it, and goes on while it is being written."""
        trial, epochs, checkpoints, kept = self.trial, self.number + 1, self.lanes.checkpoints, Future[None]()

        def keep(packed: Future[bytes | None]) -> None:
            content = packed.result() if packed.exception() is None else None  # the next epoch says why
            if content is not None and trial is not None:  # one's own training may give a state now and then
                self.saved = time.monotonic()
                checkpoints.keep(trial, epochs, content)
            kept.set_result(None)

        self._submit(save).add_done_callback(keep)
        return kept

    def release(self) -> None:
        """It has ended its trial, and what that has begun ends too."""
        if self.own_code:
            self.ending = self._submit(end)
        self.trial = self.future = None

    def result(self) -> tuple[Record, Result]:
        """The trial, and what the future that is done has brought.

        Raises:
            GpuError: a GPU has failed, for all threads of this process.
        """
        assert self.trial is not None
        assert self.future is not None
        error = self.future.exception()
        if isinstance(error, KeyboardInterrupt):
            raise error
        if isinstance(error, DivergedError):
            return self.trial, Result(error.epoch, "diverged")
        if error is not None:
            broken = _broken(error)
            if broken and isinstance(self.executor, ThreadPoolExecutor):
                raise GpuError(first_line(error)) from error
            died = broken or isinstance(error, (BrokenExecutor, KilledError)) or out_of_memory(error)
            return self.trial, Result(None, "died" if died else "failed", error)
        epoch = self.future.result()
        self.number, self.keep = epoch.number, epoch.keep
        return self.trial, Result(epoch, "complete" if epoch.number + 1 == self.epochs else None)

    def _submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        try:
            with signals_blocked():  # which may begin a process
                return self.executor.submit(function, *args)
        except (BrokenExecutor, ConnectionError, EOFError) as error:  # it, or what it is copied from, has died
            broken = Future[T]()
            broken.set_exception(BrokenExecutor(str(error)))
            return broken


def _how_it_died(code: int | None) -> str:
    """How a worker process ended that should not have."""
    if code is not None and code < 0 and code != -signal.SIGKILL:
        return f"its worker was ended by {signal_name(-code)}"
    if code is not None and 0 <= code < 255:  # which is what is said where nobody knows it
        return f"its worker exited with {code}, which something in it asked for (os._exit)"
    return "its worker died without a word: killed, by somebody or because the machine ran out of memory"


def out_of_memory(error: BaseException | None) -> bool:
    """Whether it is what a GPU or this machine says when its memory is full."""
    import torch

    if isinstance(error, RuntimeError) and re.search("out of memory|ALLOC_FAILED|can't allocate memory", str(error)):
        return True  # CUDA's libraries have words of their own
    return isinstance(error, (MemoryError, torch.OutOfMemoryError))


def _broken(error: BaseException) -> bool:
    """Whether this process can do nothing on a GPU any more: memory and links beyond repair, a bad address or
    instruction, a timeout, an assertion, an unknown error (``cudaError`` has the numbers)."""
    code = getattr(error, "error_code", None)  # torch.AcceleratorError's
    sticky = code in (214, 220, 700, 702, 709, 710, *range(714, 720), 999)
    return sticky or (isinstance(error, RuntimeError) and "_STATUS_EXECUTION_FAILED" in str(error))


class Lanes:
    """The lanes of a sweep. ``with`` them: their workers are warm from the first trial to the last.

    One for each of ``devices``, with an executor that ``make`` gives for its index. ``capacity`` says how many the
    cluster has room for at the moment, None where that is not known; ``check`` raises ClusterError where it is gone;
    ``note`` says more about them, for people.
    """

    def __init__(
        self,
        devices: Sequence[str],
        make: Callable[[int], Executor],
        stop: Stop,
        checkpoints: Checkpoints,
        capacity: Callable[[], int | None] = lambda: None,
        check: Callable[[], None] = lambda: None,
        note: str = "",
    ) -> None:
        self.stop, self.checkpoints = stop, checkpoints
        self._make, self._capacity, self._check, self._note = make, capacity, check, note
        self.stall = math.inf
        """Seconds after which an epoch that has not come is not waited for any more."""
        self.all = [Lane(i, device, make(i), self) for i, device in enumerate(devices)]

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # do not wait for epochs that nobody wants any more
            for process in multiprocessing.active_children():
                kill(process)
        else:
            wait([lane.ending for lane in self.all if lane.ending is not None], timeout=WAY_OUT)
        for lane in self.all:
            lane.executor.shutdown(
                wait=kind is None or not isinstance(lane.executor, ThreadPoolExecutor), cancel_futures=True
            )

    def __str__(self) -> str:
        return f"{len(self.all)} lane{'s' * (len(self.all) > 1)}{self._note}"

    def free(self) -> list[Lane]:
        """The lanes on which a trial may begin; none while the sweep is being stopped."""
        return [lane for lane in self.all if lane.future is None and not self.stop]

    def busy(self) -> list[Lane]:
        """The lanes on which an epoch is under way that is still wanted."""
        return [lane for lane in self.all if lane.future is not None and self.stop.left]

    def finished(self, wait_for_one: bool = True, meanwhile: Callable[[], None] = lambda: None) -> list[Lane]:
        """The lanes on which an epoch has ended: waits until there is one, or until it is stopped. Every second
        ``meanwhile`` is called."""
        futures = {lane.future: lane for lane in self.all if lane.future is not None}
        while True:
            patience = min(1.0, self.stop.left) if wait_for_one else 0.0
            done, _ = wait(futures, timeout=patience, return_when=FIRST_COMPLETED)
            self._check()
            meanwhile()
            for lane in self.all:
                self._end_stalled(lane)
            for lane in self.free():
                self._make_room(lane)  # a new worker may be waiting for the place that an idle one holds
            if done or not patience:
                return [lane for future, lane in futures.items() if future in done]

    def _end_stalled(self, lane: Lane) -> None:
        """Kill the worker of a lane whose epoch has not come in time."""
        end = getattr(lane.executor, "kill", None)
        if lane.future is not None and end and not lane.future.done() and time.monotonic() - lane.asked > self.stall:
            with contextlib.suppress(InvalidStateError):
                lane.future.set_exception(StalledError(f"it gave no epoch for {self.stall / 60:g} minutes"))
            end()

    def release(self, lane: Lane) -> None:
        """A lane has ended its trial."""
        lane.release()
        self._make_room(lane)

    def _make_room(self, lane: Lane) -> None:
        """Give a free lane up where the cluster has become too small for all of them."""
        if 0 < (self._capacity() or 0) < len(self.all):
            lane.executor.shutdown(wait=False, cancel_futures=True)
            self.all.remove(lane)

    def replace_worker(self, lane: Lane, error: BaseException | None = None) -> None:
        """Give a lane whose worker died a new one; where it was for want of memory and others are left, none."""
        self.release(lane)
        if lane in self.all:
            threads = isinstance(lane.executor, ThreadPoolExecutor)  # whose memory is free when they have ended
            lane.executor.shutdown(wait=threads, cancel_futures=True)
            if out_of_memory(error) and len(self.all) > 1:
                self.all.remove(lane)
            else:
                lane.executor = self._make(lane.index)
