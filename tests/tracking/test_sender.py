"""MLflow that is away, refuses, or was edited: training goes on, and what it lacks is sent later."""

from pathlib import Path

import pytest

from runner import sweep
from runner.export import best_schedules
from runner.training.fast import engine

from ..conftest import HERE, TINY, children, client, runs


def test_a_tracking_server_that_is_not_there_stops_nothing_and_is_made_up_for_later(project, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    said = capsys.readouterr().out
    assert "MLflow at http://127.0.0.1:9 does not answer (" in said
    assert "; training goes on, and what it misses is sent when it is back" in said
    assert "--sync sends it" in said
    assert len(best_schedules("tiny")) == 3
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # back, elsewhere
    assert sweep.main(["sweeps/tiny.yaml", *HERE, "--sync"]) == 0
    assert [r.info.status for r in runs()] == ["FINISHED"] * 4
    for trial in client().search_runs(["1"], "tags.`sweep.role` = 'trial'"):
        assert [m.step for m in client().get_metric_history(trial.info.run_id, "lr")] == [0, 1]


def test_a_sync_trains_nothing_and_leaves_the_parent_run_as_it_was(project, capsys):
    assert sweep.main(["sweeps/tiny.yaml", *HERE, "--sync"]) == 2  # of nothing there is nothing to send
    assert "there is no study in" in capsys.readouterr().err
    assert not Path("optuna.db").exists()
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    Path("sweeps/tiny.yaml").write_text(TINY.replace("trials: 3", "trials: 5"))
    assert sweep.main(["sweeps/tiny.yaml", *HERE, "--sync"]) == 0
    assert "search: 3 ended, and MLflow has them" in capsys.readouterr().out
    (parent,) = runs("tags.`sweep.role` = 'study'")
    assert parent.info.status == "FINISHED"
    assert len(children()) == 3
    client().set_terminated(parent.info.run_id, "KILLED")  # as a stop leaves it
    assert sweep.main(["sweeps/tiny.yaml", *HERE, "--sync"]) == 0
    assert client().get_run(parent.info.run_id).info.status == "KILLED"
    Path("sweeps/other.yaml").write_text(TINY)
    assert sweep.main(["sweeps/other.yaml", *HERE, "--sync"]) == 2
    assert "there is no study 'other' in this storage (it has tiny); run the sweep first" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_that_could_not_be_described_is_when_it_has_grown(project, capsys):
    """Artifacts cannot be written at first, and more trials are asked for before they can."""
    Path("mlartifacts").write_text("in the way")
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    assert "MLflow lacks something" in " ".join(capsys.readouterr().out.split())
    assert len(children()) == 3
    Path("mlartifacts").unlink()
    Path("sweeps/tiny.yaml").write_text(TINY.replace("trials: 3", "trials: 4"))
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    assert "MLflow lacks something" not in capsys.readouterr().out
    assert {run.data.tags["outcome"] for run in children()} == {"complete"}
    assert len(children()) == 4


def test_a_run_that_somebody_deletes_in_mid_sweep_is_brought_back_from_the_bin(project, monkeypatch):
    """One that has ended, and the one that is under way."""
    real, deleted = engine.train, []

    def train(config, device, state=None):
        for epoch in real(config, device, state):
            yield epoch
            if epoch.number == 0 and len(there := children()) == 2 and not deleted:
                deleted.extend(run.info.run_id for run in there)
                for run_id in deleted:
                    client().delete_run(run_id)

    monkeypatch.setattr(engine, "train", train)
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    there = children()
    assert len(deleted) == 2
    assert sorted(r.data.tags["trial.number"] for r in there) == ["0", "1", "2"]
    assert {r.info.run_id for r in there} > set(deleted)  # so that links that were copied still lead there
    for run in there:
        assert run.info.status == "FINISHED"
        assert [m.step for m in client().get_metric_history(run.info.run_id, "lr")] == [0, 1]


def test_runs_whose_tags_somebody_has_edited_stop_nothing(swept, capsys):
    (parent,) = runs("tags.`sweep.role` = 'study'")
    first, second, third = children()
    client().set_tag(first.info.run_id, "trial.number", "one")
    client().delete_tag(second.info.run_id, "trial.number")
    client().delete_tag(third.info.run_id, "mlflow.parentRunId")
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    whole = [r for r in children() if r.data.tags.get("trial.number", "").isdecimal()]
    assert sorted(r.data.tags["trial.number"] for r in whole) == ["0", "1", "2"]
    assert {r.data.tags["mlflow.parentRunId"] for r in whole} == {parent.info.run_id}
