"""What confirmed trainings have learnt, until it is known whose is wanted: weights, or files of one's own code."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from ..files.document import first_line
from ..files.trial import Record
from .checkpoint import write_atomically


class Kept:
    """A folder of results, and what is kept in it: a file of weights, or a folder, for each training."""

    def __init__(self, results: Path, say: Callable[[str], None]) -> None:
        self.results, self.folder, self._say = results, results / "kept", say
        self._pending = list[Future[Any]]()

    def weights(self, record: Record, found: Future[dict[str, Any] | None]) -> None:
        """Keep the weights that a lane gives, as soon as it does."""
        self._pending.append(found)
        found.add_done_callback(lambda done: self._write(record, done))

    def _write(self, record: Record, done: Future[dict[str, Any] | None]) -> None:
        try:
            if (tensors := done.result()) is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                suffix, content = packed(tensors)
                write_atomically(self.folder / f"{record.slug}{suffix}", content)
        except Exception as error:
            self._say(f"warning: the weights of {record.title} are not kept: {first_line(error)}")

    def files(self, record: Record, folder: Path) -> None:
        """Keep the folder of a training of one's own."""
        if folder.is_dir() and any(folder.iterdir()):
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.folder / record.slug, ignore_errors=True)
            shutil.move(folder, self.folder / record.slug)

    def only(self, records: Collection[Record]) -> None:
        """Forget what all others have learnt."""
        wait(self._pending)
        wanted = {record.slug for record in records}
        for path in self.folder.glob("*"):
            if path.stem not in wanted:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def best(self, record: Record) -> Path | None:
        """Put what a training has learnt among the results, as ``best_weights`` or ``best_training``; its path, or
        None where nothing of it was kept."""
        wait(self._pending)
        for path in self.folder.glob(f"{record.slug}*"):
            there = self.results / ("best_training" if path.is_dir() else f"best_weights{path.suffix}")
            shutil.rmtree(there, ignore_errors=True) if there.is_dir() else there.unlink(missing_ok=True)
            shutil.copytree(path, there, copy_function=_link) if path.is_dir() else _link(path, there)
            return there
        return None


def _link(path: Path | str, there: Path | str) -> None:
    """The same file under a second name; a copy where the file system has none such."""
    try:
        Path(there).hardlink_to(path)
    except OSError:
        shutil.copy(path, there)


def packed(tensors: Mapping[str, Any]) -> tuple[str, bytes]:
    """A state_dict as the content of a file, and how that ends: safetensors where they are at hand, else torch's."""
    if importlib.util.find_spec("safetensors") is not None:
        from safetensors.torch import save

        return ".safetensors", save(dict(tensors))
    import io

    import torch

    buffer = io.BytesIO()
    torch.save(dict(tensors), buffer)
    return ".pt", buffer.getvalue()
