"""Checkpoints: a long trial's state in files that know whose they are and notice every flipped bit.

A lane packs, the coordinator writes. A file holds all epochs so far; a trial that is taken up yields them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..files.trial import Config, Record

MAGIC = b"lr-sweep-runner checkpoint 1\n"
LARGEST = 2**32
"""Bytes of a file that may be a checkpoint: weights and optimizer state of 350 million parameters."""
KEPT = 2
"""Files of each trial: the newest, and the one before in case that one is damaged."""

State = Mapping[str, Any]
"""Plain values and tensors, by name: what a training loop's ``state`` gives, and takes."""


class DamagedError(Exception):
    """A file that is no checkpoint, is damaged, or is another trial's; the message says which."""


def identity(config: Config) -> str:
    """What a state belongs to: everything that decides the numbers, the version of torch included."""
    import torch

    return hashlib.sha256(f"{config.identity} {torch.__version__}".encode()).hexdigest()


def pack(config: Config, state: State) -> bytes:
    """A file's content: a line that says what it is, the SHA-256 of all that follows, the identity, the state."""
    import torch

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    body = identity(config).encode() + b"\n" + buffer.getvalue()
    return MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def verify(content: bytes, config: Config) -> bytes:
    """The state in a file's content, still packed; raises DamagedError where it is damaged, or not of this config."""
    if not content.startswith(MAGIC):
        raise DamagedError("is no checkpoint")
    digest, body = content[len(MAGIC) :][:64], content[len(MAGIC) + 64 :]
    if body[:1] != b"\n" or hashlib.sha256(body[1:]).hexdigest().encode() != digest:
        raise DamagedError("is damaged")
    if body[1:65] != identity(config).encode():
        raise DamagedError("is of another trial, engine or version of torch")
    return body[66:]


def read(path: Path, config: Config) -> bytes:
    """A file's content. Nothing is waited for, and no more is read than a checkpoint can have; errors as in
    ``verify``, or OSError."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST or file.read(len(MAGIC)) != MAGIC:
            raise DamagedError("is no checkpoint")
        content = MAGIC + file.read(LARGEST)
    verify(content, config)
    return content


def unpack(content: bytes, config: Config) -> State:
    """The state in a file's content, on the CPU; runs no code that stands there. Errors as in ``verify``."""
    import torch

    state: State = torch.load(io.BytesIO(verify(content, config)), weights_only=True, map_location="cpu")
    return state


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file, on disk when this returns, or raise OSError: what was there before stays until then."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Checkpoints:
    """The files of a sweep's trials, in a folder of their own."""

    def __init__(self, folder: Path, seconds: float, warn: Callable[[str], None]) -> None:
        self.folder, self.seconds, self.warn = folder, seconds, warn
        self._failed = False

    def _of(self, record: Record) -> Path:
        return self.folder / record.slug

    def keep(self, record: Record, epochs: int, content: bytes) -> None:
        """Write a trial's state after so many epochs; the one before it stays, but none that was of no use."""
        folder = self._of(record)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / f"{epochs:06d}.ckpt", content)
            used = sorted(path for path in folder.glob("*.ckpt") if path.stem <= f"{epochs:06d}")[-KEPT:]
            for other in {*folder.glob("*.ckpt")} - {*used}:
                other.unlink(missing_ok=True)
        except OSError as error:
            self._warn_once(f"no checkpoint can be written to {folder}: {error.strerror}; training goes on without")

    def refused(self, record: Record, why: str) -> None:
        """A trial has not given its state."""
        self._warn_once(f"warning: the state of {record.title} is not kept: {why}")

    def _warn_once(self, wrong: str) -> None:
        """The training does not depend on it."""
        if not self._failed:
            self.warn(wrong)
        self._failed = True

    def latest(self, record: Record, config: Config) -> bytes | None:
        """The content of a trial's newest file that is what it should be; damaged ones are set aside, with a word."""
        for path in sorted(self._of(record).glob("*.ckpt"), reverse=True):
            try:
                return read(path, config)
            except (OSError, DamagedError) as error:
                wrong = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else error
                self.warn(f"{path} {wrong}; the one before it is used, or the trial begins again")
                with contextlib.suppress(OSError):  # where nothing can be written either
                    path.replace(path.with_suffix(".damaged"))
        return None

    def drop(self, record: Record) -> None:
        """Remove the files of a trial that has ended."""
        shutil.rmtree(self._of(record), ignore_errors=True)

    def clear(self) -> None:
        """Remove everything: the sweep has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)
