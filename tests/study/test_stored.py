"""What others do to a study's storage: other tools' trials, edited attributes, a file removed or replaced, locks."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from runner import export, sweep
from runner.files.document import SpecError
from runner.files.place import StorageError, load_place
from runner.study.storage import NoStudyError, check_lock, connect, hold
from runner.study.study import Study, load_study

from ..conftest import HERE, TINY

STORAGE = "sqlite:///optuna.db"


@pytest.fixture
def a_study(tiny, tmp_path, monkeypatch):
    """Open the study of the tiny sweep with so many trials, in this folder."""
    monkeypatch.chdir(tmp_path)
    return lambda trials: Study(tiny(search=f"{{trials: {trials}}}"), f"sqlite:///{tmp_path / 'optuna.db'}")


def epoch(number: int = 0) -> dict[str, float]:
    return {"lr": 0.1, "train/loss": 1.0, "val/loss": 1.0, "val/accuracy": 0.5, "seconds": 1.0}


@pytest.mark.slow
def test_trials_of_other_tools_are_left_out_and_said_and_the_sweep_goes_on(project, capsys):
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    theirs = optuna.load_study(study_name="tiny", storage=STORAGE)
    theirs.enqueue_trial({"type": "cosine"})  # as a dashboard does
    asked = theirs.ask()
    theirs.ask()
    theirs.tell(asked, 0.99)
    Path("sweeps/tiny.yaml").write_text(TINY.replace("trials: 3", "trials: 5"))
    capsys.readouterr()
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    assert "warning: 2 trials of this study are another program's, and are left out" in capsys.readouterr().out
    _, records = load_study("tiny", load_place().storage)
    assert [r.number for r in records] == [0, 1, 2, 5, 6]
    assert {r.outcome for r in records} == {"complete"}
    assert export.best_schedules("tiny")["objective"].max() < 0.99  # which is nobody's schedule


@pytest.mark.slow
def test_what_is_proposed_does_not_depend_on_other_tools_trials(a_study):

    def params(touched: bool) -> list:
        found = []
        for n in range(12):
            study = a_study(12)
            trial = study.next()
            study.commit(trial.number, 0, epoch())
            study.tell(trial.number, "complete")
            found.append(dict(trial.params))
            study.close()
            if touched and n % 3 == 0:
                optuna.load_study(study_name="tiny", storage=STORAGE).ask()
        optuna.delete_study(study_name="tiny", storage=STORAGE)
        return found

    assert params(touched=True) == params(touched=False)


def test_a_trial_that_another_tool_ends_has_failed_and_the_study_goes_on(a_study):
    study = a_study(2)
    trial = study.next()
    study.commit(trial.number, 0, epoch())
    theirs = optuna.load_study(study_name="tiny", storage=STORAGE)
    theirs.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    study.commit(trial.number, 1, epoch())
    told = study.tell(trial.number, "complete")
    assert (told.outcome, told.cause) == ("failed", "another program ended it (FAIL)")
    study.close()
    again = a_study(2)
    assert [(r.outcome, r.cause) for r in again.records()] == [("failed", "another program ended it (FAIL)")]
    assert again.next().number == 1


EDITS = {
    "name": 5,
    "schedule": "cosine",
    "schedule ": {"type": "nothing"},
    "schedule  ": {"type": "custom", "function": 7},
    "train": [1],
    "train ": {"batch_size": 5},
    "arm": {"a": 1},
    "outcome": "won",
    "cause": ["why"],
    "epoch:0": [1, 2],
    "epoch:0 ": {"epoch": 0, "lr": "fast"},
    "epoch:0  ": {"epoch": 0, "timestamp": 1},
    "epoch:0   ": {"epoch": 0, "timestamp": float("nan"), "lr": 1, "val/accuracy": 1, "seconds": 1},
}


@pytest.mark.parametrize("key", EDITS)
def test_a_trial_whose_record_has_been_edited_is_named_by_every_command(swept, capsys, key):
    text = json.dumps(EDITS[key])
    with closing(sqlite3.connect("optuna.db")) as database:
        query = "UPDATE trial_user_attributes SET value_json = ? WHERE key = ? AND trial_id = 2"
        changed = database.execute(query, [text, key.strip()]).rowcount
        if not changed:
            query = "INSERT INTO trial_user_attributes (value_json, key, trial_id) VALUES (?, ?, 2)"
            database.execute(query, [text, key.strip()])
        database.commit()
    for command in (lambda: export.main(["tiny"]), lambda: sweep.main(["sweeps/tiny.yaml", *HERE])):
        assert command() == 2
        err = capsys.readouterr().err
        assert "trial 1 of the study has been edited: its " in err
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("science", []),
        ("science", {"data": 1}),
        ("engine", "fast"),
        ("engine", {"name": "fastest"}),
        ("updates_per_epoch", "many"),
        ("updates_per_epoch", 0),
        ("confirmed", {"trial": 1}),
        ("confirmed", [{"trial": "one", "mean": 1.0, "in_set": True}]),
        ("answer", "take cosine"),
        ("queue", [1]),
        ("run:0", 5),
        ("noise", [0.1]),
        ("id", {"a": 1}),
        ("engine", None),
        ("engine", {"name": "fast", "turbo": True}),
        ("science", None),
        ("queue", {"x": {}}),
    ],
)
def test_a_study_whose_facts_have_been_edited_is_named(swept, capsys, key, value):
    optuna.load_study(study_name="tiny", storage=STORAGE).set_user_attr(key, value)
    for command in (lambda: export.main(["tiny"]), lambda: sweep.main(["sweeps/tiny.yaml", *HERE, "--dry-run"])):
        assert command() == 2
        err = capsys.readouterr().err
        assert f"has been edited: its {key}" in err
        assert "Traceback" not in err


def test_a_stage_beside_a_study_that_has_been_edited_is_named_before_anything_is_trained(swept, capsys):
    theirs = optuna.create_study(study_name="tiny@confirm", storage=STORAGE, direction="maximize")
    theirs.set_user_attr("science", None)
    for option in (["--dry-run"], []):
        assert sweep.main(["sweeps/tiny.yaml", *HERE, *option]) == 2
        assert "the study 'tiny@confirm' has been edited: its science" in capsys.readouterr().err


def test_a_database_that_looks_like_optunas_and_is_not_stays_as_it_is(project, capsys):
    with closing(sqlite3.connect("optuna.db")) as database:
        database.execute("CREATE TABLE version_info (version)")
        database.execute("CREATE TABLE mine (x)")
        database.commit()
    before = Path("optuna.db").read_bytes()
    for command in (lambda: export.main(["tiny"]), lambda: sweep.main(["sweeps/tiny.yaml", *HERE, "--dry-run"])):
        assert command() == 2
        assert "optuna.db is another program's database (it has mine, version_info)" in capsys.readouterr().err
        assert Path("optuna.db").read_bytes() == before


def test_a_dry_run_is_in_nobodys_way(tmp_path):
    """It looks at the lock, and neither takes nor changes it."""
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    check_lock("mine", storage)
    assert not list(tmp_path.iterdir())
    with hold("mine", storage), pytest.raises(SpecError, match=rf"\(pid {os.getpid()}\)"):
        check_lock("mine", storage)
    lock = tmp_path / "optuna.db.mine.lock"
    before = lock.read_bytes()
    check_lock("mine", storage)
    assert lock.read_bytes() == before


def test_the_command_that_puts_a_study_back_removes_nothing_whatever_its_name_is(tiny, tmp_path):
    path = tmp_path / "my study; x.db"
    study = Study(tiny(search="{trials: 2}"), f"sqlite:///{path}")
    study.next()
    for name in ("my", "x.db", "study;"):
        (tmp_path / name).write_text("precious")
    path.unlink()
    path.write_text("somebody else's")
    with pytest.raises(StorageError, match="was replaced while the sweep ran") as gone:
        study.check_file()
    study.close()
    mend = str(gone.value).partition("to put it back: ")[2]
    subprocess.run(mend, shell=True, check=True)  # noqa: S602, the line for a shell that we print
    assert [(tmp_path / name).read_text() for name in ("my", "x.db", "study;")] == ["precious"] * 3
    assert (tmp_path / "my study; x.db.other").read_text() == "somebody else's"
    again = Study(tiny(search="{trials: 2}"), f"sqlite:///{path}")
    assert len(again.records()) == 1
    again.close()


def test_a_folder_that_is_moved_in_mid_sweep_is_named(tiny, tmp_path):
    (tmp_path / "project").mkdir()
    study = Study(tiny(search="{trials: 2}"), f"sqlite:///{tmp_path / 'project' / 'optuna.db'}")
    study.next()
    (tmp_path / "project").rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=r"the folder .*project was moved or removed while the sweep ran"):
        study.check_file()
    study.close()


def test_text_in_a_study_can_neither_be_code_nor_move_a_cursor(swept, capsys):
    study = optuna.load_study(study_name="tiny", storage=STORAGE)
    science = study.user_attrs["science"]
    science["data"] |= {"path": "images\nraise SystemExit(7)", "source": "parquet"}
    study.set_user_attr("science", science)
    study.set_user_attr("answer", ["take this\x1b[2J\none"])
    with closing(sqlite3.connect("optuna.db")) as database:
        name = json.dumps("cosine\x1b[31m\nname")
        database.execute("UPDATE trial_user_attributes SET value_json = ? WHERE key = 'name'", [name])
        database.commit()
    for arguments in (["--code", "1"], [], ["--format", "csv"], ["--table", "trials", "--format", "json"]):
        assert export.main(["tiny", *arguments]) == 0
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert not any(line.startswith(("raise", "name")) for line in out.splitlines())


def test_nothing_in_a_database_is_unpickled(swept):
    """Optuna's own CMA-ES keeps a pickle in a trial's attributes; no sampler here does, or reads one."""
    import pickle

    class Run:
        def __reduce__(self):
            return (os.mkdir, (str(Path("it_ran").absolute()),))

    study = optuna.load_study(study_name="tiny", storage=STORAGE)
    blob = pickle.dumps(Run()).hex()
    with closing(sqlite3.connect("optuna.db")) as database:
        insert = "INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES (?, 'cma:optimizer', ?)"
        database.executemany(insert, [(trial._trial_id, json.dumps(blob)) for trial in study.trials])
        database.commit()
    Path("sweeps/tiny.yaml").write_text(TINY.replace("trials: 3", "trials: 4"))
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    assert not Path("it_ran").exists()


# --- files that go away, and locks -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_study_whose_file_is_gone_stops_and_what_is_on_record_lies_beside(a_study, tmp_path, how):
    study = a_study(3)
    first = study.next()
    study.commit(first.number, 0, epoch())
    study.tell(first.number, "complete")
    if how == "removed":
        for path in tmp_path.glob("optuna.db*"):
            path.unlink()
    else:
        connect(f"sqlite:///{tmp_path / 'other.db'}").engine.dispose()
        (tmp_path / "other.db").replace("optuna.db")
    with pytest.raises(
        StorageError, match=rf"optuna\.db was {how} while the sweep ran; what is on record lies"
    ) as gone:
        study.commit(study.next().number, 0, epoch())
    study.close()
    mend = str(gone.value).partition("to put it back: ")[2]
    subprocess.run(mend, shell=True, check=True)  # noqa: S602, the line for a shell that we print
    again = a_study(3)
    assert again.records()[0].outcome == "complete"
    assert len(again.records()[0].epochs) == 1
    again.close()


def test_a_lock_that_is_removed_stops_the_sweep_that_had_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    first = hold("mine", storage)
    first.check()
    Path("optuna.db.mine.lock").unlink()
    second = hold("mine", storage)  # nothing keeps it from that
    with pytest.raises(
        StorageError, match=r"lock .* was removed or replaced; another process may run this study now"
    ):
        first.check()
    second.check()
    first.close()
    second.close()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_lock_that_is_no_file_is_refused_and_nothing_is_written_through_it(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    target, lock = Path("precious.txt"), Path("optuna.db.mine.lock")
    target.write_text("keep this")
    {"link": lambda: lock.symlink_to(target), "pipe": lambda: os.mkfifo(lock), "folder": lock.mkdir}[kind]()
    with pytest.raises(SpecError, match="no regular file"):
        hold("mine", f"sqlite:///{tmp_path / 'optuna.db'}")
    assert target.read_text() == "keep this"


def test_a_lock_names_who_has_it_and_ends_with_its_process(tmp_path):
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    code = f"from runner.study.storage import hold; h = hold('mine', {storage!r}); print('held', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(SpecError, match=rf"run by {socket.gethostname()} \(pid {holder.pid}\)"):
            hold("mine", storage)
        holder.kill()
        holder.wait()
    hold("mine", storage).close()


def test_a_study_is_made_whole_or_not_at_all(tmp_path):
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    code = f"from runner.study.storage import connect; connect({storage!r})"
    maker = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 60
    while not list(tmp_path.glob(".optuna.db.*.new")):
        assert time.monotonic() < until
        time.sleep(0.001)
    maker.kill()
    maker.wait()
    there = connect(storage)
    assert optuna.get_all_study_names(there) == []
    there.engine.dispose()


def test_another_programs_database_is_refused_and_stays_as_it_is(project, capsys):
    Path("optuna.db").unlink(missing_ok=True)
    shutil.copy("mlflow.db", "optuna.db")
    before = Path("optuna.db").read_bytes()
    there = sorted(project.rglob("*"))
    for arguments in (["--dry-run"], []):
        assert sweep.main(["sweeps/tiny.yaml", *HERE, *arguments]) == 2
        assert "optuna.db is another program's database (it has alembic_version" in capsys.readouterr().err
        assert sorted(project.rglob("*")) == there
    assert Path("optuna.db").read_bytes() == before


def test_another_programs_study_of_the_same_name_is_refused_by_a_dry_run_too(project, capsys):
    theirs = optuna.create_study(study_name="tiny", storage=STORAGE)
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    with closing(sqlite3.connect("optuna.db")) as database:
        before = database.execute("PRAGMA journal_mode").fetchone()
    there = sorted(project.rglob("*"))
    for arguments in (["--dry-run"], []):
        assert sweep.main(["sweeps/tiny.yaml", *HERE, *arguments]) == 2
        assert "has a study 'tiny' of another program; give this sweep another name" in capsys.readouterr().err
        assert sorted(project.rglob("*")) == there
    with closing(sqlite3.connect("optuna.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == before == ("delete",)


def test_where_there_is_no_study_a_reader_makes_none(project):
    with pytest.raises(NoStudyError):
        load_study("tiny", load_place().storage)
    assert not Path("optuna.db").exists()
