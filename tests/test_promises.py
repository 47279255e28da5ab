"""The nine promises of the README, each kept with a training of one's own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from runner import sweep
from runner.export import best_schedules

from .conftest import HERE, children, client, epochs_on_record, runs

OWN = """\
import time
from pathlib import Path

import torch


def train(job):
    x, w = torch.randn(64, 3), torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1.0)
    scheduler = job.scheduler(optimizer, updates_per_epoch=4)
    if job.state:
        x, w.data = job.state["x"], job.state["w"]
    print("begins with", job.epoch, "epochs behind it")
    for epoch in range(job.epoch, job.epochs):
        for batch in x.split(16):
            (batch @ (w - 1)).square().mean().backward()
            optimizer.step(), scheduler.step(), optimizer.zero_grad()
        yield {"val/error": (w - 1).abs().mean()}, {"x": x, "w": w.detach().clone()}
        if Path("slow").exists():
            time.sleep(0.3)


def removes_the_study(job):
    for n, metrics in enumerate(train(job)):
        if n == 1:
            Path("optuna.db").unlink()
        time.sleep(0.6)
        yield metrics


def says_a_secret(job):
    print("connected to postgresql://me:hunter2@db.example/runs")
    raise ValueError("no answer from postgresql://me:hunter2@db.example/runs")
"""
FILE = """\
question: Does it hold with code of one's own?
train: {name: custom, function: own_promises.train, epochs: 3}
objective: {metric: val/error, direction: minimize}
space:
  init_lr: {log_uniform: [0.01, 0.5]}
  warmup: {uniform: [0.0, 0.3]}
  schedules: {cosine: {}, linear: {}}
search: {trials: 4, window: 2}
confirm: {top: 2, types: false, seeds: 2}
"""
ALLOWED = ["sweeps/own.yaml", *HERE, "--allow-plugin", "own_promises."]
COMMAND = [sys.executable, "-m", "runner.sweep", *ALLOWED]


@pytest.fixture
def own(project, monkeypatch):
    """A project with a sweep of a training of one's own; returns its folder."""
    (project / "own_promises.py").write_text(OWN)
    (project / "sweeps/own.yaml").write_text(FILE)
    monkeypatch.syspath_prepend(project)
    monkeypatch.delitem(sys.modules, "own_promises", raising=False)  # of the test before
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(project), os.environ.get("PYTHONPATH")])))
    return project


def table() -> pd.DataFrame:
    return best_schedules("own").drop(columns=["seconds", "run_id"])


def changed(**lines: str) -> None:
    """The sweep file with other lines in place of its own."""
    text = FILE
    for key, line in lines.items():
        text = re.sub(f"(?m)^{key}:.*$", line, text)
    Path("sweeps/own.yaml").write_text(text)


@pytest.mark.slow
def test_1_and_2_killed_and_begun_again_it_comes_to_the_table_of_an_undisturbed_one(own):
    assert sweep.main(ALLOWED) == 0
    expected = table()
    for path in own.glob("optuna.db*"):
        path.unlink()
    Path("mlflow.yaml").write_text("study: {checkpoint_seconds: 0}\n")
    Path("slow").touch()
    process = subprocess.Popen(COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while epochs_on_record() < 5:  # in the middle of a trial
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    Path("slow").unlink()
    before = epochs_on_record()
    assert sweep.main(ALLOWED) == 0
    assert epochs_on_record() > before
    pd.testing.assert_frame_equal(table(), expected)
    logs = "".join(path.read_text() for path in own.glob("results/own/logs/search-*.log"))
    assert not logs or "begins with 0" in logs


@pytest.mark.slow
def test_3_a_signal_ends_the_epoch_says_how_to_continue_and_nothing_is_lost(own):
    Path("slow").touch()
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while epochs_on_record() < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "stopped; continue with: python -m runner.sweep sweeps/own.yaml" in said
    assert (own / "results/own/report.md").exists()
    Path("slow").unlink()
    assert sweep.main(ALLOWED) == 0
    assert sorted(int(run.data.tags["trial.number"]) for run in children()) == [0, 1, 2, 3]


def test_4_a_tracking_server_that_is_not_there_stops_nothing_and_is_made_up_for_later(own, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert sweep.main(ALLOWED) == 0
    assert "training goes on, and what it misses is sent when it is back" in capsys.readouterr().out
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sweep.main([*ALLOWED, "--sync"]) == 0
    for run in children():
        assert [m.step for m in client().get_metric_history(run.info.run_id, "val/error")] == [0, 1, 2]
        assert [m.step for m in client().get_metric_history(run.info.run_id, "lr")] == [0, 1, 2]
    assert {run.info.status for run in runs()} == {"FINISHED"}


def test_5_a_study_that_is_removed_ends_it_with_a_sentence_and_what_was_on_record_is_saved(own, capsys):
    changed(train="train: {name: custom, function: own_promises.removes_the_study, epochs: 3}")
    assert sweep.main(ALLOWED) == 4
    said = capsys.readouterr().err
    assert "optuna.db was removed while the sweep ran; what is on record lies in optuna.db." in said
    (kept,) = own.glob("optuna.db.*.rescued")
    kept.rename("optuna.db")
    assert epochs_on_record() >= 1


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ("{name: custom, epochs: 3}", "line 2: train.function: a training of one's own has a function"),
        ("{name: resnet, function: own_promises.train, epochs: 3}", "line 2: train.name: unknown value 'resnet'"),
        ("{function: own_promises.trian, epochs: 3}", "train.function: 'own_promises.trian' cannot be imported"),
        ("{function: own_promises.train, epochs: 3, batch_size: 9}", "line 2: train.batch_size: unknown key"),
        (
            "{command: [python, a.py, '{sedd}'], epochs: 3}",
            "train.command.2: unknown placeholder {sedd}; known: schedule, seed, epochs, folder, device; {{sedd}} is",
        ),
        ("{command: [no-such-program], epochs: 3}", "train.command.0: there is no command 'no-such-program'"),
        ("{command: [], epochs: 3}", "line 2: train.command: needs at least 1 values, not 0"),
    ],
)
def test_6_a_wrong_file_is_refused_with_its_line_and_nothing_is_created(own, capsys, train, said):
    changed(train=f"train: {train}")
    there = sorted(own.rglob("*"))
    assert sweep.main([*ALLOWED, "--allow-command"]) == 2
    assert said in capsys.readouterr().err
    assert [path for path in sorted(own.rglob("*")) if "__pycache__" not in str(path)] == there


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "objective: {metric: val/error, direction: minimize}",
            "objective: {metric: val/error}",
            "line 3: objective",
        ),
        ("question:", "data: {source: digits}\nquestion:", "line 1: data: a training of one's own brings its data"),
        ("question:", "model: {width: 8}\nquestion:", "line 1: model: a training of one's own brings its model"),
    ],
)
def test_6_what_a_training_of_ones_own_brings_or_must_say_is_asked_for(own, capsys, old, new, said):
    Path("sweeps/own.yaml").write_text(FILE.replace(old, new))
    assert sweep.main(ALLOWED) == 2
    assert said in capsys.readouterr().err


def test_7_a_sweep_file_names_no_code_without_permission(own, capsys):
    assert sweep.main(ALLOWED[:-2]) == 2
    assert "--allow-plugin own_promises." in capsys.readouterr().err
    changed(train="train: {command: [touch, '{folder}/here'], epochs: 3}")
    assert sweep.main(ALLOWED) == 2
    said = capsys.readouterr().err
    assert "train.command: a sweep file starts no command (touch '{folder}/here') unless you permit it" in said
    assert not (own / "results").exists()


def test_8_a_secret_that_a_training_prints_stands_nowhere_but_in_its_own_log(own, capsys):
    changed(train="train: {name: custom, function: own_promises.says_a_secret, epochs: 3}")
    assert sweep.main([*ALLOWED[:-4], "--lanes", "1", *ALLOWED[-2:]]) == 5
    said = capsys.readouterr()
    assert "no answer from postgresql://" in said.out
    assert "hunter2" not in said.out + said.err
    for path in own.rglob("*"):
        if path.is_file() and "logs" not in path.parts and path.suffix not in (".py", ".pyc"):
            assert b"hunter2" not in path.read_bytes(), path
    (log, *_) = sorted(own.glob("results/own/logs/*.log"))
    assert "hunter2" in log.read_text()  # which is the user's own


def test_9_a_changed_training_is_noticed(own, capsys):
    assert sweep.main(ALLOWED) == 0
    for train, said in (
        ("{name: custom, function: own_promises.train, epochs: 4}", "another train.epochs (3, now 4)"),
        ("{function: own_promises.says_a_secret, epochs: 3}", "another train.function ('own_promises.train', now"),
    ):
        changed(train=f"train: {train}")
        assert sweep.main(ALLOWED) == 2
        assert said in capsys.readouterr().err
    changed()
    with Path("own_promises.py").open("a") as file:
        file.write("# another version\n")
    capsys.readouterr()
    assert sweep.main(ALLOWED) == 0
    assert "warning: own_promises.py has changed since this study began" in capsys.readouterr().out


def test_what_is_on_record_of_a_training_of_ones_own_is_what_mlflow_and_the_tables_have(own):
    assert sweep.main(ALLOWED) == 0
    for run in children():
        tags = run.data.tags
        assert run.data.params["train.function"] == "own_promises.train"
        assert not {"data.source", "model.name"} & set(run.data.params)
        history = client().get_metric_history(run.info.run_id, "val/error")
        assert history[-1].value == run.data.metrics["objective"] == run.data.metrics["val/error"]
        schedule = json.loads(tags["schedule"])
        rates = pd.read_csv(client().download_artifacts(run.info.run_id, "lr_per_update.csv"))
        assert len(rates) == 12
        assert rates["lr"].max() <= schedule["init_lr"]
    best = best_schedules("own")
    assert best["val_error"].equals(best["objective"].rename("val_error"))
    assert "val_accuracy" not in best
    assert best["mean"].dropna().is_monotonic_increasing  # less is better
    trainings = pd.read_csv("results/own/trainings.csv")
    assert (trainings["arm"].astype(str).str.endswith("again")).sum() == 1
