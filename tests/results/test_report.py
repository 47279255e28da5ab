"""The report: its sentences, and what it says comes next."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from runner import export, sweep
from runner.files.metrics import METRICS
from runner.files.sweep_file import Objective, load_sweep
from runner.files.trial import Record
from runner.results.answer import describe, describe_calibration, describe_search, describe_strip, edge, next_steps
from runner.schedules import load
from runner.study.confidence import Contest, Noise, seeds_needed
from runner.study.confirm import Verdict

from ..conftest import HERE, TINY
from ..study.helpers import row, searched, trial_of


def test_the_strip_in_words_has_the_unit_of_what_is_judged():
    rows = [
        {"change": "warmup x0", "diverged": 0, "difference": -0.0125, "low": -0.02, "high": -0.005},
        {"change": "init_lr x2", "diverged": 1, "difference": 0.01, "low": -0.01, "high": 0.03},
        {"change": "warmup x2", "diverged": 3, "difference": None, "low": math.nan, "high": math.nan},
    ]
    rows = [row | {"seeds": 3, "failed": 0} for row in rows]
    assert describe_strip("cosine (trial 7)", rows, Objective()) == (
        "Around cosine (trial 7), seed by seed (mean difference in points, 95 % interval): "
        "warmup x0 -1.2 (-2 to -0.5); init_lr x2 +1 (-1 to +3), 1 of 3 diverged; warmup x2 diverged."
    )
    failed = rows[2] | {"diverged": 1, "failed": 2}
    assert describe_strip("x", [failed], Objective()).endswith(": warmup x2 1 of 3 diverged, 2 of 3 failed.")
    single = rows[1] | {"diverged": 2, "low": math.nan, "high": math.nan}
    assert describe_strip("x", [single], Objective()).endswith(": init_lr x2 +1, 2 of 3 diverged.")
    assert describe_strip("x", rows[:1], Objective(metric="val/loss")).endswith(
        "(mean difference, less is better, 95 % interval): warmup x0 -0.013 (-0.02 to -0.005)."
    )


def test_what_comes_next_is_said_with_the_options_that_it_needs(project, capsys, monkeypatch):
    Path("own_next.py").write_text("def line(t, T):\n    return 1 - t / T\n")
    monkeypatch.syspath_prepend(project)
    text = TINY[: TINY.index("  schedules:")] + "  schedules: {mine: {type: custom, function: own_next.line}}\n"
    Path("sweeps/tiny.yaml").write_text(text + "search: {trials: 1}\nconfirm: {top: 0, types: false}\n")
    assert sweep.main(["sweeps/tiny.yaml", *HERE, "--allow-plugin", "own_next.", "--data-dir", "elsewhere"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "python -m runner.export tiny --code 1 --allow-plugin own_next." in out
    said = "Reproduce, continue, or add trials: `python -m runner.sweep sweeps/tiny.yaml --data-dir elsewhere "
    assert said + "--allow-plugin own_next.`." in Path("results/tiny/report.md").read_text()
    assert export.main(["tiny", "--code", "1", "--allow-plugin", "own_next."]) == 0


def test_calibration_compares_the_trials_that_have_both_scores(tiny):
    rung = [Record(**{**vars(r), "train": {"epochs": 1}}) for r in searched(0.1, 0.2, 0.3, 0.4, 0.5)]
    full = searched(0.5, 0.6, 0.7, 0.8, 0.9)
    assert "on the 5 trials that went on, Kendall's tau with full training is 1.00" in describe_calibration(
        rung, full, tiny()
    )
    assert "search at full length" in describe_calibration(rung, searched(0.9, 0.8, 0.7, 0.6, 0.5), tiny())
    assert "too few" in describe_calibration(rung, full[:2], tiny())
    again = [*rung, replace(rung[4], number=5)]
    assert describe_calibration(again, full, tiny()) == describe_calibration(rung, full, tiny())


def test_the_report_names_the_schedules_of_which_little_is_known(tiny):
    many = [trial_of("cosine", n, 0.9) for n in range(5)]
    said = next_steps([*many, trial_of("step", 5, 0.8)], [], tiny(), None)
    assert said[0] == "Never tried: wsd. The answer says nothing about it."
    assert len(said) == 2
    assert said[1].startswith(
        "Few trials: step 1. Another init_lr may be better there. In the file, search.trials: 15"
    )
    assert "balance: equal" in said[1]
    said = next_steps([*many, trial_of("step", 5, None, outcome="diverged")], [], tiny(), None)
    assert said[0] == "Always diverged: step. A lower init_lr may help."
    assert said[1].startswith("Never tried: wsd. The answer says nothing about it. In the file, search.trials: 11")
    failed = replace(trial_of("step", 5, None, outcome="failed"), cause="RuntimeError: no")
    said = next_steps([*many, failed, trial_of("step", 6, None, outcome="stopped")], [], tiny(), None)
    assert said[0] == "Never came to an end: step (1 failed, 1 stopped: RuntimeError: no)."
    enough = [trial_of(name, 5 * i + n, 0.9) for i, name in enumerate(["cosine", "step", "wsd"]) for n in range(5)]
    assert next_steps(enough, [], tiny(), None) == []
    (said,) = next_steps(enough[:3], [], tiny(), None, searched=enough)
    assert said.startswith("Dropped after the short stage, and not trained again: step, wsd. The answer")
    uneven = [trial_of(name, n, 0.9) for n, name in enumerate(["cosine", "cosine", "step", "wsd"])]
    (said,) = next_steps(uneven, [], tiny(search="{trials: 4, balance: equal}"), None)
    assert "search.trials: 15 gives 5 of each" in said


def test_the_number_of_trials_that_the_report_asks_for_gives_what_it_says(tiny, sweep_file):
    names = ["cosine", "step", "wsd"]
    turns = [
        trial_of(names[n % 3], n, 0.9 if n % 3 else None, outcome="complete" if n % 3 else "failed") for n in range(9)
    ]
    (_, few) = next_steps(turns, [], tiny(search="{trials: 9, balance: equal}"), None)
    assert "search.trials: 15 gives 5 of each" in few  # step and wsd lack two; cosine's turns come with them
    wished = [trial_of(name, n, 0.9) for n, name in enumerate(["cosine"] * 9 + ["step"] * 4 + ["wsd"] * 2)]
    (few,) = next_steps(wished, [], tiny(search="{trials: 15, balance: equal}"), None)
    assert "search.trials: 19 gives 5 of each" in few
    lines = [line for line in TINY.splitlines() if not line.startswith((" ", "space", "search"))]
    leaves = "space: {init_lr: {choice: [0.01, 0.1]}, schedules: {cosine: {}, step: {}, wsd: {}}}"
    for points, advice in ((turns[:3], "search.trials: 6 is the whole grid"), (turns[:6], None)):
        text = "\n".join([*lines, leaves, "search: {trials: 3, sampler: grid}"]) + "\n"
        said = next_steps(points, [], load_sweep(sweep_file(text, name="grid.yaml"))[0], None)
        assert any("search.trials" in s for s in said) == (advice is not None)
        assert advice is None or advice in said[-1]


def test_the_report_says_where_hardly_anything_was_learnt(tiny):
    guessed = [trial_of(name, 5 * i + n, 0.37) for i, name in enumerate(["cosine", "step", "wsd"]) for n in range(5)]
    (said,) = next_steps(guessed, [], tiny(), None, majority=1 / 3)
    assert said.startswith("Hardly anything was learnt: the best accuracy is 0.37, and always giving the most")
    assert "has 0.33" in said
    assert next_steps(guessed, [], tiny(), None, majority=0.1) == []


def test_the_report_says_how_many_seeds_would_tell_the_first_two_apart(tiny):
    many = [trial_of(name, 5 * i + n, 0.9) for i, name in enumerate(["cosine", "step", "wsd"]) for n in range(5)]
    measured, plan = Noise(0.01, 0.012), tiny(confirm="{strip: true}")
    (said,) = next_steps(many, [row(0, 0.9), row(5, 0.89, name="step")], plan, measured)
    assert said.startswith("If cosine (trial 0) and step (trial 5) differ by the 1 point that was measured, about ")
    assert f"about {seeds_needed(0.01, 0.012)} seeds each show it" in said
    assert f"about {seeds_needed(0.01, 0.012)} seeds" in said
    few = Noise(0.001, 0.0012)
    (said,) = next_steps(many, [row(0, 0.9), row(5, 0.89, name="step")], plan, few)
    assert "about 4 seeds each" in said  # more than there are
    (said,) = next_steps(many, [row(0, 0.9), row(5, 0.8999, name="step")], plan, measured)
    assert said.endswith("(trial 5) differ by 0.01 points as measured; to show that takes more than 100 seeds each.")
    (said,) = next_steps(many, [row(0, 0.9), row(5, 0.9, name="step")], plan, measured)
    assert said.startswith("cosine (trial 0) and step (trial 5) have the same mean")
    assert next_steps(many, [row(0, 0.9), row(5, 0.7, in_set=False)], plan, measured) == []


def test_the_report_says_how_to_learn_what_the_first_one_needs(tiny):
    warm = trial_of("cosine", 0, 0.9)
    warm = replace(warm, schedule=load({"type": "cosine", "init_lr": 0.05, "warmup": {"epochs": 1}}).to_json())
    many = [trial_of(name, 5 * i + n, 0.9) for i, name in enumerate(["cosine", "step", "wsd"]) for n in range(5)]
    records, rows = [warm, *many[1:]], [row(0, 0.9), row(5, 0.7, in_set=False, name="step")]
    (said,) = next_steps(records, rows, tiny(), Noise(0.01, 0.012))
    assert said.startswith(
        "How exactly cosine (trial 0) needs its init_lr, and whether its warmup: with confirm.strip"
    )
    (said,) = next_steps(records, [row(5, 0.9, name="step")], tiny(), Noise(0.01, 0.012))
    assert said.startswith("How exactly step (trial 5) needs its init_lr: ")
    assert next_steps(records, rows, tiny(confirm="{strip: true}"), Noise(0.01, 0.012)) == []


@pytest.mark.parametrize(("init_lr", "end"), [(0.0031, "lower"), (0.03, None), (0.29, "upper")])
def test_a_best_at_the_end_of_its_range_is_pointed_out(tiny, init_lr, end):
    assert edge(trial_of("cosine", 0, 0.9, init_lr), tiny()) == end


@pytest.mark.slow
def test_a_loss_is_no_percentage_in_the_report(project, capsys):
    text = TINY.replace("top: 0, types: false", "top: 2, types: false, seeds: 3")
    Path("sweeps/tiny.yaml").write_text(text + "objective: {metric: val/loss}\n")
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    said = Path("results/tiny/report.md").read_text()
    (noise,) = (line for line in said.splitlines() if line.startswith("Another seed moves a result by"))
    assert "point" not in noise


def test_what_the_strip_says_follows_the_metric_and_its_direction(monkeypatch):
    row = {"change": "warmup x2", "seeds": 3, "diverged": 0, "failed": 0, "difference": 0.5, "low": 0.4, "high": 0.6}
    assert "difference, less is better" in describe_strip("x", [row], Objective(metric="val/loss"))
    monkeypatch.setitem(METRICS, "loss", replace(METRICS["loss"], direction="maximize"))
    assert "difference, more is better" in describe_strip("x", [row], Objective(metric="val/loss"))


def behind(name: str, trial: int, apart: float, low: float, high: float):
    more = {"behind": apart, "behind_low": low, "behind_high": high}
    return row(trial, 0.9 - apart, in_set=False, name=name) | more


@pytest.mark.parametrize(
    ("metric", "rows", "said"),
    [
        (
            "val/accuracy",
            [behind("constant", 1, 0.021, 0.012, 0.03), behind("step", 2, 0.009, 0.002, 0.016)],
            ["Take cosine (93.1 %): the best of three with 95 % confidence.",
             "step is 0.9 points behind (0.2 to 1.6), constant 2.1 (1.2 to 3.0)."],
        ),
        (
            "val/loss",
            [behind("constant", 1, 0.21, 0.12, 0.3)],
            ["Take cosine (0.931): the best of two with 95 % confidence.", "constant is 0.21 behind (0.12 to 0.30)."],
        ),
        (
            "val/accuracy",
            [behind(f"s{n}", n, n / 100, n / 200, n / 50) for n in range(1, 10)],
            ["Take cosine (93.1 %): the best of ten with 95 % confidence.",
             "s1 is 1.0 points behind (0.5 to 2.0), s2 2.0 (1.0 to 4.0), s3 3.0 (1.5 to 6.0), s4 4.0 (2.0 to 8.0), "
             "s5 5.0 (2.5 to 10.0), s6 6.0 (3.0 to 12.0), and three more by 7.0 points or more."],
        ),
    ],
)  # fmt: skip
def test_the_headline_recommends_and_says_who_is_behind_by_how_much(metric, rows, said):
    objective = Objective(metric=metric)
    alone = Contest([0], {}, True)
    scores = {0: [objective.sign * 0.931]} | {r["trial"]: [0.0] for r in rows}
    assert describe(Verdict([row(0, 0.931), *rows], alone, scores, None, []), objective) == said


def test_a_search_alone_says_what_to_take_now_and_why_that_is_not_sure(tiny):
    (said,) = describe_search([trial_of("cosine", 3, 0.975), trial_of("step", 1, 0.9)], tiny(), goes_on=True)
    assert said.startswith("The search alone, one seed each: the comparison with fresh seeds has not ended. ")
    assert "If you must choose now, take cosine (trial 3, 97.5 %): the best of 2 trials with one seed each." in said
    (said,) = describe_search([trial_of("cosine", 3, 0.975)], tiny(objective="{metric: val/loss}"), goes_on=False)
    assert said.startswith("If you must choose now, take cosine (trial 3, 0.975): the only trial, with one seed. ")
    assert "With confirm: {top: 3} in the sweep file, the same command trains the best again" in said


def test_the_report_asks_for_no_more_trials_of_a_schedule_that_has_none(sweep_file):
    lines = [line for line in TINY.splitlines() if not line.startswith((" ", "space", "search"))]
    space = "space: {init_lr: {log_uniform: [0.01, 1.0]}, schedules: {cosine: {}, step: {init_lr: 0.1}}}"
    search = "search: {trials: 6, balance: equal}"
    plan, _ = load_sweep(sweep_file("\n".join([*lines, space, search]) + "\n"))
    done = [trial_of("cosine", n, 0.9) for n in range(4)]
    (few,) = next_steps([*done, trial_of("step", 4, 0.9)], [], plan, None)
    assert few.startswith("Few trials: cosine 4. ")
    assert "search.trials: 6 gives 5 of each, or all there are" in few
    assert next_steps([*done, trial_of("cosine", 5, 0.9), trial_of("step", 4, 0.9)], [], plan, None) == []
