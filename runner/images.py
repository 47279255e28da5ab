"""Images from files, by as many processes as there are cores: Pillow keeps Python's lock while it decodes small ones.

What those processes import is this module, without torch, so that they begin in half a second.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, resource_tracker
from pathlib import Path
from typing import Any

import numpy as np

from .stop import depend, held

ALONE = 1.0
"""Seconds in which this process decodes by itself: about what others need to begin."""
AT_ONCE = 256

Pixels = np.ndarray[Any, Any]


def all_decoded(sources: Sequence[bytes | Path], size: int | None = None) -> list[Pixels | Exception]:
    """What ``decoded`` gives of each, or the error that it raises."""
    from .lanes import cores

    found, decode, n, start = list[Pixels | Exception](), partial(_tried, size=size), cores(), time.perf_counter()
    while len(found) < len(sources):
        found.append(decode(sources[len(found)]))
        spent = time.perf_counter() - start
        if n > 1 and min(spent, spent * (len(sources) / len(found) - 1)) > ALONE:  # what is left takes so long too
            break
    if rest := sources[len(found) :]:
        pool = ProcessPoolExecutor(n, get_context("spawn"), initializer=depend)
        try:
            resource_tracker.ensure_running()  # which would let the signals through
            with held():
                others = pool.map(decode, rest, chunksize=min(AT_ONCE, -(-len(rest) // n)))
            found.extend(others)
        except BrokenProcessPool:  # too little memory for so many
            found.extend(map(decode, sources[len(found) :]))
        finally:
            pool.shutdown(cancel_futures=True)
    return found


def decoded(source: bytes | Path, size: int | None = None) -> Pixels:
    """``[H, W, 3]`` uint8; with ``size`` the middle square, resized (antialiased).

    Raises:
        OSError, TypeError, ValueError, SyntaxError: it is no image, or a damaged one.
    """
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
    except Image.DecompressionBombError as error:
        raise OSError(str(error)) from None
    if size is not None:
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _tried(source: bytes | Path, size: int | None) -> Pixels | Exception:
    try:
        return decoded(source, size)
    except (OSError, TypeError, ValueError, SyntaxError) as error:
        return error
