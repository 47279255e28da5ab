"""What a training of one's own costs in a sweep, beside the same training in a bare loop; and our trainer beside a
build of before.

    python benchmarks/own.py                         epochs of 0.5 s, trials of a function, trials of a command
    python benchmarks/own.py --against ../before     and our own trainer, in turns with that checkout's

Everything is measured in one run, in turns, on one lane; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import report
from machine import RESULTS, ROOT, save

from runner.files.place import load_place
from runner.study.study import load_study

ROUNDS = 5
CODE = """\
import time

import torch


def work(seconds=0.5, made=[]):
    \"\"\"A fixed number of matrix products that take about so long here.\"\"\"
    a = torch.ones(256, 256)
    if not made:
        start, n = time.perf_counter(), 0
        while time.perf_counter() - start < 0.5:
            a @ a
            n += 1
        made.append(n)
    for _ in range(round(made[0] * seconds / 0.5)):
        a @ a


def train(job):
    for _ in range(job.epochs):
        start = time.perf_counter()
        work()
        yield {"val/loss": 1.0, "own": time.perf_counter() - start, "lr": job.schedule.init_lr}


def sleeps(job):
    begun = time.time()
    time.sleep(0.4)
    yield {"val/loss": 1.0, "lr": job.schedule.init_lr, "begun": begun, "ended": time.time()}
"""
SWEEP = """\
question: What does it cost?
train: {{{train}, epochs: {epochs}}}
objective: {{metric: val/loss}}
space: {{init_lr: {{log_uniform: [0.01, 1.0]}}, schedules: {{constant: {{}}}}}}
search: {{trials: {trials}, sampler: random}}
confirm: {{top: 0, types: false}}
"""


def stamps(folder: Path, train: str, trials: int, epochs: int) -> list[list[dict[str, float]]]:
    """The epochs on record of every trial of a sweep of this training, on one lane."""
    (folder / "code_of_ones_own.py").write_text(CODE)
    (folder / "mlflow.yaml").write_text("{}\n")
    (folder / "costs.yaml").write_text(SWEEP.format(train=train, trials=trials, epochs=epochs))
    options = ["--lanes", "1", "--device", "cpu", "--allow-plugin", "code_of_ones_own.", "--allow-command"]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, "-m", "runner.sweep", "costs.yaml", *options]
    subprocess.run(command, cwd=folder, env=variables, check=True, capture_output=True)
    records = load_study("costs", load_place(folder / "mlflow.yaml").storage)[1]
    return [[dict(e) for e in record.epochs] for record in records]


def per_epoch() -> dict[str, float]:
    """How much longer an epoch takes in a sweep than its work alone: all that lies between two epochs on record,
    against what the function itself measured there."""
    with tempfile.TemporaryDirectory() as folder:
        trials = stamps(Path(folder), "function: code_of_ones_own.train", 2, 12)
    shares = [
        (b["timestamp"] - a["timestamp"]) / 1000 / b["own"] - 1 for epochs in trials for a, b in pairwise(epochs[1:])
    ]
    return {"share": statistics.median(shares), "epoch_seconds": statistics.median(e["own"] for e in trials[0])}


def per_trial(train: str, alone: float | None = None) -> float:
    """Seconds between two trials of one epoch on a warm lane, from the end of one to the begin of the next, as they
    say themselves; of a command, which cannot say when it ends, from begin to begin without its time ``alone``."""
    with tempfile.TemporaryDirectory() as folder:
        said = [epochs[0] for epochs in stamps(Path(folder), train, 15, 1)]
    said.sort(key=lambda e: e["begun"])
    gaps = [b["begun"] - (a["ended"] if alone is None else a["begun"] + alone) for a, b in pairwise(said[2:])]
    return statistics.median(gaps)


SAYS = '{\\"val/loss\\": 1, \\"lr\\": 0.1, \\"begun\\": $begun}'
SCRIPT = f'begun=$(date +%s.%N); sleep 0.4; echo "{SAYS}" > $RUNNER_REPORT'
COMMAND = f"command: [sh, -c, '{SCRIPT}']"


def of_a_command() -> float:
    """Seconds that the command takes by itself."""
    found = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run(["sh", "-c", SCRIPT], check=True, env=os.environ | {"RUNNER_REPORT": os.devnull})
        found.append(time.perf_counter() - start)
    return statistics.median(found)


OURS = """\
import torch
torch.set_num_threads(1)
from dataclasses import replace
from runner.files.sweep_file import Data, Model, Train
from runner.files.trial import TrialConfig
from runner.schedules import load
from runner.training.fast import choice, engine
config = TrialConfig(Data(source="digits", val=0.25, augment={"pad": 1}), Model(), Train(epochs=4, batch_size=64),
                     load({"type": "cosine", "init_lr": 0.02, "warmup": 0.1}))
config = replace(config, engine=choice.choose(config, torch.device("cpu"), 1000))
epochs = list(engine.train(config, torch.device("cpu")))
print(min(e.seconds for e in epochs[1:]), epochs[-1].train_loss)
"""
"""An epoch of the default sweep's training: the shortest of three, and the loss that it comes to."""


def of_our_trainer(checkout: Path) -> tuple[float, str]:
    """Seconds of an epoch of the default sweep's training in a checkout, and its loss."""
    variables = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    done = subprocess.run([sys.executable, "-c", OURS], env=variables, check=True, capture_output=True, text=True)
    seconds, loss = done.stdout.split()
    return float(seconds), loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another version of this project")
    parser.add_argument("--out", type=Path, default=RESULTS / "own.json")
    args = parser.parse_args()
    epochs, functions, commands = [], [], []
    for _ in range(ROUNDS):
        epochs.append(per_epoch())
        functions.append(per_trial("function: code_of_ones_own.sleeps"))
        commands.append(per_trial(COMMAND, of_a_command()))
    found = {
        "rounds": ROUNDS,
        "share_of_an_epoch": statistics.median(e["share"] for e in epochs),
        "epoch_seconds": statistics.median(e["epoch_seconds"] for e in epochs),
        "function_seconds": statistics.median(functions),
        "command_seconds": statistics.median(commands),
    }
    if args.against is not None:
        turns = [(of_our_trainer(args.against), of_our_trainer(ROOT)) for _ in range(ROUNDS)]
        found["before_seconds"] = statistics.median(before[0] for before, _ in turns)
        found["now_seconds"] = statistics.median(now[0] for _, now in turns)
        found["ratio"] = statistics.median(before[0] / now[0] for before, now in turns)
        found["same_loss"] = len({loss for turn in turns for _, loss in turn}) == 1
    save(args.out, found)
    print(json.dumps(found, indent=1))
    print(report.own(args.out))


if __name__ == "__main__":
    main()
