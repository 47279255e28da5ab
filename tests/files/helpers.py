"""Images on disk as people have them, and what was read of them."""

import io
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from runner.files.sources import DataError
from runner.files.sweep_file import Data
from runner.training.data import Dataset, Split, load


def pictures(n: int, size: int = 8, seed: int = 0) -> np.ndarray:
    """``n`` different images, ``[n, size, size, 3]``."""
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_parquet(file: Path, images, labels, image: str = "img", label: str = "label") -> Path:
    """A Parquet file as the Hugging Face hub has them; an image may also be bytes as they are."""
    blobs = [i if isinstance(i, bytes) else png(i) for i in images]
    column = [{"bytes": blob, "path": f"{n}.png"} for n, blob in enumerate(blobs)]
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({image: column, label: list(labels)}).to_parquet(file)
    return file


def write_classes(folder: Path, classes, each: int = 10, size: int = 8, seed: int = 0) -> np.ndarray:
    """``folder/<class>/<n>.png``; the images that it wrote, class by class."""
    images = pictures(each * len(classes), size, seed)
    for n, image in enumerate(images):
        file = folder / classes[n // each] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(image))
    return images


def samples(*splits: Split) -> list[tuple[bytes, int]]:
    """Every (pixels, label) of the splits, sorted: two sets hold the same samples where these are equal."""
    return sorted((i.numpy().tobytes(), int(n)) for s in splits for i, n in zip(s.images, s.labels, strict=True))


def written(images, labels) -> list[tuple[bytes, int]]:
    return sorted((i.tobytes(), int(n)) for i, n in zip(images, labels, strict=True))


def parquet(tmp_path: Path, name: str = "set", **settings) -> Dataset:
    return load(Data(source="parquet", path=name, **settings), str(tmp_path))


def folder(tmp_path: Path, name: str = "set", size: int = 8, **settings) -> Dataset:
    return load(Data(source="folder", path=name, size=size, **settings), str(tmp_path))


@contextmanager
def complaint(*names: object):
    """A DataError on one line that says all of ``names``: the file, and what to do."""
    with pytest.raises(DataError) as info:
        yield
    said = str(info.value)
    assert "\n" not in said
    assert [str(name) for name in names if str(name) not in said] == [], said


def warned(dataset: Dataset, *words: str) -> bool:
    """Whether one of the warnings about the data has all of ``words``."""
    return any(all(word in warning for word in words) for warning in dataset.notes.all_warnings())
