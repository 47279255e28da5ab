"""Write the parts of the README and of docs/ that are made of files: ``python tests/readme.py``."""

import ast
import re
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def table() -> str:
    """The five best of the default sweep's recorded result."""
    from runner.export import markdown

    return markdown(pd.read_csv(ROOT / "docs/digits/best_schedules.csv").head(5))


def confirmed() -> str:
    """What fresh seeds gave in the default sweep's recorded result."""
    from runner.export import confirmed_markdown

    return confirmed_markdown(pd.read_csv(ROOT / "docs/digits/best_schedules.csv").to_dict(orient="records"))


def measured() -> dict[str, str]:
    """The tables of ``benchmarks/report.py``."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import report

    results = ROOT / "benchmarks/results"
    return {
        "speed: benchmarks/results/speed-*.json": report.table(results.glob("speed-*.json")) + "\n",
        "sweeps: benchmarks/results": report.sweeps(results),
        "faults: benchmarks/results/faults.json": report.faults(results / "faults.json"),
        "evidence: benchmarks/results/replay-digits.json": report.evidence(results / "replay-digits.json"),
    }


def loop() -> str:
    """The source of ``search``, the main loop, without its docstring."""
    source = (ROOT / "runner/sweep.py").read_text()
    function = next(n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == "search")
    lines = source.splitlines()
    start = next(i for i, line in enumerate(lines[function.lineno :], function.lineno) if "ready, attempts" in line)
    return "\n".join(line.removeprefix("    ") for line in lines[start : function.end_lineno])


def tree() -> str:
    """Every module with the first sentence of its docstring."""
    rows = []
    for path in sorted((ROOT / "runner").glob("*.py")):
        if path.stem != "__init__":
            said = ast.get_docstring(ast.parse(path.read_text())).split("\n\n")[0].replace("\n", " ")
            rows.append(f"  {path.name:<14} {said.split('. ')[0].rstrip('.')}")
    return "\n".join(rows)


def filled(text: str) -> str:
    """The README with every made part as it should be."""
    parts = {
        "table: docs/digits/best_schedules.csv": f"{table()}",
        "confirmed: docs/digits/best_schedules.csv": confirmed(),
        "file: sweeps/digits.yaml": f"```yaml\n{(ROOT / 'sweeps/digits.yaml').read_text()}```\n",
        "loop: runner/sweep.py": f"```python\n{loop()}\n```\n",
        **measured(),
    }
    for name, content in parts.items():
        mark = f"<!-- {name} -->\n"
        text = re.sub(
            re.escape(mark) + r"(?:.*?<!-- end -->\n)?",
            lambda _, m=mark, c=content: f"{m}\n{c}\n<!-- end -->\n",
            text,
            count=1,
            flags=re.S,
        )
    return re.sub(r"(runner/\n)(?:<!-- tree -->\n|(?:  \w+\.py .*\n)+)", lambda m: f"{m[1]}{tree()}\n", text, count=1)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
