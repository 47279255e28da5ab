"""On the lane: each has one thread (of some process), and that thread has one trial."""

from __future__ import annotations

import copy
import os
import threading
import traceback
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..files.document import first_line
from ..files.sweep_file import Data
from ..files.trial import TrialConfig
from ..training import checkpoint
from .stop import follow_parent

if TYPE_CHECKING:
    from ..training.loop import Epoch

_local = threading.local()  # epochs: the trial's generator; config; state: how to get what ``train`` needs to go on
Shared = tuple[Data, str, Mapping[str, Any]]
"""The data that the coordinator has read: what ``data.preload`` takes, so that no worker reads them again."""


def begin(config: TrialConfig, device: str, packed: bytes | None = None) -> Epoch:
    """Begin a trial, perhaps from a checkpoint, and train its first epoch; the one before is forgotten."""
    import torch

    from ..training.fast import engine

    _local.epochs = _local.state = None  # let go of the last trial before the next one takes memory
    _local.config, state = config, checkpoint.unpack(packed, config) if packed else None
    _local.epochs = engine.train_function(config)(config, torch.device(device), state)
    return advance()


def advance() -> Epoch:
    """Train the next epoch."""
    try:
        epoch: Epoch = next(_local.epochs)
    except Exception as error:
        at: BaseException | None = error
        while at is not None:
            traceback.clear_frames(at.__traceback__)  # which have the slot, and what it was computing
            at = at.__context__
        try:
            copy.copy(error)
        except Exception:  # one that cannot be built again would end the pool that carries it to the coordinator
            raise RuntimeError(f"{type(error).__name__}: {first_line(error)}") from error
        raise
    _local.state = epoch.state or _local.state
    return replace(epoch, state=None)


def save() -> bytes | None:
    """The trial's state after its last epoch, packed; None where it has been yielding what a checkpoint had."""
    return checkpoint.pack(_local.config, _local.state()) if _local.state else None


def start_cpu_worker(shared: Shared | None, cpus: frozenset[int]) -> None:
    """What a worker process does first: it depends on the coordinator, and has one thread on any of ``cpus``."""
    follow_parent()
    import torch

    if cpus:  # OpenMP, told to bind threads, has bound this one to the first, as that of every other worker
        os.sched_setaffinity(0, cpus)
    set_up_worker(shared)
    torch.set_num_threads(1)


def set_up_worker(shared: Shared | None) -> None:
    """Make a worker ready to train: the data that the coordinator has read, and memory that it keeps."""
    from ..training import data
    from ..training.fast import engine

    engine.keep_memory()
    if shared is not None:
        data.preload(*shared)
