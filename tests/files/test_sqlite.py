"""SQLite databases as files: addresses, made whole or not at all, looked into without a change, and not replaced."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy

from runner.files import sqlite
from runner.files.document import SpecError
from runner.files.place import load_place


@pytest.mark.parametrize("name", ["plain", "my%20project", "a b", "who?", "c#d", "50%", "é", "a+b&c=d", "x;y"])
def test_an_address_leads_to_its_file_whatever_the_path_has_in_it(tmp_path, name):
    path = tmp_path / name / f"{name}.db"
    path.parent.mkdir()
    engine = sqlalchemy.create_engine(sqlite.address(path))
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE here (x)"))
    engine.dispose()
    assert sqlite.path_of(sqlite.address(path)) == path
    assert [p.name for p in tmp_path.iterdir()] == [name]  # nothing beside it
    assert sqlite.look(path).tables == {"here"}


def test_a_server_has_no_file():
    assert sqlite.path_of("postgresql+psycopg://me@host/x") is None
    assert sqlite.path_of("http://host:5000") is None


def make(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE first (x)")
        if not os.environ.get("WHOLE"):
            time.sleep(0.3)
        database.execute("CREATE TABLE second (x)")


def test_a_process_that_is_killed_while_it_makes_a_database_leaves_none_and_the_next_one_makes_it(tmp_path):
    path = tmp_path / "runs.db"
    code = f"from tests.files.test_sqlite import *; sqlite.make_whole(Path({str(path)!r}), make)"
    for _ in range(3):
        maker = subprocess.Popen([sys.executable, "-c", code])
        until = time.monotonic() + 60
        while not list(tmp_path.glob(".runs.db.*.new")):
            assert time.monotonic() < until
            time.sleep(0.005)
        maker.send_signal(signal.SIGKILL)
        maker.wait()
        assert not path.exists()
    sqlite.make_whole(path, make)
    assert sqlite.look(path).tables == {"first", "second"}
    assert [p.name for p in tmp_path.iterdir()] == ["runs.db"]  # what was left is gone


def test_two_processes_that_begin_at_once_make_one_database(tmp_path):
    path = tmp_path / "runs.db"
    code = f"""
from tests.files.test_sqlite import *
made = []
sqlite.make_whole(Path({str(path)!r}), lambda new: (make(new), made.append(new)))
print(len(made))
"""
    makers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert sorted(maker.communicate(timeout=60)[0].strip() for maker in makers) == ["0", "0", "1"]
    assert [p.name for p in tmp_path.iterdir()] == ["runs.db"]


def test_a_database_that_another_program_has_made_meanwhile_is_the_one(tmp_path):
    path = tmp_path / "runs.db"

    def slow(new: Path) -> None:
        make(new)
        with closing(sqlite3.connect(path)) as theirs:
            theirs.execute("CREATE TABLE theirs (x)")

    sqlite.make_whole(path, slow)
    assert sqlite.look(path).tables == {"theirs"}


def test_an_empty_file_is_no_database_yet(tmp_path):
    path = tmp_path / "runs.db"
    path.touch()
    assert sqlite.look(path).tables == set()
    sqlite.make_whole(path, make)
    assert sqlite.look(path).tables == {"first", "second"}


def test_looking_into_a_database_changes_no_byte_of_it(tmp_path):
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE alembic_version (version_num)")
        database.execute("INSERT INTO alembic_version VALUES ('abc')")
        database.commit()
    before = path.read_bytes(), path.stat().st_mtime_ns
    content = sqlite.look(path)
    assert content.revision == "abc"
    assert content.count(path, "alembic_version") == 1
    assert content.count(path, "nothing") == 0
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert [p.name for p in tmp_path.iterdir()] == ["theirs.db"]


def test_what_a_process_that_was_killed_had_not_finished_is_taken_back(tmp_path):
    """A journal is left, from which SQLite restores what was there before."""
    path = tmp_path / "runs.db"
    make(path)
    code = f"""
import os, sqlite3
database = sqlite3.connect({str(path)!r}, isolation_level=None)
database.execute("PRAGMA cache_size = 5")
database.execute("BEGIN")
database.execute("CREATE TABLE third (x)")
database.executemany("INSERT INTO third VALUES (?)", [("x" * 1000,) for _ in range(500)])  # more than it keeps
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert Path(f"{path}-journal").exists()
    assert sqlite.look(path).tables == {"first", "second"}
    assert not Path(f"{path}-journal").exists()


def test_what_is_no_database_is_named_with_what_to_do(tmp_path):
    (tmp_path / "text.db").write_text("no database, though its name ends so" * 40)
    with pytest.raises(SpecError, match=r"text\.db is no SQLite database .*; give another path"):
        sqlite.look(tmp_path / "text.db")
    os.mkfifo(tmp_path / "pipe.db")
    with pytest.raises(SpecError, match=r"pipe\.db is no regular file"):
        sqlite.look(tmp_path / "pipe.db")
    with pytest.raises(SpecError, match=r"there is no folder .*nowhere; make it first"):
        sqlite.look(tmp_path / "nowhere" / "x.db")


def test_a_file_that_was_removed_or_replaced_is_known(tmp_path):
    path = tmp_path / "runs.db"
    make(path)
    same = sqlite.Unmoved(path)
    assert same
    make(tmp_path / "other.db")
    (tmp_path / "other.db").replace(path)
    assert not same
    path.unlink()
    assert not same


# --- the addresses in mlflow.yaml ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "wrong"),
    [
        ("study: {storage: 'sqlite:///mlflow.db'}", 1, "is MLflow's database, too"),
        ("study:\n  storage: sqlite:///./mlflow.db", 2, "is MLflow's database, too"),
        ("study:\n  storage: sqlite:///optuna.db?timeout=5", 2, "has no parameters here"),
        ("server:\n  mlflow_tracking_uri: sqlite:///runs.db?mode=ro&uri=true", 2, "has no parameters here"),
        ("study: {storage: 'sqlite:///:memory:'}", 1, "the path of a file"),
    ],
)
def test_an_address_that_would_mean_something_else_is_refused_with_its_line(tmp_path, text, line, wrong):
    path = tmp_path / "mlflow.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=wrong) as error:
        load_place(path)
    assert error.value.line == line
    assert [p.name for p in tmp_path.iterdir()] == ["mlflow.yaml"]


def test_one_database_of_a_server_cannot_be_both(tmp_path, monkeypatch):
    pytest.importorskip("psycopg", reason="PostgreSQL's driver is an extra")
    path = tmp_path / "mlflow.yaml"
    path.write_text("{}")
    monkeypatch.setenv("RUNNER_STUDY_STORAGE", "postgresql+psycopg://ann@host/lab")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://bob@host:5432/lab")
    with pytest.raises(SpecError, match="RUNNER_STUDY_STORAGE: is MLflow's database, too"):
        load_place(path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg://ann@host/mlflow")
    assert load_place(path).storage.endswith("/lab")


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path, monkeypatch):
    folder = os.fsencode(tmp_path) + b"/x\xff"
    os.mkdir(folder)  # noqa: PTH102
    monkeypatch.chdir(folder)
    with pytest.raises(SpecError, match="has bytes that are no UTF-8"):
        load_place()
