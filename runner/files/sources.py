"""Where images come from: one function for each source, each giving arrays, or files that are decoded later.

To add a source, write a function of a ``Location`` that returns ``Splits``, and put it into ``SOURCES``.
"""

from __future__ import annotations

import json
import os
import re
import stat
import traceback
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np

from ..schedules.plugins import find_function
from .document import SpecError, first_line, printable
from .images import Encoded, Pixels, decode_all, formats

TRAIN = ("train", "training")
VAL = ("val", "valid", "validation", "dev", "eval")
TEST = ("test", "testing")
SPLITS = (*TRAIN, *VAL, *TEST)
"""What folders and Parquet files of a split are called."""


class DataError(SpecError):
    """Data that are missing or damaged: what, and how to mend it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, key=("data",))


class DamagedFile(Exception):
    """A file that has images, and cannot be read."""

    def __init__(self, file: Path, error: Exception) -> None:
        self.name, self.reason = str(file), f"{type(error).__name__}: {first_line(error)[:120]}"
        super().__init__(self.name, self.reason)


BROKEN, SPECIAL = "broken link(s)", "special file(s) (pipe, socket or device)"
LOOP, CLOSED = "link(s) to a folder that is read already", "folder(s) that must not be read"
OUTSIDE, NO_SPLIT = "image(s) outside the class folders", "Parquet file(s) of no split"
NO_LABEL, NO_ENDING = "image(s) without a label in the {} split", "file(s) without an ending"
UNREAD = frozenset(
    {".dcm", ".heic", ".heif", ".jxl", ".svg", ".pdf", ".eps", ".ps", ".wmf", ".emf", ".exr", ".hdr", ".raw", ".dng"}
    | {".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".nii", ".npy", NO_ENDING}
)
"""Endings under which pictures are left out that somebody may miss."""


@dataclass
class Notes:
    """What is noticed while data are read. As text it is what belongs beside the number of images."""

    left_out: Counter[str] = field(default_factory=Counter)
    """How many, by ending or by another reason."""
    changed: list[str] = field(default_factory=list)
    """What decoding has changed, with an entry for each image."""
    damaged: dict[str, tuple[str, str]] = field(default_factory=dict)
    """For each file or image: that it cannot be ``read``, or ``decoded``, and why."""
    facts: list[str] = field(default_factory=list)
    """What else the line says, such as how many images are identical."""
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        left = _counted(self.left_out)
        parts = "left out: " * bool(left) + left, _counted(Counter(self.changed)), *self.facts
        return printable("; ".join(filter(None, parts)))

    def all_warnings(self) -> list[str]:
        """Those that were given, and those about files that were left out."""
        unread, unlabelled = (
            _counted({reason: n for reason, n in self.left_out.items() if reason in reasons})
            for reasons in (UNREAD, {NO_LABEL.format(name) for name in ("validation", "test")})
        )
        said = [
            *self.warnings,
            *[f"{unread} left out, which Pillow does not read: convert them to JPEG or PNG"] * bool(unread),
            *[f"{unlabelled} left out; a split without any label counts as none"] * bool(unlabelled),
        ]
        return [printable(warning) for warning in said]

    def refuse_damaged(self) -> None:
        """Raise a DataError that names all that is damaged, if something is."""
        if len(self.damaged) == 1:
            ((name, (verb, reason)),) = self.damaged.items()
            raise DataError(f"{name} cannot be {verb} ({reason}); fetch it again, or remove it")
        if self.damaged:
            below, reasons = Path(os.path.commonpath(self.damaged)), {reason for _, reason in self.damaged.values()}
            same = f" ({min(reasons)})" * (len(reasons) == 1)
            each = [
                str(Path(name).relative_to(below)) + f" ({shorten(reason, 50)})" * (not same)
                for name, (_, reason) in [*self.damaged.items()][:10]
            ]
            wrong = f"{len(self.damaged)} files or images cannot be read{same}; fetch them again, or remove them"
            raise DataError(f"{below}: {wrong}: {', '.join(each)}" + ", ..." * (len(self.damaged) > 10))


def _counted(reasons: Mapping[str, int]) -> str:
    """``2 broken links, 1 .txt``: the most frequent first, and whether there are more kinds."""
    several = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{n} {reason.replace('(s)', 's' * (n != 1))}" for reason, n in several if n]
    return ", ".join(words[:8]) + ", ..." * (len(words) > 8)


@dataclass(frozen=True)
class Files:
    """Images in files, to be decoded when it is known which of them are used."""

    root: Path
    """What they are in."""
    size: int | None
    """Pixels of a side that they get; None where all have the same."""
    name: Callable[[int], str]
    """What the i-th one is called."""
    encoded: Callable[[Pixels], Iterator[Encoded]]
    """Those of these numbers, which rise."""

    def decode(self, wanted: Pixels, make: Callable[[tuple[int, ...]], Pixels], notes: Notes) -> Pixels | None:
        """Images ``[len(wanted), H, W, 3]``, in an array that ``make`` gives for a shape; those that are damaged are
        in the notes, and where all are it is None. Raises DataError where they differ in size."""
        order, array = np.argsort(wanted, kind="stable"), None
        pictures = decode_all(self.encoded(wanted[order]), self.size, notes.changed)
        for i, picture in zip(order, pictures, strict=True):
            if isinstance(picture, DamagedFile):  # which has this image and others
                notes.damaged[picture.name] = "read", picture.reason
            elif isinstance(picture, Exception):
                notes.damaged[self.name(wanted[i])] = "decoded", first_line(picture)
            else:
                array = make((len(wanted), *picture.shape)) if array is None else array
                if picture.shape != array.shape[1:]:
                    raise DataError(f"{self.root}: the images differ in size; set data.size, such as 64")
                array[i] = picture
        return array


Arrays = tuple[Pixels | Files, Pixels]
"""Images ``[N, H, W, 3]`` uint8, or the files that have them, and their labels ``[N]`` int64 from 0."""


class Splits(NamedTuple):
    """Images for training, and those that the data themselves set apart."""

    train: Arrays
    val: Arrays | None = None
    test: Arrays | None = None
    names: Sequence[str] = ()
    """Of the classes, by label, where the data have some."""
    notes: Notes | None = None


@dataclass(frozen=True)
class Location:
    """Where a source looks: ``folder`` is ``data_dir`` and the path in the sweep file, or the source's name."""

    folder: Path
    data_dir: Path
    size: int | None = None
    """Pixels of a side that the images get, for sources that read files of images."""
    function: str = ""


@dataclass(frozen=True)
class Source:
    """How a source is read, and which keys of ``data`` it needs: path, size, function."""

    read: Callable[[Location], Splits]
    needs: frozenset[str] = frozenset()


def _custom(location: Location) -> Splits:
    """What a user's function gives, permitted when the sweep file was read: images and labels, or two such pairs."""
    import torch  # whose types the message names

    name, notes = location.function, Notes()

    def split(held: bool, images: Any, labels: Any) -> Arrays:
        x, y = (a if isinstance(a, torch.Tensor) else torch.tensor(np.ascontiguousarray(a)) for a in (images, labels))
        y = y if y.is_floating_point() else y.long()
        x = x[..., None] if x.ndim == 3 else x
        x = x.repeat(1, 1, 1, 3) if x.ndim == 4 and x.shape[3] == 1 else x
        if held and x.shape[:1] == y.shape and (unlabelled := y == -1).any():
            notes.left_out[NO_LABEL.format("test")] = int(unlabelled.sum())
            x, y = x[~unlabelled], y[~unlabelled]
            if not len(y):
                return x.numpy(), y.numpy()
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
        splits = [partial(split, i == 1)(*pair) for i, pair in enumerate(given if several else [given])]
    except (TypeError, ValueError) as error:
        wanted = "wanted: images uint8 [N, H, W, 3] and labels [N], or two such pairs"
        raise DataError(f"{name}() does not give images and labels ({first_line(error)}); {wanted}") from None
    if len(splits) > 2:
        raise DataError(f"{name}() gives {len(splits)} pairs; wanted: one, or two for training and test")
    return Splits(splits[0], *_apart(None, splits[1] if len(splits) > 1 else None), notes=notes)


def _digits(_: Location) -> Splits:
    """scikit-learn's 1,797 handwritten digits, 8x8, real images that come with the package."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    grey = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return Splits((_three_channels(grey), labels.astype(np.int64)))


def _torchvision(name: str, location: Location) -> Splits:
    """A data set that torchvision downloads (checksum verified) or finds under ``data_dir``; or a copy of its Hugging
    Face data set in ``folder``."""
    if _parquet_files(location.folder, Notes()):
        return _parquet(location)
    from torchvision import datasets

    kind: Callable[..., Any] = getattr(datasets, name)
    data_dir, svhn = location.data_dir, name == "SVHN"

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
            advice += f"{location.folder}/*.parquet, or name their folder with --data-dir"
            raise DataError(f"{wrong} ({first_line(error)[:120]}); {advice}") from None
        images, labels = np.asarray(found.data), np.asarray(found.labels if svhn else found.targets)
        return _three_channels(images.transpose(0, 2, 3, 1) if svhn else images), labels.astype(np.int64)

    return Splits(split(True), test=split(False))


def _three_channels(images: Pixels) -> Pixels:
    return np.ascontiguousarray(images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3))


def _parquet(location: Location) -> Splits:
    """Parquet files in the Hugging Face layout: an image column of {bytes, path} and a label column."""
    folder, size, notes = location.folder, location.size, Notes()
    if folder.is_file():
        return _sound(Splits(_parquet_split([folder], size, notes), names=_class_names(folder), notes=notes))
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; put train.parquet and test.parquet there")
    files = _parquet_files(folder, notes)
    if not files:
        raise DataError(f"{folder} holds no Parquet files; put train.parquet and test.parquet there")

    def named(words: Sequence[str]) -> list[Path]:
        word = re.compile(rf"(^|[^a-z])({'|'.join(words)})(set)?([^a-z]|$)")
        parents = {f: f.parent.name.lower().removesuffix(".parquet") for f in files if f.parent != folder}
        return [f for f in files if word.search(f.stem.lower())] or [f for f in parents if parents[f] in words]

    test, val = named(TEST), named(VAL)
    train = [f for f in named(TRAIN) or files if f not in (*test, *val)]
    if not train:
        raise DataError(f"{folder} holds no train*.parquet, only {', '.join(f.name for f in files[:3])}")
    if len(folders := {str(f.parent.relative_to(folder)) for f in train}) > 1:
        spread = f"files for training lie in several folders ({_listed(folders)})"
        raise DataError(f"{folder}: {spread}; name one of them in data.path")
    notes.left_out[NO_SPLIT] = len({*files} - {*train, *val, *test})
    apart = [_parquet_split(f, size, notes, name) if f else None for f, name in ((val, "validation"), (test, "test"))]
    return _sound(Splits(_parquet_split(train, size, notes), *_apart(*apart), _class_names(train[0]), notes))


def _apart(val: Arrays | None, test: Arrays | None) -> tuple[Arrays | None, Arrays | None]:
    """A split of its own for the confirmed winners comes first: what is alone is that. A split without a single label
    is none."""
    val, test = (arrays if arrays and len(arrays[1]) else None for arrays in (val, test))
    return (val, test) if test is not None else (None, val)


def _sound(splits: Splits) -> Splits:
    """The same splits where no file is damaged; else a DataError that names all that is damaged in them."""
    notes = splits.notes
    if notes and notes.damaged:
        for images, labels in filter(None, splits[:3]):
            if isinstance(images, Files):
                images.decode(np.arange(len(labels)), partial(np.empty, dtype=np.uint8), notes)
        notes.refuse_damaged()
    return splits


def _parquet_files(folder: Path, notes: Notes) -> list[Path]:
    found = _walk(folder, notes).items() if folder.is_dir() else ()
    return sorted(below / name for below, names in found for name in names if name.endswith(".parquet"))


def _parquet_split(files: Sequence[Path], size: int | None, notes: Notes, name: str = "") -> Arrays:
    """The images of a split and their labels. In one with a ``name``, which is not for training, what has no label is
    left out. Damaged files are in the notes."""
    parts, rows, labels = list[tuple[Path, str]](), list[Pixels](), list[Pixels]()
    for file in files:
        try:
            column, *labelled = _labelled(file, notes, name)
        except SpecError:
            raise
        except Exception as error:  # whatever a damaged one makes of pyarrow: KeyError, NotImplementedError, ...
            damaged = DamagedFile(file, error)
            notes.damaged[damaged.name] = "read", damaged.reason
        else:
            parts.append((file, column))
            rows.append(labelled[0])
            labels.append(labelled[1])
    if not (notes.damaged or name or any(map(len, rows))):
        raise DataError(f"{files[0]}: there is no row in it")
    of_part = np.repeat(np.arange(len(parts)), [*map(len, rows)])
    row_of = np.concatenate([*rows, np.zeros(0, np.int64)])

    def encoded(wanted: Pixels) -> Iterator[Encoded]:
        for i, (file, column) in enumerate(parts):
            yield from _blobs(file, column, row_of[wanted[of_part[wanted] == i]])

    images = Files(files[0], size, lambda i: f"{parts[of_part[i]][0]}, row {row_of[i]}", encoded)
    return images, np.concatenate([*labels, np.zeros(0, np.int64)])


def _labelled(file: Path, notes: Notes, name: str) -> tuple[str, Pixels, Pixels]:
    """The image column of a Parquet file, the numbers of its labelled rows, and their labels."""
    import pandas as pd
    import pyarrow.parquet as pq

    with pq.ParquetFile(file, page_checksum_verification=True) as opened:
        columns = opened.schema_arrow.names
        image = next((c for c in ("img", "image", "images", "pixels") if c in columns), None)
        label = next((c for c in ("label", "labels", "fine_label", "target", "class") if c in columns), None)
        if image is None or label is None:
            there = ", ".join(columns)
            raise DataError(f"{file} needs an image column (img, image) and a label column (label); it has {there}")
        values = opened.read([label], use_threads=False).column(0).to_pandas()
        if len(values) and not _is_bytes(opened.schema_arrow.field(image).type):
            other = next(opened.iter_batches(1, columns=[image])).column(0).to_pandas()[0]
            wrong = f"must hold the bytes of image files, as of a PNG, not {type(other).__name__} in row 0"
            raise DataError(f"{file}: {image!r} {wrong}")
    try:
        numbers = pd.to_numeric(values, errors="coerce").astype("float64")
    except (TypeError, ValueError):
        numbers = pd.Series(np.nan, values.index)
    rows = np.arange(len(numbers))
    if name:
        unlabelled = (values.isna() | (numbers == -1)).to_numpy()
        notes.left_out[NO_LABEL.format(name)] += int(unlabelled.sum())
        rows, numbers = rows[~unlabelled], numbers[~unlabelled]
    whole = ((numbers >= 0) & (numbers == numbers.round())).tolist()
    if not all(whole):
        row = int(rows[whole.index(False)])
        wrong = f"not {values.tolist()[row]!r:.60} as in row {row}; number the classes, leave out what has none"
        raise DataError(f"{file}: the labels in {label!r} must be whole numbers from 0, {wrong}")
    if numbers.max() >= 1_000_000:
        raise DataError(f"{file}: {label!r} has {numbers.max():.0f}: labels number the classes, from 0")
    return image, rows, numbers.to_numpy(dtype=np.int64)


def _is_bytes(kind: Any) -> bool:
    """Whether an Arrow type is that of encoded images: bytes, or a struct that has them."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(part.name == "bytes" and _is_bytes(part.type) for part in kind.fields)
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _class_names(file: Path) -> list[str]:
    """What Hugging Face's ClassLabel calls the classes; nothing where there is none."""
    import pyarrow.parquet as pq

    with suppress(Exception):  # the file may be damaged, and the JSON be anything
        features = json.loads(pq.read_schema(file).metadata[b"huggingface"])["info"]["features"]
        return next([*map(str, f["names"])] for name, f in features.items() if "label" in name and f.get("names"))
    return []


AT_ONCE = 2**25
"""Bytes that are read from a Parquet file at once: a row group may be larger than memory."""


def _blobs(file: Path, column: str, rows: Pixels) -> Iterator[Encoded]:
    """The encoded images of these rows; the same error for each row that cannot be read."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    given = first = 0
    try:
        options = {"page_checksum_verification": True, "buffer_size": 2**20, "pre_buffer": False}  # page by page
        with pq.ParquetFile(file, **options) as opened:
            nested = pa.types.is_struct(opened.schema_arrow.field(column).type)
            for group in range(opened.num_row_groups if len(rows) else 0):
                about = opened.metadata.row_group(group)
                last, several = first + about.num_rows, AT_ONCE * about.num_rows // max(1, about.total_byte_size)
                if ((rows >= first) & (rows < last)).any():
                    leaf = f"{column}.bytes" if nested else column
                    for batch in opened.iter_batches(max(1, min(1024, several)), [group], [leaf], use_threads=False):
                        here = rows[(rows >= first) & (rows < first + len(batch))] - first
                        taken = batch.column(0).take(pa.array(here))
                        blobs = pc.struct_field(taken, "bytes") if nested else taken
                        for blob in blobs.to_pylist():
                            given += 1
                            yield OSError("it has no bytes") if blob is None else blob
                        first += len(batch)
                first = last
    except Exception as error:  # as in _parquet_split
        yield from [DamagedFile(file, error)] * (len(rows) - given)


COMMON = "such as .jpg, .png, .webp, .tif"


def _folder(location: Location) -> Splits:
    """``folder/<class>/*.jpg``, or ``folder/train/<class>/...`` with ``test`` or ``val`` or both beside it."""
    folder, size, notes = location.folder, location.size or 64, Notes()

    def split(root: Path, name: str = "") -> tuple[Arrays, list[str]]:
        """The images below ``root`` and their labels, and the names of their classes. In a split with a ``name``,
        images that are in no class folder have no label."""
        if not root.is_dir():
            raise DataError(f"there is no folder {root}; put each class into one of its own, as in {root}/cats/1.jpg")
        found, files, labels, classes = _walk(root, notes), list[Path](), list[int](), dict[str, int]()
        beside = [file for file in found.pop(root) if _ending(file) in formats()]
        tops = {below: below.relative_to(root).parts[0] for below in found}
        for below in sorted(found, key=lambda below: (tops[below], str(below))):
            label = classes.setdefault(normalize("NFC", tops[below]), len(classes))
            endings = {file: _ending(file) for file in found[below]}
            notes.left_out.update(kind or NO_ENDING for kind in endings.values() if kind not in formats())
            files += (shown := [below / file for file, kind in endings.items() if kind in formats()])
            labels += [label] * len(shown)
        if beside:
            notes.left_out[NO_LABEL.format(name) if name and not classes else OUTSIDE] += len(beside)
        there = f"; {notes}" * bool(str(notes))
        if not files and not (name and beside and not classes):
            wrong = f"{root} is no folder of images: it holds no class folder with an image ({COMMON})"
            raise DataError(f"{wrong}; put each class into a folder of its own, as in {root}/cats/1.jpg{there}")
        if classes and all(name.lower() in SPLITS for name in classes):
            raise DataError(f"{root}: {_listed(classes)} are splits, not classes; name one of them train")
        with_images = {*labels}
        if empty := [name for name, label in classes.items() if label not in with_images]:
            wrong = f"{root}: class folders without an image: {_listed(empty)}"
            raise DataError(f"{wrong}; put some there ({COMMON}) or remove them{there}")

        def encoded(wanted: Pixels) -> Iterator[Encoded]:
            return (files[i] for i in wanted)

        images = Files(root, size, lambda i: str(files[i]), encoded)
        return (images, np.array(labels, dtype=np.int64)), [*classes]

    there = sorted(folder.iterdir()) if folder.is_dir() else []
    folders = [path for path in there if path.is_dir() and not _hidden(path.name)]
    loops = [path for path in folders if folder.resolve().is_relative_to(path.resolve())]
    inside = {path.name.lower(): path for path in folders if path not in loops}
    below, val, test = (next((inside[w] for w in words if w in inside), None) for words in (TRAIN, VAL, TEST))
    if below is None:
        train, classes = split(folder)
        return Splits(train, names=classes, notes=notes)
    if beside := [path.name for word, path in inside.items() if word not in SPLITS]:
        advice = "a split beside classes; put the classes into one folder, or the splits"
        raise DataError(f"{folder}: {below.name} stands beside {_listed(beside)}: {advice}")
    notes.left_out[LOOP] += len(loops)
    notes.left_out.update(f"folder called {p.name}" for p in inside.values() if p not in (below, val, test))
    train, classes = split(below)

    def apart(root: Path | None, name: str) -> Arrays | None:
        if root is None:
            return None
        (images, labels), others = split(root, name)
        if others and {*others} != {*classes}:
            missing, extra = _listed({*classes} - {*others}), _listed({*others} - {*classes})
            difference = f"(missing: {missing}; extra: {extra})"
            raise DataError(f"{root} has other classes than {below} {difference}: give both the same folders")
        return images, np.array([classes.index(name) for name in others], np.int64)[labels] if others else labels

    return Splits(train, *_apart(apart(val, "validation"), apart(test, "test")), classes, notes)


def _walk(root: Path, notes: Notes) -> dict[Path, list[str]]:
    """The folders below ``root``, itself first, and the names of the regular files in each, in order. A link to a
    folder is followed where what it leads to is not read already, and never to a folder around it. What programs keep
    for themselves is passed over: such a folder is there, and has no files."""
    found, seen, folders, links = dict[Path, list[str]](), set[str](), deque([root]), deque[Path]()
    while folders or links:  # links come last
        folder, linked = (folders.popleft(), False) if folders else (links.popleft(), True)
        real = os.path.realpath(folder)
        if real in seen or (linked and Path(os.path.realpath(folder.parent)).is_relative_to(real)):
            notes.left_out[LOOP] += 1
            continue
        seen.add(real)
        found[folder] = names = []
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            notes.left_out[CLOSED] += 1
            continue
        for entry in entries:
            path = folder / entry.name
            try:
                mode = entry.stat().st_mode
            except OSError:  # of what a link leads to
                notes.left_out[BROKEN] += not _hidden(entry.name)
                continue
            if _hidden(entry.name):
                found.update({path: []} if stat.S_ISDIR(mode) else {})
            elif stat.S_ISDIR(mode):
                (links if entry.is_symlink() else folders).append(path)
            elif stat.S_ISREG(mode):
                names.append(entry.name)
            else:
                notes.left_out[SPECIAL] += 1
    return found


def _ending(name: str) -> str:
    return Path(name).suffix.lower()


def _hidden(name: str) -> bool:
    """Whether programs keep it there for themselves."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


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
