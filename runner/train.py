"""The reference training loop: plain PyTorch that reads top to bottom. The fast paths are held equal to it."""

from __future__ import annotations

import contextlib
import math
import textwrap
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import data as datasets
from .checkpoint import State
from .data import Dataset, Split, batches, normalised, seed_of
from .document import SpecError, first_line
from .model import build, drawing, has_random_layers
from .schedules import set_lr
from .spec import Train, TrialConfig


class DivergedError(Exception):
    """The loss, in training or after it, became NaN or infinite; ``epoch`` is what was measured until then."""

    def __init__(self, epoch: Epoch) -> None:
        self.epoch = epoch
        super().__init__(epoch)

    def __str__(self) -> str:
        epoch = self.epoch
        return f"the loss became {epoch.train_loss} (validation {epoch.val_loss}) in epoch {epoch.number}"


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training gave. ``lrs`` are the learning rates of its updates, in order."""

    number: int
    lrs: tuple[float, ...]
    train_loss: float
    val_loss: float
    val_accuracy: float
    seconds: float
    test_accuracy: float | None = None
    """After the last epoch of a config that asks for it."""
    state: Callable[[], State] | None = field(default=None, compare=False, repr=False)
    """Until the next epoch is asked for: what ``train`` needs to go on from here."""

    @property
    def lr(self) -> float:
        """The learning rate of the epoch's first update, as the tutorial records it."""
        return self.lrs[0]

    def metrics(self) -> dict[str, float]:
        """The names and values under which an epoch is logged."""
        tested = {} if self.test_accuracy is None else {"test/accuracy": self.test_accuracy}
        return {
            "lr": self.lr,
            "train/loss": self.train_loss,
            "val/loss": self.val_loss,
            "val/accuracy": self.val_accuracy,
            "seconds": self.seconds,
            **tested,
        }


def train(config: TrialConfig, device: torch.device, state: State | None = None) -> Iterator[Epoch]:
    """Train from scratch, yielding after every epoch; or from an epoch's ``state``, yielding what was before again.

    Stop iterating to stop training: nothing runs ahead of the caller. The same config on the same machine gives
    the same numbers; on the CPU bit for bit, taken up again or not.

    Raises:
        DivergedError: the training or the validation loss became NaN or infinite.
        DataError: the data are missing or damaged.
    """
    recipe, schedule = config.train, config.schedule
    dataset = resident(config, device)
    network = build(config.model, dataset.classes, recipe.seed).to(device)
    optimizer = make_optimizer(recipe, list(network.parameters()), schedule.init_lr)
    size = min(recipe.batch_size, len(dataset.train))
    updates = recipe.updates(len(dataset.train))
    total, done = updates * recipe.epochs, epochs_in(state)
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
    yield from done

    def now() -> State:
        return {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "epochs": [*map(asdict, done)]}

    draws = config.model.function is not None or has_random_layers(network)

    def drawn(*purpose: object) -> contextlib.AbstractContextManager[None]:
        return seeded(seed_of(*purpose), device) if draws else contextlib.nullcontext()

    for number in range(len(done), recipe.epochs):
        start, history = time.perf_counter(), [epoch.val_accuracy for epoch in done]
        network.train()
        batch = batches(dataset.train, config.data.augment, recipe.seed, number, size)
        loss_sum, lrs = torch.zeros((), device=device), list[float]()
        with drawn("dropout", recipe.seed, number):
            for i in range(updates):
                factor = schedule.factor(number * updates + i, total, epochs=recipe.epochs, history=history)
                set_lr(optimizer, factor)
                images, labels = batch(i)
                with precision(config, dataset, device):
                    logits = network(normalised(images, dataset.mean, dataset.std))
                    loss = F.cross_entropy(logits, labels.to(device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                loss_sum += loss.detach()  # stays on the device: .item() here would wait for every step
                lrs.append(optimizer.param_groups[0]["lr"])
        train_loss, val_loss, val_accuracy = float(loss_sum) / updates, math.nan, math.nan
        if math.isfinite(train_loss):
            with drawn("validation", recipe.seed, number), precision(config, dataset, device):
                val_loss, val_accuracy = evaluate(network, dataset.val, dataset)
        epoch = Epoch(number, tuple(lrs), train_loss, val_loss, val_accuracy, time.perf_counter() - start)
        if config.test and number + 1 == recipe.epochs:
            with drawn("test", recipe.seed), precision(config, dataset, device):
                epoch = replace(epoch, test_accuracy=evaluate(network, dataset.test, dataset)[1])
        done.append(finished(epoch))
        yield replace(epoch, state=now)


def finished(epoch: Epoch) -> Epoch:
    """The epoch itself.

    Raises:
        DivergedError: a loss is NaN or infinite, be it only after the last update.
    """
    if not (math.isfinite(epoch.train_loss) and math.isfinite(epoch.val_loss)):
        raise DivergedError(replace(epoch, val_accuracy=math.nan, test_accuracy=None))
    return epoch


def epochs_in(state: State | None) -> list[Epoch]:
    """The epochs that a state has behind it."""
    return [Epoch(**epoch) for epoch in state["epochs"]] if state else []


_DRAWING = defaultdict[int, threading.Lock](threading.Lock)  # by GPU


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """What is random has ``seed`` inside, and the caller's own random numbers are as they were after.

    On a CUDA device its own alone: the lanes are threads, and another one may be drawing initial weights on the CPU.
    Lanes of one GPU take turns.
    """
    if device.type != "cuda":
        with drawing(seed):
            yield
        return
    index = numbered(device).index
    own = torch.cuda.default_generators[index]
    with _DRAWING[index]:
        before = own.get_state()
        own.manual_seed(seed)
        try:
            yield
        finally:
            own.set_state(before)


def evaluate(network: nn.Module, split: Split, dataset: Dataset) -> tuple[float, float]:
    """Mean cross-entropy and accuracy on ``split``."""
    network.eval()
    loss, right = measure(network, split, dataset)
    return float(loss) / len(split), float(right) / len(split)


AT_ONCE = 2**22
"""Pixels that are evaluated at once: 512 images up to 90x90, no fewer than 64. They are in a GPU's memory."""


def measure(network: nn.Module, split: Split, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy and right answers on ``split``, still on the device."""
    device = dataset.mean.device
    loss, right = torch.zeros((), device=device), torch.zeros((), device=device)
    several = max(64, min(512, AT_ONCE // math.prod(dataset.size)))
    with torch.inference_mode():
        for images, labels in zip(split.images.split(several), split.labels.split(several), strict=True):
            logits = network(normalised(images, dataset.mean, dataset.std)).float()
            answers = labels.to(device)
            loss += F.cross_entropy(logits, answers, reduction="sum")
            right += (logits.argmax(1) == answers).sum()
    return loss, right


def make_optimizer(
    recipe: Train, parameters: Sequence[nn.Parameter], lr: float | Tensor, fused: bool | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimizer at learning rate ``lr``."""
    both: dict[str, Any] = {"lr": lr, "weight_decay": recipe.weight_decay, "fused": fused}
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, capturable=bool(fused) and parameters[0].is_cuda, **both)
    return torch.optim.SGD(parameters, momentum=recipe.momentum, nesterov=recipe.nesterov, **both)


def precision(config: TrialConfig, data: Dataset, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bf16 autocast where the recipe asks for it or where it helps, else nothing."""
    if uses_bf16(config, data, device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def uses_bf16(config: TrialConfig, dataset: Dataset, device: torch.device) -> bool:
    """auto: on GPUs that compute in bf16, and on CPUs with AMX for images of 16 pixels and more."""
    if config.precision != "auto":
        return config.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or dataset.size[0] < 16:
        return False  # below that, casting eats what the matrix units give
    return bool(torch.cpu._is_amx_tile_supported())


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """On a CPU torch computes with one thread inside, as on a lane."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_RESIDENT: dict[str, tuple[Dataset, Dataset]] = {}
_LOADING = threading.Lock()  # the lanes of a GPU are threads, and share one copy


def resident(config: TrialConfig, device: torch.device) -> Dataset:
    """The trial's data on ``device``; copied there once, and kept while no other data are asked for."""
    loaded = datasets.load(config.data, config.data_dir)
    device = numbered(device)  # one copy, whatever a GPU is called
    with _LOADING:
        kept = _RESIDENT.get(str(device))
        if kept is None or kept[0] is not loaded:
            kept = _RESIDENT[str(device)] = (loaded, loaded.to(device, config.data.augment.pad))
        return kept[1]


def numbered(device: torch.device) -> torch.device:
    """A GPU by its number: ``cuda`` is the current one."""
    current = device.type == "cuda" and device.index is None
    return torch.device("cuda", torch.cuda.current_device()) if current else device


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is CUDA where there is one, then Apple's MPS, then the CPU.

    Raises:
        SpecError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros((), device=device).item()  # meta has no values
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        said = first_line(error).partition(". ")[0]  # torch goes on about its internals
        raise SpecError(f"--device {name}: {textwrap.shorten(said, 120)}; try --device cpu") from None
    return torch.device("cpu") if device.type == "cpu" else device  # which has no numbers
