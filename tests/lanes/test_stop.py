"""Signals, in real processes: the first is polite, the second is not, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runner import sweep
from runner.export import best_schedules
from runner.files.place import load_place
from runner.study.study import load_study

from ..conftest import TINY, epochs_on_record

COMMAND = [sys.executable, "-m", "runner.sweep", "sweeps/tiny.yaml", "--device", "cpu", "--lanes", "0"]
EPOCHS = 30
LONG = TINY.replace("epochs: 2", f"epochs: {EPOCHS}").replace("trials: 3", "trials: 1")


def heeding() -> None:
    """nohup may have started this with the hang-up ignored; for SIGINT see conftest.py."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def ignoring_ctrl_c() -> None:
    """As a shell without job control starts what it puts into the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def started(
    *more: str, text: str = LONG, code: str = "", epochs: int = 1, first: Callable[[], None] = heeding, **streams
) -> subprocess.Popen:
    """A sweep in a session of its own that has epochs on record; ``code`` is what its process runs first, and
    ``first`` is done before there is Python in it."""
    Path("sweeps/tiny.yaml").write_text(text)
    prelude = (
        f"{code}; import runpy, sys; sys.argv[0] = 'sweep'; runpy.run_module('runner.sweep', run_name='__main__')"
    )
    command = [sys.executable, "-c", prelude, *COMMAND[3:]] if code else COMMAND
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | streams
    process = subprocess.Popen([*command, *more], start_new_session=True, preexec_fn=first, **streams)
    while not (Path("optuna.db").exists() and epochs_on_record() >= epochs):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 75)])
def test_a_signal_ends_the_epoch_says_how_to_continue_and_nothing_is_lost(project, name, code):
    process = started()
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, (out, err)
    assert "stopping within 30 s" in err
    assert "stopped; continue with: python -m runner.sweep sweeps/tiny.yaml --device cpu --lanes 0" in err
    assert "Traceback" not in err
    (record,) = load_study("tiny", load_place().storage)[1]
    assert record.outcome is None  # a stop is no failure
    assert 0 < len(record.epochs) < EPOCHS
    assert len(list(Path("results/tiny/checkpoints/search-00000").glob("*.ckpt"))) == 1
    if name != "SIGINT":
        return
    assert sweep.main(COMMAND[3:]) == 0
    (after,) = load_study("tiny", load_place().storage)[1]
    assert after.epochs[: len(record.epochs)] == record.epochs  # with their times: not written again
    assert (after.outcome, len(after.epochs)) == ("complete", EPOCHS)
    assert not Path("results/tiny/checkpoints").exists()
    stopped = best_schedules("tiny").drop(columns=["seconds", "run_id"])
    for path in ("optuna.db", "optuna.db-wal", "optuna.db-shm"):
        Path(path).unlink(missing_ok=True)
    assert sweep.main(COMMAND[3:]) == 0
    assert best_schedules("tiny").drop(columns=["seconds", "run_id"]).equals(stopped)


@pytest.mark.slow
def test_a_sweep_that_was_started_with_ctrl_c_ignored_goes_on_after_it_and_heeds_sigterm(project):
    """``python -m runner.sweep &`` in a script: Ctrl-C is for what is in the foreground."""
    process = started(text=LONG.replace(f"epochs: {EPOCHS}", "epochs: 3000"), first=ignoring_ctrl_c)
    process.send_signal(signal.SIGINT)
    before = epochs_on_record()
    while epochs_on_record() < before + 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 143, (out, err)
    assert "stopping within 30 s; SIGTERM again ends it at once" in err
    assert "Ctrl-C" not in err
    assert "stopped; continue with: python -m runner.sweep sweeps/tiny.yaml --device cpu --lanes 0" in err
    assert "Traceback" not in err
    (record,) = load_study("tiny", load_place().storage)[1]
    assert record.outcome is None
    assert before + 3 <= len(record.epochs) < 3000
    assert list(Path("results/tiny/checkpoints/search-00000").glob("*.ckpt"))


SLOW = """\
import time


def slow(t, T):  # the learning rates of an epoch are asked for before it
    time.sleep(60 if t > 9 else 0)
    return 1.0
"""


def slow(grace: float, code: str = "") -> subprocess.Popen:
    """A sweep whose fourth epoch lasts for minutes, in its process's own thread, which nothing can interrupt."""
    Path("own_lrs.py").write_text(SLOW)
    text = (
        LONG[: LONG.index("  schedules:")]
        + "  schedules: {slow: {type: custom, function: own_lrs.slow, warmup: 0}}\n"
    )
    text += "search: {trials: 1}\nconfirm: {top: 0, types: false}\n"
    code = f"import runner.lanes.stop; runner.lanes.stop.GRACE = {grace}; {code or 'pass'}"
    process = started("--allow-plugin", "own_lrs.", text=text, code=code, epochs=3)
    time.sleep(0.5)
    return process


@pytest.mark.slow
def test_the_second_signal_ends_it_at_once(project):
    process = slow(grace=30.0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.8)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=5)
    assert process.returncode == 143
    assert load_study("tiny", load_place().storage)[1][0].outcome is None


@pytest.mark.slow
def test_an_epoch_that_does_not_end_in_time_is_abandoned_with_what_was_kept(project):
    process = slow(grace=1.0)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)  # a wrapper hands the same Ctrl-C on: still one event
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert 0.9 < time.monotonic() - start < 20
    (record,) = load_study("tiny", load_place().storage)[1]
    assert record.outcome is None
    assert len(record.epochs) == 3


@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_sweep_lets_its_workers_end_their_epochs(project):
    """As timeout, Slurm and a closing terminal send it."""
    process = started("--lanes", "2", text=LONG.replace("trials: 1", "trials: 2"))
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 143, (out, err)
    assert "begins again" not in out
    records = load_study("tiny", load_place().storage)[1]
    assert [r.outcome for r in records] == [None] * len(records)
    kept = list(Path("results/tiny/checkpoints").glob("search-*/*.ckpt"))
    assert {p.parent.name for p in kept} >= {f"search-{r.number:05d}" for r in records if r.epochs}


@pytest.mark.slow
def test_a_terminal_that_is_closed_stops_it_politely(project):
    """The hang-up comes, and whatever it says then goes nowhere."""
    outside, inside = os.openpty()
    process = started(stdin=inside, stdout=inside, stderr=inside)
    os.close(inside)
    os.close(outside)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=30) == 129
    (record,) = load_study("tiny", load_place().storage)[1]
    assert record.outcome is None
    assert list(Path("results/tiny/checkpoints/search-00000").glob("*.ckpt"))


@pytest.mark.slow
def test_a_reader_that_goes_away_stops_nothing(project):
    """As in ``python -m runner.sweep | head -1``."""
    process = started(text=LONG.replace("epochs: 100", "epochs: 20"), stderr=subprocess.STDOUT)
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert len(best_schedules("tiny")) == 1


def test_a_full_disk_under_its_output_is_no_success(swept):
    command = f"{sys.executable} -m runner.export tiny --format csv"
    done = subprocess.run(["sh", "-c", f"{command} > /dev/full"], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stderr == "error: what was to be printed is not complete: No space left on device\n"


@pytest.mark.slow
def test_a_command_without_an_output_works_all_the_same(swept):
    command = f"{sys.executable} -m runner.export"
    for rest, code in (("tiny >&-", 0), ("tiny 2>&-", 0), ("nothing 2>&-", 2)):
        done = subprocess.run(["sh", "-c", f"{command} {rest}"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (code, ""), rest


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("on_a_gpu", [True, False])
def test_what_dies_while_python_puts_away_what_was_on_a_gpu_does_not_change_the_exit_code(on_a_gpu, code):
    script = f"""
import atexit, os, sys, types
sys.modules["torch"] = types.SimpleNamespace(cuda=types.SimpleNamespace(is_initialized=lambda: {on_a_gpu}))

class Broken:
    def __del__(self, abort=os.abort):
        abort()

kept = Broken()
atexit.register(print, "put away")
from runner.lanes.stop import exit_with
exit_with(lambda: {code})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code if on_a_gpu else -signal.SIGABRT, "put away\n")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 75)])
def test_a_signal_before_anything_has_begun_has_its_code(name, code):
    lines = ["import os, signal", "from runner.lanes.stop import exit_on_signals"]
    script = "\n".join([*lines, "exit_on_signals()", f"os.kill(os.getpid(), signal.{name})"])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
