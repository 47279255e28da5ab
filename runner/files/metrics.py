"""What a trial can be judged by: means over images, computed on the validation split after every epoch.

To add one, add a row to ``METRICS``: it is measured then, logged as ``val/<name>``, and ``objective`` takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Tensor = Any
"""torch's; this module is read before torch is loaded."""


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    from torch.nn import functional as F

    return F.cross_entropy(logits, labels, reduction="sum")


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).sum()


@dataclass(frozen=True)
class Metric:
    """A metric: its sum over a batch, which direction is better, and whether differences are said in points."""

    total: Callable[[Tensor, Tensor], Tensor]
    """Of fp32 logits ``[B, classes]`` and labels ``[B]``: a scalar on their device. No branch on its values."""
    direction: Literal["maximize", "minimize"]
    points: bool
    """A share of the images: a difference of 0.01 is one point."""


METRICS = {
    "loss": Metric(_cross_entropy, "minimize", points=False),
    "accuracy": Metric(_accuracy, "maximize", points=True),
}
"""By name; the first two are always there."""
