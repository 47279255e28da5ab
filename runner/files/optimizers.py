"""Which optimizers a recipe may name, and what each takes of it.

To add one of ``torch.optim``, add a row to ``OPTIMIZERS``. Without ``unused`` the plain loop trains it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Unused = Callable[[Mapping[str, float], float, float, float], tuple[float, float]]
"""(the recipe's options, lr, weight, momentum) -> (weight, momentum) after an update without a gradient."""


@dataclass(frozen=True)
class Optimizer:
    """An optimizer: its class in ``torch.optim``, and the keys of ``train`` that it is given."""

    name: str
    options: tuple[str, ...]
    unused: Unused | None = None
    """What an update does to a weight that has no gradient. The fast engine leaves such weights out and needs it."""

    def arguments(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """What of a recipe the class is called with, beside the parameters and ``lr``."""
        return {key: recipe[key] for key in self.options if key in recipe}


def _sgd(options: Mapping[str, float], lr: float, weight: float, momentum: float) -> tuple[float, float]:
    """torch.optim.SGD's documented update, with weight decay for a gradient."""
    gradient = options["weight_decay"] * weight
    momentum = options["momentum"] * momentum + gradient
    step = gradient + options["momentum"] * momentum if options["nesterov"] else momentum
    return weight - lr * step, momentum


def _adamw(options: Mapping[str, float], lr: float, weight: float, momentum: float) -> tuple[float, float]:
    """Decoupled weight decay alone (Loshchilov and Hutter 2019, arXiv 1711.05101)."""
    return weight * (1 - lr * options["weight_decay"]), momentum


OPTIMIZERS = {
    "sgd": Optimizer("SGD", ("momentum", "nesterov", "weight_decay"), _sgd),
    "adamw": Optimizer("AdamW", ("weight_decay",), _adamw),
}
"""By the name that ``train.optimizer`` gives them."""
