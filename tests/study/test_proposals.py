"""What is trained next: each type in its turn, nothing twice, and the whole range of every type."""

from collections import Counter

import pytest

from runner.files.sweep_file import load_sweep
from runner.study.proposals import propose
from runner.study.study import Study

from ..conftest import TINY


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_balance_gives_every_type_its_turn(sweep_file, tmp_path, sampler):
    text = f"search: {{trials: 12, sampler: {sampler}, balance: equal}}"
    plan, _ = load_sweep(sweep_file(search=text))
    study = Study(plan, f"sqlite:///{tmp_path / 'a.db'}")
    while (record := study.next()) is not None:
        study.commit(record.number, 0, {"val/accuracy": 0.5, "val/loss": 1.0, "seconds": 1.0})
        study.tell(record.number, "complete")
    assert [r.name for r in study.records()] == ["cosine", "step", "wsd"] * 4
    assert len({(r.name, r.params["init_lr"]) for r in study.records()}) == 12


def test_a_space_of_which_everything_was_tried_is_tried_again(sweep_file, tmp_path):
    lines = [line for line in TINY.splitlines() if not line.startswith((" ", "space", "search"))]
    text = "\n".join([*lines, "space: {schedules: {cosine: {}, step: {}}}", "search: {trials: 5}"]) + "\n"
    study = Study(load_sweep(sweep_file(text))[0], f"sqlite:///{tmp_path / 'a.db'}")
    while (record := study.next()) is not None:
        study.tell(record.number, "failed")
    assert Counter(r.name for r in study.records()[:2]) == {"cosine": 1, "step": 1}
    assert len(study.records()) == 5


def test_quasi_random_points_of_a_type_cover_its_whole_range_whatever_the_number_of_types(sweep_file):
    for types in ("cosine: {}, step: {}", "cosine: {}, step: {}, wsd: {}, rex: {}"):
        text = f"space: {{init_lr: {{uniform: [0.0, 1.0]}}, schedules: {{{types}}}}}".replace("[0.0", "[0.001")
        lines = [line for line in TINY.splitlines() if not line.startswith((" ", "space", "search"))]
        text = "\n".join([*lines, text, "search: {trials: 32, sampler: qmc, balance: equal}"]) + "\n"
        plan, _ = load_sweep(sweep_file(text))
        drawn = list[tuple]()
        for n in range(32):
            drawn.append(propose(n, [trial for trial, *_ in drawn], plan))
        for name in plan.schedules.schedules:
            values = [trial.params["init_lr"] for trial, given, _ in drawn if given == name]
            assert (min(values) < 0.3, max(values) > 0.7) == (True, True), name
