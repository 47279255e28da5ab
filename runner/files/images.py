"""Images from files: upright, 8 bits, three channels."""

from __future__ import annotations

import io
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

SLOW = 0.001
"""Seconds for an image from which threads are faster: Pillow keeps Python's lock while it decodes smaller ones."""

Pixels = np.ndarray[Any, Any]


_AFFINITY = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset[int]()


def affinity() -> frozenset[int]:
    """The CPUs that this process was given when it began: torch, told to bind threads, leaves its first thread one.
    Empty where the system does not say."""
    return _AFFINITY


def cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPU cores that this process may use: those it was given, or as many as a container's quota comes to."""
    given = len(_AFFINITY) or os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:  # the first version of control groups
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{what}_us").read_text() for what in ("quota", "period"))
        except OSError:
            return given
    limited = quota.strip().isdigit() and int(period) > 0  # not "max", nor -1
    return max(1, min(given, math.ceil(int(quota) / int(period)))) if limited else given


def decode_all(sources: Sequence[bytes | Path], size: int | None = None) -> Iterator[Pixels | Exception]:
    """What ``decode`` gives of each, or the error that it raises, in order."""

    def one(source: bytes | Path) -> Pixels | Exception:
        try:
            return decode(source, size)
        except Exception as error:  # Pillow has many, for a damaged file
            return error

    def several(images: Iterable[bytes | Path], how: Callable[..., Iterable[Any]]) -> list[Pixels | Exception]:
        with warnings.catch_warnings(action="ignore"):  # of transparent palettes, odd notes, large images
            return list(how(one, images))

    rest, n = iter(sources), cores()
    yield from several(islice(rest, 1), map)  # the first loads Pillow's parts
    start, first = time.perf_counter(), several(islice(rest, 16), map)
    worth = n > 1 and time.perf_counter() - start > SLOW * len(first)
    yield from first
    with ThreadPoolExecutor(n) if worth else nullcontext() as pool:
        while decoded := several(islice(rest, 64 * n), pool.map if pool else map):  # so many in memory at once
            yield from decoded


def decode(source: bytes | Path, size: int | None = None) -> Pixels:
    """``[H, W, 3]`` uint8; with ``size`` the middle square, resized (antialiased). Raises one of Pillow's many errors
    where it is no image, or a damaged one."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            if image.mode in ("I", "F"):
                raise OSError("32 bits for each pixel, whose range nobody knows: save it with 8")
            upright: Image.Image = ImageOps.exif_transpose(image)  # as a camera was held
            if upright.mode.startswith("I;16"):
                upright = Image.fromarray((np.asarray(upright) // 257).astype(np.uint8))
            picture = upright.convert("RGB")
    except UnidentifiedImageError:
        raise OSError("not an image") from None
    if size is not None:
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture)
