"""For a script that a sweep starts: what it is to train, and whom to tell.

from runner.job import job

scheduler = job.scheduler(optimizer, updates_per_epoch=len(loader))   # step() it after every update
for epoch in range(job.epoch, job.epochs):
    ...
    job.report({"val/dice": dice})
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .schedules.schedule import load
from .training.job import Job, Report
from .training.job import TrialStopped as TrialStopped

job: Job
"""The one of this process, made when it is first asked for."""


def from_environment() -> Job:
    """The job of this process; raises RuntimeError where no sweep has started it."""
    path = os.environ.get("RUNNER_JOB")
    if path is None:
        advice = "a sweep starts this script (train: {command: [python, script.py]}, python -m runner.sweep)"
        raise RuntimeError(f"RUNNER_JOB is not set: {advice}")
    given = json.loads(Path(path).read_text(encoding="utf-8"))
    out = Path(given["report"]).open("w", encoding="utf-8", buffering=1)  # noqa: SIM115, open as long as this process is

    def send(report: Report) -> None:
        state = report.state() if callable(report.state) else report.state
        said: dict[str, Any] = {"metrics": dict(report.metrics)}
        said |= {"lrs": list(report.lrs), "at": list(report.at)}
        said |= {"updates_per_epoch": report.updates_per_epoch, "epoch": report.epoch}
        out.write(json.dumps(said | ({} if state is None else {"state": state})) + "\n")
        out.flush()

    schedule = load(given["schedule"], allow=given["allow"])
    kept = {key: given[key] for key in ("sign", "metric", "epoch", "state", "history", "updates", "stands")}
    return Job(schedule, given["epochs"], given["seed"], given["device"], Path(given["folder"]), send, **kept)


def __getattr__(name: str) -> Job:
    if name != "job":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["job"] = made = from_environment()
    return made
