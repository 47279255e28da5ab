"""MLflow's database: made whole, never changed by a reader, and refused with the reason where it cannot be used."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from runner import export, sweep, ui
from runner.files.place import load_place
from runner.tracking import client as clients

from ..conftest import HERE, children, client, epochs_on_record, runs


def set_revision(path: str, revision: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", [revision])
        database.commit()


def refused_by_all(project: Path, capsys, wrong: str, readers: bool = True) -> None:
    """The sweep, its dry run and the UI refuse with ``wrong``, and nothing is made or changed."""
    there = {p: p.read_bytes() for p in sorted(project.rglob("*")) if p.is_file()}
    commands = [lambda: sweep.main(["sweeps/tiny.yaml", *HERE, "--dry-run"])]
    commands += [lambda: sweep.main(["sweeps/tiny.yaml", *HERE])]
    commands += [lambda: ui.main([])] * readers
    for command in commands:
        assert command() == 2
        assert wrong in capsys.readouterr().err
        assert {p: p.read_bytes() for p in sorted(project.rglob("*")) if p.is_file()} == there


def test_the_newest_revision_is_the_one_that_mlflow_itself_makes(migrated):
    known, newest = clients._revisions()
    with closing(sqlite3.connect(migrated)) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchone() == (newest,)
    assert len(known) > 30


def test_a_store_of_an_older_mlflow_is_changed_by_nobody(project, capsys):
    older = sorted(clients._revisions()[0] - {clients._revisions()[1]})[0]
    set_revision("mlflow.db", older)
    refused_by_all(project, capsys, "no older server could use it then. Where that is wanted, keep a copy and run: ")


def test_a_store_of_a_newer_mlflow_asks_for_that(project, capsys):
    set_revision("mlflow.db", "f" * 12)
    refused_by_all(project, capsys, "mlflow.db is of a newer MLflow than ")


def test_a_store_that_was_not_made_to_its_end_says_so(project, capsys):
    older = sorted(clients._revisions()[0] - {clients._revisions()[1]})[0]
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("DELETE FROM experiments")
        database.commit()
    set_revision("mlflow.db", older)
    os.utime("mlflow.db", (1, 1))  # nobody is making it at the moment
    refused_by_all(project, capsys, "was not made to its end, and nothing is in it; remove it, and the same command")


def test_another_programs_database_is_not_mlflows(project, capsys):
    with closing(sqlite3.connect("theirs.db")) as database:
        database.execute("CREATE TABLE customers (name)")
        database.commit()
    os.utime("theirs.db", (1, 1))  # nobody is making it at the moment
    Path("mlflow.yaml").write_text("server:\n  mlflow_tracking_uri: sqlite:///theirs.db\n")
    refused_by_all(project, capsys, "mlflow.yaml, line 2: server.mlflow_tracking_uri: ")


@pytest.mark.parametrize(
    ("location", "wrong"),
    [
        ("ftps://host/x", "MLflow knows no artifact store ftps://"),
        ("gs://bucket/x", "needs a package that is not installed (google.cloud.storage)"),
    ],
)
def test_artifacts_that_have_no_place_are_refused_with_the_line(project, capsys, location, wrong):
    Path("mlflow.yaml").write_text(
        f"tracking:\n  experiment:\n    create_experiment_kwargs:\n      artifact_location: {location}\n"
    )
    refused_by_all(project, capsys, wrong, readers=False)


@pytest.mark.parametrize("option", [[], ["--dry-run"]])
def test_where_results_cannot_be_written_nothing_is_made(project, capsys, option):
    Path("results").write_text("in the way")
    there = sorted(project.rglob("*"))
    assert sweep.main(["sweeps/tiny.yaml", *HERE, *option]) == 2
    assert "the results cannot be written to" in capsys.readouterr().err
    assert sorted(project.rglob("*")) == there


def test_reading_a_study_changes_no_table_of_it(swept):
    with closing(sqlite3.connect("optuna.db")) as database:
        before = list(database.iterdump())
    assert export.main(["tiny", "--out", "best.csv"]) == 0
    with closing(sqlite3.connect("optuna.db")) as database:
        assert list(database.iterdump()) == before


# --- a folder that was moved, and the bin ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_that_was_moved_says_how_its_artifacts_are_found_again(project, monkeypatch, capsys):
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    moved = project.with_name("moved")
    project.rename(moved)
    monkeypatch.chdir(moved)
    capsys.readouterr()
    for option in ([], ["--sync"]):
        assert sweep.main(["sweeps/tiny.yaml", *HERE, *option]) in (2, 4)
        err = capsys.readouterr().err
        assert f"MLflow keeps this experiment's artifacts in {project}/mlartifacts" in err
        assert f"ln -s {moved} {project}" in err
        assert not project.exists()
    project.symlink_to(moved)
    assert sweep.main(["sweeps/tiny.yaml", *HERE, "--sync"]) == 0
    assert client().list_artifacts(children()[0].info.run_id)


@pytest.mark.slow
def test_a_parent_run_and_an_experiment_that_were_in_the_bin_come_back_as_they_were(project, capsys):
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    (parent,) = runs("tags.`sweep.role` = 'study'")
    client().delete_run(parent.info.run_id)
    assert ui.main(["tiny"]) == 2
    assert "it lies in MLflow's bin: python -m runner.sweep FILE --sync brings it back" in capsys.readouterr().err
    assert sweep.main(["sweeps/tiny.yaml", *HERE, "--sync"]) == 0
    assert "1 of this sweep's runs lay in MLflow's bin: brought back" in capsys.readouterr().out
    client().delete_experiment("1")
    assert ui.main(["tiny"]) == 2
    assert "it lies in MLflow's bin" in capsys.readouterr().err
    assert sweep.main(["sweeps/tiny.yaml", *HERE, "--sync"]) == 0
    assert "the experiment 'lr-schedules' lay in MLflow's bin: brought back" in capsys.readouterr().out
    assert [r.info.run_id for r in runs("tags.`sweep.role` = 'study'")] == [parent.info.run_id]
    assert {r.data.tags["mlflow.parentRunId"] for r in children()} == {parent.info.run_id}
    assert len(children()) == 3


def test_what_is_sent_again_and_again_leaves_one_point_of_each_metric(project):
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    for _ in range(2):
        assert sweep.main(["sweeps/tiny.yaml", *HERE, "--sync"]) == 0
    for run in runs():
        for name in run.data.metrics:
            points = client().get_metric_history(run.info.run_id, name)
            assert len({(p.step, p.timestamp, p.value) for p in points}) == len(points), name
            if name.startswith("study/") or name in ("objective", "total_seconds"):
                assert len(points) == 1, name


# --- interruptions of the first run ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_first_run_that_is_interrupted_while_the_database_is_made_goes_on_by_the_same_command(project, number):
    Path("mlflow.db").unlink()
    command = [sys.executable, "-m", "runner.sweep", "sweeps/tiny.yaml", "--device", "cpu", "--lanes", "1"]
    for wait in (0.0, 1.0):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
            until = time.monotonic() + 120
            while not list(project.glob(".mlflow.db.*.new")):
                assert time.monotonic() < until
                assert first.poll() is None
                time.sleep(0.01)
            time.sleep(wait)
            first.send_signal(number)
            first.wait(60)
        assert not Path("mlflow.db").exists() or clients.missing_database(load_place()) is None
    assert subprocess.run(command, timeout=300, check=False).returncode == 0
    assert len(children()) == 3
    assert epochs_on_record() == 6
    assert [p.name for p in project.glob(".mlflow.db*")] == []


@pytest.mark.slow
def test_a_server_that_makes_the_same_database_at_the_same_time_is_waited_for(project):
    Path("mlflow.db").unlink()
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": load_place().tracking_uri}
    make = [sys.executable, "-m", "mlflow", "db", "upgrade", load_place().tracking_uri]
    with subprocess.Popen(make, env=environment, stderr=subprocess.DEVNULL) as other:
        until = time.monotonic() + 60
        while not Path("mlflow.db").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
        assert other.wait(60) == 0
    assert len(children()) == 3


@pytest.mark.slow
def test_an_interrupted_server_of_mlflows_leaves_a_database_that_is_named(project, capsys):
    """Its own command, killed while it makes the tables."""
    Path("mlflow.db").unlink()
    make = [sys.executable, "-m", "mlflow", "db", "upgrade", load_place().tracking_uri]
    with subprocess.Popen(make, stderr=subprocess.DEVNULL) as other:
        while not (Path("mlflow.db").exists() and Path("mlflow.db").stat().st_size):
            time.sleep(0.005)
        time.sleep(0.2)
        other.kill()
    Path("mlflow.db-journal").unlink(missing_ok=True)
    os.utime("mlflow.db", (1, 1))
    code = sweep.main(["sweeps/tiny.yaml", *HERE])
    if code:  # where it got as far as a table
        assert code == 2
        assert "was not made to its end" in capsys.readouterr().err
        Path("mlflow.db").unlink()
        shutil.rmtree("results", ignore_errors=True)
        assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
