"""The README and docs/ say what is so: their made parts are current, their code runs, CI calls the second command."""

import importlib
import json
import re
import shlex
from pathlib import Path

import optuna
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from runner import sweep
from runner.cli import sweep_parser
from runner.export import best_schedules
from runner.files.place import load_place
from runner.files.sweep_file import load_sweep
from runner.schedules import load

from .readme import PAGES, ROOT, filled

DOCS = ROOT / "docs"


def blocks(kind: str, *pages: Path) -> list[str]:
    """The blocks of code that those pages show, or all of them."""
    return [
        block
        for page in pages or PAGES
        for block in re.findall(rf"```{kind}\n(.*?)```", page.read_text(), flags=re.S)
    ]


YAML = blocks("yaml")
CHEAP = "confirm: {top: 0, types: false}\n"
PYTHON = blocks("python")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_parts_that_are_made_of_files_are_current(page):
    assert filled(page.read_text()) == page.read_text(), "run: python tests/readme.py"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "docs/digits/report.md"], ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_recorded_result_is_of_the_sweep_file_that_is_shown():
    space = load_sweep(ROOT / "sweeps/digits.yaml")[0].schedules
    table = pd.read_csv(ROOT / "docs/digits/best_schedules.csv")
    for name, said in zip(table["name"], map(json.loads, table["schedule"]), strict=True):
        flat = said | {"warmup": said["warmup"].get("fraction")}
        params = {leaf.name: flat[leaf.name.removeprefix(f"{name}.")] for leaf in space.leaves(name)}
        found = space.sample(optuna.trial.FixedTrial({"type": name} | params))  # what lies outside is warned of
        assert (found[0], load(found[1])) == (name, load(said))


def test_the_readme_is_a_front_door():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 250
    own = text[text.index("## Your own training") : text.index("## A sweep file")]
    assert len(own.strip().splitlines()) < 40


def test_ci_calls_the_second_command_as_it_stands_here():
    second = blocks("bash", ROOT / "README.md")[1].rstrip("\n")
    assert second in (ROOT / ".ci/run").read_text().splitlines()


def test_the_code_on_schedules_runs(project, capsys):
    scope = {"optimizer": torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)}
    module, five_ways = (block for block in blocks("python", DOCS / "schedules.md") if "load(" in block)
    exec(module, scope)
    assert scope["schedule"].factor(0, 90) == 0.2
    exec(five_ways, scope)
    assert "0.1 ** drops" in capsys.readouterr().out
    assert [g["lr"] for g in scope["optimizer"].param_groups] == [pytest.approx(0.02)]


@pytest.mark.slow
def test_the_own_model_data_and_schedule_that_are_shown_train(project, monkeypatch, capsys):
    package = next(block for block in PYTHON if "def sawtooth" in block)
    assert len([line for line in package.splitlines() if line.strip()]) < 20
    (project / "my_package.py").write_text(package)
    monkeypatch.syspath_prepend(project)
    yaml = next(block for block in YAML if "my_package.network" in block)
    (project / "sweeps/mine.yaml").write_text(yaml.replace("trials: 12", "trials: 4") + CHEAP)
    command = ["sweeps/mine.yaml", "--device", "cpu", "--lanes", "1"]
    assert sweep.main(command) == 2
    refused = "line 2: data.function: 'my_package.images' is no plugin (an installed entry point"
    assert refused in capsys.readouterr().err
    assert sweep.main([*command, "--allow-plugin", "my_package."]) == 0
    table = best_schedules("mine")
    assert len(table) == 4
    assert table["val_accuracy"].max() > 0.5


def test_the_searches_that_are_shown_find_what_they_say(swept):
    section = (DOCS / "results.md").read_text().partition("In MLflow's search bar")[2].partition("## ")[0]
    cosines, diverged, top = (query.replace("\n", " ") for query in re.findall(r"``(.+?)``", section, flags=re.S))
    client = MlflowClient(tracking_uri=load_place().tracking_uri)

    def found(query: str) -> list[tuple[str, str]]:
        runs = client.search_runs(["1"], query, order_by=["metrics.objective DESC"])
        return [(run.data.tags["schedule.type"], run.data.tags["outcome"]) for run in runs]

    assert found(cosines.replace("digits", "tiny")) == [("cosine", "complete")]
    assert found(diverged) == []
    assert found(diverged.replace("diverged", "complete")) != []
    assert found(top) == []  # two epochs on a hundred images
    assert found(top.replace("0.95", "0.0")) == [("wsd", "complete")]


COMMANDS = [
    shlex.split(line, comments=True)[2:]
    for block in blocks("bash")
    for line in block.splitlines()
    if line.startswith("python -m runner")
]


@pytest.fixture
def as_shown(project, monkeypatch, capsys):
    """The sweeps that the pages name, tiny; digits and cifar10 have been run."""
    tiny = (project / "sweeps/tiny.yaml").read_text().replace("trials: 3", "trials: 2")
    for name in ("digits", "cifar10", "mine", "imagefolder"):
        (project / f"sweeps/{name}.yaml").write_text(tiny)
    (project / "my_package.py").write_text("")
    slides = next(block for block in YAML if "slides.train" in block).replace("trials: 12", "trials: 2")
    (project / "sweeps/slides.yaml").write_text(slides + "confirm: {top: 0, types: false}\n")
    (project / "slides.py").write_text(
        "def train(job):\n    for n in range(job.epochs):\n        yield {'val/dice': n / job.epochs, 'lr': 0.1}\n"
    )
    monkeypatch.syspath_prepend(project)
    for name in ("digits", "cifar10"):
        assert sweep.main([f"sweeps/{name}.yaml", "--device", "cpu", "--lanes", "0"]) == 0
    capsys.readouterr()
    return project


@pytest.mark.slow
def test_every_command_that_is_shown_runs(as_shown, capsys):
    assert len(COMMANDS) > 12
    for module, *arguments in COMMANDS:
        main = importlib.import_module(f"{module}.__main__" if module == "runner" else module)
        given = [a.replace("$(cat results/cifar10/best_schedule.json)", the_best()) for a in arguments]
        if module == "runner.ui":  # would stay: tests/test_ui.py and tests/tracking/test_secrets.py start it
            continue
        if module == "runner.sweep":
            if "--ray" in given:  # tests/lanes/test_lanes.py does that on a cluster
                assert sweep_parser(None).parse_args(given)
                continue
            given = [a for a in given if a not in ("FILE",)] + ["--device", "cpu", "--lanes", "0"]
        assert main.main(given) == 0, (module, given, capsys.readouterr())


def the_best() -> str:
    return Path("results/cifar10/best_schedule.json").read_text()


def test_every_yaml_block_that_is_shown_loads(project, monkeypatch):
    (project / "my_package.py").write_text(next(block for block in PYTHON if "def sawtooth" in block))
    (project / "slides.py").write_text("def train(job): ...\n")
    monkeypatch.syspath_prepend(project)
    tiny = (project / "sweeps/tiny.yaml").read_text()
    for block in YAML:
        if block.startswith("server:"):
            (project / "mlflow_shown.yaml").write_text(block)
            load_place("mlflow_shown.yaml")
            continue
        text = block
        if "space:" not in block:  # a section
            section = block.partition(":")[0].strip().splitlines()[-1]
            others = (section, "data", "model") if "command:" in block else (section,)
            kept = [line for line in tiny.splitlines() if line.partition(":")[0] not in others]
            text = "".join(f"{line}\n" for line in kept) + block
            text = text.replace("epochs: 2", "epochs: 6")
            if "  command:" in block:  # which brings its data and its network
                text = re.sub("(?m)^(data|model):.*\n", "", text)
        elif block.startswith("space:\n  baseline:"):  # a part of one
            text = tiny.replace("space:\n", block)
        (project / "sweeps/shown.yaml").write_text(text)
        load_sweep("sweeps/shown.yaml", ["my_package.", "slides."], allow_command=True)


def test_the_notebook_runs(as_shown, capsys):
    cells = json.loads((ROOT / "docs/notebook.ipynb").read_text())["cells"]
    scope: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            source = re.sub(r'\[\["name".*?\]\]', "", source)  # a tiny sweep confirms nothing
            exec("" if 'drawn["confidence_set"]' in source else source, scope)
    assert scope["drawn"]["lr_curves"]._repr_png_().startswith(b"\x89PNG")
    assert "init_lr" in capsys.readouterr().out
