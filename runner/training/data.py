"""Data sets as uint8 tensors, three splits, and augmentation as tables of indices.

All images of a set live in one tensor on the device that trains (in main memory where they do not fit). A training
batch is one gather, from tables that depend on (seed, epoch) alone: all devices and lanes see the same samples.
"""

from __future__ import annotations

import hashlib
import math
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..files.document import SpecError
from ..files.images import Pixels
from ..files.sources import SOURCES, Arrays, DataError, Place
from ..files.sweep_file import Augment, Data


@dataclass(frozen=True)
class Split:
    """Images ``[N, H, W, C]`` uint8 and their labels ``[N]`` int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Split:
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """Three splits. The search sees ``val``; ``test`` is for confirmed winners only. As text it is what there is."""

    name: str
    train: Split
    val: Split
    test: Split
    classes: int
    mean: Tensor
    """Per channel, of the training images on [0, 255]."""
    std: Tensor
    digest: str
    """SHA-256 of everything above: the same digest, the same data."""

    def __str__(self) -> str:
        training, val, test = map(len, (self.train, self.val, self.test))
        return f"{training} training, {val} validation, {test} test images of {self.classes} classes"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.train.images.shape[1], self.train.images.shape[2]

    def facts(self) -> dict[str, Any]:
        """What others say of the data: its name, digest and classes, how many images each split has, and the share of
        the most frequent class (``majority``) in the validation split."""
        sizes = {name: len(getattr(self, name)) for name in ("train", "val", "test")}
        majority = float(self.val.labels.bincount().max()) / len(self.val)
        return {"name": self.name, "digest": self.digest, "classes": self.classes, **sizes, "majority": majority}

    def to(self, device: torch.device, margin: int = 0) -> Dataset:
        """The same data on ``device`` where they fit into half of its free memory, with a ``margin`` together with
        ``padded`` training images; else where they are."""

        small = replace(self, mean=self.mean.to(device), std=self.std.to(device))
        splits = self.train, self.val, self.test
        if device.type == "cuda":
            size = sum(split.images.nbytes + split.labels.nbytes for split in splits)
            if margin:
                size += len(self.train) * math.prod(side + 2 * margin for side in self.size) * 3
            if size > torch.cuda.mem_get_info(device)[0] // 2:
                return small
        train, val, test = (Split(split.images.to(device), split.labels.to(device)) for split in splits)
        return replace(small, train=train, val=val, test=test)

    def to_arrays(self) -> dict[str, Any]:
        """NumPy arrays for another process, which ``preload``s them: copied, or shared where its library can."""

        splits = {k: (v.images.numpy(), v.labels.numpy()) for k, v in vars(self).items() if isinstance(v, Split)}
        return vars(self) | splits | {"mean": self.mean.numpy(), "std": self.std.numpy()}


class Tables(NamedTuple):
    """One epoch's samples: the order ``[N]``, and for each image its shift and whether it is mirrored."""

    order: Tensor
    dy: Tensor
    dx: Tensor
    flip: Tensor

    @staticmethod
    def draw(n: int, augment: Augment, seed: int, epoch: int) -> Tables:
        """The tables of (seed, epoch), drawn on the CPU so that every device has the same."""
        generator = torch.Generator().manual_seed(seed_of(seed, epoch))
        order = torch.randperm(n, generator=generator)
        dy, dx = torch.randint(0, 2 * augment.pad + 1, (2, n), generator=generator)
        flip = torch.rand(n, generator=generator) < (0.5 if augment.flip else 0.0)
        return Tables(order, dy, dx, flip)

    def to(self, device: torch.device) -> Tables:
        return Tables(*(table.to(device) for table in self))


def seed_of(*purpose: object) -> int:
    """A seed for a purpose, such as an epoch of a trial: seeds and epochs that follow one another share nothing."""
    digest = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


_PADDED: dict[torch.device, tuple[Tensor, int, Tensor]] = {}
_PADDING = threading.Lock()  # the lanes of a GPU are threads, and share one copy


def padded(images: Tensor, margin: int) -> Tensor:
    """``[N, H, W, C]`` with ``margin`` black pixels on each side; kept, as every epoch needs the same."""
    if not margin:
        return images
    with _PADDING:
        kept = _PADDED.get(images.device)
        if kept is None or kept[0] is not images or kept[1] != margin:
            framed = torch.nn.functional.pad(images, (0, 0, margin, margin, margin, margin))
            kept = _PADDED[images.device] = (images, margin, framed)
        return kept[2]


def augmented(padded: Tensor, index: Tensor, dy: Tensor, dx: Tensor, flip: Tensor, margin: int) -> Tensor:
    """``[B, H, W, C]``: images ``index`` of ``padded``, each cropped at (dy, dx) and mirrored where ``flip``."""
    height, width = padded.shape[1] - 2 * margin, padded.shape[2] - 2 * margin
    rows = dy[:, None] + torch.arange(height, device=padded.device)
    columns = torch.arange(width, device=padded.device)
    columns = dx[:, None] + torch.where(flip[:, None], width - 1 - columns, columns)
    return padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 ``[B, H, W, C]`` to ``[B, C, H, W]`` of the mean's type, channels last in memory, mean 0, deviation 1."""
    return ((images.to(mean.device, mean.dtype) - mean) / std).permute(0, 3, 1, 2)


_PRELOADED: dict[tuple[Data, str], Dataset] = {}


def preload(config: Data, data_dir: str, values: Mapping[str, Any]) -> None:
    """Let ``load`` return a data set that another process read: ``values`` as its ``to_arrays`` gave them."""

    splits = {name: Split(*map(_tensor, values[name])) for name in ("train", "val", "test")}
    tensors = {name: _tensor(values[name]) for name in ("mean", "std")}
    _PRELOADED[config, data_dir] = Dataset(**{**values, **splits, **tensors})


def _tensor(array: Pixels) -> Tensor:
    """A tensor in the same memory, which may be shared: nobody writes to it."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # which says that it is not writable
        return torch.from_numpy(array)


@lru_cache(maxsize=4)
def load(config: Data, data_dir: str = "data") -> Dataset:
    """Load a data set and split it: the same tensors for the same arguments, read once per process. Raises DataError
    of missing or damaged data, with the fix."""
    if (config, data_dir) in _PRELOADED:
        return _PRELOADED[config, data_dir]
    root = Path(data_dir).expanduser()
    place = Place(root / Path(config.path or config.source).expanduser(), root, config.size, config.function or "")
    splits = SOURCES[config.source].read(place)
    train, val, test = (arrays and _split(arrays, config.size) for arrays in splits)
    assert train is not None
    name = config.function or (str(place.folder) if config.path else config.source)
    if len(train.labels.unique()) < 2:
        raise DataError(f"{name}: all {len(train)} images are of one class: nothing can be learnt; give two at least")
    for kind, other in (("validation", val), ("test", test)):
        if other is not None and other.images.shape[1:] != train.images.shape[1:]:
            sizes = " and ".join("{1}x{2}".format(*split.images.shape) for split in (train, other))
            raise DataError(f"{name}: training and {kind} images are of {sizes} pixels; set data.size")
    if (pad := config.augment.pad) >= (side := min(train.images.shape[1:3])):
        wrong = f"shifts of up to {pad} pixels take images of {side} out of sight; an eighth of that is usual"
        raise SpecError(wrong, key=("data", "augment", "pad"))
    classes = 1 + max(int(split.labels.max()) for split in (train, val, test) if split is not None)
    generator = torch.Generator().manual_seed(config.split_seed)
    order = torch.randperm(len(train), generator=generator)
    if test is None:
        n = max(1, round(len(order) * config.test))
        test, order = train.take(order[:n]), order[n:]
    order = order[: config.limit]
    if val is None:
        n = max(1, round(len(order) * config.val))
        val, order = train.take(order[:n]), order[n:]
    if len(order) < 2:
        held = f"{name} has {len(train)} images, of which data.test ({config.test}) and data.val ({config.val}) leave"
        raise DataError(f"{held} {len(order)} for training: too few to split")
    train = train.take(order)
    mean, std = _statistics(train.images)
    return Dataset(config.source, train, val, test, classes, mean, std, _digest(train, val, test))


def _split(arrays: Arrays, size: int | None) -> Split:
    """Tensors of the middle squares, as ``images.decode`` has them; without a ``size`` of all of it."""
    split = Split(*map(_tensor, arrays))
    height, width = split.images.shape[1:3]
    if size is None or height == width == size:
        return split
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    images = split.images[:, top : top + side, left : left + side]
    chunks: list[Tensor] = []
    for chunk in images.split(1024):
        floats = chunk.permute(0, 3, 1, 2).float()
        small = torch.nn.functional.interpolate(floats, (size, size), mode="bilinear", antialias=True)
        chunks.append(small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1))
    return Split(torch.cat(chunks).contiguous(), split.labels)


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation per channel, exact: from a histogram of the 256 values."""
    values = torch.arange(256, dtype=torch.float64)
    counts = torch.stack([torch.bincount(c.flatten().int(), minlength=256) for c in images.unbind(3)]).double()
    mean, square = (counts @ v / counts.sum(1) for v in (values, values**2))
    return mean.float(), (square - mean**2).clamp(min=1.0).sqrt().float()


def _digest(*splits: Split) -> str:
    sha = hashlib.sha256()
    for split in splits:
        sha.update(repr(tuple(split.images.shape)).encode())
        sha.update(split.images.contiguous().numpy().data)
        sha.update(split.labels.contiguous().numpy().data)
    return sha.hexdigest()


def batches(
    data: Split, config: Augment, seed: int, epoch: int, batch_size: int
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """``batch(i)``: the i-th (images, labels) of the epoch, images still uint8."""
    framed = padded(data.images, config.pad)
    tables = Tables.draw(len(data), config, seed, epoch).to(data.images.device)

    def batch(i: int) -> tuple[Tensor, Tensor]:
        index, dy, dx, flip = (table[i * batch_size : (i + 1) * batch_size] for table in tables)
        return augmented(framed, index, dy, dx, flip, config.pad), data.labels[index]

    return batch
