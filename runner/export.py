"""The best schedules as pandas tables and as PyTorch code.

python -m runner.export                          the best schedules of sweeps/digits.yaml, as a table
python -m runner.export cifar10 --top 5 --format csv
python -m runner.export cifar10 --code 1         PyTorch code of the winner, to paste
python -m runner.export cifar10 --code 1 --epochs 90 --updates 500     for a longer training, of 500 batches per epoch
python -m runner.export cifar10 --code 1 --for lightning     as configure_optimizers; also transformers, timm
python -m runner.export cifar10 --table epochs --out epochs.parquet
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
from pydantic_core import to_jsonable_python

from .codegen import LIBRARIES
from .document import SpecError, printable
from .document import read as read_yaml
from .place import Place, load_place
from .schedules import load, summary
from .space import NAME, OWN_WARMUP
from .spec import Record, best_first
from .stop import leave
from .zoo import TYPES

if TYPE_CHECKING:
    from .study import Study

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


def best_schedules(sweep: str = "digits", *, top: int | None = None, mlflow_yaml: str | None = None) -> pd.DataFrame:
    """The finished trials of a sweep, best first.

    Args:
        sweep: the sweep's name (its file's, without .yaml).
        top: how many; all by default.
        mlflow_yaml: the place; ``mlflow.yaml`` in the current folder by default.

    Returns:
        One row per trial: ``rank``, ``trial``, ``name``, ``type``, ``objective``, ``val_accuracy``, every parameter
        in its own type (missing where the type has none), ``epochs``, ``seconds``, ``run_id``, ``schedule`` (JSON for
        ``runner.schedules.load(json.loads(...))``) and ``lr`` (the learning rate that each epoch began with). Where
        the best were confirmed with fresh seeds they come first, and have: ``mean``, ``deviation``, 95 % interval
        (``low``, ``high``) and number of ``seeds`` of the objective; how far they are ``behind`` the best of them,
        with a simultaneous interval (``behind_low``, ``behind_high``), as found with ``behind_seeds`` seeds, while
        the means are of all; ``in_set``, whether they may be the best; ``best_of_type``, whether the search had none
        better of that schedule; and the mean ``test_accuracy`` of the last epoch's weights with its 95 % interval
        (``test_low``, ``test_high``). Without the study's storage MLflow's record of the search is all there is, and
        a UserWarning says so.

    Raises:
        SpecError: there is no such sweep, neither in the study's storage nor in MLflow.
    """
    facts, records = read(sweep, load_place(mlflow_yaml))
    if "missing" in facts:
        warnings.warn(facts["missing"], stacklevel=2)
    return best_table(records, facts["sign"], top, facts.get("confirmed", ()))


def read(sweep: str, place: Place) -> tuple[dict[str, Any], list[Record]]:
    """A sweep's facts and trials, from the study's own typed history where it is at hand, else from MLflow.

    ``missing``, of MLflow's: what was not at hand, and what these facts therefore lack.
    """
    from .study import load_study

    try:
        facts, records = load_study(sweep, place.storage)
        objective = facts["science"]["objective"]["metric"]
    except SpecError as missing:
        from .tracking import read_records

        try:
            facts, records = read_records(place, sweep)
        except SpecError as error:
            raise SpecError(f"{missing}; {error}") from None
        lack = "this is MLflow's record of the search, one seed each: what fresh seeds gave is not in it"
        return facts | {"missing": f"{missing}; {lack}"}, records
    # of a study that was reported before rows said by how many seeds
    rows = [{"behind_seeds": row.get("seeds"), **row} for row in facts.get("confirmed", ())]
    return facts | {"sign": 1 if objective == "val/accuracy" else -1, "confirmed": rows}, records


def best_table(
    records: Sequence[Record],
    sign: int = 1,
    top: int | None = None,
    confirmed: Sequence[Mapping[str, Any]] = (),
) -> pd.DataFrame:
    """The complete trials, best first: the confirmed ones before those that had one seed, by what fresh seeds gave.

    Ties stay in the order in which they were tried.
    """
    done = best_first(records, sign, confirmed)
    table = trials_table(done[:top]).drop(columns=["outcome", "cause"])
    table.insert(0, "rank", range(1, len(table) + 1))
    rows = {row["trial"]: row for row in confirmed}
    for i, (name, kind) in enumerate(CONFIRMED.items() if confirmed else ()):
        column = [rows.get(int(n), {}).get(name) for n in table["trial"]]
        table.insert(7 + i, name, pd.Series(column, dtype=cast(Any, kind)))
    return table


def trials_table(records: Sequence[Record]) -> pd.DataFrame:
    """Every trial of a sweep, in its own types."""
    params = [_params(r.schedule) for r in records]
    names = dict.fromkeys(name for own in params for name in own)
    searched = {name: [own.get(name) for own in params] for name in names}
    columns: dict[str, tuple[Any, list[Any]]] = {
        "trial": ("Int64", [r.number for r in records]),
        "name": ("string", [r.name for r in records]),
        "type": ("string", [r.schedule["type"] for r in records]),
        "outcome": ("string", [r.outcome or "running" for r in records]),
        "objective": ("Float64", [r.value for r in records]),
        "val_accuracy": ("Float64", [_accuracy(r) for r in records]),
        **{name: (_dtype(values), values) for name, values in searched.items()},
        "epochs": ("Int64", [len(r.epochs) for r in records]),
        "seconds": ("Float64", [r.seconds for r in records]),
        "run_id": ("string", [r.run_id for r in records]),
        "cause": ("string", [r.cause for r in records]),
        "schedule": ("string", [json.dumps(r.schedule) for r in records]),
        "lr": ("object", [[e["lr"] for e in r.epochs] for r in records]),
    }
    return pd.DataFrame({name: pd.Series(values, dtype=dtype) for name, (dtype, values) in columns.items()})


def trainings_table(records: Sequence[Record]) -> pd.DataFrame:
    """Every training of a sweep: of its search, its rungs and its fresh seeds.

    ``trials_table`` with the ``stage`` (empty for the search), what a training repeats (``arm``), its ``seed`` where
    that is a fresh one, and its ``test_accuracy`` then.
    """
    table = trials_table(records)
    table.insert(0, "stage", pd.Series([r.stage for r in records], dtype="string"))
    table.insert(2, "arm", pd.Series([r.arm for r in records], dtype="string"))
    table.insert(3, "seed", pd.Series([r.train.get("seed") for r in records], dtype="Int64"))
    tests = [r.epochs[-1].get("test/accuracy") if r.epochs else None for r in records]
    table.insert(list(table).index("val_accuracy") + 1, "test_accuracy", pd.Series(tests, dtype="Float64"))
    return table


def epochs_table(records: Sequence[Record]) -> pd.DataFrame:
    """Every epoch of every trial: the curves, one row per (trial, epoch)."""
    rows = [
        {
            "trial": r.number,
            "name": r.name,
            "type": r.schedule["type"],
            **{k.replace("/", "_"): v for k, v in e.items()},
        }
        for r in records
        for e in r.epochs
    ]
    table = pd.DataFrame(rows)
    types = {"trial": "int64", "epoch": "int64", "timestamp": "int64", "name": "string", "type": "string"}
    return table.astype({k: v for k, v in types.items() if k in table.columns})


def _accuracy(record: Record) -> float | None:
    """The last that is a number."""
    return next((a for a in reversed(record.history) if not math.isnan(a)), None)


def _params(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a schedule's own: a value each, or its JSON."""
    params: dict[str, Any] = {name: schedule[name] for name in SHARED if name in schedule}
    warmup = schedule["warmup"]
    params["warmup"] = warmup["fraction"] if "fraction" in warmup else json.dumps(warmup)
    known = schedule
    if schedule["type"] == "custom":  # its names are its author's
        known = {f"params.{name}": value for name, value in schedule["params"].items()}
    for name, value in known.items():
        if name not in ("type", *SHARED):
            params[name] = json.dumps(value) if isinstance(value, (list, dict)) else value
    return params


def _dtype(values: Sequence[Any]) -> str:
    """The column's own type: 0.0 stays a float and 3 a whole number, missing values or not."""
    kinds = {type(v) for v in values if v is not None}
    if kinds == {bool}:
        return "boolean"
    if kinds == {int}:
        return "Int64"
    return "Float64" if kinds <= {int, float} else "string"


def code(
    record: Record,
    facts: Mapping[str, Any],
    updates: int,
    epochs: int,
    allow: Sequence[str] = (),
    library: str = "torch",
) -> str:
    """Code of a trial's schedule, for a training of so many epochs of so many updates, below comments that say how it
    was found, and how sure that is.

    Raises:
        SpecError: that library cannot do it.
    """
    science, train, said = facts.get("science"), None, ""  # MLflow alone does not say how trials were trained
    if science:
        train = science["train"]
        said = _sure(record, facts.get("confirmed", ()))
        said += f"# found with {train['optimizer']}, batches of {train['batch_size']}, {train['epochs']} epochs of "
        said += f"{_named(science['data'])}: for another training try its init_lr again\n"
    try:
        schedule = load(record.schedule, allow=allow)
        return said + schedule.code(updates * epochs, epochs=epochs, library=library, recipe=train)
    except ValueError as error:
        raise SpecError(str(error)) from None


def _sure(record: Record, confirmed: Sequence[Mapping[str, Any]]) -> str:
    """How sure it is that a trial's schedule is the best, as a comment; of the only one that may be, nothing."""
    alike = sum(bool(row["in_set"]) for row in confirmed)
    row = next((row for row in confirmed if row["trial"] == record.number), None)
    if row is None:
        return "# found with one seed, and not trained again with fresh ones\n"
    if row["mean"] is None:
        return "# not every fresh seed of it came to its end: no answer to rely on\n"
    if not row["in_set"]:
        behind = f"{row['behind']:.2g} behind the best with {row['behind_seeds']} fresh seeds"
        return f"# {behind}: it is not among those that may be the best ({alike} of {len(confirmed)})\n"
    return f"# any of {alike} schedules, this one too, may be the best: they could not be told apart\n" * (alike > 1)


def _named(data: Mapping[str, Any]) -> str:
    """What a person calls the data, on one line."""
    return printable(data["path"] or data["function"] or data["source"]).replace("\n", " ")


# --------------------------------------------------------------------------------------
# Files.


def spreadsheet_safe(text: str) -> str:
    """``text`` as a cell that no spreadsheet takes for a formula, on any of its lines."""
    plain = unicodedata.normalize("NFKC", text)
    risky = re.search(r"(?:\A|[\r\n])[\s\u200b\ufeff]*[=+\-@]", plain) or text[:1] in ("\t", "\r", "\n")
    return f"'{text}" if risky else text


def write(table: pd.DataFrame, kind: str, path: Path | None) -> str | None:
    """``table`` as csv, parquet, json or markdown, into ``path`` or as text.

    Raises:
        SpecError: parquet without a path.
    """
    if kind == "parquet":
        if path is None:
            raise SpecError("parquet is not text: name a file with --out")
        return _printed(table.to_parquet(index=False), path)
    if kind == "csv":
        safe = table.map(_cell).rename(columns=spreadsheet_safe)
        text = safe.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    elif kind == "json":
        rows = [{k: None if _missing(v) else v for k, v in row.items()} for row in table.to_dict(orient="records")]
        text = json.dumps(to_jsonable_python(rows, inf_nan_mode="null"), indent=1) + "\n"
    else:
        text = markdown(table)
    return _printed(text, path)


def _printed(text: str | bytes, path: Path | None) -> str | None:
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


def markdown(table: pd.DataFrame, text: Callable[[str], str] = str) -> str:
    """A table for people: four digits, and what a type alone has in one column; epochs as they are.

    What fresh seeds gave stands before what one seed did. ``text`` is put around every cell that is text, to escape
    it for where it is shown.
    """
    rows: list[Any] = for_people(table) if "schedule" in table.columns else table.to_dict(orient="records")
    names = list(rows[0]) if rows else []
    cells = [[text(_cell_text(value).replace("|", "/")) for value in row.values()] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in [names, ["---"] * len(names), *cells])


def for_people(table: pd.DataFrame) -> list[dict[str, str]]:
    """The rows of a table of trials as people read them, by column."""
    rows = table.to_dict(orient="records")
    seen = defaultdict[tuple[str, str], set[str]](set)
    for row in rows:
        for key, value in json.loads(row["schedule"]).items():
            seen[row["name"], key].add(json.dumps(value))
    searched = {key for key, values in seen.items() if len(values) > 1}  # and shown, be it a default here
    shown = (_shown(row, {key for name, key in searched if name == row["name"]}) for row in rows)
    return [{name: _cell_text(value) for name, value in row.items()} for row in shown]


def _shown(row: Mapping[Any, Any], searched: Collection[str]) -> dict[str, Any]:
    schedule = json.loads(row["schedule"])
    shown = {name: row[name] for name in ("rank", "trial") if name in row} | {"schedule": row["name"]}
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


# --------------------------------------------------------------------------------------
# The command.


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m runner.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", nargs="?", default="digits", help="the sweep's name or file (default: digits)")
    parser.add_argument("--table", choices=["best", "trials", "epochs"], default="best", help="which table")
    parser.add_argument("--top", type=int, metavar="K", help="the K best only")
    parser.add_argument("--format", choices=list(FORMATS.values()), help="default: as --out ends, or markdown")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there instead of to the terminal")
    parser.add_argument("--code", type=int, metavar="K", help="print PyTorch code of the K-th best schedule")
    parser.add_argument(
        "--for",
        dest="library",
        choices=LIBRARIES,
        default="torch",
        help="with --code: whose training loop (default: torch)",
    )
    for what, said in (("epochs", "epochs"), ("updates", "updates, that is batches, in each epoch")):
        parser.add_argument(
            f"--{what}", type=int, metavar="N", help=f"with --code: for N {said} (default: the sweep's)"
        )
    parser.add_argument("--mlflow", metavar="FILE", help="the place (default: mlflow.yaml)")
    parser.add_argument("--allow-plugin", action="append", default=[], metavar="PACKAGE.", help="see runner.sweep")
    args = parser.parse_args(argv)
    try:
        return _export(args)
    except SpecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _export(args: argparse.Namespace) -> int:
    for name in ("top", "code", "epochs", "updates"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise SpecError(f"--{name} counts from 1, not {getattr(args, name)}")
    about_code = {"--epochs": args.epochs, "--updates": args.updates, "--for": args.library != LIBRARIES[0]}
    about_tables = {"--format": args.format, "--top": args.top, "--table": args.table != "best"}
    idle = [option for option, given in (about_code if args.code is None else about_tables).items() if given]
    if idle and args.code is None:
        raise SpecError(f"{', '.join(idle)}: only with --code, which says of which schedule")
    if idle:
        raise SpecError(f"{', '.join(idle)}: only for a table, and --code {args.code} is the Python of one schedule")
    name = args.sweep
    if name.endswith((".yaml", ".yml")):
        name = str(read_yaml(name).data.get("name", Path(name).stem))
    if not re.fullmatch(NAME, name):
        raise SpecError("a sweep's name has letters (a to z), digits, dots, dashes and underscores only")
    facts, records = read(name, load_place(args.mlflow))
    if "missing" in facts:
        print(f"warning: {facts['missing']}", file=sys.stderr)
    best = best_table(records, facts["sign"], confirmed=facts.get("confirmed", ()))
    if args.code is not None:
        if args.code > len(best):
            raise SpecError(f"--code {args.code}: the sweep has {len(best)} finished trials")
        record = best_first(records, facts["sign"], facts.get("confirmed", ()))[args.code - 1]
        updates, epochs = args.updates or facts["updates_per_epoch"], args.epochs or len(record.epochs)
        text = _printed(code(record, facts, updates, epochs, args.allow_plugin, args.library), args.out)
    else:
        kind = _kind(args.out, args.format)
        first = best["trial"][: args.top].tolist()
        some = records if args.top is None else [r for r in records if r.number in first]
        tables = {
            "best": lambda: best[: args.top],
            "trials": lambda: trials_table(some),
            "epochs": lambda: epochs_table(some),
        }
        text = write(tables[args.table](), kind, args.out)
        asked = args.table == "best" and kind == "markdown"
        if text is not None and asked:  # by a person, who asks what it means
            text += "".join(f"\n{line}\n" for line in facts.get("answer", ()))
    if text is not None:
        sys.stdout.write(text)
    return 0


def _kind(out: Path | None, wanted: str | None) -> str:
    """The format that is wanted, or that a file's suffix asks for; of a terminal and a bare name, Markdown.

    Raises:
        SpecError: nobody knows that suffix, or it is another format's.
    """
    suffix = out.suffix.lower() if out else ""
    meant = FORMATS.get(suffix)
    if suffix and not (meant or wanted):
        raise SpecError(f"--out {out}: a table ends in one of {', '.join(FORMATS)}, or has its --format")
    if meant and wanted not in (None, meant):
        raise SpecError(f"--out {out} is {meant}, and --format asks for {wanted}")
    return wanted or meant or "markdown"


def result_files(folder: Path, study: Study, trainings: Sequence[Record]) -> dict[str, Path]:
    """Write the tables, the first one's JSON and its code into ``folder``; the paths by name."""
    facts, records, sign = study.facts, study.ended(), study.sweep.objective.sign
    best = best_table(records, sign, confirmed=facts["confirmed"])
    tables = {
        "best_schedules.csv": best,
        "best_schedules.parquet": best,
        "trials.csv": trials_table(records),
        "epochs.csv": epochs_table(records),
        "trainings.csv": trainings_table(trainings),
    }
    for name, table in tables.items():
        write(table, name.partition(".")[2], folder / name)
    texts = {}
    if first := best_first(records, sign, facts["confirmed"])[:1]:
        texts["best_schedule.json"] = json.dumps(dict(first[0].schedule), indent=1) + "\n"
        texts["best_schedule.py"] = code(first[0], facts, facts["updates_per_epoch"], study.epochs, study.allow)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return {name: folder / name for name in [*tables, *texts]}


assert set(SHARED).isdisjoint(name for kind in TYPES.values() for name in kind.params)

if __name__ == "__main__":
    leave(main)
