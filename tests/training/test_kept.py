"""What the winner has learnt stays with the results: as good as it was said to be."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from runner import sweep
from runner.files.sweep_file import Data, Model
from runner.training import data
from runner.training.data import normalised
from runner.training.model import build

from ..conftest import HERE, TINY, client, runs


def test_the_weights_of_the_winners_best_seed_are_those_that_were_measured(project, capsys):
    from safetensors.torch import load_file

    text = TINY.replace("{top: 0, types: false}", "{top: 2, types: false, seeds: 2, keep: true}")
    Path("sweeps/tiny.yaml").write_text(text)
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    said = " ".join(capsys.readouterr().out.split())
    trainings = pd.read_csv("results/tiny/trainings.csv")
    first = pd.read_csv("results/tiny/best_schedules.csv")["trial"][0]
    mine = trainings[(trainings["stage"] == "confirm") & (trainings["arm"].astype(float) == first)]
    best = mine.loc[mine["objective"].idxmax()]
    who = f"trial {first} seed {best['seed']:.0f}"
    assert f"What {who} has learnt, the best seed of {best['name']}, is in best_weights.safetensors." in said
    network = build(Model(width=8), 10, 0)
    network.load_state_dict(load_file("results/tiny/best_weights.safetensors"))
    images = data.load(Data(source="digits", limit=160, val=0.25, augment={"pad": 1}))
    with torch.no_grad():
        logits = network.eval()(normalised(images.val.images, images.mean, images.std))
    right = (logits.argmax(1) == images.val.labels).float().mean().item()
    assert right == pytest.approx(best["objective"])
    assert [p.name for p in Path("results/tiny/kept").iterdir()] == [f"confirm-{best['trial']:05d}.safetensors"]
    (parent,) = runs("tags.`sweep.role` = 'study'")
    assert [a.path for a in client().list_artifacts(parent.info.run_id, "weights")] == [
        "weights/best_weights.safetensors"
    ]
    assert json.loads(Path("results/tiny/best_schedule.json").read_text())
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0  # again: it is still there
    assert "is in best_weights.safetensors" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_comparison_that_was_made_before_says_that_nothing_was_kept(project, capsys):
    text = TINY.replace("{top: 0, types: false}", "{top: 1, types: false, seeds: 2}")
    Path("sweeps/tiny.yaml").write_text(text)
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    Path("sweeps/tiny.yaml").write_text(text.replace("seeds: 2", "seeds: 2, keep: true"))
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    assert "was kept: it was trained before confirm.keep was set." in " ".join(capsys.readouterr().out.split())
