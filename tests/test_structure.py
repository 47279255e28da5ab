"""docs/structure.md says what is so: its diffs apply, each to one file, and what they add works."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/structure.md").read_text()
DIFFS = dict(
    zip(
        ("schedule", "source", "metric", "optimizer", "library"),
        re.findall(r"```diff\n(.*?)```", PAGE, flags=re.S),
        strict=True,
    )
)
USES = {
    "schedule": """
from runner.schedules import code, load
schedule, scope = load({"type": "arc", "init_lr": 2.0}), {}
assert schedule.lrs(4) == [2 * (1 - (t / 4) ** 2) ** 0.5 for t in range(4)]
import torch
scope["optimizer"] = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
exec(code(schedule, 4), scope)
from runner.files.space import parse
corners = parse({"schedules": {"arc": {"power": {"uniform": [0.5, 2.0]}}}}).check()
assert [corner.params["power"] for corner in corners["arc"]] == [0.5, 2.0]
""",
    "source": """
import numpy as np
from runner.files.sweep_file import Data
from runner.training.data import load
images = np.random.default_rng(0).integers(0, 256, (50, 8, 8), dtype=np.uint8)
np.savez("a.npz", images=images, labels=np.arange(50) % 5)
data = load(Data(source="npz", path="a.npz"), ".")
seen = np.concatenate([split.images.numpy()[..., 0] for split in (data.train, data.val, data.test)])
assert sorted(map(bytes, seen)) == sorted(map(bytes, images)) and data.classes == 5
try:
    Data(source="npz")
except ValueError as error:
    assert "source npz needs a path" in str(error)
""",
    "metric": """
import torch
from sklearn.metrics import top_k_accuracy_score
from runner.files.sweep_file import Data, Model, Objective, Train
from runner.files.trial import TrialConfig
from runner.schedules import load
from runner.training import data, loop
recipe = Train(epochs=1, batch_size=32)
judged_by = Objective(metric="val/top3")
assert (judged_by.direction, judged_by.points) == ("maximize", True)
common = Data(source="digits", limit=160), Model(width=8), recipe, load({"type": "linear"})
config = TrialConfig(*common, objective=judged_by)
epoch = next(loop.train(config, torch.device("cpu")))
network = loop.build(config.model, 10, 0)
network.load_state_dict(epoch.state()["network"])
images = data.load(config.data)
with torch.no_grad():
    logits = network.eval()(data.normalised(images.val.images, images.mean, images.std))
expected = top_k_accuracy_score(images.val.labels, logits, k=3, labels=range(10))
assert abs(epoch.metrics()["val/top3"] - expected) < 1e-6
assert "val/top3" not in next(loop.train(TrialConfig(*common), torch.device("cpu"))).metrics()
""",
    "optimizer": """
import torch
from runner.files.sweep_file import Data, Model, Train
from runner.files.trial import TrialConfig
from runner.schedules import load
from runner.training.fast import choice
from runner.training import loop
recipe = Train(epochs=1, batch_size=32, optimizer="rmsprop", momentum=0.5, weight_decay=0.1)
schedule = load({"type": "linear", "init_lr": 1e-3})
config = TrialConfig(Data(source="digits", limit=160), Model(width=8), recipe, schedule)
assert choice.choose(config, torch.device("cpu"), 1).name == "reference"
made = loop.make_optimizer(recipe, [torch.nn.Parameter(torch.zeros(1))], 0.1)
assert type(made) is torch.optim.RMSprop
assert (made.defaults["momentum"], made.defaults["weight_decay"], made.defaults["lr"]) == (0.5, 0.1, 0.1)
assert next(loop.train(config, torch.device("cpu"))).train_loss < 10
""",
    "library": """
import torch
from runner.schedules import code, load
source = code(load({"type": "cosine", "init_lr": 0.1}), 10, epochs=2, library="ignite")
assert "Events.ITERATION_COMPLETED" in source and "def make_scheduler(optimizer, T=10):" in source
compile(source, "pasted", "exec")
from runner.export import LIBRARIES
assert "ignite" in LIBRARIES
""",
}


RARE = [pytest.param(what, marks=pytest.mark.slow) for what in ("source", "optimizer", "library")]


@pytest.mark.parametrize("what", ["schedule", "metric", *RARE])
def test_each_extension_touches_one_file_and_works(what, tmp_path):
    assert len(re.findall(r"^\+\+\+ b/runner/", DIFFS[what], flags=re.M)) == 1
    shutil.copytree(ROOT / "runner", tmp_path / "runner", ignore=shutil.ignore_patterns("__pycache__"))
    patched = subprocess.run(["patch", "-p1"], input=DIFFS[what], cwd=tmp_path, capture_output=True, text=True)
    assert patched.returncode == 0, patched.stdout
    run = subprocess.run(
        [sys.executable, "-c", USES[what]],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_every_folder_says_in_two_sentences_what_lives_there():
    rooms = {path.parent for path in (ROOT / "runner").rglob("*.py")} - {ROOT / "runner"}
    assert {str(room.relative_to(ROOT / "runner")) for room in rooms} == {
        *("files", "lanes", "results", "schedules", "study", "tracking", "training", "training/fast"),
    }
    for room in rooms:
        said = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
        assert len(re.findall(r"\.(?=\s|$)", said)) == 2, room


def test_a_sweep_file_is_read_without_torch_optuna_or_mlflow():
    script = (
        "import sys; from runner.files.sweep_file import load_sweep; load_sweep('sweeps/digits.yaml'); "
        "print([name for name in ('torch', 'optuna', 'mlflow', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
