"""What a study's storage holds, read with its types: others can write there, and what they write runs nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..files.document import SpecError, first_line, printable
from ..files.space import BASELINE
from ..files.sweep_file import Data, Model, Objective, OwnTraining, Train
from ..files.trial import Engine, Record
from ..schedules.schedule import load
from ..schedules.zoo import ScheduleError

MEASURED = ("epoch", "timestamp", "lr", "seconds")
"""What every epoch on record has, and is read again."""
Number = float | int


class _Science(BaseModel):
    """What a study was begun with, as far as it is read again."""

    data: Data | None = None
    model: Model | None = None
    train: Train | OwnTraining
    objective: Objective
    search: dict[str, Any]


class _Row(BaseModel):
    """A row of the table of the confirmation."""

    model_config = ConfigDict(strict=True)
    trial: int
    name: str
    type: str
    mean: Number | None
    in_set: bool
    init_lr: Number
    seeds: int
    low: Number | None = None
    high: Number | None = None
    deviation: Number | None = None
    behind: Number | None = None
    behind_low: Number | None = None
    behind_high: Number | None = None
    behind_seeds: int | None = None
    best_of_type: bool | None = None
    baseline: bool = False
    test_accuracy: Number | None = None
    test_low: Number | None = None
    test_high: Number | None = None


class _Facts(BaseModel):
    """What is true of a study as a whole; every one may be lacking."""

    science: _Science | None = None
    engine: Engine | None = None
    updates_per_epoch: int = Field(1, ge=1)
    confirmed: list[_Row] = Field(default_factory=list)
    decided: bool = True
    answer: list[str] = Field(default_factory=list)
    noise: dict[str, Number] = Field(default_factory=dict)
    queue: dict[int, dict[str, Any]] = Field(default_factory=dict)
    id: str = ""
    cut: dict[str, tuple[int, int, str]] = Field(default_factory=dict)
    code: dict[str, str] = Field(default_factory=dict)


class _Attributes(BaseModel):
    """What a trial has beside its parameters."""

    name: str
    schedule: dict[str, Any]
    train: dict[str, int] = Field(default_factory=dict)
    arm: str | None = None
    outcome: Literal["complete", "diverged", "stopped", "failed"] | None = None
    cause: str | None = None
    epochs: list[dict[str, Number]] = Field(default_factory=list)
    updates: int | None = Field(None, ge=1)
    remark: str | None = None
    output: list[str] = Field(default_factory=list)
    used: dict[int, list[tuple[int, float]]] = Field(default_factory=dict)


def is_ours(trial: FrozenTrial) -> bool:
    """Whether a sweep has made a trial: other tools may ask and enqueue in the same study."""
    return "schedule" in trial.user_attrs


def trials_of(study: optuna.Study) -> list[FrozenTrial]:
    """All trials in a study, whoever made them; SpecError where they cannot be read."""
    try:
        return study.get_trials(deepcopy=False)
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        wrong = f"the study {study.study_name!r} has a trial that Optuna cannot read"
        raise SpecError(f"{wrong} ({type(error).__name__}: {first_line(error):.120})") from None


def facts_of(study: optuna.Study) -> dict[str, Any]:
    """What is on record of a study as a whole, without characters that could act; SpecError where it cannot be."""
    try:
        facts: dict[str, Any] = as_shown(study.user_attrs)
    except (ValueError, TypeError) as error:
        raise _edited(
            f"the study {study.study_name!r}", "attributes", f"cannot be read: {first_line(error)}"
        ) from None
    try:
        _Facts.model_validate(facts)
        for key, kind in (("science", Mapping), ("engine", Mapping)):
            if key in facts and not isinstance(facts[key], kind):
                raise _edited(f"the study {study.study_name!r}", key, "should be a mapping")
        if others := set(facts.get("engine", ())) - {field.name for field in fields(Engine)}:
            raise _edited(f"the study {study.study_name!r}", "engine", f"has {sorted(others)[0]}")
        for key, value in facts.items():
            if key.startswith("run:") and not isinstance(value, str):
                raise _edited(f"the study {study.study_name!r}", key, "should be text")
    except ValidationError as error:
        raise _invalid(f"the study {study.study_name!r}", error) from None
    return facts


def records_of(study: optuna.Study, trials: Iterable[FrozenTrial], facts: Mapping[str, Any]) -> list[Record]:
    """The trials that are a sweep's, as records; errors as in ``facts_of``."""
    stage = study.study_name.partition("@")[2]
    science = facts.get("science", {})
    own = "data" not in science  # whose epochs have what its author likes
    needed = () if own else ("val/accuracy", science["objective"]["metric"])
    ours = filter(is_ours, trials)
    return [record_of(trial, stage, facts.get(f"run:{trial.number}"), needed) for trial in ours]


def record_of(trial: FrozenTrial, stage: str, run_id: str | None = None, needed: Sequence[str] = ()) -> Record:
    """A sweep's trial as a record; ``needed``: metrics that every epoch on record has; errors as in ``facts_of``."""
    attrs: dict[str, Any] = as_shown(trial.user_attrs)
    what = f"trial {trial.number} of the study"
    epochs = [value for key, value in attrs.items() if key.startswith("epoch:")]
    try:
        found = _Attributes.model_validate({**attrs, "epochs": epochs, **facts_of_trial(attrs)})
        if not found.train.keys() <= {"seed", "epochs"}:
            raise _edited(what, "train", "may have seed and epochs")
        if "type" not in trial.params and not found.arm and (trial.params or found.name != BASELINE):
            raise _edited(what, "params", "lacks type")
        for entry in found.epochs:
            if lacking := [name for name in (*MEASURED, *needed) if name not in entry]:
                raise _edited(what, "epoch", f"lacks {lacking[0]}")
            for name in ("epoch", "timestamp"):
                if not (isinstance(entry[name], int) and 0 <= entry[name] < 2**53):
                    raise _edited(what, "epoch", f"{name} should be a whole number")
        if found.schedule.get("type") != "custom":
            load(found.schedule)
        elif not isinstance(found.schedule.get("function"), str) or "warmup" not in found.schedule:
            raise ScheduleError(["function"], "is no name of a function")
    except ValidationError as error:
        raise _invalid(what, error) from None
    except ScheduleError as error:
        raise _edited(what, ".".join(map(str, ("schedule", *error.key))), error.message) from None
    ended, outcome, cause = trial.state.is_finished(), found.outcome, found.cause
    if ended and outcome is None:
        outcome, cause = "failed", f"another program ended it ({trial.state.name})"
    return Record(
        number=trial.number,
        name=found.name,
        schedule=found.schedule,
        params=trial.params,
        outcome=outcome if ended else None,
        value=trial.values[0] if trial.state == TrialState.COMPLETE and trial.values else None,
        epochs=tuple(sorted(found.epochs, key=lambda e: e["epoch"])),
        run_id=run_id,
        cause=cause,
        stage=stage,
        train=found.train,
        arm=found.arm,
        updates=found.updates,
        used=found.used,
        remark=found.remark,
        output=tuple(found.output),
    )


def facts_of_trial(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """What an epoch has shown of its trial, under the names that ``Record`` has."""
    found = {key: attrs[key] for key in ("updates", "remark") if key in attrs}
    used = {int(key[4:]): value for key, value in attrs.items() if re.fullmatch("lrs:[0-9]{1,9}", key)}
    return found | ({"used": used} if used else {})


def as_shown(value: Any) -> Any:
    """``value`` with every text in it as it may be shown anywhere: no line breaks, nothing that moves a cursor."""
    if isinstance(value, str):
        return printable(value).replace("\n", "\\n")
    if isinstance(value, Mapping):
        return {as_shown(key): as_shown(inner) for key, inner in value.items()}
    return [as_shown(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _invalid(what: str, error: ValidationError) -> SpecError:
    first = error.errors()[0]
    return _edited(what, ".".join(map(str, first["loc"])), first["msg"][:1].lower() + first["msg"][1:])


def _edited(what: str, key: str, message: str) -> SpecError:
    wrong = f"{what} has been edited: its {key} is not what a sweep writes ({message})"
    return SpecError(f"{wrong}; put it right, or give this sweep another name")
