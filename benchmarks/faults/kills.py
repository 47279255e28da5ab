"""kill -9 at random instants, of the coordinator or of a worker, while a sweep trains, records or reports."""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import victims


def run(args: argparse.Namespace) -> dict[str, Any]:
    """At least five kills of each sweep, until there are ``--kills``; every fifth sweep loses workers instead."""
    kills = {"coordinator": 0, "worker": 0}
    wrong: list[str] = []
    sweeps = checked = 0
    with tempfile.TemporaryDirectory() as root:
        expected = victims.undisturbed(Path(root))
        while sum(kills.values()) < args.kills:
            chance = victims.chance(args.seed, "kills", sweeps)
            folder = victims.folder_of_a_sweep(Path(root), checkpoint_seconds=chance.choice([0, 60]))
            kind = "worker" if sweeps % 5 == 4 else "coordinator"
            before = kills[kind]
            seen = (lose_workers if kind == "worker" else lose_coordinators)(folder, chance, kills, args.kills)
            found = victims.finish(folder) or victims.compared(folder, expected, seen)
            if kind == "worker" and kills[kind] == before:
                found.append("no worker was there to be killed")
            wrong += [f"seed {args.seed}, sweep {sweeps} ({kind}): {text}" for text in found]
            checked += len(seen)
            sweeps += 1
    return {"kills": kills, "sweeps": sweeps, "epochs_seen_before_a_kill": checked, "wrong": wrong}


def lose_coordinators(folder: Path, chance: Any, kills: dict[str, int], most: int) -> dict[tuple[Any, ...], str]:
    """Begin the sweep again and again, and kill it each time; everything that was on record when it died."""
    seen: dict[tuple[Any, ...], str] = {}
    for _ in range(5):
        pid = victims.begin(folder)
        time.sleep(chance.uniform(0.2, 4.0))
        done, _ = os.waitpid(pid, os.WNOHANG)
        if done:
            break  # it was faster
        seen |= victims.committed(folder)  # acknowledged before it dies
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills["coordinator"] += 1
        if sum(kills.values()) >= most:
            break
    return seen


def lose_workers(folder: Path, chance: Any, kills: dict[str, int], most: int) -> dict[tuple[Any, ...], str]:
    """Two process lanes; one of them is killed now and then, never so often that a trial is given up."""
    seen: dict[tuple[Any, ...], str] = {}
    pid = victims.begin(folder, (*victims.COMMAND, "--lanes", "2"))
    for _ in range(2):  # a trial is given up at its third death
        workers: list[int] = []
        until = time.monotonic() + 30
        while not workers and time.monotonic() < until:
            workers = workers_of(pid)
            time.sleep(0.05)
        time.sleep(chance.uniform(0.0, 2.0))
        seen |= victims.committed(folder)
        workers = workers_of(pid)
        if not workers or sum(kills.values()) >= most:
            break
        os.kill(chance.choice(workers), signal.SIGKILL)
        kills["worker"] += 1
    victims.wait(pid)
    return seen


def workers_of(pid: int) -> list[int]:
    """The processes of a coordinator that train: its children's children, copied from the one that has torch."""
    return [worker for child in children(pid) for worker in children(child)]


def children(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
