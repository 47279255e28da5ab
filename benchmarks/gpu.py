"""What only a GPU can show, the most telling first; what takes too long is interrupted:

    python benchmarks/gpu.py --data-dir DIR      ours alone, its tests, a good training, the real sweep, the scripts
    python benchmarks/gpu.py --parts training sweep --trials 12      some of it, the sweep in five minutes
    python benchmarks/gpu.py --parts seeds compared    up to 20 seeds, and 16 trials of two epochs, the scripts' and
                                                       ours: about eight minutes

Writes ``cifar10-<gpu>.json`` after every part; images per second have files of their own (``speed.py``). Where a GPU
is lent by the minute: ``--parts alone tests training`` takes about five.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from machine import RESULTS, ROOT, environment, result_file, save, spread

from runner.files.document import SpecError
from runner.files.sweep_file import load_sweep
from runner.files.trial import TrialConfig
from runner.schedules import load
from runner.study.study import load_study
from runner.training.device import pick_device
from runner.training.fast import choice, engine

SECONDS = {
    "alone": 200,
    "tests": 180,
    "training": 100,
    "sweep": 1800,
    "short sweep": 270,
    "speed": 420,
    "seeds": 240,
    "compared": 480,
}
"""What each part may take; a sweep that takes longer is stopped as a person would, and what it has counts."""


def run(command: Sequence[str], seconds: float, folder: Path = ROOT) -> tuple[int, float]:
    """A command's exit code and how long it took; after ``seconds`` it is interrupted, and later killed."""
    start = perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=folder, env=environment())
    for mark in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(seconds), perf_counter() - start
        process.send_signal(mark)
        seconds = 45
    return process.wait(), perf_counter() - start


def tests(args: argparse.Namespace) -> dict[str, Any]:
    """The tests that are skipped where there is no GPU."""
    plain = ["-o", "addopts=", "-W", "default"]  # another version of torch may have warnings of its own
    files = [f"tests/test_{name}.py" for name in ("engine", "train", "data")]
    code, seconds = run(["-m", "pytest", *plain, "--tb=short", "-q", "-m", "cuda", *files], SECONDS["tests"])
    return {"exit_code": code, "seconds": seconds}


def training(args: argparse.Namespace) -> dict[str, Any]:
    """One good schedule at full length, its accuracy on the test split with several seeds."""
    sweep, device = load_sweep(args.sweep)[0], pick_device(args.device)
    schedule, until = load({"type": "one_cycle", "init_lr": 0.4}), perf_counter() + SECONDS["training"]
    accuracy, seconds = list[float](), list[float]()
    for seed in range(max(1, args.seeds)):
        if accuracy and perf_counter() + seconds[-1] > until:
            break
        recipe = sweep.train.model_copy(update={"epochs": args.epochs, "seed": seed})
        config = TrialConfig(sweep.data, sweep.model, recipe, schedule, args.data_dir, test=True)
        config = replace(config, engine=choice.choose(config, device, args.seeds * args.epochs))
        start = perf_counter()
        *_, last = engine.train_function(config)(config, device)
        seconds.append(perf_counter() - start)
        accuracy.append(last.test_accuracy or 0.0)
        print(f"seed {seed}: test accuracy {accuracy[-1]:.4f} in {seconds[-1]:.1f} s", file=sys.stderr)
    said = {"epochs": args.epochs, "schedule": schedule.to_json(), "engine": str(config.engine)}
    return said | images(args) | {"test_accuracy": spread(accuracy), "seconds": spread(seconds)}


def sweep(args: argparse.Namespace) -> dict[str, Any]:
    """The whole sweep as a person runs it, from its imports to its report, and what it says."""
    science = load_sweep(args.sweep)[0]
    if args.trials is not None:
        short = {
            "search": science.search.model_copy(update={"trials": args.trials}),
            "confirm": science.confirm.model_copy(update={"top": 3, "types": False, "seeds": 3}),
        }
        science = science.model_copy(update=short)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        (Path(folder) / "sweep.yaml").write_text(science.model_dump_json())
        command = ["-m", "runner.sweep", "sweep.yaml", "--data-dir", args.data_dir, "--device", args.device]
        code, seconds = run(command, SECONDS["sweep" if args.trials is None else "short sweep"], Path(folder))
        facts, records = load_study(science.name, f"sqlite:///{folder}/optuna.db")
    done = [r.value for r in records if r.value is not None]
    rows = [{k: row[k] for k in ("name", "init_lr", "mean", "in_set", "seeds")} for row in facts.get("confirmed", ())]
    return {
        "size": science.size,
        "exit_code": code,
        "seconds": seconds,
        "outcomes": Counter(r.outcome or "unfinished" for r in records),
        "best_of_one_seed": max(done, default=None),
        "confirmed": rows,
        "answer": facts.get("answer", []),
    } | images(args)


def images(args: argparse.Namespace) -> dict[str, str]:
    return {"images": args.images} if args.images else {}


BESIDE = {
    "alone": "--parts alone",
    "speed": "--parts rates",
    "seeds": "--cases cifar10 --parts accuracy --epochs 4 --patience 120 --schedules 0",
    "compared": "--cases cifar10 --parts sweep --sweep-repeats 1 --sweep-epochs 2",
}
"""What ``speed.py`` measures, into its own files: ours alone, which no script can keep from being measured; ours and
the scripts; the accuracy of ours and of the naive one; a whole small sweep of each."""


def beside(args: argparse.Namespace, part: str) -> dict[str, Any]:
    command = ["benchmarks/speed.py", *BESIDE[part].split(), "--seconds", "1", "--data-dir", args.data_dir]
    command += ["--device", args.device, "--out-dir", str(args.out_dir.resolve())]
    code, seconds = run(command, SECONDS[part])
    return {"exit_code": code, "seconds": seconds}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"alone": partial(beside, part="alone")}
PARTS |= {"tests": tests, "training": training, "sweep": sweep}
PARTS |= {part: partial(beside, part=part) for part in ("speed", "seeds", "compared")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sweep", default=str(ROOT / "sweeps/cifar10.yaml"), help="default: sweeps/cifar10.yaml")
    parser.add_argument("--trials", type=int, help="of a shorter sweep, whose best three get three fresh seeds")
    parser.add_argument("--epochs", type=int, default=30, help="of the one training")
    parser.add_argument("--seeds", type=int, default=3, help="of it, as far as there is time; at least 1")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--images", help="what they are, where they are not the originals; for the record")
    parser.add_argument("--out-dir", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.data_dir = str(Path(args.data_dir).resolve())
    device = str(pick_device(args.device))
    path = result_file(args.out_dir, load_sweep(args.sweep)[0].name, device)
    old = json.loads(path.read_text()) if path.exists() else {}
    result = {part: old[part] for part in PARTS if part in old} | {"device": device}
    for part in args.parts:
        try:
            result[part] = PARTS[part](args)
        except (SpecError, RuntimeError, KeyError) as error:  # out of memory, no study: the other parts go on
            print(f"{part}: {error!r}", file=sys.stderr)
            result[part] = {"error": repr(error)}
        save(path, result)
    print(path)


if __name__ == "__main__":
    main()
