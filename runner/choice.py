"""Which engine trains a sweep: one for all of its trials, to be compared. A newcomer may skip this module."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import random
import statistics
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import FunctionType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from . import engine, train
from .checkpoint import State
from .conv import (
    Geometry,
    Size,
    can_be_tiled,
    can_be_unfolded,
    channels,
    compact,
    convolutions,
    input_gradient,
    output,
    weight_gradient,
)
from .data import Dataset, Split, adopt, normalised
from .document import first_line
from .engine import Slot
from .model import build, has_random_layers
from .schedules import load
from .spec import Engine, TrialConfig
from .tiles import TiledConv
from .train import numbered, resident, uses_bf16

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
    """The engine for a sweep that trains ``epochs`` in all, of trials like ``config``: one for all, to be compared.

    ``auto`` is the fast one on CPUs and on CUDA, in bf16 or in tiles where the machine computes it faster (on a CPU
    that is measured), compiled on a GPU where the sweep is long enough; the reference elsewhere, for networks that a
    slot does not train as they are, and for data that the device cannot hold.
    """
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
    data, device, own = resident(config, device), numbered(device), config.model.function is not None
    reason = _of_the_device(data, device)
    if own and not reason:
        reason = _of_a_capture(config, data, build(config.model, data.classes, config.train.seed))
    return reason or (compile_error(config, device) if config.engine.compiled else "")


def _obstacle(config: TrialConfig, data: Dataset, network: nn.Module, device: torch.device) -> str:
    """Why the fast engine cannot train this; nothing where it can."""
    if reason := _of_the_device(data, device):
        return reason
    if config.model.function is None:
        return "the network has random layers" if has_random_layers(network) else ""
    return _of_ones_own(config, data, network) or _of_a_capture(config, data, network)


def _of_the_device(data: Dataset, device: torch.device) -> str:
    """Why the fast engine trains nothing on this device, or not these data."""
    if device.type not in ("cpu", "cuda"):
        return f"the fast engine needs CUDA or a CPU, not {device.type}"
    return "" if data.train.images.device.type == device.type else "the data do not fit into the GPU's memory"


@train.one_thread()  # sums in one order: what is the same is so to the last digit
def _of_ones_own(config: TrialConfig, data: Dataset, network: nn.Module) -> str:
    """Why a slot does not train this network as the plain loop does, and does it again; both are tried.

    It does not where the network draws random numbers, where weights are frozen, shared or not used, where hooks
    change what is trained, where more than weights and buffers is kept from one trial to the next (a counter), and
    where the network asks more of its modules than to be called.
    """
    few, where, cpu = Split(data.train.images[:4], data.train.labels[:4]), "a few", torch.device("cpu")
    adopt(config.data, where, replace(data, train=few, val=few, test=few).to(cpu).by_value())
    plainly = {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "batch_size": max(2, len(few) // 2)}
    recipe = config.train.model_copy(update=plainly)
    schedule, whole = load({"type": "constant", "init_lr": 0.05}), (max(data.size),) * 3
    fast, rough = Engine("fast", "fp32", tiled=1, unfolded=whole), Engine("fast", "bf16", unfolded=whole)
    device = data.train.images.device
    measured = device.type == "cpu" and config.precision == "auto" and has_bf16()
    in_bf16 = measured or uses_bf16(config, data, device)
    config = TrialConfig(config.data, config.model, recipe, schedule, where, fast)
    initial = network.state_dict()
    try:
        expected = cast("Callable[[], State]", next(train.train(config, cpu)).state)()["network"]
        slot = engine.slot_of(config, cpu)
        kept, drawn, passes = _kept(slot.network), _drawn(), list[list[bytes]]()
        for _ in range(2):
            epoch, state = next(engine.train(config, cpu)), slot.state()
            losses = torch.tensor([epoch.train_loss, epoch.val_loss])
            passes.append([_bytes(t) for t in (losses, state["weights"], *state["buffers"].values())])
        if _drawn() != drawn:
            return "the network draws random numbers"
        if _kept(slot.network) != kept or passes[0] != passes[1]:
            return "the network keeps more than its weights and buffers"
        trained = slot.state_dict()
        for name, after in expected.items():
            before, after, now = (t.double().flatten() for t in (initial[name], after, trained[name]))
            moved, off = ((t - after).abs().max() for t in (before, now)) if len(now) else (0.0, 0.0)
            if off > 0.05 * moved + 1e-5:
                return f"the fast engine trains {name} otherwise"
        if in_bf16:
            next(engine.train(replace(config, engine=rough), cpu))
    except Exception as error:  # whatever it is, the plain loop does without, or says so
        return f"the fast engine cannot train the network: {_said(error)}"
    finally:
        engine.forget()
    return ""


def _drawn() -> bytes:
    """Where the random numbers are that anybody may draw."""
    return pickle.dumps((_bytes(torch.get_rng_state()), np.random.get_state(), random.getstate()))


def _kept(network: nn.Module) -> list[object]:
    """What its modules have beside their weights, buffers and mode, with their functions' closures: a slot does not
    begin it anew."""
    begun = {"_parameters", "_buffers", "_modules", "training"}
    known = {id(thing) for thing in [*network.modules(), *network.parameters(), *network.buffers()]}

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: object) -> int | None:
            return id(thing) if id(thing) in known else None

        def reducer_override(self, thing: object) -> Any:
            if isinstance(thing, Tensor):
                return str, (_bytes(thing), thing.shape, str(thing.dtype))
            if isinstance(thing, FunctionType):
                cells = [cell.cell_contents for cell in thing.__closure__ or ()]
                return str, (id(thing.__code__), cells, thing.__defaults__, thing.__kwdefaults__, vars(thing))
            return NotImplemented

    def pickled(value: object) -> object:
        into = io.BytesIO()
        try:
            Pickler(into).dump(value)
        except Exception:  # a lock, a module, what knows itself: two passes judge what they cannot say
            return id(value)
        return into.getvalue()

    return [pickled(value) for m in network.modules() for name, value in vars(m).items() if name not in begun]


def _bytes(tensor: Tensor) -> bytes:
    """Its values: torch pickles an address with them."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _of_a_capture(config: TrialConfig, data: Dataset, network: nn.Module) -> str:
    """Why a pass of one's own network cannot be in a graph: it waits for the GPU. It is tried, in both modes."""
    device = data.train.images.device
    if device.type != "cuda":
        return ""
    mode = torch.cuda.get_sync_debug_mode()
    try:
        there, images = copy.deepcopy(network).to(device), normalised(data.train.images[:8], data.mean, data.std)
        torch.cuda.set_sync_debug_mode("error")
        with train.precision(config, data, device):
            there.train()(images).sum().backward()
            with torch.inference_mode():
                there.eval()(images)
    except torch.OutOfMemoryError:
        return ""  # the lanes say so
    except Exception:  # whatever it is, the plain loop does without, or says so
        return "the network waits for the GPU"
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return ""


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
        return f"torch cannot compile the network: {_said(error)}"
    finally:
        slot = None
        gc.collect()  # an error keeps its slot
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the lanes may be other processes
    return ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {textwrap.shorten(first_line(error), 100)}"


def _flops(network: nn.Module, data: Dataset) -> int:
    """Of the forward and the backward pass of one image (the backward pass takes twice the forward's)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, *data.size))
    return int(3 * counter.get_total_flops())


def has_bf16() -> bool:
    """Whether this CPU computes in bf16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@train.one_thread()
def _on_a_cpu(config: TrialConfig, data: Dataset, network: nn.Module) -> Engine:
    """What one thread is fastest with, measured with a batch, or less of one; a few seconds."""
    exact, rough, wanted, able = Engine("fast", "fp32"), Engine("fast", "bf16"), config.precision, has_bf16()
    flops, size = _flops(network, data), min(config.train.batch_size, len(data.train))
    if flops * size < WORTH_MEASURING or (wanted == "bf16" and not able):
        return rough if wanted == "bf16" else exact
    size = min(size, max(2, int(ENOUGH / flops)))
    config = replace(config, train=config.train.model_copy(update={"batch_size": size}))
    engine.keep_memory()
    given = network, data.size, size
    if wanted != "fp32" and able:
        rough = replace(rough, unfolded=worth_unfolding(*given, torch.bfloat16))
    if wanted == "bf16":
        return rough
    exact = replace(exact, tiled=worth_tiling(*given))
    compact(network, *data.size, exact.tiled)
    exact = replace(exact, unfolded=worth_unfolding(*given, torch.float32))
    return rough if wanted == "auto" and able and _faster(config, rough, exact) else exact


def _faster(config: TrialConfig, rough: Engine, exact: Engine, rounds: int = 4, margin: float = 1.15) -> bool:
    """Whether an update in bf16 takes less time, by ``margin`` at least; half or twice as much is plain at once."""
    slots = [Slot(replace(config, engine=each), torch.device("cpu")) for each in (rough, exact)]
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


# --------------------------------------------------------------------------------------
# Which convolutions, measured on this machine.


def worth_tiling(network: nn.Module, size: Size, images: int, rounds: int = 3, margin: float = 1.1) -> int:
    """The number of channels from which tiles take a thread less time, by ``margin`` at least; 0 for none.

    Measured on this machine, for the 3x3 convolutions that ``compact`` leaves in ``network`` (and it is changed).
    """
    saved: dict[int, float] = defaultdict(float)
    for (conv, x, dy), times in _alike(network, size, images, torch.float32, can_be_tiled):
        x.requires_grad_()
        plain, tiles = _seconds([partial(_both_ways, module, x, dy) for module in (conv, TiledConv(conv))], rounds)
        saved[channels(conv)] += times * (plain / margin - tiles)
    return _fewest(saved)


def worth_unfolding(
    network: nn.Module, size: Size, images: int, dtype: torch.dtype, rounds: int = 3, margin: float = 1.1
) -> tuple[int, int, int]:
    """The sides of an output, in pixels, up to which each pass of a convolution is faster as a product.

    As ``worth_tiling``, for all convolutions that are left.
    """
    saved: list[dict[int, float]] = [defaultdict(float) for _ in range(3)]
    for (conv, x, dy), times in _alike(network, size, images, dtype, can_be_unfolded):
        given = x, conv.weight.detach(), cast("Geometry", (conv.stride, conv.padding))
        passes = partial(output, *given), partial(input_gradient, dy, *given), partial(weight_gradient, dy, *given)
        for compute, of_pass in zip(passes, saved, strict=True):
            if compute.func is not weight_gradient and dtype is torch.float32:
                continue  # the others gain so little there that every sweep would find something else
            if compute.func is input_gradient and conv.in_channels == 3:
                continue  # images, which have no gradient
            plain, product = _seconds([partial(compute, unfold=way) for way in (False, True)], rounds)
            of_pass[-max(dy.shape[2:])] += times * (plain / margin - product)
    of_output, of_input, of_weight = (-_fewest(of_pass) for of_pass in saved)
    return of_output, of_input, of_weight


def _alike(
    network: nn.Module, size: Size, images: int, dtype: torch.dtype, wanted: Callable[[nn.Conv2d], bool]
) -> Iterator[tuple[tuple[nn.Conv2d, Tensor, Tensor], int]]:
    """One convolution of each kind that ``compact`` leaves in a network, something that goes into it and a gradient
    of what comes out; and how many there are."""
    compact(network, *size)
    kinds: dict[tuple[object, ...], list[tuple[nn.Conv2d, Size]]] = defaultdict(list)
    for conv, where in convolutions(network, *size).values():
        if wanted(conv):
            kinds[conv.weight.shape, conv.stride, conv.padding, where].append((conv, where))
    for alike in kinds.values():
        conv, where = alike[0]
        conv = copy.deepcopy(conv).to(dtype).to(memory_format=torch.channels_last)
        x = torch.randn(images, conv.in_channels, *where, dtype=dtype).to(memory_format=torch.channels_last)
        yield (conv, x, torch.randn_like(conv(x).detach())), len(alike)


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
