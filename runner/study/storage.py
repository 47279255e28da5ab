"""The study's storage: a SQLite file or a PostgreSQL server, the one coordinator's lock, and what can go wrong."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sqlite3
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm.exc import StaleDataError

from ..files.document import SpecError, first_line
from ..files.place import StorageError, alone, sqlite_path
from ..files.secrets import redacted

PATIENCE = 60.0
"""Seconds for which a database may be locked, or its server away, in the middle of a sweep."""

T = TypeVar("T")


def connect(storage: str, create: bool = True) -> optuna.storages.RDBStorage:
    """Optuna's storage at a database URL. SQLite writes ahead and waits for locks.

    Raises:
        SpecError: the database cannot be used, or is a SQLite file that is not there, with ``create=False``.
    """
    path = sqlite_path(storage)
    # seconds that one attempt waits for a lock; Optuna makes five to create a trial, and ``persist`` has patience
    options: dict[str, Any] = {"connect_args": {"timeout": 5}} if path else {"pool_pre_ping": True}
    try:
        if not create:
            if not (path.exists() if path else _has_studies(storage)):
                where = path or redacted(storage)
                raise SpecError(f"there is no study in {where}; run a sweep first, with python -m runner.sweep")
            return optuna.storages.RDBStorage(storage, options, skip_table_creation=True)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
        with alone(storage):
            if path:
                with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
                    connection.execute("PRAGMA journal_mode=WAL")
            return optuna.storages.RDBStorage(storage, options)
    except (OSError, sqlite3.Error, SQLAlchemyError, RuntimeError, ImportError, StorageInternalError) as error:
        raise unusable(storage, error) from None


def _has_studies(storage: str) -> bool:
    """Whether a server's database has Optuna's tables."""
    with sqlalchemy.create_engine(storage, poolclass=sqlalchemy.pool.NullPool).connect() as connection:
        return sqlalchemy.inspect(connection).has_table("studies")


def disconnect(storage: optuna.storages.RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()


def database(study: optuna.Study) -> optuna.storages.RDBStorage:
    """The storage of a study, out of the cache that Optuna puts around it."""
    cached: Any = study._storage
    return cast("optuna.storages.RDBStorage", cached._backend)


def persist(study: optuna.Study, write: Callable[[], T]) -> T:
    """What ``write`` gives, which may be called again: a lock ends, and a server that is away may come back.

    Raises:
        StorageError: it did not come back in time, or the storage cannot be used for another reason.
    """
    until, pause = time.monotonic() + PATIENCE, 0.05
    while True:
        try:
            return write()
        except (SQLAlchemyError, StorageInternalError, AssertionError, KeyError) as error:
            wrong, passing = trouble(error)
            if not passing or time.monotonic() > until:
                raise StorageError(f"the study's storage {redacted(database(study).url)} {wrong}") from None
            time.sleep(pause := min(2 * pause, 2.0))


def trouble(error: BaseException) -> tuple[str, bool]:
    """What is wrong with a storage that worked before, and what to do; and whether it may pass by itself.

    Optuna hides the reason: it is somewhere in the chain of causes and contexts.
    """
    chain = list[BaseException]()
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    reason = next((e.orig or e for e in chain if isinstance(e, DBAPIError)), None)
    if reason is None:
        if any(isinstance(e, (KeyError, StaleDataError)) for e in chain):
            return "has lost this study: somebody deleted it; the same command begins it again", False
        raise chain[0]  # no trouble of the storage
    message = redacted(first_line(reason))
    if isinstance(reason, sqlite3.Error):
        for words, advice in (
            ("disk is full", "cannot grow: the disk is full; free some space"),
            ("locked", "has been locked by another process for a minute; end that one"),
            ("readonly", "cannot be written to; make it, with its -wal and -shm, and its folder writable"),
            ("unable to open", "cannot be opened any more; make it and its folder writable"),
        ):
            if words in message:
                return f"{advice}, and the same command goes on", words == "locked"
        return f"cannot be used ({message}); nothing that is on record is lost", False
    return f"does not answer ({message}); when it does, the same command goes on", True


def unusable(storage: str, error: Exception) -> SpecError:
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return SpecError(f"the study's storage {redacted(storage)} cannot be used: {redacted(first_line(error))}")


def check(name: str, storage: str) -> None:
    """Refuse a study that another process runs, before anything is made for it; errors as in ``hold``."""
    path = _lock(name, storage)
    if path is None or path.exists():
        hold(name, storage).close()


def hold(name: str, storage: str) -> contextlib.ExitStack:
    """Become the one coordinator of a study, until the stack is closed or this process ends, however it ends.

    A lock of the operating system beside a SQLite file, an advisory lock of the server in PostgreSQL.

    Raises:
        SpecError: another process holds it; the message names its host and pid.
    """
    me, stack = f"{socket.gethostname()} (pid {os.getpid()})", contextlib.ExitStack()
    path = _lock(name, storage)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("a+", encoding="utf-8"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            stack.close()
            raise _taken(name, holder) from None
        except OSError as error:
            raise unusable(storage, error) from None
        file.truncate(0)
        file.write(me)
        file.flush()
        return stack
    key = zlib.crc32(f"runner/{name}".encode())
    query = "SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE locktype = 'advisory'"
    try:
        engine = sqlalchemy.create_engine(storage, poolclass=sqlalchemy.pool.NullPool)
        connection = stack.enter_context(engine.connect().execution_options(isolation_level="AUTOCOMMIT"))
        connection.execute(sqlalchemy.text("SELECT set_config('application_name', :me, false)"), {"me": me[:63]})
        if not connection.execute(sqlalchemy.text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar():
            who = connection.execute(sqlalchemy.text(f"{query} AND objid = :key"), {"key": key}).scalar()
            stack.close()
            raise _taken(name, who)
    except (SQLAlchemyError, ImportError) as error:
        raise unusable(storage, error) from None
    return stack


def _lock(name: str, storage: str) -> Path | None:
    """The file that the coordinator of a study locks; None for a server, which has locks of its own."""
    path = sqlite_path(storage)
    return path and path.with_name(f"{path.name}.{name}.lock")


def _taken(name: str, holder: str | None) -> SpecError:
    return SpecError(f"the study {name!r} is being run by {holder or 'another process'}; wait for it, or stop it")
