"""mlflow.yaml: where sweeps are recorded. Environment variables win; what neither says has its default."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from ..schedules.words import PLACE_KEYS
from .document import Document, Frozen, SpecError, matching, read
from .secrets import refuse_secrets

TAG = "a tag's name is 1 to 250 letters (a to z), digits, dashes, underscores, dots, spaces, colons and slashes"
Tags = dict[Annotated[str, matching(r"[A-Za-z0-9_\-. :/]{1,250}", TAG)], str]


class Block(Frozen):
    elsewhere = PLACE_KEYS


class Server(Block):
    mlflow_tracking_uri: str = "sqlite:///mlflow.db"


class ExperimentKwargs(Block):
    artifact_location: str | None = "mlartifacts"
    tags: Tags = Field(default_factory=dict)


class Experiment(Block):
    name: Annotated[str, Field(min_length=1, max_length=250)] = "lr-schedules"
    restore_if_deleted: bool = True
    create_experiment_kwargs: ExperimentKwargs = ExperimentKwargs()


class Run(Block):
    tags: Tags = Field(default_factory=dict)


class Tracking(Block):
    experiment: Experiment = Experiment()
    run: Run = Run()


class Ui(Block):
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65_535)] = 5000
    saved_view: bool = True


class Storage(Block):
    storage: str = "sqlite:///optuna.db"
    checkpoint_seconds: Annotated[float, Field(ge=0.0, le=86_400.0)] = 60.0
    """A trial keeps what it has after so many seconds of training; briefer ones simply begin again."""


class File(Block):
    """mlflow.yaml, in the blocks and names of kedro-mlflow, and a block for the study's storage."""

    server: Server = Server()
    tracking: Tracking = Tracking()
    ui: Ui = Ui()
    study: Storage = Storage()
    telemetry: bool = False


class StorageError(Exception):
    """The study's storage failed in the middle of a sweep: the same command goes on from what is on record."""


@dataclass(frozen=True)
class Place:
    """The resolved place: absolute paths, environment applied."""

    file: File
    path: Path
    """Of mlflow.yaml, be it there or not: results are written beside it."""
    tracking_uri: str
    experiment: str
    storage: str

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def option(self) -> str:
        """What a command in the current folder needs to find this place: `` --mlflow FILE``, or nothing."""
        return "" if self.path == Path.cwd() / "mlflow.yaml" else f" --mlflow {shlex.quote(str(self.path))}"

    @property
    def served(self) -> bool:
        """Whether a tracking server keeps the runs; else this process writes to their database itself."""
        return self.tracking_uri.startswith(("http://", "https://"))

    def results(self, sweep: str) -> Path:
        """The folder of a sweep's results; made now, or raises SpecError: no sweep is to be trained for nothing."""
        path = self.folder / "results" / sweep
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / ".write").touch()
            (path / ".write").unlink()
        except OSError as error:
            raise SpecError(f"the results cannot be written to {path}: {error.strerror}") from None
        return path

    @property
    def artifacts(self) -> str | None:
        """Where a new experiment keeps its artifacts; None lets a server decide."""
        location = self.file.tracking.experiment.create_experiment_kwargs.artifact_location
        if location is None or "://" in location:
            return location
        return None if self.served else (self.folder / location).resolve().as_uri()


def load_place(path: Path | str | None = None) -> Place:
    """Read mlflow.yaml; without one, and without a ``path``, everything has its default. Raises SpecError with file,
    line and key, or of an environment variable that cannot be."""
    given = Path(path or "mlflow.yaml")
    if path is None and not given.exists():
        file, document, given = File(), None, Path.cwd() / given
    else:
        document = read(given)
        refuse_secrets(document, "put the whole address into the environment variable instead")
        file, given = document.parse(File), given.resolve()
    folder = given.parent
    uri = _uri("MLFLOW_TRACKING_URI", file.server.mlflow_tracking_uri, folder, document, "server.mlflow_tracking_uri")
    storage = _uri("RUNNER_STUDY_STORAGE", file.study.storage, folder, document, "study.storage")
    return Place(file, given, uri, os.environ.get("MLFLOW_EXPERIMENT_NAME") or file.tracking.experiment.name, storage)


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite database; None for a server."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@contextlib.contextmanager
def alone(uri: str) -> Iterator[None]:
    """Where a database is a file: one process at a time, or two that begin at once would both make it."""
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


DRIVER = "pip install 'lr-sweep-runner[postgresql]', and postgresql+psycopg:// in the address"


def _uri(variable: str, default: str, folder: Path, document: Document | None, key: str) -> str:
    """The environment's URI or the file's, a SQLite path made absolute."""
    uri = os.environ.get(variable) or default

    def wrong(message: str) -> SpecError:  # the address is not shown: nobody knows what is a secret in it
        if os.environ.get(variable) or document is None:
            return SpecError(f"{variable}: {message}")
        return document.error(tuple(key.split(".")), message)

    schemes = ["sqlite", "postgresql"] + ["mysql", "mssql", "http", "https"] * ("mlflow" in key)
    scheme, prefix = re.split(r"[+:]", uri, maxsplit=1)[0], "sqlite:///"
    if scheme not in schemes or not re.search(r":/{2,4}[^/]", uri):
        such = f"sqlite:///runs.db{' or http://localhost:5000' * ('http' in schemes)}"
        raise wrong(f"is no address of a store; it starts with one of {', '.join(schemes)}, as in {such}")
    if scheme == "sqlite":
        path = (folder / uri.removeprefix(prefix)).resolve()
        if not uri.startswith(prefix) or path.is_dir():
            raise wrong("SQLite's address is sqlite:/// and the path of a file, as in sqlite:///runs.db")
        return prefix + str(path)
    try:
        if scheme in ("http", "https"):
            _ = urlsplit(uri).port
        else:
            from sqlalchemy import make_url

            make_url(uri).get_dialect().import_dbapi()
    except ImportError as error:
        driver = error.name or scheme
        raise wrong(f"needs a driver that is not installed ({driver}); for PostgreSQL: {DRIVER}") from None
    except Exception as error:  # SQLAlchemy has several; its words may hold the password
        raise wrong(f"is no address ({type(error).__name__}): check its host, its port and its driver") from None
    return uri
