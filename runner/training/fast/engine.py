"""The fast engine: the same training as ``train``, near what the hardware can do. A newcomer may skip this module.

Weights, gradients and optimizer state of a ``Slot`` are flat buffers that never move, its data and tables lie on the
device, and the learning rate is a number in its memory. So on a GPU a whole update is one CUDA graph, captured once;
a new trial copies its initial weights and writes other learning rates. On a CPU one thread calls the same update.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...files.optimizers import OPTIMIZERS
from ...files.sweep_file import ACCURACY, Model
from ...files.trial import Engine, TrialConfig
from .. import loop as reference
from ..checkpoint import State
from ..data import Split, Tables, augmented, normalised, padded
from ..device import numbered, resident, uses_bf16
from ..loop import Epoch, epochs_in, judged, make_epoch, make_optimizer, measure, scores
from ..model import build
from .conv import LiveConv, Size, compact
from .tiles import TiledConv

# CUDA reads it when it starts: all slots' graphs share 8 queues, and wait for one another there, unless more are
# asked for (eight slots of the unmodified network on an H200: 8 % more images per second with 32).
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")

_CAPTURE = threading.Lock()  # one graph at a time
_SLOTS = WeakSet["Slot"]()
"""Those that have a stream. Not the streams: in torch 2.11 a weak reference to one outlives it, and Python, when it
ends, dies of that (pytorch/pytorch#183403)."""


def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for a slot alone: graphs of one stream share cuBLAS's workspace, and what another slot begins on it would
    be captured with this one's. torch has 32, which it gives out in turns."""
    taken = {slot.stream for slot in _SLOTS}
    for _ in range(64):
        stream = torch.cuda.Stream(device)
        if stream not in taken:
            return stream
    raise RuntimeError("no stream is left for another slot: at most 32 of them train on a GPU; lower --lanes")


class Slot:
    """Room for one trial at a time on ``device``, for all trials of a sweep; raises torch.OutOfMemoryError where no
    other one fits."""

    def __init__(self, config: TrialConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        recipe, data, device = config.train, resident(config, device), numbered(device)
        self.config, self.device, self.dtype = config, device, dtype
        self.dataset = replace(data, mean=data.mean.to(dtype), std=data.std.to(dtype))
        self.bf16 = uses_bf16(config, data, device)
        self.size = min(recipe.batch_size, len(data.train))
        self.updates = recipe.updates(len(data.train))
        self._source = (config.model, data.classes, data.size, config.engine, device, dtype)
        self.network = _network(*self._source, recipe.seed)
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.num_batches_tracked = None  # twenty tiny additions per update, for a number we know
        self._flatten()
        exact = torch.float64 if device.type == "cpu" else torch.float32  # what torch's fused kernels read
        self.lr = torch.zeros((), device=device, dtype=exact)
        self.lrs = torch.zeros(self.updates, device=device, dtype=exact)
        self.optimizer = make_optimizer(recipe, [self.weights], self.lr, fused=True)
        self.padded = padded(self.dataset.train.images, config.data.augment.pad)  # a graph keeps its address
        self.tables = Tables.draw(len(data.train), config.data.augment, 0, 0).to(device)
        self.at, self.range = (torch.arange(n, device=device) for n in (1, self.size))
        self.loss = torch.zeros((), device=device, dtype=dtype)
        sums = [metric for metric in config.objective.measured.values() if metric.total]
        self.val = torch.zeros(len(sums), device=device)
        self.logits: Tensor | None = None
        self.unused, self.seed, self.trained = (1.0, 0.0), recipe.seed, 0
        self.owner: object = None
        self.network.train()  # a graph keeps the mode in which it was captured
        self._update = self._ready(self.update)
        self.network.eval()
        self._evaluate = self._ready(self.evaluate)

    def _flatten(self) -> None:
        """Put all parameters into one buffer, each with the strides it has; those that compute in bf16 come first."""
        named = {name: weight.detach().clone() for name, weight in self.network.named_parameters()}  # without gaps
        kinds = (nn.Conv2d, nn.Linear, LiveConv)
        modules = self.network.named_modules() if self.bf16 else ()
        cast_names = {f"{name}.weight" for name, module in modules if isinstance(module, kinds)} & named.keys()
        self.names = sorted(named, key=lambda name: name not in cast_names)  # stable: the order is the network's
        ordered = [named[name] for name in self.names]
        self.weights = nn.Parameter(torch.cat([w.as_strided((w.numel(),), (1,)) for w in ordered]))  # as they lie
        self.weights.grad = torch.zeros_like(self.weights)
        n = len(cast_names)
        self.alike = [s for s in (slice(n), slice(n, None)) if self.names[s]]  # of one type, copied at once
        self.master = self.weights.data[: len(self.weights) if cast_names else 0]  # with the few that are not cast
        self.shadow = self.master.bfloat16()
        self.leaves: list[Tensor] = []
        self.gradients: list[Tensor] = []
        start = 0
        for name, like in zip(self.names, ordered, strict=True):
            flat = self.shadow if name in cast_names else self.weights.data
            leaf = nn.Parameter(flat.as_strided(like.shape, like.stride(), start))
            module, _, attribute = name.rpartition(".")
            setattr(self.network.get_submodule(module), attribute, leaf)
            self.leaves.append(leaf)
            self.gradients.append(self.weights.grad.as_strided(like.shape, like.stride(), start))
            start += like.numel()

    def _ready(self, function: Callable[[], None]) -> Callable[[], None]:
        """``function`` itself on a CPU; on a GPU the replay of its graph."""
        if self.device.type != "cuda":
            if function == self.update:  # the optimizer makes its state in its first step
                self.optimizer.step()
            return function
        if not hasattr(self, "stream"):
            with _CAPTURE:
                self.stream = _stream(self.device)
                _SLOTS.add(self)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))  # which has made the buffers
        with _CAPTURE, torch.cuda.stream(self.stream):
            for _ in range(3):  # lazy initialisation, and the optimizer's state
                function()
                self.at.zero_()
            self.stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            gc.disable()  # a graph that is freed during a capture ends it
            try:
                with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                    function()
            finally:
                gc.enable()
        return graph.replay

    def update(self) -> None:
        """One update: gather and augment, forward, backward, optimizer."""
        loss, lr = (_compiled() if self.config.engine.compiled else Slot._forward)(self)
        gradients = torch.autograd.grad(loss, self.leaves)
        for several in self.alike:
            torch._foreach_copy_(self.gradients[several], gradients[several])
        self.lr.copy_(lr.squeeze(0))
        self.optimizer.step()
        self.shadow.copy_(self.master)
        self.loss.add_(loss.detach())
        self.at.add_(1)

    def _forward(self) -> tuple[Tensor, Tensor]:
        """The loss of update ``at``, and its learning rate: read here, it costs nothing."""
        position = self.at * self.size + self.range
        index, dy, dx, flip = (t.index_select(0, position) for t in self.tables)
        images = augmented(self.padded, index, dy, dx, flip, self.config.data.augment.pad)
        inputs = normalised(images, self.dataset.mean, self.dataset.std)
        with self._precision():
            loss = F.cross_entropy(self.network(inputs), self.dataset.train.labels.index_select(0, index))
        return loss, self.lrs.index_select(0, self.at)

    def evaluate(self) -> None:
        """What is measured on the validation split: sums into ``val``; ``logits`` are a graph's own, and stay."""
        with self._precision():
            totals, self.logits = measure(self.network, self.dataset.val, self.dataset, self.config.objective)
        self.val.copy_(totals)

    def _precision(self) -> torch.autocast | nullcontext[None]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def reset(self, seed: int) -> None:
        """Forget the last trial: the initial weights of ``seed``, and an optimizer that has seen nothing."""
        initial = _initial(*self._source, seed)
        self.seed, self.trained, self.unused = seed, 0, (1.0, 0.0)
        if self.device.type == "cuda":
            self.stream.wait_stream(torch.cuda.current_stream(self.device))  # which has made the initial weights
        with self._on_stream(), torch.no_grad():
            for leaf, name in zip(self._views(self.weights.data), self.names, strict=True):
                leaf.copy_(initial[name])
            self.shadow.copy_(self.master)
            for name, buffer in self.network.named_buffers():
                buffer.copy_(initial[name])
            for state in self.optimizer.state.values():
                for tensor in state.values():
                    tensor.zero_()
        if self.device.type == "cuda":  # nobody takes the memory of the initial weights before they are read
            torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def state(self) -> dict[str, Any]:
        """What ``load_state`` needs, with its tensors on the CPU."""
        with self._on_stream():
            return {
                "layout": self.layout,
                "weights": self.weights.detach().cpu(),
                "buffers": {name: buffer.cpu() for name, buffer in self.network.named_buffers()},
                "optimizer": [{k: t.cpu() for k, t in state.items()} for state in self.optimizer.state.values()],
                "dead": self.unused,  # as older checkpoints call it
                "trained": self.trained,
            }

    def load_state(self, state: State) -> None:
        """Be as ``state`` says; ``reset`` comes first."""
        self.trained, self.unused = state["trained"], state["dead"]
        with self._on_stream(), torch.no_grad():
            self.weights.copy_(state["weights"])
            self.shadow.copy_(self.master)
            for name, buffer in self.network.named_buffers():
                buffer.copy_(state["buffers"][name])
            for mine, other in zip(self.optimizer.state.values(), state["optimizer"], strict=True):
                for name, tensor in mine.items():
                    tensor.copy_(other[name])

    def epoch(self, number: int, lrs: Sequence[float]) -> tuple[float, dict[str, float]]:
        """Train one epoch at these rates; the mean training loss, and the metrics on the validation split."""
        drawn = Tables.draw(len(self.dataset.train), self.config.data.augment, self.seed, number)
        with self._on_stream():
            for table, new in zip(self.tables, drawn, strict=True):
                table.copy_(new)
            self.lrs.copy_(torch.tensor(lrs, dtype=self.lrs.dtype))
            self.at.zero_()
            self.loss.zero_()
            self.network.train()
            for _ in range(self.updates):
                self._update()
            self.network.eval()
            self._evaluate()
        if self.device.type == "cuda":
            done = torch.cuda.Event(blocking=True)
            done.record(self.stream)
            done.synchronize()  # the other slots' threads go on
        self.trained += self.updates
        unused, options = OPTIMIZERS[self.config.train.optimizer].unused, self.config.train.model_dump()
        assert unused is not None  # ``choice`` asks for it
        for lr in lrs:  # the optimizer's recurrence in (weight, momentum), for weights without a gradient
            self.unused = unused(options, lr, *self.unused)
        val = scores(self.val, self.logits, self.dataset.val.labels, self.config.objective)
        return float(self.loss) / self.updates, val

    def accuracy(self, split: Split) -> float:
        """Of the weights as they are, on any split; no graph, for what is asked once a trial."""
        self.network.eval()
        with self._on_stream(), self._precision():
            measured = measure(self.network, split, self.dataset, ACCURACY)
            return scores(*measured, split.labels, ACCURACY)["accuracy"]

    def rate(self, seconds: float) -> float:
        """Updates per second, measured for so long; the weights are no trial's afterwards."""
        self.network.train()
        start, done, several = time.perf_counter(), 0, 1
        while (passed := time.perf_counter() - start) < seconds:
            with self._on_stream():
                self.at.zero_()
                for _ in range(several):
                    self._update()
            done += several
            if self.device.type == "cuda":
                self.stream.synchronize()
            if time.perf_counter() - start < passed + 0.02:  # so little that waiting for it is a part of it
                several = min(2 * several, self.updates)
        return done / (time.perf_counter() - start)

    def _on_stream(self) -> torch.cuda.StreamContext | nullcontext[None]:
        return torch.cuda.stream(self.stream) if self.device.type == "cuda" else nullcontext()

    @property
    def layout(self) -> str:
        """Which parameter lies where in the flat buffers."""
        return str([(n, [*g.shape], g.stride()) for n, g in zip(self.names, self.gradients, strict=True)])

    def _views(self, flat: Tensor) -> list[Tensor]:
        """What a flat buffer has of each parameter."""
        return [flat.as_strided(g.shape, g.stride(), g.storage_offset()) for g in self.gradients]

    def state_dict(self) -> dict[str, Tensor]:
        """The weights as torchvision's own network has them, dead taps included."""
        state = build(self.config.model, self.dataset.classes, self.seed).to(self.dtype).state_dict()
        modules = dict(self.network.named_modules())
        weights = zip(self.names, self._views(self.weights.data), strict=True)
        trained = dict(weights) | dict(self.network.named_buffers())
        for name, tensor in state.items():
            module = modules[name.rpartition(".")[0]]
            if name.endswith("num_batches_tracked"):
                tensor.fill_(self.trained)
            elif isinstance(module, (LiveConv, TiledConv)):
                tensor.mul_(self.unused[0])
                tensor.flatten(2)[:, :, module.live] = trained[name].permute(2, 1, 0).to(tensor.device)
            else:
                tensor.copy_(trained[name])
        return state

    @property
    def bytes(self) -> int:
        """Weights and optimizer state; what the activations need depends on the batch."""
        states = [t for state in self.optimizer.state.values() for t in state.values()]
        return sum(t.nbytes for t in (self.weights, *states))


@lru_cache(maxsize=1)
def _compiled() -> Callable[[Slot], tuple[Tensor, Tensor]]:
    """``Slot._forward``, compiled once for all slots; a method that a slot kept of its own would keep the slot."""
    return torch.compile(Slot._forward, dynamic=False, options={"combo_kernels": True})


def _network(
    model: Model, classes: int, size: Size, engine: Engine, device: torch.device, dtype: torch.dtype, seed: int
) -> nn.Module:
    """A network with the weights of ``seed``, whose convolutions take less time on this device."""
    network, cpu = build(model, classes, seed).to(dtype), device.type == "cpu"
    # on a GPU one matrix product pays for a single pixel alone
    faster: dict[str, Any] = {"tiled": engine.tiled, "unfolded": engine.unfolded} if cpu else {"few": 1}
    network = compact(network, *size, **faster)
    if cpu and engine.precision == "bf16" and model.function is None:
        for module in network.modules():
            if isinstance(module, nn.ReLU):  # in place, CIFAR-10 takes 4 % longer with AMX; not measured elsewhere
                module.inplace = False
    return network.to(device)


@lru_cache(maxsize=8)
def _initial(*source: Any) -> dict[str, Tensor]:
    """The parameters and buffers of that network; a sweep begins every trial with the same."""
    network = _network(*source)
    return dict(network.named_parameters()) | dict(network.named_buffers())


_local = threading.local()


def train(config: TrialConfig, device: torch.device, state: State | None = None) -> Iterator[Epoch]:
    """What ``loop.train`` does, in this thread's slot: the same numbers but for the order of sums, and errors."""
    recipe, schedule = config.train, config.schedule
    slot = slot_of(config, device)
    owner = slot.owner = object()
    slot.reset(recipe.seed)
    if state is not None and state.get("layout") != slot.layout:
        state = None  # of another kind of device, where other convolutions are products: the trial begins again
    total, done = slot.updates * recipe.epochs, epochs_in(state)
    if state is not None:
        slot.load_state(state)
    yield from done
    for number in range(len(done), recipe.epochs):
        if slot.owner is not owner:
            raise RuntimeError("another trial has begun in this thread's slot")
        start, history = time.perf_counter(), judged(done, config.objective)
        updates = range(number * slot.updates, (number + 1) * slot.updates)
        lrs = tuple(schedule.lr(t, total, epochs=recipe.epochs, history=history) for t in updates)
        epoch = make_epoch(number, lrs, *slot.epoch(number, lrs), time.perf_counter() - start)
        if config.test and number + 1 == recipe.epochs:
            epoch = replace(epoch, test_accuracy=slot.accuracy(slot.dataset.test))
        done.append(epoch)
        yield replace(epoch, state=lambda: slot.state() | {"epochs": [*map(asdict, done)]})


def weights(config: TrialConfig, state: Callable[[], State]) -> dict[str, Tensor]:
    """The weights that this thread's training has come to, as torchvision's own network has them, on the CPU;
    ``state``: what it gave with its last epoch."""
    found = _local.slot.state_dict() if config.engine.name == "fast" else state()["network"]
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}


def slot_of(config: TrialConfig, device: torch.device) -> Slot:
    """This thread's slot; a new one where the sweep is another."""
    recipe = config.train.model_copy(update={"seed": 0, "epochs": 1})  # what a trial may have of its own
    key = (config.data, config.data_dir, config.model, recipe, config.engine, config.objective, device)
    if getattr(_local, "key", None) != key:
        _local.key = _local.slot = None  # let go of the last one first
        with _CAPTURE:  # not while another slot is being captured
            gc.collect()
        _local.slot, _local.key = Slot(config, device), key
    return cast("Slot", _local.slot)


def drop_slot() -> None:
    """Let go of this thread's slot."""
    _local.__dict__.clear()


def warm(config: TrialConfig, device: str) -> int:
    """Make this thread's slot; its bytes of weights and optimizer state."""
    return slot_of(config, torch.device(device)).bytes


def rate(config: TrialConfig, device: str, seconds: float) -> float:
    """Updates per second of this thread's slot."""
    return slot_of(config, torch.device(device)).rate(seconds)


def keep_memory() -> None:
    """Have glibc keep what is freed: an update frees all it took, and taking it anew is a twentieth of its time."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((-4, 0), (-1, -1), (-2, 2**26)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            libc.mallopt(option, value)


def train_function(config: TrialConfig) -> Callable[..., Iterator[Epoch]]:
    """The training loop of a config's engine."""
    return train if config.engine.name == "fast" else reference.train
