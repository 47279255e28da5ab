"""Confirmation: fresh seeds, paired, in rounds, until the set is resolved; screening, stopping and warm starts."""

import json
import math
import random
import re
from collections import Counter
from contextlib import closing
from dataclasses import replace
from io import StringIO
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from rich.console import Console

from runner import export, figures, sweep, terminal
from runner.confidence import Noise, seeds_needed
from runner.confirm import (
    STRIP,
    Confirmation,
    amount,
    arms,
    best_of_each,
    changed,
    fresh,
    ledger,
    possible,
    scores,
    verdict,
)
from runner.document import SpecError
from runner.export import best_schedules, best_table, for_people, markdown
from runner.place import load_place
from runner.report import _sentences, around, audited, calibrated, edge, next_steps
from runner.schedules import load
from runner.spec import Data, Record, best_first, load_sweep
from runner.study import Study, earlier_noise, load_study, propose
from runner.train import Epoch

from .conftest import TINY

HERE = ["sweeps/tiny.yaml", "--device", "cpu", "--lanes", "0"]


def searched(*values: float, names="ab", first=0) -> list[Record]:
    """Complete trials with these values, of two schedules in turn."""
    return [
        Record(
            first + i,
            names[i % len(names)],
            load({"type": "cosine", "init_lr": 0.01 * (i + 1)}).to_json(),
            {"n": i},
            "complete",
            v,
        )
        for i, v in enumerate(values)
    ]


def confirmed(sweep_, path, chosen, outcome) -> Confirmation:
    """Carry a confirmation out on ``sqlite``, in which ``outcome(arm, seed)`` is what a training gives."""
    study = Confirmation(sweep_, f"sqlite:///{path}", chosen, updates=4)
    while (record := study.next()) is not None:
        value = outcome(record.arm, record.train["seed"])
        metrics = {"val/accuracy": value, "val/loss": value, "seconds": 1.0, "lr": 0.1, "test/accuracy": value - 0.01}
        study.commit(record.number, 0, metrics)
        study.tell(record.number, "complete" if math.isfinite(value) else "diverged")
    return study


@pytest.fixture
def tiny(sweep_file):
    def write(**lines: str):
        return load_sweep(sweep_file(TINY + "objective: {}\n", **{k: f"{k}: {v}" for k, v in lines.items()}))[0]

    return write


# --- what is confirmed -----------------------------------------------------------------------------------------


def test_the_top_and_the_best_of_every_schedule_are_confirmed_best_first(tiny):
    records = searched(0.5, 0.9, 0.6, 0.8, 0.7, 0.3)
    assert [r.number for r in arms(records, tiny(confirm="{top: 2}"))] == [1, 3, 4]
    assert [r.number for r in arms(records, tiny(confirm="{top: 0}"))] == [1, 4]
    assert arms(records, tiny(confirm="{top: 0, types: false}")) == []
    by_loss = tiny(confirm="{top: 1, types: false}", objective="{metric: val/loss}")
    assert [r.number for r in arms(records, by_loss)] == [5]


def test_all_arms_get_the_same_fresh_seeds_and_the_selecting_one_is_never_among_them(tiny, tmp_path):
    plan = tiny(confirm="{top: 3, types: false, seeds: 4}")
    study = confirmed(plan, tmp_path / "a.db", searched(0.9, 0.8, 0.7), lambda arm, seed: 0.5 + 0.01 * seed)
    seeds = {arm: [r.train["seed"] for r in study.records() if r.arm == arm] for arm in "012"}
    assert seeds == {key: [1, 2, 3, 4] for key in "012"}
    assert plan.train.seed not in seeds["0"]


def test_an_arm_that_is_clearly_worse_gets_no_more_seeds(tiny, tmp_path):
    plan = tiny(confirm="{top: 3, types: false, seeds: 6}")
    values = {"0": 0.9, "1": 0.9, "2": 0.2}
    study = confirmed(
        plan,
        tmp_path / "a.db",
        searched(0.9, 0.8, 0.7),
        lambda a, s: values[a] + 0.001 * (s * 7 % 5 - 2) * (-1) ** int(a),
    )
    count = {arm: sum(r.arm == arm for r in study.records()) for arm in values}
    assert count == {"0": 6, "1": 6, "2": 3}
    answer = verdict(study.records(), study.arms, plan)
    assert sorted(answer.alive) == [0, 1]
    assert "These 2 cannot be told apart with 6 seeds each" in answer.sentences[0]
    assert "Another seed moves a result by 0.15 points (one standard deviation). 6 seeds each" in answer.sentences[1]


def test_schedules_with_the_same_mean_stand_in_the_table_as_in_the_sentence(tiny, tmp_path):
    plan = tiny(confirm="{top: 2, types: false, seeds: 5}")
    values = {"0": [0.25, 0.5, 0.5, 0.75, 0.75], "1": [0.75, 0.5, 0.5, 0.5, 0.5]}  # 1 was ahead at the first look
    study = confirmed(plan, tmp_path / "a.db", searched(0.9, 0.8), lambda a, s: values[a][s - 1])
    answer = verdict(study.records(), study.arms, plan)
    assert "with 5 seeds each: b (trial 1), a (trial 0). " in answer.sentences[0]
    assert [row["trial"] for row in answer.rows] == answer.alive == [1, 0]


def test_a_clear_winner_ends_the_confirmation_at_the_first_look(tiny, tmp_path):
    plan = tiny(confirm="{top: 2, types: false, seeds: 50}")
    study = confirmed(
        plan, tmp_path / "a.db", searched(0.9, 0.8), lambda a, s: {"0": 0.4, "1": 0.9}[a] + 0.01 * (s % 2)
    )
    assert len(study.records()) == 6
    answer = verdict(study.records(), study.arms, plan)
    assert answer.sentences[0].startswith("b (trial 1) is the best of the 2 that were compared: the other is behind")
    assert [(row["trial"], row["in_set"]) for row in answer.rows] == [(1, True), (0, False)]


def test_the_rows_are_in_the_objectives_own_unit_and_the_test_split_is_reported(tiny, tmp_path):
    plan = tiny(confirm="{top: 2, types: false, seeds: 3}")
    study = confirmed(plan, tmp_path / "a.db", searched(0.99, 0.8), lambda a, s: 0.5 + 0.1 * int(a) + 0.01 * s)
    answer = verdict(study.records(), study.arms, plan)
    best = answer.rows[0]
    assert best["mean"] == pytest.approx(0.62)
    assert best["test_accuracy"] == pytest.approx(0.61)
    assert answer.rows[1]["selected_at"] == 0.99  # and is not believed
    assert best["low"] < 0.62 < best["high"]


def test_an_arm_that_diverges_with_a_fresh_seed_is_no_answer(tiny, tmp_path):
    plan = tiny(confirm="{top: 2, types: false, seeds: 5}")
    study = confirmed(
        plan, tmp_path / "a.db", searched(0.9, 0.8), lambda a, s: math.nan if (a, s) == ("0", 2) else 0.5 + 0.01 * s
    )
    answer = verdict(study.records(), study.arms, plan)
    assert answer.alive == [1]
    assert "Not every seed of a (trial 0) came to its end" in answer.sentences[-1]
    assert list(scores(study.records(), study.arms, plan)) == [1]


def test_the_strip_waits_for_the_winner_however_many_trainings_run_at_once(tiny, tmp_path):
    plan, tables = tiny(confirm="{top: 2, types: false, seeds: 3, strip: true}"), []
    for name, lanes in (("one", 1), ("many", 8)):
        study = Confirmation(plan, f"sqlite:///{tmp_path / name}.db", searched(0.9, 0.8), updates=4)
        running: list[Record] = []
        while True:
            while len(running) < lanes and (record := study.next()) is not None:
                running.append(record)
            if not running:
                break
            record = running.pop(0)
            lost = record.train["seed"] == 3 or record.arm == "1"
            study.commit(record.number, 0, {"val/accuracy": 0.5, "val/loss": 1.0, "seconds": 1.0})
            study.tell(record.number, "diverged" if lost else "complete")
        tables.append([(r.number, r.arm, r.train["seed"]) for r in study.records()])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 6


def test_what_is_said_of_an_arm_that_was_lost_is_not_that_it_is_worse(tiny, tmp_path):
    plan = tiny(confirm="{top: 2, types: false, seeds: 3}")
    study = confirmed(
        plan,
        tmp_path / "a.db",
        searched(0.9, 0.8),
        lambda a, s: math.nan if (a, s) == ("0", 2) else 0.9 - 0.4 * int(a) + 0.001 * s,
    )
    answer = verdict(study.records(), study.arms, plan)
    assert answer.sentences[0] == "Only b (trial 1) was confirmed: there is nothing to compare it with."
    lost = next(row for row in answer.rows if row["trial"] == 0)
    assert (lost["mean"], lost["test_accuracy"]) == (None, None)
    assert [r.number for r in best_first(searched(0.9, 0.8, 0.7), 1, answer.rows)] == [1, 2, 0]


def test_the_test_split_is_shown_for_the_same_seeds_as_the_objective(tiny, tmp_path):
    wide, small = (tiny(confirm=f"{{top: 1, types: false, seeds: {n}}}") for n in (5, 3))
    study = confirmed(wide, tmp_path / "a.db", searched(0.9), lambda _, s: 0.1 * s)
    (row_,) = verdict(study.records(), study.arms, small).rows
    assert (row_["seeds"], row_["mean"]) == (3, pytest.approx(0.2))
    assert row_["test_accuracy"] == pytest.approx(0.19)


def test_no_schedule_is_confirmed_or_goes_on_twice(sweep_file, tmp_path):
    same = searched(0.9, 0.9, 0.8, 0.7)
    copies = [same[0], same[1], replace(same[0], number=9, value=0.9), replace(same[0], number=8, value=0.1)]
    for top, expected in ((1, [0]), (3, [0, 1])):
        plan, _ = load_sweep(sweep_file(confirm=f"confirm: {{top: {top}, types: false}}"))
        assert [r.number for r in arms(copies, plan)] == expected
    twins = [same[0], replace(same[0], number=5, name="b", value=0.8)]
    plan, _ = load_sweep(sweep_file(confirm="confirm: {top: 1, types: true}"))
    assert [r.number for r in arms(twins, plan)] == [0, 5]  # a schedule of two names is the best of each
    assert [r.number for r in best_of_each(searched(0.9, 0.8, 0.7, 0.6))] == [0, 1]
    choices = "space: {init_lr: {choice: [0.01, 0.1]}, schedules: {cosine: {}}}"
    lines = [line for line in TINY.splitlines() if not line.startswith((" ", "space", "search"))]
    search = "search: {trials: 6, sampler: random, rungs: [1, T], keep: 0.5}"
    plan, _ = load_sweep(sweep_file("\n".join([*lines, choices, search]) + "\n"))
    with closing(Study(plan, f"sqlite:///{tmp_path / 'a.db'}", stage="rung-1")) as rung:
        rung.remember(updates_per_epoch=3)
        while (record := rung.next()) is not None:
            rung.commit(record.number, 0, {"val/accuracy": 0.5, "val/loss": 1.0, "seconds": 1.0})
            rung.tell(record.number, "complete")
        assert rung.epochs == 1
        left = rung.survivors()
        assert len(left) == 2 == len({params["init_lr"] for params in left})
        rung.wish([{"type": "rex"}, {"type": "rex"}])
        assert list(rung.facts["queue"].values()).count({"type": "rex"}) == 1


def test_trials_that_are_one_on_a_rung_are_still_several(sweep_file, tmp_path):
    leaves = "space: {init_lr: 0.1, warmup: {choice: [0.2, 0.3, 0.4, 0.45]}, schedules: {cosine: {}}}"
    lines = [line for line in TINY.splitlines() if not line.startswith((" ", "space", "search", "train"))]
    search = "search: {trials: 12, sampler: random, rungs: [T/3, T], keep: 0.5}"
    text = [*lines, "train: {epochs: 6, batch_size: 32}", leaves, search]
    plan, _ = load_sweep(sweep_file("\n".join(text) + "\n"))
    with closing(Study(plan, f"sqlite:///{tmp_path / 'a.db'}", stage="rung-2")) as rung:
        rung.remember(updates_per_epoch=3)
        while (record := rung.next()) is not None:
            rung.commit(record.number, 0, {"val/accuracy": 0.5, "val/loss": 1.0, "seconds": 1.0})
            rung.tell(record.number, "complete")
        assert sorted(params["warmup"] for params in rung.survivors()) == [0.2, 0.3, 0.4, 0.45]


def test_what_is_trained_next_does_not_depend_on_the_order_in_which_trainings_end(tiny, tmp_path):
    plan, tables = tiny(confirm="{top: 3, types: false, seeds: 5}"), []
    for name, last in (("a", False), ("b", True)):
        study = Confirmation(plan, f"sqlite:///{tmp_path / name}.db", searched(0.9, 0.8, 0.7), updates=4)
        running: list[Record] = []
        while True:
            while len(running) < 4 and (record := study.next()) is not None:
                running.append(record)
            if not running:
                break
            record = running.pop(-1 if last else 0)
            value = 0.5 - 0.3 * (record.arm == "2") + 0.001 * (record.train["seed"] * int(record.arm) % 3)
            study.commit(record.number, 0, {"val/accuracy": value, "val/loss": 1.0, "seconds": 1.0})
            study.tell(record.number, "complete")
        tables.append([(r.number, r.arm, r.train["seed"], r.value) for r in study.records()])
    assert tables[0] == tables[1]


def test_the_strip_changes_one_thing_at_a_time(tiny, tmp_path):
    cosine = load({"type": "cosine", "init_lr": 0.1, "warmup": 0.2})
    assert changed(cosine, 10, "init_lr x0.5", 4) == (replace(cosine, init_lr=0.05), 10)
    longer, epochs = changed(cosine, 10, "epochs x2", 4)
    assert (epochs, longer.moment(0, 80).w) == (20, cosine.moment(0, 40).w)
    warm, brief, long = ({"type": "cosine", "init_lr": 0.1, "warmup": w} for w in (0.2, 0.01, 0.5))
    for said, epochs, without in (
        (warm, 10, set()),
        (warm, 1, {"epochs x0.5"}),  # which would be the winner again
        (brief, 10, {"warmup x0"}),  # of no update
        (long, 10, {"warmup x2"}),  # all of training
        (long | {"interval": "epoch", "warmup": 0.6}, 10, {"warmup x2"}),
        (warm | {"init_lr": 60.0}, 10, {"init_lr x2"}),
        (warm | {"type": "inverse_sqrt"}, 10, {"warmup x0", "warmup x2"}),  # whose decay is as long as its warmup
    ):
        assert possible(load(said), epochs, 4) == [change for change in STRIP if change not in without]
    for said, by, w in ((0.2, "x0", 0), (0.2, "x2", 16), (0.7, "x2", 40), ({"epochs": 1}, "x2", 8)):
        other, epochs = changed(load({"type": "cosine", "init_lr": 0.1, "warmup": said}), 10, f"warmup {by}", 4)
        assert (other.moment(0, 40, 10).w, epochs) == (w, 10)
        assert replace(other, warmup=cosine.warmup) == cosine
    plan = tiny(confirm="{top: 2, types: false, seeds: 3, strip: true}")
    for warmup, changes in ((0.2, STRIP), (0.0, [c for c in STRIP if not c.startswith("warmup")])):
        chosen = [
            replace(r, schedule=load(dict(r.schedule) | {"warmup": warmup}).to_json()) for r in searched(0.9, 0.8)
        ]
        study = confirmed(
            plan, tmp_path / f"{warmup}.db", chosen, lambda a, s: 0.5 + 0.3 * a.startswith("1") + 0.01 * s
        )
        extra = [r for r in study.records() if " " in r.arm]
        assert {r.arm for r in extra} == {f"1 {change}" for change in changes}
        assert {r.recipe(plan).epochs for r in extra} == {1, 2, 4}
        assert len(study.records()) <= study.target  # which the progress bar counts to
        rows = verdict(study.records(), study.arms, plan).strip
        assert [row["change"] for row in rows] == list(changes)
        assert all(row["difference"] == pytest.approx(0.0) for row in rows)


@pytest.mark.parametrize("metric", ["val/accuracy", "val/loss"])
def test_the_strip_compares_seed_by_seed_also_where_one_diverged(tiny, tmp_path, metric):
    plan = tiny(confirm="{top: 1, types: false, seeds: 4, strip: true}", objective=f"{{metric: {metric}}}")
    seeds = {1: 0.1, 2: 0.5, 3: 0.7, 4: 0.8}  # what another seed does is much more than the change

    def outcome(arm: str, seed: int) -> float:
        return math.nan if (arm, seed) == ("0 init_lr x2", 2) else seeds[seed] + 0.01 * (" x2" in arm)

    study = confirmed(plan, tmp_path / "a.db", searched(0.9), outcome)
    rows = {row["change"]: row for row in verdict(study.records(), study.arms, plan).strip}
    doubled = rows["init_lr x2"]
    assert (doubled["seeds"], doubled["diverged"]) == (3, 1)
    assert doubled["difference"] == pytest.approx(0.01)
    assert doubled["high"] - doubled["low"] == pytest.approx(0.0, abs=1e-9)
    assert rows["init_lr x0.5"]["difference"] == pytest.approx(0.0)


def test_what_seeds_show_is_never_asked_for_with_more_of_them():
    hidden = "smaller ones may stay hidden"
    assert ledger(Noise(0.001, 0.001), 5).endswith(f"{hidden}, and need more seeds each: 11 for 0.1 points.")
    assert ledger(Noise(0.0001, 0.0001), 5).endswith(f"{hidden}.")


def test_the_strip_in_words_has_the_unit_of_what_is_judged():
    rows = [
        {"change": "warmup x0", "diverged": 0, "difference": -0.0125, "low": -0.02, "high": -0.005},
        {"change": "init_lr x2", "diverged": 1, "difference": 0.01, "low": -0.01, "high": 0.03},
        {"change": "warmup x2", "diverged": 3, "difference": None, "low": math.nan, "high": math.nan},
    ]
    rows = [row | {"seeds": 3, "failed": 0} for row in rows]
    assert around("cosine (trial 7)", rows, True) == (
        "Around cosine (trial 7), seed by seed (mean difference in points, 95 % interval): "
        "warmup x0 -1.2 (-2 to -0.5); init_lr x2 +1 (-1 to +3), 1 of 3 diverged; warmup x2 diverged."
    )
    failed = rows[2] | {"diverged": 1, "failed": 2}
    assert around("x", [failed], True).endswith(": warmup x2 1 of 3 diverged, 2 of 3 failed.")
    single = rows[1] | {"diverged": 2, "low": math.nan, "high": math.nan}
    assert around("x", [single], True).endswith(": init_lr x2 +1, 2 of 3 diverged.")
    assert around("x", rows[:1], False).endswith(
        "(mean difference, less is better, 95 % interval): warmup x0 -0.013 (-0.02 to -0.005)."
    )


# --- a whole sweep ---------------------------------------------------------------------------------------------


def test_a_sweep_confirms_its_best_and_says_how_sure_it_is(project, capsys):
    Path("sweeps/tiny.yaml").write_text(TINY.replace("top: 0, types: false", "top: 2, types: false, seeds: 3"))
    assert sweep.main(HERE) == 0
    out = capsys.readouterr().out
    assert "2 of them are trained again, with up to 3 fresh seeds each" in out
    assert "[6/6]" in out
    said = " ".join(out.split())
    assert ("cannot be told apart" in said) != ("is the best" in said)
    assert "with 80 % power" in said
    table = best_schedules("tiny")
    assert table["seeds"].tolist()[:2] == [3, 3]
    assert table["seeds"].isna().tolist() == [False, False, True]
    assert table["test_accuracy"].notna().tolist() == [True, True, False]
    found = json.loads(Path("results/tiny/best_schedule.json").read_text())
    assert found == json.loads(table["schedule"][0])
    assert Path("results/tiny/confidence_set.png").exists()
    page = Path("results/tiny/report.md").read_text()
    assert "![confidence_set](confidence_set.png)" in page
    assert "Few trials:" in page
    assert export.main(["tiny", "--top", "2"]) == 0
    printed = capsys.readouterr().out
    assert "mean ± 95 %" in printed
    assert "Another seed moves a result by" in printed
    assert "Few trials:" in printed
    trainings = pd.read_csv("results/tiny/trainings.csv")
    fresh = trainings.query("stage == 'confirm'")
    assert trainings["test_accuracy"].notna().tolist() == (trainings["stage"] == "confirm").tolist()
    assert sorted(fresh["seed"]) == [1, 1, 2, 2, 3, 3]
    assert fresh["run_id"].str.fullmatch("[0-9a-f]{32}").all()
    best = pd.read_csv("results/tiny/best_schedules.csv").iloc[0]
    assert fresh[fresh["arm"].astype(int) == best["trial"]]["objective"].mean() == pytest.approx(best["mean"])
    client = MlflowClient(tracking_uri=load_place().tracking_uri)
    experiment = client.get_experiment_by_name("lr-schedules").experiment_id
    runs = client.search_runs([experiment], "tags.`sweep.role` = 'confirm'")
    assert len(runs) == 6
    assert all("test/accuracy" in r.data.metrics for r in runs)
    assert {r.data.params["train.seed"] for r in runs} == {"1", "2", "3"}
    searched_ = client.search_runs([experiment], "tags.`sweep.role` = 'trial'")
    assert not any("test/accuracy" in r.data.metrics for r in searched_)
    parent = client.search_runs([experiment], "tags.`sweep.role` = 'study'")[0]
    assert {"study/confirmed", "study/confidence_set", "study/test_accuracy"} <= set(parent.data.metrics)
    assert "may be best" in parent.data.tags["mlflow.note.content"]
    assert sweep.main(HERE) == 0
    assert "trained again" not in capsys.readouterr().out  # nor is anything
    assert len(client.search_runs([experiment], "tags.`sweep.role` = 'confirm'")) == 6


def test_what_an_earlier_plan_trained_counts_beside_the_present_one(tiny, tmp_path):
    found = searched(0.9, 0.8, 0.7)
    wide, narrow = tiny(confirm="{top: 3, types: false, seeds: 4}"), tiny(confirm="{top: 2, types: false, seeds: 4}")
    confirmed(wide, tmp_path / "a.db", found, lambda arm, seed: 0.5 + 0.01 * seed).close()
    again = Confirmation(narrow, f"sqlite:///{tmp_path}/a.db", found[:2], 3)
    assert (len(again.ended()), again.target, again.complete()) == (12, 12, True)
    again.close()


def test_schedules_with_the_same_mean_are_said_to_have_it(tiny, tmp_path):
    plan, found = tiny(confirm="{top: 3, types: false, seeds: 3}"), searched(0.9, 0.8, 0.7)
    given = {"0": (0.6, 0.7, 0.8), "1": (0.8, 0.6, 0.7), "2": (0.5, 0.7, 0.6)}
    study = confirmed(plan, tmp_path / "a.db", found, lambda arm, seed: given[arm][seed - 1])
    (said, *_) = verdict(study.records(), found, plan).sentences
    assert said.endswith("where one must be picked, a (trial 0) and b (trial 1) have the same highest mean.")


def test_the_noise_of_few_seeds_shows_no_difference_above_all_there_can_be():
    assert "2 seeds each show no difference between two of 6 schedules" in ledger(Noise(0.2, 0.3), 2, True, 6)
    assert amount(1.4, True) == "140 points"


def test_what_comes_next_is_said_with_the_options_that_it_needs(project, capsys, monkeypatch):
    Path("own_next.py").write_text("def line(t, T):\n    return 1 - t / T\n")
    monkeypatch.syspath_prepend(project)
    text = TINY[: TINY.index("  schedules:")] + "  schedules: {mine: {type: custom, function: own_next.line}}\n"
    Path("sweeps/tiny.yaml").write_text(text + "search: {trials: 1}\nconfirm: {top: 0, types: false}\n")
    assert sweep.main([*HERE, "--allow-plugin", "own_next.", "--data-dir", "elsewhere"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "python -m runner.export tiny --code 1 --allow-plugin own_next." in out
    said = "Reproduce, continue, or add trials: `python -m runner.sweep sweeps/tiny.yaml --data-dir elsewhere "
    assert said + "--allow-plugin own_next.`." in Path("results/tiny/report.md").read_text()
    assert export.main(["tiny", "--code", "1", "--allow-plugin", "own_next."]) == 0


def test_an_earlier_sweeps_noise_is_known_before_the_next_one(project, capsys):
    Path("sweeps/tiny.yaml").write_text(TINY.replace("top: 0, types: false", "top: 2, types: false, seeds: 3"))
    assert sweep.main(HERE) == 0
    Path("sweeps/next.yaml").write_text(TINY.replace("trials: 3", "trials: 1"))
    capsys.readouterr()
    place = load_place()
    assert earlier_noise(load_sweep("sweeps/next.yaml")[0], place.storage)[0] == "tiny"
    Path("sweeps/other.yaml").write_text(TINY.replace("epochs: 2", "epochs: 3"))
    assert earlier_noise(load_sweep("sweeps/other.yaml")[0], place.storage) is None


def test_rungs_screen_with_rescaled_schedules_and_the_best_go_on(project, capsys):
    text = TINY.replace("epochs: 2", "epochs: 4").replace("trials: 3", "trials: 6, rungs: [T/4, T/2, T], keep: 0.5")
    Path("sweeps/tiny.yaml").write_text(text)
    assert sweep.main(HERE) == 0
    out, storage = capsys.readouterr().out, load_place().storage
    rungs = [load_study(name, storage)[1] for name in ("tiny@rung-1", "tiny@rung-2", "tiny")]
    assert [len(r) for r in rungs] == [6, 3, 2]
    assert [{len(t.epochs) for t in r} for r in rungs] == [{1}, {2}, {4}]
    best = sorted(rungs[0], key=lambda r: -r.value)[:3]
    assert [r.params for r in rungs[1]] == [r.params for r in best]
    short, full = rungs[0][0], load(rungs[0][0].schedule)
    assert short.train == {"epochs": 1}
    assert full.init_lr == short.params["init_lr"]
    assert "Screening at 2 of 4 epochs" in " ".join(out.split())
    assert re.search(r"^\[1/6\] rung-1 trial \d ", out, flags=re.M)
    assert re.search(r"^\[1/2\] trial \d ", out, flags=re.M)
    before = "6 trainings of 1 epoch, 3 trainings of 2 epochs"
    said = f"2 trials: 2 complete. Before them, on rungs: {before} (trainings.csv)."
    assert said in Path("results/tiny/report.md").read_text()
    assert said in re.sub(r"\s+", " ", out)
    trainings = pd.read_csv("results/tiny/trainings.csv").fillna({"stage": ""})
    assert trainings["stage"].value_counts().to_dict() == {"rung-1": 6, "rung-2": 3, "": 2}
    assert trainings.groupby("stage")["epochs"].max().to_dict() == {"rung-1": 1, "rung-2": 2, "": 4}


def test_a_rescaled_schedule_keeps_its_shape_and_the_updates_of_its_warmup():
    schedule = load({"type": "wsd", "warmup": 0.1, "cooldown": 0.5, "init_lr": 0.2})
    third = schedule.rescaled(1 / 3, 300)
    assert third.moment(0, 100).w == schedule.moment(0, 300).w == 30
    assert third.params == schedule.params
    assert load({"type": "cosine", "warmup": 0.3}).rescaled(1 / 3, 300).warmup.length.value == 0.5
    steep = load({"type": "exponential", "gamma": 0.1}).rescaled(0.1, 300, epochs=30)
    least, most = {"type": "inverse_sqrt", "timescale": {"epochs": 1e-6}}, {"epochs": [1, 1e9]}
    patient, late = {"type": "plateau", "patience": 10**6}, {"type": "multistep", "milestones": most}
    ends = [load(said).rescaled(by, 300, epochs=30) for said in (least, patient, late) for by in (1 / 3, 2)]
    for one in (steep, *ends):
        assert load(one.to_json()) == one  # as steep, or as long, as can be
    flat = load({"type": "plateau", "patience": 6, "cooldown": 3}).rescaled(1 / 3, 300, epochs=30)
    assert (flat.params["patience"], flat.params["cooldown"]) == (2, 1)
    step = load({"type": "step", "step_size": {"epochs": 30}, "gamma": 0.1}).rescaled(1 / 3, 90)
    assert [step.factor(t, 30) for t in (9, 10, 20)] == pytest.approx([1.0, 0.1, 0.01])
    by_epoch = load({"type": "exponential", "gamma": 0.9})
    assert by_epoch.rescaled(0.5, 20).lrs(10)[5] == pytest.approx(by_epoch.lrs(20)[10])


@pytest.mark.parametrize("rungs", ["[T/3, T/2]", "[T, T/3]", "[3, T]"])
def test_rungs_that_do_not_rise_to_the_whole_are_refused(sweep_file, rungs):
    with pytest.raises(SpecError, match=r"search\.rungs: .*must rise to train\.epochs, 2"):
        load_sweep(sweep_file(search=f"search: {{trials: 3, rungs: {rungs}}}"))


# --- stopping --------------------------------------------------------------------------------------------------


def stopped(plan, path, order=None) -> list[Record]:
    """Trials whose accuracies rise to their init_lr's own end, under the plan's pruner."""
    study = Study(plan, f"sqlite:///{path}")
    running: list[Record] = []
    while True:
        while len(running) < 4 and (record := study.next()) is not None:
            running.append(record)
        if not running:
            return study.records()
        record = running.pop(-1 if order else 0)
        end, outcome = record.schedule["init_lr"], "complete"
        for n in range(plan.train.epochs):
            epoch = Epoch(n, (0.1,), 1.0, 1.0, end * (n + 1), 1.0)
            outcome = study.stops(record.number, epoch) or "complete"
            study.commit(record.number, n, epoch.metrics())
            if outcome == "stopped":
                break
        study.tell(record.number, outcome)


@pytest.mark.parametrize(
    "pruner",
    ["median", *(pytest.param(p, marks=pytest.mark.slow) for p in ("percentile", "successive_halving", "hyperband"))],
)
def test_a_pruner_stops_the_same_trials_whichever_end_first(sweep_file, tmp_path, pruner):
    text = TINY.replace("epochs: 2", "epochs: 9").replace("trials: 3", f"trials: 30, pruner: {pruner}, window: 4")
    plan, _ = load_sweep(sweep_file(text.replace("window: 4", "window: 4, sampler: random, parole: 0.3")))
    first, second = stopped(plan, tmp_path / "a.db"), stopped(plan, tmp_path / "b.db", order=True)
    assert [(r.number, r.outcome, r.stop, len(r.epochs)) for r in first] == [
        (r.number, r.outcome, r.stop, len(r.epochs)) for r in second
    ]
    assert any(r.outcome == "stopped" for r in first)
    assert all(len(r.epochs) == r.stop + 1 < 9 for r in first if r.outcome == "stopped")
    paroled = [r for r in first if r.stop is not None and r.outcome == "complete"]
    assert paroled
    assert all(len(r.epochs) == 9 for r in paroled)
    said = audited(first, plan)
    assert f"stopped {sum(r.outcome == 'stopped' for r in first)} trials" in said
    assert f"Of {len(paroled)} on parole" in said


def test_the_audit_counts_what_would_have_been_among_the_better_half(sweep_file):
    plan, _ = load_sweep(sweep_file(search="search: {trials: 9, pruner: median}"))
    passed = searched(0.5, 0.6, 0.7)
    parole = [Record(**{**vars(r), "stop": 0}) for r in searched(0.65, 0.9, 0.1, 0.2, first=3)]
    cut = Record(7, "a", passed[0].schedule, {}, "stopped", None, ({"epoch": 0.0},), stop=0)
    said = audited([*passed, *parole, cut], plan)
    assert "saved 6% of the epochs" in said  # one epoch of 8 x 2
    assert "Of 4 on parole 2 ended above the median" in said
    assert "50% false stops" in said
    assert "a 1 of 2, b 1 of 2" in said
    assert "beat all that it let pass" in said
    lost = [replace(r, outcome="diverged", value=None) for r in parole[:2]]
    assert "Of 4 on parole 0 ended above the median" in audited([*passed, *lost, *parole[2:]], plan)


def test_a_named_pruner_comes_with_its_warning(project, capsys):
    Path("sweeps/tiny.yaml").write_text(TINY.replace("trials: 3", "trials: 3, pruner: median"))
    assert sweep.main(HERE) == 0
    assert "truncated curves, which favour schedules that decay early" in capsys.readouterr().out


def test_calibration_compares_the_trials_that_have_both_scores(tiny):
    rung = [Record(**{**vars(r), "train": {"epochs": 1}}) for r in searched(0.1, 0.2, 0.3, 0.4, 0.5)]
    full = searched(0.5, 0.6, 0.7, 0.8, 0.9)
    assert "on the 5 trials that went on, Kendall's tau with full training is 1.00" in calibrated(rung, full, tiny())
    assert "search at full length" in calibrated(rung, searched(0.9, 0.8, 0.7, 0.6, 0.5), tiny())
    assert "too few" in calibrated(rung, full[:2], tiny())
    again = [*rung, replace(rung[4], number=5)]
    assert calibrated(again, full, tiny()) == calibrated(rung, full, tiny())


# --- fairness and warm starts ----------------------------------------------------------------------------------


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


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_what_is_wished_for_counts_as_its_types_and_is_not_tried_again(sweep_file, tmp_path, sampler):
    """A sampler with the same seed would propose in its turn what an earlier sweep has tried."""

    def swept(name: str, trials: int, wishes: list) -> Study:
        text = f"search: {{trials: {trials}, sampler: {sampler}, balance: equal}}"
        study = Study(load_sweep(sweep_file(search=text, name=name))[0], f"sqlite:///{tmp_path / 'a.db'}")
        study.wish(wishes)
        while (record := study.next()) is not None:
            study.commit(record.number, 0, {"val/accuracy": 0.5, "val/loss": 1.0, "seconds": 1.0})
            study.tell(record.number, "complete")
        return study

    before = swept("before.yaml", 9, []).records()
    cosines = [r.params for r in before if r.name == "cosine"]
    later = swept("later.yaml", 12, [*cosines, before[1].params]).records()
    assert [r.name for r in later[:4]] == ["cosine", "cosine", "cosine", "step"]
    assert Counter(r.name for r in later) == {"cosine": 4, "step": 4, "wsd": 4}
    assert len({frozenset(r.params.items()) for r in later}) == 12


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


def test_a_schedule_finds_its_way_back_into_the_space(sweep_file):
    import optuna

    plan, _ = load_sweep(sweep_file())
    for seed in range(20):
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
        name, mapping = plan.schedules.sample(trial)
        assert plan.schedules.params(load(mapping)) == trial.params
        assert name == trial.params["type"]
    options = "[0.1, {epochs: 1}, {epochs: 1, form: cosine}, {fraction: 0.2, form: cosine}]"
    choice = f"space: {{warmup: {{choice: {options}}}, schedules: {{cosine: {{}}}}}}"
    lines = [line for line in TINY.splitlines() if not line.startswith((" ", "space"))]
    chosen, _ = load_sweep(sweep_file("\n".join([*lines, choice]) + "\n", name="chosen.yaml"))
    for said in (0.1, {"epochs": 1}, {"epochs": 1, "form": "cosine"}, {"fraction": 0.2, "form": "cosine"}):
        found = chosen.schedules.params(load({"type": "cosine", "warmup": said}))
        assert found["warmup"] == (said if said == 0.1 else json.dumps(said))
    for outside in ({"type": "cosine", "init_lr": 50.0}, {"type": "rex"}, {"type": "step", "gamma": 0.9}):
        with pytest.raises(ValueError, match="the search space holds no such"):
            plan.schedules.params(load(outside))
    with pytest.raises(ValueError, match=r"in cosine, init_lr is from 0\.003 to 0\.3, not 50"):
        plan.schedules.params(load({"type": "cosine", "init_lr": 50.0}))


def test_what_is_wished_for_is_tried_first_and_not_twice(project, capsys):
    wish = json.dumps({"type": "cosine", "init_lr": 0.05, "warmup": 0.1})
    Path("sweeps/tiny.yaml").write_text(TINY)
    for _ in range(2):
        assert sweep.main([*HERE, "--enqueue", wish]) == 0
    records = load_study("tiny", load_place().storage)[1]
    assert [r.params == {"type": "cosine", "init_lr": 0.05, "warmup": 0.1} for r in records] == [True, False, False]
    assert sweep.main([*HERE, "--enqueue", '{"type": "rex"}']) == 2
    assert "--enqueue" in capsys.readouterr().err
    Path("sweeps/next.yaml").write_text(TINY.replace("trials: 3", "trials: 4"))
    assert sweep.main(["sweeps/next.yaml", *HERE[1:], "--from", "tiny"]) == 0
    assert "--from tiny: 3 of its best 3 lie in this search space" in "".join(capsys.readouterr())
    again = load_study("next", load_place().storage)[1]
    best = sorted(records, key=lambda r: -r.value)
    assert [r.params for r in again[:3]] == [r.params for r in best]
    late = json.dumps({"type": "cosine", "init_lr": 0.07, "warmup": 0.1})
    assert sweep.main([*HERE, "--enqueue", late]) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert "1 of the trials that are asked for come after the study's 3; search: {trials: 4} has room for all" in said
    Path("sweeps/next.yaml").write_text(TINY.replace("trials: 3", "trials: 5"))
    assert sweep.main(["sweeps/next.yaml", *HERE[1:], "--from", "next"]) == 0  # it has its own best
    more = load_study("next", load_place().storage)[1]
    assert len({frozenset(r.params.items()) for r in more}) == len(more) == 5


def test_what_fresh_seeds_say_counts_before_what_one_seed_said_when_a_sweep_begins_from_another(project):
    Path("sweeps/tiny.yaml").write_text(TINY)
    assert sweep.main(HERE) == 0
    with closing(Study(load_sweep("sweeps/tiny.yaml")[0], load_place().storage)) as study:
        last = best_first(study.records(), 1)[-1]
        study.remember(confirmed=[{"trial": last.number, "mean": 0.5}])
    Path("sweeps/next.yaml").write_text(TINY.replace("trials: 3", "trials: 1"))
    assert sweep.main(["sweeps/next.yaml", *HERE[1:], "--from", "tiny"]) == 0
    assert load_study("next", load_place().storage)[1][0].params == last.params


def test_fresh_seeds_never_are_the_searchs(tiny):
    plan = tiny()
    assert all(fresh(plan, n) != plan.train.seed for n in range(100))


@pytest.mark.parametrize("matters", [True, False])
def test_importance_names_what_mattered_and_nothing_that_chance_explains(sweep_file, tmp_path, matters):
    plan, _ = load_sweep(sweep_file(search="search: {trials: 40, sampler: random}"))
    with closing(Study(plan, f"sqlite:///{tmp_path / 'a.db'}")) as study:
        assert study.importance() == {}
        while (record := study.next()) is not None:
            lr = record.schedule["init_lr"] if matters else random.Random(record.number).uniform(0.003, 0.3)
            value = 1 - abs(math.log10(lr) + 1.5)
            study.commit(record.number, 0, {"val/accuracy": value, "val/loss": 1.0, "seconds": 1.0})
            study.tell(record.number, "complete")
        weights = study.importance()
        said = _sentences(study, [], None, weights)
    assert list(weights) == ["init_lr"] * matters
    assert not matters or any(sentence.startswith("What mattered: init_lr. ") for sentence in said)
    others = (
        "type, warmup, step.step_size, wsd.cooldown, wsd.shape: no more than chance explains, or tried too rarely"
    )
    assert any(others in sentence for sentence in said) == matters


def test_what_a_type_does_is_not_said_of_the_parameters_that_it_alone_has(sweep_file, tmp_path):
    named = Counter[str]()
    for seed in range(8):
        plan, _ = load_sweep(sweep_file(search=f"search: {{trials: 45, sampler: random, seed: {seed}}}"))
        with closing(Study(plan, f"sqlite:///{tmp_path / f'{seed}.db'}")) as study:
            while (record := study.next()) is not None:
                of_type = {"cosine": 0.6, "step": 0.7, "wsd": 0.8}[record.name]
                value = of_type + random.Random(f"{seed}/{record.number}").gauss(0, 0.01)
                study.commit(record.number, 0, {"val/accuracy": value, "val/loss": 1.0, "seconds": 1.0})
                study.tell(record.number, "complete")
            named.update(list(study.importance()))
    assert named["type"] >= 5
    assert named["wsd.shape"] + named["wsd.cooldown"] + named["step.step_size"] <= 3, named


# --- what next -------------------------------------------------------------------------------------------------


def row(trial: int, mean: float, in_set: bool = True, name: str = "cosine", **more):
    values = [mean - 0.01, mean, mean + 0.01]
    return {
        "trial": trial, "name": name, "type": name, "init_lr": 0.01, "seeds": 3, "values": values, "mean": mean,
        "deviation": 0.01, "low": mean - 0.02, "high": mean + 0.02, "behind": 0.9 - mean, "behind_low": 0.0,
        "behind_high": 0.95 - mean, "behind_seeds": 3, "in_set": in_set, "test_accuracy": mean, "best_of_type": True,
    } | more  # fmt: skip


def trial_of(name: str, number: int, value: float | None, init_lr: float = 0.05, outcome="complete") -> Record:
    schedule = load({"type": name, "init_lr": init_lr}).to_json()
    epochs = ({"epoch": 0, "lr": init_lr, "val/accuracy": value or 0.1, "seconds": 1.0, "timestamp": 1},)
    return Record(number, name, schedule, {"init_lr": init_lr}, outcome, value, epochs)


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
    assert said.startswith("On shorter trainings not among the best, and not trained in full: step, wsd. The answer")
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
    (said,) = next_steps(guessed, [], tiny(), None, chance=1 / 3)
    assert said.startswith("Hardly anything was learnt: the best accuracy is 0.37, and always giving the most")
    assert "has 0.33" in said
    assert next_steps(guessed, [], tiny(), None, chance=0.1) == []


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


def test_the_table_shows_what_fresh_seeds_gave_before_what_one_seed_did():
    records = [trial_of("one_cycle", 0, 0.99), trial_of("cosine", 1, 0.95), trial_of("step", 2, 0.94)]
    table = best_table(records, confirmed=[row(1, 0.9), row(0, 0.8, in_set=False, name="one_cycle")])
    lines = markdown(table).splitlines()
    names = [cell.strip() for cell in lines[0].strip("|").split("|")]
    rows = [dict(zip(names, (c.strip() for c in line.strip("|").split("|")), strict=True)) for line in lines[2:]]
    assert names[:8] == ["rank", "trial", "schedule", "mean ± 95 %", "may be best", "seeds", "test", "one seed"]
    assert [r["trial"] for r in rows] == ["1", "0", "2"]
    assert [r["mean ± 95 %"] for r in rows] == ["0.9 ± 0.02", "0.8 ± 0.02", ""]
    alike = row(1, 0.95) | {"low": 0.95 - 3e-16, "high": 0.95 + 3e-16}
    assert "| 0.95 ± 0 |" in markdown(best_table(records, confirmed=[alike]))
    assert [r["may be best"] for r in rows] == ["yes", "0.1 behind", ""]
    assert [r["one seed"] for r in rows] == ["0.95", "0.99", "0.94"]
    assert [r["warmup"] for r in rows] == ["0", "own", "0"]  # one_cycle rises by itself


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"source": "digits"}, "digits"),
        ({"source": "folder", "path": "my/cats", "size": 64}, "my/cats"),
        ({"source": "parquet", "path": "a\nimport os"}, "a import os"),
        ({"source": "custom", "function": "my_package.images"}, "my_package.images"),
    ],
)
def test_exported_code_names_the_data_that_its_schedule_was_found_with(tiny, data, words):
    facts = {"science": tiny().science() | {"data": Data(**data).model_dump()}}
    source = export.code(trial_of("cosine", 0, 0.9), facts, 4, 2)
    assert f"# found with sgd, batches of 32, 2 epochs of {words}: for another training" in source


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "# any of 2 schedules, this one too, may be the best: they could not be told apart"),
        (2, "# 0.1 behind the best with 3 fresh seeds: it is not among those that may be the best (2 of 4)"),
        (3, "# not every fresh seed of it came to its end: no answer to rely on"),
        (4, "# found with one seed, and not trained again with fresh ones"),
    ],
)
def test_exported_code_says_how_sure_it_is_of_its_own_schedule(tiny, number, words):
    lost = row(3, 0.7, in_set=False, behind=None) | {"mean": None}
    rows = [row(0, 0.9), row(1, 0.89), row(2, 0.8, in_set=False), lost]
    facts = {"science": tiny().science(), "confirmed": rows}
    assert export.code(trial_of("cosine", number, 0.9), facts, 4, 2).startswith(f"{words}\n# found with sgd")


def test_one_schedule_that_learns_with_some_seeds_only_does_not_blur_what_a_seed_does(tiny, tmp_path):
    plan = tiny(confirm="{top: 3, types: false, seeds: 5}")
    wild = [0.2, 0.9, 0.3, 0.8, 0.1]
    study = confirmed(
        plan,
        tmp_path / "a.db",
        searched(0.9, 0.8, 0.7),
        lambda a, s: wild[s - 1] if a == "2" else 0.9 + 0.001 * (s * (3 + int(a)) % 5),
    )
    answer = verdict(study.records(), study.arms, plan)
    assert answer.noise.seed < 0.01


@pytest.mark.parametrize(("sign", "worse"), [(1, 0), (-1, 1)])
def test_trials_without_a_result_stand_at_the_worse_end_of_the_history(sign, worse):
    records = [trial_of("cosine", n, v) for n, v in enumerate((0.8, 0.5, 0.6))]
    above, _ = figures.history([*records, trial_of("step", 3, None, outcome="diverged")], sign).axes
    (lost,) = [line for line in above.lines if line.get_marker() == "x"]
    assert lost.get_ydata()[0] == above.get_ylim()[worse]


@pytest.mark.parametrize(("sign", "marker"), [(1, "v"), (-1, "^")])
def test_a_trial_far_outside_the_history_is_an_arrow_at_its_edge(sign, marker):
    records = [trial_of("step", n, sign * v) for n, v in enumerate((0.8, 0.81, 0.05, 0.82))]
    above, _ = figures.history(records, sign).axes
    (arrow,) = [line for line in above.lines if line.get_marker() == marker]
    assert arrow.get_xdata()[0] == 2
    assert arrow.get_ydata()[0] == above.get_ylim()[0 if sign > 0 else 1]


def test_a_history_without_a_lost_trial_has_room_for_both_of_its_parts(tmp_path):
    records = [trial_of("cosine", n, v) for n, v in enumerate((0.8, 0.5, 0.6))]
    figure = figures.history(records)
    figures.save(figure, tmp_path / "history.png")
    assert sum(axes.get_position().height for axes in figure.axes) > 0.7


def test_the_lowest_dot_of_a_figure_is_not_cut_by_its_frame():
    records = [trial_of("cosine", n, v) for n, v in enumerate((0.8, 0.6, 0.7, 0.81, 0.5331, 0.7))]
    for axes in (figures.history(records).axes[0], figures.accuracy_against_lr(records).axes[0]):
        bottom, top = axes.get_ylim()
        assert min(axes.lines[0].get_ydata()) - bottom > 0.03 * (top - bottom)


def test_an_arrow_names_the_seeds_that_are_outside_and_their_mean_only_where_that_is_too():
    near = {"values": [0.4, 0.45, 0.425]}
    rows = [row(0, 0.425) | near, row(1, 0.325, in_set=False, name="step") | {"values": [0.2, 0.325, 0.45]}]
    records = [trial_of("cosine", 0, 0.3), trial_of("step", 1, 0.4)]
    (axes,) = figures.accuracy_by_type(records, rows).axes
    assert [text.get_text() for text in axes.texts] == ["0.2"]
    (axes,) = figures.accuracy_by_type(records, [rows[0], rows[1] | {"values": [0.1, 0.15, 0.2], "mean": 0.15}]).axes
    assert [text.get_text() for text in axes.texts] == ["mean 0.15"]


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
    records = [trial_of("cosine", 0, 0.95), trial_of("cosine", 1, 0.2), trial_of("step", 2, 0.5)]
    figure = figures.accuracy_by_type(records, [row(0, 0.95), row(2, 0.4, in_set=False, name="step")], names=["wsd"])
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} == {"0.2", "0.5", "mean 0.4"}
    low, high = axes.get_xlim()
    assert 0.5 < low < 0.94
    assert high > 0.96
    assert [label.get_text() for label in axes.get_yticklabels()] == ["wsd (0)", "step (1)", "cosine (2)"]
    (axes,) = figures.confidence_set([row(0, 0.89), row(2, 0.3, in_set=False, behind_high=0.9)]).axes
    assert "0.6 behind" in axes.texts[0].get_text()
    assert axes.get_xlim()[0] > -0.4


def test_the_page_of_curves_says_how_a_trial_ended_and_of_many_shows_the_best(monkeypatch):
    records = [trial_of("cosine", n, 0.9 + n / 100) for n in range(4)]
    records += [trial_of("step", 4, 0.5), trial_of("wsd", 5, 0.99, outcome="stopped")]
    plans = {r.number: load(r.schedule) for r in records}
    page = figures.page(records, plans, 10, 1, "Which </script><b>?")
    assert "wsd, trial 5: 0.99, one seed stopped after 1 epochs" in page
    assert "cosine, trial 0: 0.9, one seed\\u003c" in page
    assert "</script><b>" not in page
    monkeypatch.setattr(figures, "PAGE", 2)
    page = figures.page(records, plans, 10, 1)
    assert "4 of 6 trials" not in page
    assert "3 of 6 trials" in page  # the two best, and the best of step
    assert "cosine, trial 0" not in page
    assert "step, trial 4" in page


@pytest.mark.parametrize(
    ("confirm", "size"),
    [
        ("{top: 0, types: false}", "3 trainings"),
        ("{top: 2, types: false, seeds: 2}", "3 trainings, then at most 4 with fresh seeds"),
        ("{top: 5, types: true, seeds: 4}", "3 trainings, then at most 12 with fresh seeds"),
        ("{top: 1, types: false, seeds: 4, strip: true}", "3 trainings, then at most 22 with fresh seeds"),
    ],
)
def test_the_size_of_a_sweep_is_said_before_it_begins(sweep_file, confirm, size):
    assert load_sweep(sweep_file(confirm=f"confirm: {confirm}"))[0].size == size


def test_the_epochs_of_a_search_count_every_rung(sweep_file):
    text = "search: {trials: 9, rungs: [1, T], keep: 0.34}"
    sweep, _ = load_sweep(sweep_file(search=text))
    assert sweep.search_epochs == 9 * 1 + 3 * 2
    assert sweep.size == "9 trainings on the first rung"


def test_the_epochs_with_fresh_seeds_count_the_lengths_of_the_strip(tiny):
    assert tiny(confirm="{top: 2, types: false, seeds: 4}").fresh_epochs == 8 * 2
    strip = tiny(confirm="{top: 1, types: false, seeds: 3, strip: true}", train="{epochs: 12}")
    assert strip.fresh_epochs == 3 * (12 + 4 * 12 + 6 + 24)


def test_what_may_still_be_trained_is_fewer_where_a_schedule_is_out(tiny, tmp_path):
    plan, targets = tiny(confirm="{top: 3, types: false, seeds: 10}"), []
    study = Confirmation(plan, f"sqlite:///{tmp_path}/a.db", searched(0.9, 0.8, 0.7), 3)
    while (record := study.next()) is not None:
        targets.append(study.target)
        value = 0.9 - 0.2 * (record.arm == "2") + 0.001 * (record.train["seed"] * 7 % 3)
        measured = {"val/accuracy": value, "test/accuracy": value, "val/loss": 1.0, "seconds": 1.0}
        study.commit(record.number, 0, measured)
        study.tell(record.number, "complete")
    strip = tiny(confirm="{top: 1, types: false, seeds: 5, strip: true}")
    alone = Confirmation(strip, f"sqlite:///{tmp_path}/b.db", searched(0.9), 3)
    assert alone.target == 3 + 3 * len(STRIP)  # one alone needs no more seeds to be told apart
    alone.close()
    assert targets[0] == 30
    assert targets == sorted(targets, reverse=True)
    assert study.target == len(study.records()) < 30
    (out,) = (r for r in verdict(study.records(), study.arms, plan).rows if not r["in_set"])
    assert out["behind_seeds"] == out["seeds"] < 10
    said = export.for_people(best_table(searched(0.9, 0.8, 0.7), confirmed=[out | {"behind_seeds": 2}]))
    assert said[0]["may be best"].endswith(" behind after 2 seeds")
    study.close()


def test_the_time_left_counts_no_epoch_that_will_not_come(monkeypatch):
    """Of three trials of 10 epochs, a second each: one diverges in its second, one was taken up after its fourth, and
    begins again after its eighth."""
    now = 0.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    display, one = terminal.Display(3, 10, begun={1: 4}), trial_of("cosine", 0, 0.5)

    def at(number: int, n: int, outcome: str | None = None) -> Record:
        return replace(one, number=number, epochs=one.epochs * n, outcome=outcome, value=None)

    for n in (1, 2):
        now += 1
        display.epoch(at(0, n))
    display.ended(at(0, 2, "diverged"), better=False)
    assert display.eta() == pytest.approx(20)
    for _ in range(4):
        display.epoch(at(1, 4))  # as it yields what was before
    assert display.eta() == pytest.approx(16)
    for n in (5, 6, 7, 8, *[8] * 8, 9, 10):
        now += 1
        display.epoch(at(1, n))
    assert display.eta() == pytest.approx(10 * 16 / 8)
    now = 8.0  # as if it had not
    display.ended(at(1, 10, "complete"), better=False)
    assert display.eta() == pytest.approx(10)
    display.ended(at(2, 10, "failed"), better=False, trials=2)
    assert display.eta() == 0


def test_lines_of_a_winner_with_and_without_a_change_stand_below_one_another(monkeypatch):
    said = StringIO()
    monkeypatch.setattr(terminal, "CONSOLE", Console(file=said, width=120))
    with terminal.Display(6, 2, stage="fresh seeds") as display:
        for change, seed in product(("", " init_lr x0.5", " no warmup"), (1, 2)):
            one = trial_of("cosine", 7, 0.9)
            display.ended(replace(one, stage="confirm", arm=f"7{change}", train={"seed": seed}), better=False)
    starts = {line.index(" cosine ") for line in said.getvalue().splitlines()[2:]}
    assert len(starts) == 1  # from the first change on


def test_at_80_columns_a_line_of_a_winner_with_a_change_is_a_line(monkeypatch):
    console = Console(width=80, file=StringIO(), force_terminal=True)
    monkeypatch.setattr(terminal, "CONSOLE", console)
    display = terminal.Display(26, 2, stage="fresh seeds")
    one = replace(trial_of("one_cycle", 11, 0.9639), stage="confirm", arm="11 init_lr x0.5", train={"seed": 5})
    display.ended(one, better=False)
    (line,) = console.file.getvalue().splitlines()
    assert line.startswith("[ 1/26] trial 11 init_lr x0.5 seed 5 one_cycle init_lr 0.05 ")
    assert len(line) <= 80


@pytest.mark.parametrize(("width", "is_terminal"), [(60, True), (80, True), (120, True), (60, False)])
def test_a_terminals_table_has_every_number_whole_and_a_file_has_all_columns(width, is_terminal, monkeypatch):
    console = Console(width=width, file=StringIO(), force_terminal=is_terminal)
    monkeypatch.setattr(terminal, "CONSOLE", console)
    records = [trial_of("one_cycle", 10, 0.98765), trial_of("cosine", 11, 0.95)]
    terminal.show(for_people(best_table(records, confirmed=[row(10, 0.9123), row(11, 0.8)])))
    out = console.file.getvalue()
    assert "…" not in out
    assert "0.9123 ± 0.02" in out
    assert "may be best" in out
    assert ("test" in out) == (width > 100 or not is_terminal)
