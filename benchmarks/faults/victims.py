"""Sweeps as victims: processes that run ``runner.sweep`` as it is, and what must be true of what they leave.

A victim is forked from this process, which has imported everything and opened nothing: it begins in milliseconds.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import optuna

from runner import sweep
from runner.files.place import load_place
from runner.results.tables import epochs_table, trials_table
from runner.study.study import load_study
from runner.tracking.client import make_client

for _name in (  # what a sweep imports on its way, so that every fork has it already
    "alembic.command", "git", "matplotlib.figure", "mlflow.store.tracking.sqlalchemy_store", "optuna.importance",
    "pyarrow.parquet", "scipy.optimize", "scipy.stats", "sklearn.datasets", "torchvision",
    "runner.prepare", "runner.results.report",
):  # fmt: skip
    importlib.import_module(_name)

SWEEP = """\
question: Does it survive?
data: {source: digits, limit: 160, val: 0.25, augment: {pad: 1}}
model: {width: 8}
train: {epochs: 3, batch_size: 32}
space:
  init_lr: {log_uniform: [0.003, 0.3]}
  warmup: {uniform: [0.0, 0.3]}
  schedules:
    cosine: {}
    wsd: {cooldown: {uniform: [0.3, 0.7]}, shape: {choice: [linear, 1-sqrt]}}
search: {trials: 5, window: 2}
confirm: {top: 2, types: false, seeds: 3}
"""
PLACE = "study: {{checkpoint_seconds: {seconds}}}\n"
COMMAND = ("sweeps/tiny.yaml", "--device", "cpu")
IN_PROCESS = ("--lanes", "0")

_templates: dict[str, Path] = {}


def folder_of_a_sweep(root: Path, text: str = SWEEP, checkpoint_seconds: float = 60) -> Path:
    """A new folder with a sweep file and an MLflow database that is migrated already, which alone takes seconds."""
    folder = Path(tempfile.mkdtemp(dir=root))
    (folder / "sweeps").mkdir()
    (folder / "sweeps/tiny.yaml").write_text(text)
    (folder / "mlflow.yaml").write_text(PLACE.format(seconds=checkpoint_seconds))
    shutil.copy(template(), folder / "mlflow.db")
    return folder


def template() -> Path:
    """An empty, migrated MLflow database, made once by a process of its own."""
    if "mlflow" not in _templates:
        path = Path(tempfile.mkdtemp()) / "mlflow.db"
        (path.parent / "mlflow.yaml").write_text("{}\n")

        def migrate() -> int:
            make_client(load_place()).search_experiments()
            return 0

        assert wait(fork(path.parent, migrate)) == 0, (path.parent / "log").read_text()
        _templates["mlflow"] = path
    return _templates["mlflow"]


def fork(folder: Path, what: Callable[[], int]) -> int:
    """Call ``what`` in a process of its own, in ``folder``, its output going to the file ``log`` there; the pid."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        code = what()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def begin(
    folder: Path, argv: Sequence[str] = (*COMMAND, *IN_PROCESS), prepare: Callable[[], None] | None = None
) -> int:
    """Run the command in ``folder``; its pid."""

    def command() -> int:
        if prepare is not None:
            prepare()
        return sweep.main(list(argv))

    return fork(folder, command)


def begun(folder: Path) -> int:
    """Run the command in ``folder``; its pid, when the first epoch is on record."""
    pid = begin(folder)
    while not committed(folder):
        time.sleep(0.02)
    return pid


def wait(pid: int, seconds: float = 300.0) -> int | None:
    """A process's exit code, negative where a signal ended it; None, and it is killed, when it takes too long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def finish(folder: Path, argv: Sequence[str] = (*COMMAND, *IN_PROCESS)) -> list[str]:
    """The same command until it ends by itself; what went wrong."""
    code = wait(begin(folder, argv))
    return [] if code == 0 else [f"ended with {code}: {(folder / 'log').read_text()[-2000:]}"]


def each(suffer: Callable[..., Any], cases: Iterable[Any]) -> list[Any]:
    """What comes of every case, as many at once as there are cores."""
    with ProcessPoolExecutor(mp_context=get_context("fork")) as cores:
        return list(cores.map(suffer, cases))


# --------------------------------------------------------------------------------------
# What is there.


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def committed(folder: Path) -> dict[tuple[Any, ...], str]:
    """Every epoch on record, as it is on disk: by study, trial and epoch, with its time and all its numbers."""
    path = folder / "optuna.db"
    if not path.exists():
        return {}
    query = (
        "SELECT study_name, number, key, value_json FROM trial_user_attributes a JOIN trials t USING (trial_id) "
        "JOIN studies s USING (study_id) WHERE key LIKE 'epoch:%'"
    )
    with closing(sqlite3.connect(path, timeout=60)) as database:
        try:
            return {(study, number, key): value for study, number, key, value in database.execute(query)}
        except sqlite3.OperationalError:  # killed before its tables were there
            return {}


def tables(folder: Path) -> dict[str, str]:
    """The tables of all studies, without what is a matter of time and place; values are exact."""
    found = {}
    with inside(folder):
        storage = load_place().storage
        for name in ("tiny", "tiny@confirm"):
            _, records = load_study(name, storage)
            found[name] = trials_table(records).drop(columns=["seconds", "run_id"]).to_csv()
            found[f"{name}, epochs"] = (
                epochs_table(records).drop(columns=["seconds", "timestamp"], errors="ignore").to_csv()
            )
    found["best"] = (folder / "results/tiny/best_schedule.json").read_text()
    return found


def other_tables(folder: Path, undisturbed: dict[str, str]) -> list[str]:
    """Which tables are not those of a sweep that nothing happened to."""
    mine = tables(folder)
    return [f"another table of {name}" for name, text in undisturbed.items() if mine.get(name) != text]


def in_mlflow(database: Path, on_record: dict[tuple[Any, ...], str], experiment: str = "lr-schedules") -> list[str]:
    """What is wrong in MLflow: one run each for the parent and every trial, all ended, every number once."""
    wrong, trials, epochs = list[str](), len({key[:2] for key in on_record}), len(on_record)
    ours = (
        "JOIN runs r USING (run_uuid) JOIN experiments e USING (experiment_id) "
        f"WHERE r.lifecycle_stage = 'active' AND e.name = '{experiment}'"
    )
    with closing(sqlite3.connect(database, timeout=60)) as db:
        runs = dict(db.execute(f"SELECT r.run_uuid, r.status FROM runs s {ours}"))
        roles = dict(
            db.execute(f"SELECT t.value, count(*) FROM tags t {ours} AND t.key = 'sweep.role' GROUP BY t.value")
        )
        points = f"FROM metrics m {ours} AND m.key = 'lr'"
        rows, distinct = db.execute(f"SELECT count(*), count(DISTINCT m.run_uuid || '/' || step) {points}").fetchone()
    if len(runs) != trials + 1 or roles.get("study") != 1:
        wrong.append(f"{len(runs)} runs, {roles}, for {trials} trials")
    if set(runs.values()) != {"FINISHED"}:
        wrong.append(f"statuses {sorted(runs.values())}")
    if (rows, distinct) != (epochs, epochs):
        wrong.append(f"{rows} points of {distinct} epochs, not {epochs}")
    return wrong


def in_optuna(folder: Path) -> list[str]:
    """What is wrong in Optuna: every trial ended, numbers without a gap."""
    wrong = []
    with inside(folder):
        storage = optuna.storages.RDBStorage(load_place().storage)
        for summary in optuna.get_all_study_summaries(storage):
            trials = storage.get_all_trials(summary._study_id)
            if any(not t.state.is_finished() for t in trials):
                wrong.append(f"{summary.study_name}: {[t.state.name for t in trials]}")
            if [t.number for t in trials] != list(range(len(trials))):
                wrong.append(f"{summary.study_name}: numbers {[t.number for t in trials]}")
        storage.engine.dispose()
    return wrong


def compared(folder: Path, undisturbed: dict[str, str], seen: dict[tuple[Any, ...], str]) -> list[str]:
    """All that is wrong with a sweep that was disturbed, and has ended; ``seen``: what was on record before."""
    wrong = in_optuna(folder)
    now = committed(folder)
    lost = [key for key, value in seen.items() if now.get(key) != value]
    if lost:
        wrong.append(f"lost or written again: {lost[:5]}")
    wrong += other_tables(folder, undisturbed)
    wrong += in_mlflow(folder / "mlflow.db", now)
    if (folder / "results/tiny/checkpoints").exists():
        wrong.append("checkpoints are left")
    return wrong


def undisturbed(root: Path) -> dict[str, str]:
    """The tables of a sweep that nothing happened to."""
    folder = folder_of_a_sweep(root)
    failed = finish(folder)
    assert not failed, failed
    found = tables(folder)
    wrong = compared(folder, found, {})
    assert not wrong, wrong
    return found


def chance(seed: int, *what: object) -> random.Random:
    return random.Random(json.dumps([seed, *map(str, what)]))
