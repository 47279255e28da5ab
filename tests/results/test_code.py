"""The comments of exported code: what its schedule was found with, and how sure that is."""

import pytest

from runner.files.sweep_file import Data, Model
from runner.results.tables import code_of

from ..study.helpers import row, trial_of


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"source": "digits"}, "digits"),
        ({"source": "folder", "path": "my/cats", "size": 64}, "my/cats"),
        ({"source": "parquet", "path": "a\nimport os"}, "a import os"),
        ({"source": "parquet", "path": "a\u2028import os"}, "a\\u2028import os"),
        ({"source": "custom", "function": "my_package.images"}, "my_package.images"),
    ],
)
def test_exported_code_names_the_data_that_its_schedule_was_found_with(tiny, data, words):
    facts = {"science": tiny().science() | {"data": Data(**data).model_dump()}, "confirmed": []}
    first, _, rest = code_of(trial_of("cosine", 0, 0.9), facts).partition("\n")
    assert first == (
        f"# found on {words} with resnet18, sgd, batches of 32, 2 epochs: with one seed, and not trained again with "
        "fresh ones; for another training try its init_lr again"
    )
    assert rest.startswith("# cosine: init_lr 0.05\n")


def test_exported_code_names_ones_own_network(tiny):
    science = tiny().science() | {"model": Model(name="custom", function="my_package.network").model_dump()}
    assert "with my_package.network, sgd," in code_of(
        trial_of("cosine", 0, 0.9), {"science": science, "confirmed": []}
    )


def test_exported_code_takes_its_length_from_the_training_or_from_what_it_is_told(tiny):
    facts = {"science": tiny().science(), "confirmed": []}
    assert "len(loader)" in code_of(trial_of("cosine", 0, 0.9), facts)
    assert "def make_scheduler(optimizer, T=8):" in code_of(trial_of("cosine", 0, 0.9), facts, 4, 2)


@pytest.mark.parametrize(("metric", "mode"), [("val/accuracy", "max"), ("val/loss", "min"), ("val/auroc", "max")])
def test_exported_plateau_follows_what_the_study_was_judged_by(tiny, metric, mode):
    facts = {"science": tiny(objective=f"{{metric: {metric}}}").science(), "confirmed": []}
    source = code_of(trial_of("plateau", 0, 0.9), facts)
    assert f"mode={mode!r}" in source
    assert f"# call scheduler.step({metric.replace('val/', 'validation_')}) after" in source


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "one of 2 that may be the best and could not be told apart"),
        (2, "0.1 behind the best with 3 fresh seeds, not among those that may be the best (2 of 4)"),
        (3, "not every fresh seed of it came to its end, no answer to rely on"),
        (4, "with one seed, and not trained again with fresh ones"),
    ],
)
def test_exported_code_says_how_sure_it_is_of_its_own_schedule(tiny, number, words):
    lost = row(3, 0.7, in_set=False, behind=None) | {"mean": None}
    rows = [row(0, 0.9), row(1, 0.89), row(2, 0.8, in_set=False), lost]
    facts = {"science": tiny().science(), "confirmed": rows}
    assert f"2 epochs: {words}; for another" in code_of(trial_of("cosine", number, 0.9), facts)


def test_exported_code_of_the_only_one_that_may_be_the_best_says_so(tiny):
    facts = {"science": tiny().science(), "confirmed": [row(0, 0.9), row(1, 0.8, in_set=False)]}
    assert "2 epochs: the best of 2 with 95 % confidence; " in code_of(trial_of("cosine", 0, 0.9), facts)
