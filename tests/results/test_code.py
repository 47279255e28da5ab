"""The comments of exported code: what its schedule was found with, and how sure that is."""

import pytest

from runner.files.sweep_file import Data
from runner.results.tables import code_of

from ..study.helpers import row, trial_of


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
    facts = {"science": tiny().science() | {"data": Data(**data).model_dump()}, "confirmed": []}
    source = code_of(trial_of("cosine", 0, 0.9), facts, 4, 2)
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
    assert code_of(trial_of("cosine", number, 0.9), facts, 4, 2).startswith(f"{words}\n# found with sgd")
