"""Tables: every value in its own type, in every format, and for people."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from runner import export
from runner.export import best_schedules
from runner.results.tables import best_table, markdown, spreadsheet_safe, write
from runner.schedules import load

from ..study.helpers import row, trial_of


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


def test_the_table_has_every_parameter_in_its_own_type(swept):
    best = best_schedules("tiny")
    assert best["rank"].tolist() == [1, 2, 3]
    assert best["objective"].is_monotonic_decreasing
    assert str(best["init_lr"].dtype) == "Float64"
    assert str(best["floor"].dtype) == "Float64"
    assert str(best["epochs"].dtype) == "Int64"
    for _, one in best.iterrows():
        schedule = load(json.loads(one["schedule"]))
        assert one["lr"] == [schedule.lr(0, 6, epochs=2), schedule.lr(3, 6, epochs=2)]
        assert one["init_lr"] == schedule.init_lr
        assert one["warmup"] == schedule.warmup.length.value
    assert len(best_schedules("tiny", top=2)) == 2


@pytest.mark.parametrize("kind", ["csv", "json", "markdown", "parquet"])
@pytest.mark.parametrize("which", ["best", "trials", "epochs"])
def test_every_table_in_every_format(swept, capsys, kind, which):
    capsys.readouterr()
    assert export.main(["tiny", "--table", which, "--format", kind, "--out", f"t.{kind}"]) == 0
    rows = {"best": 3, "trials": 3, "epochs": 6}[which]
    if kind == "csv":
        assert len(pd.read_csv("t.csv")) == rows
    if kind == "json":
        assert len(json.loads(Path("t.json").read_text())) == rows
    if kind == "parquet":
        read = pd.read_parquet("t.parquet")
        assert len(read) == rows
        assert "lr" in read.columns
    if kind == "markdown":
        assert len(Path("t.markdown").read_text().splitlines()) == rows + 2


def test_a_table_is_written_as_its_file_is_named_unless_a_format_is(swept):
    best = best_schedules("tiny")["trial"].tolist()
    for name in ("t.csv", "t.JSON", "t.parquet", "t.md", "bare"):
        assert export.main(["tiny", "--out", name]) == 0
    assert pd.read_csv("t.csv")["trial"].tolist() == best
    assert [row["trial"] for row in json.loads(Path("t.JSON").read_text())] == best
    assert pd.read_parquet("t.parquet")["trial"].tolist() == best
    assert Path("t.md").read_text() == Path("bare").read_text()
    assert Path("t.md").read_text().startswith("| rank | trial |")
    assert export.main(["tiny", "--format", "json", "--out", "t.txt"]) == 0
    assert [row["trial"] for row in json.loads(Path("t.txt").read_text())] == best


def test_a_number_that_json_does_not_have_is_null():
    table = pd.DataFrame({"loss": [0.5, math.inf, math.nan], "trial": pd.array([1, None, 3], dtype="Int64")})
    rows = json.loads(write(table, "json", None), parse_constant=pytest.fail)
    assert rows == [{"loss": 0.5, "trial": 1}, {"loss": None, "trial": None}, {"loss": None, "trial": 3}]


def test_the_k_best_are_the_best_in_every_table(swept, capsys):
    first = best_schedules("tiny")["trial"][0]
    for which, rows in (("best", 1), ("trials", 1), ("epochs", 2)):
        assert export.main(["tiny", "--table", which, "--top", "1", "--format", "json", "--out", "t.json"]) == 0
        assert [row["trial"] for row in json.loads(Path("t.json").read_text())] == [first] * rows


def test_exact_values_survive_csv_json_and_parquet(swept, capsys):
    best = best_schedules("tiny")
    for kind in ("csv", "json", "parquet"):
        export.main(["tiny", "--format", kind, "--out", f"t.{kind}"])
    as_json = json.loads(Path("t.json").read_text())
    assert [row["init_lr"] for row in as_json] == best["init_lr"].tolist()
    assert pd.read_csv("t.csv", dtype=str)["init_lr"].map(float).tolist() == best["init_lr"].tolist()
    assert pd.read_parquet("t.parquet")["init_lr"].tolist() == best["init_lr"].tolist()


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        " =1",
        "\u00a0=1",
        "＝1+1",
        "＋1",
        "－1",
        "＠a",
        "ok\n=1",
        "\u200b=1",
    ],
)
def test_no_cell_starts_a_formula(text):
    assert spreadsheet_safe(text) == f"'{text}"


@pytest.mark.parametrize("text", ["cosine", "1-sqrt", "a=b", "", '{"type": 1}', "[0.1, -0.2]", "a\nb"])
def test_a_harmless_cell_stays_as_it_is(text):
    assert spreadsheet_safe(text) == text
