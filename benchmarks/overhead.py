"""What the coordinator costs: sweeps whose training only sleeps, MLflow and Optuna on SQLite included.

    python benchmarks/overhead.py         epochs of 0.5 s on 8 lanes; 200 and 800 trials whose epochs do nothing

The lanes are threads, and the network is replaced by a sleep: what is left of the wall time is the coordinator's.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from unittest import mock

import report
import torch
from machine import RESULTS, save

from runner import prepare, sweep
from runner.cli import Options
from runner.files.place import load_place
from runner.files.sweep_file import load_sweep
from runner.files.trial import TrialConfig
from runner.lanes.lane import Lanes
from runner.lanes.stop import Stop
from runner.study.study import load_study
from runner.training.checkpoint import Checkpoints
from runner.training.fast import engine
from runner.training.loop import Epoch

SWEEP = """\
question: What does the coordinator cost?
data: {{source: digits}}
model: {{width: 8}}
train: {{epochs: {epochs}}}
space:
  init_lr: {{log_uniform: [0.003, 0.3]}}
  warmup: {{uniform: [0.0, 0.3]}}
  schedules: {{cosine: {{}}, linear: {{}}, wsd: {{cooldown: {{uniform: [0.1, 0.7]}}}}}}
search: {{trials: {trials}, window: 16}}
confirm: {{top: 0, types: false}}
"""


def measure(trials: int, epochs: int, seconds: float, folder: Path) -> dict[str, float]:
    """Run a sweep of sleeping epochs on 8 lanes; the times of every epoch are taken on the lanes."""
    spans: dict[int, list[tuple[float, float]]] = {}

    def sleeping(config: TrialConfig, device: torch.device, state: object = None) -> Iterator[Epoch]:
        for number in range(epochs):
            start = time.perf_counter()
            time.sleep(seconds)
            spans.setdefault(threading.get_ident(), []).append((start, time.perf_counter()))
            yield Epoch(number, (config.schedule.init_lr,), 1.0, 1.0, 1 - config.schedule.init_lr, seconds)

    (folder / "sleep.yaml").write_text(SWEEP.format(trials=trials, epochs=epochs))
    (folder / "mlflow.yaml").write_text("{}\n")
    found, document = load_sweep(folder / "sleep.yaml")
    place = load_place(folder / "mlflow.yaml")

    def threads(*_: object, stop: Stop, checkpoints: Checkpoints, **__: object) -> Lanes:
        return Lanes(["cpu"] * 8, lambda _: ThreadPoolExecutor(1), stop, checkpoints)

    with mock.patch.object(engine, "train", sleeping), mock.patch.object(prepare, "open_lanes", threads):
        sweep.run(found, document, place, Options(device="cpu", lanes="0"))
    first, last = (f(t for s in spans.values() for span in s for t in span) for f in (min, max))
    wall, busy = last - first, sum(end - start for s in spans.values() for start, end in s)
    gaps = sorted(
        b[0] - a[1] for s in spans.values() for a, b in zip(s[epochs - 1 :: epochs], s[epochs::epochs], strict=False)
    )
    records = load_study("sleep", place.storage)[1]
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        points = database.execute("SELECT count(*), count(DISTINCT run_uuid || step) FROM metrics WHERE key = 'lr'")
        in_mlflow, distinct = points.fetchone()
    return {
        "trials": trials,
        "epochs": epochs,
        "epoch_seconds": seconds,
        "wall_seconds": wall,
        "overhead_share": 1 - busy / (8 * wall),
        "overhead_share_at_full_lanes": 1 - busy / (busy + sum(gaps) + _between(spans, epochs)),
        "trial_to_trial_gap_seconds_median": gaps[len(gaps) // 2],
        "trial_to_trial_gap_seconds_p95": gaps[int(len(gaps) * 0.95)],
        "trials_in_optuna": len(records),
        "epochs_in_optuna": sum(len(r.epochs) for r in records),
        "epochs_in_mlflow": in_mlflow,
        "epochs_in_mlflow_distinct": distinct,
    }


def _between(spans: dict[int, list[tuple[float, float]]], epochs: int) -> float:
    """Seconds between epochs of the same trial, over all lanes."""
    return sum(b[0] - a[1] for s in spans.values() for i, (a, b) in enumerate(pairwise(s)) if (i + 1) % epochs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "overhead.json")
    args = parser.parse_args()
    results = []
    for trials, epochs, seconds in ((64, 10, 0.5), (200, 10, 0.0), (800, 10, 0.0)):
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(trials, epochs, seconds, Path(folder)))
    save(args.out, {"lanes": 8, "results": results})
    print(report.overhead(args.out))


if __name__ == "__main__":
    main()
