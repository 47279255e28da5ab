"""Images from files, by as many processes as there are cores: Pillow keeps Python's lock while it decodes small ones.

What those processes import is this module, without torch, so that they begin in half a second. Each ends with its
pipe, that is with the process that began it.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import subprocess
import sys
import time
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

ALONE = 1.0
"""Seconds in which this process decodes by itself; others begin where what is left takes as long."""

GONE = OSError, EOFError, pickle.UnpicklingError
"""What a pipe says whose other end is."""

Pixels = np.ndarray[Any, Any]


def all_decoded(sources: Sequence[bytes | Path], size: int | None = None) -> Generator[Pixels | Exception]:
    """What ``decoded`` gives of each, or the error that it raises, in order; to be closed."""
    from .lanes import cores

    done, n, start = 0, cores(), time.perf_counter()
    for source in sources:
        yield _tried(source, size)
        done, spent = done + 1, time.perf_counter() - start
        if n > 1 and min(spent, spent * (len(sources) / done - 1)) > ALONE:
            break
    rest, few = sources[done:], max(1, min(64, done // 4))  # a quarter of a second at most
    chunks, done = [rest[i : i + few] for i in range(0, len(rest), few)], 0
    helpers = list[subprocess.Popen[bytes]]()
    try:
        helpers += [_helper() for _ in range(min(n, len(chunks)))]
        for i, helper in enumerate(helpers):
            into = cast("IO[bytes]", helper.stdin)
            pickle.dump((chunks[i::n], size), into)
            into.flush()
        for i in range(len(chunks)):
            several = pickle.load(cast("IO[bytes]", helpers[i % n].stdout))  # noqa: S301 - by a pipe, from a process begun here
            done += len(several)
            yield from several
    except GONE:  # one has died, as for want of memory
        pass
    finally:
        for helper in helpers:
            helper.kill()
            with contextlib.suppress(OSError), helper:  # what it has not read
                pass
    yield from (_tried(source, size) for source in rest[done:])


def _helper() -> subprocess.Popen[bytes]:
    """A process of a session of its own, which Ctrl-C does not reach: it ends when this one does."""
    command = f"import sys; sys.path[:] = {sys.path!r}; from runner.images import serve; serve()"
    return subprocess.Popen(
        [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )


def serve() -> None:
    """In a helper: chunks of sources from standard input, what they are to standard output."""
    with contextlib.suppress(*GONE):  # nobody is there any more
        chunks, size = pickle.load(sys.stdin.buffer)  # noqa: S301 - by a pipe, from its parent alone
        for chunk in chunks:
            pickle.dump([_tried(source, size) for source in chunk], sys.stdout.buffer)
            sys.stdout.buffer.flush()


def decoded(source: bytes | Path, size: int | None = None) -> Pixels:
    """``[H, W, 3]`` uint8; with ``size`` the middle square, resized (antialiased).

    Raises:
        Exception: it is no image, or a damaged one; Pillow has many.
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
    if size is not None:
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _tried(source: bytes | Path, size: int | None) -> Pixels | Exception:
    try:
        with warnings.catch_warnings(action="ignore"):  # of transparent palettes, odd notes, large images
            return decoded(source, size)
    except Exception as error:  # Pillow has many, for a damaged file
        return error
