"""A budget of time: what fresh seeds need is set aside, and what was cut is gone on with."""

from pathlib import Path

import pytest

from runner import sweep
from runner.export import best_schedules
from runner.files.place import load_place
from runner.study.budget import Budget, seconds_per_epoch
from runner.study.study import load_study

from ..conftest import HERE, TINY
from .helpers import trial_of


def measured(*seconds):
    """A trial whose epochs took so long."""
    trial = trial_of("cosine", 0, 0.9)
    epochs = [{"epoch": n, "timestamp": n, "seconds": s, "lr": 0.1} for n, s in enumerate(seconds)]
    return [type(trial)(**{**vars(trial), "epochs": epochs})]


def test_a_training_begins_where_it_and_what_follows_end_in_time():
    budget = Budget(seconds=100.0)
    assert budget.has_room(epochs=29, later=16, lanes=1, measured=measured(2.0, 2.0))  # 58 s and 40 s
    assert not budget.has_room(epochs=31, later=16, lanes=1, measured=measured(2.0, 2.0))
    assert Budget(100.0).has_room(31, 16, lanes=2, measured=measured(2.0))  # two at once
    assert not Budget(100.0).has_room(51, 0, lanes=1, measured=measured(2.0))


def test_at_most_half_of_the_time_is_set_aside():
    assert Budget(100.0).has_room(20, later=10_000, lanes=1, measured=measured(2.0))
    assert not Budget(100.0).has_room(30, later=10_000, lanes=1, measured=measured(2.0))


def test_as_long_as_nothing_was_measured_and_without_a_budget_there_is_room():
    assert Budget(1.0).has_room(10_000, 10_000, 1, [])
    assert Budget().has_room(10_000, 10_000, 1, measured(1e6))


def test_whether_something_was_cut_is_known():
    budget = Budget(10.0)
    assert budget.has_room(1, 0, 1, measured(2.0))
    assert not budget.over
    assert not budget.has_room(6, 0, 1, measured(2.0))
    assert budget.over


def test_the_time_of_an_epoch_is_that_of_the_last_ones():
    assert seconds_per_epoch(measured(*[100.0] * 10, *[1.0] * 40)) == 1.0
    assert seconds_per_epoch([]) is None


@pytest.mark.slow
def test_a_sweep_that_is_cut_says_so_confirms_what_it_has_and_goes_on_with_more_time(project, capsys):
    (project / "own_budget.py").write_text(
        "import time\n\n\ndef train(job):\n    for n in range(job.epochs):\n        time.sleep(0.3)\n"
        "        yield {'val/loss': 1.0 + job.schedule.init_lr * (1 + job.seed / 9), 'lr': job.schedule.init_lr}\n"
    )
    text = TINY[TINY.index("space:") :].replace("trials: 3", "trials: 40")
    text = text.replace("step: {step_size: {uniform: [0.3, 0.5]}, gamma: 0.3}", "constant: {}").replace(
        "top: 0, types: false", "top: 1, types: false, seeds: 2"
    )
    head = "question: How many?\ntrain: {function: own_budget.train, epochs: 2}\nobjective: {metric: val/loss}\n"
    Path("sweeps/cut.yaml").write_text(head + text)
    command = ["sweeps/cut.yaml", *HERE, "--allow-plugin", "own_budget."]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(project)
        assert sweep.main([*command, "--minutes", "0.2"]) == 0  # 12 s, of which fresh seeds need 1.8
        said = " ".join(capsys.readouterr().out.split())
        ended = len(load_study("cut", load_place().storage)[1])
        done = len(best_schedules("cut"))
        assert 3 <= done <= 20
        assert ended - done <= 1  # one was proposed ahead
        assert f"Time was up (--minutes 0.2) after {done} of 40 trainings of the search" in said
        assert "how many depends on this machine's speed. The same command with more time goes on." in said
        assert best_schedules("cut")["seeds"].dropna().tolist() in ([1], [2])  # on a machine that is busy
        Path("sweeps/cut.yaml").write_text((head + text).replace("trials: 40", f"trials: {ended + 1}"))
        assert sweep.main([*command, "--hours", "1"]) == 0
        assert "Time was up" not in capsys.readouterr().out
        assert len(best_schedules("cut")) == ended + 1


@pytest.mark.parametrize("option", [["--hours", "0"], ["--minutes", "-3"], ["--stall-minutes", "0"]])
def test_a_time_is_more_than_nothing(project, option, capsys):
    assert sweep.main(["sweeps/tiny.yaml", *HERE, *option]) == 2
    assert f"error: {option[0]} must be a number above 0" in capsys.readouterr().err
