"""What a trial can be judged by: measured on the validation split after every epoch.

To add one, add a row to ``METRICS``: where a sweep's objective is ``val/<name>`` it is measured and logged then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Tensor = Any
"""torch's; this module is read before torch is loaded."""
Array = np.ndarray[Any, Any]


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    from torch.nn import functional as F

    return F.cross_entropy(logits, labels, reduction="sum")


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).sum()


def _top5(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.topk(min(5, logits.shape[1])).indices == labels[:, None]).sum()


def _macro_f1(labels: Array, probabilities: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, probabilities.argmax(1), average="macro"))


def _balanced_accuracy(labels: Array, probabilities: Array) -> float:
    from sklearn.metrics import recall_score

    # balanced_accuracy_score is the same, and warns of a predicted class that no image has
    return float(recall_score(labels, probabilities.argmax(1), labels=np.unique(labels), average="macro"))


def _auroc(labels: Array, probabilities: Array) -> float:
    from sklearn.metrics import roc_auc_score

    classes = probabilities.shape[1]
    if len(np.unique(labels)) < max(2, classes):
        return float("nan")  # one against the rest is not defined for a class without an image
    # one column for each class; of two classes both columns give the binary AUROC
    return float(roc_auc_score(np.eye(classes, dtype=bool)[labels], probabilities, average="macro"))


@dataclass(frozen=True)
class Metric:
    """A metric: which direction is better, whether differences are said in points, and one of two functions."""

    direction: Literal["maximize", "minimize"]
    points: bool
    """A share: a difference of 0.01 is one point."""
    total: Callable[[Tensor, Tensor], Tensor] | None = None
    """Of a mean over images, its sum over a batch, of fp32 logits ``[B, classes]`` and labels ``[B]``: a scalar on
    their device. No branch on its values."""
    whole: Callable[[Array, Array], float] | None = None
    """Of any other metric, its value, of all labels ``[N]`` and probabilities ``[N, classes]`` on the CPU; NaN where
    it is not defined for these labels."""


METRICS = {
    "loss": Metric("minimize", points=False, total=_cross_entropy),
    "accuracy": Metric("maximize", points=True, total=_accuracy),
    "top5": Metric("maximize", points=True, total=_top5),
    "macro_f1": Metric("maximize", points=True, whole=_macro_f1),
    "balanced_accuracy": Metric("maximize", points=True, whole=_balanced_accuracy),
    "auroc": Metric("maximize", points=True, whole=_auroc),
}
"""By name."""
ALWAYS = ("loss", "accuracy")
"""Those that are measured whatever the objective is."""
