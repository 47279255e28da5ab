"""The job of a trial of one's own code, and its state as it is kept: tensors and plain values."""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from ..files.trial import OwnConfig
from .checkpoint import State
from .job import Job, Report, TrainingError
from .plan import OwnEpoch, judged

NUMPY = "a NumPy value"
PLAIN = (type(None), bool, int, float, complex, str, bytes)


def plain(value: Any, where: str = "state") -> Any:
    """A state as it is kept: what ``torch.load`` reads without running code. NumPy's arrays and numbers, which it
    refuses, are kept as tensors. Raises TrainingError, which names the first thing that cannot be kept."""
    import numpy as np
    import torch

    kind: Any = type(value)
    if kind in (dict, OrderedDict, Counter):
        found = {plain(k, f"a key of {where}"): plain(v, f"{where}[{k!r:.40}]") for k, v in value.items()}
        same = all(found[key] is value[key] for key in found)
        return value if same else kind(found)  # a state_dict has more to it than its items
    if kind in (list, tuple, set):
        return kind(plain(item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(value, (np.ndarray, np.generic)):
        with contextlib.suppress(TypeError):  # text, objects
            return {NUMPY: torch.from_numpy(np.array(value)), "number": isinstance(value, np.generic)}
    if kind in PLAIN or isinstance(value, (torch.Tensor, torch.Size, torch.dtype, torch.device)):
        return value
    raise TrainingError(f"{where} is a {kind.__module__}.{kind.__qualname__}".replace(" builtins.", " "))


def restored(value: Any) -> Any:
    """What ``plain`` has made plain, as it was."""
    kind: Any = type(value)
    if kind is dict and NUMPY in value:
        array = value[NUMPY].numpy()
        return array[()] if value["number"] else array
    if kind in (dict, OrderedDict, Counter):
        found = {key: restored(inner) for key, inner in value.items()}
        return value if all(found[key] is value[key] for key in found) else kind(found)
    return kind(map(restored, value)) if kind in (list, tuple) else value


def job_of(
    config: OwnConfig, device: str, state: State | None, done: Sequence[OwnEpoch], send: Callable[[Report], None]
) -> Job:
    """The job of a trial, and its folder."""
    recipe, metric = config.train, config.objective.metric
    folder = config.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = {"sign": config.objective.sign, "metric": metric, "updates": recipe.updates_per_epoch}
    known |= {"epoch": len(done), "history": judged(done, config.objective)}
    if state:
        known |= {"state": restored(state["own"]), "stands": state["plan"]["stands"]}
    return Job(config.schedule, recipe.epochs, recipe.seed, device, folder, send, **known)
