"""Data sets as uint8 tensors, three splits, and augmentation as tables of indices.

All images of a set live in one ``[N, H, W, C]`` uint8 tensor on the device that trains (in main memory where they do
not fit). A training batch is one gather: which image, shifted by how much, mirrored or not, from tables that depend
on (seed, epoch) alone, so the CPU, the GPU and every lane see the same samples.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .document import SpecError, first_line
from .images import Pixels, all_decoded
from .schedules import find_function
from .spec import Augment, Data

TRAIN = ("train", "training")
VAL = ("val", "valid", "validation", "dev", "eval")
TEST = ("test", "testing")
SPLITS = (*TRAIN, *VAL, *TEST)
"""What folders and Parquet files of a split are called."""


class DataError(SpecError):
    """Data that are missing or damaged: what, and how to mend it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, key=("data",))


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

    def to(self, device: torch.device, margin: int = 0) -> Dataset:
        """The same data on ``device`` where they fit into half of its free memory, else where they are.

        With a ``margin`` there must be room for ``padded`` training images, too.
        """

        def move(split: Split) -> Split:
            return Split(split.images.to(device), split.labels.to(device))

        small = replace(self, mean=self.mean.to(device), std=self.std.to(device))
        if device.type == "cuda":
            size = sum(s.images.nbytes + s.labels.nbytes for s in (self.train, self.val, self.test))
            if margin:
                size += len(self.train) * math.prod(side + 2 * margin for side in self.size) * 3
            if size > torch.cuda.mem_get_info(device)[0] // 2:
                return small
        return replace(small, train=move(self.train), val=move(self.val), test=move(self.test))

    def by_value(self) -> dict[str, Any]:
        """NumPy arrays for another process, which ``adopt``s them: copied, or shared where its library can."""

        def arrays(value: Any) -> Any:
            if isinstance(value, Split):
                return value.images.numpy(), value.labels.numpy()
            return value.numpy() if isinstance(value, Tensor) else value

        return {f.name: arrays(getattr(self, f.name)) for f in fields(self)}


# --------------------------------------------------------------------------------------
# Batches.


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


def seed_of(*what: object) -> int:
    """A seed for a purpose, such as an epoch of a trial: seeds and epochs that follow one another share nothing."""
    digest = hashlib.sha256("/".join(map(str, what)).encode()).digest()
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


# --------------------------------------------------------------------------------------
# Loading.


_ADOPTED: dict[tuple[Data, str], Dataset] = {}


def adopt(config: Data, data_dir: str, values: Mapping[str, Any]) -> None:
    """Let ``load`` return a data set that another process read: ``values`` as its ``by_value`` gave them."""

    def tensors(value: Any) -> Any:
        if isinstance(value, tuple):
            return Split(*map(_tensor, value))
        return _tensor(value) if isinstance(value, np.ndarray) else value

    _ADOPTED[config, data_dir] = Dataset(**{name: tensors(value) for name, value in values.items()})


def _tensor(array: Pixels) -> Tensor:
    """A tensor in the same memory, which may be shared: nobody writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


@lru_cache(maxsize=4)
def load(config: Data, data_dir: str = "data") -> Dataset:
    """Load a data set and split it; the same arguments give the same tensors, read once per process.

    Raises:
        DataError: missing or damaged data, with the fix.
    """
    if (config, data_dir) in _ADOPTED:
        return _ADOPTED[config, data_dir]
    train, val, test = _read(config, Path(data_dir))
    name = config.function or (str(_place(config, Path(data_dir))) if config.path else config.source)
    if len(train.labels.unique()) < 2:
        raise DataError(f"{name}: all {len(train)} images are of one class: nothing can be learnt; give two at least")
    for kind, other in (("validation", val), ("test", test)):
        if other is not None and other.images.shape[1:] != train.images.shape[1:]:
            sizes = " and ".join("{1}x{2}".format(*split.images.shape) for split in (train, other))
            raise DataError(f"{name}: training and {kind} images are of {sizes} pixels; set data.size")
    if (pad := config.augment.pad) >= (side := min(train.images.shape[1:3])):
        said = f"shifts of up to {pad} pixels take images of {side} out of sight; an eighth of that is usual"
        raise SpecError(said, key=("data", "augment", "pad"))
    classes = 1 + max(int(split.labels.max()) for split in (train, val, test) if split is not None)
    generator = torch.Generator().manual_seed(config.split_seed)
    order = torch.randperm(len(train), generator=generator)
    if test is None:
        held = max(1, round(len(order) * config.test))
        test, order = train.take(order[:held]), order[held:]
    order = order[: config.limit]
    if val is None:
        held = max(1, round(len(order) * config.val))
        val, order = train.take(order[:held]), order[held:]
    if len(order) < 2:
        said = f"{name} has {len(train)} images, of which data.test ({config.test}) and data.val ({config.val}) leave"
        raise DataError(f"{said} {len(order)} for training: too few to split")
    train = train.take(order)
    mean, std = _statistics(train.images)
    return Dataset(config.source, train, val, test, classes, mean, std, _digest(train, val, test))


def _place(config: Data, data_dir: Path) -> Path:
    """Where the files of a source lie."""
    return data_dir.expanduser() / Path(config.path or config.source).expanduser()


def _read(config: Data, data_dir: Path) -> tuple[Split, Split | None, Split | None]:
    """Images for training, and for validation and test where the data have some of their own."""
    train: Split
    test: Split | None = None
    folder = _place(config, data_dir)
    if config.source == "digits":
        train = _digits()
    elif config.function is not None:
        train, test = _custom(config.function)
    elif config.source == "folder":
        return _folder(folder, config.size or 64)
    elif config.source == "parquet" or any(folder.glob("**/*.parquet")):  # a copy of the Hugging Face data set
        return _parquet(folder, config.size)
    else:
        train, test = _torchvision(config.source, data_dir.expanduser())
    return _resized(train, config.size), None, test and _resized(test, config.size)


def _custom(name: str) -> tuple[Split, Split | None]:
    """What a user's function gives: images and labels, or two pairs of them. Its permission was asked for when the
    sweep file was read."""

    def split(images: Any, labels: Any) -> Split:
        x, y = (a if isinstance(a, Tensor) else _tensor(np.ascontiguousarray(a)) for a in (images, labels))
        y = y if y.is_floating_point() else y.long()
        if x.ndim == 4 and x.shape[3] == 1:
            x = x[..., 0]
        if x.ndim == 3:
            x = _three_channels(x)
        pictures = x.dtype == torch.uint8 and x.ndim == 4 and x.shape[3] == 3 and y.shape == x.shape[:1] != (0,)
        if not pictures or y.is_floating_point() or y.min() < 0 or y.max() >= 1_000_000:
            said = f"{x.dtype} {list(x.shape)} and {y.dtype} {list(y.shape)}"
            said += f" from {y.min()} to {y.max()}" if len(y) else ""
            raise DataError(
                f"{name}() gives {said}; wanted: images uint8 [N, H, W, 3], labels whole numbers [N] from 0"
            )
        return Split(x.contiguous(), y)

    function = find_function(name, [name.partition(".")[0]])
    try:
        given: Any = function()
        given = list(given) if isinstance(given, Iterator) else given
    except Exception as error:  # whatever its author's code does
        at = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {first_line(error)} ({at.filename}:{at.lineno})"
        raise DataError(f"{name}() failed: {said}") from None
    try:
        if not isinstance(given, (tuple, list)):
            raise TypeError(f"but a {type(given).__name__}")
        several = bool(given) and all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in given)
        splits = [split(*pair) for pair in (given if several else [given])]
    except (TypeError, ValueError) as error:
        wanted = "wanted: images uint8 [N, H, W, 3] and labels [N], or two such pairs"
        raise DataError(f"{name}() does not give images and labels ({first_line(error)}); {wanted}") from None
    if len(splits) > 2:
        raise DataError(f"{name}() gives {len(splits)} pairs; wanted: one, or two for training and test")
    return splits[0], splits[1] if len(splits) > 1 else None


def _digits() -> Split:
    """scikit-learn's 1,797 handwritten digits, 8x8, real images that come with the package."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    grey = torch.from_numpy(np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8))
    return Split(grey[..., None].repeat(1, 1, 1, 3), torch.from_numpy(labels.astype(np.int64)))


def _torchvision(source: str, data_dir: Path) -> tuple[Split, Split]:
    """A data set that torchvision downloads (checksum verified) or finds under ``data_dir``."""
    from torchvision import datasets

    name = {"fashion_mnist": "FashionMNIST"}.get(source, source.upper())
    kind: Callable[..., Any] = getattr(datasets, name)

    def split(train: bool) -> Split:
        which = {"split": "train" if train else "test"} if source == "svhn" else {"train": train}
        try:
            try:
                found = kind(data_dir, download=False, **which)
            except RuntimeError:  # torchvision's word for "not here, or damaged"
                found = kind(data_dir, download=True, **which)
        except (OSError, RuntimeError, ValueError, EOFError, AssertionError) as error:
            raise DataError(
                f"{name} is missing or damaged under {data_dir} and cannot be downloaded "
                f"({first_line(error)[:120]}); put torchvision's files there, or the Hugging Face data "
                f"set's Parquet files as {data_dir / source}/*.parquet, or name their folder with --data-dir"
            ) from None
        images = torch.as_tensor(np.asarray(found.data))
        if source == "svhn":  # [N, C, H, W]
            images = images.permute(0, 2, 3, 1).contiguous()
        labels = torch.as_tensor(np.asarray(found.labels if source == "svhn" else found.targets)).long()
        return Split(_three_channels(images), labels)

    return split(True), split(False)


def _parquet(folder: Path, size: int | None) -> tuple[Split, Split | None, Split | None]:
    """Parquet files in the Hugging Face layout: an image column of {bytes, path} and a label column."""
    if folder.is_file():
        return _parquet_split([folder], size), None, None
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; put train.parquet and test.parquet there")
    files = [file for file in sorted(folder.glob("**/*.parquet")) if not _hidden(file, folder)]
    if not files:
        raise DataError(f"{folder} holds no Parquet files; put train.parquet and test.parquet there")

    def named(words: Sequence[str]) -> list[Path]:
        word = re.compile(rf"(^|[^a-z])({'|'.join(words)})(set)?([^a-z]|$)")
        below = (f for f in files if f.parent != folder and f.parent.name.lower() in words)
        return [f for f in files if word.search(f.stem.lower())] or list(below)

    test, val = named(TEST), named(VAL)
    train = [f for f in named(TRAIN) or files if f not in (*test, *val)]
    if not train:
        raise DataError(f"{folder} holds no train*.parquet, only {', '.join(f.name for f in files[:3])}")
    if len(where := {f.parent for f in train}) > 1:
        said = _listed([str(parent.relative_to(folder)) for parent in where])
        raise DataError(
            f"{folder}: files for training lie in several folders ({said}); name one of them in data.path"
        )
    splits = [_parquet_split(several, size) if several else None for several in (val, test)]
    return _parquet_split(train, size), *_held(*splits)


def _held(val: Split | None, test: Split | None) -> tuple[Split | None, Split | None]:
    """A split of its own for the confirmed winners comes first: what is alone is that."""
    return (val, test) if test is not None else (None, val)


def _parquet_split(files: Sequence[Path], size: int | None) -> Split:
    import pandas as pd

    images: list[Pixels] = []
    labels: list[np.ndarray[Any, Any]] = []
    for file in files:
        try:
            table = pd.read_parquet(file)
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise DataError(f"{file} cannot be read ({first_line(error)[:120]}); fetch it again") from None
        image = next((c for c in ("img", "image", "images", "pixels") if c in table.columns), None)
        label = next((c for c in ("label", "labels", "fine_label", "target", "class") if c in table.columns), None)
        if image is None or label is None:
            columns = ", ".join(map(str, table.columns))
            raise DataError(f"{file} needs an image column (img, image) and a label column (label); it has {columns}")
        blobs: list[Any] = [value.get("bytes") if isinstance(value, dict) else value for value in table[image]]
        if (row := next((i for i, blob in enumerate(blobs) if not isinstance(blob, bytes)), None)) is not None:
            what = f"{type(blobs[row]).__name__} in row {row}"
            raise DataError(f"{file}: {image!r} must hold the bytes of image files, as of a PNG, not {what}")
        with closing(all_decoded(blobs, size)) as decoded:
            for row, found in enumerate(decoded):
                if isinstance(found, Exception):
                    raise DataError(f"{file}, row {row}: the image cannot be decoded ({found}); fetch it again")
                images.append(found)
        if not len(table):  # an empty shard
            continue
        numbers = pd.to_numeric(table[label], errors="coerce").astype("float64")
        whole = ((numbers >= 0) & (numbers == numbers.round())).tolist()
        if not all(whole):
            row = whole.index(False)
            said = f"not {table[label].tolist()[row]!r} as in row {row}; number the classes, leave out what has none"
            raise DataError(f"{file}: the labels in {label!r} must be whole numbers from 0, {said}")
        if numbers.max() >= 1_000_000:
            raise DataError(f"{file}: {label!r} has {numbers.max():.0f}: labels number the classes, from 0")
        labels.append(numbers.to_numpy(dtype=np.int64))
    if not images:
        raise DataError(f"{files[0]}: there is no row in it")
    if len({i.shape for i in images}) > 1:
        raise DataError(f"{files[0]}: the images differ in size; set data.size, such as 64")
    return Split(torch.from_numpy(np.stack(images)), torch.from_numpy(np.concatenate(labels)))


def _folder(folder: Path, size: int) -> tuple[Split, Split | None, Split | None]:
    """``folder/<class>/*.jpg``, or ``folder/train/<class>/...`` with ``test`` or ``val`` or both beside it."""
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS

    endings = (*IMG_EXTENSIONS, ".avif", ".gif", ".jfif")
    kinds = ", ".join(endings)

    def shown(path: str) -> bool:
        return path.lower().endswith(endings) and not _hidden(Path(path), folder)

    def split(root: Path) -> tuple[Split, list[str]]:
        if not root.is_dir():
            raise DataError(f"there is no folder {root}; put each class into one of its own, as in {root}/cats/1.jpg")
        try:
            found = ImageFolder(str(root), allow_empty=True, is_valid_file=shown)
            if not found.samples:
                raise OSError(f"it holds no {kinds}")
        except OSError as error:
            raise DataError(
                f"{root} is no folder of images ({first_line(error)[:120]}); put each class "
                f"into a folder of its own, as in {root}/cats/1.jpg"
            ) from None
        if all(name.lower() in SPLITS for name in found.classes):
            raise DataError(f"{root}: {_listed(found.classes)} are splits, not classes; name one of them train")
        if empty := set(found.classes) - {found.classes[label] for label in found.targets}:
            raise DataError(
                f"{root}: class folders without an image: {_listed(empty)}; put some there ({kinds}) or remove them"
            )
        paths = [Path(path) for path, _ in found.samples]
        images = np.empty((len(paths), size, size, 3), dtype=np.uint8)
        with closing(all_decoded(paths, size)) as decoded:
            for i, image in enumerate(decoded):
                if isinstance(image, Exception):
                    raise DataError(f"{paths[i]} cannot be decoded ({image}); remove it or fetch it again")
                images[i] = image
        return Split(torch.from_numpy(images), torch.tensor(found.targets)), found.classes

    there = sorted(folder.iterdir()) if folder.is_dir() else []
    inside = {path.name.lower(): path for path in there if path.is_dir() and not _hidden(path, folder)}
    below, val_folder, test_folder = (
        next((inside[w] for w in words if w in inside), None) for words in (TRAIN, VAL, TEST)
    )
    if below is None:
        return split(folder)[0], None, None
    if beside := [path.name for word, path in inside.items() if word not in SPLITS]:
        said = "a split beside classes; put the classes into one folder, or the splits"
        raise DataError(f"{folder}: {below.name} stands beside {_listed(beside)}: {said}")
    train, classes = split(below)

    def held(root: Path | None) -> Split | None:
        if root is None:
            return None
        found, others = split(root)
        if others != classes:
            missing, extra = _listed(set(classes) - set(others)), _listed(set(others) - set(classes))
            raise DataError(
                f"{root} has other classes than {below} "
                f"(missing: {missing}; extra: {extra}): give both the same folders"
            )
        return found

    return train, *_held(held(val_folder), held(test_folder))


def _hidden(file: Path, below: Path) -> bool:
    """Whether programs keep it there for themselves."""
    return any(part.startswith(".") or part in ("__MACOSX", "@eaDir") for part in file.relative_to(below).parts)


def _listed(names: Collection[str]) -> str:
    """The first of them, and whether there are more."""
    return (", ".join(sorted(names)[:5]) or "none") + ", ..." * (len(names) > 5)


def _resized(split: Split, size: int | None) -> Split:
    """The middle squares, as ``images.decoded`` has them; without a ``size`` all of it."""
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


def _three_channels(images: Tensor) -> Tensor:
    return images if images.ndim == 4 else images[..., None].repeat(1, 1, 1, 3)


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
    device = data.images.device
    margin = config.pad
    framed = padded(data.images, margin)
    tables = Tables.draw(len(data), config, seed, epoch).to(device)

    def batch(i: int) -> tuple[Tensor, Tensor]:
        at = slice(i * batch_size, (i + 1) * batch_size)
        index = tables.order[at]
        images = augmented(framed, index, tables.dy[at], tables.dx[at], tables.flip[at], margin)
        return images, data.labels[index]

    return batch
