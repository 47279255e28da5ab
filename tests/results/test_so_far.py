"""A report whatever happens: what is known is written when the search has ended, and when a sweep is stopped."""

import json
import signal
import textwrap
from pathlib import Path

import pytest

from runner import export, sweep
from runner.study.confirm import verdict

from ..conftest import HERE, TINY, runs
from ..lanes.test_stop import started
from ..study.helpers import confirmed, searched

CONFIRMED = TINY.replace("top: 0, types: false", "top: 2, types: false, seeds: 4")
ALONE = "The search alone, one seed each: the comparison with fresh seeds has not ended."
GOES_ON = "The comparison with fresh seeds has not ended: both may be best. If you must choose now, take "


def report() -> str:
    return Path("results/tiny/report.md").read_text().replace("\\", "")


@pytest.mark.slow
def test_ctrl_c_among_the_fresh_seeds_leaves_the_report_of_what_is_known(project, capsys):
    process = started(text=CONFIRMED, epochs=3 * 2 + 2 * 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert f"so far: {ALONE} If you must choose now, take " in out  # before the fresh seeds
    assert f"so far: {GOES_ON}" in out
    assert GOES_ON in report()
    assert "continue, or add trials: `python -m runner.sweep sweeps/tiny.yaml" in report()
    (parent,) = runs("tags.`sweep.role` = 'study'")
    assert parent.info.status == "KILLED"
    assert GOES_ON in parent.data.tags["mlflow.note.content"].replace("\\", "")
    assert export.main(["tiny"]) == 0
    assert GOES_ON in capsys.readouterr().out
    assert export.main(["tiny", "--code", "1"]) == 0
    assert "epochs: the comparison with fresh seeds has not ended, and nothing is decided" in capsys.readouterr().out
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    assert "has not ended" not in report()
    assert runs("tags.`sweep.role` = 'study'")[0].info.status == "FINISHED"
    capsys.readouterr()
    assert export.main(["tiny", "--code", "1"]) == 0
    assert "nothing is decided" not in capsys.readouterr().out


def lost_study(after: int) -> str:
    """An own schedule that deletes the study from the storage when so many trials have ended."""
    return textwrap.dedent(f"""
        import os, sqlite3
        from contextlib import closing

        def lrs(t, T):
            if not os.path.exists("optuna.db"):  # when the file is read
                return 1.0
            with closing(sqlite3.connect("optuna.db")) as database, database:
                ended = database.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0]
                if ended >= {after}:
                    database.execute("DELETE FROM studies")
                    database.execute("DELETE FROM trials")
            return 1 - t / T
        """)


def test_where_the_storage_is_lost_the_files_say_what_is_known(project, monkeypatch, capsys):
    Path("own_lost.py").write_text(lost_study(after=2))
    monkeypatch.syspath_prepend(project)
    text = TINY[: TINY.index("  schedules:")] + "  schedules: {mine: {type: custom, function: own_lost.lrs}}\n"
    Path("sweeps/tiny.yaml").write_text(text + "search: {trials: 4}\n")
    assert sweep.main(["sweeps/tiny.yaml", *HERE, "--allow-plugin", "own_lost."]) == 4
    assert "has lost this study" in capsys.readouterr().err
    assert "The search has not ended: 2 of 4 trials have." in report()
    assert len(Path("results/tiny/best_schedules.csv").read_text().splitlines()) == 1 + 2
    assert json.loads(Path("results/tiny/best_schedule.json").read_text())["type"] == "custom"


@pytest.mark.slow
def test_more_trials_that_are_interrupted_leave_what_was_found_before(project, capsys, monkeypatch):
    Path("sweeps/tiny.yaml").write_text(CONFIRMED.replace("seeds: 4", "seeds: 2"))
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    before = report()
    process = started(text=CONFIRMED.replace("seeds: 4", "seeds: 2").replace("trials: 3", "trials: 40"), epochs=16)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert report() == before


def test_what_is_known_of_undecided_arms_is_by_the_seeds_that_all_have(tiny, tmp_path):
    plan = tiny(confirm="{top: 2, types: false, seeds: 4}")
    study = confirmed(plan, tmp_path / "a.db", searched(0.9, 0.8), lambda arm, seed: 0.5 + 0.1 * seed * (arm == "1"))
    some = [r for r in study.records() if r.train["seed"] <= 1 or (r.arm, r.train["seed"]) == ("0", 2)]
    so_far = verdict(some, study.arms, plan)
    assert so_far.begun
    assert not so_far.contest.decided
    assert [row["trial"] for row in so_far.rows] == [1, 0]
    assert not verdict(some[:1], study.arms, plan).begun
