"""The whole thing: a sweep in a folder of its own, real SQLite, MLflow and training, looked at from outside."""

import gc
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest
import torch

from runner import __main__ as overview
from runner import export, preview, sweep, ui
from runner.cli import Options
from runner.export import best_schedules
from runner.files.images import cores
from runner.files.place import load_place
from runner.files.sweep_file import load_sweep
from runner.prepare import check
from runner.results.terminal import duration
from runner.schedules import load
from runner.study.storage import hold
from runner.study.study import load_study
from runner.tracking.tracker import escape, flat
from runner.tracking.views import saved_view
from runner.training.data import load as load_data
from runner.training.fast import choice, engine

from .conftest import HERE, TINY, children, client, runs
from .files.helpers import write_classes

# --- what is recorded ------------------------------------------------------------------------------------------


def test_a_sweep_is_one_parent_run_and_a_child_per_trial_with_its_curves(swept, capsys):
    (parent,) = runs("tags.`sweep.role` = 'study'")
    assert parent.info.status == "FINISHED"
    trials = children()
    assert len(trials) == 3
    assert {t.data.tags["mlflow.parentRunId"] for t in trials} == {parent.info.run_id}
    for trial in trials:
        assert trial.info.status == "FINISHED"
        assert trial.data.tags["outcome"] == "complete"
        assert trial.data.params["model.name"] == "resnet18"
        schedule = load(json.loads(trial.data.tags["schedule"]))
        assert trial.data.params["schedule.init_lr"] == str(schedule.init_lr)
        for key in ("lr", "train/loss", "val/loss", "val/accuracy", "seconds"):
            history = client().get_metric_history(trial.info.run_id, key)
            assert [m.step for m in history] == [0, 1]
        updates = int(trial.data.tags["sweep.updates_per_epoch"])
        lrs = [m.value for m in client().get_metric_history(trial.info.run_id, "lr")]
        assert lrs == [schedule.lr(e * updates, 2 * updates, epochs=2) for e in (0, 1)]
        table = pd.read_csv(client().download_artifacts(trial.info.run_id, "lr_per_update.csv"), dtype=str)
        assert table["lr"].map(float).tolist() == schedule.lrs(2 * updates, epochs=2)
        assert table["epoch"].map(int).tolist() == [t // updates for t in range(2 * updates)]


def test_the_parent_says_what_was_asked_where_and_with_what(swept):
    (parent,) = runs("tags.`sweep.role` = 'study'")
    tags, run_id = parent.data.tags, parent.info.run_id
    assert "Does it run?" in tags["mlflow.note.content"]
    assert "| rank | trial |" in tags["mlflow.note.content"]
    assert tags["version.torch"] == torch.__version__.split("+")[0]
    assert tags["device"] == "cpu"
    names = {a.path for a in client().list_artifacts(run_id)}
    assert {"tiny.yaml", "environment.txt", "figures", "tables"} <= names
    figures = {a.path for a in client().list_artifacts(run_id, "figures")}
    assert figures == {f"figures/{name}.png" for name in ("lr_curves", "objective_against_lr")}
    assert client().get_run(run_id).inputs.dataset_inputs[0].dataset.name == "digits"


def test_the_plain_mlflow_client_finds_the_best_without_knowing_this_project(swept):
    best = client().search_runs(["1"], "tags.outcome = 'complete'", order_by=["metrics.objective DESC"])[0]
    assert best.data.metrics["objective"] == max(t.data.metrics["objective"] for t in children())


def test_a_saved_view_is_written_and_its_link_is_printed(project, capsys):
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    out = capsys.readouterr().out
    key = out.split("viewStateShareKey=")[1].split()[0]
    view = json.loads(client().get_experiment("1").tags[f"mlflow.sharedViewState.{key}"])
    state = json.loads(view["state"])
    assert [c["metricKey"] for c in state["compareRunCharts"] if c["type"] == "LINE"] == [
        "lr",
        "val/accuracy",
        "train/loss",
    ]
    assert len(runs(state["searchFilter"])) == 3


def test_a_view_that_is_not_wanted_leaves_a_link_that_filters(project, capsys):
    Path("mlflow.yaml").write_text("ui: {saved_view: false, port: 5050}\n")
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    out = capsys.readouterr().out
    assert "http://127.0.0.1:5050/#/experiments/1/runs?" in out
    assert "searchFilter=tags.%60sweep.role%60" in out
    assert not [t for t in client().get_experiment("1").tags if "sharedViewState" in t]


def test_the_ui_of_the_project_folder_without_flags_reads_the_same_store(swept, swept_once):
    assert load_place().tracking_uri == f"sqlite:///{swept / 'mlflow.db'}"  # what `mlflow ui` opens there
    artifact = children()[0].info.artifact_uri
    assert artifact.startswith((swept_once / "mlartifacts").as_uri())  # where it was run


# --- outcomes --------------------------------------------------------------------------------------------------


def test_a_diverged_trial_is_killed_in_mlflow_pruned_in_optuna_and_the_sweep_goes_on(project, capsys):
    text = TINY.replace("init_lr: {log_uniform: [0.003, 0.3]}", "init_lr: {choice: [100.0, 0.001]}")
    text = (
        text[: text.index("  schedules:")]
        + "  schedules: {constant: {warmup: 0}}\nsearch: {trials: 2, sampler: grid}\n"
    )
    text = text.replace("  warmup: {uniform: [0.0, 0.3]}\n", "").replace(
        "train: {epochs: 2, batch_size: 32}", "train: {epochs: 3, batch_size: 8, weight_decay: 10}"
    )
    Path("sweeps/tiny.yaml").write_text(text)
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    assert "1 complete, 1 diverged" in capsys.readouterr().out
    first, second = children()
    assert (first.info.status, first.data.tags["outcome"]) == ("KILLED", "diverged")
    assert (second.info.status, second.data.tags["outcome"]) == ("FINISHED", "complete")
    assert math.isnan(client().get_metric_history(first.info.run_id, "val/accuracy")[-1].value)
    study = optuna.load_study(study_name="tiny", storage=load_place().storage)
    assert [t.state.name for t in study.trials] == ["PRUNED", "COMPLETE"]
    assert len(best_schedules("tiny")) == 1


def test_an_unexpected_error_is_never_a_score_and_never_the_end_of_the_others(project, monkeypatch, capsys):
    real, calls = engine.train, []

    def breaks_once(config, device, state=None):
        calls.append(config)
        if len(calls) == 1:
            raise RuntimeError("a cosmic ray")
        return real(config, device, state)

    monkeypatch.setattr(engine, "train", breaks_once)
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    assert [(t.info.status, t.data.tags["outcome"]) for t in children()] == [
        ("FAILED", "failed"),
        ("FINISHED", "complete"),
        ("FINISHED", "complete"),
    ]
    assert children()[0].data.tags["cause"] == "RuntimeError: a cosmic ray"
    assert "Traceback" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["sweep", "sweep --dry-run", "preview"])
def test_a_network_too_deep_for_the_images_is_refused_with_its_line_and_nothing_is_created(project, capsys, command):
    (project / "sweeps/tiny.yaml").write_text(TINY.replace("{width: 8}", "{name: squeezenet1_0, stem: imagenet}"))
    there, (name, *options) = sorted(project.rglob("*")), command.split()
    program = {"sweep": sweep, "preview": preview}[name]
    assert program.main(["sweeps/tiny.yaml", "--device", "cpu", *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: sweeps/tiny.yaml, line 3: model.name: squeezenet1_0 takes no images of 8x8 pixels")
    assert sorted(project.rglob("*")) == there


def test_a_sweep_in_which_most_trials_fail_stops_and_says_why(project, monkeypatch, capsys):
    def breaks(config, device, state=None):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(engine, "train", breaks)
    Path("sweeps/tiny.yaml").write_text(TINY.replace("trials: 3", "trials: 9"))
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 5
    assert "3 of 3 trials failed, the last with RuntimeError: out of luck" in capsys.readouterr().err
    assert len(children()) == 3
    said = Path("results/tiny/report.md").read_text().replace("\\", "")
    assert "The search has not ended: 3 of 9 trials have." in said
    assert "Never came to an end: cosine (1 failed: RuntimeError: out of luck)" in said
    assert len(pd.read_csv("results/tiny/trials.csv")) == 3
    monkeypatch.undo()
    os.chdir(project)
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0  # mended: what failed before does not count again
    assert len(children()) == 9


# --- continuing ------------------------------------------------------------------------------------------------


def table(folder: Path) -> pd.DataFrame:
    os.chdir(folder)
    return best_schedules("tiny").drop(columns=["seconds", "run_id"])


def test_two_sweeps_of_one_file_give_the_same_table(swept, tmp_path_factory, migrated):
    other = tmp_path_factory.mktemp("other")
    (other / "sweeps").mkdir()
    (other / "sweeps" / "tiny.yaml").write_text(TINY)
    (other / "mlflow.db").write_bytes(migrated.read_bytes())
    first = table(swept)
    os.chdir(other)
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    pd.testing.assert_frame_equal(table(other), first)


def test_a_finished_sweep_run_again_trains_nothing_and_reports_again(swept, capsys):
    before = [r.info.run_id for r in runs()]
    capsys.readouterr()
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    assert "3 trials: 3 complete." in capsys.readouterr().out
    assert [r.info.run_id for r in runs()] == before


@pytest.mark.slow
def test_a_killed_sweep_continues_to_the_table_of_an_undisturbed_one(swept, tmp_path_factory, migrated):
    expected = table(swept)
    other = tmp_path_factory.mktemp("killed")
    (other / "sweeps").mkdir()
    (other / "sweeps" / "tiny.yaml").write_text(TINY)
    (other / "mlflow.db").write_bytes(migrated.read_bytes())
    command = [sys.executable, "-m", "runner.sweep", "sweeps/tiny.yaml", *HERE]
    process = subprocess.Popen(command, cwd=other, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[1/3]"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    done = subprocess.run(command, cwd=other, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    os.chdir(other)
    pd.testing.assert_frame_equal(table(other), expected)
    assert sorted(t.data.tags["trial.number"] for t in children()) == ["0", "1", "2"]
    assert {r.info.status for r in runs()} == {"FINISHED"}
    for trial in children():
        assert [m.step for m in client().get_metric_history(trial.info.run_id, "lr")] == [0, 1]


@pytest.mark.slow
def test_two_sweeps_that_begin_at_once_in_a_new_folder_both_find_their_databases(project):
    Path("mlflow.db").unlink()
    Path("sweeps/other.yaml").write_text(TINY)
    command = [sys.executable, "-m", "runner.sweep"]
    both = [
        subprocess.Popen([*command, f"sweeps/{name}.yaml", *HERE], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for name in ("tiny", "other")
    ]
    said = [process.communicate()[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(children()) == 6


def test_a_study_that_another_process_runs_is_refused_before_anything_is_made(project, capsys):
    Path("mlflow.db").unlink()
    with hold("tiny", load_place().storage):
        there = sorted(project.rglob("*"))
        assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 2
        holder = f"{socket.gethostname()} (pid {os.getpid()})"
        assert f"the study 'tiny' is being run by {holder}; wait for it, or stop it" in capsys.readouterr().err
        assert sorted(project.rglob("*")) == there


def test_a_study_whose_engine_cannot_train_here_is_not_gone_on_with(swept, capsys, monkeypatch):
    """As where another program has the GPU's memory: its trials would all fail."""
    Path("sweeps/tiny.yaml").write_text(TINY.replace("trials: 3", "trials: 4"))
    before = table(swept)
    with monkeypatch.context() as patch:
        patch.setattr(choice, "_of_the_device", lambda *_: "the data do not fit into the GPU's memory")
        assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 2
        said = capsys.readouterr().err
        assert "begun with the engine fast, fp32, which cannot go on here: the data do not fit into the GPU's" in said
        assert table(swept).equals(before)
        assert sweep.main(["sweeps/tiny.yaml", *HERE, "--sync"]) == 0
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    assert best_schedules("tiny").shape[0] == 4


# --- the commands ----------------------------------------------------------------------------------------------


def test_a_dry_run_checks_and_creates_nothing(project, capsys):
    Path("mlflow.db").unlink()
    before = sorted(p.name for p in project.iterdir())
    assert sweep.main(["sweeps/tiny.yaml", "--dry-run"]) == 0
    assert "3 trainings; 2 epochs of 3 updates each" in capsys.readouterr().out
    assert sorted(p.name for p in project.iterdir()) == before


def test_a_dry_run_warns_of_few_data_and_of_classes_without_an_image(project, monkeypatch, capsys):
    images = "np.zeros((100, 8, 8, 3), np.uint8), np.arange(100) % 2 + 1"
    Path("own_labels.py").write_text(f"import numpy as np\n\n\ndef from_one():\n    return {images}\n")
    monkeypatch.syspath_prepend(project)
    data = "source: custom, function: own_labels.from_one"
    objective = "objective: {metric: val/auroc}\n"
    Path("sweeps/tiny.yaml").write_text(TINY.replace("source: digits, limit: 160", data) + objective)
    assert sweep.main(["sweeps/tiny.yaml", "--dry-run", "--allow-plugin", "own_labels."]) == 0
    said = capsys.readouterr().err
    assert "warning: val/auroc is not defined for a validation split without images of 1 of 3 classes: " in said
    assert "warning: 1 of 3 classes without a training image, the first is 0: labels count from 0" in said
    assert "warning: 20 validation images: one of them is 5 points of accuracy" in said
    assert "warning: batches of 32 from 60 images are 1 update of the weights in an epoch" in said


@pytest.mark.parametrize("command", ["dry run", "preview", pytest.param("sweep", marks=pytest.mark.slow)])
def test_what_was_noticed_about_images_is_said_before_anything_is_trained(project, capsys, command):
    write_classes(project / "data" / "set", ["ant", "bee"], each=100)
    shutil.copy(project / "data/set/ant/0.png", project / "data/set/bee/copy.png")
    (project / "data/set/ant/photo.heic").touch()
    (project / "data/set/ant/loop").symlink_to(".")
    text = TINY.replace("source: digits, limit: 160, val: 0.25", "source: folder, path: set, size: 8, val: 0.3")
    Path("sweeps/tiny.yaml").write_text(text)
    if command == "preview":
        assert preview.main(["sweeps/tiny.yaml", "--no-timing"]) == 0
    else:
        assert sweep.main(["sweeps/tiny.yaml", *(HERE if command == "sweep" else ["--dry-run"])]) == 0
    said = "".join(capsys.readouterr()).replace("\n", " ")
    line = (
        "test images of 2 classes; left out: 1 .heic, 1 link to a folder that is read already; 1 identical to another"
    )
    assert line in said
    assert "warning: 1 image is identical to one of another class: one of the two labels is wrong" in said
    assert "warning: 1 .heic left out, which Pillow does not read: convert them to JPEG or PNG" in said


@pytest.mark.parametrize("options", [["--dry-run"], HERE])
def test_damaged_images_are_named_with_the_line_of_the_data_and_nothing_is_made(project, capsys, options):
    write_classes(project / "data" / "set", ["ant", "bee"])
    for n in (3, 7):
        (project / f"data/set/ant/{n}.png").write_bytes(b"no image")
    text = TINY.replace("source: digits, limit: 160, val: 0.25", "source: folder, path: set, size: 8")
    Path("sweeps/tiny.yaml").write_text(text)
    before = sorted(project.rglob("*"))
    assert sweep.main(["sweeps/tiny.yaml", *options]) == 2
    said = capsys.readouterr().err
    assert "sweeps/tiny.yaml, line 2: data: data/set/ant: 2 files or images cannot be read (not an image);" in said
    assert "3.png, 7.png" in said
    assert sorted(project.rglob("*")) == before


def test_a_dry_run_of_a_study_that_was_begun_says_what_differs_and_changes_nothing(swept, capsys):
    def there() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in swept.rglob("*") if path.is_file()}

    for size, code, words in ((32, 0, "3 trainings"), (16, 2, "begun with another train.batch_size (32, now 16)")):
        Path("sweeps/tiny.yaml").write_text(TINY.replace("batch_size: 32", f"batch_size: {size}"))
        before = there()
        assert sweep.main(["sweeps/tiny.yaml", "--dry-run"]) == code
        assert words in "".join(capsys.readouterr())
        gc.collect()  # as at the end of its process: SQLite's own files go with the last connection
        assert there() == before


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweeps/missing.yaml"], "No such file"),
        (["sweeps/tiny.yaml", "--mlflow", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["sweeps/tiny.yaml", "--device", "tpu"], "--device tpu"),
        (["sweeps/tiny.yaml", "--device", "cuda:99"], "--device cuda:99"),
        (["sweeps/tiny.yaml", "--lanes", "two", "--dry-run"], "--lanes must be auto, or a number up to 9999"),
        (["sweeps/tiny.yaml", "--lanes", "1.5"], "--lanes must be auto, or a number up to 9999"),
        (["sweeps/tiny.yaml", "--lanes", "99999"], "--lanes must be auto, or a number up to 9999"),
        (["sweeps/tiny.yaml", "--lanes", "-1"], "--lanes must be auto, or a number up to 9999, not '-1'"),
        (["sweeps/tiny.yaml", "--num-cpus", "2"], "only with --ray"),
        (["sweeps/tiny.yaml", "--ray", "--num-gpus", "1.5"], "a part of one, or a whole number"),
        (["sweeps/tiny.yaml", "--ray", "--num-cpus", "-1"], "a part of one, or a whole number"),
        (["sweeps/\x1b[2J.yaml"], "control character"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_a_sentence(project, capsys, arguments, words, more):
    before = sorted(p.name for p in project.iterdir())
    assert sweep.main([*arguments, *more]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert words in err
    assert "\x1b" not in err
    assert sorted(p.name for p in project.iterdir()) == before


def test_data_that_are_missing_end_the_sweep_before_anything_is_created(project, capsys):
    Path("sweeps/tiny.yaml").write_text(TINY.replace("source: digits", "source: parquet, path: nowhere"))
    assert sweep.main(["sweeps/tiny.yaml"]) == 2
    assert "there is no folder data/nowhere; put train.parquet" in capsys.readouterr().err
    assert not Path("optuna.db").exists()
    assert not Path("results").exists()


@pytest.fixture
def read_only(tmp_path):
    """A folder in which nothing can be made; for root it is mounted so."""
    (folder := tmp_path / "read-only").mkdir(mode=0o500)

    def done(command: str) -> bool:
        return subprocess.run(["sh", "-c", command], stderr=subprocess.DEVNULL, check=False).returncode == 0

    try:
        mount = f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}"
        if os.access(folder, os.W_OK) and not done(mount):
            pytest.skip("root can write everywhere here")
        yield folder
    finally:
        done(f"umount {folder}")


@pytest.mark.parametrize(("program", "arguments"), [(sweep, ["sweeps/tiny.yaml"]), (ui, [])])
@pytest.mark.parametrize(
    ("folder", "wrong"), [("", "{} cannot be written to"), ("nowhere", "there is no folder {}; make it first")]
)
def test_where_mlflows_database_cannot_be_made_is_said_at_once(
    project, read_only, monkeypatch, capsys, program, arguments, folder, wrong
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{read_only / folder / 'mlflow.db'}")
    there, start = sorted(project.rglob("*")), time.monotonic()
    assert program.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: MLFLOW_TRACKING_URI: ")
    assert wrong.format(read_only / folder) in err
    assert time.monotonic() - start < 20
    assert sorted(project.rglob("*")) == there


def test_bf16_on_a_cpu_that_does_not_compute_in_it_is_warned_of(project, capsys):
    Path("sweeps/tiny.yaml").write_text(TINY.replace("batch_size: 32", "batch_size: 32, precision: bf16"))
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    assert ("warning: this CPU does not compute in bf16" in capsys.readouterr().out) != choice.has_bf16()


def test_a_sweep_file_that_goes_away_in_mid_sweep_is_kept_as_it_was_read(project, monkeypatch):
    real = engine.train

    def train(config, device, state=None):
        Path("sweeps/tiny.yaml").unlink(missing_ok=True)
        yield from real(config, device, state)

    monkeypatch.setattr(engine, "train", train)
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    (parent,) = runs("tags.`sweep.role` = 'study'")
    assert Path(client().download_artifacts(parent.info.run_id, "tiny.yaml")).read_text() == TINY


def test_other_data_in_the_file_are_refused_with_the_difference(swept, capsys):
    Path("sweeps/tiny.yaml").write_text(TINY.replace("limit: 160", "limit: 200"))
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 2
    assert "begun with another data.limit (160, now 200)" in capsys.readouterr().err


def test_what_cannot_be_written_at_the_end_is_a_sentence(project, capsys):
    Path("results/tiny/best_schedule.json").mkdir(parents=True)
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 4
    err = capsys.readouterr().err
    assert "best_schedule.json; put right what is in its place" in err
    assert "continue with: python -m runner.sweep" in err
    Path("results/tiny/best_schedule.json").rmdir()
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0


IMAGES = """\
from pathlib import Path

import numpy as np


def images():
    random = np.random.default_rng(len(Path("seed.txt").read_text()))
    return random.integers(0, 256, (160, 8, 8, 3), dtype=np.uint8), np.arange(160) % 4
"""


@pytest.mark.slow
def test_images_that_have_changed_since_are_noticed(project, capsys, monkeypatch):
    (project / "changing.py").write_text(IMAGES)
    monkeypatch.syspath_prepend(project)
    Path("seed.txt").write_text("a")
    text = TINY.replace("source: digits, limit: 160,", "source: custom, function: changing.images,")
    Path("sweeps/tiny.yaml").write_text(text)
    command = ["sweeps/tiny.yaml", *HERE, "--allow-plugin", "changing."]
    assert sweep.main(command) == 0
    Path("sweeps/tiny.yaml").write_text(text.replace("trials: 3", "trials: 4"))
    load_data.cache_clear()  # a process reads them once
    Path("seed.txt").write_text("ab")
    assert sweep.main(command) == 2
    assert "the study 'tiny' was begun with other images" in capsys.readouterr().err
    assert len(children()) == 3
    load_data.cache_clear()
    Path("seed.txt").write_text("b")
    assert sweep.main(command) == 0
    assert len(children()) == 4


OWN = """\
from pathlib import Path

from torch import nn


def network(classes):
    width, drop = Path("network.txt").read_text().split()
    body = [nn.Flatten(), nn.Linear(192, int(width)), nn.ReLU(), nn.Dropout(float(drop))]
    return nn.Sequential(*body, nn.Linear(int(width), classes), Turned(Path("turned.txt").exists()))


class Turned(nn.Module):
    def __init__(self, turned):
        super().__init__()
        self.turned = turned

    def forward(self, x):
        return -x if self.turned and not self.training else x


def curve(t, T):
    return 1 - t / T if Path("curve.txt").read_text() == "line" else 1 - (t / T) ** 2
"""


@pytest.mark.slow
def test_a_network_and_a_schedule_of_ones_own_that_have_changed_since_are_noticed(project, capsys, monkeypatch):
    (project / "changing_too.py").write_text(OWN)
    monkeypatch.syspath_prepend(project)
    Path("network.txt").write_text("16 0.1")
    Path("curve.txt").write_text("line")
    text = TINY.replace("model: {width: 8}", "model: {name: custom, function: changing_too.network}")
    text = text[: text.index("  schedules:")] + (
        "  schedules: {mine: {type: custom, function: changing_too.curve}}\nsearch: {trials: 1}\n"
    )
    Path("sweeps/tiny.yaml").write_text(text)
    command = ["sweeps/tiny.yaml", *HERE, "--allow-plugin", "changing_too."]
    assert sweep.main(command) == 0
    Path("sweeps/tiny.yaml").write_text(text.replace("trials: 1", "trials: 2"))
    for file, other, before, said in (
        ("network.txt", "20 0.1", "16 0.1", "another network: what its function gives has changed since"),
        ("network.txt", "16 0.5", "16 0.1", "another network: what its function gives has changed since"),
        ("curve.txt", "square", "line", "another schedule mine: what its function gives has changed since"),
    ):
        Path(file).write_text(other)
        capsys.readouterr()
        assert sweep.main(command) == 2
        assert f"the study 'tiny' was begun with {said}; bring it back" in capsys.readouterr().err
        Path(file).write_text(before)
    Path("turned.txt").touch()
    assert sweep.main(command) == 2
    assert "was begun with another network in evaluation" in capsys.readouterr().err
    Path("turned.txt").unlink()
    assert sweep.main(command) == 0
    assert len(best_schedules("tiny")) == 2


def test_ctrl_c_says_how_to_continue(project, capsys, monkeypatch):
    def pressed(config, device, state=None):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)

    monkeypatch.setattr(engine, "train", pressed)
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 130
    assert "continue with: python -m runner.sweep sweeps/tiny.yaml" in capsys.readouterr().err


def test_what_a_library_makes_of_a_signal_is_a_stop_and_no_bug(project, monkeypatch, capsys):
    """As matplotlib does, in the figures: an error of its own where what it asked was interrupted."""
    Path("own_library.py").write_text(
        textwrap.dedent("""
        import os, pathlib, signal

        def lrs(t, T):
            if pathlib.Path("results/tiny/trials.csv").exists():
                try:
                    os.kill(os.getpid(), signal.SIGTERM)
                except BaseException:
                    raise ValueError("Invalid bounding box") from None
            return 1.0
        """)
    )
    monkeypatch.syspath_prepend(project)
    schedules = "  schedules:\n    own: {type: custom, function: own_library.lrs}\nsearch: {trials: 1}\n"
    Path("sweeps/tiny.yaml").write_text(
        TINY[: TINY.index("  schedules:")] + schedules + "confirm: {top: 0, types: false}\n"
    )
    assert sweep.main(["sweeps/tiny.yaml", *HERE, "--allow-plugin", "own_library."]) == 143
    assert "stopped (ValueError: Invalid bounding box); continue with:" in capsys.readouterr().err


def test_an_own_schedule_function_runs_in_a_sweep_when_it_is_allowed(project, monkeypatch, capsys):
    Path("own_lrs.py").write_text("def sawtooth(t, T, *, teeth):\n    return 1 - (t * teeth / T) % 1\n")
    monkeypatch.syspath_prepend(project)
    text = TINY[: TINY.index("  schedules:")] + (
        "  schedules:\n    saw: {type: custom, function: own_lrs.sawtooth, params: {teeth: {int: [1, 3]}}}\n"
        "search: {trials: 1}\n"
    )
    Path("sweeps/tiny.yaml").write_text(text)
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 2
    assert "--allow-plugin own_lrs." in capsys.readouterr().err
    assert sweep.main(["sweeps/tiny.yaml", *HERE, "--allow-plugin", "own_lrs."]) == 0
    assert best_schedules("tiny")["params.teeth"].dtype == "Int64"


@pytest.mark.parametrize(("factor", "outcome"), [("0.0", "complete"), ("1e9", "diverged")])
def test_an_own_schedule_that_trains_nothing_or_everything_away_has_its_report_too(
    factor, outcome, project, monkeypatch, capsys
):
    Path(f"own_{outcome}.py").write_text(f"def lrs(t, T):\n    return {factor}\n")
    monkeypatch.syspath_prepend(project)
    schedules = f"  schedules:\n    own: {{type: custom, function: own_{outcome}.lrs}}\nsearch: {{trials: 1}}\n"
    Path("sweeps/tiny.yaml").write_text(TINY[: TINY.index("  schedules:")] + schedules)
    assert sweep.main(["sweeps/tiny.yaml", *HERE, "--allow-plugin", f"own_{outcome}."]) == (
        5 if outcome == "diverged" else 0
    )
    assert f"1 trial: 1 {outcome}" in capsys.readouterr().out
    assert [t.data.tags["outcome"] for t in children()] == [outcome]
    assert Path("results/tiny/lr_curves.png").exists()


def test_the_page_of_a_sweep_that_there_is_not_makes_no_database(project, capsys):
    Path("mlflow.db").unlink()
    assert ui.main(["nothing"]) == 2
    assert "MLflow has no sweep 'nothing'; it has none" in capsys.readouterr().err
    assert not Path("mlflow.db").exists()


def test_a_port_that_another_program_has_is_said_before_any_link(project, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert ui.main(["--port", str(port := other.getsockname()[1])]) == 2
    out, err = capsys.readouterr()
    assert f"port {port} cannot be had" in err
    assert "http" not in out


def test_a_name_in_place_of_a_file_is_answered_with_the_file(project, capsys):
    assert preview.main(["tiny"]) == 2
    assert "tiny: cannot be read: No such file or directory; sweeps/tiny.yaml can" in capsys.readouterr().err


def test_options_that_say_nothing_of_a_table_are_refused(project, capsys):
    assert export.main(["tiny", "--epochs", "3", "--for", "timm"]) == 2
    assert "--epochs, --for: only with --code" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweeps/tiny.yaml", "--epochs", "3"], "--epochs, --updates: only with --schedule"),
        (["--updates", "100"], "--epochs, --updates: only with --schedule"),
        (["sweeps/tiny.yaml", "--schedule", "cosine"], "sweeps/tiny.yaml or --schedule, not both"),
        (["--schedule", "cosine", "--epochs", "0"], "count from 1"),
    ],
)
def test_a_preview_refuses_options_that_say_nothing_of_what_it_draws(project, capsys, arguments, words):
    there = sorted(project.rglob("*"))
    assert preview.main(arguments) == 2
    assert words in capsys.readouterr().err
    assert sorted(project.rglob("*")) == there


def test_a_command_that_there_is_not_is_answered_with_those_there_are(capsys):
    assert overview.main([]) == overview.main(["--help"]) == 0
    commands = re.findall(r"^  (python -m runner\.\w+)", capsys.readouterr().out, flags=re.M)
    assert overview.main(["foo"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: there is no command 'foo'; there are ")
    assert all(command in err for command in commands)
    assert not out


# --- preview ---------------------------------------------------------------------------------------------------


def test_a_preview_draws_the_curves_and_estimates_the_time(project, capsys):
    assert preview.main(["sweeps/tiny.yaml"]) == 0
    out = capsys.readouterr().out
    assert "3 trainings; 2 epochs of 3 updates each" in out
    lanes = min(cores(), 3)
    one = float(re.search(r"about ([0-9.]+) s per epoch on a lane of this machine", out)[1])
    where = "one lane" if torch.cuda.is_available() or lanes == 1 else f"its {lanes} lanes"
    assert (
        f": on {where} {duration(one * 2 * math.ceil(3 / (1 if where == 'one lane' else lanes)))} for the search"
        in out
    )
    assert Path("results/tiny/preview.png").read_bytes().startswith(b"\x89PNG")
    assert not Path("optuna.db").exists()


def test_a_preview_reads_the_data_once_and_times_a_part_of_each_split_on_one_thread(project, monkeypatch):
    Path("counted.py").write_text(
        textwrap.dedent("""
        import numpy as np, torch

        def note(*what):
            with open("log", "a") as file:
                print(*what, file=file)

        def images():
            note("read")
            return np.zeros((2000, 8, 8, 3), "uint8"), np.arange(2000) % 2

        class Network(torch.nn.Sequential):
            def forward(self, x):
                note(len(x), torch.get_num_threads())
                return super().forward(x)

        def network(classes):
            return Network(torch.nn.Flatten(), torch.nn.Linear(192, classes))
        """)
    )
    monkeypatch.syspath_prepend(".")
    own = TINY.replace("source: digits, limit: 160,", "source: custom, function: counted.images,")
    own = own.replace("model: {width: 8}", "model: {name: custom, function: counted.network}")
    Path("sweeps/tiny.yaml").write_text(re.sub("batch_size: [0-9]+", "batch_size: 16", own))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    assert preview.main(["sweeps/tiny.yaml", "--device", "cpu", "--allow-plugin", "counted."]) == 0
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    seen = Path("log").read_text().splitlines()
    assert seen.count("read") == 1
    assert seen[-7:] == ["16 1"] * 6 + ["33 1"]  # of 1200 training images 100, of 400 for validation 33


def test_a_preview_of_data_that_are_not_there_yet_says_so_and_draws(project, capsys):
    Path("sweeps/tiny.yaml").write_text(TINY.replace("source: digits", "source: parquet, path: nowhere"))
    assert preview.main(["sweeps/tiny.yaml", "--out", "a.png"]) == 0
    assert "drawn with 100 updates per epoch" in capsys.readouterr().err
    assert Path("a.png").exists()


def test_any_schedule_can_be_drawn_by_name_or_json(project, capsys):
    assert (
        preview.main(
            ["--schedule", "rex", "--schedule", '{"type": "step", "step_size": {"epochs": 30}}', "--out", "a.png"]
        )
        == 0
    )
    assert Path("a.png").exists()
    assert preview.main(["--schedule", '{"type": "step", "step_size": {"epochs": 30}}', "--epochs", "20"]) == 0
    assert "never decays" in capsys.readouterr().err
    for wrong, words in (("{", "is not JSON"), ("cosin", "did you mean 'cosine'")):
        assert preview.main(["--schedule", wrong]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")])
def test_a_figure_is_what_its_name_says(project, name, start):
    assert preview.main(["--schedule", "cosine", "--out", name]) == 0
    assert Path(name).read_bytes().startswith(start)


def test_a_figure_that_cannot_be_written_is_a_sentence(project, capsys):
    Path("a.png").mkdir()
    assert preview.main(["--schedule", "cosine", "--out", "a.png"]) == 2
    assert capsys.readouterr().err == "error: --out a.png: Is a directory\n"
    assert preview.main(["sweeps/tiny.yaml", "--out", "b/a.txt"]) == 2
    assert capsys.readouterr() == ("", "error: --out b/a.txt: a figure is a .png, .svg or .pdf\n")  # before any work
    assert not Path("b").exists()


def test_a_plateau_is_drawn_with_a_word_on_what_it_waits_for(project, capsys):
    assert preview.main(["--schedule", "plateau", "--schedule", "cosine"]) == 0
    assert capsys.readouterr().err.count("depends on the validation accuracy; drawn as if that rose") == 1
    assert preview.main(["--schedule", "cosine"]) == 0
    assert "validation accuracy" not in capsys.readouterr().err
    text = TINY.replace("cosine: {}", "plateau: {patience: 0, gamma: 0.5}") + "objective: {metric: val/loss}\n"
    Path("sweeps/tiny.yaml").write_text(text)
    assert preview.main(["sweeps/tiny.yaml", "--no-timing"]) == 0
    assert "depends on the val/loss; drawn as if that fell" in capsys.readouterr().err


def test_trials_are_told_what_they_are_judged_by(project, tiny):
    found = check(tiny(objective="{metric: val/auroc, epoch: best}"), load_place(), Options(device="cpu"))
    assert (found.example.objective.metric, found.example.objective.epoch) == ("val/auroc", "best")


@pytest.mark.slow
def test_a_sweep_is_judged_by_a_metric_of_scikit_learn_and_plateau_follows_it(project):
    text = TINY.partition("  schedules:")[0] + "  schedules: {plateau: {patience: 0, gamma: 0.5, threshold: 0.2}}\n"
    text += "search: {trials: 1}\nconfirm: {top: 0, types: false}\nobjective: {metric: val/macro_f1}\n"
    Path("sweeps/tiny.yaml").write_text(text.replace("epochs: 2", "epochs: 3"))
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    facts, (record,) = load_study("tiny", load_place().storage)
    seen = record.values("val/macro_f1")
    assert record.value == seen[-1] != record.values("val/accuracy")[-1]
    updates = facts["updates_per_epoch"]
    rates = load(record.schedule).lrs(3 * updates, epochs=3, history=seen)
    assert record.values("lr") == rates[::updates]


# --- export ----------------------------------------------------------------------------------------------------


def test_the_scores_are_of_the_validation_split(swept):
    """An independent count: train the winner again and compare its answers with the validation labels."""
    best = best_schedules("tiny", top=1).iloc[0]
    config, _ = load_sweep("sweeps/tiny.yaml")
    right = best["val_accuracy"] * len(load_data(config.data).val)
    assert abs(right - round(right)) < 1e-6


def test_the_exported_code_gives_the_winners_learning_rates(swept, capsys):
    best = best_schedules("tiny", top=1).iloc[0]
    capsys.readouterr()
    assert export.main(["tiny", "--code", "1"]) == 0
    code = capsys.readouterr().out
    assert code == Path("results/tiny/best_schedule.py").read_text()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=17.0)
    scope = {"optimizer": optimizer, "loader": range(3), "epochs": 2}
    exec(code, scope)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scope["scheduler"].step()
    schedule = load(json.loads(best["schedule"]))
    assert rates == pytest.approx(schedule.lrs(6, epochs=2), rel=1e-12)
    assert export.main(["tiny", "--code", "1", "--epochs", "90", "--updates", "500"]) == 0
    exec(capsys.readouterr().out, {"optimizer": optimizer})
    assert optimizer.param_groups[0]["lr"] == pytest.approx(schedule.lr(0, 45_000, epochs=90))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "run"),
        (["tiny", "--code", "9"], "3 finished trials"),
        (["tiny", "--code", "0"], "counts from 1"),
        (["tiny", "--top", "0"], "counts from 1"),
        (["tiny", "--format", "parquet"], "--out"),
        (["tiny", "--code", "1", "--format", "csv"], "--format: only for a table, and --code 1 is the Python of one"),
        (["tiny", "--code", "2", "--table", "trials", "--top", "3"], "--top, --table: only for a table"),
        (["tiny", "--out", "t.csv", "--format", "json"], "--out t.csv is csv, and --format asks for json"),
        (["tiny", "--out", "t.xlsx"], "--out t.xlsx: a table ends in one of .csv, .parquet, .json, .md, or has its"),
    ],
)
def test_an_export_that_cannot_be_ends_with_2_and_a_sentence(swept, capsys, arguments, words):
    assert export.main(arguments) == 2
    assert words in capsys.readouterr().err


# --- small things ----------------------------------------------------------------------------------------------


def test_params_are_flat_dotted_text():
    nested = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": True, "f": None, "g": 0.1}
    assert flat(nested) == {"a.b": "1", "a.c.d": "[1, 2]", "e": "true", "g": "0.1"}


@pytest.mark.parametrize(
    "text", ["<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "`code` **bold** # head"]
)
def test_a_note_shows_what_was_written_and_runs_nothing(text):
    safe = escape(text)
    assert "<" not in safe
    assert "](" not in safe.replace("\\]\\(", "")


def test_a_saved_view_fits_into_an_experiment_tag():
    assert len(saved_view("a" * 100)) < 20_000


def test_help_is_there_for_every_command():
    for module in ("sweep", "preview", "export"):
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", f"runner.{module}", "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0
        assert f"python -m runner.{module}" in done.stdout
        assert time.monotonic() - start < 5


@pytest.mark.parametrize("arguments", [["runner.sweep"], ["runner.preview"]])
def test_a_torch_and_a_torchvision_that_do_not_fit_get_one_sentence(project, arguments):
    """As after an upgrade of one of them alone: the import raises."""
    broken = project / "broken" / "torchvision"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    path = os.pathsep.join([str(broken.parent), str(Path(sweep.__file__).parents[1])])
    command = [sys.executable, "-m", arguments[0], "sweeps/tiny.yaml", *arguments[1:]]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert "torch and torchvision cannot be loaded together (RuntimeError: operator torchvision::nms" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("optuna.db").exists()
