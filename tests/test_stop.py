"""Signals, in real processes: the first is polite, the second is not, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.export import best_schedules
from runner.place import load_place
from runner.study import load_study

from .conftest import TINY, epochs_on_record

COMMAND = [sys.executable, "-m", "runner.sweep", "sweeps/tiny.yaml", "--device", "cpu", "--lanes", "0"]
LONG = TINY.replace("epochs: 2", "epochs: 100").replace("trials: 3", "trials: 1")


def begun() -> subprocess.Popen:
    """A sweep of one long trial that has epochs on record."""
    Path("sweeps/tiny.yaml").write_text(LONG)
    process = subprocess.Popen(
        COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while not (Path("optuna.db").exists() and epochs_on_record()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 75)])
def test_a_signal_ends_the_epoch_says_how_to_continue_and_nothing_is_lost(project, name, code):
    process = begun()
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, (out, err)
    assert "running epochs have 30 s to end" in err
    assert "stopped; continue with: python -m runner.sweep sweeps/tiny.yaml --device cpu --lanes 0" in err
    assert "Traceback" not in err
    (record,) = load_study("tiny", load_place().storage)[1]
    assert record.outcome is None  # a stop is no failure
    assert 0 < len(record.epochs) < 100
    assert len(list(Path("results/tiny/checkpoints/search-00000").glob("*.ckpt"))) == 1
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (after,) = load_study("tiny", load_place().storage)[1]
    assert after.epochs[: len(record.epochs)] == record.epochs  # with their times: not written again
    assert (after.outcome, len(after.epochs)) == ("complete", 100)
    assert not Path("results/tiny/checkpoints").exists()
    stopped = best_schedules("tiny").drop(columns=["seconds", "run_id"])
    for path in ("optuna.db", "optuna.db-wal", "optuna.db-shm"):
        Path(path).unlink(missing_ok=True)
    if name == "SIGINT":
        assert subprocess.run(COMMAND, capture_output=True, check=False).returncode == 0
        assert best_schedules("tiny").drop(columns=["seconds", "run_id"]).equals(stopped)


def test_the_second_signal_ends_it_at_once(project):
    process = begun()
    os.kill(process.pid, signal.SIGSTOP)  # so that both arrive before an epoch ends
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    os.kill(process.pid, signal.SIGCONT)
    process.communicate(timeout=10)
    assert process.returncode in (130, 143)
    assert time.monotonic() - start < 2
    assert load_study("tiny", load_place().storage)[1][0].outcome is None


SLOW = """\
import time


def slow(t, T):  # the learning rates of an epoch are asked for before it
    time.sleep(60 if t > 9 else 0)
    return 1.0
"""


def test_an_epoch_that_does_not_end_in_time_is_abandoned_with_what_was_kept(project):
    """In this process's own thread, which nothing can interrupt."""
    (project / "own_lrs.py").write_text(SLOW)
    text = LONG[: LONG.index("  schedules:")] + "  schedules: {slow: {type: custom, function: own_lrs.slow}}\n"
    Path("sweeps/tiny.yaml").write_text(text + "search: {trials: 1}\nconfirm: {top: 0, types: false}\n")
    code = (
        "import runner.stop, runpy, sys; runner.stop.GRACE = 1.0; sys.argv[0] = 'sweep';"
        "runpy.run_module('runner.sweep', run_name='__main__', alter_sys=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *COMMAND[3:], "--allow-plugin", "own_lrs."],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while not (Path("optuna.db").exists() and epochs_on_record() >= 2):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(0.5)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert time.monotonic() - start < 20
    (record,) = load_study("tiny", load_place().storage)[1]
    assert record.outcome is None
    assert len(record.epochs) >= 2
