"""Write the parts of the README and of docs/ that are made of files: ``python tests/readme.py``."""

import ast
import json
import re
import sys
from pathlib import Path

from runner.files.metrics import METRICS
from runner.files.sweep_file import Augment, Confirm, Data, Model, Objective, OwnTraining, Search, Train

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def answer(file: str, start: str = "") -> str:
    """The parts of a recorded report that start so, without its figures."""
    said = (ROOT / "docs/digits" / file).read_text().split("\n\n")
    kept = [part.strip("\n") for part in said if part.strip() and not part.startswith(("![", "["))]
    shown = "\n\n".join(part for part in kept if part.startswith(start))
    return re.sub(r"\\([()_])", r"\1", shown) + "\n"  # escaped for whatever shows it; here nothing is foreign


def result(rows: int) -> str:
    """How the recorded report begins: the question, the answer, and so many rows of the table."""
    lines = answer("report.md").splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("| "))
    return "\n".join(lines[: head + 2 + rows]) + "\n"


def columns(table: str, *names: str) -> str:
    """Those columns of a table alone."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()]
    kept = [rows[0].index(name) for name in names]
    return "".join(f"| {' | '.join(row[i] for i in kept)} |\n" for row in rows)


def measured() -> dict[str, str]:
    """The tables of ``benchmarks/report.py``."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import report

    results = ROOT / "benchmarks/results"
    slots = results / "slots-nvidia-h200.json"
    speed = report.table(results.glob("speed-*.json")) + "\n"
    return {
        "gpu: benchmarks/results/cifar10-*.json": report.on_a_gpu(results.glob("cifar10-*.json")) + "\n",
        "speed: benchmarks/results/speed-*.json": speed,
        "speed, in short: benchmarks/results/speed-*.json": columns(
            speed, "machine", "case", "ours, all lanes", "× P0", "× P1"
        ),
        "predictions: benchmarks/results/slots-nvidia-h200.json": report.predictions(slots),
        "sweeps: benchmarks/results": report.sweeps(results),
        "overhead: benchmarks/results/overhead.json": report.overhead(results / "overhead.json"),
        "own: benchmarks/results/own.json": report.own(results / "own.json"),
        "faults: benchmarks/results/faults.json": report.faults(results / "faults.json"),
        "pairing: benchmarks/results/pairing.json": report.pairing(results / "pairing.json"),
        "evidence: benchmarks/results/replay-digits.json": report.evidence(results / "replay-digits.json"),
    }


def reference(*models: type) -> str:
    """The keys of a file's sections, from the models that read it."""
    parts = []
    for model in models:
        schema = model.model_json_schema()
        called = {"OwnTraining": "train, of your own"}
        name, rows = (
            called.get(model.__name__, model.__name__.lower()),
            ["| key | what | default | |", "| --- | --- | --- | --- |"],
        )
        for key, said in schema["properties"].items():
            field = model.model_fields[key]
            default = (
                "needed" if field.is_required() else "" if key in ("augment",) else f"`{json.dumps(field.default)}`"
            )
            meaning = " ".join((field.description or "").split())
            meaning = meaning.replace("``METRICS``", ", ".join(f"`val/{name}`" for name in METRICS))
            rows.append(f"| `{key}` | {kind(said)} | {default} | {meaning} |")
        doc = " ".join((model.__doc__ or "").split())
        parts.append(f"## {name}\n\n{doc}\n\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def kind(said: dict) -> str:
    """A JSON schema's type in words."""
    if "anyOf" in said:
        return " or ".join(dict.fromkeys(kind(s) for s in said["anyOf"] if s.get("type") != "null"))
    if "enum" in said:
        return ", ".join(f"`{value}`" for value in said["enum"])
    if "$ref" in said or "allOf" in said:
        return "a mapping"
    words = {
        "integer": "whole number",
        "number": "number",
        "boolean": "true, false",
        "string": "text",
        "array": "list",
    }
    text = words.get(said.get("type"), "a mapping")
    limits = [
        (sign, said[name])
        for sign, name in (("≥", "minimum"), (">", "exclusiveMinimum"), ("≤", "maximum"), ("<", "exclusiveMaximum"))
        if name in said
    ]
    return text + "".join(f" {sign} {limit:g}" for sign, limit in limits)


def gallery() -> str:
    """Every type of the zoo: its formula and source, and its parameters."""
    from runner.schedules.zoo import TYPES

    parts = []
    for name, found in TYPES.items():
        doc = " ".join((found.function.__doc__ or "").split()).replace("|", "\\|")
        params = ", ".join(f"`{key}` ({parameter(p)})" for key, p in found.params.items())
        parts.append(f"### {name}\n\n{doc}\n\n{f'Parameters: {params}.' if params else 'No parameters of its own.'}")
    return "\n\n".join(parts) + "\n"


def parameter(p) -> str:
    """What a parameter may be, and its default."""

    def said(value) -> str:
        if isinstance(value, tuple):
            return ", ".join(map(said, value))
        if hasattr(value, "unit"):
            return f"{value.value:.3g}{'' if value.unit == 'fraction' else ' ' + value.unit}"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    what = " or ".join(map(str, p.choices)) or ("whole number" if p.integer else p.kind)
    missing = p.default is None or type(p.default).__name__ == "object"
    return what if missing else f"{what}; {said(p.default)}"


def draw() -> None:
    """The picture of the gallery: every type with what it has by default."""
    from runner.results import figures
    from runner.schedules import load
    from runner.schedules.zoo import TYPES

    curves = {name: [load({"type": name, "init_lr": 1.0, "warmup": 0.05})] for name in TYPES}
    figure = figures.schedules(curves, 1000, 100)
    figure.savefig(ROOT / "docs/pictures/schedules.png", dpi=80)


def loop() -> str:
    """The source of ``train_trials``, the main loop, without its docstring."""
    source = (ROOT / "runner/sweep.py").read_text()
    function = next(n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == "train_trials")
    lines = source.splitlines()[function.body[1].lineno - 1 : function.end_lineno]
    return "\n".join(line.removeprefix("    ") for line in lines)


ROOMS = ("schedules", "files", "training", "training/fast", "lanes", "study", "tracking", "results", ".")
"""From the ground floor up."""


def tree() -> str:
    """Every room and every file in it, with the first sentence of its docstring."""
    rows = []
    for room in ROOMS:
        folder = ROOT / "runner" / room
        rows.append("runner/" if room == "." else f"runner/{room}/")
        for file in sorted(folder.glob("*.py")):
            if file.name != "__init__.py":
                said = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")[0].replace("\n", " ")
                rows.append(f"  {file.name:<15} {said.split('. ')[0].rstrip('.')}")
    listed = {ROOT / "runner" / room for room in ROOMS}
    assert {path.parent for path in (ROOT / "runner").rglob("*.py")} == {folder.resolve() for folder in listed}
    return "```text\n" + "\n".join(rows) + "\n```\n"


def filled(text: str) -> str:
    """A page with every made part as it should be."""
    parts = {
        "report: docs/digits/report.md": result(6),
        "strip: docs/digits/strip.md": answer("strip.md", "Around "),
        "file: sweeps/digits.yaml": f"```yaml\n{(ROOT / 'sweeps/digits.yaml').read_text()}```\n",
        "reference: runner/files/sweep_file.py": reference(
            Data, Augment, Model, Train, OwnTraining, Search, Confirm, Objective
        ),
        "gallery: runner/schedules/zoo.py": gallery(),
        "loop: runner/sweep.py": f"```python\n{loop()}\n```\n",
        "tree: runner": tree(),
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
    return text


if __name__ == "__main__":
    draw()
    for page in PAGES:
        page.write_text(filled(page.read_text()))
