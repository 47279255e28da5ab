"""Benchmarks are commands that run by hand: what they ask of the product is there."""

import ast
import importlib
import json
import sys
from pathlib import Path

import pytest

from runner.cli import sweep_parser
from runner.files.sweep_file import load_sweep

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "benchmarks").rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT / "benchmarks")))
def test_every_option_that_a_benchmark_gives_the_sweep_is_one_of_its_own(file):
    known = {option for action in sweep_parser("")._actions for option in action.option_strings}
    for node in ast.walk(ast.parse(file.read_text())):
        words = [
            e.value for e in getattr(node, "elts", []) if isinstance(e, ast.Constant) and isinstance(e.value, str)
        ]
        if "runner.sweep" in words:
            assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize(
    "name", ["gpu", "lanes", "overhead", "pairing", "peers", "pool", "replay", "report", "speed"]
)
def test_every_benchmark_finds_what_it_imports(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", [name])
    importlib.import_module(name)


def test_a_timed_sweep_trains_the_schedules_that_the_scripts_train(tmp_path, monkeypatch, sweep_file):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    speed = importlib.import_module("speed")
    sweep = load_sweep(sweep_file(search="search: {trials: 4}"))[0]
    (tmp_path / "ours.yaml").write_text(speed.same_schedules(sweep).model_dump_json())
    ours = load_sweep(tmp_path / "ours.yaml")[0]
    expected = [schedule.to_json() for schedule in speed.random_schedules(sweep, 4)]
    names = [point["type"] for point in ours.schedules.grid_points()]
    assert [ours.schedule(ours.schedules.schedules[name]).to_json() for name in names] == expected
    assert json.loads((tmp_path / "ours.yaml").read_text())["name"] == sweep.name
