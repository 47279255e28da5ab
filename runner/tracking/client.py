"""A client of MLflow, and what its errors mean."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.document import SpecError, first_line
from ..files.place import Place, sqlite_path
from ..files.secrets import redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRANSIENT = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "IO_ERROR", "DEADLINE_EXCEEDED")
"""MLflow's codes for what may pass by itself; a server that cannot be reached is an internal error to it."""
PERMANENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EROFS)
"""What is wrong with a local folder and does not pass by itself."""
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
    """Raise SpecError where a database is not there and cannot be made: MLflow itself would try for minutes."""
    path = missing_database(place)
    if path is not None and not os.access(path.parent, os.W_OK | os.X_OK):
        wrong = "cannot be written to" if path.parent.is_dir() else "is no folder"
        raise SpecError(f"MLflow's {path} cannot be made: {path.parent} {wrong}; check server.mlflow_tracking_uri")


def missing_database(place: Place) -> Path | None:
    """MLflow's database where that is a file which is not there yet: a client would make it."""
    path = sqlite_path(place.tracking_uri)
    return None if path is None or path.exists() else path


def is_server_error(error: Exception) -> bool:
    """Whether it is MLflow's, its server's or the disk's fault; else it is a bug."""
    from google.protobuf.json_format import ParseError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    theirs = (MlflowException, SQLAlchemyError, OSError, ImportError, json.JSONDecodeError, ParseError, SpecError)
    return isinstance(error, theirs) or type(error).__module__.partition(".")[0] in CLOUDS


def is_transient(error: Exception) -> bool:
    """Whether it may pass by itself: nothing that MLflow refuses, or that is missing here."""
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    if isinstance(error, SQLAlchemyError):
        return isinstance(error, OperationalError)
    if isinstance(error, (SpecError, ImportError)):
        return False
    if isinstance(error, OSError) and error.errno in PERMANENT:
        return False
    return getattr(error, "error_code", "INTERNAL_ERROR") in TRANSIENT


def unusable(place: Place, error: Exception) -> SpecError:
    """What MLflow and its database say when they cannot be used, in a sentence."""
    if isinstance(error, SpecError):
        return error
    wrong = f"MLflow at {redacted(place.tracking_uri)} cannot be used: {redacted(first_line(error))}"
    return SpecError(f"{wrong}; check server.mlflow_tracking_uri")


def all_runs(client: MlflowClient, experiment_id: str, query: str, order: str) -> list[Any]:
    """Every run that fits, by its start, ``ASC`` or ``DESC``: ``search_runs`` alone stops at 1000."""
    runs, token, by = [], None, [f"attributes.start_time {order}"]
    while True:
        page = client.search_runs([experiment_id], query, max_results=1000, order_by=by, page_token=token)
        runs += list(page)
        token = page.token
        if not token:
            return runs
