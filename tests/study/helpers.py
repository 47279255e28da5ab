"""Made-up trials, confirmations and rows of their tables."""

import math

from runner.files.trial import Record
from runner.schedules import load
from runner.study.confirm import (
    Confirmation,
)


def searched(*values: float, names="ab", first=0) -> list[Record]:
    """Complete trials with these values, of two schedules in turn."""
    return [
        Record(
            first + i,
            names[i % len(names)],
            load({"type": "cosine", "init_lr": 0.01 * (i + 1)}).to_json(),
            {"n": i},
            "complete",
            v,
        )
        for i, v in enumerate(values)
    ]


def trial_of(name: str, number: int, value: float | None, init_lr: float = 0.05, outcome="complete") -> Record:
    schedule = load({"type": name, "init_lr": init_lr}).to_json()
    epochs = ({"epoch": 0, "lr": init_lr, "val/accuracy": value or 0.1, "seconds": 1.0, "timestamp": 1},)
    return Record(number, name, schedule, {"init_lr": init_lr}, outcome, value, epochs)


def confirmed(sweep_, path, chosen, outcome) -> Confirmation:
    """Carry a confirmation out on ``sqlite``, in which ``outcome(arm, seed)`` is what a training gives."""
    study = Confirmation(sweep_, f"sqlite:///{path}", chosen, updates=4)
    while (record := study.next()) is not None:
        value = outcome(record.arm, record.train["seed"])
        metrics = {"val/accuracy": value, "val/loss": value, "seconds": 1.0, "lr": 0.1, "test/accuracy": value - 0.01}
        study.commit(record.number, 0, metrics)
        study.tell(record.number, "complete" if math.isfinite(value) else "diverged")
    return study


def row(trial: int, mean: float, in_set: bool = True, name: str = "cosine", **more):
    values = [mean - 0.01, mean, mean + 0.01]
    return {
        "trial": trial, "name": name, "type": name, "init_lr": 0.01, "seeds": 3, "values": values, "mean": mean,
        "deviation": 0.01, "low": mean - 0.02, "high": mean + 0.02, "behind": 0.9 - mean, "behind_low": 0.0,
        "behind_high": 0.95 - mean, "behind_seeds": 3, "in_set": in_set, "test_accuracy": mean, "best_of_type": True,
    } | more  # fmt: skip
