"""What there is to run: ``python -m runner``."""

import ast
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from .lanes.stop import exit_with

COMMANDS = ("preview", "sweep", "export", "ui")
AFTER = {
    "export digits --top 5": "what was found, how sure, and what next",
    "export digits --code 1": "the first one as PyTorch code",
    "ui digits": "curves, types and report in MLflow's pages",
}
"""What is asked of a sweep that has run."""


def main(argv: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    if given and given[0] not in ("-h", "--help"):
        there = ", ".join(f"python -m runner.{name}" for name in COMMANDS)
        print(f"error: there is no command {given[0]!r}; there are {there}", file=sys.stderr)
        return 2
    print("Which learning-rate schedule should I train with, and how sure am I?\n")
    for name in COMMANDS:
        said = ast.get_docstring(ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))) or ""
        print(_line(name, 9, said.partition("\n")[0]))
    print("\nBegin with python -m runner.sweep (sweeps/digits.yaml, some minutes on a CPU).\nThen, of any sweep:\n")
    for command, said in AFTER.items():
        print(_line(command, 24, said))
    print("\nEach has --help with more examples.")
    return 0


def _line(command: str, width: int, said: str) -> str:
    """A command and what it does, wrapped beside it where the terminal is narrow."""
    first = f"  python -m runner.{command:<{width}} "
    columns = max(60, shutil.get_terminal_size((160, 0)).columns)
    return textwrap.fill(said, columns, initial_indent=first, subsequent_indent=" " * len(first))


if __name__ == "__main__":
    exit_with(main)
