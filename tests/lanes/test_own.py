"""Trainings of one's own that go wrong, in every way that somebody has thought of: functions and commands.

Each gets a sentence, and nothing else suffers: not the other trials, not the machine.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runner import sweep
from runner.files.place import load_place
from runner.study.study import load_study
from runner.sweep import MAX_FAILED

from ..conftest import epochs_on_record
from .test_lanes import go_to, table

SLEEP = f"{600 + os.getpid() / 1e7:.7f}"
"""How long what trials leave behind would sleep, in seconds: a number of these tests alone."""
HEAD = """\
import multiprocessing, os, random, signal, subprocess, sys, threading, time
from pathlib import Path
import numpy, torch

fine = [{"val/score": 0.5}] * 2
SLEEP, HOME = os.environ["SLEEP"], Path(__file__).parent


def asleep():
    return [p.parent.name for p in Path("/proc").glob("[0-9]*/cmdline") if SLEEP.encode() in p.read_bytes()]


def of_its_trial(job):
    return BEHAVIOURS[round(job.schedule.init_lr) - 1](job)

"""


@pytest.fixture
def functions(project, monkeypatch):
    """Sweep over trials each of which does something else: the generator functions in a text, in their order."""
    monkeypatch.setenv("SLEEP", SLEEP)
    monkeypatch.syspath_prepend(project)
    monkeypatch.setattr("runner.sweep.MAX_FAILED", 1.0)  # all of them are tried
    made = f"own_{abs(hash(project))}"

    def write(text: str, *options: str, epochs: int = 2, best: bool = False, run: bool = True) -> int | list[str]:
        text = textwrap.dedent(text)
        names = re.findall(r"^def (\w+)\(job\)", text, re.MULTILINE)
        (project / f"{made}.py").write_text(f"{HEAD}{text}\n\nBEHAVIOURS = [{', '.join(names)}]\n")
        train = f"function: {made}.of_its_trial, epochs: {epochs}"
        Path("sweeps/own.yaml").write_text(sweep_text(train, len(names), ", epoch: best" * best))
        command = ["sweeps/own.yaml", "--device", "cpu", "--lanes", "1", "--allow-plugin", f"{made}.", *options]
        return sweep.main(command) if run else command

    return write


def sweep_text(train: str, trials: int, objective: str = "") -> str:
    return f"""\
question: What does it bear?
train: {{{train}}}
objective: {{metric: val/score, direction: maximize{objective}}}
space:
  init_lr: {{choice: [{", ".join(map(str, range(1, trials + 1)))}]}}
  schedules: {{constant: {{}}}}
search: {{trials: {trials}, sampler: grid, window: 1}}
confirm: {{top: 0, types: false}}
"""


def asleep() -> list[str]:
    """The processes that trials have left behind."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if SLEEP.encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


def until(what, seconds: float = 10.0) -> bool:
    """Wait until it is so, but not for long."""
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(what())


def records() -> list:
    return sorted(load_study("own", load_place().storage)[1], key=lambda r: r.schedule["init_lr"])


def told_as_said(text: str, out: str) -> dict:
    """The trials by name: how each ended is said in a comment in ``text``, on record, and on the terminal."""
    wanted, found = re.findall(r"^def (\w+)\(job\):(?:  # (.*))?", text, re.MULTILINE), records()
    assert len(found) == len(wanted)
    for record, (name, cause) in zip(found, wanted, strict=True):
        said = record.cause or record.outcome
        assert re.fullmatch(re.escape(cause or "complete").replace(r"\*", ".*"), said), (name, said)
        assert record.cause is None or f"warning: {record.title} failed: {record.cause}\n" in out, name
        assert (record.value == 0.5) == (not cause), name
    return dict(zip([name for name, _ in wanted], found, strict=True))


def words_of(*parts: str) -> object:
    """What equals every text that begins and ends so."""

    class Text:
        def __eq__(self, other: object) -> bool:
            return isinstance(other, str) and other.startswith(parts[0]) and other.endswith(parts[-1])

        def __repr__(self) -> str:
            return "...".join(parts)

    return Text()


# --- functions -------------------------------------------------------------------------------------------------

BAD = """
def good(job):
    yield from fine

def yields_nothing(job):  # it ended after 0 of 2 epochs
    yield from ()

def yields_a_number(job):  # TypeError: an epoch gives a mapping of names to numbers, not 0.5
    yield 0.5

def yields_text(job):  # TypeError: an epoch gives numbers by name, and 'val/score' is '0.5'
    yield {"val/score": "0.5"}

def yields_what_no_float_holds(job):  # TypeError: an epoch gives numbers by name, and 'val/score' is 1000000000*
    yield {"val/score": 10**400}

def ends_early(job):  # it ended after 1 of 2 epochs
    yield {"val/score": 0.5}

def has_no_objective_at_the_end(job):  # the objective val/score is missing: its last epoch gave val/loss*
    yield {"val/score": 0.5}
    yield {"val/loss": 1.0}

def returns_a_mapping(job):  # TypeError: *.of_its_trial returned {'val/score': 0.5}; it yields after every epoch*
    return {"val/score": 0.5}

def exits(job):  # it called sys.exit()
    yield {"val/score": 0.5}
    sys.exit()

def exits_with_words(job):  # it called sys.exit('no data')
    sys.exit("no data")
    yield

def says_it_was_interrupted(job):  # KeyboardInterrupt (own_*.py, line *) (log: results/own/logs/search-*.log)
    raise KeyboardInterrupt
    yield

def raises_what_nobody_can_send(job):  # Local: what is wrong (own_*.py, line *) (log: results/own/logs/search-*.log)
    class Local(Exception):
        def __init__(self, one, other):
            self.lock = threading.Lock()
            super().__init__("what is wrong\\nand more of it")

    raise Local(1, 2)
    yield

def raises_what_nobody_can_print(job):  # Mute (own_*.py, line *) (log: results/own/logs/search-*.log)
    class Mute(Exception):
        def __str__(self):
            raise ValueError

    raise Mute
    yield

def raises_far_below(job):  # ZeroDivisionError: division by zero (own_*.py, line *) (log: *.log)
    def below(n):
        return below(n - 1) if n else 1 / 0

    print("words before it")
    below(50)
    yield

def reports_from_another_thread(job):  # report() is called in the thread in which the training began*(log: *.log)
    thread = threading.Thread(target=lambda: job.report({"val/score": 0.5}))
    thread.start()
    thread.join()

def loses_its_loss(job):  # diverged
    yield {"val/score": 0.5, "val/loss": float("nan")}

def loses_its_objective(job):  # diverged
    yield {"val/score": 0.5}
    yield {"val/score": float("nan")}

def explodes(job):  # diverged
    yield {"val/score": 0.5}
    yield {"val/score": float("inf")}

def loses_its_objective_for_a_while(job):
    yield {"val/score": float("nan")}
    yield {"val/score": 0.5}

def loses_something_else(job):
    yield {"val/score": 0.5, "val/other": float("nan")}
    yield {"val/score": 0.5, "val/other": -float("inf")}

def has_the_objective_at_the_end(job):
    yield {"val/loss": 1.0}
    yield {"val/score": 0.5}

def yields_more(job):
    yield from fine * 2

def fails_behind_the_end(job):
    yield from fine
    sys.exit(0)

def catches_what_is_to_stop_it(job):
    while True:
        try:
            job.report({"val/score": 0.5})
        except BaseException:
            pass

def has_odd_numbers(job):
    yield {"val/score": torch.tensor([0.5]), "b": numpy.float32(1), "c": True}, {"best": numpy.float64(0.5)}
    yield {"val/score": numpy.array([0.5])}, {"best": (1, [None])}

def has_odd_names(job):
    yield {"val/score": 0.5, "top@5 %": 0.9, "": 1.0, "../up": 1.0, "/": 1.0, "n" * 300: 1.0, "two\\nlines": 1.0}
    yield {"val/score": 0.5}

def takes_its_output_away(job):
    yield {"val/score": 0.5}
    sys.stdout.close()
    sys.stderr = None
    yield {"val/score": 0.5}

def good_after_all(job):
    yield from fine
"""


def test_whatever_a_function_does_gets_a_sentence_and_the_other_trials_go_on(functions, capsys):
    assert functions(BAD) == 0
    out, err = capsys.readouterr()
    by_name = told_as_said(BAD, out)
    assert by_name["raises_far_below"].output[-1] == "ZeroDivisionError: division by zero"
    assert "words before it\nTraceback" in Path("results/own/logs/search-00013.log").read_text()
    assert by_name["raises_what_nobody_can_send"].output[-1] == "and more of it"
    assert "they are left out" in by_name["yields_more"].remark
    assert "after its last epoch it failed: it called sys.exit(0)" in by_name["fails_behind_the_end"].remark
    assert "runner/lanes" not in out  # nothing of where in our own code
    assert "refuses" not in out  # MLflow has them all
    assert "Traceback" not in err


CHANGES = """
import numpy as np


def state():
    return (
        os.getcwd(), sorted(os.environ.items()), list(sys.path), torch.get_default_dtype(), torch.get_num_threads(),
        torch.get_default_device(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark, [signal.getsignal(n) for n in (1, 2, 10, 14, 15)],
        torch.rand(1).item(), np.random.rand(), random.random(), sys.stdout.closed,
    )


def says_how_it_is(job):
    Path(HOME, "state").write_text(repr(state()))
    yield from fine


def changes_it(job):
    os.chdir("/")
    del os.environ["SLEEP"]
    os.environ["OMP_NUM_THREADS"] = "7"
    os.environ["MORE"] = "more"
    sys.path.insert(0, "/nowhere")
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = True
    for number in (1, 2, 10, 14, 15):
        signal.signal(number, lambda *_: os._exit(1))
    yield from fine


def finds_it_as_it_was(job):
    assert Path(HOME, "state").read_text() == repr(state())
    yield from fine


def leaves_processes_behind(job):
    subprocess.Popen(["sleep", SLEEP])
    subprocess.Popen(["sleep", SLEEP], start_new_session=True)
    subprocess.Popen(["sh", "-c", f"trap '' TERM; sleep {SLEEP} & setsid sleep {SLEEP} & sleep 0.1"]).wait()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", SLEEP])
        os._exit(0)
    while len(asleep()) < 5:
        time.sleep(0.01)
    yield from fine


def finds_none_of_them(job):
    assert not asleep(), asleep()
    yield from fine


def prints_much(job):
    yield {"val/score": 0.5}
    for n in range(400):
        print(n, "x" * 50_000)
    os.write(2, b"the last words")
    raise ValueError("after 20 MB")


def leaves_more_behind(job):
    subprocess.Popen(["sleep", SLEEP], start_new_session=True)
    yield from fine
"""


def test_what_a_function_changes_and_begins_ends_with_its_trial(functions):
    assert functions(CHANGES) == 0
    said = [record.cause or record.outcome for record in records()]
    names = re.findall(r"^def (\w+)\(job\)", CHANGES, re.MULTILINE)
    assert {name: cause for name, cause in zip(names, said, strict=True) if cause != "complete"} == {
        "prints_much": words_of("ValueError: after 20 MB (", "(log: results/own/logs/search-00005.log)")
    }
    assert until(lambda: not asleep())
    log = Path("results/own/logs/search-00005.log").read_bytes()
    assert 2_000_000 < len(log) < 2_300_000
    assert b"bytes are left out here" in log
    assert log.startswith(b"0 xxx")
    assert b"the last words" in log


PROCESSES = """def ends_processes_of_its_own(job):
    child = subprocess.Popen(["sleep", SLEEP])
    child.terminate()
    assert child.wait(5) == -signal.SIGTERM
    for name in ("fork", "forkserver"):
        other = multiprocessing.get_context(name).Process(target=time.sleep, args=(60,))
        other.start()
        other.terminate()
        other.join(5)
        assert other.exitcode == -signal.SIGTERM, name
    yield from fine


def does_it_again(job):
    yield from ends_processes_of_its_own(job)


def loads_in_processes(job):
    loader = torch.utils.data.DataLoader(torch.arange(8.0), batch_size=4, num_workers=2, persistent_workers=True)
    for _ in range(2):
        yield {"val/score": sum(float(batch.sum()) for batch in loader) / 56}



def finds_none_of_them(job):
    assert multiprocessing.active_children() == []
    yield from fine
"""


@pytest.mark.slow
def test_a_function_begins_and_ends_processes_as_in_a_program_of_its_own(functions, capsys):
    assert functions(PROCESSES) == 0
    told_as_said(PROCESSES, capsys.readouterr().out)
    assert until(lambda: not asleep())


@pytest.mark.slow
def test_of_an_objective_in_some_epochs_only_the_best_one_counts_where_that_is_asked_for(functions, capsys):
    text = """
def has_it_first(job):
    yield {"val/score": 0.5}
    yield {"val/other": 1.0}

def has_it_last(job):
    yield {"val/other": 1.0}
    yield {"val/score": 0.5}

def loses_it(job):  # diverged
    yield {"val/score": 0.5}
    yield {"val/score": float("nan")}

def loses_it_for_a_while(job):
    yield {"val/score": float("inf")}
    yield {"val/score": 0.5}

def never_has_it(job):  # the objective val/score is missing: its last epoch gave val/other
    yield {"val/other": 0.5}
    yield {"val/other": 0.5}
"""
    assert functions(text, best=True) == 0
    told_as_said(text, capsys.readouterr().out)


@pytest.mark.slow
def test_a_function_that_no_worker_can_import_ends_the_sweep_with_its_sentence(functions, capsys, monkeypatch):
    monkeypatch.setattr("runner.sweep.MAX_FAILED", MAX_FAILED)
    text = """
    if multiprocessing.parent_process():
        raise ImportError("not in here")

    def one(job):
        yield from fine

    def two(job):
        yield from fine

    def three(job):
        yield from fine
    """
    assert functions(text) == 5
    err = capsys.readouterr().err
    assert err.startswith("error: 3 of 3 trials failed, the last with ScheduleError: function: 'own_")
    assert err.endswith(".of_its_trial' cannot be imported: ImportError: not in here\n")


# --- commands --------------------------------------------------------------------------------------------------

SCRIPT = """\
import json, os, signal, subprocess, sys, time

report = open(os.environ["RUNNER_REPORT"], "w", buffering=1)
SLEEP = os.environ["SLEEP"]


def write(text):
    report.write(text)
    report.flush()


def say(**metrics):
    write(json.dumps({f"val/{name}": value for name, value in metrics.items()}) + "\\n")


def train():
    with open(sys.argv[1]) as file:
        BEHAVIOURS[round(json.load(file)["schedule"]["init_lr"]) - 1](None)

"""
ODD = ["{{braces}}", "a b", 'it\'s "said"', "two\nlines", "$HOME", "`id`", "; rm -rf x", "*", "", "{seed}/{epochs}"]


@pytest.fixture
def commands(project, monkeypatch):
    """Sweep over trials each of which does something else: the functions in the text of a script, in their order."""
    monkeypatch.setenv("SLEEP", SLEEP)
    monkeypatch.setattr("runner.sweep.MAX_FAILED", 1.0)

    def write(text: str, *options: str, epochs: int = 2, run: bool = True) -> int | list[str]:
        names = re.findall(r"^def (\w+)\(job\)", text, re.MULTILINE)
        Path("script.py").write_text(f"{SCRIPT}{text}\n\nBEHAVIOURS = [{', '.join(names)}]\ntrain()\n")
        command = [sys.executable, "-S", "-E", "script.py", "{schedule}", *ODD]
        train = f"command: {json.dumps(command)}, epochs: {epochs}"
        Path("sweeps/own.yaml").write_text(sweep_text(train, len(names)))
        command = ["sweeps/own.yaml", "--device", "cpu", "--lanes", "1", "--allow-command", *options]
        return sweep.main(command) if run else command

    return write


BAD_COMMANDS = """
def good(job):
    with open("arguments", "w") as file:
        json.dump(sys.argv[2:], file)
    say(score=0.5), say(score=0.5)

def exits_with_3(job):  # *python* exited with 3: RuntimeError: no data (log: results/own/logs/search-00001.log)
    say(score=0.5)
    print("Traceback (most recent call last):\\n  somewhere\\nRuntimeError: no data", file=sys.stderr)
    sys.exit(3)

def is_killed(job):  # *python* was killed, by somebody or because the machine ran out of memory (log: *.log)
    say(score=0.5)
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

def is_terminated(job):  # *python* was ended by SIGTERM
    say(score=0.5)
    os.kill(os.getpid(), signal.SIGTERM)

def crashes(job):  # *python* was ended by SIGSEGV
    os.kill(os.getpid(), signal.SIGSEGV)

def writes_half_a_line(job):  # its last line was cut off: {"val/score": 0.
    say(score=0.5)
    write('{"val/score": 0.')

def writes_garbage(job):  # it wrote a line that is no JSON: epoch 1, loss 0.3
    write("epoch 1, loss 0.3\\n")

def writes_bytes(job):  # it wrote a line that is no JSON: *
    os.write(report.fileno(), bytes(range(128, 256)) + b"\\n")

def writes_a_list(job):  # a line is a mapping of names to numbers, not [1, 2]
    write("[1, 2]\\n")

def writes_text(job):  # an epoch gives numbers by name, and 'val/score' is '0.5'
    say(score="0.5")

def writes_what_no_float_holds(job):  # an epoch gives numbers by name, and 'val/score' is 1000000000*
    say(score=10**400)

def writes_what_is_too_deep(job):  # it wrote a line that is nested too deep: [[[[*
    write("[" * 50_000 + "\\n")

def gives_a_state_that_is_none(job):  # a state is a mapping, not 7
    write('{"metrics": {"val/score": 0.5}, "state": 7}\\n')

def ends_early(job):  # it ended after 1 of 2 epochs
    say(score=0.5)

def goes_on_elsewhere(job):  # it goes on at another epoch than is on record: epoch 1 comes after 0 of them
    write('{"metrics": {"val/score": 0.5}, "epoch": 1}\\n')

def diverges(job):  # diverged
    say(score=0.5, loss=float("nan"))
    time.sleep(60)

def writes_more(job):
    for _ in range(5):
        say(score=0.5)

def prints_much(job):
    say(score=0.5)
    for n in range(400):
        print(n, "x" * 50_000)
    say(score=0.5)

def leaves_processes_behind(job):
    held = subprocess.Popen(["sleep", SLEEP])  # which holds the pipe, too
    subprocess.Popen(["sh", "-c", f"trap '' TERM; sleep {SLEEP} & setsid sleep {SLEEP} & sleep 0.1"]).wait()
    say(score=0.5), say(score=0.5)

def finds_none_of_them(job):
    there = subprocess.run(["sh", "-c", "cat /proc/[0-9]*/cmdline 2> /dev/null"], stdout=subprocess.PIPE).stdout
    assert SLEEP.encode() not in there
    say(score=0.5), say(score=0.5)

def fails_behind_the_end(job):
    say(score=0.5), say(score=0.5)
    sys.exit("no room for the weights")
"""


def test_whatever_a_command_does_gets_a_sentence_and_the_other_trials_go_on(commands, capsys):
    assert commands(BAD_COMMANDS) == 0
    out, err = capsys.readouterr()
    by_name = told_as_said(BAD_COMMANDS, out)
    assert json.loads(Path("arguments").read_text()) == ["{braces}", *ODD[1:-1], "0/2"]
    assert out.count("trial 2 begins again: ") == 2
    assert out.count("begins again") == 2
    assert by_name["is_killed"].output == ("last words",) * 3
    log = Path("results/own/logs/search-00017.log").read_bytes()
    assert 2_000_000 < len(log) < 2_300_000
    assert b"bytes are left out here" in log
    assert "exited with 1: no room for the weights" in by_name["fails_behind_the_end"].remark
    assert until(lambda: not asleep())
    assert "Traceback" not in err


# --- stopping and dying ----------------------------------------------------------------------------------------

LASTING = """
def lasts(job):
    deaf = f"trap '' TERM INT; sleep {SLEEP}; sleep {SLEEP}"
    processes = [["sleep", SLEEP], ["setsid", "sleep", SLEEP], ["sh", "-c", deaf]]
    for epoch in range(EPOCH, 3):
        if epoch == 1 and os.path.exists("long"):
            for words in processes:
                subprocess.Popen(words)
            while len(asleep()) < 4:
                time.sleep(0.01)
            open("begun", "w").close()
            time.sleep(600)
        REPORT
"""
IN_A_FUNCTION = LASTING.replace("EPOCH", "job.epoch").replace("REPORT", "yield {'val/score': 0.5}, {'at': epoch}")
IN_A_COMMAND = """
from pathlib import Path


def asleep():
    return [p for p in Path("/proc").glob("[0-9]*/cmdline") if SLEEP.encode() in p.read_bytes()]

""" + LASTING.replace("EPOCH", "int(os.environ['RUNNER_EPOCH'])").replace(
    "REPORT", """write('{"metrics": {"val/score": 0.5}, "state": {"at": %d}}\\n' % epoch)"""
)


@pytest.fixture
def lasting(functions, commands):
    """Begin a sweep in a process of its own: its second epoch lasts for ever, and has begun other processes; returns
    it, and how to go on with it, in this process."""
    begun = []

    def begin(kind: str, grace: float = 1.0) -> tuple[subprocess.Popen, Callable[[], int]]:
        made = functions if kind == "function" else commands
        arguments = made(IN_A_FUNCTION if kind == "function" else IN_A_COMMAND, epochs=3, run=False)
        code = f"import runner.lanes.stop; runner.lanes.stop.GRACE = {grace}; import runpy, sys; "
        code += "sys.argv[0] = 'sweep'; runpy.run_module('runner.sweep', run_name='__main__')"
        Path("long").touch()
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        begun.append(process)
        while not (Path("begun").exists() and epochs_on_record()):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        Path("long").unlink()
        return process, lambda: sweep.main(arguments)

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "code"), [("function", "SIGINT", 130), ("command", "SIGTERM", 143)])
def test_a_training_that_is_stopped_leaves_no_process_and_goes_on_from_what_it_had(lasting, kind, name, code):
    process, go_on = lasting(kind)
    began = time.monotonic()
    os.killpg(process.pid, getattr(signal, name))  # as a terminal does, and a batch system
    out, err = process.communicate(timeout=20)
    assert process.returncode == code, (out, err)
    assert "stopped; continue with: python -m runner.sweep sweeps/own.yaml" in err
    assert "Traceback" not in out + err
    assert "begins again" not in out
    assert until(lambda: not asleep(), 8.0)
    assert time.monotonic() - began < 15
    assert [(r.outcome, len(r.epochs)) for r in records()] == [(None, 1)]
    assert go_on() == 0
    assert [(r.outcome, len(r.epochs)) for r in records()] == [("complete", 3)]


@pytest.mark.slow
def test_the_second_signal_ends_a_training_and_what_it_has_begun_at_once(lasting):
    process, _ = lasting("function", grace=30.0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.8)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode == 130
    assert until(lambda: not asleep(), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["function", "command"])
def test_what_a_training_has_begun_ends_with_a_coordinator_that_is_killed(lasting, kind):
    process, go_on = lasting(kind)
    process.kill()
    process.communicate()
    assert until(lambda: not asleep(), 8.0)
    if kind == "function":
        assert go_on() == 0
        assert [(r.outcome, len(r.epochs)) for r in records()] == [("complete", 3)]


DYING = """
def trained(job, dies, keeps):
    torch.set_num_threads(1)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    scheduler = job.scheduler(optimizer, updates_per_epoch=5)
    if job.state is not None:
        model.load_state_dict(job.state["model"])
        optimizer.load_state_dict(job.state["optimizer"])
        torch.set_rng_state(job.state["random"])
    for epoch in range(job.epoch, job.epochs):
        for _ in range(5):
            optimizer.zero_grad()
            loss = (model(torch.randn(4, 8)) ** 2).mean() / 100
            loss.backward()
            optimizer.step()
            scheduler.step()
        mark = Path(HOME, f"died-{job.schedule.init_lr}")
        if dies and epoch == 2 and Path(HOME, "dies").exists() and not mark.exists():
            mark.touch()
            print("it began at", job.epoch, flush=True)
            subprocess.Popen(["sleep", SLEEP])
            subprocess.Popen(["sleep", SLEEP], start_new_session=True)
            os.kill(os.getpid(), signal.SIGKILL)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
        print("epoch", epoch, flush=True)
        yield {"val/score": -loss}, (state if keeps else None)


def dies_and_has_kept(job):
    yield from trained(job, True, True)


def dies_and_has_kept_nothing(job):
    yield from trained(job, True, False)


def goes_on(job):
    yield from trained(job, False, True)
"""


@pytest.mark.slow
def test_a_function_whose_worker_is_killed_goes_on_from_its_state_to_the_same_numbers(
    functions, capsys, project, migrated
):
    assert functions(DYING, epochs=4) == 0
    undisturbed = table("own")
    assert undisturbed.count("complete") == 3
    go_to(project / "other", "", migrated)
    (project / "dies").touch()
    capsys.readouterr()
    assert functions(DYING, epochs=4) == 0
    assert table("own") == undisturbed
    assert capsys.readouterr().out.count("begins again: its worker died without a word") == 2
    logs = [Path(f"results/own/logs/search-0000{n}.log").read_text().count("epoch ") for n in range(3)]
    assert logs == [4, 6, 4]
    assert until(lambda: not asleep(), 1.0)


DYING_COMMANDS = """
def parent(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def trained(name, who):
    for epoch in range(int(os.environ["RUNNER_EPOCH"]), 4):
        if epoch == 2 and not os.path.exists(name):
            open(name, "w").close()
            subprocess.Popen(["sh", "-c", f"trap '' TERM; sleep {SLEEP}; sleep {SLEEP}"])
            subprocess.Popen(["setsid", "sleep", SLEEP])
            time.sleep(1)  # until what was written is on record
            os.kill(who(), signal.SIGKILL)
            time.sleep(600)
        print("epoch", epoch, flush=True)
        write('{"metrics": {"val/score": 0.5}, "state": {"at": %d}}\\n' % epoch)


def kills_who_started_it(job):
    trained("starter", os.getppid)


def kills_its_worker(job):
    def ends_late(*_):
        time.sleep(1)
        open("ended", "w").close()
        sys.exit()

    assert int(os.environ["RUNNER_EPOCH"]) == 0 or os.path.exists("ended")  # never two at once
    signal.signal(signal.SIGTERM, ends_late)
    trained("worker", lambda: parent(os.getppid()))


def finds_none_of_them(job):
    time.sleep(6)  # until who started it has lost patience
    there = subprocess.run(["sh", "-c", "cat /proc/[0-9]*/cmdline 2> /dev/null"], stdout=subprocess.PIPE).stdout
    assert SLEEP.encode() not in there
    say(score=0.5), say(score=0.5), say(score=0.5), say(score=0.5)
"""


@pytest.mark.slow
def test_a_command_goes_on_from_its_state_whoever_of_those_above_it_is_killed(commands, capsys):
    assert commands(DYING_COMMANDS, epochs=4) == 0
    out = capsys.readouterr().out
    assert [r.outcome for r in records()] == ["complete"] * 3, [r.cause for r in records()]
    assert out.count("begins again") == 2
    for n in range(2):
        assert Path(f"results/own/logs/search-0000{n}.log").read_text().count("epoch ") == 4


@pytest.mark.slow
def test_a_training_that_gives_no_epoch_in_time_fails_and_its_processes_end(functions, capsys):
    text = """
def good(job):
    yield from fine

def hangs(job):  # it gave no epoch for 0.1 minutes (log: results/own/logs/search-00001.log)
    yield {"val/score": 0.5}
    print("waiting", flush=True)
    subprocess.Popen(["setsid", "sleep", SLEEP])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)

def good_after_all(job):
    assert not asleep()
    yield from fine
"""
    assert functions(text, "--stall-minutes", "0.1") == 0
    told_as_said(text, capsys.readouterr().out)
    assert not asleep()


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        (["no-such-program"], ["--allow-command"], "there is no command 'no-such-program', or it may not be run"),
        (["./plain.sh"], ["--allow-command"], "there is no command './plain.sh', or it may not be run"),
        (["sh", "{sedd}"], ["--allow-command"], "unknown placeholder {sedd}; known: schedule, seed"),
        (["sh", "a\0b"], ["--allow-command"], "has a control or bidirectional character"),
        ([""], ["--allow-command"], "there is no command ''"),
        (
            ["sh", "-c", "echo $HOME; ls"],
            [],
            "starts no command (sh -c 'echo $HOME; ls') unless you permit it: --allow-c",
        ),
    ],
)
def test_a_command_that_cannot_be_begun_is_refused_with_its_line_and_nothing_is_created(
    project, capsys, command, options, words
):
    Path("plain.sh").write_text("#!/bin/sh\n")
    Path("sweeps/own.yaml").write_text(sweep_text(f"command: {json.dumps(command)}, epochs: 2", 3))
    there = sorted(project.rglob("*"))
    assert sweep.main(["sweeps/own.yaml", *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "own.yaml, line 2: train.command" in err
    assert words in err
    assert sorted(project.rglob("*")) == there
