"""Data sets as uint8 tensors, three splits, and augmentation as tables of indices.

All images of a set live in one tensor on the device that trains (in main memory where they do not fit). A training
batch is one gather, from tables that depend on (seed, epoch) alone: all devices and lanes see the same samples.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import threading
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..files.document import SpecError
from ..files.images import ENLARGED, Pixels, free_memory
from ..files.sources import SOURCES, DataError, Files, Location, Notes
from ..files.sweep_file import Augment, Data


class Memory:
    """An array of bytes that processes begun from this one get without a copy: Linux's memfd, as a container's
    /dev/shm is small. It is pickled by value for everybody else, and where there is no such memory."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.file: int | None = None
        with suppress(AttributeError, OSError):
            self.file = os.memfd_create("images")
            weakref.finalize(self, os.close, self.file)
            os.ftruncate(self.file, max(1, math.prod(shape)))
        self.array = np.empty(shape, np.uint8) if self.file is None else _mapped(self.file, shape)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.file is None or get_spawning_popen() is None:
            return np.asarray, (self.array,)
        return _handed, (DupFd(self.file), self.array.shape)


def _mapped(file: int, shape: tuple[int, ...]) -> Pixels:
    size = math.prod(shape)
    return np.frombuffer(mmap.mmap(file, max(1, size)), np.uint8, size).reshape(shape)


def _handed(handed: Any, shape: tuple[int, ...]) -> Pixels:
    """In the new process."""
    file = handed.detach()
    try:
        return _mapped(file, shape)
    finally:
        os.close(file)


@dataclass(frozen=True)
class Split:
    """Images ``[N, H, W, C]`` uint8 and their labels ``[N]`` int64."""

    images: Tensor
    labels: Tensor
    memory: Memory | None = None
    """That has the images, where other processes can have them, too."""

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
    notes: Notes = field(default_factory=Notes)
    """What was noticed while they were read."""

    def __str__(self) -> str:
        training, val, test = map(len, (self.train, self.val, self.test))
        there = f"{training} training, {val} validation, {test} test images of {self.classes} classes"
        return "; ".join(filter(None, (there, str(self.notes))))

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
        """NumPy arrays for another process, which ``preload``s them: shared where it is begun by this one, or where
        its library can."""

        splits = {
            k: (v.memory or v.images.numpy(), v.labels.numpy()) for k, v in vars(self).items() if isinstance(v, Split)
        }
        return vars(self) | splits | {"mean": self.mean.numpy(), "std": self.std.numpy(), "notes": Notes()}


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
    """``[N, H, W, C]`` with ``margin`` black pixels on each side; kept, as every epoch needs the same. On a CPU the
    images as they are, which all lanes share: ``augmented`` needs no margin there."""
    if not margin or images.device.type == "cpu":
        return images
    with _PADDING:
        kept = _PADDED.get(images.device)
        if kept is None or kept[0] is not images or kept[1] != margin:
            framed = torch.nn.functional.pad(images, (0, 0, margin, margin, margin, margin))
            kept = _PADDED[images.device] = (images, margin, framed)
        return kept[2]


def augmented(padded: Tensor, index: Tensor, dy: Tensor, dx: Tensor, flip: Tensor, margin: int) -> Tensor:
    """``[B, H, W, C]``: images ``index`` of what ``padded`` gave, cropped at (dy, dx) and mirrored by ``flip``."""
    if padded.device.type == "cpu":
        return _augmented_one_by_one(padded.numpy(), index, dy - margin, dx - margin, flip)
    height, width = padded.shape[1] - 2 * margin, padded.shape[2] - 2 * margin
    rows = dy[:, None] + torch.arange(height, device=padded.device)
    columns = torch.arange(width, device=padded.device)
    columns = dx[:, None] + torch.where(flip[:, None], width - 1 - columns, columns)
    return padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]


def _augmented_one_by_one(images: Pixels, index: Tensor, dy: Tensor, dx: Tensor, flip: Tensor) -> Tensor:
    """The same of images without a margin, moved up by ``dy`` and to the left by ``dx``. On a CPU it is faster than a
    gather, whose every pixel is looked up."""
    height, width = images.shape[1:3]
    made = np.zeros((len(index), *images.shape[1:]), images.dtype)
    for into, i, y, x, mirrored in zip(made, *(t.tolist() for t in (index, dy, dx, flip)), strict=True):
        seen = images[i, max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)]
        into = into[:, ::-1] if mirrored else into
        into[max(-y, 0) : height - max(y, 0), max(-x, 0) : width - max(x, 0)] = seen
    return torch.from_numpy(made)


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 ``[B, H, W, C]`` to ``[B, C, H, W]`` of the mean's type, channels last in memory, mean 0, deviation 1."""
    return ((images.to(mean.device, mean.dtype) - mean) / std).permute(0, 3, 1, 2)


_PRELOADED: dict[tuple[Data, str], Dataset] = {}


def preload(config: Data, data_dir: str, values: Mapping[str, Any]) -> None:
    """Let ``load`` return a data set that another process read: ``values`` as its ``to_arrays`` gave them."""

    splits = {name: Split(_tensor(values[name][0]), _tensor(values[name][1])) for name in ("train", "val", "test")}
    tensors = {name: _tensor(values[name]) for name in ("mean", "std")}
    _PRELOADED[config, data_dir] = Dataset(**{**values, **splits, **tensors})


def _tensor(array: Pixels | Memory) -> Tensor:
    """A tensor in the same memory, which may be shared: nobody writes to it."""
    array = array.array if isinstance(array, Memory) else array
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # which says that it is not writable
        return torch.from_numpy(array)


@lru_cache(maxsize=4)
def load(config: Data, data_dir: str = "data") -> Dataset:
    """Load a data set and split it: the same tensors for the same arguments, read once per process. Raises DataError
    of missing or damaged data, with the fix."""
    if (config, data_dir) in _PRELOADED:
        return _PRELOADED[config, data_dir]
    root = Path(data_dir).expanduser()
    location = Location(
        root / Path(config.path or config.source).expanduser(), root, config.size, config.function or ""
    )
    name = config.function or (str(location.folder) if config.path else config.source)
    splits = SOURCES[config.source].read(location)
    labels, notes = torch.from_numpy(splits.train[1]), splits.notes or Notes()
    if (labels == labels[0]).all():
        raise DataError(
            f"{name}: all {len(labels)} images are of one class: nothing can be learnt; give two at least"
        )
    brought = {"val": splits.val, "test": splits.test}
    chosen = _choose(labels, config, [kind for kind, arrays in brought.items() if arrays is None], notes)
    if (left := len(chosen["train"])) < 2:
        held = (
            f"{name} has {len(labels)} images, of which data.test ({config.test}) and data.val ({config.val}) leave"
        )
        raise DataError(f"{held} {left} for training: too few to split")
    parts = {kind: _Part(*splits.train, numbers.numpy()) for kind, numbers in chosen.items()}
    parts |= {kind: _Part(*arrays, np.arange(len(arrays[1]))) for kind, arrays in brought.items() if arrays}
    images = sum(len(part.numbers) for part in parts.values())
    fits = cache(partial(_check_memory, name, images, notes))  # asked once, before there are any
    read = {kind: parts[kind].read(config.size, fits, notes) for kind in KINDS}
    notes.refuse_damaged()
    train, val, test = read.values()
    _check_sizes(name, read, config.augment.pad)
    classes = 1 + max(int(part.labels.max()) for part in parts.values())
    titles = [splits.names[i] if i < len(splits.names) else str(i) for i in range(classes)]
    few = "a class has one in every split where it has three or more, and data.limit may leave them out"
    _note_copies(parts, read, notes)
    _note_classes(read, titles, {kind: few if kind in chosen else "the data bring none" for kind in KINDS}, notes)
    mean, std = _statistics(train.images)
    return Dataset(config.source, train, val, test, classes, mean, std, _digest(train, val, test), notes)


KINDS = {"train": "training", "val": "validation", "test": "test"}
LARGE = 1e9
"""Bytes of images from which their size is said."""


class _Part(NamedTuple):
    """Those images of a source that become a split."""

    images: Pixels | Files
    labels: Pixels
    numbers: Pixels
    """Of the images in the source, in the order of the split."""

    def name(self, i: int) -> str:
        """What the split's i-th image is called; nothing where it is in no file."""
        return self.images.name(self.numbers[i]) if isinstance(self.images, Files) else ""

    def read(self, size: int | None, fits: Callable[[int, int], None], notes: Notes) -> Split:
        """The split, in memory that lanes share, after ``fits`` has been asked whether images of this height and
        width do. Without the images that are damaged, which are in the notes."""
        made = list[Memory]()

        def make(shape: tuple[int, ...]) -> Pixels:
            fits(*shape[1:3])
            made.append(Memory(shape))
            return made[-1].array

        if isinstance(self.images, Files):
            array = self.images.decode(self.numbers, make, notes)
        else:
            array = None
            for start in range(0, len(self.numbers), 1024):
                several = _middle(self.images[self.numbers[start : start + 1024]], size)
                array = make((len(self.numbers), *several.shape[1:])) if array is None else array
                array[start : start + 1024] = several
            if size and min(self.images.shape[1:3]) < size:
                notes.changed += [ENLARGED] * len(self.numbers)
        array = np.empty((0, 1, 1, 3), np.uint8) if array is None else array
        return Split(_tensor(array), torch.from_numpy(self.labels[self.numbers]), *made)


def _check_sizes(name: str, splits: Mapping[str, Split], pad: int) -> None:
    """Refuse splits of images of several sizes, and shifts that leave nothing of an image."""
    train = splits["train"].images
    for kind, split in splits.items():
        if split.images.shape[1:] != train.shape[1:]:
            sizes = " and ".join("{1}x{2}".format(*images.shape) for images in (train, split.images))
            raise DataError(f"{name}: training and {KINDS[kind]} images are of {sizes} pixels; set data.size")
    if pad >= (side := min(train.shape[1:3])):
        wrong = f"shifts of up to {pad} pixels take images of {side} out of sight; an eighth of that is usual"
        raise SpecError(wrong, key=("data", "augment", "pad"))


def _check_memory(name: str, images: int, notes: Notes, height: int, width: int) -> None:
    """Refuse what does not fit into memory, and say what takes much of it."""
    needed, free, remedy = 3 * images * height * width, free_memory(), "lower data.size or data.limit"
    if needed > LARGE:
        notes.facts.append(f"{_size(needed)} in memory, which all lanes share")
    if free is None:
        return
    there = (
        f"{images} images of {height}x{width} pixels take {_size(needed)} of memory, of which {_size(free)} are free"
    )
    if needed > free:
        raise DataError(f"{name}: {there}; {remedy}")
    if needed > max(LARGE, free / 2):
        notes.warnings.append(f"{there}; {remedy}, or use fewer lanes")


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def _choose(labels: Tensor, config: Data, held: Sequence[str], notes: Notes) -> dict[str, Tensor]:
    """Which training images are for what, in random order: a share is held back for each of ``held``, of every class
    (stratified) where less of them would have no image in a split then."""

    def choose(limit: int | None, stratified: bool) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(config.split_seed)
        order, chosen = torch.randperm(len(labels), generator=generator), dict[str, Tensor]()

        def cut(n: int, least: int, leave: int) -> tuple[Tensor, Tensor]:
            """``n`` of those in order, or a share of every class, ``least`` of it, that leaves it ``leave``."""
            first = _share(labels[order], n, least, leave) if stratified else torch.arange(len(order)) < n
            return order[first], order[~first]

        if "test" in held:
            chosen["test"], order = cut(max(1, round(len(order) * config.test)), 1, len(held))
        if limit is not None:
            order, _ = cut(limit, 2, 0)
        if "val" in held:
            chosen["val"], order = cut(max(1, round(len(order) * config.val)), 1, 1)
        return {"train": order, **chosen}

    def lacking(chosen: Mapping[str, Tensor]) -> int:
        every = labels.bincount() > 0
        return sum(
            int((every & (labels[some].bincount(minlength=len(every)) == 0)).sum()) for some in chosen.values()
        )

    stratified = lacking(choose(None, True)) < lacking(choose(None, False))
    if stratified:
        notes.facts.append("split class by class")
    return choose(config.limit, stratified)


def _share(labels: Tensor, n: int, least: int, leave: int) -> Tensor:
    """A mask of ``n`` of ``labels``: the first of every class, in proportion to how many it has, and ``least`` of
    each that has ``leave`` more. It is of more than ``n`` where every class is to have one that is left others."""
    counts, by_class = labels.bincount(), labels.argsort(stable=True)
    rank = torch.empty_like(labels)
    rank[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    size = counts[labels]
    turn = torch.where(rank < least, (rank - least).double(), (rank + 0.5) / size)
    turn = torch.where(rank < size - leave, turn, 2.0)  # those come last
    several = max(n, int((counts > leave).sum())) if leave else n
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[turn.argsort(stable=True)[:several]] = True
    return mask


def _note_copies(parts: Mapping[str, _Part], splits: Mapping[str, Split], notes: Notes) -> None:
    """Note identical images: how many, across which splits, and whether they have the same label."""
    first, pairs = dict[str, dict[bytes, int]](), dict[tuple[str, str], list[str]]()
    labelled, twice, contradictions = dict[bytes, int](), 0, 0
    for kind, split in splits.items():
        own = first.setdefault(kind, {})
        for i, (image, label) in enumerate(zip(split.images.numpy(), split.labels.tolist(), strict=True)):
            look = hashlib.sha256(image.data).digest()
            for other in [other for other in first if other != kind and look in first[other]]:
                names = parts[other].name(first[other][look]), parts[kind].name(i)
                pairs.setdefault((kind, other), []).append(" and ".join(filter(None, names)))
            own.setdefault(look, i)
            twice += look in labelled
            contradictions += labelled.setdefault(look, label) != label
    if twice:
        across = ", ".join(f"{len(found)} in {KINDS[a]} and {KINDS[b]}" for (a, b), found in pairs.items())
        notes.facts.append(f"{twice} identical to another image" + f" ({across})" * bool(across))
    for (kind, other), found in pairs.items():
        example = f" (such as {found[0]})" * bool(found[0])
        several = (
            f"{len(found)} {KINDS[kind]} image{'s are' if len(found) > 1 else ' is'} in the {KINDS[other]} split, too"
        )
        notes.warnings.append(f"{several}{example}: a score on them is none on new images; remove one of each pair")
    if contradictions:
        several = (
            f"{contradictions} image{'s are' if contradictions > 1 else ' is'} identical to one of another class"
        )
        notes.warnings.append(f"{several}: one of the two labels is wrong")


def _note_classes(
    splits: Mapping[str, Split], titles: Sequence[str], advice: Mapping[str, str], notes: Notes
) -> None:
    """Note classes whose images show nothing, or that a split lacks, with advice for that."""
    images, blank, alike = defaultdict[int, list[tuple[Pixels, int]]](list), list[int](), list[int]()
    for split in splits.values():
        for i, label in enumerate(split.labels.tolist()):
            images[label].append((split.images.numpy(), i))
    for label, places in sorted(images.items()):
        first = places[0][0][places[0][1]]
        if all((array[i] == array[i, 0, 0]).all() for array, i in places):
            blank.append(label)
        elif len(places) > 1 and all(np.array_equal(array[i], first) for array, i in places):
            alike.append(label)

    def those(labels: Sequence[int]) -> str:
        several = ", ".join(titles[label] for label in labels[:5]) + ", ..." * (len(labels) > 5)
        return f"{len(labels)} of {len(titles)} classes ({several})"

    if blank:
        cause = "are the files empty, or is the picture in a transparency that is white on white?"
        notes.warnings.append(f"every image of {those(blank)} is of a single colour: {cause}")
    if alike:
        notes.warnings.append(f"all images of {those(alike)} are identical")
    for kind in ("val", "test"):
        if absent := sorted({*images} - {*splits[kind].labels.tolist()}):
            notes.warnings.append(f"no {KINDS[kind]} image of {those(absent)}: {advice[kind]}")


def _middle(images: Pixels, size: int | None) -> Pixels:
    """The middle squares, as ``images.decode`` has them; without a ``size`` all of it."""
    height, width = images.shape[1:3]
    if size is None or height == width == size:
        return images
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    floats = _tensor(images)[:, top : top + side, left : left + side].permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(floats, (size, size), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation per channel, exact: from a histogram of the 256 values."""
    values = torch.arange(256, dtype=torch.float64)
    counts = torch.zeros(3, 256, dtype=torch.float64)
    for several in images.split(1024):
        counts += torch.stack([c.flatten().bincount(minlength=256) for c in several.unbind(3)])
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
