"""Hostile and careless files: every one gets a sentence with file and line, and nothing else happens."""

import re
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from runner.files.document import SpecError
from runner.files.place import load_place
from runner.files.sweep_file import load_sweep

from ..conftest import TINY

ROOT = Path(__file__).parents[2]
SWEEPS = [TINY, *(path.read_text() for path in sorted((ROOT / "sweeps").glob("*.yaml")))]
PLACE = (ROOT / "mlflow.yaml").read_text()

BAD = """\
name: ''
name: .
name: ..
name: a/b
name: a\\b
name: /etc/passwd
name: a b
name: con
name: aux.
name: café
name: 5
name: null
name: [a]
name: "a\\nb"
name: a;rm
name: $(id)
name: tiny@confirm
question: null
question: 5
question: [why]
question: {why: not}
data: null
data: digits
data: [digits]
data.source: null
data.source: 3
data.source: mnst
data.source: [digits]
data.source: ../digits
data.source: folder
data.path: images
data.size: 3
data.size: 2000
data.size: 8.5
data.size: '64'
data.val: 0
data.val: 1
data.val: -0.1
data.val: 25%
data.val: true
data.test: 0
data.test: 1.5
data.limit: 5
data.limit: 1e3
data.split_seed: -1
data.split_seed: 4294967296
data.augment: true
data.augment: {pad: -1}
data.augment: {pad: 65}
data.augment: {pad: 1.5}
data.augment: {flip: 1}
data.augment: {flip: yes}
data.augment: {rotate: 5}
model: resnet18
model.name: ''
model.name: ResNet18
model.name: ../resnet18
model.name: os.system
model.name: 18
model.stem: tiny
model.width: 0
model.width: 7
model.width: -64
model.width: 2.5
model.width: 99999
model.width: true
train: null
train: {}
train.epochs: 0
train.epochs: -5
train.epochs: 1.5
train.epochs: 1e2
train.epochs: '5'
train.epochs: 1000000
train.epochs: 99999999999999999999999999
train.epochs: {int: [1, 5]}
train.batch_size: 1
train.batch_size: 100000
train.optimizer: adam
train.optimizer: SGD
train.optimizer: torch.optim.SGD
train.momentum: 1
train.momentum: -0.1
train.momentum: '0.9'
train.momentum: 0
train.nesterov: 1
train.nesterov: 'no'
train.weight_decay: -1
train.weight_decay: 11
train.weight_decay: 1e400
train.weight_decay: .nan
train.weight_decay: .inf
train.weight_decay: 0x1p-3
train.precision: fp16
train.seed: -1
train.seed: 4294967296
train.lr: 0.1
search: 3
search.trials: -1
search.trials: 1e2
search.trials: 1_000
search.trials: 012
search.trials: 1:30
search.trials: ${TRIALS}
search.trials: '{{ trials }}'
search.sampler: TPE
search.sampler: optuna.samplers.TPESampler
search.seed: -1
search.seed: 1.5
search.window: 0
search.window: 5000
search.balance: fair
search.rungs: T/3
search.rungs: [T/3]
search.rungs: [T, T/3]
search.rungs: [T/0, T]
search.rungs: [-1, T]
search.rungs: [T*2, T]
search.rungs: [1, 5]
search.keep: 0
search.keep: 1
search.pruner: Median
search.parole: 1.5
search.parole: -0.1
confirm: 3
confirm.top: -1
confirm.top: 51
confirm.types: all
confirm.seeds: 1
confirm.seeds: 1.5
confirm.strip: 1
objective: val/accuracy
objective.metric: test/accuracy
objective.metric: __class__
objective.epoch: first
objective.direction: minimize
objective.direction: up
objective.unit: 7
space: null
space: []
space.init_lr: null
space.init_lr: -0.1
space.init_lr: '0.1'
space.init_lr: [0.1, 0.2]
space.init_lr: {log_uniform: [0.1]}
space.init_lr: {log_uniform: [0.1, 0.01]}
space.init_lr: {log_uniform: [-1, 1]}
space.init_lr: {log_uniform: 0.1}
space.init_lr: {uniform: [0, .inf]}
space.init_lr: {choice: [0.1, a]}
space.init_lr: {choice: [0.1, [0.2]]}
space.init_lr: {normal: [0, 1]}
space.warmup: 1.5
space.warmup: -0.1
space.warmup: {epochs: -1}
space.warmup: {epochs: 1, form: round}
space.warmup: {hours: 1}
space.gamma: 0
space.floor: {uniform: [0, 2]}
space.schedules: cosine
space.schedules: [cosine]
space.schedules.cosine: cosine
space.schedules.cosine: {T_max: 5}
space.schedules.step: {step_size: -1}
space.schedules.step: {step_size: {epochs: -1}}
space.schedules.wsd: {cooldown: 1.5}
space.schedules.wsd: {shape: square}
space.schedules.one_cycle: {pct_start: 2}
space.schedules.mine: {type: custom}
space.schedules.mine: {type: custom, function: 5}
space.schedules.mine: {type: custom, function: os.system}
space.schedules.mine: {type: custom, function: __import__('os').system}
space.schedules.mine: {type: piecewise, points: [[0, 1]]}
space.schedules.mine: {type: __class__}
space.schedules.__proto__: {type: cosine, x: 1}
""".splitlines()

GOOD = """\
name: a-b_c.1
question: "Why = not?"
question: 'Ça va, 世界?'
data.source: mnist
data.size: 16
data.val: 0.5
data.limit: 20
data.augment: {pad: 2, flip: true}
model.name: resnet34
model.stem: imagenet
model.width: 16
train.epochs: 100000
train.batch_size: 2
train.optimizer: adamw
train.momentum: 0.0
train.nesterov: false
train.weight_decay: 0
train.weight_decay: 1e-4
train.precision: bf16
train.seed: 4294967295
search.trials: 1
search.sampler: qmc
search.balance: equal
search.rungs: [1, T]
confirm.top: 0
confirm.seeds: 20
objective.epoch: best
objective.metric: val/loss
space.init_lr: 0.1
space.init_lr: {choice: [0.1, 0.2]}
space.warmup: {epochs: 1}
space.schedules.rex: {}
""".splitlines()


def changed(text: str, line: str) -> str:
    """``text`` with the value of one dotted key, as it stands in ``line``."""
    key, _, value = line.partition(": ")
    data, *parts = yaml.safe_load(text), *key.split(".")
    marker = "MARKER"
    at = data
    for part in parts[:-1]:
        at = at.setdefault(part, {})
    at[parts[-1]] = marker
    if key == "train.momentum" and value == "0":
        at["nesterov"] = True
    if (key, value) == ("train.momentum", "0.0"):
        at["nesterov"] = False
    return yaml.safe_dump(data, sort_keys=False, width=10_000, allow_unicode=True).replace(marker, value)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A folder in which nothing may appear but the file itself."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", BAD)
def test_a_careless_value_is_refused_with_its_line_and_nothing_is_created(line, nowhere):
    (nowhere / "bad.yaml").write_text(changed(TINY, line))
    start = time.monotonic()
    with pytest.raises(SpecError) as caught:
        load_sweep("bad.yaml")
    assert time.monotonic() - start < 1.0
    said, key = str(caught.value), line.partition(": ")[0]
    assert said.startswith("bad.yaml, line ")
    assert "\n" not in said
    assert any(part in said for part in (key, key.rpartition(".")[0] or key)), said
    assert [path.name for path in nowhere.iterdir()] == ["bad.yaml"]


def test_there_are_enough_of_them():
    assert len(set(BAD)) >= 150
    assert len(set(GOOD)) >= 20


@pytest.mark.parametrize("line", GOOD)
def test_what_is_right_is_accepted(line, nowhere):
    (nowhere / "good.yaml").write_text(changed(TINY, line))
    load_sweep("good.yaml")


# --- generated -------------------------------------------------------------------------------------------------


def paths(value, at=()):
    """Every key path of a document."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield (*at, name)
            yield from paths(inner, (*at, name))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from paths(inner, (*at, i))


def put(data, path, value):
    for part in path[:-1]:
        data = data[part]
    data[path[-1]] = value


def misspelt(data, path, _):
    """A key with a letter more: unknown wherever it stands, but where names are free."""
    if path[:-1] in (("space", "schedules"), ("tracking", "run", "tags")):
        return put(data, path, {"q": 1})
    for part in path[:-1]:
        data = data[part]
    if isinstance(data, dict):
        data[f"{path[-1]}q"] = data.pop(path[-1])
    else:
        data[path[-1]] = {"q": 1}
    return None


MUTATIONS = {
    "a misspelt key": misspelt,
    "a mapping of nonsense": lambda data, path, _: put(data, path, {"zz": {"yy": 1}}),
    "a date": lambda data, path, _: put(data, path, "RAW2026-11-25 00:00:00"),
    "not a number": lambda data, path, _: put(data, path, "RAW.nan"),
    "infinity": lambda data, path, _: put(data, path, "RAW-.inf"),
    "a huge number": lambda data, path, _: put(data, path, "RAW1e999"),
    "a tag": lambda data, path, _: put(data, path, "RAW!!python/name:os.system ''"),
    "an alias": lambda data, path, _: put(data, path, "RAW*a"),
    "an anchor": lambda data, path, _: put(data, path, "RAW&a 1"),
    "an escape sequence": lambda data, path, _: put(data, path, 'RAW"\\e[2J"'),
    "a bidirectional override": lambda data, path, _: put(data, path, 'RAW"\\u202Eabc"'),
    "deep nesting": lambda data, path, n: put(data, path, "RAW" + "[" * (25 + n) + "]" * (25 + n)),
    "a long value": lambda data, path, n: put(data, path, "x" * (5000 + n)),
    "a merge key": lambda data, path, _: put(data, path, "RAW{<<: {a: 1}}"),
}
WORDS = ("a date",)  # text: fine where any text is


def written(data) -> str:
    text = yaml.safe_dump(data, sort_keys=False, width=100_000, allow_unicode=True)
    return re.sub(r"'RAW((?:[^']|'')*)'|RAW(.*)", lambda m: (m[1] or m[2] or "").replace("''", "'"), text)


@given(data=st.data())
def test_whatever_is_broken_anywhere_in_a_file_is_refused_with_a_sentence(data, tmp_path_factory):
    text = data.draw(st.sampled_from([*SWEEPS, PLACE]))
    document = yaml.safe_load(text)
    path = data.draw(st.sampled_from(list(paths(document))))
    name = data.draw(st.sampled_from(list(MUTATIONS)))
    MUTATIONS[name](document, path, data.draw(st.integers(0, 50)))
    file = tmp_path_factory.getbasetemp() / "generated.yaml"
    file.write_text(written(document))
    load = load_place if text is PLACE else load_sweep
    start = time.monotonic()
    said = None
    try:
        load(file)
    except SpecError as error:
        said = str(error)
    if said is None:
        assert name in WORDS, (path, name)
        assert path[-1] in ("question", "name", "path", "artifact_location", "host"), path
    else:
        assert said.startswith(f"{file}, line ")
        assert "\n" not in said
        assert "\x1b" not in said
    assert time.monotonic() - start < 1.0


@given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
def test_bytes_at_random_are_refused_with_a_sentence(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "random.yaml"
    file.write_bytes(content)
    with pytest.raises(SpecError):
        load_sweep(file)
