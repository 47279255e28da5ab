"""Trainings of one's own that go wrong, in every way that somebody has thought of: functions and commands.

Each gets a sentence, and nothing else suffers: not the other trials, not the machine.
"""

import re
import textwrap
from pathlib import Path

import pytest

from runner import sweep
from runner.files.place import load_place
from runner.study.study import load_study

HEAD = """\
import os, signal, subprocess, sys, threading, time
import numpy, torch

fine = [{"val/score": 0.5}] * 2


def keep(job, name, what):
    with open(os.path.join(os.environ["PROJECT"], name), "a") as file:
        print(job.schedule.init_lr, what, file=file)


def of_its_trial(job):
    return BEHAVIOURS[round(job.schedule.init_lr) - 1](job)

"""


@pytest.fixture
def functions(project, monkeypatch):
    """Sweep over trials each of which does something else: the generator functions in a text, in their order."""
    monkeypatch.setenv("PROJECT", str(project))
    monkeypatch.syspath_prepend(project)
    monkeypatch.setattr("runner.sweep.MAX_FAILED", 1.0)  # all of them are tried
    made = f"own_{abs(hash(project))}"

    def run(text: str, *options: str, epochs: int = 2, objective: str = "") -> int:
        text = textwrap.dedent(text)
        names = re.findall(r"^def (\w+)", text, re.MULTILINE)
        (project / f"{made}.py").write_text(f"{HEAD}{text}\n\nBEHAVIOURS = [{', '.join(names)}]\n")
        train = f"function: {made}.of_its_trial, epochs: {epochs}"
        (project / "sweeps/own.yaml").write_text(sweep_text(train, len(names), objective))
        command = ["sweeps/own.yaml", "--device", "cpu", "--lanes", "1", "--allow-plugin", f"{made}.", *options]
        return sweep.main(command)

    return run


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


def records() -> list:
    return sorted(load_study("own", load_place().storage)[1], key=lambda r: r.schedule["init_lr"])


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
    wanted = re.findall(r"^def \w+\(job\):(?:  # (.*))?", BAD, re.MULTILINE)
    found = records()
    assert len(found) == len(wanted)
    for record, cause in zip(found, wanted, strict=True):
        said = record.cause or record.outcome
        assert re.fullmatch(re.escape(cause or "complete").replace(r"\*", ".*"), said)
        assert record.cause is None or f"warning: {record.title} failed: {record.cause}\n" in out
        assert (record.value == 0.5) == (not cause)
    by_name = dict(zip(re.findall(r"^def (\w+)", BAD, re.MULTILINE), found, strict=True))
    assert by_name["raises_far_below"].output[-1] == "ZeroDivisionError: division by zero"
    assert "words before it\nTraceback" in Path("results/own/logs/search-00013.log").read_text()
    assert by_name["raises_what_nobody_can_send"].output[-1] == "and more of it"
    assert "they are left out" in by_name["yields_more"].remark
    assert "after its last epoch it failed: it called sys.exit(0)" in by_name["fails_behind_the_end"].remark
    assert "runner/lanes" not in out  # nothing of where in our own code
    assert "refuses" not in out  # MLflow has them all
    assert "Traceback" not in err
