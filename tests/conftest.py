"""Shared fixtures: a place of one's own with a migrated MLflow database, and a tiny sweep that trains in a second."""

import os
import shutil
import textwrap
from pathlib import Path

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: a second thread only waits for the first

TINY = """\
question: Does it run?
data: {source: digits, limit: 160, val: 0.25, augment: {pad: 1}}
model: {width: 4}
train: {epochs: 2, batch_size: 32}
space:
  init_lr: {log_uniform: [0.003, 0.3]}
  warmup: {uniform: [0.0, 0.3]}
  schedules:
    cosine: {}
    step: {step_size: {uniform: [0.3, 0.5]}, gamma: 0.3}
    wsd: {cooldown: {uniform: [0.3, 0.7]}, shape: {choice: [linear, 1-sqrt]}}
search: {trials: 3}
confirm: {top: 0, types: false}
"""


@pytest.fixture(scope="session")
def migrated(tmp_path_factory) -> Path:
    """An empty MLflow database with its schema: making one costs seconds, copying it nothing."""
    from runner.place import load_place
    from runner.tracking import make_client

    folder = tmp_path_factory.mktemp("mlflow")
    (folder / "mlflow.yaml").write_text("{}\n")
    make_client(load_place(folder / "mlflow.yaml")).search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def project(tmp_path, monkeypatch, migrated) -> Path:
    """A project's folder, and the current one: sweeps/tiny.yaml, no mlflow.yaml, an empty MLflow database."""
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "RUNNER_STUDY_STORAGE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(migrated, tmp_path / "mlflow.db")
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture
def sweep_file(tmp_path):
    """Write a sweep file from YAML text, or the tiny one with lines replaced; returns its path."""

    def write(text: str | None = None, name: str = "tiny.yaml", **replaced: str) -> Path:
        text = TINY if text is None else textwrap.dedent(text)
        for old, new in replaced.items():
            lines = [new if line.startswith(f"{old}:") else line for line in text.splitlines()]
            text = "\n".join(lines) + "\n"
        path = tmp_path / name
        path.write_text(text)
        return path

    return write
