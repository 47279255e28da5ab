"""The terminal: what a person sees while a sweep runs."""

import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from itertools import product
from pathlib import Path

import pytest
from rich.console import Console

from runner import sweep
from runner.files.trial import Record
from runner.results import terminal
from runner.results.tables import best_table, for_people
from runner.results.terminal import sparkline

from ..conftest import HERE, TINY
from ..study.helpers import row, trial_of


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
    terminal.print_table(for_people(best_table(records, confirmed=[row(10, 0.9123), row(11, 0.8)])))
    out = console.file.getvalue()
    assert "…" not in out
    assert "0.9123 ± 0.02" in out
    assert "may be best" in out
    assert ("test" in out) == (width > 100 or not is_terminal)


@pytest.mark.parametrize(
    ("values", "width", "row"),
    [
        ([1.0, 0.75, 0.5, 0.25, 0.01], 16, "█▇▅▃▁"),
        ([0.1, 1.0], 16, "▁█"),
        ([0.0, 1.0] * 32, 4, "▁▁▁▁"),
        ([i / 31 for i in range(32)], 8, "▁▂▃▄▅▆▇█"),
        ([0.0], 8, "▁"),
        ([], 8, ""),
    ],
)
def test_a_row_of_blocks_shows_the_whole_of_a_curve_however_short(values, width, row):
    assert sparkline(values, width) == row


@pytest.mark.slow
def test_a_quiet_sweep_prints_warnings_and_the_result_alone(swept, capsys):
    text = TINY.replace("top: 0, types: false", "top: 2, types: false, seeds: 3")
    Path("sweeps/other.yaml").write_text(text)
    assert sweep.main(["sweeps/other.yaml", *HERE, "--quiet"]) == 0
    out, err = capsys.readouterr()
    before, result = out.split("\nDoes it run?\n")
    assert before
    assert all(line.startswith("warning: ") for line in before.splitlines()), before
    assert "rank" in result
    assert "results/other/" in result
    assert not err


LINES = r"""
from runner.files.trial import Record
from runner.lanes.stop import exit_with
from runner.results.terminal import Display, echo, print_table

def main():
    epochs = ({"epoch": 0, "lr": 0.1, "val/accuracy": 0.5, "seconds": 1.0, "timestamp": 1},)
    one = Record(0, "cosine", {"init_lr": 0.1}, {}, "complete", 0.5, epochs)
    with Display(2, 1) as display:
        display.epoch(one)
        display.ended(one, better=True)
    echo("- 0.1 \u00b1 0.2 \u2014 \u2581 \ud800", markdown=True)
    print_table([{"mean \u00b1 95 %": "\u2581"}])
    return 0

exit_with(main)
"""


def said(environment: dict[str, str], stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess:
    """A display, a sentence and a table, in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "TERM", "PYTHONIOENCODING")}
    return subprocess.run(
        [sys.executable, "-c", LINES],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=clean | {"TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        timeout=60,
    )


MOVES = rb"\x1b\[[0-9;?]*[A-HJKhl]"


@pytest.mark.parametrize("more", [{"FORCE_COLOR": "1", "TTY_INTERACTIVE": "1"}, {"TTY_COMPATIBLE": "1"}], ids=str)
def test_what_is_no_terminal_gets_no_cursor_movements_whatever_is_forced(more):
    run = said(more)
    assert run.returncode == 0, run.stderr
    assert b"[1/2] trial 0" in run.stdout
    assert re.findall(MOVES, run.stdout) == []
    assert (b"\x1b[" in run.stdout) == ("FORCE_COLOR" in more)  # which asks for colours


def test_a_terminal_gets_movements_and_a_dumb_one_none():
    for term, moves in (("xterm", True), ("dumb", False)):
        master, slave = pty.openpty()
        run = said({"TERM": term}, stdout=slave)
        os.close(slave)
        seen = os.read(master, 100_000)
        os.close(master)
        assert run.returncode == 0, run.stderr
        assert (b"[1/2] trial 0" in seen, bool(re.findall(MOVES, seen))) == (True, moves), term


@pytest.mark.parametrize(
    ("environment", "encoding"),
    [
        ({"PYTHONIOENCODING": "ascii"}, "ascii"),
        ({"PYTHONIOENCODING": "cp1252:strict"}, "cp1252"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "ascii"),
    ],
    ids=str,
)
def test_what_an_encoding_does_not_have_is_replaced(environment, encoding):
    run = said(environment)
    assert (run.returncode, run.stderr) == (0, b"")
    text = run.stdout.decode(encoding)
    assert ("±" in text) == (encoding != "ascii")
    assert "init_lr 0.1      # 0.5" in text  # the curve, in characters that there are


@pytest.mark.parametrize("command", [["runner"], ["runner.preview", "▁"]])
def test_every_command_ends_as_it_should_where_the_encoding_lacks_characters(command, tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == (0 if command == ["runner"] else 2), run.stderr
    assert "Traceback" not in run.stderr
