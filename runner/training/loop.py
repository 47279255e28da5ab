"""The reference training loop: plain PyTorch that reads top to bottom. The fast paths are held equal to it."""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..files.metrics import ALWAYS
from ..files.optimizers import OPTIMIZERS
from ..files.sweep_file import ACCURACY, Objective, Train
from ..files.trial import DivergedError, TrialConfig
from ..schedules.schedule import set_lr
from .checkpoint import State
from .data import Dataset, Split, batches, normalised, seed_of
from .device import precision, resident, seeded
from .model import build, has_random_layers


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
    others: Mapping[str, float] = field(default_factory=dict)
    """On the validation split, by name: the objective's metric, where it is neither loss nor accuracy."""
    state: Callable[[], State] | None = field(default=None, compare=False, repr=False)
    """Until the next epoch is asked for: what ``train`` needs to go on from here."""

    @property
    def lr(self) -> float:
        """The learning rate of the epoch's first update, as the tutorial records it."""
        return self.lrs[0]

    keep = False
    """Whether its state is to be kept at once."""

    def facts(self) -> dict[str, Any]:
        """What else is put on record of its trial."""
        return {}

    def metrics(self) -> dict[str, float]:
        """The names and values under which an epoch is logged."""
        tested = {} if self.test_accuracy is None else {"test/accuracy": self.test_accuracy}
        found = {"lr": self.lr, "train/loss": self.train_loss, "val/loss": self.val_loss}
        found |= {"val/accuracy": self.val_accuracy} | {f"val/{name}": value for name, value in self.others.items()}
        return found | {"seconds": self.seconds} | tested


def train(config: TrialConfig, device: torch.device, state: State | None = None) -> Iterator[Epoch]:
    """Train from scratch, yielding after every epoch; or from an epoch's ``state``, yielding what was before again.

    Stop iterating to stop training: nothing runs ahead of the caller. The same config on the same machine gives the
    same numbers; on the CPU bit for bit, taken up again or not. Raises DivergedError where the training or the
    validation loss became NaN or infinite, DataError where the data are missing or damaged."""
    recipe, schedule = config.train, config.schedule
    dataset = resident(config, device)
    network = build(config.model, dataset.classes, recipe.seed).to(device)
    optimizer = make_optimizer(recipe, list(network.parameters()), schedule.init_lr)
    size, updates = min(recipe.batch_size, len(dataset.train)), recipe.updates(len(dataset.train))
    total, done = updates * recipe.epochs, epochs_in(state)
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
    yield from done

    def now() -> State:
        return {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "epochs": [*map(asdict, done)]}

    draws = config.model.function is not None or has_random_layers(network)

    def seeded_draws(*purpose: object) -> contextlib.AbstractContextManager[None]:
        return seeded(seed_of(*purpose), device) if draws else contextlib.nullcontext()

    for number in range(len(done), recipe.epochs):
        start, history = time.perf_counter(), judged(done, config.objective)
        network.train()
        batch = batches(dataset.train, config.data.augment, recipe.seed, number, size)
        loss_sum, lrs = torch.zeros((), device=device), list[float]()
        with seeded_draws("dropout", recipe.seed, number):
            for i in range(updates):
                set_lr(optimizer, schedule.factor(number * updates + i, total, epochs=recipe.epochs, history=history))
                images, labels = batch(i)
                with precision(config, dataset, device):
                    logits = network(normalised(images, dataset.mean, dataset.std))
                    loss = F.cross_entropy(logits, labels.to(device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                loss_sum += loss.detach()  # stays on the device: .item() here would wait for every step
                lrs.append(optimizer.param_groups[0]["lr"])
        train_loss, val = float(loss_sum) / updates, dict.fromkeys(config.objective.measured, math.nan)
        if math.isfinite(train_loss):
            with seeded_draws("validation", recipe.seed, number), precision(config, dataset, device):
                val = evaluate(network, dataset.val, dataset, config.objective)
        epoch = make_epoch(number, lrs, train_loss, val, time.perf_counter() - start)
        if config.test and number + 1 == recipe.epochs:
            with seeded_draws("test", recipe.seed), precision(config, dataset, device):
                epoch = replace(epoch, test_accuracy=evaluate(network, dataset.test, dataset)["accuracy"])
        done.append(epoch)
        yield replace(epoch, state=now)


def make_epoch(
    number: int, lrs: Sequence[float], train_loss: float, val: Mapping[str, float], seconds: float
) -> Epoch:
    """An epoch from what ``evaluate`` gave; raises DivergedError where a loss is NaN or infinite, be it only after
    the last update."""
    others = {name: value for name, value in val.items() if name not in ALWAYS}
    epoch = Epoch(number, tuple(lrs), train_loss, val["loss"], val["accuracy"], seconds, others=others)
    if not (math.isfinite(epoch.train_loss) and math.isfinite(epoch.val_loss)):
        raise DivergedError(replace(epoch, val_accuracy=math.nan, others=dict.fromkeys(others, math.nan)))
    return epoch


def epochs_in(state: State | None) -> list[Epoch]:
    """The epochs that a state has behind it."""
    return [Epoch(**epoch) for epoch in state["epochs"]] if state else []


def judged(epochs: Sequence[Epoch], objective: Objective) -> list[float]:
    """What ``plateau`` looks at: the objective after every epoch, higher is better."""
    return [objective.sign * epoch.metrics()[objective.metric] for epoch in epochs]


def evaluate(network: nn.Module, split: Split, dataset: Dataset, objective: Objective = ACCURACY) -> dict[str, float]:
    """On ``split`` the loss, the accuracy, and the metric of ``objective``."""
    network.eval()
    return scores(*measure(network, split, dataset, objective), split.labels, objective)


def scores(totals: Tensor, logits: Tensor | None, labels: Tensor, objective: Objective) -> dict[str, float]:
    """The metrics by name, from what ``measure`` gave; NaN where one is not defined."""
    sums, found = iter(totals.tolist()), dict[str, float]()
    probabilities = None if logits is None else logits.cpu().double().softmax(1)
    for name, metric in objective.measured.items():
        if metric.whole is None:
            found[name] = next(sums) / len(labels)
        elif probabilities is not None and probabilities.isfinite().all():
            found[name] = metric.whole(labels.cpu().numpy(), probabilities.numpy())
        else:
            found[name] = math.nan
    return found


AT_ONCE = 2**22
"""Pixels that are evaluated at once: 512 images up to 90x90, no fewer than 64. They are in a GPU's memory."""


def measure(network: nn.Module, split: Split, dataset: Dataset, objective: Objective) -> tuple[Tensor, Tensor | None]:
    """The sums over ``split`` of the metrics that are means, and all logits where another one needs them, still on
    the device."""
    device, metrics = dataset.mean.device, objective.measured.values()
    sums, kept = [metric.total for metric in metrics if metric.total], list[Tensor]()
    totals, whole = torch.zeros(len(sums), device=device), any(metric.whole for metric in metrics)
    several = max(64, min(512, AT_ONCE // math.prod(dataset.size)))
    with torch.inference_mode():
        for images, labels in zip(split.images.split(several), split.labels.split(several), strict=True):
            logits, answers = network(normalised(images, dataset.mean, dataset.std)).float(), labels.to(device)
            totals += torch.stack([total(logits, answers).float() for total in sums])
            kept += [logits] * whole
        return totals, torch.cat(kept) if kept else None


def make_optimizer(
    recipe: Train, parameters: Sequence[nn.Parameter], lr: float | Tensor, fused: bool | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimizer at learning rate ``lr``."""
    row = OPTIMIZERS[recipe.optimizer]
    kind: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, row.name)
    options = {"fused": fused, "capturable": bool(fused) and parameters[0].is_cuda}
    options = {key: value for key, value in options.items() if value and key in inspect.signature(kind).parameters}
    return kind(parameters, lr=lr, **row.arguments(recipe.model_dump()), **options)
