"""A table of recorded trainings, from which search strategies can be replayed: ``benchmarks/replay.py``.

    python benchmarks/pool.py                       320 configurations of 8 types, 3 seeds, on digits
    python benchmarks/pool.py --source cifar10 --data-dir DIR --width 64 --epochs 15     where a GPU is at hand

Each configuration is trained at T with every seed (the whole curve is kept, so it can be truncated) and, with every
seed, at T/3 with its schedule rescaled. Rows are appended as they come: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from machine import RESULTS, open_lanes, save
from optuna.trial import FixedTrial

from runner.files.sweep_file import Sweep, load_sweep
from runner.files.trial import DivergedError, TrialConfig
from runner.schedules import Schedule, load
from runner.training import data
from runner.training.device import pick_device
from runner.training.fast import choice, engine

SWEEPS = Path(__file__).parents[1] / "sweeps"
EACH = 40
"""Configurations of each type."""


def configurations(sweep: Sweep) -> list[dict[str, Any]]:
    """The parameters of EACH random configurations of every type, always the same."""
    found = []
    for i, (kind, _) in enumerate(itertools.product(sweep.schedules.schedules, range(EACH))):
        draw = random.Random(i).random
        found.append({"type": kind} | {leaf.name: leaf.at(draw()) for leaf in sweep.schedules.leaves(kind)})
    return found


def schedule_of(sweep: Sweep, params: dict[str, Any]) -> Schedule:
    return load(sweep.schedules.sample(FixedTrial(params))[1])


def plan(
    sweep: Sweep, example: TrialConfig, seeds: int, updates: int
) -> Iterator[tuple[dict[str, Any], TrialConfig]]:
    """Every training: what identifies it, and its config."""
    T = example.train.epochs
    for (config, params), seed, epochs in itertools.product(
        enumerate(configurations(sweep)), range(seeds), (T, T // 3)
    ):
        key = {"config": config, "type": params["type"], "params": json.dumps(params), "seed": seed, "epochs": epochs}
        yield key, training(example, schedule_of(sweep, params), seed, epochs, updates)


def training(example: TrialConfig, schedule: Schedule, seed: int, epochs: int, updates: int) -> TrialConfig:
    """``example`` with this schedule and seed, in so many epochs: where these are fewer, rescaled."""
    T = example.train.epochs
    ours = schedule if epochs == T else schedule.rescaled(epochs / T, updates * T, epochs=T)
    return replace(example, train=example.train.model_copy(update={"seed": seed, "epochs": epochs}), schedule=ours)


def setting(source: str, width: int, epochs: int, data_dir: str) -> tuple[TrialConfig, int, torch.device]:
    """What all trainings have in common, the updates of an epoch, and where they train."""
    sweep, device = load_sweep(SWEEPS / f"{source}.yaml")[0], pick_device()
    recipe = sweep.train.model_copy(update={"epochs": epochs})
    model = sweep.model.model_copy(update={"width": width})
    example = TrialConfig(sweep.data, model, recipe, load({"type": "constant"}), data_dir)
    updates = recipe.updates(len(data.load(sweep.data, data_dir).train))
    return replace(example, engine=choice.choose(example, device, 1000 * example.train.epochs)), updates, device


def trained(
    configs: Mapping[Any, TrialConfig], example: TrialConfig, device: torch.device
) -> Iterator[tuple[Any, list[float]]]:
    """The accuracies of every config, by its key, as they come from all lanes."""
    left = deque(configs.items())
    with open_lanes("auto", str(device), 64, None, example) as lanes:
        running: dict[Future[list[float]], tuple[Any, Any]] = {}
        idle = list(lanes.all)
        while left or running:
            while idle and left:
                lane, (key, config) = idle.pop(), left.popleft()
                running[lane.executor.submit(accuracies, config, lane.device)] = (lane, key)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                lane, key = running.pop(future)
                idle.append(lane)
                yield key, future.result()


def accuracies(config: TrialConfig, device: str) -> list[float]:
    """Validation accuracy after every epoch; shorter where it diverged."""
    found = []
    try:
        for epoch in engine.train_function(config)(config, torch.device(device)):
            found.append(epoch.val_accuracy)
    except DivergedError:
        pass
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=["digits", "cifar10"], default="digits")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=6, help="T; a multiple of 3")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out-dir", type=Path, default=RESULTS)
    args = parser.parse_args()
    sweep, _ = load_sweep(Path(__file__).with_name("pool.yaml"))  # for every source
    example, updates, device = setting(args.source, args.width, args.epochs, args.data_dir)
    rows = args.out_dir / f"pool-{args.source}.jsonl"
    done = set()
    if rows.exists():
        done = {(r["config"], r["seed"], r["epochs"]) for r in map(json.loads, rows.read_text().splitlines())}
    todo = plan(sweep, example, args.seeds, updates)
    keys = {(key["config"], key["seed"], key["epochs"]): (key, config) for key, config in todo}
    left = {at: config for at, (_, config) in keys.items() if at not in done}
    with rows.open("a") as file:
        for at, found in trained(left, example, device):
            file.write(json.dumps(keys[at][0] | {"accuracies": found}) + "\n")
            file.flush()
    table = pd.read_json(rows, lines=True).sort_values(["config", "seed", "epochs"], ignore_index=True)
    table.to_parquet(args.out_dir / f"pool-{args.source}.parquet", index=False)
    rows.unlink()
    facts = {"trainings": len(table), "configurations": int(table["config"].nunique()), "seeds": args.seeds}
    what = {"width": args.width, "T": args.epochs, "engine": str(example.engine), "device": str(device)}
    save(args.out_dir / f"pool-{args.source}.json", {"what": f"{args.source}, ResNet-18", **what, **facts})


if __name__ == "__main__":
    main()
