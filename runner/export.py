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
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from . import cli
from .files.document import SpecError, read
from .files.place import load_place
from .files.space import name_fault
from .files.trial import best_first
from .lanes.stop import exit_with
from .results.tables import FORMATS, best_table, code_of, epochs_table, print_or_write, trials_table, write
from .schedules.codegen import LIBRARIES
from .study.study import load_study


def best_schedules(sweep: str = "digits", *, top: int | None = None, mlflow_yaml: str | None = None) -> pd.DataFrame:
    """The finished trials of a sweep, best first.

    Args:
        sweep: the sweep's name (its file's, without .yaml).
        top: how many; all by default.
        mlflow_yaml: the place; ``mlflow.yaml`` in the current folder by default.

    Returns:
        One row per trial: ``rank``, ``trial``, ``name``, ``type``, ``objective``, ``val_accuracy`` (where trials have
        one; and any other metric that the objective is, as ``val_dice``), every parameter
        in its own type (missing where the type has none), ``epochs``, ``seconds``, ``run_id``, ``schedule`` (JSON for
        ``runner.schedules.load(json.loads(...))``) and ``lr`` (the learning rate that each epoch began with). Where
        the best were confirmed with fresh seeds they come first, and have: ``mean``, ``deviation``, 95 % interval
        (``low``, ``high``) and number of ``seeds`` of the objective; how far they are ``behind`` the best of them,
        with a simultaneous interval (``behind_low``, ``behind_high``), as found with ``behind_seeds`` seeds, while
        the means are of all; ``in_set``, whether they may be the best; ``best_of_type``, whether the search had none
        better of that schedule; and the mean ``test_accuracy`` of the last epoch's weights with its 95 % interval
        (``test_low``, ``test_high``).

    Raises:
        SpecError: there is no such sweep in the study's storage.
    """
    facts, records = load_study(sweep, load_place(mlflow_yaml).storage)
    return best_table(records, facts["objective"], top, facts["confirmed"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("export", __doc__)
    parser.add_argument("sweep", nargs="?", default="digits", help="the sweep's name or file (default: digits)")
    parser.add_argument("--table", choices=["best", "trials", "epochs"], default="best", help="which table")
    parser.add_argument("--top", type=int, metavar="K", help="the K best only")
    parser.add_argument(
        "--format",
        choices=list(FORMATS.values()),
        help="default: as --out ends, or markdown; csv has decimal points, which a spreadsheet must be told",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there instead of to the terminal")
    parser.add_argument("--code", type=int, metavar="K", help="print PyTorch code of the K-th best schedule")
    loop = "with --code: whose training loop (default: torch)"
    parser.add_argument("--for", dest="library", choices=list(LIBRARIES), default="torch", help=loop)
    for what, words in (("epochs", "epochs"), ("updates", "updates, that is batches, in each epoch")):
        length = f"with --code: for a training of N {words} (default: whatever it is pasted into has)"
        parser.add_argument(f"--{what}", type=int, metavar="N", help=length)
    cli.add_mlflow(parser)
    cli.add_allow_plugin(parser)
    return cli.run(_export, parser.parse_args(argv))


def _export(args: argparse.Namespace) -> int:
    for name in ("top", "code", "epochs", "updates"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise SpecError(f"--{name} counts from 1, not {getattr(args, name)}")
    about_code = {"--epochs": args.epochs, "--updates": args.updates, "--for": args.library != "torch"}
    about_tables = {"--format": args.format, "--top": args.top, "--table": args.table != "best"}
    idle = [option for option, given in (about_code if args.code is None else about_tables).items() if given]
    if idle and args.code is None:
        raise SpecError(f"{', '.join(idle)}: only with --code, which says of which schedule")
    if idle:
        raise SpecError(f"{', '.join(idle)}: only for a table, and --code {args.code} is the Python of one schedule")
    name = args.sweep
    if name.endswith((".yaml", ".yml")):
        name = str(read(name).data.get("name", Path(name).stem))
    if wrong := name_fault(name):
        raise SpecError(wrong)
    facts, records = load_study(name, load_place(args.mlflow).storage)
    best = best_table(records, facts["objective"], confirmed=facts["confirmed"])
    if args.code is not None:
        if args.code > len(best):
            raise SpecError(f"--code {args.code}: the sweep has {len(best)} finished trials")
        record = best_first(records, facts["objective"].sign, facts["confirmed"])[args.code - 1]
        length = args.updates, args.epochs
        if any(length):
            updates = args.updates or record.updates or _updates(facts)
            if updates is None:
                raise SpecError("--epochs needs --updates here: nobody has said how many updates an epoch has")
            length = updates, args.epochs or len(record.epochs)
        text = print_or_write(code_of(record, facts, *length, args.allow, args.library), args.out)
    else:
        kind = _kind(args.out, args.format)
        first = best["trial"][: args.top].tolist()
        some = records if args.top is None else [r for r in records if r.number in first]
        if args.table == "trials":
            table = trials_table(some, facts["objective"])
        else:
            table = epochs_table(some) if args.table == "epochs" else best[: args.top]
        text = write(table, kind, args.out)
        if text is not None and args.table == "best" and kind == "markdown":  # for a person, who asks what it means
            text += "".join(f"\n{line}\n" for line in facts.get("answer", ()))
    if text is not None:
        sys.stdout.write(text)
    return 0


def _updates(facts: Mapping[str, Any]) -> int | None:
    """The updates of an epoch of a sweep, where they are known: of a training of one's own they may not be."""
    science = facts["science"]
    known = "data" in science or science["train"]["updates_per_epoch"] is not None
    return int(facts["updates_per_epoch"]) if known else None


def _kind(out: Path | None, wanted: str | None) -> str:
    """The format that is wanted, or that a file's suffix asks for; of a terminal and a bare name, Markdown."""
    suffix = out.suffix.lower() if out else ""
    meant = FORMATS.get(suffix)
    if suffix and not (meant or wanted):
        raise SpecError(f"--out {out}: a table ends in one of {', '.join(FORMATS)}, or has its --format")
    if meant and wanted not in (None, meant):
        raise SpecError(f"--out {out} is {meant}, and --format asks for {wanted}")
    return wanted or meant or "markdown"


if __name__ == "__main__":
    exit_with(main)
