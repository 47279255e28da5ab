"""Devices: which one trains, in which precision, with whose random numbers; and the data on it."""

from __future__ import annotations

import contextlib
import textwrap
import threading
from collections import defaultdict
from collections.abc import Iterator

import torch

from ..files.document import SpecError, first_line
from ..files.trial import TrialConfig
from . import data as datasets
from .data import Dataset
from .model import rng_of_seed

_DRAWING = defaultdict[int, threading.Lock](threading.Lock)  # by GPU


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """What is random has ``seed`` inside, and the caller's own random numbers are as they were after. Of a GPU, whose
    lanes take turns, its own alone: they are threads, and another one may be drawing initial weights on the CPU."""
    if device.type != "cuda":
        with rng_of_seed(seed):
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
    large = dataset.size[0] >= 16  # below that, casting eats what the matrix units give
    return device.type == "cpu" and large and bool(torch.cpu._is_amx_tile_supported())


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
    """``auto`` is CUDA where there is one, then Apple's MPS, then the CPU; raises SpecError where ``name`` is not."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros((), device=device).item()  # meta has no values
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        cause = first_line(error).partition(". ")[0]  # torch goes on about its internals
        raise SpecError(f"--device {name}: {textwrap.shorten(cause, 120)}; try --device cpu") from None
    return torch.device("cpu") if device.type == "cpu" else device  # which has no numbers
