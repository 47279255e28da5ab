"""mlflow.yaml: where sweeps are recorded. Environment variables win; what neither says has its default."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from ..schedules.words import PLACE_KEYS
from . import sqlite
from .document import Document, Frozen, SpecError, matching, read
from .secrets import refuse_secrets

RESERVED = {"schedule", "outcome", "cause", "remark", "device", "engine", "platform", "git.commit"}
"""Tags that the sweep writes itself."""
SPACES = ("mlflow.", "sweep.", "trial.", "schedule.", "version.")
"""How the others begin, and MLflow's."""


def _not_reserved(tags: dict[str, str]) -> dict[str, str]:
    for key in tags:
        if key in RESERVED or key.startswith(SPACES):
            raise ValueError(f"{key} is a tag that MLflow or the sweep writes itself; give yours another name")
    return tags


TAG = "a tag's name is 1 to 250 letters (a to z), digits, dashes, underscores, dots, spaces, colons and slashes"
Tags = Annotated[
    dict[Annotated[str, matching(r"[A-Za-z0-9_\-. :/]{1,250}", TAG)], str], AfterValidator(_not_reserved)
]


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


VARIABLES = {
    "server.mlflow_tracking_uri": "MLFLOW_TRACKING_URI",
    "study.storage": "RUNNER_STUDY_STORAGE",
    "tracking.experiment.name": "MLFLOW_EXPERIMENT_NAME",
}
"""The keys that an environment variable overrides."""


@dataclass(frozen=True)
class Place:
    """The resolved place: absolute paths, environment applied."""

    file: File
    path: Path
    """Of mlflow.yaml, be it there or not: results are written beside it."""
    tracking_uri: str
    experiment: str
    storage: str
    document: Document | None = None
    """mlflow.yaml as it was read, where there is one."""

    @contextmanager
    def locating(self, key: str) -> Iterator[None]:
        """What is wrong inside is said of the environment variable, or of the line of mlflow.yaml, behind ``key``."""
        try:
            yield
        except SpecError as error:
            raise _error(self.document, key, str(error)) from None

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

    def check_results(self, sweep: str) -> None:
        """Raise SpecError where the folder of a sweep's results could not be made or written to; makes nothing."""
        path = self.folder / "results" / sweep
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            what = "cannot be written to" if there.is_dir() else "is no folder"
            raise SpecError(f"the results cannot be written to {path}: {there} {what}")

    def results(self, sweep: str) -> Path:
        """The folder of a sweep's results; made now, or raises SpecError: no sweep is to be trained for nothing."""
        path = self.folder / "results" / sweep
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):  # a full disk, a file system that is only read
                pass
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
    given, document = Path(path or "mlflow.yaml"), None
    if path is not None or given.exists():
        document = read(given)
        refuse_secrets(
            document,
            "put the whole address into the environment variable instead, or give a tracking server's "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment",
        )
    file, given = document.parse(File) if document else File(), given.resolve()
    try:
        str(given).encode()
    except UnicodeEncodeError:
        wrong = f"{os.fsencode(given.parent)!r} has bytes that are no UTF-8, which no database's address can hold"
        raise SpecError(f"{wrong}; give the folder another name") from None
    uri, storage = (
        _uri(key, file, given.parent, document) for key in ("server.mlflow_tracking_uri", "study.storage")
    )
    if _same_database(uri, storage):
        wrong = "is MLflow's database, too, and both note the version of their tables in the same place"
        raise _error(document, "study.storage", f"{wrong}; give each its own, as in sqlite:///optuna.db")
    name = os.environ.get(VARIABLES["tracking.experiment.name"]) or file.tracking.experiment.name
    return Place(file, given, uri, name, storage, document)


DRIVER = "pip install 'lr-sweep-runner[postgresql]', and postgresql+psycopg:// in the address"


def _error(document: Document | None, key: str, message: str) -> SpecError:
    variable = VARIABLES.get(key, "")
    if os.environ.get(variable):
        return SpecError(f"{variable}: {message}")
    return document.error(tuple(key.split(".")), message) if document else SpecError(message)


def _uri(key: str, file: File, folder: Path, document: Document | None) -> str:
    """The environment's URI or the file's, a SQLite path made absolute. What is wrong with it is said without it:
    nobody knows what is a secret there."""
    default = file.server.mlflow_tracking_uri if "mlflow" in key else file.study.storage
    uri = os.environ.get(VARIABLES[key]) or default
    schemes = ["sqlite", "postgresql"] + ["mysql", "mssql", "http", "https"] * ("mlflow" in key)
    scheme = re.split(r"[+:]", uri, maxsplit=1)[0]
    if scheme not in schemes or not re.search(r":/{2,4}[^/]", uri):
        such = f"sqlite:///runs.db{' or http://localhost:5000' * ('http' in schemes)}"
        wrong = f"is no address of a store; it starts with one of {', '.join(schemes)}, as in {such}"
        raise _error(document, key, wrong)
    if scheme == "sqlite":
        given = uri.removeprefix(sqlite.PREFIX)
        path = (folder / given).resolve()
        if not uri.startswith(sqlite.PREFIX) or path.is_dir() or given == ":memory:":
            raise _error(
                document, key, "SQLite's address is sqlite:/// and the path of a file, as in sqlite:///runs.db"
            )
        if "?" in given:
            raise _error(
                document, key, "SQLite's address has no parameters here: leave out the ? and what follows it"
            )
        return sqlite.address(path)
    try:
        if scheme in ("http", "https"):
            _ = urlsplit(uri).port
        else:
            from sqlalchemy import make_url

            make_url(uri).get_dialect().import_dbapi()
    except ImportError as error:
        driver = error.name or scheme
        wrong = f"needs a driver that is not installed ({driver}); for PostgreSQL: {DRIVER}"
        raise _error(document, key, wrong) from None
    except Exception as error:  # SQLAlchemy has several; its words may hold the password
        wrong = f"is no address ({type(error).__name__}): check its host, its port and its driver"
        raise _error(document, key, wrong) from None
    return uri


def server_arguments(uri: str) -> dict[str, Any]:
    """What PostgreSQL's drivers are told besides: not to wait for a network that is gone, and to prepare no
    statements, which a pooler may send to another session. What the address says itself comes first."""
    from sqlalchemy import make_url

    url = make_url(uri)
    driver = url.get_dialect().driver
    if driver not in ("psycopg", "psycopg2"):
        return {}
    alive = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4, "tcp_user_timeout": 30_000}
    told = {"connect_timeout": 10, **alive} | ({"prepare_threshold": None} if driver == "psycopg" else {})
    return {key: value for key, value in told.items() if key not in url.query}


def _same_database(one: str, other: str) -> bool:
    """Whether two addresses are of one database; on a server they may still be of two schemas (``search_path``)."""
    if sqlite.path_of(one) or not one.startswith("postgresql"):
        return sqlite.path_of(one) is not None and sqlite.path_of(one) == sqlite.path_of(other)
    from sqlalchemy import make_url

    first, second = make_url(one), make_url(other)
    same = (first.host, first.port or 5432, first.database) == (second.host, second.port or 5432, second.database)
    return same and first.get_backend_name() == second.get_backend_name() and first.query == second.query
