"""Which engine trains a sweep: one for all of its trials, to be compared. A newcomer may skip this module."""

from __future__ import annotations

import gc
import statistics
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ...files.document import first_line
from ...files.optimizers import OPTIMIZERS
from ...files.trial import Engine, TrialConfig
from ..data import Dataset
from ..device import numbered, one_thread, resident, uses_bf16
from ..model import build, has_random_layers
from . import engine
from .conv import Geometry, alike, can_be_tiled, can_be_unfolded, channels, input_gradient, output, weight_gradient
from .engine import Slot
from .tiles import TiledConv

PAYS = 0.2
"""The share of training time that compiling is taken to save (on one H200 0.34 with one lane, about 0.2 with six)."""
COMPILE_SECONDS = 30.0
WORTH_MEASURING = 2e9
"""Operations of an update below which a CPU stays with plain fp32: too few to be measured, or to matter."""
ENOUGH = 1e11
"""Operations of an update that is measured on a CPU: a second or two."""
FLOPS = 200e12
"""What a GPU is assumed to reach in bf16 when it is asked whether compiling pays."""


def choose(config: TrialConfig, device: torch.device, epochs: int, wanted: str = "auto") -> Engine:
    """The engine for a sweep that trains ``epochs`` in all, of trials like ``config``.

    ``auto`` is the fast one on CPUs and on CUDA, in bf16 or in tiles where the machine computes it faster (on a CPU
    that is measured), compiled on a GPU where the sweep is long enough; the reference elsewhere, for one's own
    networks and random layers, and for data that the device cannot hold."""
    data, device = resident(config, device), numbered(device)  # as a lane calls it: what is compiled keeps the name
    network = build(config.model, data.classes, config.train.seed)
    reason = "" if wanted == "reference" else _obstacle(config, data, network, device)
    if wanted == "reference" or reason:
        return Engine("reference", "bf16" if uses_bf16(config, data, device) else "fp32", reason=reason)
    if device.type == "cpu":
        return _on_a_cpu(config, data, network)
    seconds = epochs * len(data.train) * _flops(network, data) / FLOPS
    if not uses_bf16(config, data, device):
        return Engine("fast", "fp32")  # compiled, nobody has measured that it pays there
    plain, compiled = Engine("fast", "bf16"), Engine("fast", "bf16", compiled=True)
    if seconds * PAYS <= COMPILE_SECONDS:
        return plain
    error = compile_error(replace(config, engine=compiled), device)
    return replace(plain, reason=error) if error else compiled


def obstacle(config: TrialConfig, device: torch.device) -> str:
    """Why the engine with which a study was begun cannot train on this device; nothing where it can."""
    if config.engine.name == "reference":
        return ""
    reason = _of_the_device(resident(config, device), numbered(device))
    return reason or (compile_error(config, device) if config.engine.compiled else "")


def _obstacle(config: TrialConfig, data: Dataset, network: nn.Module, device: torch.device) -> str:
    """Why the fast engine cannot train this; nothing where it can."""
    if reason := _of_the_device(data, device):
        return reason
    if OPTIMIZERS[config.train.optimizer].unused is None:
        return f"the fast engine does not know {config.train.optimizer}"
    if config.model.function is not None:  # what it keeps from one trial to the next is not known
        return "the network is your own"
    return "the network has random layers" if has_random_layers(network) else ""


def _of_the_device(data: Dataset, device: torch.device) -> str:
    """Why the fast engine trains nothing on this device, or not these data."""
    if device.type not in ("cpu", "cuda"):
        return f"the fast engine needs CUDA or a CPU, not {device.type}"
    return "" if data.train.images.device.type == device.type else "the data do not fit into the GPU's memory"


def compile_error(config: TrialConfig, device: torch.device) -> str:
    """That torch's compiler does not take this network, and why, else nothing; the slots of this process find what it
    has made."""
    slot = None
    try:
        slot = Slot(config, device)  # is there until its graph has been replayed
        slot._update()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        return ""  # the lanes say so
    except Exception as error:  # whatever it is, the update goes without
        cause = textwrap.shorten(first_line(error), 100)
        return f"torch cannot compile the network: {type(error).__name__}: {cause}"
    finally:
        slot = None
        gc.collect()  # an error keeps its slot
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the lanes may be other processes
    return ""


def _flops(network: nn.Module, data: Dataset) -> int:
    """Of the forward and the backward pass of one image (the backward pass takes twice the forward's)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, *data.size))
    return int(3 * counter.get_total_flops())


def has_bf16() -> bool:
    """Whether this CPU computes in bf16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@one_thread()
def _on_a_cpu(config: TrialConfig, data: Dataset, network: nn.Module) -> Engine:
    """What one thread is fastest with, measured with a batch, or less of one; a few seconds."""
    fp32, bf16, wanted, able = Engine("fast", "fp32"), Engine("fast", "bf16"), config.precision, has_bf16()
    flops, size = _flops(network, data), min(config.train.batch_size, len(data.train))
    if flops * size < WORTH_MEASURING or (wanted == "bf16" and not able):
        return bf16 if wanted == "bf16" else fp32
    size = min(size, max(2, int(ENOUGH / flops)))
    config = replace(config, train=config.train.model_copy(update={"batch_size": size}))
    engine.keep_memory()
    given = network, data.size, size
    if wanted != "fp32" and able:
        bf16 = replace(bf16, unfolded=worth_unfolding(*given, torch.bfloat16))
    if wanted == "bf16":
        return bf16
    fp32 = replace(fp32, tiled=worth_tiling(*given))  # products save 5 % more in fp32, and take seconds to find
    return bf16 if wanted == "auto" and able and _faster(config, bf16, fp32) else fp32


def _faster(config: TrialConfig, bf16: Engine, fp32: Engine, rounds: int = 4, margin: float = 1.15) -> bool:
    """Whether an update in bf16 takes less time, by ``margin`` at least; half or twice as much is plain at once."""
    slots = [Slot(replace(config, engine=each), torch.device("cpu")) for each in (bf16, fp32)]
    for slot in slots:
        slot.network.train()
    updates = [partial(_first_update, slot) for slot in slots]
    fast, slow = _seconds(updates, 1)
    if fast / 2 < slow < 2 * fast:
        fast, slow = _seconds(updates, rounds)
    return fast * margin < slow


def _first_update(slot: Slot) -> None:
    slot.at.zero_()
    slot.update()


def worth_tiling(network: nn.Module, size: tuple[int, int], images: int, rounds: int = 3, margin: float = 1.1) -> int:
    """The number of channels from which tiles take a thread less time, by ``margin`` at least; 0 for none. Measured
    here, for the 3x3 convolutions that ``compact`` leaves in ``network`` (and it is changed)."""
    saved: dict[int, float] = defaultdict(float)
    for (conv, x, dy), times in alike(network, size, images, torch.float32, can_be_tiled):
        x.requires_grad_()
        plain, tiles = _seconds([partial(_both_ways, module, x, dy) for module in (conv, TiledConv(conv))], rounds)
        saved[channels(conv)] += times * (plain / margin - tiles)
    return _fewest(saved)


def worth_unfolding(
    network: nn.Module, size: tuple[int, int], images: int, dtype: torch.dtype, rounds: int = 3, margin: float = 1.1
) -> tuple[int, int, int]:
    """The sides of an output, in pixels, up to which each pass of a convolution is faster as a product; measured as
    in ``worth_tiling``, for all convolutions that are left."""
    saved: list[dict[int, float]] = [defaultdict(float) for _ in range(3)]
    for (conv, x, dy), times in alike(network, size, images, dtype, can_be_unfolded):
        given = x, conv.weight.detach(), cast("Geometry", (conv.stride, conv.padding))
        passes = partial(output, *given), partial(input_gradient, dy, *given), partial(weight_gradient, dy, *given)
        for compute, of_pass in zip(passes, saved, strict=True):
            if compute.func is input_gradient and conv.in_channels == 3:
                continue  # images, which have no gradient
            plain, product = _seconds([partial(compute, unfold=way) for way in (False, True)], rounds)
            of_pass[-max(dy.shape[2:])] += times * (plain / margin - product)
    of_output, of_input, of_weight = (-_fewest(of_pass) for of_pass in saved)
    return of_output, of_input, of_weight


def _fewest(saved: Mapping[int, float]) -> int:
    """From which key on the seconds that are saved add up to most; 0 where nothing is saved."""
    total = {fewest: sum(s for key, s in saved.items() if key >= fewest) for fewest in saved}
    best = max(total, key=total.__getitem__, default=0)
    return best if best and total[best] > 0 else 0


def _both_ways(module: nn.Module, x: Tensor, dy: Tensor) -> None:
    module(x).backward(dy)


def _seconds(ways: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Of a thread, in turns; the medians after one round to get warm."""
    seen: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds + 1):
        for way, of_way in zip(ways, seen, strict=True):
            start = time.thread_time()
            way()
            of_way.append(time.thread_time() - start)
    return [statistics.median(of_way[1:]) for of_way in seen]
