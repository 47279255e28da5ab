"""The trials of a sweep as pandas tables, tables as text and files, and the best schedules as code."""

from __future__ import annotations

import csv
import json
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
from pydantic_core import to_jsonable_python

from ..files.document import SpecError, printable
from ..files.optimizers import OPTIMIZERS
from ..files.space import OWN_WARMUP
from ..files.sweep_file import ACCURACY, Objective, OwnTraining
from ..files.trial import Record, best_first, label
from ..schedules.codegen import code
from ..schedules.schedule import load, summary
from ..schedules.zoo import TYPES
from ..study.confirm import Rows

SHARED = ("init_lr", "warmup", "clock", "interval", "floor")
CONFIRMED = {
    **dict.fromkeys(["mean", "deviation", "low", "high", "behind", "behind_low", "behind_high"], "Float64"),
    **dict.fromkeys(["behind_seeds", "seeds"], "Int64"),
    "in_set": "boolean",
    "best_of_type": "boolean",
    **dict.fromkeys(["test_accuracy", "test_low", "test_high"], "Float64"),
}
"""What fresh seeds gave: columns of the best table, where a sweep was confirmed."""
FORMATS = {".csv": "csv", ".parquet": "parquet", ".json": "json", ".md": "markdown"}
"""What a file's suffix says of the table in it."""


def best_table(
    records: Sequence[Record], objective: Objective = ACCURACY, top: int | None = None, confirmed: Rows = ()
) -> pd.DataFrame:
    """The complete trials in the order of ``best_first``, with what fresh seeds gave."""
    best = best_first(records, objective.sign, confirmed)[:top]
    table = trials_table(best, objective).drop(columns=["outcome", "cause"])
    table.insert(0, "rank", range(1, len(table) + 1))
    rows = {row["trial"]: row for row in confirmed}
    for i, (name, kind) in enumerate(CONFIRMED.items() if confirmed else ()):
        column = [rows.get(int(n), {}).get(name) for n in table["trial"]]
        table.insert(list(table).index("objective") + 2 + i, name, pd.Series(column, dtype=cast(Any, kind)))
    return table


def trials_table(records: Sequence[Record], objective: Objective = ACCURACY) -> pd.DataFrame:
    """Every trial of a sweep, in its own types. What was measured stands in a column of its own: the last number of
    the validation accuracy where trials have one, and of the objective's metric."""
    params = [_params(r.schedule) for r in records]
    names = dict.fromkeys(name for own in params for name in own)
    searched = {name: [own.get(name) for own in params] for name in names}
    wanted = dict.fromkeys(["val/accuracy", objective.metric])
    measured = {m: [_last(r.values(m)) for r in records] for m in wanted}
    columns: dict[str, tuple[Any, list[Any]]] = {
        "trial": ("Int64", [r.number for r in records]),
        "name": ("string", [r.name for r in records]),
        "type": ("string", [r.schedule["type"] for r in records]),
        "outcome": ("string", [r.outcome or "running" for r in records]),
        "objective": ("Float64", [r.value for r in records]),
        **{
            metric.replace("/", "_"): ("Float64", values)
            for metric, values in measured.items()
            if metric == objective.metric or any(value is not None for value in values)
        },
        **{name: (_dtype(values), values) for name, values in searched.items()},
        "epochs": ("Int64", [len(r.epochs) for r in records]),
        "seconds": ("Float64", [r.seconds for r in records]),
        "run_id": ("string", [r.run_id for r in records]),
        "cause": ("string", [r.cause for r in records]),
        "schedule": ("string", [json.dumps(r.schedule) for r in records]),
        "lr": ("object", [[e["lr"] for e in r.epochs] for r in records]),
    }
    return pd.DataFrame({name: pd.Series(values, dtype=dtype) for name, (dtype, values) in columns.items()})


def _last(values: Sequence[float]) -> float | None:
    """The last number among them."""
    return next((value for value in reversed(values) if not math.isnan(value)), None)


def trainings_table(records: Sequence[Record], objective: Objective = ACCURACY) -> pd.DataFrame:
    """Every training of a sweep: of its search, its rungs and its fresh seeds.

    ``trials_table`` with the ``stage`` (empty for the search), what a training repeats (``arm``), its ``seed`` where
    that is a fresh one, and its ``test_accuracy`` then.
    """
    table = trials_table(records, objective)
    table.insert(0, "stage", pd.Series([r.stage for r in records], dtype="string"))
    table.insert(2, "arm", pd.Series([r.arm for r in records], dtype="string"))
    table.insert(3, "seed", pd.Series([r.train.get("seed") for r in records], dtype="Int64"))
    tests = [r.epochs[-1].get("test/accuracy") if r.epochs else None for r in records]
    table.insert(list(table).index("objective") + 2, "test_accuracy", pd.Series(tests, dtype="Float64"))
    return table


def epochs_table(records: Sequence[Record]) -> pd.DataFrame:
    """Every epoch of every trial: the curves, one row per (trial, epoch)."""
    rows = [{"trial": r.number, "name": r.name, "type": r.schedule["type"], **e} for r in records for e in r.epochs]
    table = pd.DataFrame(rows).rename(columns=lambda name: name.replace("/", "_"))
    types = {"trial": "int64", "epoch": "int64", "timestamp": "int64", "name": "string", "type": "string"}
    return table.astype({k: v for k, v in types.items() if k in table.columns})


def _params(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a schedule's own: a value each, or its JSON."""
    params: dict[str, Any] = {name: schedule[name] for name in SHARED if name in schedule}
    warmup = schedule["warmup"]
    params["warmup"] = warmup["fraction"] if "fraction" in warmup else json.dumps(warmup)
    own = {name: value for name, value in schedule.items() if name not in ("type", *SHARED)}
    if schedule["type"] == "custom":  # its names are its author's
        own = {f"params.{name}": value for name, value in schedule["params"].items()}
    return params | {n: json.dumps(v) if isinstance(v, (list, dict)) else v for n, v in own.items()}


def _dtype(values: Sequence[Any]) -> str:
    """The column's own type: 0.0 stays a float and 3 a whole number, missing values or not."""
    kinds = {type(v) for v in values if v is not None}
    if kinds == {bool}:
        return "boolean"
    if kinds == {int}:
        return "Int64"
    return "Float64" if kinds <= {int, float} else "string"


def spreadsheet_safe(text: str) -> str:
    """``text`` as a cell that no spreadsheet takes for a formula, on any of its lines."""
    plain = unicodedata.normalize("NFKC", text)
    risky = re.search(r"(?:\A|[\r\n])[\s\u200b\ufeff]*[=+\-@]", plain) or text[:1] in ("\t", "\r", "\n")
    return f"'{text}" if risky else text


def write(table: pd.DataFrame, kind: str, path: Path | None) -> str | None:
    """``table`` as csv, parquet, json or markdown, into ``path`` or as text; SpecError for parquet without a path."""
    if kind == "parquet":
        if path is None:
            raise SpecError("parquet is not text: name a file with --out")
        return print_or_write(table.to_parquet(index=False), path)
    if kind == "csv":
        safe = table.map(_cell).rename(columns=spreadsheet_safe)
        text = safe.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    elif kind == "json":
        rows = [{k: None if _missing(v) else v for k, v in row.items()} for row in table.to_dict(orient="records")]
        text = json.dumps(to_jsonable_python(rows, inf_nan_mode="null"), indent=1) + "\n"
    else:
        text = markdown(table)
    return print_or_write(text, path)


def print_or_write(text: str | bytes, path: Path | None) -> str | None:
    """``text``, or None once it is in the file that is named."""
    if path is None:
        return str(text)
    try:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    except OSError as error:
        raise SpecError(f"{path} cannot be written: {error.strerror}") from None
    return None


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return json.dumps(value)
    return spreadsheet_safe(value) if isinstance(value, str) else value


def markdown(table: pd.DataFrame, text: Callable[[str], str] = str, without: Collection[str] = ()) -> str:
    """A table for people: four digits, and what a type alone has in one column; epochs as they are.

    What fresh seeds gave stands before what one seed did. ``text`` is put around every cell that is text, to escape
    it for where it is shown; columns ``without`` which there is more room are left out.
    """
    rows: list[Any] = for_people(table) if "schedule" in table.columns else table.to_dict(orient="records")
    names = [name for name in rows[0] if name not in without] if rows else []
    cells = [[text(_cell_text(row[name]).replace("|", "/")) for name in names] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in [names, ["---"] * len(names), *cells])


def for_people(table: pd.DataFrame) -> list[dict[str, str]]:
    """The rows of a table of trials as people read them, by column."""
    rows = table.to_dict(orient="records")
    seen = defaultdict[tuple[str, str], set[str]](set)
    for row in rows:
        for key, value in json.loads(row["schedule"]).items():
            seen[row["name"], key].add(json.dumps(value))
    searched = {key for key, values in seen.items() if len(values) > 1}  # and shown, be it a default here
    shown = [_shown(row, {key for name, key in searched if name == row["name"]}) for row in rows]
    without = {"test"} if all(_missing(row.get("test")) for row in shown) else set[str]()
    return [{name: _cell_text(value) for name, value in row.items() if name not in without} for row in shown]


def _shown(row: Mapping[Any, Any], searched: Collection[str]) -> dict[str, Any]:
    schedule = json.loads(row["schedule"])
    shown = {name: row[name] for name in ("rank", "trial") if name in row}
    shown["schedule"] = label(row["name"], schedule["type"])
    if "outcome" in row:
        shown["outcome"] = row["outcome"]
    if "mean" in row:
        again = not _missing(row["mean"])
        wide = "" if _missing(row["low"]) else f" ± {round(row['mean'] - row['low'], 12):.2g}"
        shown["mean ± 95 %"] = f"{row['mean']:.4g}{wide}" if again else ""
        shown["may be best"] = ("yes" if row["in_set"] else _behind(row)) if again else ""
        shown |= {"seeds": int(row["seeds"]) if again else "", "test": row["test_accuracy"]}
    shown |= {"one seed": row["objective"], "init_lr": row["init_lr"], "warmup": row["warmup"]}
    if schedule["type"] in OWN_WARMUP and row["warmup"] in (0, "0"):
        shown["warmup"] = "own"
    return shown | {"with": summary(schedule, searched)}


def _behind(row: Mapping[Any, Any]) -> str:
    """How far a schedule is behind; by how many seeds, where that is not all it got."""
    fewer = f" after {row['behind_seeds']} seeds" * (row["behind_seeds"] != row["seeds"])
    return f"{row['behind']:.2g} behind{fewer}"


def _cell_text(value: Any) -> str:
    return "" if _missing(value) else f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def code_of(
    record: Record,
    facts: Mapping[str, Any],
    updates: int | None = None,
    epochs: int | None = None,
    allow: Sequence[str] = (),
    library: str = "torch",
) -> str:
    """Code of a trial's schedule, below a comment that says with what it was found, and how sure that is; SpecError
    where that library cannot do it. Its length is that of the training that it is pasted into, or ``epochs`` of so
    many ``updates``."""
    found, optimizer = _found_on(facts["science"])
    judged_by = Objective(**facts["science"]["objective"])
    found += _sure(record, facts["confirmed"], facts.get("decided", True))
    comment = f"# {printable(found)}; for another training try its init_lr again".replace("\n", " ")
    length = None if updates is None or epochs is None else updates * epochs
    try:
        schedule = load(record.schedule, allow=allow)
        metric = judged_by.metric, judged_by.direction
        form = code(schedule, length, epochs=epochs, library=library, optimizer=optimizer, metric=metric)
        return f"{comment}\n{form}"
    except ValueError as error:
        raise SpecError(str(error)) from None


def _found_on(science: Mapping[str, Any]) -> tuple[str, tuple[str, Mapping[str, Any]] | None]:
    """With what a schedule was found, in words, and with which optimizer, where that is known."""
    train = science["train"]
    if "data" not in science:
        return f"found with {OwnTraining(**train).said}, {train['epochs']} epochs: ", None
    data, model, kind = science["data"], science["model"], OPTIMIZERS[train["optimizer"]]
    images = data["path"] or data["function"] or data["source"]
    found = f"found on {images} with {model['function'] or model['name']}, {train['optimizer']}, "
    found += f"batches of {train['batch_size']}, {train['epochs']} epochs: "
    return found, (kind.name, kind.arguments(train))


def _sure(record: Record, confirmed: Rows, decided: bool = True) -> str:
    """How sure it is that a trial's schedule is the best."""
    alike = sum(bool(row["in_set"]) for row in confirmed)
    row = next((row for row in confirmed if row["trial"] == record.number), None)
    if row is None:
        return "with one seed, and not trained again with fresh ones"
    if row["mean"] is None:
        return "not every fresh seed of it came to its end, no answer to rely on"
    if not decided:
        return "the comparison with fresh seeds has not ended, and nothing is decided"
    if not row["in_set"]:
        behind = f"{row['behind']:.2g} behind the best with {row['behind_seeds']} fresh seeds"
        return f"{behind}, not among those that may be the best ({alike} of {len(confirmed)})"
    if alike > 1:
        return f"one of {alike} that may be the best and could not be told apart"
    return f"the best of {len(confirmed)} with 95 % confidence"


assert set(SHARED).isdisjoint(name for kind in TYPES.values() for name in kind.params)
