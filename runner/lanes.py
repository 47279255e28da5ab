"""Lanes: where trials train. A lane is a ``concurrent.futures.Executor`` with room for one trial.

A thread owns a slot on a GPU, a process owns a CPU core, a Ray actor owns a share of some machine; the sweep submits
"begin this config" and "the next epoch" and does not know which. A lane whose worker died is replaced by a new one,
or given up where there is not memory enough for all of them.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import logging
import multiprocessing
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import dataclass, replace
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any, TypeVar

from . import checkpoint
from .document import SpecError, first_line, printable
from .place import redacted
from .spec import Data, Record, TrialConfig
from .stop import GpuError, Stop, depend, held

if TYPE_CHECKING:
    from .checkpoint import Checkpoints
    from .train import Epoch

T = TypeVar("T")

# --------------------------------------------------------------------------------------
# On the lane. Each lane has one thread (of some process), and that thread has one trial.

_here = threading.local()  # epochs: the trial's generator; config; state: how to get what ``train`` needs to go on
Shared = tuple[Data, str, Mapping[str, Any]]
"""The data that the coordinator has read: what ``data.adopt`` takes, so that no worker reads them again."""


def begin(config: TrialConfig, device: str, packed: bytes | None = None) -> Epoch:
    """Begin a trial, perhaps from a checkpoint, and train its first epoch; the one before is forgotten."""
    import torch

    from . import engine

    _here.epochs = _here.state = None  # let go of the last trial before the next one takes memory
    _here.config, state = config, checkpoint.unpack(packed, config) if packed else None
    _here.epochs = engine.loop(config)(config, torch.device(device), state)
    return advance()


def advance() -> Epoch:
    """Train the next epoch."""
    try:
        epoch: Epoch = next(_here.epochs)
    except Exception as error:
        known: BaseException | None = error
        while known is not None:
            traceback.clear_frames(known.__traceback__)  # which have the slot, and what it was computing
            known = known.__context__
        try:
            copy.copy(error)
        except Exception:  # one that cannot be built again would end the pool that carries it to the coordinator
            raise RuntimeError(f"{type(error).__name__}: {first_line(error)}") from error
        raise
    _here.state = epoch.state or _here.state
    return replace(epoch, state=None)


def save() -> bytes | None:
    """The trial's state after its last epoch, packed; None where it has been yielding what a checkpoint had."""
    return checkpoint.pack(_here.config, _here.state()) if _here.state else None


def _own_one_core(shared: Shared | None) -> None:
    """What a worker process does first: it depends on the coordinator, and has one thread."""
    depend()
    import torch

    _prepare(shared)
    torch.set_num_threads(1)


def _prepare(shared: Shared | None) -> None:
    """Make a worker ready to train: the data that the coordinator has read, and memory that it keeps."""
    from . import data, engine

    engine.keep_memory()
    if shared is not None:
        data.adopt(*shared)


# --------------------------------------------------------------------------------------
# At the coordinator.


@dataclass(frozen=True)
class Result:
    """What came from a lane: an epoch, or the end of the trial, or both."""

    epoch: Epoch | None = None
    outcome: str | None = None
    """complete, diverged, failed; ``died`` where the worker and not the trial is to blame; None while it goes on."""
    error: BaseException | None = None

    @property
    def cause(self) -> str | None:
        """Why the trial ended without being complete or diverged, in a sentence."""
        if self.outcome not in ("failed", "died"):
            return None
        said = printable(redacted(first_line(self.error)))
        if _out_of_memory(self.error):
            return f"out of memory: {said}; lower train.batch_size or the number of lanes"
        if isinstance(self.error, BrokenExecutor):
            return "its worker died without a word: killed, by somebody or because the machine ran out of memory"
        return f"{type(self.error).__name__}: {said}"


@dataclass
class Lane:
    """One lane: where it trains, its executor, and the trial and the epoch that are under way on it."""

    device: str
    executor: Executor
    of: Lanes
    trial: Record | None = None
    epochs: int = 0
    number: int = -1
    future: Future[Epoch] | None = None
    saved: float = 0.0

    def begin(self, trial: Record, config: TrialConfig) -> None:
        """Begin a trial, from its last checkpoint where it has one."""
        self.trial, self.epochs, self.saved = trial, config.train.epochs, time.monotonic()
        self.future = self._submit(begin, config, self.device, self.of.checkpoints.latest(trial, config))

    def advance(self) -> None:
        """Train the next epoch, and every so often keep what there is first; when stopped, keep it and rest."""
        if self.of.stop:
            kept = self._save()
            with contextlib.suppress(TimeoutError):
                kept.result(self.of.stop.left)
            self.rest()
            return
        if time.monotonic() - self.saved >= self.of.checkpoints.seconds:
            self._save()
        self.future = self._submit(advance)

    def _save(self) -> Future[None]:
        """Keep a checkpoint of the trial as it is: the lane packs it, and goes on while it is being written."""
        trial, epochs, checkpoints, kept = self.trial, self.number + 1, self.of.checkpoints, Future[None]()
        self.saved = time.monotonic()

        def keep(packed: Future[bytes | None]) -> None:
            content = packed.result() if packed.exception() is None else None  # the next epoch says why
            if content is not None and trial is not None:
                checkpoints.keep(trial, epochs, content)
            kept.set_result(None)

        self._submit(save).add_done_callback(keep)
        return kept

    def rest(self) -> None:
        self.trial = self.future = None

    def result(self) -> tuple[Record, Result]:
        """The trial, and what the future that is done has brought.

        Raises:
            GpuError: a GPU has failed, for all threads of this process.
        """
        from .train import DivergedError

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
            died = broken or isinstance(error, BrokenExecutor) or _out_of_memory(error)
            return self.trial, Result(None, "died" if died else "failed", error)
        epoch = self.future.result()
        self.number = epoch.number
        return self.trial, Result(epoch, "complete" if epoch.number + 1 == self.epochs else None)

    def _submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        try:
            with held():  # which may begin a process
                return self.executor.submit(function, *args)
        except (BrokenExecutor, ConnectionError, EOFError) as error:  # it, or what it is copied from, has died
            broken = Future[T]()
            broken.set_exception(BrokenExecutor(str(error)))
            return broken


def _out_of_memory(error: BaseException | None) -> bool:
    import torch

    if isinstance(error, RuntimeError):  # CUDA's libraries have words of their own
        return isinstance(error, torch.OutOfMemoryError) or bool(
            re.search("out of memory|ALLOC_FAILED|can't allocate memory", str(error))
        )
    return isinstance(error, MemoryError)


def _broken(error: BaseException) -> bool:
    """Whether it is one of CUDA's errors after which nothing can be done on a GPU by this process.

    Their numbers are those of ``cudaError``: memory and links beyond repair, a bad address or instruction, a timeout,
    an assertion, an unknown error.
    """
    code = getattr(error, "error_code", None)  # torch.AcceleratorError's
    sticky = code in (214, 220, 700, 702, 709, 710, *range(714, 720), 999)
    return sticky or (isinstance(error, RuntimeError) and "_STATUS_EXECUTION_FAILED" in str(error))


class Lanes:
    """The lanes of a sweep. ``with`` them: their workers are warm from the first trial to the last."""

    def __init__(
        self,
        devices: Sequence[str],
        make: Callable[[], Executor],
        places: Callable[[], int] | None = None,
        note: str = "",
    ) -> None:
        self._make, self._places, self._note = make, places or (lambda: len(devices)), note
        self.stop = Stop()
        self.checkpoints: Checkpoints
        self.all = [Lane(device, make(), self) for device in devices]

    def heed(self, stop: Stop, checkpoints: Checkpoints) -> None:
        """When to stop, and where long trials keep what they have: said before the first one begins."""
        self.stop, self.checkpoints = stop, checkpoints

    def forget(self, trial: Record) -> None:
        """A trial has ended and is on record: its checkpoints go."""
        self.checkpoints.drop(trial)

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # do not wait for epochs that nobody wants any more
            for process in multiprocessing.active_children():
                process.kill()
        for lane in self.all:
            lane.executor.shutdown(
                kind is None or isinstance(lane.executor, ProcessPoolExecutor), cancel_futures=True
            )

    def __str__(self) -> str:
        return f"{len(self.all)} lane{'s' * (len(self.all) > 1)}{self._note}"

    def free(self) -> list[Lane]:
        """The lanes on which a trial may begin; none while the sweep is being stopped."""
        return [lane for lane in self.all if lane.future is None and not self.stop]

    def busy(self) -> list[Lane]:
        """The lanes on which an epoch is under way that is still wanted."""
        return [lane for lane in self.all if lane.future is not None and self.stop.left]

    def finished(self, wait_for_one: bool = True) -> list[Lane]:
        """The lanes on which an epoch has ended: waits until there is one, or until it is stopped."""
        futures = {lane.future: lane for lane in self.all if lane.future is not None}
        while True:
            patience = min(1.0, self.stop.left) if wait_for_one else 0.0
            done, _ = wait(futures, timeout=patience, return_when=FIRST_COMPLETED)
            for lane in self.free():
                self._make_room(lane)  # a new worker may be waiting for the place that an idle one holds
            if done or not patience:
                return [lane for future, lane in futures.items() if future in done]

    def rest(self, lane: Lane) -> None:
        """A lane has ended its trial."""
        lane.rest()
        self._make_room(lane)

    def _make_room(self, lane: Lane) -> None:
        """Give a free lane up where the cluster has become too small for all of them."""
        if 0 < self._places() < len(self.all):
            lane.executor.shutdown(wait=False, cancel_futures=True)
            self.all.remove(lane)

    def renew(self, lane: Lane, error: BaseException | None = None) -> None:
        """Give a lane whose worker died a new one; where it was for want of memory and others are left, none."""
        self.rest(lane)
        if lane in self.all:
            threads = isinstance(lane.executor, ThreadPoolExecutor)  # whose memory is free when they have ended
            lane.executor.shutdown(wait=threads, cancel_futures=True)
            if _out_of_memory(error) and len(self.all) > 1:
                self.all.remove(lane)
            else:
                lane.executor = self._make()


# --------------------------------------------------------------------------------------
# The kinds.


def open_lanes(
    wanted: str,
    device: str,
    most: int,
    ray: str | None = None,
    config: TrialConfig | None = None,
    **resources: float | None,
) -> Lanes:
    """The lanes for ``--lanes``, ``--device`` and ``--ray``.

    Args:
        wanted: a number, or ``auto``: one for each CPU core, as many for each GPU as make it busy, or one for each
            place in the cluster; 0 is one lane in this very process, with all of its cores, which a debugger can
            follow.
        device: what ``train.pick_device`` said; a GPU without a number stands for all GPUs.
        most: no more lanes than this: the sweep's window.
        ray: the address of a Ray cluster, ``local``, or None for this machine without Ray.
        config: a trial like all others; the workers get its data by value, once for each node of a cluster, and the
            number of slots on a GPU is found by training it for some seconds.
        resources: ``num_cpus`` and ``num_gpus`` of each Ray actor.

    Raises:
        SpecError: Ray is not installed or does not answer.
    """

    def number(auto: int) -> int:
        return max(1, min(int(wanted) if wanted != "auto" else auto, most))

    if ray is not None:
        return _ray_lanes(ray, device, number, _shared(config), resources)
    if wanted == "0":
        return Lanes([device], lambda: ThreadPoolExecutor(1))
    if device == "cpu":
        context, shared = make_ready(), _shared(config)
        return Lanes(
            ["cpu"] * number(cores()),
            lambda: ProcessPoolExecutor(1, context, initializer=_own_one_core, initargs=(shared,)),
        )
    devices = _gpus() if device == "cuda" else [device]
    warm, note = list[Executor](), ""
    if wanted == "auto" and config is not None and config.engine.name == "fast":
        warm, size = busy_slots(config, devices[0], max(1, most // len(devices)))
        note = f" with {size / 1e6:.0f} MB of weights and optimizer state each"
    n = number(len(devices) * max(1, len(warm)))
    where = [devices[i % len(devices)] for i in range(n)]
    begun = [warm.pop() if warm and gpu == devices[0] else ThreadPoolExecutor(1) for gpu in where]
    return Lanes(where, lambda: begun.pop(0) if begun else ThreadPoolExecutor(1), note=note)


def busy_slots(config: TrialConfig, device: str, most: int, seconds: float = 0.5) -> tuple[list[Executor], int]:
    """The slots that make a device busy: the fewest that train within 3 % of the best total rate; and a slot's bytes.

    1, 2, 3, 4, 6, 8 and 12 slots train for ``seconds``, up to ``most``, to the device's memory, and until three steps
    more have not brought 3 % (two would not do: on one H200 two and three slots of CIFAR-10 were alike, and six
    faster). A slot is given as the thread that has it, warm.
    """
    from . import engine

    threads, kept, rates, size = list[Executor](), 0, dict[int, float](), 0
    try:
        for n in (1, 2, 3, 4, 6, 8, 12):
            if n > max(1, most):
                break
            while len(threads) < n:
                threads.append(ThreadPoolExecutor(1))
                size = threads[-1].submit(engine.warm, config, device).result()
            rates[n] = sum([f.result() for f in [t.submit(engine.rate, config, device, seconds) for t in threads]])
            kept = min(n for n, rate in rates.items() if rate >= 0.97 * max(rates.values()))
            if len(rates) > 3 and max(rates.values()) < 1.03 * max(list(rates.values())[:-3]):
                break
    except RuntimeError as error:
        if not (rates or _out_of_memory(error)):  # its libraries have many words for that
            raise
        # as many as fitted, then
    finally:
        for thread in threads[kept:]:
            thread.shutdown()
        gc.collect()  # their slots make room
    return threads[:kept], size


def make_ready() -> BaseContext:
    """Begin the process that workers on a CPU are copied from: it imports what they need, once and in good time.

    Where the system's libraries do not bear that, as on macOS, every worker is begun anew.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchvision", "runner.engine", "runner.lanes", "runner.terminal"])
    resource_tracker.ensure_running()  # which would let the signals through
    with held():
        forkserver.ensure_running()
    return context


def _shared(config: TrialConfig | None) -> Shared | None:
    from . import data

    if config is None:
        return None
    return config.data, config.data_dir, data.load(config.data, config.data_dir).by_value()


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]


class RayExecutor(Executor):
    """A Ray actor as an executor with one worker. Its errors are those of any executor."""

    def __init__(self, resources: Mapping[str, float], shared: Any) -> None:
        ray: Any = importlib.import_module("ray")

        class Worker:
            def __init__(self, shared: Shared | None) -> None:
                _prepare(shared)

            def call(self, function: Callable[..., Any], *args: Any) -> Any:
                return function(*args)

        self._ray = ray
        self._actor = ray.remote(**resources)(Worker).remote(shared)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
        outer: Future[Any] = Future()

        def hand_on(inner: Future[Any]) -> None:
            error = inner.exception()
            if error is None:
                outer.set_result(inner.result())
            elif isinstance(error, self._ray.exceptions.RayTaskError):
                outer.set_exception(error.cause)  # what the function raised
            else:  # the actor or its node is gone
                outer.set_exception(BrokenExecutor(str(error)))

        self._actor.call.remote(fn, *args).future().add_done_callback(hand_on)
        return outer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        self._ray.kill(self._actor)


def _ray_lanes(
    address: str,
    device: str,
    number: Callable[[int], int],
    shared: Shared | None,
    resources: Mapping[str, float | None],
) -> Lanes:
    try:
        ray: Any = importlib.import_module("ray")
    except ModuleNotFoundError:
        raise SpecError("--ray needs Ray: pip install 'lr-sweep-runner[ray]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if found := re.fullmatch(r"(?:ray://)?([^:/]+):([0-9]{1,5})", address):  # Ray itself would wait for minutes
            socket.create_connection((found[1], int(found[2])), timeout=5).close()
        if not ray.is_initialized():
            local = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == "local" else {}
            # "local" itself is a cluster of its own; with None, Ray joins one that it finds
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (OSError, ValueError, RuntimeError) as error:
        raise SpecError(f"--ray {address}: {first_line(error)}") from None
    gpu = device.startswith("cuda")
    each = {"num_cpus": 1.0, "num_gpus": 1.0 if gpu else 0.0} | {k: v for k, v in resources.items() if v is not None}
    kinds = [(resource, each[k]) for resource, k in (("CPU", "num_cpus"), ("GPU", "num_gpus")) if each[k] > 0]

    def places() -> int:
        have = ray.cluster_resources()
        return min((int(have.get(resource, 0) // share) for resource, share in kinds), default=0)

    if places() < 1:
        asked = " and ".join(f"{k} {v:g}" for k, v in each.items() if v)
        raise SpecError(f"--ray {address}: the cluster has no place for an actor with {asked}")
    stored = ray.put(shared)  # one copy for each node, which all of its workers read in place
    return Lanes(["cuda" if gpu else "cpu"] * number(places()), lambda: RayExecutor(each, stored), places)
