"""On the lane: each has one thread (of some process), and that thread has one trial."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import os
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.document import first_line
from ..files.sweep_file import Data
from ..files.trial import Config, OwnConfig
from ..training import checkpoint, log, own
from ..training.job import TrainingError
from ..training.supervise import adopt_orphans, descendants, end_descendants
from .stop import follow_parent

if TYPE_CHECKING:
    from ..training.loop import Epoch
    from ..training.plan import OwnEpoch

_own_process = False
_spared = set[int]()
"""Processes that are children of this one, and no trial's."""
_local = threading.local()  # epochs: the trial's generator; config; state: how to get what ``train`` needs to go on
Shared = tuple[Data, str, Mapping[str, Any]]
"""The data that the coordinator has read: what ``data.preload`` takes, so that no worker reads them again."""


def begin(config: Config, device: str, packed: bytes | None = None) -> Epoch | OwnEpoch:
    """Begin a trial, perhaps from a checkpoint, and train its first epoch; the one before is forgotten."""
    end()
    _local.config, _local.device = config, device
    state = checkpoint.unpack(packed, config) if packed else None
    if isinstance(config, OwnConfig):
        if _own_process:
            _print_into(config.log)
        _local.epochs = own.train(config, device, state)
        return advance()
    import torch

    from ..training.fast import engine

    _local.epochs = engine.train_function(config)(config, torch.device(device), state)
    return advance()


def end() -> None:
    """Let go of the last trial before the next one takes memory; where it is one's own code, all that it began."""
    if (epochs := getattr(_local, "epochs", None)) is not None:
        epochs.close()
    begun, _local.config = getattr(_local, "config", None), None
    _local.epochs = _local.state = None
    if _own_process and begun is not None:
        if {*descendants(os.getpid())} - _spared or "cuda" in _local.device:
            gc.collect()  # what holds processes of its own, such as a loader's, or a GPU's memory
        end_descendants(_spared)
        _flush()


def _print_into(log: Path) -> None:
    """What this process prints from here on, in any language, goes into a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    _flush()
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for number in (1, 2):
        os.dup2(file, number)
    os.close(file)
    if any(getattr(stream, "closed", False) for stream in (sys.stdout, sys.stderr)):  # by a trial
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # or a worker that is killed takes its last words with it
            stream.reconfigure(line_buffering=True)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or replaced by a training
            stream.flush()


def advance() -> Epoch | OwnEpoch:
    """Train the next epoch."""
    try:
        epoch: Epoch | OwnEpoch = next(_local.epochs)
    except Exception as error:
        if _own_process and isinstance(error, TrainingError):
            print(*getattr(error, "__notes__", ()), sep="\n", end="", file=sys.stderr)
        at: BaseException | None = error
        while at is not None:
            traceback.clear_frames(at.__traceback__)  # which have the slot, and what it was computing
            at = at.__context__
        try:
            copy.copy(error)
        except Exception:  # one that cannot be built again would end the pool that carries it to the coordinator
            raise RuntimeError(f"{type(error).__name__}: {first_line(error)}") from error
        raise
    finally:
        if isinstance(_local.config, OwnConfig):
            _flush()
            log.shorten(_local.config.log)
    own_code = isinstance(_local.config, OwnConfig)  # whose state of an earlier epoch may be overwritten by now
    _local.state = epoch.state or (None if own_code else _local.state)
    return replace(epoch, state=None)


def save() -> bytes | None:
    """The trial's state after its last epoch, packed; None where it has been yielding what a checkpoint had."""
    return checkpoint.pack(_local.config, _local.state()) if _local.state else None


def weights() -> dict[str, Any] | None:
    """What the network of the trial that has just ended has learnt, by torchvision's names, on the CPU; None where
    nobody knows it: of a training of one's own, and of one that yielded what a checkpoint had."""
    if _local.state is None or isinstance(_local.config, OwnConfig):
        return None
    from ..training.fast import engine

    return engine.weights(_local.config, _local.state)


def start_own_worker(cpus: Sequence[int], gpu: str | None, variables: Mapping[str, str]) -> None:
    """What a worker process for one's own code does first: it has the coordinator's environment, its own cores or its
    own GPU, and when it ends, all that was begun in it does."""
    os.environ.clear()
    os.environ.update(variables)
    follow_parent(group=True)
    if cpus:
        os.sched_setaffinity(0, cpus)
    threads = str(len(cpus) or 1)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, threads)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(threads))
    set_up_worker(None, own_code=True)


def start_cpu_worker(shared: Shared | None, cpus: frozenset[int]) -> None:
    """What a worker process does first: it depends on the coordinator, and has one thread on any of ``cpus``."""
    follow_parent()
    import torch

    if cpus:  # OpenMP, told to bind threads, has bound this one to the first, as that of every other worker
        os.sched_setaffinity(0, cpus)
    set_up_worker(shared)
    torch.set_num_threads(1)


def set_up_worker(shared: Shared | None, own_code: bool = False) -> None:
    """Make a worker ready to train: the data that the coordinator has read, and memory that it keeps; for one's own
    code, that what a trial began ends with it."""
    global _own_process
    if own_code:
        adopt_orphans()
        _own_process = True
        _spared.update(descendants(os.getpid()))
        gc.freeze()  # what is imported by now need not be looked through
        return
    from ..training import data
    from ..training.fast import engine

    engine.keep_memory()
    if shared is not None:
        data.preload(*shared)
