"""Command lines: what a user may say, and how a command ends. A user's mistake gets a sentence and exit code 2."""

from __future__ import annotations

import argparse
import errno
import math
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields

from .files.document import SpecError, first_line, no_control, printable
from .files.place import StorageError
from .files.secrets import redacted
from .lanes.stop import ClusterError, GpuError, Stop, Stopped

DEFAULT = "sweeps/digits.yaml"


class TooManyFailedError(Exception):
    """More trials failed than a sweep can bear; the message says why the last one did."""


@dataclass(frozen=True)
class Options:
    """What is said on the command line of ``runner.sweep``: this invocation, and neither science nor place."""

    data_dir: str = "data"
    device: str = "auto"
    lanes: str = "auto"
    ray: str | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    engine: str = "auto"
    sync: bool = False
    hours: float | None = None
    minutes: float | None = None
    stall_minutes: float | None = None

    @property
    def seconds(self) -> float:
        """How long the sweep may take, in all."""
        given = [n * s for n, s in ((self.hours, 3600.0), (self.minutes, 60.0)) if n is not None]
        return sum(given) if given else math.inf

    @property
    def said_time(self) -> str:
        """The same as it was said."""
        said = [f"--{name} {n:g}" for name, n in (("hours", self.hours), ("minutes", self.minutes)) if n is not None]
        return " ".join(said)

    @staticmethod
    def checked(args: argparse.Namespace) -> Options:
        """The options among a command's arguments.

        Raises:
            SpecError: a value that cannot be, or that would have no effect.
        """
        no_control([args.sweep, args.data_dir, args.device, args.mlflow or ""])
        if not re.fullmatch("auto|[0-9]{1,4}", args.lanes):
            raise SpecError(f"--lanes must be auto, or a number up to 9999, not {args.lanes!r}")
        if args.ray is None and (args.num_cpus, args.num_gpus) != (None, None):
            raise SpecError("--num-cpus, --num-gpus: only with --ray, whose actors have them")
        if any(n is not None and (n < 0 or (n > 1 and n % 1)) for n in (args.num_cpus, args.num_gpus)):
            raise SpecError("--num-cpus, --num-gpus: 0, a part of one, or a whole number")
        for name in ("hours", "minutes", "stall_minutes"):
            if (value := getattr(args, name)) is not None and not 0 < value < 1e6:
                raise SpecError(f"--{name.replace('_', '-')} must be a number above 0, not {value:g}")
        if args.sync and (args.hours, args.minutes) != (None, None):
            raise SpecError("--hours, --minutes: not with --sync, which trains nothing")
        return Options(**{option.name: getattr(args, option.name) for option in fields(Options)})


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The parser of ``python -m runner.<name>``, whose help is the module's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m runner.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_mlflow(to: argparse.ArgumentParser) -> None:
    to.add_argument("--mlflow", metavar="FILE", help="the place (default: mlflow.yaml in this folder)")


def add_data_dir(to: argparse.ArgumentParser) -> None:
    to.add_argument("--data-dir", default="data", metavar="DIR", help="where data sets are or go (default: data)")


def add_allow_plugin(to: argparse.ArgumentParser) -> None:
    what = "let the sweep file name functions of this package (repeatable); it runs their code"
    to.add_argument("--allow-plugin", dest="allow", action="append", default=[], metavar="PACKAGE.", help=what)


def add_allow_command(to: argparse.ArgumentParser) -> None:
    what = "let the sweep file start the command that it names as its training"
    to.add_argument("--allow-command", action="store_true", help=what)


def sweep_parser(doc: str | None) -> argparse.ArgumentParser:
    """The command line of ``runner.sweep``."""
    to = parser("sweep", doc)
    to.add_argument("sweep", nargs="?", default=DEFAULT, help=f"the sweep file (default: {DEFAULT})")
    add_data_dir(to)
    to.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps, cpu (default: auto)")
    lanes = "trials at once: a number, or auto (default): one per core, or as many as make a GPU busy, but no more "
    to.add_argument("--lanes", default="auto", help=lanes + "than search.window; 0: one, in this process")
    ray = "train on a Ray cluster; without ADDRESS a local one"
    to.add_argument("--ray", nargs="?", const="local", metavar="ADDRESS", help=ray)
    for resource in ("cpus", "gpus"):
        share = f"with --ray: {resource.upper()} of each actor, or a share of one"
        to.add_argument(f"--num-{resource}", type=float, metavar="N", help=share)
    engine = "auto (default): the fast one where it can train this; reference: the plain loop"
    to.add_argument("--engine", choices=["auto", "reference"], default="auto", help=engine)
    for unit in ("hours", "minutes"):
        budget = f"end after so many {unit}: fresh seeds have their share set aside; the same command goes on"
        to.add_argument(f"--{unit}", type=float, metavar="N", help=budget)
    stall = "a training that gives no epoch for so long has failed (default: wait for ever)"
    to.add_argument("--stall-minutes", type=float, metavar="N", help=stall)
    add_mlflow(to)
    to.add_argument("--quiet", action="store_true", help="print warnings and the result alone")
    to.add_argument("--sync", action="store_true", help="train nothing; send what MLflow lacks, and report")
    dry_run = "check files, data, model and options, print warnings, and stop"
    to.add_argument("--dry-run", action="store_true", help=dry_run)
    add_allow_plugin(to)
    add_allow_command(to)
    return to


def load_torch() -> None:
    """Load torch and torchvision, which takes seconds; raises SpecError where they do not fit one another."""
    try:
        import torch  # noqa: F401
        import torchvision  # noqa: F401
    except Exception as error:  # a missing operator, a library that is not there
        wrong = f"torch and torchvision cannot be loaded together ({type(error).__name__}: {first_line(error)})"
        advice = "they come in pairs: pip install --upgrade --force-reinstall torch torchvision"
        raise SpecError(f"{wrong}; {advice}") from None


def run(command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """A command's exit code; 2, and the sentence, where the user can mend what is wrong."""
    try:
        return command(args)
    except SpecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def run_stoppable(command: Callable[[Stop], int], again: str) -> int:
    """A sweep's exit code: ``again`` is the command that continues it.

    2: a mistake of the user's; 4: the storage, the disk, the cluster or the GPU; 5: too many trials failed; 75, 129,
    130, 143: a signal; 1: a bug, with its traceback.
    """
    stop = Stop()
    try:
        with stop:
            return command(stop)
    except SpecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TooManyFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 5
    except KeyboardInterrupt as stopped:
        print(f"\nstopped; continue with: {again}", file=sys.stderr)
        return stopped.code if isinstance(stopped, Stopped) else 130
    except Exception as error:
        if cause := _outside_cause(error):
            print(f"error: {cause}\ncontinue with: {again}", file=sys.stderr)
            return 4
        if stop.raised is not None:  # in a library, which made an error of its own of it
            why = f"{type(error).__name__}: {printable(redacted(first_line(error)))}"
            print(f"\nstopped ({why}); continue with: {again}", file=sys.stderr)
            return stop.raised.code
        # a bug: its traceback helps, the secrets in it do not
        print(redacted("".join(traceback.format_exception(error))), file=sys.stderr)
        return 1


def _outside_cause(error: Exception) -> str | None:
    """What is wrong with the storage, the disk, the cluster or the GPU, in a sentence; None where it is a bug."""
    if isinstance(error, (StorageError, ClusterError)):
        return str(error)
    if isinstance(error, GpuError):
        return f"the GPU failed, and everything on it with it: {error} (CUDA_LAUNCH_BLOCKING=1 shows where)"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}{f': {error.filename}' * (error.filename is not None)}; make room"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}; put right what is in its place, or make it writable"
    return None
