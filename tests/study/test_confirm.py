"""Confirmation: fresh seeds, paired, in rounds, until the set is resolved; and screening on rungs before it."""

import json
import math
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from scipy import stats

from runner import export, sweep
from runner.export import best_schedules
from runner.files.document import SpecError
from runner.files.metrics import METRICS
from runner.files.place import load_place
from runner.files.sweep_file import STRIP, Sweep, load_sweep
from runner.files.trial import Record, best_first
from runner.results.answer import describe, describe_noise, difference
from runner.results.tables import best_table, for_people
from runner.schedules import load
from runner.study.confidence import Noise, smallest_difference
from runner.study.confirm import (
    Confirmation,
    apply_change,
    best_of_each,
    choose_arms,
    confirmation_seed,
    possible_changes,
    repeatability,
    scores,
    verdict,
)
from runner.study.study import Study, load_study

from ..conftest import HERE, TINY
from .helpers import confirmed, searched


def test_the_top_and_the_best_of_every_schedule_are_confirmed_best_first(tiny):
    records = searched(0.5, 0.9, 0.6, 0.8, 0.7, 0.3)
    assert [r.number for r in choose_arms(records, tiny(confirm="{top: 2}"))] == [1, 3, 4]
    assert [r.number for r in choose_arms(records, tiny(confirm="{top: 0}"))] == [1, 4]
    assert choose_arms(records, tiny(confirm="{top: 0, types: false}")) == []
    by_loss = tiny(confirm="{top: 1, types: false}", objective="{metric: val/loss}")
    assert [r.number for r in choose_arms(records, by_loss)] == [5]


def test_all_arms_get_the_same_fresh_seeds_and_the_selecting_one_is_never_among_them(tiny, tmp_path):
    plan = tiny(confirm="{top: 3, types: false, seeds: 4}")
    study = confirmed(plan, tmp_path / "a.db", searched(0.9, 0.8, 0.7), lambda arm, seed: 0.5 + 0.01 * seed)
    seeds = {arm: [r.train["seed"] for r in study.records() if r.arm == arm] for arm in "012"}
    assert seeds == {key: [1, 2, 3, 4] for key in "012"}
    assert plan.train.seed not in seeds["0"]
    assert len(study.records()) == plan.replicates  # none is done twice


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
    first, second, third = describe(answer, plan.objective)
    said = "No clear winner: two of three are within noise after 6 seeds each (a (trial 0), b (trial 1)). If"
    assert first.startswith(said)
    assert re.fullmatch(r"a \(trial 2\) is 70 points behind \(\d\d to \d\d\)\.", second)
    assert "Another seed moves a result by 0.15 points (one standard deviation). 6 seeds detect" in third


def test_schedules_with_the_same_mean_stand_in_the_table_as_in_the_sentence(tiny, tmp_path):
    plan = tiny(confirm="{top: 2, types: false, seeds: 5}")
    values = {"0": [0.25, 0.5, 0.5, 0.75, 0.75], "1": [0.75, 0.5, 0.5, 0.5, 0.5]}  # 1 was ahead at the first look
    study = confirmed(plan, tmp_path / "a.db", searched(0.9, 0.8), lambda a, s: values[a][s - 1])
    answer = verdict(study.records(), study.arms, plan)
    assert "after 5 seeds each. If you must choose, take one of b and a, " in describe(answer, plan.objective)[0]
    assert [row["trial"] for row in answer.rows] == answer.alive == [1, 0]


def test_a_clear_winner_ends_the_confirmation_at_the_first_look(tiny, tmp_path):
    plan = tiny(confirm="{top: 2, types: false, seeds: 50}")
    study = confirmed(
        plan, tmp_path / "a.db", searched(0.9, 0.8), lambda a, s: {"0": 0.4, "1": 0.9}[a] + 0.01 * (s % 2)
    )
    assert len(study.records()) == 6
    answer = verdict(study.records(), study.arms, plan)
    first, second, *_ = describe(answer, plan.objective)
    assert first == "Take b (90.7 %): the best of two with 95 % confidence."
    assert second.startswith("a is 50 points behind (")
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
    assert "Not every seed of a came to its end" in describe(answer, plan.objective)[-1]
    assert list(scores(study.records(), study.arms, plan)) == [1]


def ended(study: Confirmation, lanes: int, *, first: int) -> Iterator[Record]:
    """Each training as it ends, ``lanes`` of them at once: the ``first`` of those that run, 0 the oldest."""
    running: list[Record] = []
    while True:
        while len(running) < lanes and (record := study.next()) is not None:
            running.append(record)
        if not running:
            return
        yield running.pop(first)


def test_the_strip_waits_for_the_winner_however_many_trainings_run_at_once(tiny, tmp_path):
    plan, tables = tiny(confirm="{top: 2, types: false, seeds: 3, strip: true}"), []
    for name, lanes in (("one", 1), ("many", 8)):
        study = Confirmation(plan, f"sqlite:///{tmp_path / name}.db", searched(0.9, 0.8), updates=4)
        for record in ended(study, lanes, first=0):
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
    (said, _) = describe(answer, plan.objective)
    assert said == "Take b (50.2 %): only it was confirmed, and there is nothing to compare it with."
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
        assert [r.number for r in choose_arms(copies, plan)] == expected
    twins = [same[0], replace(same[0], number=5, name="b", value=0.8)]
    plan, _ = load_sweep(sweep_file(confirm="confirm: {top: 1, types: true}"))
    assert [r.number for r in choose_arms(twins, plan)] == [0, 5]  # a schedule of two names is the best of each
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
        rung.train_only([{"type": "rex"}, {"type": "rex"}])
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
    assert apply_change(cosine, 10, "init_lr x0.5", 4) == (replace(cosine, init_lr=0.05), 10)
    longer, epochs = apply_change(cosine, 10, "epochs x2", 4)
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
        assert possible_changes(load(said), epochs, 4) == [change for change in STRIP if change not in without]
    for said, by, w in ((0.2, "x0", 0), (0.2, "x2", 16), (0.7, "x2", 40), ({"epochs": 1}, "x2", 8)):
        other, epochs = apply_change(load({"type": "cosine", "init_lr": 0.1, "warmup": said}), 10, f"warmup {by}", 4)
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
    shown = "between two schedules (80 % power)"
    assert describe_noise(Noise(0.001, 0.001), 5).endswith(f"{shown}; 0.1 points needs 11 seeds.")
    assert describe_noise(Noise(0.0001, 0.0001), 5).endswith(f"{shown}.")


def test_a_sweep_confirms_its_best_and_says_how_sure_it_is(project, capsys):
    Path("sweeps/tiny.yaml").write_text(TINY.replace("top: 0, types: false", "top: 2, types: false, seeds: 3"))
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    out = capsys.readouterr().out
    assert "2 of them are trained again, with up to 3 fresh seeds each" in out
    assert "[6/6]" in out
    said = " ".join(out.split())
    assert ("No clear winner" in said) != ("with 95 % confidence" in said)
    assert "(80 % power)" in said
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
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
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
    (said, *_) = describe(verdict(study.records(), found, plan), plan.objective)
    assert said.endswith(
        "If you must choose, take one of a (trial 0) and b (trial 1), which have the same highest mean (70.0 %)."
    )


def test_the_noise_of_few_seeds_shows_no_difference_above_all_there_can_be():
    assert "2 seeds detect no difference between two of 6 schedules" in describe_noise(
        Noise(0.2, 0.3), 2, "points", 6
    )
    assert difference(1.4, "points") == "140 points"


def test_rungs_screen_with_rescaled_schedules_and_the_best_go_on(project, capsys):
    text = TINY.replace("epochs: 2", "epochs: 4").replace("trials: 3", "trials: 6, rungs: [T/4, T/2, T], keep: 0.5")
    Path("sweeps/tiny.yaml").write_text(text)
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
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


def test_fresh_seeds_never_are_the_searchs(tiny):
    plan = tiny()
    assert all(confirmation_seed(plan, n) != plan.train.seed for n in range(100))


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
    said = for_people(best_table(searched(0.9, 0.8, 0.7), confirmed=[out | {"behind_seeds": 2}]))
    assert said[0]["may be best"].endswith(" behind after 2 seeds")
    study.close()


def test_what_to_take_of_a_tie_is_said_with_its_own_mean_where_less_is_better(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(METRICS, "accuracy", replace(METRICS["accuracy"], direction="minimize"))
    plan = tiny(confirm="{top: 2, types: false, seeds: 3}")
    errors = {"0": (0.05, 0.04, 0.045), "1": (0.05, 0.05, 0.045)}
    study = confirmed(plan, tmp_path / "a.db", searched(0.1, 0.2), lambda arm, seed: errors[arm][seed - 1])
    said = describe(verdict(study.records(), study.arms, plan), plan.objective)[0]
    assert said.endswith("If you must choose, take a (4.5 %).")


@pytest.fixture
def may_not_repeat(monkeypatch):
    """Of every sweep: its training is one's own, of which nobody knows whether it is repeatable."""
    monkeypatch.setattr(Sweep, "checks_repeatability", property(lambda self: True))


def trained(plan, path, arms, outcome, again=None) -> Confirmation:
    """A confirmation in which ``outcome(arm, seed)`` is what a training gives, and ``again`` a second one."""
    return confirmed(plan, path, arms, lambda arm, seed: again if arm.endswith("again") else outcome(arm, seed))


def in_words(study, plan) -> list[str]:
    return describe(verdict(study.records(), study.arms, plan), plan.objective)


@pytest.mark.usefixtures("may_not_repeat")
def test_one_training_is_done_twice_before_all_others_and_counts_as_no_score(tiny, tmp_path):
    plan, arms = tiny(confirm="{top: 2, types: false, seeds: 3}"), searched(0.8, 0.9)[::-1]
    study = trained(plan, tmp_path / "a.db", arms, lambda arm, seed: 0.5 + 0.01 * seed, again=0.1)
    assert [(r.arm, r.train["seed"]) for r in study.records()][:3] == [("1", 1), ("1 again", 1), ("0", 1)]
    twin, again = study.records()[:2]
    assert (again.schedule, again.train, again.title) == (twin.schedule, twin.train, "trial 1 again seed 1")
    assert scores(study.records(), arms, plan) == {n: pytest.approx([0.51, 0.52, 0.53]) for n in (1, 0)}
    answer = verdict(study.records(), arms, plan)
    assert [row["values"] for row in answer.rows] == [pytest.approx([0.51, 0.52, 0.53])] * 2
    assert answer.strip == []
    assert len(study.records()) == study.target == plan.replicates == 7
    assert plan.size == "3 trainings, then at most 7 with fresh seeds"
    assert plan.fresh_epochs == 7 * plan.train.epochs


@pytest.mark.usefixtures("may_not_repeat")
def test_schedules_are_compared_seed_by_seed_where_a_training_gives_the_same_twice_and_else_unpaired(tiny, tmp_path):
    plan, arms = tiny(confirm="{top: 2, types: false, seeds: 3}"), searched(0.9, 0.8)

    def outcome(arm: str, seed: int) -> float:  # one seed moves much more than the schedules differ
        return 0.5 + 0.1 * seed + 0.02 * (arm == "0") + 0.001 * (seed == 2)

    same = trained(plan, tmp_path / "same.db", arms, outcome, again=outcome("0", 1))
    other = trained(plan, tmp_path / "other.db", arms, outcome, again=outcome("0", 1) - 0.007)
    found = repeatability(same.records(), arms, plan)
    assert (found.same, found.apart) == (True, 0.0)
    assert in_words(same, plan)[0].startswith("Take a (72.0 %)")
    assert not any("repeatable" in said for said in in_words(same, plan))
    paired, unpaired = (verdict(s.records(), arms, plan) for s in (same, other))
    assert (paired.noise.paired, unpaired.noise.paired) == (True, False)
    assert unpaired.noise.difference == pytest.approx(math.sqrt(2) * unpaired.noise.seed)
    a, b = (next(row["values"] for row in unpaired.rows if row["name"] == name) for name in "ab")
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    (behind,) = (row for row in unpaired.rows if row["name"] == "b")
    assert (behind["behind_low"], behind["behind_high"]) == pytest.approx((welch.low, welch.high))
    first, second, third = in_words(other, plan)
    assert first.startswith("No clear winner: both are within noise after 3 seeds each.")
    assert second == (
        "Not repeatable: trial 0 with seed 1 gave 62.0 % and, trained again, gave 61.3 % (0.7 points apart); "
        "so seeds are no blocks, and schedules are compared unpaired."
    )
    least = smallest_difference(unpaired.noise.difference, 3, paired=False)
    assert third.startswith("Another training moves a result by 10 points (one standard deviation). 3 seeds detect ")
    assert f"a difference of {difference(least, 'points')} between two schedules (80 % power)" in third


@pytest.mark.usefixtures("may_not_repeat")
@pytest.mark.parametrize(
    ("metric", "once", "again", "said"),
    [
        ("val/accuracy", 0.5, math.nan, "gave 50.0 % and, trained again, diverged; so seeds are no blocks, and "),
        ("val/loss", math.nan, 0.5, "diverged and, trained again, gave 0.5; so seeds are no blocks."),
        ("val/accuracy", 0.5, None, "gave 50.0 % and, trained again, failed (the worker died); so seeds are "),
    ],
)
def test_a_training_that_ends_otherwise_when_it_is_done_again_is_not_repeatable(
    tiny, tmp_path, metric, once, again, said
):
    plan = tiny(confirm="{top: 2, types: false, seeds: 2}", objective=f"{{metric: {metric}}}")
    study = Confirmation(plan, f"sqlite:///{tmp_path}/a.db", searched(0.9, 0.8), updates=4)
    while (record := study.next()) is not None:
        value = {("0", 1): once, ("0 again", 1): again}.get((record.arm, record.train["seed"]), 0.6)
        if value is None:
            study.tell(record.number, "failed", "the worker died")
            continue
        metrics = {"val/accuracy": value, "val/loss": value, "seconds": 1.0, "lr": 0.1, "test/accuracy": value}
        study.commit(record.number, 0, metrics)
        study.tell(record.number, "complete" if math.isfinite(value) else "diverged")
    found = repeatability(study.records(), study.arms, plan)
    assert (found.same, found.apart) == (False, None)
    assert any(
        sentence.startswith(f"Not repeatable: trial 0 with seed 1 {said}") for sentence in in_words(study, plan)
    )
    assert study.complete()


@pytest.mark.usefixtures("may_not_repeat")
def test_nothing_is_compared_before_it_is_known_whether_a_training_is_repeatable(tiny, tmp_path):
    plan, arms = tiny(confirm="{top: 2, types: false, seeds: 5, strip: true}"), searched(0.9, 0.8)
    study, waiting = Confirmation(plan, f"sqlite:///{tmp_path}/a.db", arms, updates=4), None
    while (record := study.next()) is not None:
        if record.arm == "0 again":
            waiting = record
            continue
        study.commit(record.number, 0, measured(record, 0.9 if record.arm[0] == "0" else 0.2))
        study.tell(record.number, "complete")
    assert len(study.ended()) == 2 * 3  # what the first look needs beside it
    assert (study.complete(), study.target) == (False, plan.replicates)
    before = verdict(study.ended(), arms, plan)
    assert (before.contest.differences, before.contest.decided, before.repeatability) == ({}, False, None)
    assert "has not ended" in describe(before, plan.objective)[0]
    study.commit(waiting.number, 0, measured(waiting, 0.9))
    study.tell(waiting.number, "complete")
    assert verdict(study.ended(), arms, plan).alive == [0]
    assert study.next().arm == "0 init_lr x0.5"  # the winner is known, and its strip begins
    study.close()


def measured(record: Record, value: float) -> dict[str, float]:
    """The one epoch of a replicate that ends with ``value``, apart by its seed."""
    value += 0.001 * (record.train["seed"] % 3)
    return {"val/accuracy": value, "val/loss": 1.0, "seconds": 1.0, "lr": 0.1, "test/accuracy": value}


@pytest.mark.usefixtures("may_not_repeat")
def test_a_training_that_is_done_twice_does_not_depend_on_the_order_in_which_trainings_end(tiny, tmp_path):
    plan, tables = tiny(confirm="{top: 2, types: false, seeds: 4}"), []
    for name, lanes in (("a", 1), ("b", 4)):
        study = Confirmation(plan, f"sqlite:///{tmp_path / name}.db", searched(0.9, 0.8), updates=4)
        for record in ended(study, lanes, first=-1):  # the last that began ends first
            value = 0.501 if record.arm == "0 again" else 0.5
            study.commit(record.number, 0, measured(record, value))
            study.tell(record.number, "complete")
            assert len(study.records()) <= study.target <= plan.replicates
        tables.append([(r.number, r.arm, r.train["seed"], r.value) for r in study.records()])
    assert tables[0] == tables[1]
    assert len(tables[0]) == plan.replicates == 9
