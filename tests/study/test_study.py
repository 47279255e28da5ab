"""The search space and the study: shared names, conditional leaves, proposals that a restart does not change."""

import math
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing

import optuna
import pytest

from runner.files.document import SpecError
from runner.files.place import StorageError
from runner.files.space import Leaf, parse
from runner.files.sweep_file import load_sweep
from runner.study.storage import connect
from runner.study.study import Study, load_study, objective, stored_engine

METRICS = {"lr": 0.1, "train/loss": 1.0, "val/loss": 1.0, "val/accuracy": 0.5, "seconds": 1.0}


@pytest.fixture
def storage(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'optuna.db'}"


def train(study, number: int, accuracy: float, outcome: str = "complete", epochs: int = 2) -> None:
    for epoch in range(epochs):
        study.commit(number, epoch, METRICS | {"val/accuracy": accuracy * (epoch + 1) / epochs})
    study.tell(number, outcome)


def score(record) -> float:
    """A made-up objective that depends on what was proposed, so that the sampler has something to learn."""
    return 0.9 - 0.1 * abs(math.log10(record.schedule["init_lr"]) + 1.2)


def finish(study) -> list:
    while (trial := study.next()) is not None:
        train(study, trial.number, score(trial), "diverged" if trial.number % 4 == 3 else "complete")
    return [(r.number, r.name, dict(r.params), r.outcome, r.value) for r in study.records()]


# --- the space -------------------------------------------------------------------------------------------------


def test_shared_leaves_have_one_name_and_a_types_own_leaves_have_its_name_in_front():
    space = parse(
        {
            "init_lr": {"log_uniform": [0.01, 1]},
            "warmup": {"uniform": [0, 0.3]},
            "gamma": {"uniform": [0.1, 0.5]},
            "schedules": {
                "cosine": {},
                "step": {"step_size": {"uniform": [0.2, 0.5]}},
                "multistep": {"warmup": {"epochs": {"int": [0, 3]}}},
                "one_cycle": {},
                "exponential": {"gamma": 0.9},
            },
        }
    )
    assert {name: [leaf.name for leaf in space.leaves(name)] for name in space.schedules} == {
        "cosine": ["init_lr", "warmup"],
        "step": ["init_lr", "warmup", "gamma", "step.step_size"],
        "multistep": ["init_lr", "multistep.warmup.epochs", "gamma"],
        "one_cycle": ["init_lr"],  # it rises by itself
        "exponential": ["init_lr", "warmup"],  # its gamma is per epoch: another meaning
    }


def test_a_grid_has_every_point_of_every_schedule_once():
    space = parse(
        {
            "init_lr": {"choice": [0.1, 0.2]},
            "schedules": {
                "cosine": {},
                "wsd": {"shape": {"choice": ["linear", "1-sqrt"]}},
                "cosine_restarts": {"cycles": {"int": [1, 3]}},
            },
        }
    )
    points = list(space.grid_points())
    assert len(points) == space.grid() == 2 + 4 + 6
    assert len({str(sorted(p.items())) for p in points}) == 12


def test_options_that_are_lists_are_stored_as_text_and_come_back_as_lists():
    leaf = Leaf("multistep.milestones", "choice", ([0.5, 0.75], [0.3, 0.6]))
    assert leaf.encoded() == ["[0.5, 0.75]", "[0.3, 0.6]"]
    assert leaf.decode("[0.3, 0.6]") == [0.3, 0.6]


def test_corners_are_all_ends_of_all_ranges():
    space = parse({"init_lr": {"uniform": [0.1, 0.2]}, "schedules": {"rex": {"beta": {"choice": [0, 0.5, 0.9]}}}})
    corners = list(space.corners("rex"))
    assert len(corners) == 6
    assert {c["init_lr"] for c in corners} == {0.1, 0.2}


# --- proposals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_every_sampler_proposes_schedules_of_the_space(sampler, sweep_file, storage):
    sweep, _ = load_sweep(sweep_file(search=f"search: {{trials: 14, sampler: {sampler}}}"))
    rows = finish(Study(sweep, storage))
    assert [row[0] for row in rows] == list(range(14))
    for _, name, params, _, _ in rows:
        assert 0.003 <= params["init_lr"] <= 0.3
        assert ("wsd.cooldown" in params) == (name == "wsd")
    assert len({str(row[2]) for row in rows}) == 14


def test_quasi_random_points_fill_the_space_more_evenly_than_chance(sweep_file, storage):
    sweep, _ = load_sweep(sweep_file(search="search: {trials: 64, sampler: qmc}"))
    rows = finish(Study(sweep, storage))
    counts = [sum(row[1] == name for row in rows) for name in ("cosine", "step", "wsd")]
    assert max(counts) - min(counts) <= 2
    bins = [int((math.log(r[2]["init_lr"]) - math.log(0.003)) / math.log(100) * 8) for r in rows]
    assert {bins.count(i) for i in range(8)} == {8}


BEGINS = """\
import sys, time
from pathlib import Path
from runner.study.storage import connect
print("ready", flush=True)
while not Path("go").exists():
    time.sleep(0.0005)
connect(f"sqlite:///{Path.cwd()}/{sys.argv[1]}.db")
"""


@pytest.mark.slow
def test_two_processes_that_begin_at_once_make_one_database(tmp_path):
    for n in range(4):
        command = [sys.executable, "-c", BEGINS, str(n)]
        both = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        for process in both:
            process.stdout.readline()
        (tmp_path / "go").touch()
        assert [(process.communicate(timeout=60)[0], process.returncode) for process in both] == [("", 0)] * 2
        (tmp_path / "go").unlink()


def test_what_a_deleted_study_has_left_behind_is_no_other_programs(sweep_file, tmp_path):
    plan, path = load_sweep(sweep_file())[0], tmp_path / "a.db"
    with closing(Study(plan, f"sqlite:///{path}")) as study:
        study.next()
    with closing(sqlite3.connect(path)) as database:  # as a trial that was created while somebody deleted its study
        for table in ("study_user_attributes", "study_directions", "studies"):
            database.execute(f"DELETE FROM {table}")
        database.commit()
    with closing(Study(plan, f"sqlite:///{path}")) as study:
        assert study.records() == []
        assert study.next().number == 0


def test_a_grid_is_searched_in_order(project, sweep_file, storage):
    text = sweep_file().read_text()
    space = "space:\n  init_lr: {choice: [0.1, 0.2]}\n  schedules: {cosine: {}, linear: {}}\n"
    text = text[: text.index("space:")] + space + "search: {trials: 4, sampler: grid}\n"
    sweep, _ = load_sweep(sweep_file(text))
    rows = finish(Study(sweep, storage))
    assert [(r[1], r[2]["init_lr"]) for r in rows] == [
        ("cosine", 0.1),
        ("cosine", 0.2),
        ("linear", 0.1),
        ("linear", 0.2),
    ]


def test_a_grid_smaller_than_the_number_of_trials_is_refused(sweep_file):
    text = sweep_file().read_text()
    text = text[: text.index("space:")] + "space:\n  schedules: {cosine: {}}\nsearch: {trials: 2, sampler: grid}\n"
    with pytest.raises(SpecError, match=r"search.trials: the grid has 1 points"):
        load_sweep(sweep_file(text))


SLOW = [pytest.param(sampler, marks=pytest.mark.slow) for sampler in ("random", "qmc")]


@pytest.mark.parametrize("sampler", ["tpe", *SLOW])
def test_a_study_interrupted_after_every_trial_proposes_what_an_uninterrupted_one_does(sampler, sweep_file, tmp_path):
    sweep, _ = load_sweep(sweep_file(search=f"search: {{trials: 16, sampler: {sampler}}}"))
    whole = finish(Study(sweep, f"sqlite:///{tmp_path / 'a.db'}"))
    broken = f"sqlite:///{tmp_path / 'b.db'}"
    while True:
        study = Study(sweep, broken)
        trial = study.next()
        if trial is None:
            break
        if trial.number % 2 and not trial.epochs:  # dies in mid-trial, once
            study.commit(trial.number, 0, METRICS | {"val/accuracy": score(trial) / 2})
            continue
        train(study, trial.number, score(trial), "diverged" if trial.number % 4 == 3 else "complete")
    assert finish(Study(sweep, broken)) == whole


def test_a_larger_number_of_trials_continues_the_study(sweep_file, storage):
    first = finish(Study(load_sweep(sweep_file())[0], storage))
    more = finish(Study(load_sweep(sweep_file(search="search: {trials: 5}"))[0], storage))
    assert more[:3] == first
    assert len(more) == 5


def test_another_search_space_under_the_same_name_is_refused_with_the_difference(sweep_file, storage):
    Study(load_sweep(sweep_file())[0], storage)
    changed = load_sweep(sweep_file(train="train: {epochs: 7, batch_size: 32}"))[0]
    with pytest.raises(SpecError, match=r"train.epochs \(2, now 7\)"):
        Study(changed, storage)


# --- outcomes --------------------------------------------------------------------------------------------------


def test_outcomes_are_told_to_optuna_so_that_its_samplers_learn_from_them(sweep_file, storage):
    sweep, _ = load_sweep(sweep_file(search="search: {trials: 3}"))
    study = Study(sweep, storage)
    for outcome, last in (("complete", 0.8), ("diverged", math.nan), ("failed", 0.1)):
        trial = study.next()
        study.commit(trial.number, 0, METRICS | {"val/accuracy": last})
        study.tell(trial.number, outcome, "RuntimeError: no" if outcome == "failed" else None)
    trials = optuna.load_study(study_name="tiny", storage=storage).trials
    assert [t.state.name for t in trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert [t.value for t in trials] == [0.8, None, None]
    assert math.isnan(trials[1].intermediate_values[0])
    records = load_study("tiny", storage)[1]
    assert [r.outcome for r in records] == ["complete", "diverged", "failed"]
    assert records[2].cause == "RuntimeError: no"


def test_an_epoch_on_record_is_not_overwritten(sweep_file, storage):
    study = Study(load_sweep(sweep_file())[0], storage)
    number = study.next().number
    first = study.commit(number, 0, METRICS).epochs
    assert study.commit(number, 0, METRICS | {"seconds": 9.0}).epochs == first


@pytest.mark.slow
def test_a_lock_is_waited_for_a_minute_and_no_longer_whatever_is_written(sweep_file, storage, tmp_path, monkeypatch):
    history = Study(load_sweep(sweep_file())[0], storage)
    trial = history.next()

    with closing(sqlite3.connect(tmp_path / "optuna.db", isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(7, other.execute, ["ROLLBACK"])  # longer than one attempt waits
        release.start()
        history.commit(trial.number, 0, METRICS)
        release.join()
        monkeypatch.setattr("runner.study.storage.PATIENCE", 1.0)
        other.execute("BEGIN IMMEDIATE")
        for write in (lambda: history.commit(trial.number, 1, METRICS), history.next):
            start = time.monotonic()
            with pytest.raises(StorageError, match="locked by another process"):
                write()
            assert time.monotonic() - start < 40
        other.execute("ROLLBACK")
    assert history.next().number == trial.number + 1
    assert [e["epoch"] for e in history.records()[0].epochs] == [0]
    history.close()


def test_the_best_is_the_first_of_equals(sweep_file, storage):
    study = Study(load_sweep(sweep_file())[0], storage)
    assert study.best() is None
    for accuracy in (0.5, 0.7, 0.7):
        train(study, study.next().number, accuracy)
    assert study.best().number == 1


@pytest.mark.parametrize(
    ("metric", "epoch", "expected"),
    [
        ("val/accuracy", "last", 0.6),
        ("val/accuracy", "best", 0.7),
        ("val/loss", "last", 0.9),
        ("val/loss", "best", 0.5),
    ],
)
def test_the_objective_is_the_last_or_the_best_epoch_of_its_metric(metric, epoch, expected, sweep_file):
    sweep, _ = load_sweep(sweep_file(sweep_file().read_text() + f"objective: {{metric: {metric}, epoch: {epoch}}}\n"))
    epochs = [{"val/accuracy": a, "val/loss": b} for a, b in ((0.5, 1.0), (0.7, 0.5), (0.6, 0.9))]
    assert objective(sweep.objective, epochs) == expected


def test_reading_a_study_that_is_not_there_creates_nothing(tmp_path):
    with pytest.raises(SpecError, match="run a sweep first"):
        load_study("tiny", f"sqlite:///{tmp_path / 'none.db'}")
    assert list(tmp_path.iterdir()) == []


def test_a_study_from_before_pruners_went_goes_on(sweep_file, storage):
    plan = load_sweep(sweep_file())[0]
    finish(Study(plan, storage))
    database = connect(storage)
    study = optuna.load_study(study_name=plan.name, storage=database)
    science = study.user_attrs["science"]
    study.set_user_attr("science", {**science, "search": {**science["search"], "pruner": "none", "parole": 0.1}})
    more = load_sweep(sweep_file(search="search: {trials: 4}"))[0]
    assert stored_engine(more, storage, "auto", {}, must=True) is None
    assert len(finish(Study(more, storage))) == 4


def test_a_study_that_was_begun_with_a_pruner_is_another_study(sweep_file, storage):
    plan = load_sweep(sweep_file())[0]
    finish(Study(plan, storage))
    study = optuna.load_study(study_name=plan.name, storage=connect(storage))
    science = study.user_attrs["science"]
    study.set_user_attr("science", {**science, "search": {**science["search"], "pruner": "median", "parole": 0.1}})
    with pytest.raises(SpecError, match=r"begun with another search\.pruner"):
        Study(plan, storage)


def test_a_trial_whose_objective_is_no_number_has_failed_and_the_study_goes_on(sweep_file, storage):
    study = Study(load_sweep(sweep_file())[0], storage)
    first = study.next()
    study.commit(first.number, 0, METRICS)
    study.commit(first.number, 1, METRICS | {"val/accuracy": math.nan})
    told = study.tell(first.number, "complete")
    assert (told.outcome, told.value, told.cause) == ("failed", None, "val/accuracy is nan")
    finish(study)
    assert [r.outcome for r in Study(study.sweep, storage).records()].count("failed") == 1
