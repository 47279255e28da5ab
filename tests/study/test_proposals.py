"""What is trained next: each type in its turn, nothing twice, and the whole range of every type."""

from collections import Counter

import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import create_trial

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


def spaced(sweep_file, space: str, search: str):
    """The tiny sweep with another space and search."""
    lines = [line for line in TINY.splitlines() if not line.startswith((" ", "space", "search"))]
    return load_sweep(sweep_file("\n".join([*lines, f"space: {space}", f"search: {search}"]) + "\n"))[0]


def carried_out(plan, path, outcome="complete") -> Study:
    """The whole search, as it would be trained on one lane."""
    study = Study(plan, f"sqlite:///{path}")
    while (record := study.next()) is not None:
        study.commit(record.number, 0, {"val/accuracy": 0.5 + record.number / 100, "val/loss": 1.0, "seconds": 1.0})
        study.tell(record.number, outcome)
    return study


@pytest.mark.parametrize("balance", ["free", "equal"])
@pytest.mark.parametrize(("sampler", "outcome"), [("tpe", "complete"), ("random", "failed"), ("qmc", "diverged")])
def test_a_schedule_without_open_values_is_trained_once_and_the_others_get_its_turns(
    sweep_file, tmp_path, sampler, balance, outcome
):
    fixed = "{type: cosine, init_lr: 0.1}"
    space = f"{{schedules: {{known: {fixed}, cosine: {{init_lr: {{log_uniform: [0.01, 1.0]}}}}}}}}"
    plan = spaced(sweep_file, space, f"{{trials: 8, sampler: {sampler}, balance: {balance}}}")
    study = carried_out(plan, tmp_path / "a.db", outcome)
    assert Counter(r.name for r in study.records()) == {"known": 1, "cosine": 7}
    assert len({r.params.get("cosine.init_lr") for r in study.records()}) == 8
    assert study.complete()


@pytest.mark.parametrize("balance", ["free", "equal"])
@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_a_space_of_which_everything_was_tried_ends_the_search(sweep_file, tmp_path, sampler, balance):
    space = (
        "{schedules: {cosine: {init_lr: {choice: [0.1, 0.2]}}, rex: {init_lr: 0.1}, sine: {cycles: {int: [1, 3]}}}}"
    )
    plan = spaced(sweep_file, space, f"{{trials: 40, sampler: {sampler}, balance: {balance}}}")
    study = carried_out(plan, tmp_path / "a.db")
    assert Counter(r.name for r in study.records()) == {"cosine": 2, "rex": 1, "sine": 3}
    assert len({frozenset(r.params.items()) for r in study.records()}) == 6 == study.target
    assert study.complete()


def test_the_last_point_that_is_left_is_found_however_the_sampler_looks(sweep_file):
    plan = spaced(sweep_file, "{init_lr: {int: [1, 50]}, schedules: {cosine: {}}}", "{trials: 50, sampler: tpe}")
    drawn = list[tuple]()
    for n in range(50):
        drawn.append(propose(n, [trial for trial, *_ in drawn], plan))
    assert {trial.params["init_lr"] for trial, *_ in drawn} == set(range(1, 51))
    assert propose(50, [trial for trial, *_ in drawn], plan) is None


def test_a_study_that_has_trained_a_point_several_times_goes_on_with_the_others(sweep_file):
    space = "{schedules: {known: {type: cosine}, cosine: {init_lr: {log_uniform: [0.01, 1.0]}}}}"
    plan = spaced(sweep_file, space, "{trials: 9, balance: equal}")
    again = create_trial(
        params={"type": "known"}, distributions={"type": CategoricalDistribution(["known", "cosine"])}, value=0.5
    )
    _, name, _ = propose(3, [again] * 3, plan)
    assert name == "cosine"
    assert propose(1, [again], spaced(sweep_file, "{schedules: {known: {type: cosine}}}", "{trials: 9}")) is None


def test_a_grid_is_walked_schedule_after_schedule(sweep_file, tmp_path):
    space = "{init_lr: {choice: [0.1, 0.2]}, schedules: {rex: {}, cosine: {}}}"
    study = carried_out(spaced(sweep_file, space, "{trials: 4, sampler: grid}"), tmp_path / "a.db")
    assert [(r.name, r.params["init_lr"]) for r in study.records()] == [
        ("rex", 0.1), ("rex", 0.2), ("cosine", 0.1), ("cosine", 0.2)
    ]  # fmt: skip


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
