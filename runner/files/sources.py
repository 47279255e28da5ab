"""Where images come from: one function for each source, each giving NumPy arrays.

To add a source, write a function of a ``Place`` that returns ``Splits``, and put it into ``SOURCES``.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..schedules.plugins import find_function
from .document import SpecError, first_line
from .images import Pixels, decode_all

TRAIN = ("train", "training")
VAL = ("val", "valid", "validation", "dev", "eval")
TEST = ("test", "testing")
SPLITS = (*TRAIN, *VAL, *TEST)
"""What folders and Parquet files of a split are called."""

Arrays = tuple[Pixels, Pixels]
"""Images ``[N, H, W, 3]`` uint8, and their labels ``[N]`` int64 from 0."""


class DataError(SpecError):
    """Data that are missing or damaged: what, and how to mend it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, key=("data",))


class Splits(NamedTuple):
    """Images for training, and those that the data themselves set apart."""

    train: Arrays
    val: Arrays | None = None
    test: Arrays | None = None


@dataclass(frozen=True)
class Place:
    """Where a source looks: ``folder`` is ``data_dir`` and the path in the sweep file, or the source's name."""

    folder: Path
    data_dir: Path
    size: int | None = None
    """Pixels of a side that the images get, for sources that read files of images."""
    function: str = ""


@dataclass(frozen=True)
class Source:
    """How a source is read, and which keys of ``data`` it needs: path, size, function."""

    read: Callable[[Place], Splits]
    needs: frozenset[str] = frozenset()


def _custom(place: Place) -> Splits:
    """What a user's function gives, permitted when the sweep file was read: images and labels, or two such pairs."""
    import torch  # whose types the message names

    name = place.function

    def split(images: Any, labels: Any) -> Arrays:
        x, y = (a if isinstance(a, torch.Tensor) else torch.tensor(np.ascontiguousarray(a)) for a in (images, labels))
        y = y if y.is_floating_point() else y.long()
        x = x[..., None] if x.ndim == 3 else x
        x = x.repeat(1, 1, 1, 3) if x.ndim == 4 and x.shape[3] == 1 else x
        pictures = x.dtype == torch.uint8 and x.ndim == 4 and x.shape[3] == 3 and y.shape == x.shape[:1] != (0,)
        if not pictures or y.is_floating_point() or y.min() < 0 or y.max() >= 1_000_000:
            given = f"{x.dtype} {list(x.shape)} and {y.dtype} {list(y.shape)}"
            given += f" from {y.min()} to {y.max()}" if len(y) else ""
            wanted = "wanted: images uint8 [N, H, W, 3], labels whole numbers [N] from 0"
            raise DataError(f"{name}() gives {given}; {wanted}")
        return x.contiguous().numpy(), y.numpy()

    function = find_function(name, [name.partition(".")[0]])
    try:
        given: Any = function()
        given = list(given) if isinstance(given, Iterator) else given
    except Exception as error:  # whatever its author's code does
        at = traceback.extract_tb(error.__traceback__)[-1]
        cause = f"{type(error).__name__}: {first_line(error)} ({at.filename}:{at.lineno})"
        raise DataError(f"{name}() failed: {cause}") from None
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
    return Splits(splits[0], test=splits[1] if len(splits) > 1 else None)


def _digits(_: Place) -> Splits:
    """scikit-learn's 1,797 handwritten digits, 8x8, real images that come with the package."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    grey = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return Splits((_three_channels(grey), labels.astype(np.int64)))


def _torchvision(name: str, place: Place) -> Splits:
    """A data set that torchvision downloads (checksum verified) or finds under ``data_dir``; or a copy of its Hugging
    Face data set in ``folder``."""
    if any(place.folder.glob("**/*.parquet")):
        return _parquet(place)
    from torchvision import datasets

    kind: Callable[..., Any] = getattr(datasets, name)
    data_dir, svhn = place.data_dir, name == "SVHN"

    def split(train: bool) -> Arrays:
        part = {"split": "train" if train else "test"} if svhn else {"train": train}
        try:
            try:
                found = kind(data_dir, download=False, **part)
            except RuntimeError:  # torchvision's word for "not here, or damaged"
                found = kind(data_dir, download=True, **part)
        except (OSError, RuntimeError, ValueError, EOFError, AssertionError) as error:
            wrong = f"{name} is missing or damaged under {data_dir} and cannot be downloaded"
            advice = "put torchvision's files there, or the Hugging Face data set's Parquet files as "
            advice += f"{place.folder}/*.parquet, or name their folder with --data-dir"
            raise DataError(f"{wrong} ({first_line(error)[:120]}); {advice}") from None
        images, labels = np.asarray(found.data), np.asarray(found.labels if svhn else found.targets)
        return _three_channels(images.transpose(0, 2, 3, 1) if svhn else images), labels.astype(np.int64)

    return Splits(split(True), test=split(False))


def _three_channels(images: Pixels) -> Pixels:
    return np.ascontiguousarray(images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3))


def _parquet(place: Place) -> Splits:
    """Parquet files in the Hugging Face layout: an image column of {bytes, path} and a label column."""
    folder, size = place.folder, place.size
    if folder.is_file():
        return Splits(_parquet_split([folder], size))
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
    if len(folders := {str(f.parent.relative_to(folder)) for f in train}) > 1:
        spread = f"files for training lie in several folders ({_listed(folders)})"
        raise DataError(f"{folder}: {spread}; name one of them in data.path")
    splits = [_parquet_split(several, size) if several else None for several in (val, test)]
    return Splits(_parquet_split(train, size), *_apart(*splits))


def _apart(val: Arrays | None, test: Arrays | None) -> tuple[Arrays | None, Arrays | None]:
    """A split of its own for the confirmed winners comes first: what is alone is that."""
    return (val, test) if test is not None else (None, val)


def _parquet_split(files: Sequence[Path], size: int | None) -> Arrays:
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
        for row, blob in enumerate(blobs):
            if not isinstance(blob, bytes):
                wrong = f"not {type(blob).__name__} in row {row}"
                raise DataError(f"{file}: {image!r} must hold the bytes of image files, as of a PNG, {wrong}")
        for row, picture in enumerate(decode_all(blobs, size)):
            if isinstance(picture, Exception):
                raise DataError(f"{file}, row {row}: the image cannot be decoded ({picture}); fetch it again")
            images.append(picture)
        numbers = pd.to_numeric(table[label], errors="coerce").astype("float64")
        whole = ((numbers >= 0) & (numbers == numbers.round())).tolist()
        if not all(whole):
            row = whole.index(False)
            wrong = f"not {table[label].tolist()[row]!r} as in row {row}; number the classes, leave out what has none"
            raise DataError(f"{file}: the labels in {label!r} must be whole numbers from 0, {wrong}")
        if numbers.max() >= 1_000_000:
            raise DataError(f"{file}: {label!r} has {numbers.max():.0f}: labels number the classes, from 0")
        labels.append(numbers.to_numpy(dtype=np.int64))
    if not images:
        raise DataError(f"{files[0]}: there is no row in it")
    if len({i.shape for i in images}) > 1:
        raise DataError(f"{files[0]}: the images differ in size; set data.size, such as 64")
    return np.stack(images), np.concatenate(labels)


def _folder(place: Place) -> Splits:
    """``folder/<class>/*.jpg``, or ``folder/train/<class>/...`` with ``test`` or ``val`` or both beside it."""
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS

    folder, size = place.folder, place.size or 64
    endings = (*IMG_EXTENSIONS, ".avif", ".gif", ".jfif")
    kinds = ", ".join(endings)

    def shown(path: str) -> bool:
        return path.lower().endswith(endings) and not _hidden(Path(path), folder)

    def split(root: Path) -> tuple[Arrays, list[str]]:
        if not root.is_dir():
            raise DataError(f"there is no folder {root}; put each class into one of its own, as in {root}/cats/1.jpg")
        try:
            found = ImageFolder(str(root), allow_empty=True, is_valid_file=shown)
            if not found.samples:
                raise OSError(f"it holds no {kinds}")
        except OSError as error:
            wrong = f"{root} is no folder of images ({first_line(error)[:120]})"
            raise DataError(f"{wrong}; put each class into a folder of its own, as in {root}/cats/1.jpg") from None
        if all(name.lower() in SPLITS for name in found.classes):
            raise DataError(f"{root}: {_listed(found.classes)} are splits, not classes; name one of them train")
        if empty := set(found.classes) - {found.classes[label] for label in found.targets}:
            wrong = f"{root}: class folders without an image: {_listed(empty)}"
            raise DataError(f"{wrong}; put some there ({kinds}) or remove them")
        paths = [Path(path) for path, _ in found.samples]
        images = np.empty((len(paths), size, size, 3), dtype=np.uint8)
        for i, image in enumerate(decode_all(paths, size)):
            if isinstance(image, Exception):
                raise DataError(f"{paths[i]} cannot be decoded ({image}); remove it or fetch it again")
            images[i] = image
        return (images, np.array(found.targets, dtype=np.int64)), found.classes

    there = sorted(folder.iterdir()) if folder.is_dir() else []
    inside = {path.name.lower(): path for path in there if path.is_dir() and not _hidden(path, folder)}
    below, val, test = (next((inside[w] for w in words if w in inside), None) for words in (TRAIN, VAL, TEST))
    if below is None:
        return Splits(split(folder)[0])
    if beside := [path.name for word, path in inside.items() if word not in SPLITS]:
        advice = "a split beside classes; put the classes into one folder, or the splits"
        raise DataError(f"{folder}: {below.name} stands beside {_listed(beside)}: {advice}")
    train, classes = split(below)

    def apart(root: Path | None) -> Arrays | None:
        if root is None:
            return None
        found, others = split(root)
        if others != classes:
            missing, extra = _listed(set(classes) - set(others)), _listed(set(others) - set(classes))
            difference = f"(missing: {missing}; extra: {extra})"
            raise DataError(f"{root} has other classes than {below} {difference}: give both the same folders")
        return found

    return Splits(train, *_apart(apart(val), apart(test)))


def _hidden(file: Path, below: Path) -> bool:
    """Whether programs keep it there for themselves."""
    return any(part.startswith(".") or part in ("__MACOSX", "@eaDir") for part in file.relative_to(below).parts)


def _listed(names: Collection[str]) -> str:
    """The first of them, and whether there are more."""
    return (", ".join(sorted(names)[:5]) or "none") + ", ..." * (len(names) > 5)


SOURCES = {
    "digits": Source(_digits),
    "cifar10": Source(partial(_torchvision, "CIFAR10")),
    "cifar100": Source(partial(_torchvision, "CIFAR100")),
    "fashion_mnist": Source(partial(_torchvision, "FashionMNIST")),
    "mnist": Source(partial(_torchvision, "MNIST")),
    "svhn": Source(partial(_torchvision, "SVHN")),
    "folder": Source(_folder, frozenset({"path", "size"})),
    "parquet": Source(_parquet, frozenset({"path"})),
    "custom": Source(_custom, frozenset({"function"})),
}
"""By the name that ``data.source`` gives them."""
