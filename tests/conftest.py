"""Shared fixtures: a place of one's own with a migrated MLflow database, and a tiny sweep that trains in a second."""

import gc
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import textwrap
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: a second thread only waits for the first

for profile, examples in (("brief", 150), ("thorough", 1500)):  # --hypothesis-profile thorough
    settings.register_profile(
        profile, max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
settings.load_profile("brief")

# A shell without job control ignores SIGINT for what it puts into the background (``pytest & wait``). A child
# inherits that, Python then installs no handler there, and no test could stop a sweep with Ctrl-C. So it is undone
# here, before there is a child; xdist's workers are children too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = ["--device", "cpu", "--lanes", "0"]
"""One lane in the test's own process: a worker process would take seconds to import torch."""

TINY = """\
question: Does it run?
data: {source: digits, limit: 160, val: 0.25, augment: {pad: 1}}
model: {width: 8}
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


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA GPU")


def pytest_collection_finish():
    """What is imported by now stays: a collection, which every new slot asks for, need not look through it."""
    gc.collect()
    gc.freeze()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(command: list[str], port: int, log: Path):
    """A server in a process of its own that writes to ``log``: it takes connections inside, and is killed after."""
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        until = time.monotonic() + 90
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.2)
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def epochs_on_record(key: str = "epoch:%") -> int:
    """How many epochs the study in this folder has; without Optuna, which would write its tables into a database that
    is being made."""
    try:
        with closing(sqlite3.connect("file:optuna.db?mode=ro", uri=True)) as database:
            query = "SELECT count(*) FROM trial_user_attributes WHERE key LIKE ?"
            return int(database.execute(query, [key]).fetchone()[0])
    except sqlite3.Error:
        return 0


def client():
    """Of the MLflow of this folder."""
    from mlflow import MlflowClient

    from runner.files.place import load_place

    return MlflowClient(tracking_uri=load_place().tracking_uri)


def runs(query: str = "") -> list:
    """The runs in this folder's MLflow that fit, in the order of their start."""
    return list(client().search_runs(["1"], query, order_by=["attributes.start_time ASC"]))


def children() -> list:
    """The runs of the trials."""
    return runs("tags.`sweep.role` = 'trial'")


@pytest.fixture(scope="session")
def migrated(tmp_path_factory) -> Path:
    """An empty MLflow database with its schema: making one costs seconds, copying it nothing."""
    from runner.files.place import load_place
    from runner.tracking.client import make_client

    folder = tmp_path_factory.mktemp("mlflow")
    (folder / "mlflow.yaml").write_text("{}\n")
    make_client(load_place(folder / "mlflow.yaml")).search_experiments()
    return folder / "mlflow.db"


def at_home(folder: Path, monkeypatch, migrated: Path) -> None:
    """Make ``folder`` a project's, and be there: sweeps/tiny.yaml, no mlflow.yaml, an empty MLflow database."""
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "RUNNER_STUDY_STORAGE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(folder)
    shutil.copy(migrated, folder / "mlflow.db")
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "tiny.yaml").write_text(TINY)


@pytest.fixture
def project(tmp_path, monkeypatch, migrated) -> Path:
    """A project's folder, and the current one."""
    at_home(tmp_path, monkeypatch, migrated)
    return tmp_path


@pytest.fixture(scope="session")
def swept_once(tmp_path_factory, migrated) -> Path:
    """A folder in which the tiny sweep has been run."""
    from runner import sweep

    folder = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch:
        at_home(folder, patch, migrated)
        assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    return folder


@pytest.fixture
def swept(swept_once, tmp_path, monkeypatch, migrated) -> Path:
    """A project's folder, and the current one, as it was left by the tiny sweep; artifacts lie where that was run."""
    at_home(tmp_path, monkeypatch, migrated)
    for item in swept_once.iterdir():
        if item.is_file():
            shutil.copy(item, tmp_path)
    shutil.copytree(swept_once / "results", tmp_path / "results")
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


@pytest.fixture
def tiny(sweep_file):
    """The tiny sweep, read, with these sections in place of its own."""
    from runner.files.sweep_file import load_sweep

    def write(**lines: str):
        return load_sweep(sweep_file(TINY + "objective: {}\n", **{k: f"{k}: {v}" for k, v in lines.items()}))[0]

    return write
