"""Throughput of CPU lanes: one lane with one thread, one with two, two with one each; interleaved, medians.

python benchmarks/lanes.py            five repeats, into benchmarks/results/lanes.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import torch
from machine import RESULTS, open_lanes, save, spread

from runner.files.sweep_file import Augment, Data, Model, Train
from runner.files.trial import TrialConfig
from runner.lanes.lane import Lane
from runner.lanes.worker import advance, begin
from runner.schedules import load

EPOCHS = 3
CONFIG = TrialConfig(
    Data(source="digits", val=0.25, augment=Augment(pad=1)),
    Model(),
    Train(epochs=10_000, batch_size=64),
    load({"type": "cosine", "init_lr": 0.01}),
)
IMAGES = 1024  # 16 whole batches of 64


def threads(n: int) -> int:
    torch.set_num_threads(n)
    return n


def images_per_second(lanes: list[Lane]) -> float:
    """All lanes train EPOCHS epochs at once; the first epoch of a trial is not counted."""
    wait([lane.executor.submit(begin, CONFIG, "cpu") for lane in lanes])
    start = time.perf_counter()
    for _ in range(EPOCHS):
        wait([lane.executor.submit(advance) for lane in lanes])
    return IMAGES * EPOCHS * len(lanes) / (time.perf_counter() - start)


def wait(futures: list[Future[object]]) -> None:
    for future in futures:
        future.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "lanes.json")
    args = parser.parse_args()
    with open_lanes("2", "cpu", 2) as two, open_lanes("1", "cpu", 1) as wide:
        wait([lane.executor.submit(threads, 1) for lane in two.all])
        wait([lane.executor.submit(threads, 2) for lane in wide.all])
        cases: dict[str, Callable[[], float]] = {
            "1 lane, 1 thread": lambda: images_per_second(two.all[:1]),
            "1 lane, 2 threads": lambda: images_per_second(wide.all),
            "2 lanes, 1 thread each": lambda: images_per_second(two.all),
        }
        seen: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(args.repeats):
            for name, case in cases.items():
                seen[name].append(case())
                print(f"{name}: {seen[name][-1]:.0f} images/s", file=sys.stderr)
    one, two_threads, two_lanes = (statistics.median(seen[name]) for name in cases)
    result = {
        "what": "ResNet-18 on 8x8 digits, batch 64, reference loop, fp32",
        "images_per_second": {name: spread(values) for name, values in seen.items()},
        "ratio_to_1_lane_1_thread": two_lanes / one,
        "ratio_to_1_lane_2_threads": two_lanes / two_threads,
    }
    save(args.out, result)
    print(json.dumps({k: v for k, v in result.items() if k.startswith("ratio")}))


if __name__ == "__main__":
    main()
