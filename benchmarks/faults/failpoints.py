"""kill -9 at every step of a trial's life: before and after each call that leaves something behind."""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import optuna
import victims
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from runner.files import space
from runner.lanes import lane
from runner.results import figures, report
from runner.study import study
from runner.training import checkpoint

STORE = SqlAlchemyStore
STEPS: dict[str, tuple[Any, str]] = {
    "create a study": (optuna, "create_study"),
    "remember a fact": (study.Study, "remember"),
    "propose": (study, "propose"),
    "suggest": (optuna.trial.Trial, "suggest_float"),
    "sample a schedule": (space.Space, "sample"),
    "put a trial on record": (study.Study, "_create"),
    "begin on a lane": (lane.Lane, "begin"),
    "an epoch has come": (lane.Lane, "result"),
    "put an epoch on record": (study.Study, "commit"),
    "pack a checkpoint": (checkpoint, "pack"),
    "write a checkpoint": (checkpoint, "write_atomically"),
    "sync a checkpoint": (checkpoint.os, "fsync"),
    "remove checkpoints": (checkpoint.Checkpoints, "drop"),
    "tell": (study.Study, "tell"),
    "report to Optuna": (optuna.Trial, "report"),
    "tell Optuna": (optuna.Study, "tell"),
    "MLflow: create a run": (STORE, "create_run"),
    "MLflow: log a batch": (STORE, "log_batch"),
    "MLflow: log inputs": (STORE, "log_inputs"),
    "MLflow: set a tag": (STORE, "set_tag"),
    "MLflow: end a run": (STORE, "update_run_info"),
    "MLflow: write a text": (mlflow.MlflowClient, "log_text"),
    "MLflow: write a file": (mlflow.MlflowClient, "log_artifact"),
    "write the tables": (report, "_tables_and_code"),
    "draw the figures": (figures, "makers"),
    "report": (report, "write"),
}
CALLS = (1, 2, 4)
"""Which of a step's calls is the last."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Each step, before and after, at several of its calls; a sweep for each."""
    cases = list(itertools.product(STEPS, (False, True), CALLS))
    cases = victims.chance(args.seed, "failpoints").sample(cases, round(len(cases) * args.share))
    with tempfile.TemporaryDirectory() as root:
        expected = victims.undisturbed(Path(root))
        found = victims.each(functools.partial(killed_at, Path(root), expected), cases)
    points = Counter(point for point, killed, _ in found if killed)
    wrong = [text for _, _, several in found for text in several]
    return {"failpoints": len(points), "kills": points.total(), "points": points, "wrong": wrong}


def killed_at(root: Path, expected: dict[str, str], case: tuple[str, bool, int]) -> tuple[str, bool, list[str]]:
    """A sweep that dies at a step, then the same command until it ends: the point, whether it died, what is wrong."""
    (step, after, hit), folder = case, victims.folder_of_a_sweep(root, checkpoint_seconds=0)
    point, arm = f"{'after' if after else 'before'}: {step}", functools.partial(trap, *STEPS[step], hit, after)
    code = victims.wait(victims.begin(folder, prepare=arm))
    wrong = [] if code in (0, -signal.SIGKILL) else [f"ended with {code}"]
    if code == 0 and hit == 1:
        wrong.append("nobody came by")
    seen = victims.committed(folder)
    wrong += victims.finish(folder) or victims.compared(folder, expected, seen)
    return point, code == -signal.SIGKILL, [f"{point}, call {hit}: {text}" for text in wrong]


def trap(owner: Any, attribute: str, hit: int, after: bool) -> None:
    """In the victim: the ``hit``-th call of ``owner.attribute`` is its last."""
    real: Callable[..., Any] = getattr(owner, attribute)
    calls = 0

    @functools.wraps(real)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == hit and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if calls == hit and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, attribute, call)
