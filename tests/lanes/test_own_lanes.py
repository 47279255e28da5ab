"""Where one's own code runs: processes with cores or a GPU of their own, and actors of Ray."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner import sweep
from runner.files.place import load_place
from runner.files.sweep_file import Objective, OwnTraining
from runner.files.trial import OwnConfig
from runner.lanes import open as opening
from runner.lanes.stop import Stop
from runner.schedules import load
from runner.study.study import load_study
from runner.training.checkpoint import Checkpoints

from ..conftest import client, runs

OWN = """\
import os

import torch


def where(job):
    cores = sorted(os.sched_getaffinity(0))
    for _ in range(job.epochs):
        place = {"pid": os.getpid(), "first": cores[0], "cores": len(cores), "threads": torch.get_num_threads()}
        yield {"val/loss": 1.0, "lr": job.schedule.init_lr} | place
"""
SWEEP = """\
question: Where?
train: {function: own_where.where, epochs: 2}
objective: {metric: val/loss}
space: {init_lr: {log_uniform: [0.01, 1.0]}, schedules: {cosine: {}}}
search: {trials: 4, sampler: random}
confirm: {top: 0, types: false}
"""


def environment() -> tuple[str | None, str | None, int]:
    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS"), os.getpgid(0)


@pytest.fixture
def own(project, monkeypatch):
    (project / "own_where.py").write_text(OWN)
    (project / "sweeps/where.yaml").write_text(SWEEP)
    monkeypatch.syspath_prepend(project)
    return ["sweeps/where.yaml", "--device", "cpu", "--allow-plugin", "own_where."]


def lanes(device: str, wanted: str = "auto"):
    """Lanes for one's own code, as a sweep opens them."""
    training = OwnTraining(function="own_where.where", epochs=1)
    config = OwnConfig(training, load({"type": "constant"}), Objective(metric="val/loss"))
    return opening.open_lanes(
        wanted, device, 8, config=config, stop=Stop(), checkpoints=Checkpoints(Path("checkpoints"), 60, print)
    )


@pytest.mark.parametrize(
    ("device", "visible", "seen"),
    [("cuda", None, ["0", "1"]), ("cuda", "GPU-a,GPU-b", ["GPU-a", "GPU-b"]), ("cuda:1", "5,7", ["7"])],
)
def test_every_lane_sees_one_gpu_alone(monkeypatch, device, visible, seen):
    """As on a machine with two of them; no worker needs one to say what it sees."""
    monkeypatch.setattr(opening, "_gpus", lambda: ["cuda:0", "cuda:1"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with lanes(device) as opened:
        assert [lane.device for lane in opened.all] == ["cuda"] * len(seen)
        found = [lane.executor.submit(environment).result() for lane in opened.all]
    assert [gpu for gpu, _, _ in found] == seen
    assert len({group for *_, group in found}) == len(seen)  # each leads a group, with which all ends that it began


@pytest.mark.cuda
def test_a_function_trains_on_the_gpu_that_its_lane_has(own):
    text = SWEEP.replace("own_where.where", "own_where.there")
    Path("sweeps/where.yaml").write_text(text)
    with Path("own_where.py").open("a") as file:
        file.write(
            "\n\ndef there(job):\n    x = torch.ones(3, device=job.device)\n"
            "    for _ in range(job.epochs):\n"
            "        yield {'val/loss': x.sum(), 'gpus': torch.cuda.device_count()}\n"
        )
    assert sweep.main([*own[:1], "--device", "cuda", *own[3:]]) == 0
    epochs = [e for record in load_study("where", load_place().storage)[1] for e in record.epochs]
    assert {(e["val/loss"], e["gpus"]) for e in epochs} == {(3.0, 1.0)}


def test_lanes_share_the_cores_and_torch_has_a_thread_for_each(own):
    assert sweep.main([*own, "--lanes", "2"]) == 0
    epochs = [e for record in load_study("where", load_place().storage)[1] for e in record.epochs]
    cores = len(os.sched_getaffinity(0))
    shares = {(e["pid"], e["first"], e["cores"]) for e in epochs}
    assert sum(n for _, _, n in shares) == cores or len(shares) == 1  # the other one came too late for a trial
    assert all(e["threads"] == e["cores"] for e in epochs)
    for run in runs("tags.`sweep.role` = 'trial'"):
        assert [m.step for m in client().get_metric_history(run.info.run_id, "pid")] == [0, 1]


@pytest.mark.slow
def test_actors_of_ray_train_ones_own_code(own, project):
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "runner.sweep", *own, "--ray"]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    records = load_study("where", load_place().storage)[1]
    assert [record.outcome for record in records] == ["complete"] * 4
