"""Figures: what lies outside, and what is all alike."""

import pytest

from runner.results import figures
from runner.schedules import load

from ..study.helpers import row, trial_of


def test_the_lowest_dot_of_a_figure_is_not_cut_by_its_frame():
    records = [trial_of("cosine", n, v) for n, v in enumerate((0.8, 0.6, 0.7, 0.81, 0.5331, 0.7))]
    axes = figures.accuracy_against_lr(records).axes[0]
    bottom, top = axes.get_ylim()
    assert min(axes.lines[0].get_ydata()) - bottom > 0.03 * (top - bottom)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_figures_of_values_that_are_all_the_same_are_drawn_without_a_warning(tmp_path, value, sign):
    records = [trial_of(name, n, value) for n, name in enumerate(("cosine", "step"))]
    same = {"values": [value] * 3, "behind": 0.0, "behind_low": 0.0, "behind_high": 0.0}
    rows = [row(n, value, name=name) | same for n, name in enumerate(("cosine", "step"))]
    plans = {r.number: load(r.schedule) for r in records}
    for name, figure in figures.sweep_figures(records, plans, 10, 1, rows, sign=sign).items():
        assert figures.save(figure, tmp_path / name).exists()  # a warning would be an error


def test_what_lies_outside_a_figure_is_an_arrow_with_its_number():
    (axes,) = figures.confidence_set([row(0, 0.89), row(2, 0.3, in_set=False, behind_high=0.9)]).axes
    assert "0.6 behind" in axes.texts[0].get_text()
    assert axes.get_xlim()[0] > -0.4
