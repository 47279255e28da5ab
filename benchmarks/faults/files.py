"""A first run that is interrupted, a worker that dies while it sends a checkpoint, files removed or replaced."""

from __future__ import annotations

import argparse
import functools
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import victims
from kills import workers_of

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
TIMES = 6
"""How often each kind is tried."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Every case goes on with the same command, to the table of an undisturbed sweep."""
    several = range(max(1, round(TIMES * args.share)))
    cases = [(kind, victims.chance(args.seed, kind, n)) for n in several for kind in KINDS]
    with tempfile.TemporaryDirectory() as root:
        expected = victims.undisturbed(Path(root))
        found = victims.each(functools.partial(suffer, Path(root), expected), cases)
    return {
        "cases": len(cases),
        "kinds": {kind: what.__doc__ for kind, what in KINDS.items()},
        "wrong": [text for texts in found for text in texts],
    }


def suffer(root: Path, expected: dict[str, str], case: tuple[str, random.Random]) -> list[str]:
    """What is wrong with a sweep to which one of KINDS was done, when it has come to its end."""
    kind, chance = case
    folder = victims.folder_of_a_sweep(root, checkpoint_seconds=0)
    found = KINDS[kind](folder, chance) or victims.finish(folder) or victims.compared(folder, expected, {})
    return [f"{kind}: {text}" for text in found]


def interrupt_first_run(folder: Path, chance: random.Random) -> list[str]:
    """a signal while MLflow's database is being made, three times"""
    (folder / "mlflow.db").unlink()
    for _ in range(3):
        pid, until = victims.begin(folder), time.monotonic() + 60
        while not [*folder.glob(".mlflow.db.*.new"), *folder.glob("mlflow.db")] and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 3.0))
        os.kill(pid, chance.choice(SIGNALS))
        if victims.wait(pid, 60) is None:
            return ["did not end within a minute"]
    return []


def kill_in_a_checkpoint(folder: Path, chance: random.Random) -> list[str]:
    """a worker is killed while it sends a checkpoint, which the coordinator has begun to read or not"""
    pid = victims.begin(folder, (*victims.COMMAND, "--lanes", "2"))
    until = time.monotonic() + 120
    while not (victims.committed(folder) and workers_of(pid)):
        if time.monotonic() > until:
            return [f"no epoch within two minutes: {(folder / 'log').read_text()[-500:]}"]
        time.sleep(0.02)
    time.sleep(chance.uniform(0.0, 0.2))
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.7)  # an epoch later the worker sleeps in its writing: no pipe holds a checkpoint
    if workers := workers_of(pid):
        os.kill(chance.choice(workers), signal.SIGKILL)
    os.kill(pid, signal.SIGCONT)
    code = victims.wait(pid, 120)
    return [] if code == 0 else [f"ended with {code}: {(folder / 'log').read_text()[-1500:]}"]


def lose_study(folder: Path, chance: random.Random) -> list[str]:
    """the study's file is removed, or another one is put in its place"""
    pid = victims.begun(folder)
    time.sleep(chance.uniform(0.0, 0.5))
    if chance.random() < 0.5:
        for path in folder.glob("optuna.db*"):
            if not path.name.endswith(".lock"):
                path.unlink()
    else:
        optuna.create_study(study_name="other", storage=f"sqlite:///{folder}/new.db")
        (folder / "new.db").replace(folder / "optuna.db")
    if wrong := _stopped(folder, pid, "while the sweep ran; what is on record lies in"):
        return wrong
    mend = (folder / "log").read_text().rpartition("to put it back: ")[2].splitlines()[0]
    return [] if subprocess.run(["bash", "-c", mend], check=False).returncode == 0 else [f"cannot be mended: {mend}"]


def lose_lock(folder: Path, chance: random.Random) -> list[str]:
    """the study's lock is removed"""
    pid = victims.begun(folder)
    time.sleep(chance.uniform(0.0, 0.5))
    (folder / "optuna.db.tiny.lock").unlink()
    return _stopped(folder, pid, "lock")


def lose_mlflow(folder: Path, chance: random.Random) -> list[str]:
    """MLflow's database is removed, or an empty one is put in its place"""
    pid = victims.begun(folder)
    time.sleep(chance.uniform(0.0, 0.5))
    shutil.copy(victims.template(), folder / "new.db")
    (folder / "new.db").replace(folder / "mlflow.db")
    if chance.random() < 0.5:
        (folder / "mlflow.db").unlink()
    return _stopped(folder, pid, "MLflow's database")


KINDS: dict[str, Callable[[Path, random.Random], list[str]]] = {
    "first run interrupted": interrupt_first_run,
    "killed in a checkpoint": kill_in_a_checkpoint,
    "study replaced": lose_study,
    "lock removed": lose_lock,
    "MLflow's database replaced": lose_mlflow,
}


def _stopped(folder: Path, pid: int, sentence: str) -> list[str]:
    """What is wrong with how a sweep stopped that should have said so."""
    code, log = victims.wait(pid, 120), (folder / "log").read_text()
    if code == 0 and "report, tables" in log:  # it had nothing left to do
        return []
    return [] if code == 4 and sentence in log and "Traceback" not in log else [f"ended with {code}: {log[-1500:]}"]
