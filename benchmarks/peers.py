"""A whole sweep against what one would write by hand: the same trials, from the start of a process to its exit.

    pip install -e '.[ray]' optuna-integration
    python benchmarks/peers.py                      five rounds, into benchmarks/results/peers.json
    python benchmarks/peers.py --only ours ray      some of the contenders

Every contender searches the space of ``sweeps/digits.yaml`` and trains the same network on the same data by the same
recipe, in a new process and a new folder, in turns; what it imports and the databases it creates are in its time. The
peers train with this project's own plain loop, whose data stay in memory. Nothing may be missing afterwards: epochs
are counted in the MLflow database of each.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import secrets
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, ROOT, environment, save, spread

from runner.files.document import read
from runner.files.space import Suggester
from runner.files.sweep_file import Sweep, load_sweep
from runner.files.trial import TrialConfig
from runner.schedules import load
from runner.training.device import pick_device
from runner.training.loop import Epoch, train

JOBS = 2
"""Trials at once, for the peers."""
CONTENDERS = {
    "ours": "python -m runner.sweep",
    "reference": "python -m runner.sweep --engine reference",
    "optuna": f"study.optimize(n_jobs={JOBS}) on SQLite; optuna-integration's MLflowCallback and track_in_mlflow(), "
    "which hold a lock while a trial trains: one trial at a time, with all of torch's threads",
    "optuna-threads": f"study.optimize(n_jobs={JOBS}) on SQLite; nested MLflow runs by hand, without that lock: "
    f"{JOBS} trials at once, each with all of torch's threads",
    "ray": f"Ray Tune, OptunaSearch in memory, {JOBS} trials at once with one CPU and one thread each, "
    "reuse_actors; MLflowLoggerCallback, which logs Ray's own numbers as well",
}
PACKAGES = {"optuna": "optuna-integration", "ray": "ray"}
DEFAULT = ("ours", "reference", "optuna", "ray")
TRACKING = "sqlite:///mlflow.db"
COUNT = """
SELECT count(DISTINCT run_uuid), count(DISTINCT run_uuid || ' ' || step), count(*),
    (SELECT max(value) FROM latest_metrics WHERE key = 'val/accuracy')
FROM metrics WHERE key = 'val/accuracy'
"""
"""Trials, epochs, values, and the best of the last epochs: the sweep's objective."""

# --------------------------------------------------------------------------------------
# The peers, as their users write them.


def config(sweep: Sweep, trial: Suggester) -> TrialConfig:
    """What to train: the recipe of the sweep, with the schedule that the trial suggests."""
    return TrialConfig(sweep.data, sweep.model, sweep.train, load(sweep.schedules.sample(trial)[1]))


def metrics(epoch: Epoch) -> dict[str, float]:
    """The four numbers that a user logs."""
    return {name: value for name, value in epoch.metrics().items() if name != "seconds"}


def with_optuna(sweep: Sweep, callback: bool) -> None:
    """Threads of one process; ``callback``: logged with MLflowCallback, else with nested runs by hand."""
    import mlflow
    import optuna

    sampler = optuna.samplers.TPESampler(seed=sweep.search.seed)
    study = optuna.create_study(
        storage="sqlite:///optuna.db", sampler=sampler, study_name=sweep.name, direction="maximize"
    )
    optimize = partial(study.optimize, n_trials=sweep.search.trials, n_jobs=JOBS)

    def objective(trial: optuna.Trial) -> float:
        for epoch in train(config(sweep, trial), pick_device()):
            for name, value in metrics(epoch).items():
                mlflow.log_metric(name, value, step=epoch.number)
        return epoch.val_accuracy

    def in_a_run(trial: optuna.Trial) -> float:
        with mlflow.start_run(run_name=str(trial.number), nested=True, parent_run_id=parent.info.run_id):
            value = objective(trial)
            mlflow.log_params(trial.params)
            return value

    if callback:
        from optuna_integration import MLflowCallback

        log = MLflowCallback(TRACKING, mlflow_kwargs={"nested": True})
        optimize(log.track_in_mlflow()(objective), callbacks=[log])
    else:
        mlflow.set_tracking_uri(TRACKING)
        mlflow.set_experiment(sweep.name)
        with mlflow.start_run(run_name=sweep.name) as parent:
            optimize(in_a_run)


def suggest(sweep: Sweep, trial: Suggester) -> None:
    """The space as OptunaSearch wants it; a function of the module, because Ray Tune pickles it as it goes."""
    sweep.schedules.sample(trial)


def with_ray(sweep: Sweep) -> None:
    """Actors of one CPU, and of a share of the GPU where there is one."""
    import ray
    from optuna.trial import FixedTrial
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.optuna import OptunaSearch

    def trainable(suggested: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        for epoch in train(config(sweep, FixedTrial(suggested)), pick_device()):
            tune.report(metrics(epoch))

    search = OptunaSearch(partial(suggest, sweep), metric="val/accuracy", mode="max", seed=sweep.search.seed)
    log = MLflowLoggerCallback(TRACKING, experiment_name=sweep.name)
    resources = {"cpu": 1, "gpu": 1 / JOBS if torch.cuda.is_available() else 0}
    ray.init("local", include_dashboard=False, _node_ip_address="127.0.0.1")
    found = tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=search, num_samples=sweep.search.trials, max_concurrent_trials=JOBS, reuse_actors=True
        ),
        run_config=tune.RunConfig(storage_path=str(Path.cwd() / "ray"), callbacks=[log], verbose=0),
    ).fit()
    for error in found.errors:
        raise error


PEERS: dict[str, Callable[[Sweep], None]] = {
    "optuna": partial(with_optuna, callback=True),
    "optuna-threads": partial(with_optuna, callback=False),
    "ray": with_ray,
}

# --------------------------------------------------------------------------------------
# The race.


def measure(name: str, trials: int, epochs: int) -> dict[str, Any]:
    """Run a contender in a folder of its own.

    Raises:
        RuntimeError: it failed, or did not train every epoch of every trial.
    """
    ours = ["-m", "runner.sweep", *(["--engine", "reference"] if name == "reference" else [])]
    command = [sys.executable, *([__file__, "--peer", name] if name in PEERS else ours), "digits.yaml"]
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        spec = read(ROOT / "sweeps" / "digits.yaml").data
        spec["search"]["trials"], spec["train"]["epochs"] = trials, epochs
        spec["confirm"] = {"top": 0, "types": False}  # the peers confirm nothing either
        (here / "digits.yaml").write_text(json.dumps(spec))  # JSON is YAML
        (here / "mlflow.yaml").write_text("{}\n")
        with (here / "log.txt").open("w") as log:  # no pipe: what Ray leaves behind could keep it open
            start = time.perf_counter()
            status = subprocess.run(command, cwd=here, env=clean(), stdout=log, stderr=log, check=False)
            seconds = time.perf_counter() - start
        said = (here / "log.txt").read_text()
        if status.returncode != 0:
            raise RuntimeError(f"{name} ended with {status.returncode}:\n{said[-4000:]}")
        with closing(sqlite3.connect(here / "mlflow.db")) as database:
            *counts, best = database.execute(COUNT).fetchone()
    if counts != [trials, trials * epochs, trials * epochs]:
        raise RuntimeError(f"{name} logged {counts} trials, epochs and values:\n{said[-4000:]}")
    engine = next((line.strip() for line in said.splitlines() if "engine: " in line), None)  # ours says so
    return {"seconds": seconds, "trials": counts[0], "epochs": counts[1], "best": best, "engine": engine}


def clean() -> dict[str, str]:
    """No settings of the user's, no telemetry, and no token that Ray would write to the home folder."""
    own = {k: v for k, v in environment().items() if not k.startswith(("MLFLOW_", "RUNNER_", "RAY_"))}
    said = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_TOKEN": secrets.token_hex(), "MLFLOW_DISABLE_TELEMETRY": "true"}
    return own | said


def summary(seen: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Times, ratios round by round (above 1: slower), and what was trained."""
    times = {name: [run["seconds"] for run in runs] for name, runs in seen.items()}
    return {
        name: {
            "how": CONTENDERS[name],
            "engine": "the plain loop" if name in PEERS else runs[-1]["engine"],
            "seconds": spread(times[name]),
            **{
                f"ratio_to_{base}": spread([a / b for a, b in zip(times[name], times[base], strict=True)])
                for base in ("ours", "reference")
                if base in times and base != name
            },
            "trials_in_mlflow": runs[-1]["trials"],
            "epochs_in_mlflow": runs[-1]["epochs"],
            "best_val_accuracy": [run["best"] for run in runs],
        }
        for name, runs in seen.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("--trials", 12), ("--epochs", 5), ("--repeats", 5)):
        parser.add_argument(option, type=int, default=default, help=f"default: {default}")
    parser.add_argument(
        "--only", nargs="+", choices=CONTENDERS, default=DEFAULT, help=f"default: {' '.join(DEFAULT)}"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.json")
    parser.add_argument("--peer", nargs=2, metavar=("PEER", "FILE"), help="be this peer, for the sweep of FILE")
    args = parser.parse_args()
    if args.peer:
        peer, file = args.peer
        PEERS[peer](load_sweep(file)[0])
        return
    facts = {
        "what": "a whole sweep of sweeps/digits.yaml, from the start of its process to its exit",
        "device": str(pick_device()),
        "trials": args.trials,
        "epochs": args.epochs,
        **{p: importlib.metadata.version(p) for name, p in PACKAGES.items() if name in args.only},
    }
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in args.only}
    for _ in range(args.repeats):
        for name in args.only:
            seen[name].append(measure(name, args.trials, args.epochs))
            print(f"{name}: {seen[name][-1]['seconds']:.1f} s", file=sys.stderr)
        save(args.out, facts | {"contenders": summary(seen)})  # after every round: no failure costs the others
    print(args.out.read_text())


if __name__ == "__main__":
    main()
