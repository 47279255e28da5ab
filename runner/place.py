"""mlflow.yaml: where sweeps are recorded. Environment variables win; what neither says has its default."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlsplit

from pydantic import Field

from .document import Document, Frozen, SpecError, read

Tags = dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-. :/]{1,250}$")], str]


class Server(Frozen):
    mlflow_tracking_uri: str = "sqlite:///mlflow.db"


class ExperimentKwargs(Frozen):
    artifact_location: str | None = "mlartifacts"
    tags: Tags = Field(default_factory=dict)


class Experiment(Frozen):
    name: Annotated[str, Field(min_length=1, max_length=250)] = "lr-schedules"
    restore_if_deleted: bool = True
    create_experiment_kwargs: ExperimentKwargs = ExperimentKwargs()


class Run(Frozen):
    tags: Tags = Field(default_factory=dict)


class Tracking(Frozen):
    experiment: Experiment = Experiment()
    run: Run = Run()


class Ui(Frozen):
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65_535)] = 5000
    saved_view: bool = True


class Storage(Frozen):
    storage: str = "sqlite:///optuna.db"
    checkpoint_seconds: Annotated[float, Field(ge=0.0, le=86_400.0)] = 60.0
    """A trial keeps what it has after so many seconds of training; briefer ones simply begin again."""


class File(Frozen):
    """mlflow.yaml, in the blocks and names of kedro-mlflow, and a block for the study's storage."""

    server: Server = Server()
    tracking: Tracking = Tracking()
    ui: Ui = Ui()
    study: Storage = Storage()
    telemetry: bool = False


class StorageError(Exception):
    """The study's storage failed in the middle of a sweep; the message says why, and what to do.

    What is on record is intact, and the same command goes on from there.
    """


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

    @property
    def artifacts(self) -> str | None:
        """Where a new experiment keeps its artifacts; None lets a server decide."""
        location = self.file.tracking.experiment.create_experiment_kwargs.artifact_location
        if location is None or "://" in location:
            return location
        return None if self.served else (self.folder / location).resolve().as_uri()


def load_place(path: Path | str | None = None) -> Place:
    """Read mlflow.yaml; without one, and without a ``path``, everything has its default.

    Raises:
        SpecError: what is wrong, with file, line and key; or an environment variable that cannot be.
    """
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
    if path is None or os.name != "posix":
        yield
        return
    import fcntl

    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


DRIVER = "pip install 'lr-sweep-runner[postgresql]', and postgresql+psycopg:// in the address"
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD")
"""Environment variables that are secrets; the passwords in these are secrets too:"""
NAMES = r"pass|password|passwd|pwd|token|secret|(?:api|access)[_-]?key|signature|sig|auth|credentials?"
SAID = rf"(?i)([\w-]*(?:{NAMES}))=('[^']*'|\"[^\"]*\"|[^&\s'\"]+)"
"""A secret by its name, as in a query or in PostgreSQL's key=value."""
ADDRESSES = ("MLFLOW_TRACKING_URI", "RUNNER_STUDY_STORAGE", "MLFLOW_BACKEND_STORE_URI")


def redacted(uri: str) -> str:
    """``uri``, or a text with one in it, without the password that may stand there, or that the environment has."""
    said = [os.environ.get(name, "") for name in SECRETS]
    for name in ADDRESSES:
        said += re.findall(r"://[^/@]*?:([^/]*)@", os.environ.get(name, ""))
        said += re.findall(r"https?://([^/@:]+)@", os.environ.get(name, ""))  # a token in the user's place
        said += [value.strip("'\"") for _, value in re.findall(SAID, os.environ.get(name, ""))]
    for secret in {form for value in said if len(value) >= 4 for form in (value, unquote(value), quote(value))}:
        uri = uri.replace(secret, "***")
    return _masked(uri)


def _masked(uri: str) -> str:
    """``uri`` without what has the form of a password."""
    uri = re.sub(r"://([^\s:/@]*):\S*@", r"://\1:***@", uri)
    uri = re.sub(r"(https?://)[^\s:/@]+@", r"\1***@", uri)
    return re.sub(SAID, r"\1=***", uri)


def _uri(variable: str, default: str, folder: Path, document: Document | None, key: str) -> str:
    """The environment's URI or the file's, a SQLite path made absolute."""
    uri = os.environ.get(variable) or default

    def wrong(message: str) -> SpecError:  # the address is not shown: nobody knows what is a secret in it
        if os.environ.get(variable) or document is None:
            return SpecError(f"{variable}: {message}")
        return document.error(tuple(key.split(".")), message)

    tracking = ("mysql", "mssql", "http", "https")
    known = ("sqlite", "postgresql", *(tracking if "mlflow" in key else ()))
    scheme, prefix = re.split(r"[+:]", uri, maxsplit=1)[0], "sqlite:///"
    if scheme not in known or not re.search(r":/{2,4}[^/]", uri):
        raise wrong(f"is no address of a store; it starts with one of {', '.join(known)}, as in sqlite:///runs.db")
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
        raise wrong(
            f"needs a driver that is not installed ({error.name or scheme}); for PostgreSQL: {DRIVER}"
        ) from None
    except Exception as error:  # SQLAlchemy has several; its words may hold the password
        raise wrong(f"is no address ({type(error).__name__}): check its host, its port and its driver") from None
    return uri


def refuse_secrets(document: Document, advice: str) -> None:
    """A file that is committed, and kept with every sweep, is no place for a password.

    Raises:
        SpecError: where it stands, and the ``advice``.
    """

    def walk(value: Any, key: tuple[str | int, ...]) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(name, key)
                walk(inner, (*key, name))
        elif isinstance(value, list):
            for i, inner in enumerate(value):
                walk(inner, (*key, i))
        elif isinstance(value, str) and _masked(value) != value:
            raise document.error(key, f"holds a password or a token; {advice}")

    walk(document.data, ())
