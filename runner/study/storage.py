"""The study's storage: a SQLite file or a PostgreSQL server, the one coordinator's lock, and what can go wrong."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import socket
import sqlite3
import stat
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

from ..files import sqlite
from ..files.document import SpecError, first_line
from ..files.place import StorageError, server_arguments
from ..files.secrets import redacted

PATIENCE = 60.0
"""Seconds for which a database may be locked, or its server away, in the middle of a sweep."""
ASKED_EVERY = 5.0
"""Seconds after which a server is asked whether the coordinator still holds its lock."""

T = TypeVar("T")


class NoStudyError(SpecError):
    """There is no such study, and nothing else is wrong."""


def connect(storage: str, create: bool = True) -> optuna.storages.RDBStorage:
    """Optuna's storage at a database URL. SQLite writes ahead and waits for locks.

    Raises:
        NoStudyError: with ``create=False``, there is no database, or none with Optuna's tables.
        SpecError: the database cannot be used.
    """
    path = sqlite.path_of(storage)
    # seconds that one attempt waits for a lock; Optuna makes five to create a trial, and ``persist`` has patience
    options: dict[str, Any] = {"connect_args": {"timeout": 5} if path else server_arguments(storage)}
    options |= {} if path else {"pool_pre_ping": True}
    try:
        there = _has_studies(storage)
        if not (there or create):
            where = path or redacted(storage)
            raise NoStudyError(f"there is no study in {where}; run a sweep first, with python -m runner.sweep")
        if path and not there:
            sqlite.make_whole(path, _make)
        with sqlite.alone(path if create else None):
            if path and create:
                _write_ahead(path)
            return optuna.storages.RDBStorage(storage, options, skip_table_creation=there or path is not None)
    except (OSError, sqlite3.Error, SQLAlchemyError, RuntimeError, ImportError, StorageInternalError) as error:
        raise unusable(storage, error) from None


def _make(path: Path) -> None:
    disconnect(optuna.storages.RDBStorage(sqlite.address(path)))


def _write_ahead(path: Path) -> None:
    """Let SQLite write ahead, which lets others read while it writes, where the file system can."""
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
        if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            return
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise
            connection.execute("PRAGMA journal_mode=DELETE")  # no memory that processes share: slower, and as safe


TABLES = {"studies", "trials", "version_info", "alembic_version"}
"""By which Optuna's database is known: it would write what lacks into any other."""


def _has_studies(storage: str) -> bool:
    """Whether a database has Optuna's tables; raises SpecError where it is another program's, or half made."""
    if path := sqlite.path_of(storage):
        content = sqlite.look(path)
        tables, whole = content.tables, content.count(path, "version_info") > 0
    else:
        arguments = server_arguments(storage)
        engine = sqlalchemy.create_engine(storage, poolclass=sqlalchemy.pool.NullPool, connect_args=arguments)
        with engine.connect() as connection:
            tables, whole = frozenset(sqlalchemy.inspect(connection).get_table_names()) & TABLES, True
    if tables and not (tables >= TABLES and whole):
        if {"studies", "trials"} <= tables and not (path and content.count(path, "trials")):
            raise SpecError(f"{path or redacted(storage)} was not made to its end, and holds no trial; remove it")
        others = ", ".join(sorted(tables)[:3])
        raise SpecError(
            f"{path or redacted(storage)} is another program's database (it has {others}); give the study its own"
        )
    return bool(tables)


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


def rescue(study: optuna.Study, path: Path) -> StorageError:
    """Write what a study has on record beside ``path``, which is no longer its file: this process has that open.

    Returns: what happened, and how to go on.
    """
    if not path.parent.is_dir():
        wrong = f"the folder {path.parent} was moved or removed while the sweep ran"
        return StorageError(f"{wrong}; where it was moved to, the study is in it, and the same command goes on")
    kept = path.with_name(f"{path.name}.{time.strftime('%Y%m%d-%H%M%S')}.rescued")
    gone = f"{path} was {'replaced' if path.exists() else 'removed'} while the sweep ran"
    try:
        with contextlib.closing(sqlite3.connect(kept)) as copy, database(study).engine.connect() as connection:
            source = cast("sqlite3.Connection", connection.connection.driver_connection)
            source.backup(copy)
    except (OSError, sqlite3.Error, SQLAlchemyError) as error:
        return StorageError(f"{gone}, and what was on record could not be saved ({first_line(error)})")
    # what is in its place now is moved aside, and what SQLite has left of another file would be read into this one
    names = [f"{path.name}{ending}" for ending in sqlite.BESIDE if Path(f"{path}{ending}").exists()]
    moves = [(name, f"{name}.other") for name in names] + [(kept.name, path.name)]
    steps = [shlex.join(["cd", str(path.parent)]), *(shlex.join(["mv", *pair]) for pair in moves)]
    return StorageError(
        f"{gone}; what is on record lies in {kept.name} beside it; to put it back: {' && '.join(steps)}"
    )


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
    if isinstance(error, SpecError):
        return error
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return SpecError(f"the study's storage {redacted(storage)} cannot be used: {redacted(first_line(error))}")


def check(storage: str) -> None:
    """Raise SpecError where a database cannot be used; makes and changes nothing."""
    try:
        _has_studies(storage)
    except (OSError, sqlite3.Error, SQLAlchemyError, ImportError) as error:
        raise unusable(storage, error) from None


class Hold(contextlib.AbstractContextManager["Hold"]):
    """The one coordinator's hold of a study: closed with its process, however that ends."""

    def __init__(self, stack: contextlib.ExitStack, check: Callable[[], str | bool]) -> None:
        self._stack, self._check = stack, check

    def check(self) -> bool:
        """Whether the lock was lost and has been taken anew; raises StorageError where it is no longer held: another
        process may have it by now."""
        found = self._check()
        if isinstance(found, str):
            raise StorageError(
                f"{found}; another process may run this study now: the same command goes on, or says so"
            )
        return found

    def close(self) -> None:
        self._stack.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def check_lock(name: str, storage: str) -> None:
    """Raise SpecError where another process runs a study; takes no lock that could be in its way."""
    if path := _lock_path(name, storage):
        if not (path.exists() or path.is_symlink()):
            return
        number = _open_lock(path, storage)
        try:
            fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(name, _holder(number)) from None
        except OSError as error:
            raise sqlite.no_locks(path.parent, error) from None
        finally:
            os.close(number)
        return
    try:
        arguments = server_arguments(storage)
        engine = sqlalchemy.create_engine(storage, poolclass=sqlalchemy.pool.NullPool, connect_args=arguments)
        with engine.connect() as connection:
            who = connection.execute(sqlalchemy.text(WHO), {"key": _key(name)}).first()
    except (SQLAlchemyError, ImportError) as error:
        raise unusable(storage, error) from None
    if who:
        raise _taken(name, str(who[0]))


def hold(name: str, storage: str) -> Hold:
    """Become the one coordinator of a study, until this is closed or this process ends, however it ends.

    A lock of the operating system beside a SQLite file, an advisory lock of the server in PostgreSQL.

    Raises:
        SpecError: another process holds it; the message names its host and pid. Or there can be no lock.
    """
    me, path = f"{socket.gethostname()} (pid {os.getpid()})", _lock_path(name, storage)
    return _hold_file(name, storage, path, me) if path else _hold_on_server(name, storage, me)


def _open_lock(path: Path, storage: str) -> int:
    """A lock's file, made where there is none; nothing else is opened."""
    try:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise SpecError(f"{path} is no regular file, and the study's lock is one; remove it") from None
        raise unusable(storage, error) from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise SpecError(f"{path} is no regular file, and the study's lock is one; remove it")
    return number


def _holder(number: int) -> str:
    return os.pread(number, 200, 0).decode(errors="replace").strip()


def _hold_file(name: str, storage: str, path: Path, me: str) -> Hold:
    stack, until = contextlib.ExitStack(), time.monotonic() + 1.0
    try:
        while True:
            number = _open_lock(path, storage)
            stack.callback(os.close, number)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # by somebody who only looks, perhaps
                if time.monotonic() > until:
                    raise _taken(name, _holder(number)) from None
            except OSError as error:
                raise sqlite.no_locks(path.parent, error) from None
            else:
                ours, locked = sqlite.Unmoved(path), os.fstat(number)
                if ours.identity == (locked.st_dev, locked.st_ino):
                    break
            stack.close()  # and again: it was removed between the two
            time.sleep(0.05)
        os.truncate(number, 0)
        os.write(number, me.encode())
    except BaseException:
        stack.close()
        raise
    return Hold(stack, lambda: False if ours else f"the study's lock {path} was removed or replaced")


WHO = (
    "SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid) "
    "WHERE locktype = 'advisory' AND granted AND objid = :key"
)
"""Who has a study's lock on a server."""


def _key(name: str) -> int:
    return zlib.crc32(f"runner/{name}".encode())


def _hold_on_server(name: str, storage: str, me: str) -> Hold:
    """In one transaction that stays open: so the lock is also held behind a pooler, which hands sessions out by
    transaction. It has read nothing that keeps old rows alive."""
    key, stack = _key(name), contextlib.ExitStack()

    def take() -> sqlalchemy.Connection:
        engine = sqlalchemy.create_engine(
            storage, poolclass=sqlalchemy.pool.NullPool, connect_args=server_arguments(storage)
        )
        connection = stack.enter_context(engine.connect())
        connection.execute(sqlalchemy.text("SELECT set_config('application_name', :me, true)"), {"me": me[:63]})
        if not connection.execute(sqlalchemy.text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": key}).scalar():
            who = connection.execute(sqlalchemy.text(WHO), {"key": key}).scalar()
            stack.close()
            raise _taken(name, who)
        return connection

    try:
        held, asked = take(), time.monotonic()
    except (SQLAlchemyError, ImportError) as error:
        stack.close()
        raise unusable(storage, error) from None

    def lost() -> str | bool:
        """Why the lock is lost, or whether it was and has been taken anew. Asking keeps it from a server that ends
        what is idle; one that was away for a while is asked for the lock."""
        nonlocal held, asked
        if time.monotonic() - asked < ASKED_EVERY:
            return False
        until, again = time.monotonic() + PATIENCE, False
        while True:
            try:
                held.execute(sqlalchemy.text("SELECT 1"))
                asked = time.monotonic()
                return again
            except SQLAlchemyError as error:
                with contextlib.suppress(SQLAlchemyError):
                    stack.close()
                if time.monotonic() > until:
                    return f"the server of the study's lock does not answer ({redacted(first_line(error))})"
            with contextlib.suppress(SQLAlchemyError):
                try:
                    held, again = take(), True
                except SpecError as error:
                    return str(error)
            time.sleep(0.5)

    return Hold(stack, lost)


def _lock_path(name: str, storage: str) -> Path | None:
    """The file that the coordinator of a study locks; None for a server, which has locks of its own."""
    path = sqlite.path_of(storage)
    return path and path.with_name(f"{path.name}.{name}.lock")


def _taken(name: str, holder: str | None) -> SpecError:
    return SpecError(f"the study {name!r} is being run by {holder or 'another process'}; wait for it, or stop it")
