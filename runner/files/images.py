"""Images from files as they are shown: upright, 8 bits, three channels, on white."""

from __future__ import annotations

import io
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it has to say comes as an error, too

SLOW = 0.001
"""Seconds for an image from which threads are faster: Pillow keeps Python's lock while it decodes smaller ones."""

Pixels = np.ndarray[Any, Any]
Encoded = bytes | Path | Exception
"""An image that is not decoded yet: its bytes, its file, or why there is none."""


_AFFINITY = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset[int]()


def affinity() -> frozenset[int]:
    """The CPUs that this process was given when it began: torch, told to bind threads, leaves its first thread one.
    Empty where the system does not say."""
    return _AFFINITY


def cores(root: Path = Path("/")) -> int:
    """CPU cores that this process may use: those it was given, or as many as a quota (a container's) comes to."""
    found = [len(_AFFINITY) or os.cpu_count() or 1]
    for group, first in _groups(root, "cpu"):
        files = ["cpu.cfs_quota_us", "cpu.cfs_period_us"] if first else ["cpu.max"]
        with suppress(OSError, ValueError):  # "max" is none
            quota, period = map(int, " ".join((group / file).read_text() for file in files).split())
            if quota > 0 < period:
                found.append(max(1, math.ceil(quota / period)))
    return min(found)


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: what the machine has left, or less where its control group (a
    container's) has a limit. None where nobody says so."""

    def number(file: Path) -> int | None:
        with suppress(OSError, ValueError):  # "max" is none
            return int(file.read_text())
        return None

    def field(file: Path, name: str) -> int:
        with suppress(OSError, ValueError, IndexError):
            return next((int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(name)), 0)
        return 0

    found = [n * 1024 for n in [field(root / "proc/meminfo", "MemAvailable:")] if n]
    for group, first in _groups(root, "memory"):
        names = ("limit_in_bytes", "usage_in_bytes", "total_") if first else ("max", "current", "")
        limit, used = (number(group / f"memory.{name}") for name in names[:2])
        if limit is not None and used is not None:
            found.append(max(0, limit - used + field(group / "memory.stat", f"{names[2]}inactive_file ")))
    return min(found, default=None)


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """The folders of this process's control group and of those around it, each of which may have a limit; and whether
    they are of the first version."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            first = controller in kinds.split(",")
            if kinds and not first:
                continue
            top = root / "sys/fs/cgroup" / (controller if first else "")
            own = top / path.lstrip("/")
            for group in (own, *own.parents):
                yield group, first
                if group == top:
                    break


NO_PIXELS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
"""Formats that Pillow knows and cannot decode, or only with another program, which no file of data should start."""


@cache
def formats() -> dict[str, str]:
    """What this Pillow decodes: the format of every ending, such as ``.png``."""
    from PIL import Image

    known = Image.registered_extensions().items()
    return {ending: kind for ending, kind in known if kind in Image.OPEN and kind not in NO_PIXELS}


def decode_all(
    sources: Iterable[Encoded], size: int | None = None, noted: list[str] | None = None
) -> Iterator[Pixels | Exception]:
    """What ``decode`` gives of each, or the error that it raises, in order."""

    def one(source: Encoded) -> Pixels | Exception:
        try:
            return source if isinstance(source, Exception) else decode(source, size, noted)
        except Exception as error:  # Pillow has many, for a damaged file
            return error

    def several(images: Iterable[Encoded], how: Callable[..., Iterable[Any]]) -> list[Pixels | Exception]:
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


ON_WHITE = "transparent, composited on white"
SCALED = "of more than 8 bits, scaled to 8"
FIRST = "of several frames, of which the first is taken"
ENLARGED = "smaller than data.size, enlarged"


def decode(source: bytes | Path, size: int | None = None, noted: list[str] | None = None) -> Pixels:
    """``[H, W, 3]`` uint8; with ``size`` the middle square, resized (antialiased). ``noted`` gets a word for whatever
    is not in the pixels any more. Raises one of Pillow's many errors where it is no image, or a damaged one."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    noted = [] if noted is None else noted
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=kinds()) as image:
            picture = _shown(image, noted)
            if _has_more_frames(image):
                noted.append(FIRST)
    except UnidentifiedImageError:
        raise OSError(_what_it_is(source)) from None
    if size is not None:
        if min(picture.size) < size:
            noted.append(ENLARGED)
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture)


@cache
def kinds() -> tuple[str, ...]:
    """The formats that are tried, whatever a file is called: the usual ones first."""
    usual = ("PPM", "GIF", "BMP", "TIFF", "WEBP", "PNG", "JPEG")
    return tuple(sorted({*formats().values()}, key=lambda kind: -usual.index(kind) if kind in usual else 1))


def _shown(image: Image.Image, noted: list[str]) -> Image.Image:
    """The picture in RGB, as it is shown: upright, and on white where it is transparent."""
    from PIL import Image, ImageOps

    tags: Any = getattr(image, "tag_v2", {})  # a TIFF's
    raw = str(image.tile[0][3]) if image.tile else ""  # type: ignore[attr-defined]
    grey = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG"))
    if image.mode in ("I", "F") and not grey:
        bits, sign = tags.get(258, (32,))[0], "signed " * (tags.get(339, (1,))[0] == 2)
        kind = "floating-point numbers" if image.mode == "F" else f"{sign}whole numbers"
        raise OSError(f"{kind} of {bits} bits, whose range nobody knows: save it with 8 bits, or 16 without a sign")
    if grey or ";16" in raw or tags.get(258, (8,))[0] > 8:
        noted.append(SCALED)
    if "transparency" in image.info and image.format == "PNG":
        image.info["transparency"] = _key_in_8_bits(image.info["transparency"], raw)
    upright: Image.Image = ImageOps.exif_transpose(image)  # as a camera was held
    clear = upright.has_transparency_data
    if grey:
        wide, white = np.asarray(upright).astype(np.uint32), 2 ** tags.get(258, (16,))[0] - 1
        narrow = (wide * 255 // white).astype(np.uint8)
        if tags.get(262) == 0:  # white is zero; Pillow inverts 8 bits and no others
            narrow = 255 - narrow
        alpha = np.where(wide == upright.info["transparency"], 0, 255).astype(np.uint8) if clear else None
        upright = Image.fromarray(narrow if alpha is None else np.stack([narrow, alpha], axis=-1))
    if not clear:
        return upright.convert("RGB")
    layer = upright.convert("LA" if upright.mode == "La" else "RGBA").convert("RGBA")
    if layer.getchannel("A").getextrema() != (255, 255):
        noted.append(ON_WHITE)
        layer = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return layer.convert("RGB")


def _key_in_8_bits(key: Any, raw: str) -> Any:
    """A PNG's transparent colour has as many bits as its file (``raw``); Pillow compares it with 8."""
    if isinstance(key, tuple) and ";16" in raw:
        return tuple(part >> 8 for part in key)
    return key * {"L;2": 85, "L;4": 17}.get(raw, 1) if isinstance(key, int) else key


def _has_more_frames(image: Image.Image) -> bool:
    """Whether it is an animation or has pages; not a camera's MPO, whose others are previews, nor PSD's layers."""
    with suppress(Exception):  # of what is damaged behind the first one
        return image.format not in ("MPO", "PSD") and bool(getattr(image, "is_animated", False))
    return False


def _what_it_is(source: bytes | Path) -> str:
    """What a file is that Pillow does not know, as far as its first bytes say so."""
    from PIL import TiffImagePlugin

    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        head = file.read(16)
        if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1"):
            return "HEIC, whatever it is called: convert it to JPEG or PNG"
        if head[:4] in TiffImagePlugin.PREFIXES:
            with suppress(Exception):
                directory = TiffImagePlugin.ImageFileDirectory_v2(head if head[2:3] in b"+" else head[:8])
                file.seek(directory.next)
                directory.load(file)
                bands, bits = directory.get(277, 1), directory.get(258, (1,))[0]
                remedy = "save three bands as RGB with 8 bits, or give the pixels by a function (data.source: custom)"
                return (
                    f"a TIFF of {bands} band{'s' * (bands != 1)} of {bits} bits, which Pillow does not read: {remedy}"
                )
    return "not an image" if head else "an empty file"
