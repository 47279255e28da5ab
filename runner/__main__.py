"""What there is to run: ``python -m runner``."""

import ast
from pathlib import Path

COMMANDS = ("preview", "sweep", "export", "ui")


def main() -> int:
    print("Which learning-rate schedule should I train with, and how sure am I?\n")
    for name in COMMANDS:
        said = ast.get_docstring(ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))) or ""
        print(f"  python -m runner.{name:<9} {said.partition(chr(10))[0]}")
    print(
        "\nBegin with python -m runner.sweep (sweeps/digits.yaml, some minutes on a CPU); then, of any sweep:\n\n"
        "  python -m runner.export digits --top 5     what was found, how sure, and what next\n"
        "  python -m runner.export digits --code 1    the first one as PyTorch code\n"
        "  python -m runner.ui digits                 curves, types and report in MLflow's pages\n\n"
        "Each has --help with more examples."
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
