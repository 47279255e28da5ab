"""Sweep files and mlflow.yaml: what is accepted, and the sentence that each mistake gets."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from runner.files.document import SpecError, read
from runner.files.place import load_place
from runner.files.secrets import redacted
from runner.files.sweep_file import load_sweep

from ..conftest import TINY

ROOT = Path(__file__).parents[2]


SHIPPED = ("cifar10", "digits", "imagefolder", "tutorial")


@pytest.mark.parametrize("path", [ROOT / f"sweeps/{name}.yaml" for name in SHIPPED], ids=SHIPPED)
def test_every_sweep_in_the_repository_loads(path):
    sweep, _ = load_sweep(path)
    assert sweep.name == path.stem


def test_the_place_in_the_repository_loads_and_writes_its_defaults_out():
    place = load_place(ROOT / "mlflow.yaml")
    assert place.file == type(place.file)()


def test_numbers_are_those_of_yaml_1_2(tmp_path):
    path = tmp_path / "n.yaml"
    path.write_text(
        "a: 1e-3\nb: 1E3\nc: .5\nd: 5.\ne: 012\nf: yes\ng: 1_000\nh: 2026-11-23\ni: 1:30\nj: -0\nk: +1.5e+2\n"
        "l: ~\nm:\nn: True\no: '1e-3'\np: 0x10\n"
    )
    assert read(path).data == {
        "a": 0.001, "b": 1000.0, "c": 0.5, "d": 5.0, "e": "012", "f": "yes", "g": "1_000", "h": "2026-11-23",
        "i": "1:30", "j": 0, "k": 150.0, "l": None, "m": None, "n": True, "o": "1e-3", "p": "0x10",
    }  # fmt: skip


def test_a_byte_order_mark_and_windows_line_ends_are_no_mistake(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + TINY.replace("\n", "\r\n").encode())
    assert load_sweep(path)[0].search.trials == 3


BAD = {
    "an unknown section": ("sarch: {trials: 3}", ["sarch", "did you mean 'search'"]),
    "an unknown key": ("search: {trails: 3}", ["search.trails", "did you mean 'trials'"]),
    "a key that has gone": ("search: {trials: 3, pruner: median}", ["search.pruner", "there is no pruner any more"]),
    "a baseline beside the space": ("baseline: {type: cosine}", ["baseline", "here it is space.baseline"]),
    "a missing key": ("search: {}", ["search.trials", "missing"]),
    "text for a number": ("search: {trials: many}", ["search.trials", "integer"]),
    "quoted number": ("search: {trials: '3'}", ["search.trials", "integer"]),
    "a fraction of a trial": ("search: {trials: 2.5}", ["search.trials", "integer"]),
    "true for a number": ("search: {trials: true}", ["search.trials", "integer"]),
    "no trials": ("search: {trials: 0}", ["search.trials", "greater than or equal to 1"]),
    "a billion trials": ("search: {trials: 1000000000}", ["search.trials", "100000"]),
    "a range outside the space": ("search: {trials: {int: [1, 3]}}", ["search.trials", "ranges belong into space"]),
    "an impossible character": ('question: "\\UFFFFFFFF"', ["not YAML"]),
    "an unknown sampler": ("search: {trials: 3, sampler: tpee}", ["search.sampler", "did you mean 'tpe'"]),
    "a grid over a range": ("search: {trials: 3, sampler: grid}", ["init_lr", "a grid needs choice or int"]),
    "a grid with turns": ("search: {trials: 3, sampler: grid, balance: equal}", ["search", "leave balance out"]),
    "a list for a mapping": ("search: [1, 2]", ["search", "mapping"]),
    "nothing for a mapping": ("search:", ["search", "mapping"]),
    "an unknown data source": ("data: {source: cifar11}", ["data.source", "did you mean 'cifar10'"]),
    "a folder without a path": ("data: {source: folder, size: 8}", ["data", "needs a path"]),
    "a folder without a size": ("data: {source: folder, path: x}", ["data", "needs a size"]),
    "digits with a path": ("data: {source: digits, path: x}", ["data", "has no path"]),
    "all for validation": ("data: {source: digits, val: 1}", ["data.val", "less than 1"]),
    "a word for true": ("data: {source: digits, augment: {flip: yes}}", ["data.augment.flip", "is true or false"]),
    "a single rung": ("search: {trials: 3, rungs: [T]}", ["search.rungs", "needs at least 2 values, not 1"]),
    "a negative seed": ("train: {epochs: 2, seed: -1}", ["train.seed", "greater than or equal to 0"]),
    "no epochs": ("train: {epochs: 0}", ["train.epochs", "greater than or equal to 1"]),
    "nesterov without momentum": ("train: {epochs: 2, momentum: 0}", ["train", "nesterov: false"]),
    "not a number": ("train: {epochs: 2, weight_decay: .nan}", ["train.weight_decay", "not a finite number"]),
    "infinity": ("train: {epochs: 2, weight_decay: -.inf}", ["train.weight_decay", "not a finite number"]),
    "too large a number": ("train: {epochs: 2, weight_decay: 1e999}", ["train.weight_decay", "too large"]),
    "a wrong optimizer": ("train: {epochs: 2, optimizer: sdg}", ["train.optimizer", "did you mean 'sgd'"]),
    "an unknown metric": ("objective: {metric: accuracy}", ["objective.metric", "did you mean 'val/accuracy'"]),
    "an empty question": ("question: ''", ["question", "at least 1 character"]),
    "a name that leaves the folder": ("name: ../../etc/x", ["name", "letters (a to z), digits"]),
    "a name of the operating system": ("name: nul", ["name", "reserved"]),
    "a repeated key": ("question: a\nquestion: b", ["question", "stands twice", "line 1"]),
    "an anchor": ("question: &a b", ["anchors and aliases"]),
    "a tag": ("question: !!python/object:os.system x", ["tag", "not allowed"]),
    "a directive": ("%TAG ! tag:x,2000:\n---\nquestion: a", ["not allowed"]),
    "an unclosed bracket": ("question: [a", ["not YAML"]),
    "a tab": ("question:\n\t- a", ["not YAML"]),
    "a control character": ('question: "a\\x1b[2Jb"', ["question", "control"]),
    "a bidirectional character": ("question: a\u202eb", ["control", "bidirectional"]),
    "a key that is a number": ("1: a", ["key must be text"]),
    "two documents": ("question: a\n---\nquestion: b", ["not YAML"]),
    "deep nesting": ("question: " + "[" * 50 + "]" * 50, ["nested deeper"]),
    "a very long value": ("question: " + "a" * 5000, ["longer than 4096"]),
}
SPACE = {
    "no schedules": ("{init_lr: 0.1}", ["space.schedules", "mapping of names"]),
    "an empty mapping of schedules": ("{schedules: {}}", ["space.schedules"]),
    "an unknown type": ("{schedules: {cosin: {}}}", ["space.schedules.cosin.type", "did you mean 'cosine'"]),
    "a type that is no text": ("{schedules: {a: {type: 3}}}", ["space.schedules.a.type"]),
    "a name with a slash": ("{schedules: {a/b: {type: cosine}}}", ["a name has letters"]),
    "an unknown shared key": ("{int_lr: 0.1, schedules: {cosine: {}}}", ["space.int_lr", "did you mean 'init_lr'"]),
    "an unknown parameter": (
        "{schedules: {step: {gama: 0.1}}}",
        ["space.schedules.step.gama", "did you mean 'gamma'"],
    ),
    "a parameter of another type": ("{schedules: {cosine: {gamma: 0.1}}}", ["space.schedules.cosine.gamma"]),
    "an lr of zero": ("{init_lr: 0, schedules: {cosine: {}}}", ["init_lr", "between"]),
    "a corner out of range": (
        "{schedules: {step: {gamma: {uniform: [0.1, 1.5]}}}}",
        ["space.schedules.step.gamma", "between", "1.5"],
    ),
    "a wrong option": (
        "{schedules: {wsd: {shape: {choice: [linear, round]}}}}",
        ["space.schedules.wsd.shape", "unknown value 'round'"],
    ),
    "a range upside down": ("{init_lr: {uniform: [1, 0.1]}, schedules: {cosine: {}}}", ["init_lr", "above"]),
    "a range of one": ("{init_lr: {uniform: [1]}, schedules: {cosine: {}}}", ["init_lr", "two numbers"]),
    "a range of words": ("{init_lr: {uniform: [a, b]}, schedules: {cosine: {}}}", ["init_lr", "two numbers"]),
    "a logarithm of zero": ("{init_lr: {log_uniform: [0, 1]}, schedules: {cosine: {}}}", ["above 0"]),
    "a broken int range": ("{schedules: {cosine_restarts: {cycles: {int: [1, 2.5]}}}}", ["two whole numbers"]),
    "a part of a whole": (
        "{schedules: {plateau: {patience: {uniform: [0, 5]}}}}",
        ["space.schedules.plateau.patience", "whole number"],
    ),
    "a shared value that is none": ("{gamma: potato, schedules: {cosine: {}}}", ["space.gamma", "must be a number"]),
    "a shared value out of range": ("{floor: 7, schedules: {cosine: {}}}", ["space.floor", "between 0 and 1"]),
    "a misspelt range": (
        "{init_lr: {loguniform: [0.1, 1]}, schedules: {cosine: {}}}",
        ["did you mean 'log_uniform'"],
    ),
    "a range beyond numbers": ("{init_lr: {uniform: [0, 1e200]}, schedules: {cosine: {}}}", ["ends beyond 1e+100"]),
    "too many corners": (
        "{schedules: {a: {type: multistep, milestones: [" + ", ".join(["{uniform: [0.1, 0.9]}"] * 13) + "]}}}",
        ["space.schedules", "8192 corners"],
    ),
    "one name for two ranges": (
        "{schedules: {cosine: {warmup: {epochs: 1, start: {uniform: [0.1, 0.2]}}},"
        " cosine.warmup: {type: triangular, start: {uniform: [0.1, 0.3]}}}}",
        ["means another range elsewhere"],
    ),
    "no options": ("{schedules: {wsd: {shape: {choice: []}}}}", ["needs a list"]),
    "an option twice": ("{schedules: {wsd: {shape: {choice: [linear, linear]}}}}", ["same option twice"]),
    "a range with company": (
        "{init_lr: {uniform: [0.1, 1], log: true}, schedules: {cosine: {}}}",
        ["space.init_lr.uniform", "stands alone"],
    ),
    "a plugin that nobody allowed": (
        "{schedules: {mine: {type: custom, function: os.system}}}",
        ["space.schedules.mine.function", "--allow-plugin os."],
    ),
    "a function without its module": (
        "{schedules: {mine: {type: custom, function: mine}}}",
        ["space.schedules.mine.function", "as in my_package.mine"],
    ),
    "a function without its type": (
        "{schedules: {mine: {function: own.mine}}}",
        ["space.schedules.mine.type", "type: custom"],
    ),
    "a baseline with an unknown parameter": (
        "{baseline: {type: step, gama: 0.1}, schedules: {cosine: {}}}",
        ["space.baseline.gama: step has no such parameter; did you mean 'gamma'?"],
    ),
    "a range in the baseline": (
        "{baseline: {type: cosine, init_lr: {uniform: [0.1, 1]}}, schedules: {cosine: {}}}",
        ["space.baseline.init_lr.uniform", "nothing of it is searched: write one value"],
    ),
    "a range in a list in the baseline": (
        "{baseline: {type: multistep, milestones: [0.5, {uniform: [0.6, 0.9]}]}, schedules: {cosine: {}}}",
        ["space.baseline.milestones.1.uniform", "nothing of it is searched"],
    ),
    "another tool's range in the baseline": (
        "{baseline: {type: cosine, init_lr: {min: 0.1, max: 1}}, schedules: {cosine: {}}}",
        ["space.baseline.init_lr", "nothing of it is searched"],
    ),
    "a list for a baseline": (
        "{baseline: [0.1, 0.01], schedules: {cosine: {}}}",
        ["space.baseline", "one whole schedule, such as {type: multistep, init_lr: 0.1}, not [0.1, 0.01]"],
    ),
    "a name for a baseline": (
        "{baseline: step, schedules: {cosine: {}}}",
        ["space.baseline", "one whole schedule, such as {type: step, init_lr: 0.1}, not step"],
    ),
    "no baseline after its key": ("{baseline: , schedules: {cosine: {}}}", ["space.baseline", "not null"]),
    "a baseline without a type": ("{baseline: {init_lr: 0.1}, schedules: {cosine: {}}}", ["space.baseline.type"]),
    "a baseline that cannot be": (
        "{baseline: {type: cosine, init_lr: 0}, schedules: {cosine: {}}}",
        ["space.baseline.init_lr", "between"],
    ),
    "a baseline whose function nobody allowed": (
        "{baseline: {type: custom, function: os.system}, schedules: {cosine: {}}}",
        ["space.baseline.function", "--allow-plugin os."],
    ),
    "a schedule that is called as the baseline is": (
        "{baseline: {type: cosine}, schedules: {baseline: {type: step}}}",
        ["space.schedules.baseline", "rename this one"],
    ),
    "a warmup of two lengths": (
        "{schedules: {cosine: {warmup: {epochs: 1, updates: 3}}}}",
        ["space.schedules.cosine.warmup", "exactly one length"],
    ),
}


def test_a_file_whose_name_no_sweep_may_have_says_how_to_give_it_another(tmp_path):
    path = tmp_path / "my leaves ü.yaml"
    path.write_text(TINY)
    with pytest.raises(SpecError, match=r"may not be called 'my leaves ü'.*; write its name: into the file"):
        load_sweep(path)
    path.write_text("name: leaves\n" + TINY)
    assert load_sweep(path)[0].name == "leaves"


BROKEN = """\
def becomes_nothing(t, T):
    return float("nan") if t > T / 2 else 1.0


def says_a_word(t, T):
    return "x"


def breaks(t, T):
    raise ValueError("no such thing")


def explodes(t, T):
    return 10 ** (100 * t)
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("becomes_nothing", "own_broken.becomes_nothing returned nan at t=5, T=8; a factor is from 0 to 1e9"),
        ("says_a_word", "own_broken.says_a_word returned 'x' at t=0, T=8; a factor is from 0 to 1e9"),
        ("explodes", "own_broken.explodes returned 1" + 39 * "0" + " at t=1, T=8; a factor is from 0 to 1e9"),
        ("breaks", "own_broken.breaks raised ValueError: no such thing (own_broken.py, line 10)"),
    ],
)
def test_an_own_function_that_gives_no_factor_is_refused_with_its_line(tmp_path, monkeypatch, name, words):
    (tmp_path / "own_broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own_broken", None)
    text = (
        TINY[: TINY.index("  schedules:")]
        + f"  schedules:\n    mine: {{type: custom, function: own_broken.{name}}}\n"
    )
    (tmp_path / "mine.yaml").write_text(text + "search: {trials: 3}\n")
    with pytest.raises(SpecError) as caught:
        load_sweep(tmp_path / "mine.yaml", ["own_broken."])
    line = text.count("\n")
    assert str(caught.value) == f"{tmp_path}/mine.yaml, line {line}: space.schedules.mine.function: {words}"


def the_error(path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        load_sweep(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line "), message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("case", BAD, ids=str)
def test_a_wrong_file_gets_a_sentence_with_file_line_and_key(case, tmp_path):
    text, words = BAD[case]
    key = text.split(":")[0]
    rest = "".join(line + "\n" for line in TINY.splitlines() if not line.startswith(f"{key}:"))
    path = tmp_path / "bad.yaml"
    path.write_text(f"{text}\n{rest}")
    message = the_error(path)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("case", SPACE, ids=str)
def test_a_wrong_search_space_gets_a_sentence_with_its_key(case, tmp_path):
    text, words = SPACE[case]
    head = TINY[: TINY.index("space:")]
    path = tmp_path / "bad.yaml"
    path.write_text(f"{head}space: {text}\nsearch: {{trials: 3}}\n")
    message = the_error(path)
    assert all(word in message for word in words), message


def test_the_line_is_that_of_the_key(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(TINY.replace("gamma: 0.3", "gamma: 3"))
    line = 1 + next(i for i, text in enumerate(TINY.splitlines()) if "gamma" in text)
    assert f"bad.yaml, line {line}: space.schedules.step.gamma: " in the_error(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "mapping"),
        (b"- a\n- b\n", "mapping"),
        (b"just text\n", "mapping"),
        (b"question: \xff\xfe\n", "UTF-8"),
        (b"a: 1\n" * 60_000, "larger than"),
        (b"a: [" + b"1, " * 20_000 + b"1]\n", "more than 10000 values"),
        (b"a: \x00\n", "not YAML"),
    ],
)
def test_what_is_no_settings_file_is_refused(content, words, tmp_path):
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError, match=words):
        load_sweep(path)


def test_a_folder_is_no_sweep_file(tmp_path):
    with pytest.raises(SpecError, match="cannot be read"):
        load_sweep(tmp_path)


def test_an_error_never_moves_the_cursor(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text('"ques\\e[31mtion": a\n')
    with pytest.raises(SpecError) as caught:
        load_sweep(path)
    assert "\x1b" not in str(caught.value)


def test_a_wrong_file_ends_the_command_within_a_second_with_nothing_created(tmp_path):
    """The clock starts after the interpreter; of three, because the machine may be busy with something else."""
    (tmp_path / "bad.yaml").write_text(TINY.replace("trials: 3", "trails: 3"))
    code = (
        "import sys, time; start = time.monotonic(); from runner.sweep import main; status = main(['bad.yaml']);"
        "assert 'torch' not in sys.modules and 'mlflow' not in sys.modules and 'optuna' not in sys.modules;"
        "print(time.monotonic() - start); sys.exit(status)"
    )
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr == "error: bad.yaml, line 12: search.trails: unknown key; did you mean 'trials'?\n"
        seconds.append(float(done.stdout))
    assert min(seconds) < 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


def test_the_question_the_number_of_trials_the_baseline_and_what_is_confirmed_may_change_alone(sweep_file):
    science = load_sweep(sweep_file())[0].science()
    others = {"question": "question: Why?", "search": "search: {trials: 9}", "confirm": "confirm: {seeds: 9}"}
    assert load_sweep(sweep_file(**others))[0].science() == science
    assert load_sweep(sweep_file(train="train: {epochs: 3, batch_size: 32}"))[0].science() != science
    for init_lr in (0.1, 0.2):
        today = f"space:\n  baseline: {{type: cosine, init_lr: {init_lr}}}"
        assert load_sweep(sweep_file(space=today))[0].science() == science


# --- mlflow.yaml -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sever: {}", "did you mean 'server'"),
        ("server: {tracking_uri: x}", "did you mean 'mlflow_tracking_uri'"),
        ("server: {mlflow_tracking_uri: 5}", "string"),
        ("server: {mlflow_tracking_uri: runs}", "no address of a store"),
        ("server: {mlflow_tracking_uri: 'ftp://host/runs'}", "no address of a store"),
        ("server: {mlflow_tracking_uri: 'https://me:s3cr3t@host'}", "holds a password"),
        ("study: {storage: 'postgresql://me:s3cr3t@host/db'}", "holds a password"),
        ("study: {storage: 'http://host'}", "no address of a store"),
        ("ui: {port: 'http://u:s3cr3t@h'}", "holds a password"),
        ("ui: {'http://u:s3cr3t@h': 1}", "holds a password"),
        ("server: {mlflow_tracking_uri: [a, 'http://u:s3cr3t@h']}", "holds a password"),
        ("server: {mlflow_tracking_uri: 'me:s3cr3t@host:5000'}", "no address of a store"),
        ("server: {mlflow_tracking_uri: 'sqlite:'}", "no address of a store"),
        ("ui: {port: 99999}", "less than or equal to 65535"),
        ("ui: {port: '5000'}", "integer"),
        ("tracking: {experiment: {name: ''}}", "at least 1 character"),
        ("tracking: {run: {tags: {a: 1}}}", "string"),
        ("tracking: {run: {tags: {'a+b': c}}}", "letters (a to z), digits"),
        ("telemetry: 1", "is true or false"),
        ("- a", "mapping"),
    ],
)
def test_a_wrong_place_gets_a_sentence_without_its_secret(text, words, tmp_path, monkeypatch):
    for variable in ("MLFLOW_TRACKING_URI", "RUNNER_STUDY_STORAGE"):
        monkeypatch.delenv(variable, raising=False)
    path = tmp_path / "mlflow.yaml"
    path.write_text(text + "\n")
    with pytest.raises(SpecError) as caught:
        load_place(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{path}, line 1")
    assert "s3cr3t" not in str(caught.value)


def test_an_absolute_path_has_four_slashes_as_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    absolute = f"sqlite:////{str(tmp_path / 'a.db').lstrip('/')}"
    monkeypatch.setenv("RUNNER_STUDY_STORAGE", absolute)
    assert load_place().storage == absolute


def test_a_word_of_a_file_may_be_somebodys_password(tmp_path, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "postgres")
    path = tmp_path / "mlflow.yaml"
    path.write_text("tracking: {run: {tags: {team: postgres}}}\n")
    assert load_place(path).file.tracking.run.tags == {"team": "postgres"}


def test_a_place_says_how_a_command_finds_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_place().option == ""
    for name in ("mlflow.yaml", "gpu.yaml"):
        Path(name).write_text("{}\n")
    assert load_place("mlflow.yaml").option == ""
    assert load_place("gpu.yaml").option == f" --mlflow {tmp_path / 'gpu.yaml'}"
    Path("a team").mkdir()
    Path("a team/mlflow.yaml").write_text("{}\n")
    assert shlex.split(load_place("a team/mlflow.yaml").option) == ["--mlflow", f"{tmp_path}/a team/mlflow.yaml"]


def test_the_environment_wins_and_an_empty_variable_is_none(tmp_path, monkeypatch):
    path = tmp_path / "mlflow.yaml"
    path.write_text("server: {mlflow_tracking_uri: 'sqlite:///a.db'}\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.setenv("RUNNER_STUDY_STORAGE", "")
    place = load_place(path)
    assert place.tracking_uri == "http://host:5000"
    assert place.experiment == "mine"
    assert place.storage == f"sqlite:///{tmp_path / 'optuna.db'}"
    assert place.artifacts is None  # the server decides


def test_a_relative_store_lies_beside_mlflow_yaml_wherever_the_command_runs(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mlflow.yaml").write_text("server: {mlflow_tracking_uri: 'sqlite:///runs/a.db'}\n")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path / "elsewhere")
    place = load_place("../mlflow.yaml")
    assert place.tracking_uri == f"sqlite:///{tmp_path / 'runs' / 'a.db'}"
    assert place.artifacts == (tmp_path / "mlartifacts").as_uri()


def test_a_wrong_environment_variable_is_named_without_its_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://me:s3cr3t@host")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="MLFLOW_TRACKING_URI") as caught:
        load_place()
    assert "s3cr3t" not in str(caught.value)


def test_a_password_is_never_shown():
    assert redacted("postgresql+psycopg://me:s3cr3t@host/db") == "postgresql+psycopg://me:***@host/db"
    assert redacted("postgresql://me:s3@cr3t@host/db") == "postgresql://me:***@host/db"
    assert redacted("http://u:s3/cr3t@host") == "http://u:***@host"
    assert redacted("postgresql://h/x?user=u&password=s3cr3t") == "postgresql://h/x?user=u&password=***"
    assert redacted("sqlite:///a.db") == "sqlite:///a.db"
