"""The README says what is so: its made parts are current, its code runs, CI calls its command."""

import re

import pytest
import torch

from runner.spec import load_sweep

from .readme import PAGES, ROOT, filled

README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_parts_that_are_made_of_files_are_current(page):
    assert filled(page.read_text()) == page.read_text(), "run: python tests/readme.py"


def test_ci_calls_the_second_command_as_it_stands_here():
    second = re.findall(r"```bash\n(.*?)\n```", README, flags=re.S)[1]
    assert second in (ROOT / ".ci/run").read_text().splitlines()


def test_the_code_on_schedules_runs(project, capsys):
    scope = {"optimizer": torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)}
    module, five_ways = (block for block in PYTHON if "load(" in block and "trial" not in block)
    exec(module, scope)
    assert scope["schedule"].factor(0, 90) == 0.2
    exec(five_ways, scope)
    assert "StepLR(optimizer, 30, 0.1)" in capsys.readouterr().out
    assert [g["lr"] for g in scope["optimizer"].param_groups] == [pytest.approx(0.02)]


def test_the_own_schedule_that_is_shown_works(project, monkeypatch):
    function = next(block for block in PYTHON if "def sawtooth" in block)
    (project / "my_package.py").write_text(function)
    monkeypatch.syspath_prepend(project)
    yaml = next(block for block in re.findall(r"```yaml\n(.*?)```", README, flags=re.S) if "my_package" in block)
    text = (project / "sweeps/tiny.yaml").read_text()
    text = text[: text.index("  schedules:")] + "".join(f"  {line}\n" for line in yaml.splitlines())
    (project / "sweeps/tiny.yaml").write_text(text + "search: {trials: 1}\n")
    sweep, _ = load_sweep("sweeps/tiny.yaml", allow=["my_package."])
    assert [leaf.name for leaf in sweep.schedules.leaves("saw")][-1] == "saw.params.teeth"
