"""Figures: what lies outside, what is all alike, whose colour is whose, and whose settings count."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from PIL import Image

from runner import sweep
from runner.files.sweep_file import Objective
from runner.results import figures
from runner.results.answer import headline
from runner.schedules import load
from runner.schedules.zoo import TYPES

from ..conftest import HERE, children
from ..study.helpers import row, trial_of


def test_the_lowest_dot_of_a_figure_is_not_cut_by_its_frame():
    records = [trial_of("cosine", n, v) for n, v in enumerate((0.8, 0.6, 0.7, 0.81, 0.5331, 0.7))]
    axes = figures.objective_against_lr(records).axes[0]
    bottom, top = axes.get_ylim()
    assert min(axes.lines[0].get_ydata()) - bottom > 0.03 * (top - bottom)


def measured(record, judged_by):
    """A trial whose epochs have the metric that it is judged by."""
    return replace(record, epochs=[e | {judged_by.metric: record.value} for e in record.epochs])


@pytest.mark.parametrize("judged_by", [Objective(), Objective(metric="mm", direction="minimize", unit="mm")])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_figures_of_values_that_are_all_the_same_are_drawn_without_a_warning(tmp_path, value, judged_by):
    records = [measured(trial_of(name, n, value), judged_by) for n, name in enumerate(("cosine", "step"))]
    same = {"values": [value] * 3, "behind": 0.0, "behind_low": 0.0, "behind_high": 0.0}
    rows = [row(n, value, name=name) | same for n, name in enumerate(("cosine", "step"))]
    plans = {r.number: load(r.schedule) for r in records}
    for name, figure in figures.sweep_figures(records, plans, 10, 1, rows, judged_by).items():
        assert figures.save(figure, tmp_path / name).exists()  # a warning would be an error


def test_what_lies_outside_a_figure_is_an_arrow_with_its_number():
    (axes,) = figures.confidence_set([row(0, 0.89), row(2, 0.3, in_set=False, behind_high=0.9)]).axes
    assert "60 behind" in axes.texts[0].get_text()
    assert axes.get_xlim()[0] > -0.4


def test_no_two_types_have_the_same_colour():
    looks = [figures.style(kind) for kind in [*TYPES, "custom"]]
    assert len({look["color"] for look in looks}) == len(looks) == 21
    assert all(to_hex(look["color"]) == look["color"].lower() for look in looks)  # as MLflow wants them


def test_a_run_in_mlflow_has_the_colour_of_its_type(swept):
    tags = [run.data.tags for run in children()]
    assert {t["schedule.type"]: t["mlflow.runColor"] for t in tags} == {
        kind: figures.style(kind)["color"] for kind in ("cosine", "step", "wsd")
    }


@pytest.mark.parametrize(
    ("rows", "decided", "title"),
    [
        ([row(0, 0.9), row(1, 0.89, name="step")], True, "Both may be best after 3 seeds"),
        (
            [row(n, 0.9, name=name) for n, name in enumerate(list(TYPES)[:6])],
            True,
            "All six may be best after 3 seeds",
        ),
        ([row(0, 0.9), row(1, 0.8, False, "step"), row(2, 0.8, False, "wsd")], True, "cosine is the best of three"),
        ([row(0, 0.9), row(1, 0.9), row(2, 0.8, False)], True, "Two of three may be best after 3 seeds"),
        ([row(0, 0.9), row(1, 0.8, False)], True, "cosine (trial 0) is the best of two"),
        ([row(0, 0.9), row(1, 0.9), row(2, 0.9)], False, "Not decided yet: all three may be best"),
        ([row(0, 0.9)], True, "Only cosine was confirmed"),
        ([row(0, 0.9) | {"mean": None}], True, "Nothing could be confirmed"),
    ],
)
def test_the_title_of_a_comparison_is_its_answer(rows, decided, title):
    assert headline(rows, decided) == title
    assert figures.confidence_set(rows, title=title).axes[0].get_title(loc="left") == title


def test_a_comparison_is_sorted_by_the_confirmed_mean_and_says_points():
    rows = [row(0, 0.9), row(1, 0.84, name="step"), row(2, 0.86, in_set=False, name="wsd")]
    rows = [r | {"behind": 0.9 - r["mean"], "behind_low": -0.01} for r in rows]
    (axes,) = figures.confidence_set(rows).axes
    figure = axes.figure
    figure.canvas.draw()
    named = [label.get_text() for label in axes.get_yticklabels()]
    assert named == ["step, 3 seeds", "wsd, 3 seeds", "cosine, 3 seeds"]  # from the bottom
    assert axes.get_xlabel().startswith("points behind the best mean")
    assert "6" in [label.get_text() for label in axes.get_xticklabels()]


@pytest.mark.parametrize("n", [1, 6, pytest.param(20, marks=pytest.mark.slow)])
def test_every_curve_stands_under_its_name_and_every_text_inside_the_figure(n, tmp_path):
    names = list(TYPES)[:n]
    records = [trial_of(name, i + len(names) * k, 0.9 - 0.01 * i) for k in (0, 1) for i, name in enumerate(names)]
    records[-1] = replace(records[-1], value=None, outcome="diverged")
    rows = [row(i, 0.9 - 0.01 * i, name=name) for i, name in enumerate(names)]
    plans = {r.number: load(r.schedule) for r in records}
    made = figures.sweep_figures(records, plans, 20, 2, rows)
    assert [axes.get_title() for axes in made["lr_curves.png"].axes[:n]] == names  # as the table has them
    for name, figure in made.items():
        with Image.open(figures.save(figure, tmp_path / name)) as picture:
            assert picture.width <= 714, name  # MLflow's page at 1,300 pixels
        wide, high, drawn = *figure.get_size_inches(), figure.get_tightbbox()
        assert (drawn.x0 >= 0, drawn.y0 >= 0, drawn.x1 <= wide, drawn.y1 <= high) == (True,) * 4, name


def test_the_interval_of_what_was_confirmed_is_inside_its_panel():
    records = [trial_of("cosine", 0, 0.9), trial_of("step", 1, 0.89)]
    rows = [row(0, 0.9) | {"low": 0.6, "high": 0.99}, row(1, 0.3, in_set=False, name="step")]
    low, high = figures.objective_against_lr(records, rows).axes[0].get_ylim()
    assert low < 0.6 < 0.99 < high
    assert low > 0.3  # an arrow says that there is more


OWN = {
    "a matplotlibrc of another taste": "text.usetex: True\nfigure.facecolor: black\nfont.family: no such font\n"
    "savefig.dpi: 10\nlines.linewidth: 30\nfigure.autolayout: True\n",
    "a backend that there is not": "",
}


@pytest.mark.parametrize("which", OWN)
@pytest.mark.slow
def test_figures_are_the_same_whatever_matplotlib_is_set_to(which, tmp_path):
    """And a backend that somebody has chosen stays chosen."""
    (tmp_path / "matplotlibrc").write_text(OWN[which])
    code = (
        "import sys; from pathlib import Path; from runner.results import figures; "
        "from runner.schedules import load; "
        "figure = figures.schedules({'cosine': [load({'type': 'cosine'})]}, 20, 2, 'A title'); "
        "print(figures.save(figure, Path(sys.argv[1])).read_bytes().hex())"
    )
    (tmp_path / "plain").mkdir()
    drawn = []
    for folder, more in ((tmp_path, {"MPLBACKEND": "no such backend"}), (tmp_path / "plain", {})):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MPL")} | more
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        command = [sys.executable, "-c", code, "a.png"]
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
        drawn.append(run.stdout)
    assert drawn[0] == drawn[1]


def test_a_figure_that_fails_costs_itself_alone(swept, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("no font\nat all")

    monkeypatch.setattr(figures, "objective_against_lr", broken)
    assert sweep.main(["sweeps/tiny.yaml", *HERE, "--sync"]) == 0
    assert "warning: objective_against_lr.png was not drawn: RuntimeError: no font" in capsys.readouterr().out
    page = Path("results/tiny/report.md").read_text()
    assert "(lr_curves.png)" in page
    assert "objective_against_lr" not in page
