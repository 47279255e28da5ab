"""What those write wrongly who know torch, W&B, Optuna, Ray, Hydra, Keras or transformers: each mistake gets the rule
that it broke and the nearest right thing, in YAML's words."""

import difflib
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from runner.files.document import SpecError
from runner.files.place import load_place
from runner.files.sweep_file import load_sweep
from runner.schedules import words
from runner.schedules.zoo import TYPES

from ..conftest import TINY
from .test_inputs import changed

SAID = """\
space.init_lr: {low: 0.001, high: 0.1}
    did you mean {uniform: [0.001, 0.1]}?
space.init_lr: {min: 0.001, max: 0.1}
    did you mean {uniform: [0.001, 0.1]}?
space.init_lr: {low: 0.001, high: 0.1, log: true}
    did you mean {log_uniform: [0.001, 0.1]}?
space.init_lr: {min: 1, max: 9, distribution: int_uniform}
    did you mean {int: [1, 9]}?
space.init_lr: {min: 0.01, max: 1, distribution: log_uniform_values}
    did you mean {log_uniform: [0.01, 1]}?
space.init_lr: {min: -5, max: -1, distribution: log_uniform}
    did you mean {log_uniform: [0.00674, 0.368]}?
space.init_lr: {values: [0.1, 0.01]}
    did you mean {choice: [0.1, 0.01]}?
space.init_lr: {value: 0.1}
    did you mean 0.1?
space.init_lr: {grid_search: [0.1, 0.2]}
    did you mean {choice: [0.1, 0.2]}?
space.init_lr: {suggest_float: [0.001, 0.1]}
    did you mean {uniform: [0.001, 0.1]}?
space.init_lr: {randint: [1, 10]}
    did you mean {int: [1, 10]}?
space.init_lr: {loguniform: [0.001, 0.1]}
    did you mean 'log_uniform', as in {log_uniform: [0.001, 0.1]}?
space.init_lr: {uniform: {low: 0.1, high: 1}}
    such as {uniform: [0.1, 1]}
space.init_lr: {uniform: [0.1, 1], log: true}
    {log_uniform: [0.1, 1]}
space.init_lr: tune.loguniform(1e-4, 1e-1)
    did you mean {log_uniform: [1e-4, 1e-1]}?
space.init_lr: tag(log, interval(0.001, 0.1))
    did you mean {log_uniform: [0.001, 0.1]}?
space.init_lr: tune.choice([0.1, 0.2])
    did you mean {choice: [0.1, 0.2]}?
space.init_lr: 0.001..0.1
    did you mean {uniform: [0.001, 0.1]}?
space.init_lr: [0.1, 0.2]
    did you mean {uniform: [0.1, 0.2]} or {choice: [0.1, 0.2]}?
space.init_lr: '0.1'
    must be a number, not '0.1'; did you mean 0.1?
space.init_lr: 10%
    did you mean 0.1?
space.init_lr: {normal: [0, 1]}
    known: uniform, log_uniform, int, choice
space.init_lr: {choice: [1, 1.0]}
    has the same option twice: 1 and 1.0
space.init_lr: null
    must be a number, not null
space.init_lr: true
    must be a number, not true
space.lr: 0.1
    unknown key; did you mean 'init_lr'? It is the peak of every schedule
space.learning_rate: 0.1
    did you mean 'init_lr'? It is the peak of every schedule
space.eta_min: 1e-5
    floor a share of init_lr: eta_min / init_lr
space.weight_decay: {log_uniform: [1e-5, 1e-2]}
    here it is train.weight_decay, which is fixed for all trials: write one value there
space.train: {epochs: 5}
    it is a section of its own, beside space, and not in it
space.warmup_steps: 500
    did you mean warmup: {updates: 500}?
space.num_warmup_steps: {int: [100, 500]}
    did you mean warmup: {updates: {int: [100, 500]}}?
space.warmup_epochs: 5
    did you mean warmup: {epochs: 5}?
space.warmup_ratio: 0.1
    did you mean warmup: 0.1, a fraction of training?
space.warmup: 5
    as a fraction of training, not 5; did you mean {epochs: 5} or {updates: 5}?
space.warmup: {steps: 500}
    did you mean 'updates'?
space.warmup: {epochs: 1, start_factor: 0.1}
    did you mean 'start'? It is a share of init_lr
space.interval: step
    did you mean 'update'?
space.parameters: {lr: 1}
    leave it out: its keys stand in space itself
space.schedules: [cosine, step]
    such as {cosine: {}, step: {}}
space.schedules: {type: cosine}
    under a name, as in {cosine: {}}
space.schedules.CosineAnnealingLR: {T_max: 5}
    did you mean 'cosine' (torch's CosineAnnealingLR)?
space.schedules.StepLR: {}
    did you mean 'step' (torch's StepLR)?
space.schedules.OneCycleLR: {}
    did you mean 'one_cycle' (torch's OneCycleLR)?
space.schedules.ReduceLROnPlateau: {}
    did you mean 'plateau' (torch's ReduceLROnPlateau)?
space.schedules.SequentialLR: {}
    a schedule is one type with a warmup before it, as in {type: cosine, warmup: 0.1}
space.schedules.cosine_with_warmup: {}
    did you mean 'cosine'? Its warmup stands beside it, as in warmup: 0.1
space.schedules.WarmupCosineSchedule: {}
    did you mean 'cosine'? Its warmup stands beside it, as in warmup: 0.1
space.schedules.exp: {}
    did you mean 'exponential'?
space.schedules.mine: {type: torch.optim.lr_scheduler.StepLR}
    did you mean 'step' (torch's StepLR)?
space.schedules.mine: {}
    a name of one's own has a type beside it, as in {type: cosine}; known:
space.schedules.cosine: {T_max: 50}
    leave it out: a schedule is as long as the training, train.epochs
space.schedules.cosine: {min_lr: 1e-5}
    did you mean 'floor'? min_lr is a learning rate
space.schedules.cosine: {warmup_steps: 500}
    did you mean warmup: {updates: 500}?
space.schedules.cosine: {gamma: 0.1}
    it belongs to step, multistep, exponential, cyclic, plateau
space.schedules.cosine_restarts: {T_0: 10}
    did you mean 't_0'?
space.schedules.cosine_restarts: {T_mult: 2}
    did you mean 't_mult'?
space.schedules.cosine_restarts: {t_0: 10}
    did you mean {epochs: 10} or {updates: 10}?
space.schedules.step: {step_size: 30}
    did you mean {epochs: 30} or {updates: 30}?
space.schedules.step: {step_size: 0}
    must be above 0, not 0
space.schedules.step: {step_size: {epochs: 0}}
    must be above 0, not 0
space.schedules.step: {step_size: {uniform: [0, 0.5]}}
    must be above 0, not 0
space.schedules.step: {milestones: [30, 60]}
    it belongs to multistep
space.schedules.multistep: {milestones: [3, 4]}
    did you mean {epochs: [3, 4]} or {updates: [3, 4]}?
space.schedules.multistep: {milestones: 30}
    did you mean {epochs: [30]} or {updates: [30]}?
space.schedules.multistep: {milestones: [0, 0.5]}
    must be above 0, not 0
space.schedules.multistep: {milestones: 30,60}
    a key must be text, not 60: quote it, or put a list into brackets
space.schedules.one_cycle: {max_lr: 0.1}
    did you mean 'init_lr'? It is the peak of every schedule
space.schedules.one_cycle: {total_steps: 100}
    leave it out: a schedule is as long as the training, train.epochs
space.schedules.one_cycle: {anneal: cosine}
    did you mean 'cos'?
space.schedules.cyclic: {base_lr: 0.01}
    did you mean 'init_lr', the peak, or 'floor'
space.schedules.plateau: {factor: 0.1}
    did you mean 'gamma'?
space.schedules.plateau: {mode: min}
    leave it out: plateau follows the objective
space.schedules.plateau: {patience: {epochs: 3}}
    must be a whole number, not {epochs: 3}
space.schedules.wsd: {cooldown: {epochs: 50.0, updates: 3}}
    not {epochs: 50.0, updates: 3}
space.schedules.wsd: {cooldown: {steps: 30}}
    did you mean {updates: 30}?
space.schedules.piecewise: {boundaries: [0.5]}
    did you mean 'at'?
space.schedules.mine: {type: custom, function: 'lambda t, T: 1'}
    is no name of a function: write it into a module of yours
space.schedules.a b: {type: cosine}
    dashes and underscores only, not ' '
method: bayes
    unknown key; here it is search.sampler
parameters: {lr: {min: 0.1, max: 1}}
    unknown key; did you mean 'space'?
n_trials: 5
    unknown key; here it is search.trials
epochs: 5
    unknown key; here it is train.epochs
device: cuda
    unknown key; that is --device on the command line
storage: sqlite:///a.db
    unknown key; study.storage stands in mlflow.yaml
search.n_trials: 5
    unknown key; did you mean 'trials'?
search.sampler: TPESampler
    did you mean 'tpe'?
search.sampler: cmaes
    that is not offered; known: tpe, random, qmc, grid
search.trials: '5'
    not '5'; write 5
search.trials: 1e2
    not 100.0; write 100
search.trials: null
    not null
search.keep: 1/3
    not '1/3'; write 0.3333
search.rungs: T/3
    not T/3; write [T/3]
search.rungs: [true, T]
    search.rungs.0: a rung is T, T/3, or a number of epochs, not true
search.rungs: [0.5, T]
    search.rungs.0: a rung is T, T/3, or a number of epochs, not 0.5
search.rungs: [T, T/3]
    [T, T/3] are [2, 1] epochs
train.lr: 0.1
    unknown key; here it is space.init_lr
train.weight_decay: {log_uniform: [1e-5, 1e-2]}
    is fixed for all trials: write one number
train.weight_decay: {min: 1e-5, max: 1e-2}
    is fixed for all trials: write one number
train.epochs: [3, 4]
    is fixed for all trials: write one whole number
train.optimizer: {choice: [sgd, adamw]}
    is fixed for all trials: write one value, not {choice: [sgd, adamw]}
train.optimizer: SGD
    did you mean 'sgd'?
train.optimizer: torch.optim.AdamW
    did you mean 'adamw'?
train.optimizer: adam
    that is not offered; known: sgd, adamw
train.precision: fp16
    that is not offered; known: auto, fp32, bf16
train.precision: 16-mixed
    that is not offered; known: auto, fp32, bf16
train.precision: bfloat16
    did you mean 'bf16'?
train.nesterov: yes
    is true or false, not yes; write true
train.momentum: 0
    train.momentum: nesterov needs a momentum above 0
objective.metric: val_accuracy
    did you mean 'val/accuracy'?
objective.metric: dice
    unknown value 'dice'; known: val/loss, val/accuracy, val/top5, val/macro_f1, val/balanced_accuracy, val/auroc
objective.metric: balanced_accuracy
    did you mean 'val/balanced_accuracy'?
objective.metric: test/loss
    that is not offered; known: val/loss, val/accuracy
objective: val/accuracy
    not val/accuracy; did you mean {metric: val/accuracy}?
model: resnet18
    not resnet18; did you mean {name: resnet18}?
model.name: ResNet-18
    letters (a to z), digits and underscores only, not 'ResNet-18'; did you mean 'resnet18'?
model.name: resnet18.a1_in1k
    letters (a to z), digits and underscores only, not 'resnet18.a1_in1k'
model.name: custom
    model.function: name custom has a function
model.pretrained: true
    every trial starts from weights that its seed makes
data: digits
    not digits; did you mean {source: digits}?
data.source: CIFAR-10
    did you mean 'cifar10'?
data.source: ImageFolder
    did you mean 'folder'?
data.source: folder
    data.path: source folder needs a path
data.path: images
    data.path: source digits has no path of its own
data.val: 25%
    not '25%'; write 0.25
data.image_size: 32
    did you mean 'size'?
data.function: a b
    must be the name of a function and its module, as in my_package.images, not 'a b'
confirm: false
    {top: 0, types: false} confirms nothing
confirm: null
    {} takes the defaults
question: 5
    not 5; write '5'
question: [why]
    not [why]
name: my sweep
    dashes and underscores only, not ' '
name: -a
    a name begins with a letter or a digit, not '-'
name: aux.
    is a reserved name of Windows, or ends with a dot
""".splitlines()
"""A key and its value; below them, what is said."""
CASES = list(zip(SAID[::2], map(str.strip, SAID[1::2]), strict=True))


def the_error(line: str, tmp_path) -> tuple[str, int]:
    """What is said of a sweep file with one key changed, and on which line that key stands."""
    text, (key, _, value) = changed(TINY, line), line.partition(": ")
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(SpecError) as caught:
        load_sweep(tmp_path / "bad.yaml")
    written = re.search(rf"^ *{re.escape(key.rpartition('.')[2])}: {re.escape(value)}$", text, flags=re.M)
    return str(caught.value).removeprefix(f"{tmp_path}/"), text.count("\n", 0, written.start()) + 1


@pytest.mark.parametrize(("line", "words"), CASES, ids=[line for line, _ in CASES])
def test_a_mistake_is_said_with_the_nearest_right_thing(line, words, tmp_path):
    said, number = the_error(line, tmp_path)
    assert words in said
    assert not re.search(r"None|True|False|\{'|\['|\[key\]|\.str\b", said)
    if line not in ("data.source: folder", "model.name: custom"):  # whose fault is a key that is not there
        assert said.startswith(f"bad.yaml, line {number}: ")


def test_a_name_whose_length_is_the_fault_says_so(tmp_path):
    for line in (f"name: {'x' * 101}", f"space.schedules.{'x' * 101}: {{type: cosine}}"):
        assert the_error(line, tmp_path)[0].endswith("a name has at most 100 characters, not 101")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server: http://localhost:5000", "did you mean {mlflow_tracking_uri: 'http://localhost:5000'}?"),
        ("tracking: {experiment: cifar}", "did you mean {name: cifar}?"),
        ("tracking: {run: {tags: {'': x}}}", "tracking.run.tags.'': a tag's name is 1 to 250 letters"),
        ("tracking: {run: {tags: {'a+b': x}}}", "tracking.run.tags.a+b: a tag's name is 1 to 250 letters"),
        (
            "tracking: {run: {tags: {a: true}}}",
            "tracking.run.tags.a: should be a valid string, not true; write 'true'",
        ),
        ("tracking: {run: {tags: {a: null}}}", "not null"),
        ("tracking_uri: http://localhost:5000", "unknown key; here it is server.mlflow_tracking_uri"),
        ("experiment_name: a", "unknown key; here it is tracking.experiment.name"),
        ("server: {credentials: a}", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"),
        ("server: {mlflow_tracking_uri: 'localhost:5000'}", "as in sqlite:///runs.db or http://localhost:5000"),
        ("ui: {port: '5000'}", "not '5000'; write 5000"),
        ("ui: {saved_view: no}", "is true or false, not no; write false"),
        ("telemetry: off", "is true or false, not off; write false"),
        ("study: optuna.db", "did you mean {storage: optuna.db}?"),
    ],
)
def test_a_mistake_in_the_place_is_said_with_the_nearest_right_thing(text, words, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.yaml").write_text(f"{text}\n")
    with pytest.raises(SpecError) as caught:
        load_place(tmp_path / "mlflow.yaml")
    assert words in str(caught.value)
    assert not re.search(r"None|True|False|\{'|\['|\[key\]", str(caught.value))


def test_a_balanced_search_with_fewer_trials_than_schedules_says_so(tiny):
    few = tiny(search="{trials: 2, balance: equal}")
    assert few.warnings == ["search.trials: 2 are fewer than the 3 schedules: 1 of them is never trained"]
    assert tiny(search="{trials: 1, balance: equal}").warnings[0].endswith("2 of them are never trained")
    assert tiny(search="{trials: 3, balance: equal}").warnings == tiny(search="{trials: 2}").warnings == []


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(VALUES)
def test_a_value_is_shown_as_a_yaml_file_has_it(value):
    said = words.shown(value)
    if not said.endswith("...") and said.isprintable():
        read = yaml.safe_load(said) if not isinstance(value, float) else float(said)
        assert read == value or isinstance(value, (dict, list, str))
    assert not re.search(r"\b(None|True|False)\b", re.sub(r"'.*'|[a-zA-Z_/$][\w ]*", "", said))


@given(VALUES)
def test_whatever_stands_for_a_range_is_read_without_an_error(value):
    for given_ in (
        value,
        {"min": value, "max": 1, "distribution": "log_uniform"},
        {"uniform": value},
        f"uniform({value})",
    ):
        assert words.as_range(given_) is None or isinstance(words.as_range(given_), str)


def test_every_range_that_is_translated_is_one_of_ours():
    from runner.files.space import parse

    for word, kind in words.RANGES.items():
        meant = words.as_range({word: [1, 4]})
        assert meant == f"{{{kind}: [1, 4]}}"
        parse({"schedules": {"cosine": {"init_lr": yaml.safe_load(meant)}}})


def test_what_other_tools_names_are_translated_to_is_there():
    assert set(words.SCHEDULES) - set(TYPES) == {
        "custom",
        "a schedule is one type with a warmup before it, as in {type: cosine, warmup: 0.1}",
    }
    own = [words.plain(word) for line in words.SCHEDULES.values() for word in line.split()]
    assert len(own) == len(set(own))
    assert not set(own) & {words.plain(name) for name in TYPES}


def test_a_name_that_merely_looks_alike_is_not_suggested():
    for word, known in (
        ("fp16", ["fp32", "bf16"]),
        ("exp", ["rex", "step"]),
        ("mine", ["sine"]),
        ("min_lr", ["init_lr"]),
    ):
        assert difflib.get_close_matches(word, known)
        assert words.did_you_mean(word, known).startswith("known: ")
    for word, meant in (("sdg", "sgd"), ("Trials", "trials"), ("gama", "gamma"), ("one-cycle", "one_cycle")):
        assert words.did_you_mean(word, ["sgd", "trials", "gamma", "one_cycle"]) == f"did you mean {meant!r}?"
