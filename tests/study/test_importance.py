"""What mattered: no parameter is named that chance explains as well."""

import math
import random
from collections import Counter
from contextlib import closing

import pytest

from runner.files.sweep_file import load_sweep
from runner.results.answer import sentences
from runner.study.importance import importance
from runner.study.study import Study


@pytest.mark.parametrize("matters", [True, False])
@pytest.mark.slow
def test_importance_names_what_mattered_and_nothing_that_chance_explains(sweep_file, tmp_path, matters):
    plan, _ = load_sweep(sweep_file(search="search: {trials: 40, sampler: random}"))
    with closing(Study(plan, f"sqlite:///{tmp_path / 'a.db'}")) as study:
        assert importance(study) == {}
        while (record := study.next()) is not None:
            lr = record.schedule["init_lr"] if matters else random.Random(record.number).uniform(0.003, 0.3)
            value = 1 - abs(math.log10(lr) + 1.5)
            study.commit(record.number, 0, {"val/accuracy": value, "val/loss": 1.0, "seconds": 1.0})
            study.tell(record.number, "complete")
        weights = importance(study)
        said = sentences(study, [], None, weights)
    assert list(weights) == ["init_lr"] * matters
    assert not matters or any(sentence.startswith("What mattered: init_lr. ") for sentence in said)
    others = (
        "type, warmup, step.step_size, wsd.cooldown, wsd.shape: no more than chance explains, or tried too rarely"
    )
    assert any(others in sentence for sentence in said) == matters


@pytest.mark.slow
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
            named.update(list(importance(study)))
    assert named["type"] >= 5
    assert named["wsd.shape"] + named["wsd.cooldown"] + named["step.step_size"] <= 3, named
