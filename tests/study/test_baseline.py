"""The baseline, the schedule of today: trained beside the search, always confirmed, and spoken of first."""

import json
import math
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from runner import export, preview, sweep
from runner.files.document import SpecError
from runner.files.place import load_place
from runner.files.sweep_file import load_sweep
from runner.files.trial import Record
from runner.results import figures
from runner.results.answer import describe, describe_baseline, headline, next_steps, sentences
from runner.results.tables import best_table, for_people
from runner.schedules import load
from runner.study.confirm import choose_arms, confirmation_seed, verdict
from runner.study.importance import importance
from runner.study.study import Study, load_study

from ..conftest import HERE, TINY, runs
from .helpers import row, searched, trial_of

TODAY = {"type": "multistep", "init_lr": 0.1, "milestones": [0.5, 0.75], "gamma": 0.1}
YOURS = "Your schedule of today (multistep, 0.1)"


def with_baseline(text: str = TINY, today: object = TODAY) -> str:
    return text.replace("space:\n", f"space:\n  baseline: {json.dumps(today)}\n")


@pytest.fixture
def planned(sweep_file):
    """The tiny sweep with a baseline, read, with these sections in place of its own."""

    def write(today: object = TODAY, **lines: str):
        text = with_baseline(today=today) if today else TINY
        return load_sweep(sweep_file(text, **{key: f"{key}: {value}" for key, value in lines.items()}))[0]

    return write


def today(number: int, value: float | None, outcome: str = "complete", schedule: object = TODAY) -> Record:
    """The baseline's trial."""
    epochs = ({"epoch": 0, "lr": 0.1, "val/accuracy": value or 0.1, "seconds": 1.0, "timestamp": 1},)
    return Record(number, "baseline", load(schedule).to_json(), {}, outcome, value, epochs)


def score(record: Record) -> float:
    """A made-up objective that a sampler can learn from; it does not know the trial's number."""
    return 0.9 - 0.1 * abs(math.log10(record.schedule["init_lr"]) + 1.2)


def carry_on(study: Study, lanes: int = 1, last: bool = False) -> list[Record]:
    """Train what a study lacks on so many lanes, of which always the newest, or the oldest, ends first."""
    running: list[Record] = []
    while True:
        while len(running) < lanes and (record := study.next()) is not None:
            running.append(record)
        if not running:
            return study.records()
        record = running.pop(-1 if last else 0)
        measured = {"lr": 0.1, "val/loss": 1.0, "seconds": 1.0, "val/accuracy": score(record)}
        study.commit(record.number, 0, measured)
        study.tell(record.number, "complete")


def proposals(records: list[Record]) -> list[tuple]:
    return [(r.name, dict(r.params), dict(r.schedule)) for r in records if r.name != "baseline"]


# --- the search ------------------------------------------------------------------------------------------------

LEAVES = "{init_lr: {choice: [0.01, 0.03, 0.1]}, schedules: {cosine: {}, step: {gamma: {choice: [0.1, 0.3]}}}}"


@pytest.mark.parametrize(
    ("sampler", "balance"), [("tpe", "free"), ("random", "equal"), ("qmc", "equal"), ("grid", "free")]
)
def test_a_sweep_proposes_the_same_trials_with_and_without_a_baseline(sweep_file, tmp_path, sampler, balance):
    head = [line for line in TINY.splitlines() if not line.startswith((" ", "space", "search"))]
    trials, space = {"tpe": 12}.get(sampler, 4), LEAVES
    if sampler != "grid":
        space = "{init_lr: {log_uniform: [0.003, 0.3]}, schedules: {cosine: {}, step: {}}}"
    search = f"search: {{trials: {trials}, sampler: {sampler}, balance: {balance}}}"
    found = {}
    for name, told in (("without", space), ("with", space.replace("{", f"{{baseline: {json.dumps(TODAY)}, ", 1))):
        plan, _ = load_sweep(sweep_file("\n".join([*head, f"space: {told}", search]) + "\n"))
        with closing(Study(plan, f"sqlite:///{tmp_path / name}.db")) as study:
            found[name] = carry_on(study)
            assert study.complete()
            assert study.target == len(found[name])
    first, *others = found["with"]
    assert (first.name, first.params, first.train) == ("baseline", {}, {})
    assert load(first.schedule) == load(TODAY)
    assert proposals(others) == proposals(found["without"])
    assert len(others) == trials


def test_the_table_is_the_same_with_any_number_of_lanes(planned, tmp_path):
    plan, tables = planned(search="{trials: 12, window: 2}"), []
    for name, lanes, last in (("one", 1, False), ("many", 9, True)):
        with closing(Study(plan, f"sqlite:///{tmp_path / name}.db")) as study:
            tables.append([(r.number, r.name, dict(r.params), r.value) for r in carry_on(study, lanes, last)])
    assert tables[0] == tables[1]
    assert plan.most_lanes == 3  # the window's two, and the baseline


def test_a_baseline_can_be_added_changed_and_brought_back_in_a_study_that_exists(planned, tmp_path):
    storage, other = f"sqlite:///{tmp_path / 'a.db'}", {"type": "rex", "init_lr": 0.2}
    whole = planned(today=None, search="{trials: 9}")
    with closing(Study(whole, f"sqlite:///{tmp_path / 'b.db'}")) as study:
        expected = proposals(carry_on(study))
    for plan, target in (
        (planned(today=None, search="{trials: 5}"), 5),
        (planned(search="{trials: 5}"), 6),
        (planned(today=other, search="{trials: 9}"), 11),
        (planned(today=None, search="{trials: 9}"), 11),
    ):
        with closing(Study(plan, storage)) as study:
            assert study.target == target
            records = carry_on(study)
            assert len(records) == target
    assert [r.number for r in records if r.name == "baseline"] == [5, 6]
    assert proposals(records) == expected
    with closing(Study(planned(today=other, search="{trials: 12}"), storage)) as study:
        records = carry_on(study)
        assert len(records) == 14
        assert all("type" in trial.params for trial in study.complete_trials())
        importance(study)
        former, now = (r for r in records if r.name == "baseline")
        plan = planned(today=other, search="{trials: 12}", confirm="{top: 50, types: true}")
        chosen = choose_arms(records, plan)
        assert now in chosen
        assert former not in chosen
        assert sentences(study, [], None, {})[0].startswith("Your schedule of today (rex, 0.2) is ")
        next_steps(records, [], plan, None)
        assert {r["schedule"] for r in for_people(best_table(records))} > {"baseline (multistep)", "baseline (rex)"}


def test_a_baseline_that_was_interrupted_goes_on_and_is_trained_once(planned, tmp_path):
    plan, storage = planned(), f"sqlite:///{tmp_path / 'a.db'}"
    with closing(Study(plan, storage)) as study:
        assert study.next().name == "baseline"
    with closing(Study(plan, storage)) as study:
        assert [r.name == "baseline" for r in carry_on(study, 2)] == [True, False, False, False]


def test_a_former_baseline_whose_function_is_not_permitted_any_more_is_left_out(planned, tmp_path, monkeypatch):
    (tmp_path / "own_today.py").write_text("def line(t, T):\n    return 1 - t / T\n")
    monkeypatch.syspath_prepend(tmp_path)
    storage, path = f"sqlite:///{tmp_path / 'a.db'}", tmp_path / "tiny.yaml"
    path.write_text(with_baseline(today={"type": "custom", "function": "own_today.line", "init_lr": 0.1}))
    with pytest.raises(SpecError, match=r"line 6: space\.baseline\.function: 'own_today\.line' is no plugin"):
        load_sweep(path)
    plan, _ = load_sweep(path, ["own_today."])
    ((what, lrs),) = plan.schedules.custom_lrs(plan.allow).items()  # what a study remembers of it
    assert what.startswith("baseline ")
    assert lrs == pytest.approx([0.1 * (1 - t / 8) for t in range(8)])
    with closing(Study(plan, storage)) as study:
        assert len(carry_on(study)) == 4
    with closing(Study(planned(), storage)) as study:
        assert study.former == 1
        assert [r.number for r in carry_on(study)] == [1, 2, 3, 4]
        study.check_trials()
        assert study.complete()
    with closing(Study(plan, storage)) as study:
        assert [r.number for r in carry_on(study)] == [0, 1, 2, 3, 4]


def test_a_trial_without_parameters_that_is_no_baseline_has_been_edited(planned, tmp_path):
    storage = f"sqlite:///{tmp_path / 'a.db'}"
    with closing(Study(planned(), storage)) as study:
        study.next()
    with closing(sqlite3.connect(tmp_path / "a.db")) as database, database:
        database.execute("UPDATE trial_user_attributes SET value_json = '\"x\"' WHERE value_json = '\"baseline\"'")
    with pytest.raises(SpecError, match=r"trial 0 of the study has been edited: its params .* \(lacks type\)"):
        load_study("tiny", storage)


def test_on_rungs_the_baseline_is_trained_at_full_length_alone(planned, tmp_path):
    plan = planned(train="{epochs: 4, batch_size: 32}", search="{trials: 6, rungs: [T/4, T], keep: 0.5}")
    assert plan.stages == [(6, 1), (4, 4)]
    assert plan.size == "6 trainings on the first rung and the baseline"
    storage = f"sqlite:///{tmp_path / 'a.db'}"
    with closing(Study(plan, storage, "rung-1")) as rung, closing(Study(plan, storage)) as last:
        rung.remember(updates_per_epoch=3)
        assert len(carry_on(rung)) == rung.target == 6
        kept = rung.survivors()
        last.train_only(kept)
        assert last.target == 4
        assert [dict(r.params) for r in carry_on(last)] == [{}, *kept]
        last.train_only(kept)  # as the same command does again
        assert last.complete()
        assert not any(r.name == "baseline" for r in rung.records())


@pytest.mark.parametrize(
    ("confirm", "arms", "size"),
    [
        ("{top: 0, types: false}", 0, "3 trainings and the baseline"),
        ("{top: 1, types: false, seeds: 4}", 2, "3 trainings and the baseline, then at most 8 with fresh seeds"),
        ("{top: 3, types: true, seeds: 2}", 4, "3 trainings and the baseline, then at most 8 with fresh seeds"),
    ],
)
def test_the_size_of_a_sweep_counts_the_baseline(planned, confirm, arms, size):
    plan = planned(confirm=confirm)
    assert (plan.arms, plan.size) == (arms, size)
    assert plan.search_epochs == 4 * 2
    assert plan.all_epochs == plan.search_epochs + plan.replicates * 2


# --- the confirmation ------------------------------------------------------------------------------------------


def test_the_baseline_is_confirmed_whatever_its_result_and_beside_all_others(planned):
    records = [today(0, 0.2), *searched(0.5, 0.9, 0.6, 0.8, first=1)]
    assert [r.number for r in choose_arms(records, planned(confirm="{top: 2}"))] == [2, 4, 3, 0]
    assert [r.number for r in choose_arms(records, planned(confirm="{top: 1, types: false}"))] == [2, 0]
    assert choose_arms(records, planned(confirm="{top: 0, types: false}")) == []
    best = [today(0, 0.99), *records[1:]]
    assert [r.number for r in choose_arms(best, planned(confirm="{top: 1, types: false}"))] == [0, 2]
    for outcome in ("diverged", "failed"):
        lost = [today(0, None, outcome), *records[1:]]
        assert [r.number for r in choose_arms(lost, planned(confirm="{top: 1, types: false}"))] == [2]


def test_a_trial_with_the_baselines_schedule_is_no_other_arm(planned):
    same = replace(trial_of("multistep", 3, 0.9), schedule=load(TODAY).to_json())
    records = [today(0, 0.9), trial_of("cosine", 1, 0.8), trial_of("step", 2, 0.7), same]
    arms = choose_arms(records, planned(confirm="{top: 1}"))
    assert [(r.number, r.name) for r in arms] == [(0, "baseline"), (1, "cosine"), (2, "step")]


def told(plan, *given: list[float]) -> tuple[list[str], list[dict]]:
    """What is said, and the rows of the table, where the fresh seeds of the arms gave this, None where a training
    diverged; the first is the baseline."""
    others = [trial_of(name, n, 0.9 - n / 10) for n, name in enumerate(["cosine", "step"][: len(given) - 1], 1)]
    arms, replicates = [today(0, 0.1), *others], list[Record]()
    for arm, values in zip(arms, given, strict=True):
        for n, value in enumerate(values):
            measured = [{"epoch": 0, "val/accuracy": value, "test/accuracy": value}]
            how = "diverged" if value is None else "complete"
            train = {"seed": confirmation_seed(plan, n)}
            replicates.append(
                Record(
                    len(replicates),
                    arm.name,
                    arm.schedule,
                    {},
                    how,
                    value,
                    measured,
                    train=train,
                    arm=f"{arm.number}",
                )
            )
    found = verdict(replicates, arms, plan)
    return describe(found, plan.objective), found.rows


HIGH, LOW, BEST = [0.9, 0.901, 0.899], [0.4, 0.403, 0.401], [0.9, 0.899, 0.901]


def test_the_first_sentence_says_how_the_baseline_compares(planned):
    plan = planned(confirm="{top: 5, types: false, seeds: 3}")
    best, rows = told(plan, HIGH, [0.5, 0.5, 0.5], LOW)
    assert best[0] == f"{YOURS} is the best of three with 95 % confidence: keep it."
    assert best[1].startswith("cosine is 40 points behind (")
    assert not any("take" in said.lower() for said in best)
    assert headline(rows) == "baseline (multistep) is the best of three"
    tie, rows = told(plan, [0.8, 0.901, 0.899], HIGH, LOW)
    assert tie[0] == f"{YOURS} may be the best: nothing was shown to beat it."
    said = "two of three are within noise after 3 seeds each (cosine, baseline (multistep)). If you must choose, take"
    assert tie[1].startswith(f"No clear winner: {said} cosine (90.0 %).")
    out, rows = told(plan, [0.807, 0.808, 0.803], HIGH, LOW)
    mine = next(row for row in rows if row["baseline"])
    low, high = (f"{100 * mine[key]:.1f}" for key in ("behind_low", "behind_high"))
    assert out[0] == f"{YOURS} is 9.4 points behind cosine ({low} to {high})."
    assert out[1] == "Take cosine (90.0 %): the best of three with 95 % confidence."
    assert out[2].startswith("step is 50 points behind (")
    assert sum("baseline" in said or "today" in said for said in out) == 1
    assert [row["name"] for row in rows if row["best_of_type"]] == ["cosine", "step"]
    alone, _ = told(plan, HIGH)
    assert alone == [f"{YOURS} has 90.0 %: only it was confirmed, with nothing to compare it with."]
    begun, _ = told(plan, HIGH[:2], LOW[:2])
    assert begun[0] == f"{YOURS} may be the best so far: nothing was shown to beat it yet."
    assert "If you must choose now, keep baseline (multistep) (" in begun[1]


def test_of_equals_the_baseline_is_kept(planned):
    plan = planned(confirm="{top: 2, types: false, seeds: 3}")
    said, _ = told(plan, [0.5, 0.75, 0.625], [0.625, 0.5, 0.75])
    assert said[0] == f"{YOURS} may be the best: nothing was shown to beat it."
    assert said[1].endswith("If you must choose, keep baseline (multistep): no other has a higher mean (62.5 %).")


def test_the_rival_of_a_baseline_that_was_out_early_is_the_one_that_was_best_then(planned):
    plan = planned(confirm="{top: 5, types: false, seeds: 6}")
    looked = [1.0, 0.88, 0.99, 0.95, 0.5, 0.5]  # ahead at the first look, and not at the last one
    said, rows = told(plan, LOW, looked, [*HIGH, *BEST])
    assert rows[0]["name"] == "step"
    assert next(row for row in rows if row["baseline"])["behind_seeds"] == 3
    assert said[0].startswith(f"{YOURS} is 56 points behind cosine (")


def test_a_baseline_that_is_lost_is_said_once_and_first(planned):
    plan = planned(confirm="{top: 2, types: false, seeds: 3}")
    said, _ = told(plan, [0.9, None, 0.9], HIGH, LOW)
    assert said[0] == f"{YOURS} did not come to its end with every fresh seed: no answer to rely on."
    assert not any("Not every seed" in sentence for sentence in said)


def test_with_one_seed_what_is_known_of_the_baseline_is_said(planned):
    plan, others = planned(), [trial_of("cosine", 1, 0.9), trial_of("step", 2, 0.7)]
    for mine, said in (
        (today(0, 0.85), "is 5 points behind cosine (trial 1, 90.0 %) with one seed each (85.0 %)."),
        (today(0, 0.95), "is the best of 3 trials with one seed each (95.0 %): keep it for now."),
        (today(3, 0.9), "is as good as cosine (trial 1, 90.0 %) with one seed each (90.0 %)."),
        (today(0, None, "diverged"), "diverged in the search: it is not compared."),
        (
            replace(today(0, None, "failed"), cause="RuntimeError: no"),
            "failed in the search (RuntimeError: no): it is not compared.",
        ),
        (today(0, 0.85, schedule=TODAY | {"init_lr": 0.2}), "has not come to its end yet."),
    ):
        records = sorted([mine, *others], key=lambda r: r.number)
        assert describe_baseline(plan, records) == f"{YOURS} {said}"
    alone = describe_baseline(plan, [today(0, 0.85)])
    assert alone == f"{YOURS} has 85.0 % with one seed, and there is nothing yet to compare it with."


def test_nothing_is_asked_for_about_the_baseline(planned):
    plan = planned(confirm="{strip: true}")
    names = ["cosine", "step", "wsd"]
    enough = [trial_of(name, 1 + 5 * i + n, 0.9) for i, name in enumerate(names) for n in range(5)]
    assert next_steps([today(0, 0.9), *enough], [row(0, 0.9, name="baseline", baseline=True)], plan, None) == []
    (few,) = next_steps([today(0, 0.9), *enough[1:]], [], plan, None)
    assert few.startswith("Few trials: cosine 4. ")
    assert "search.trials: 15 or more" in few


# --- what a person sees ----------------------------------------------------------------------------------------


def test_figures_and_tables_mark_the_baseline():
    rows = [row(1, 0.9), row(0, 0.8, name="baseline", baseline=True, type="multistep")]
    (axes,) = figures.confidence_set(rows).axes
    assert [(t.get_text(), t.get_fontweight()) for t in axes.get_yticklabels()] == [
        ("baseline (multistep), 3 seeds", "bold"),
        ("cosine, 3 seeds", "normal"),
    ]
    marks = {line.get_marker(): line.get_color() for line in axes.lines if line.get_marker() not in ("None", "")}
    assert marks == {"D": figures.colour("multistep"), "o": figures.colour("cosine")}
    records = [today(0, 0.8), trial_of("cosine", 1, 0.9)]
    plans = {r.number: load(r.schedule) for r in records}
    drawn = figures.sweep_figures(records, plans, 10, 1, rows)
    for name in ("lr_curves.png", "objective_against_lr.png"):
        assert "baseline (multistep)" in [axes.get_title() for axes in drawn[name].axes]
    table = best_table(records, confirmed=rows)
    assert table["name"].tolist() == ["cosine", "baseline"]
    assert [r["schedule"] for r in for_people(table)] == ["cosine", "baseline (multistep)"]


def test_a_sweep_with_a_baseline_begins_its_report_with_it(project, capsys):
    text = with_baseline().replace("trials: 3", "trials: 1").replace("epochs: 2", "epochs: 1")
    Path("sweeps/tiny.yaml").write_text(text.replace("top: 0, types: false", "top: 1, seeds: 2, types: false"))
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    out = capsys.readouterr().out
    assert "tiny: 1 training and the baseline, then at most 4 with fresh seeds" in out
    page = Path("results/tiny/report.md").read_text().replace("\\", "")
    _, first, *_ = page.split("\n\n")
    assert first.startswith(f"{YOURS} ")
    assert "| baseline (multistep) |" in page
    facts, records = load_study("tiny", load_place().storage)
    assert next((r.number, r.name, dict(r.params)) for r in records) == (0, "baseline", {})
    mine = next(r for r in facts["confirmed"] if r["baseline"])
    assert (mine["name"], mine["type"], mine["seeds"]) == ("baseline", "multistep", 2)
    assert facts["answer"][0] == first
    table = pd.read_csv("results/tiny/best_schedules.csv")
    place = table["name"].tolist().index("baseline") + 1
    assert export.main(["tiny", "--code", str(place)]) == 0
    assert "# multistep: init_lr 0.1" in capsys.readouterr().out
    tags = [run.data.tags for run in runs("tags.`schedule.name` = 'baseline'")]
    assert [t["sweep.role"] for t in tags] == ["trial", "confirm", "confirm"]
    assert {(t["schedule.type"], t["mlflow.runColor"]) for t in tags} == {("multistep", figures.colour("multistep"))}
    assert load(json.loads(tags[0]["schedule"])) == load(TODAY)
    assert preview.samples(load_sweep("sweeps/tiny.yaml")[0])["baseline (multistep)"] == [load(TODAY)]
