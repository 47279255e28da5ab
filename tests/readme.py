"""Write the parts of the README and of docs/ that are made of files: ``python tests/readme.py``."""

import ast
import json
import re
import sys
from pathlib import Path

from runner.spec import Augment, Confirm, Data, Model, Objective, Search, Train

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def answer(file: str, start: str = "") -> str:
    """The parts of a recorded report that start so, without its figures."""
    said = (ROOT / "docs/digits" / file).read_text().split("\n\n")
    kept = [part.strip("\n") for part in said if part.strip() and not part.startswith(("![", "["))]
    shown = "\n\n".join(part for part in kept if part.startswith(start))
    return re.sub(r"\\([()_])", r"\1", shown) + "\n"  # escaped for whatever shows it; here nothing is foreign


def measured() -> dict[str, str]:
    """The tables of ``benchmarks/report.py``."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import report

    results = ROOT / "benchmarks/results"
    slots = results / "slots-nvidia-h200.json"
    return {
        "gpu: benchmarks/results/cifar10-*.json": report.on_a_gpu(results.glob("cifar10-*.json")) + "\n",
        "speed: benchmarks/results/speed-*.json": report.table(results.glob("speed-*.json")) + "\n",
        "predictions: benchmarks/results/slots-nvidia-h200.json": report.predictions(slots),
        "sweeps: benchmarks/results": report.sweeps(results),
        "overhead: benchmarks/results/overhead.json": report.overhead(results / "overhead.json"),
        "faults: benchmarks/results/faults.json": report.faults(results / "faults.json"),
        "evidence: benchmarks/results/replay-digits.json": report.evidence(results / "replay-digits.json"),
    }


def reference(*models: type) -> str:
    """The keys of a file's sections, from the models that read it."""
    parts = []
    for model in models:
        schema = model.model_json_schema()
        name, rows = model.__name__.lower(), ["| key | what | default | |", "| --- | --- | --- | --- |"]
        for key, said in schema["properties"].items():
            field = model.model_fields[key]
            default = (
                "needed" if field.is_required() else "" if key in ("augment",) else f"`{json.dumps(field.default)}`"
            )
            meaning = " ".join((field.description or "").split())
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
    from runner.zoo import TYPES

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
    from runner import figures
    from runner.schedules import load
    from runner.zoo import TYPES

    curves = {name: [load({"type": name, "init_lr": 1.0, "warmup": 0.05})] for name in TYPES}
    figure = figures.schedules(curves, 1000, 100)
    figure.savefig(ROOT / "docs/pictures/schedules.png", dpi=80)


def loop() -> str:
    """The source of ``search``, the main loop, without its docstring."""
    source = (ROOT / "runner/sweep.py").read_text()
    function = next(n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == "search")
    lines = source.splitlines()
    start = next(i for i, line in enumerate(lines[function.lineno :], function.lineno) if "ready, attempts" in line)
    return "\n".join(line.removeprefix("    ") for line in lines[start : function.end_lineno])


ORDER = {
    "the story, to be read first": ("sweep", "study", "lanes", "train", "tracking"),
    "what is searched": ("zoo", "schedules", "space", "spec", "data", "images", "model"),
    "how sure": ("confirm", "confidence"),
    "what comes out": ("report", "export", "figures", "codegen", "terminal"),
    "the other commands": ("preview", "ui", "__main__"),
    "what can be skipped at first": (
        "document",
        "place",
        "storage",
        "sender",
        "stop",
        "checkpoint",
        "engine",
        "conv",
        "tiles",
        "choice",
    ),
}


def tree() -> str:
    """Every module with the first sentence of its docstring, in the order in which they are best read."""
    rows, left = [], {path.stem for path in (ROOT / "runner").glob("*.py")} - {"__init__"}
    for what, names in ORDER.items():
        rows.append(f"  # {what}")
        for name in names:
            text = (ROOT / f"runner/{name}.py").read_text()
            said = ast.get_docstring(ast.parse(text)).split("\n\n")[0].replace("\n", " ")
            rows.append(f"  {name + '.py':<14} {said.split('. ')[0].rstrip('.')}")
        left -= set(names)
    assert not left, f"{left} have no place in ORDER"
    return "\n".join(rows)


def filled(text: str) -> str:
    """The README with every made part as it should be."""
    parts = {
        "report: docs/digits/report.md": answer("report.md"),
        "strip: docs/digits/strip.md": answer("strip.md", "Around "),
        "file: sweeps/digits.yaml": f"```yaml\n{(ROOT / 'sweeps/digits.yaml').read_text()}```\n",
        "loop: runner/sweep.py": f"```python\n{loop()}\n```\n",
        "reference: runner/spec.py": reference(Data, Augment, Model, Train, Search, Confirm, Objective),
        "gallery: runner/zoo.py": gallery(),
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
    return re.sub(
        r"(runner/\n)(?:<!-- tree -->\n|(?:  (?:# .*|\w+\.py .*)\n)+)", lambda m: f"{m[1]}{tree()}\n", text, count=1
    )


if __name__ == "__main__":
    draw()
    for page in PAGES:
        page.write_text(filled(page.read_text()))
