"""What there is to run: ``python -m runner``."""

import ast
from pathlib import Path

COMMANDS = ("sweep", "preview", "export", "ui")


def main() -> int:
    print("Which learning-rate schedule should I train with, and how sure am I?\n")
    for name in COMMANDS:
        said = ast.get_docstring(ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))) or ""
        print(f"  python -m runner.{name:<9} {said.partition(chr(10))[0]}")
    print("\neach with --help; begin with: python -m runner.sweep")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
