"""A client of MLflow, and what its errors mean."""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import sqlite3
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import sqlite
from ..files.document import SpecError, first_line
from ..files.place import Place, server_arguments
from ..files.secrets import redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRANSIENT = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "IO_ERROR", "DEADLINE_EXCEEDED")
"""MLflow's codes for what may pass by itself; a server that cannot be reached is an internal error to it."""
PERMANENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EROFS)
"""What is wrong with a local folder and does not pass by itself."""
STORES = {
    "s3": "boto3",
    "gs": "google.cloud.storage",
    "wasbs": "azure.storage.blob",
    "abfss": "azure.storage.filedatalake",
}
"""What MLflow needs besides for an artifact store, by the scheme of its address."""
CLOUDS = ("botocore", "boto3", "azure", "google", "paramiko")
"""The libraries of artifact stores, whose errors have no ancestor in common."""


def make_client(place: Place) -> MlflowClient:
    """An explicit client: no global tracking URI, no active run, no telemetry unless asked for."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "false" if place.file.telemetry else "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the sender tries again, and knows what it did
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # what is raised is said anyhow
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=place.tracking_uri)


def check(place: Place) -> None:
    """Refuse what MLflow could not use, or would change: makes nothing, changes nothing.

    Raises:
        SpecError: the database cannot be made, is no database, another program's, of another MLflow, or half made; or
            the artifacts have no place.
    """
    path = sqlite.path_of(place.tracking_uri)
    with place.locating("server.mlflow_tracking_uri"):
        if path is not None:
            _check_file(path, place)
        elif not place.served and (wrong := _unusable_content(_look_on_server(place), None, place)):
            raise SpecError(wrong)
    with place.locating("tracking.experiment.create_experiment_kwargs.artifact_location"):
        _check_artifacts(place.artifacts or "")


def _check_file(path: Path, place: Place) -> None:
    until = time.monotonic() + sqlite.PATIENCE
    while wrong := _unusable_content(content := sqlite.look(path), path, place):
        being_made = not content.count(path, "experiments") and time.time() - path.stat().st_mtime < 5
        if not being_made or time.monotonic() > until:  # by an ``mlflow server`` that has just been started
            raise SpecError(wrong)
        time.sleep(0.5)


def _look_on_server(place: Place) -> sqlite.Content:
    """What is in a server's database; nothing where it does not answer, which is waited for later."""
    import sqlalchemy

    try:
        arguments = server_arguments(place.tracking_uri)
        engine = sqlalchemy.create_engine(
            place.tracking_uri, poolclass=sqlalchemy.pool.NullPool, connect_args=arguments
        )
        with engine.connect() as connection:
            tables = frozenset(sqlalchemy.inspect(connection).get_table_names())
            noted = sqlalchemy.text("SELECT version_num FROM alembic_version")
            return sqlite.Content(tables, connection.execute(noted).scalar() if "alembic_version" in tables else None)
    except sqlalchemy.exc.SQLAlchemyError:
        return sqlite.Content()


def _unusable_content(content: sqlite.Content, path: Path | None, place: Place) -> str | None:
    """Why MLflow cannot use a database as it is, or would change it."""
    if not content.tables:
        return None
    revisions, newest = _revisions()
    if content.revision == newest:
        return None
    where, mine = path or redacted(place.tracking_uri), importlib.metadata.version("mlflow")
    if "experiments" not in content.tables:
        has = ", ".join(sorted(content.tables)[:3])
        return f"{where} is another program's database (it has {has}); give MLflow its own"
    if path and not content.count(path, "experiments"):
        return f"{where} was not made to its end, and nothing is in it; remove it, and the same command makes it anew"
    if content.revision in revisions or content.revision is None:
        wrong = (
            f"{where} is of an older MLflow: {mine} would change its tables, and no older server could use it then"
        )
        return f"{wrong}. Where that is wanted, keep a copy and run: mlflow db upgrade {redacted(place.tracking_uri)}"
    return f"{where} is of a newer MLflow than {mine}, which cannot use it: pip install --upgrade mlflow"


@lru_cache(maxsize=1)
def _revisions() -> tuple[frozenset[str], str]:
    """The revisions of MLflow's tables that this version knows, and the newest. Alembic would import all of their
    scripts to say so, which takes a second."""
    found = importlib.util.find_spec("mlflow")
    assert found is not None
    folder = Path(next(iter(found.submodule_search_locations or []))) / "store" / "db_migrations" / "versions"
    texts = [path.read_text(encoding="utf-8") for path in folder.glob("*.py")]
    known, before = (
        {m for text in texts for m in re.findall(rf"""^{name} = ["'](\w+)["']""", text, re.MULTILINE)}
        for name in ("revision", "down_revision")
    )
    if len(newest := known - before) == 1:
        return frozenset(known), newest.pop()
    from alembic.script import ScriptDirectory  # of branches that were merged

    scripts = ScriptDirectory(str(folder.parent))
    return frozenset(script.revision for script in scripts.walk_revisions()), str(scripts.get_current_head())


def _check_artifacts(location: str) -> None:
    """Raise SpecError for a store of artifacts that MLflow does not know, or not without another package."""
    scheme = location.partition("://")[0] if "://" in location else "file"
    if scheme == "file":
        return
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry

    if scheme not in _artifact_repository_registry._registry:
        raise SpecError(f"MLflow knows no artifact store {scheme}://; a folder has no scheme, as in mlartifacts")
    package = STORES.get(scheme, "mlflow")
    try:
        there = importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        there = False
    if not there:
        raise SpecError(f"{scheme}:// needs a package that is not installed ({package})")


def make_database(place: Place) -> None:
    """Make MLflow's database where that is a file which is not there yet: whole, or not at all.

    Raises:
        SpecError: MLflow could not make it.
    """
    if path := missing_database(place):
        sqlite.make_whole(path, _make)


def _make(path: Path) -> None:
    """By a process of its own: migrations keep a core busy for seconds, and the client keeps what it has opened."""
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", sqlite.address(path)]
    quiet = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=600, env=quiet)
    except subprocess.TimeoutExpired:
        raise SpecError(f"MLflow's database {path} is not made after ten minutes: is its disk so slow?") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise SpecError(f"MLflow's database {path} cannot be made: {redacted(said)}")


def missing_database(place: Place) -> Path | None:
    """MLflow's database where that is a file which is not there yet, or is empty."""
    path = sqlite.path_of(place.tracking_uri)
    return None if path is None or (path.exists() and path.stat().st_size) else path


def in_bin(run: Any) -> bool:
    """Whether somebody has deleted a run, or the experiment that it is in."""
    return bool(run.info.lifecycle_stage == "deleted")


def is_server_error(error: Exception) -> bool:
    """Whether it is MLflow's, its server's or the disk's fault; else it is a bug."""
    from google.protobuf.json_format import ParseError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    theirs = (MlflowException, SQLAlchemyError, OSError, ImportError, json.JSONDecodeError, ParseError, SpecError)
    return isinstance(error, theirs) or type(error).__module__.partition(".")[0] in CLOUDS


ANSWERS = {400, 401, 403, 405, 409, 410, 411, 413, 414, 415, 422, 431, 451}
"""What a server, or a proxy before it, says for certain: to ask again brings nothing. Of 404 only MLflow's own
counts: many a proxy has it for a server that is away."""


def is_transient(error: Exception) -> bool:
    """Whether it may pass by itself: nothing that MLflow refuses, or that is missing here."""
    from mlflow.exceptions import MlflowException, RestException
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    if isinstance(error, SQLAlchemyError):
        reason = getattr(error, "orig", None)
        if isinstance(reason, sqlite3.Error):  # what is wrong with a file stays so
            return any(word in str(reason) for word in ("locked", "busy", "full"))
        return isinstance(error, OperationalError)
    if isinstance(error, (SpecError, ImportError)):
        return False
    if isinstance(error, OSError) and error.errno in PERMANENT:
        return False
    if isinstance(error, MlflowException) and not isinstance(error, RestException):
        if status := re.search(r"failed with error code (\d{3}) != ", str(error)[:1000]):
            return int(status[1]) not in ANSWERS
    elif (response := getattr(error, "response", None)) is not None:  # of requests, for artifacts
        return getattr(response, "status_code", 500) not in ANSWERS
    return getattr(error, "error_code", "INTERNAL_ERROR") in TRANSIENT


def said(error: Exception) -> str:
    """What a server or a store says, in one line that can be shown: what went wrong, no secret, not a page of it."""
    line = redacted(f"{type(error).__name__}: {first_line(error)}")
    return line if len(line) < 400 else f"{line[:250]} ... {line[-120:]}"  # the reason is often the last word


def unusable(place: Place, error: Exception) -> SpecError:
    """What MLflow and its database say when they cannot be used, in a sentence."""
    if isinstance(error, SpecError):
        return error
    wrong = f"MLflow at {redacted(place.tracking_uri)} cannot be used: {redacted(first_line(error))}"
    return SpecError(f"{wrong}; check server.mlflow_tracking_uri")


def all_runs(client: MlflowClient, experiment_id: str, query: str, order: str) -> list[Any]:
    """Every run that fits, those in the bin too, by its start, ``ASC`` or ``DESC``; one call stops at 1000."""
    from mlflow.entities import ViewType

    runs, token, by = [], None, [f"attributes.start_time {order}"]
    while True:
        page = client.search_runs([experiment_id], query, ViewType.ALL, 1000, by, token)
        runs += list(page)
        token = page.token
        if not token:
            return runs
