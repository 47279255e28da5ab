"""SQLite databases as files: their addresses, how one is made whole or not at all, looked into, and known again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from .document import SpecError

PREFIX = "sqlite:///"
PATIENCE = 300.0
"""Seconds for which another process may be making a database."""
BESIDE = ("", "-wal", "-shm", "-journal")
"""What SQLite calls the files of one database, after its name."""


def address(path: Path) -> str:
    """The address of a database file for SQLAlchemy, whatever its path has in it.

    SQLAlchemy 2.1 decodes ``%20`` in it, 2.0 does not. Of ``sqlite:///`` MLflow 3.17 makes the folder before that is
    decoded, beside the real one; of an address that names the driver it does not.
    """
    if not {"%", "?", "#"} & {*str(path)}:
        return f"{PREFIX}{path}"
    from sqlalchemy import URL

    return URL.create("sqlite+pysqlite", database=str(path)).render_as_string(hide_password=False)


def path_of(uri: str) -> Path | None:
    """The file of a SQLite database; None of a server."""
    if uri.startswith(PREFIX):
        return Path(uri.removeprefix(PREFIX))
    if uri.startswith("sqlite+"):
        from sqlalchemy import make_url

        return Path(make_url(uri).database or "")
    return None


@contextlib.contextmanager
def alone(path: Path | None) -> Iterator[None]:
    """One process at a time, or two that begin at once would both make it; of a server there is nothing to wait for.

    Raises SpecError where another process is in here for more than PATIENCE seconds.
    """
    if path is None:
        yield
        return
    folder, until = os.open(path.parent, os.O_RDONLY), time.monotonic() + PATIENCE
    try:
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise SpecError(
                        f"{path} is being made by another process for {PATIENCE:.0f} s; stop it"
                    ) from None
                time.sleep(0.05)
            except OSError as error:
                raise no_locks(path.parent, error) from None
        yield
    finally:
        os.close(folder)


def no_locks(folder: Path, error: OSError) -> SpecError:
    """What to do where a file system has no locks, as some of clusters and of other systems."""
    wrong = f"{folder} is on a file system without locks ({error.strerror}), which a study needs"
    return SpecError(f"{wrong}; keep it on another one: study.storage and server.mlflow_tracking_uri in mlflow.yaml")


def make_whole(path: Path, make: Callable[[Path], None]) -> None:
    """Let ``make`` make a database that is not there yet, under another name: it has its own once it is whole.

    What a process that was killed has left of one is removed. Where another program has made it in the meantime, that
    is the one.
    """
    with alone(path):
        for left in path.parent.glob(f".{path.name}.*.new*"):
            left.unlink(missing_ok=True)
        if path.exists() and path.stat().st_size:
            return
        new = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            make(new)
            with contextlib.closing(sqlite3.connect(new)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            _give_name(new, path)
        finally:
            for ending in BESIDE:
                Path(f"{new}{ending}").unlink(missing_ok=True)


def _give_name(new: Path, path: Path) -> None:
    """Give a database its name, but take that from no other."""
    if not path.exists():  # what is left of one that was removed would be read into this one
        for ending in BESIDE[1:]:
            Path(f"{path}{ending}").unlink(missing_ok=True)
    try:
        path.hardlink_to(new)
    except OSError:  # there is one, perhaps an empty file; or the file system has no links
        if not (path.exists() and path.stat().st_size):
            new.replace(path)


@dataclass(frozen=True)
class Content:
    """What is in a database: its tables, and the revision of its schema that a migration tool has noted."""

    tables: frozenset[str] = frozenset()
    revision: str | None = None

    def count(self, path: Path, table: str) -> int:
        """How many rows a table has."""
        if table not in self.tables:
            return 0
        with _reading(path) as connection:
            return int(connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0])


def look(path: Path) -> Content:
    """Look into a database without changing it; one that is not there yet, or is empty, has no tables.

    Raises:
        SpecError: it cannot be made where it should be, is no database, or cannot be read.
    """
    if not path.exists():
        if not path.parent.is_dir():
            raise SpecError(f"{path} cannot be made: there is no folder {path.parent}; make it first")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise SpecError(f"{path} cannot be made: {path.parent} cannot be written to; make it writable")
        return Content()
    if not stat.S_ISREG(path.stat().st_mode):
        raise SpecError(f"{path} is no regular file, and a database is one; give another path")
    try:
        with _reading(path) as connection:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            noted = "alembic_version" in tables
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone() if noted else None
    except sqlite3.DatabaseError as error:
        if "not a database" in str(error) or "malformed" in str(error):
            raise SpecError(f"{path} is no SQLite database ({error}); give another path, or move it away") from None
        if "locked" in str(error) or "busy" in str(error):
            raise SpecError(f"{path} is locked by another process; wait for it, or end it") from None
        raise SpecError(f"{path} cannot be read ({error}); is it readable, and its folder writable?") from None
    return Content(frozenset(tables), row and str(row[0]))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only reads. What a process that was killed has not finished, SQLite takes back first, as at
    any reading: for that it has to write."""
    mode = "rw" if Path(f"{path}-journal").exists() else "ro"
    address = f"file:{quote(str(path))}?mode={mode}"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=20)) as connection:
        yield connection


class Unmoved:
    """A file or folder that a sweep stands on, to be compared with what has its name later: gone, or another one?"""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity = self._now()

    def __bool__(self) -> bool:
        return self._now() == self.identity

    def _now(self) -> tuple[int, int]:
        """Its device and its number; (0, 0) where there is none."""
        try:
            found = self.path.stat()
        except OSError:
            return 0, 0
        return found.st_dev, found.st_ino
