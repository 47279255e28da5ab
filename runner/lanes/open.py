"""Which lanes a sweep gets: processes on a CPU, threads with slots on GPUs, or actors on a Ray cluster."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from multiprocessing import forkserver, resource_tracker
from typing import TYPE_CHECKING

from ..files.images import affinity, cores
from ..files.trial import Config, OwnConfig, TrialConfig
from .lane import Lanes, out_of_memory
from .process import Context, ProcessExecutor
from .ray import ray_lanes
from .stop import OWN, Stop, signals_blocked
from .worker import Shared, start_cpu_worker, start_own_worker

if TYPE_CHECKING:
    from ..training.checkpoint import Checkpoints


def open_lanes(
    wanted: str,
    device: str,
    most: int,
    ray: str | None = None,
    config: Config | None = None,
    *,
    stop: Stop,
    checkpoints: Checkpoints,
    **resources: float | None,
) -> Lanes:
    """The lanes for ``--lanes``, ``--device`` and ``--ray``.

    Args:
        wanted: a number, or ``auto``: one for each CPU core, as many for each GPU as make it busy, or one for each
            place in the cluster; 0 is one in this very process, with all of its cores, which a debugger can follow.
        device: what ``pick_device`` said; a GPU without a number stands for all GPUs.
        most: no more lanes than this.
        ray: the address of a Ray cluster, ``local``, or None for this machine without Ray.
        config: a trial like all others: workers get its data by value, and a GPU's slots are counted by training it.
        resources: ``num_cpus`` and ``num_gpus`` of each Ray actor.

    Raises:
        SpecError: Ray is not installed or does not answer.
    """

    def number(auto: int) -> int:
        return max(1, min(int(wanted) if wanted != "auto" else auto, most))

    if ray is not None:
        own_code, shared = isinstance(config, OwnConfig), _shared(config)
        return ray_lanes(
            ray, device, number, shared, resources, own_code=own_code, stop=stop, checkpoints=checkpoints
        )
    if wanted == "0":
        return Lanes([device], lambda _: ThreadPoolExecutor(1), stop, checkpoints)
    if isinstance(config, OwnConfig):
        return _own_lanes(device, number, config, stop=stop, checkpoints=checkpoints)
    if device == "cpu":
        context, shared = start_forkserver(), _shared(config)

        def process(_: int) -> Executor:
            return ProcessExecutor(context, start_cpu_worker, shared, affinity())

        return Lanes(["cpu"] * number(cores()), process, stop, checkpoints)
    devices = _gpus() if device == "cuda" else [device]
    warm, note = list[Executor](), ""
    if wanted == "auto" and config is not None and config.engine.name == "fast":
        warm, size = busy_slots(config, devices[0], max(1, most // len(devices)))
        note = f" with {size / 1e6:.0f} MB of weights and optimizer state each"
    n = number(len(devices) * max(1, len(warm)))
    where = [devices[i % len(devices)] for i in range(n)]
    begun = [warm.pop() if warm and gpu == devices[0] else ThreadPoolExecutor(1) for gpu in where]
    return Lanes(where, lambda _: begun.pop(0) if begun else ThreadPoolExecutor(1), stop, checkpoints, note=note)


def _own_lanes(
    device: str, number: Callable[[int], int], config: OwnConfig, *, stop: Stop, checkpoints: Checkpoints
) -> Lanes:
    """Lanes for one's own code: processes, each with its share of the cores, or a GPU that it has for itself."""
    gpu = device.startswith("cuda")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(i) for i in range(len(_gpus()))] if visible is None else visible.split(",")
    if device.startswith("cuda:"):
        gpus = [gpus[int(device.removeprefix("cuda:"))]]
    n = min(number(len(gpus)), len(gpus)) if gpu else number(cores())
    cpus, context = sorted(affinity()), start_forkserver(own=config.train.function is not None)
    where = ["cuda" if gpu else device] * n

    def process(i: int) -> Executor:
        mine = cpus[i % len(cpus) :: n] if cpus else []
        name = f"{OWN}{uuid.uuid4().hex}"
        given = mine, gpus[i] if gpu else None, dict(os.environ)  # which may have changed since the fork server began
        return ProcessExecutor(context, start_own_worker, *given, name=name)

    return Lanes(where, process, stop, checkpoints)


def busy_slots(config: TrialConfig, device: str, most: int, seconds: float = 0.5) -> tuple[list[Executor], int]:
    """The slots that make a device busy: the fewest that train within 3 % of the best total rate; and a slot's bytes.

    1, 2, 3, 4, 6, 8 and 12 slots train for ``seconds``, up to ``most``, to the device's memory, and until three steps
    more have not brought 3 % (two would not do: on one H200 two and three slots of CIFAR-10 were alike, and six
    faster). A slot is given as the thread that has it, warm.
    """
    from ..training.fast import engine

    threads, kept, rates, size = list[Executor](), 0, dict[int, float](), 0
    try:
        for n in [n for n in (1, 2, 3, 4, 6, 8, 12) if n <= most]:
            while len(threads) < n:
                threads.append(ThreadPoolExecutor(1))
                size = threads[-1].submit(engine.warm, config, device).result()
            rates[n] = sum([f.result() for f in [t.submit(engine.rate, config, device, seconds) for t in threads]])
            kept = min(n for n, rate in rates.items() if rate >= 0.97 * max(rates.values()))
            if len(rates) > 3 and max(rates.values()) < 1.03 * max(list(rates.values())[:-3]):
                break
    except RuntimeError as error:
        if not (rates or out_of_memory(error)):  # its libraries have many words for that
            raise
        # as many as fitted, then
    finally:
        for thread in threads[kept:]:
            thread.shutdown()
        gc.collect()  # their slots make room
    return threads[:kept], size


def start_forkserver(own: bool | None = None) -> Context:
    """Begin the process that workers on a CPU are copied from: it imports what they need, once and in good time: that
    of our own trainer, of a user's function (``own``), or next to nothing.

    Where the system's libraries do not bear that, as on macOS, every worker is begun anew.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    modules = ["runner.lanes.lane", "runner.results.terminal"]
    if own is not False:
        modules += ["torch", "numpy"] if own else ["torchvision", "runner.training.fast.engine"]
    context.set_forkserver_preload(modules)
    resource_tracker.ensure_running()  # which would let the signals through
    with signals_blocked():
        forkserver.ensure_running()
    return context


def _shared(config: Config | None) -> Shared | None:
    from ..training import data

    if not isinstance(config, TrialConfig):
        return None
    return config.data, config.data_dir, data.load(config.data, config.data_dir).to_arrays()


def _gpus() -> list[str]:
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
