"""kill -9 at random instants, of the coordinator or of a worker, while a sweep trains, records or reports."""

from __future__ import annotations

import argparse
import functools
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import victims

SWEEPS = 25


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Sweeps that are killed again and again; every fifth one loses workers instead."""
    kinds = ["coordinator" if n % 5 else "worker" for n in range(max(1, round(SWEEPS * args.share)))]
    cases = [(kind, victims.chance(args.seed, "kills", n)) for n, kind in enumerate(kinds)]
    with tempfile.TemporaryDirectory() as root:
        expected = victims.undisturbed(Path(root))
        found = victims.each(functools.partial(suffer, Path(root), expected), cases)
    kills = Counter[str]()
    for kind, (times, _, _) in zip(kinds, found, strict=True):
        kills[kind] += times
    return {
        "kills": kills,
        "sweeps": len(cases),
        "epochs_seen_before_a_kill": sum(seen for _, seen, _ in found),
        "wrong": [f"sweep {n}: {text}" for n, (_, _, several) in enumerate(found) for text in several],
    }


def suffer(root: Path, expected: dict[str, str], case: tuple[str, random.Random]) -> tuple[int, int, list[str]]:
    """A sweep to its end: how often it was killed, how many epochs were on record before, what is wrong."""
    kind, chance = case
    folder = victims.folder_of_a_sweep(root, checkpoint_seconds=chance.choice([0, 60]))
    times, seen = (lose_workers if kind == "worker" else lose_coordinators)(folder, chance)
    found = victims.finish(folder) or victims.compared(folder, expected, seen)
    if kind == "worker" and not times:
        found.append("none was there to be killed")
    return times, len(seen), [f"{kind}: {text}" for text in found]


def lose_coordinators(folder: Path, chance: random.Random) -> tuple[int, dict[tuple[Any, ...], str]]:
    """Begin the sweep again and again, and kill it each time: how often, and what was on record when it died."""
    times, seen = 0, dict[tuple[Any, ...], str]()
    for _ in range(5):
        pid = victims.begin(folder)
        time.sleep(chance.uniform(0.2, 4.0))
        done, _ = os.waitpid(pid, os.WNOHANG)
        if done:
            break  # it was faster
        seen |= victims.committed(folder)  # acknowledged before it dies
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        times += 1
    return times, seen


def lose_workers(folder: Path, chance: random.Random) -> tuple[int, dict[tuple[Any, ...], str]]:
    """Two process lanes; one of them is killed now and then, never so often that a trial is given up."""
    times, seen, ended = 0, dict[tuple[Any, ...], str](), os.WEXITED | os.WNOHANG | os.WNOWAIT
    pid, until = victims.begin(folder, (*victims.COMMAND, "--lanes", "2")), time.monotonic() + 300
    # twice at most: a trial is given up at its third death
    while times < 2 and time.monotonic() < until and os.waitid(os.P_PID, pid, ended) is None:
        time.sleep(0.05)
        if workers_of(pid):
            time.sleep(chance.uniform(0.0, 2.0))
            seen |= victims.committed(folder)
            if workers := workers_of(pid):  # what was seen before may have been a helper
                os.kill(chance.choice(workers), signal.SIGKILL)
                times += 1
    victims.wait(pid)
    return times, seen


def workers_of(pid: int) -> list[int]:
    """The processes of a coordinator that train: its children's children, copied from the one that has torch."""
    return [worker for child in children(pid) for worker in children(child)]


def children(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
