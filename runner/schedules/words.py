"""Words of error sentences: values as YAML has them, near names, and other tools' names for what is meant.

The tables are plain data: to teach it a name, add a row. In advice, ``KEY`` and ``VALUE`` stand for what was written.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PLAIN = re.compile(
    r"(?!(?:true|false|null|nan|inf)\Z)(?:[^\W\d]|[/$])[\w./$()%+*=<>-]*(?: [\w./$()%+*=<>-]+)*", re.IGNORECASE
)
"""Text that YAML needs no quotes for."""
SHOWN = 60
LISTED = 25
"""How long a value may be in a sentence, and how many names."""


def shown(value: object) -> str:
    """A value as it stands in a YAML file: ``null``, ``true``, ``{epochs: 50.0}``, ``abc``, ``'5'``."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{shown(k)}: {shown(v)}" for k, v in value.items()) + "}"
    elif isinstance(value, (list, tuple)):
        text = "[" + ", ".join(map(shown, value)) + "]"
    elif isinstance(value, str):
        text = value if PLAIN.fullmatch(value) else "'" + value.replace("'", "''") + "'"
    else:
        text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def quoted(value: object) -> str:
    """The same, with text in quotes: a word that is spoken of."""
    text = shown(value)
    return f"'{text}'" if isinstance(value, str) and not text.startswith("'") else text


def plain(word: object) -> str:
    """A name without what people write in several ways: ``torch.optim.SGD`` and ``sgd`` are one."""
    return re.sub(r"[^a-z0-9/]", "", str(word).rpartition(".")[2].lower())


def did_you_mean(word: object, known: Sequence[str], key: str = "") -> str:
    """The known word that is meant, or all of them: the end of an error sentence about a value of ``key``.

    A near word is named where one or two letters are wrong, or where they only have another case or order: a name
    that merely looks alike (``fp16`` and ``bf16``) means something else.
    """
    text, names = plain(word), {plain(name): name for name in known}
    meant = VALUES.get(key, {}).get(text)
    if meant is None and isinstance(word, str):
        same = [name for name in names if sorted(name) == sorted(text)]
        close = same or difflib.get_close_matches(text, names, n=1, cutoff=0.8)
        meant = names[close[0]] if close else None
    if meant:
        return f"did you mean {meant!r}?"
    listed = ", ".join(known[:LISTED]) + ", ..." * (len(known) > LISTED)
    return f"{'that is not offered; ' * (meant == '')}known: {listed}"


def advice(table: Mapping[str, str], key: object, value: object) -> str | None:
    """What a table of other tools' names says of a key and its value."""
    text = {plain(name): said for name, said in table.items()}.get(plain(key))
    return text and text.replace("KEY", str(key)).replace("VALUE", shown(value))


def schedule_type(name: object, known: Sequence[str]) -> str:
    """The type that another tool's name means: the end of an error sentence."""
    meant = {plain(word): ours for ours, words in SCHEDULES.items() for word in words.split()}.get(plain(name))
    if meant is None or name is None:
        return did_you_mean(name, known)
    if meant not in known:
        return meant
    torchs = str(name).rpartition(".")[2]
    whose = f" (torch's {torchs})" if re.search("LR|WarmRestarts", torchs) else ""
    beside = " Its warmup stands beside it, as in warmup: 0.1" * ("warmup" in plain(name) and meant != "wsd")
    return f"did you mean {meant!r}{whose}?{beside}"


def as_range(value: object) -> str | None:
    """A range or options of another tool's file, as they are written here; None where it is neither."""
    if isinstance(value, str):
        return _called(value)
    if not value:
        return None
    if isinstance(value, (list, tuple)):
        two = len(value) == 2 and all(map(_is_number, value))
        kind = "int" if all(isinstance(v, int) for v in value) else "uniform"
        return f"{{{kind}: {shown(value)}}} or {{choice: {shown(value)}}}" if two else f"{{choice: {shown(value)}}}"
    if not isinstance(value, Mapping):
        return None
    words = {plain(key): inner for key, inner in value.items()}
    for key in ("values", "options", "choices", "categories"):
        if isinstance(words.get(key), list):
            return f"{{choice: {shown(words[key])}}}"
    if set(words) <= {"value", "distribution", "type"} and "value" in words:
        return shown(words["value"])
    ours = next(
        (RANGES[key] for key in words if key in RANGES and key != "log"), "log_uniform" * ([*words] == ["log"])
    )
    inner = next((inner for key, inner in words.items() if RANGES.get(key)), None)
    if ours == "choice":
        return f"{{choice: {shown(inner)}}}" if isinstance(inner, list) else None
    said = plain(" ".join(str(words.get(key, "")) for key in ("distribution", "type", "scale", "kind", "name")))
    log = ours == "log_uniform" or "log" in said or words.get("log") is True
    ends = (
        inner if isinstance(inner, list) else [_end(inner if isinstance(inner, Mapping) else words, n) for n in ENDS]
    )
    if len(ends) < 2 or not all(map(_is_number, ends[:2])):
        return None
    low, high = ends[:2]
    if said == "loguniform" and -700 < low < 0 and high < 700:  # W&B gives exponents there
        low, high = float(f"{math.exp(low):.3g}"), float(f"{math.exp(high):.3g}")
    whole = ours == "int" or re.search("int(?!erval)", said)
    return f"{{{'log_uniform' if log else 'int' if whole else 'uniform'}: {shown([low, high])}}}"


def as_number(value: object, *, whole: bool) -> str:
    """A number that has the wrong form alone, as it is written here: ``'5'``, ``1_000``, ``25%``, ``1/3``, and 100.0
    where it is to be whole; empty where it is none."""
    text = value.strip().lower() if isinstance(value, str) else repr(value) if isinstance(value, float) else ""
    if parts := re.fullmatch(r"(\d{1,9})\s*/\s*([1-9]\d{0,8})", text):
        number = float(f"{int(parts[1]) / int(parts[2]):.4g}")
    elif parts := re.fullmatch(r"(-?\d[\d_]{0,14}(?:\.\d{0,15})?(?:e-?\d)?)(%?)", text):
        number = float(parts[1].replace("_", "")) / (100 if parts[2] else 1)
    else:
        return ""
    return str(int(number)) if number == int(number) else "" if whole else repr(number)


def _end(words: Mapping[Any, Any], names: Sequence[str]) -> Any:
    """The end of a range that has one of these names."""
    return next((inner for key, inner in words.items() if plain(key) in names), None)


def _called(text: str) -> str | None:
    """A range that is text: ``tune.loguniform(1e-4, 1e-1)``, ``0.001..0.1``."""
    number = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
    call = re.search(r"(\w+)\(([^()]*)\)", text)
    if call and (kind := RANGES.get(plain(call[1]))):
        if kind == "choice":
            return f"{{choice: [{call[2].strip(' []')}]}}"
        ends = re.findall(rf"(?<![\w.]){number}(?![\w.])", call[2])[:2]
        log = kind == "uniform" and "log" in text.lower()
        return f"{{{'log_uniform' if log else kind}: [{', '.join(ends)}]}}" if len(ends) == 2 else None
    two = re.fullmatch(rf"\s*({number})\s*(?:\.\.+|-|to|:|,)\s*({number})\s*", text)
    return f"{{uniform: [{two[1]}, {two[2]}]}}" if two else None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _all(words: str, said: str) -> dict[str, str]:
    return dict.fromkeys(words.split(), said)


SCHEDULES: Mapping[str, str] = {
    "constant": "ConstantLR constant_with_warmup fixed none no_decay",
    "step": "StepLR step_decay staircase",
    "multistep": "MultiStepLR multi_step_decay",
    "exponential": "ExponentialLR ExponentialDecay exp",
    "polynomial": "PolynomialLR PolynomialDecay poly polynomial_with_warmup polynomial_decay_with_warmup",
    "linear": "LinearLR linear_decay linear_with_warmup warmup_linear WarmupLinearSchedule "
    "get_linear_schedule_with_warmup",
    "cosine": "CosineAnnealingLR cosine_annealing cos CosineDecay cosine_with_warmup warmup_cosine "
    "cosine_warmup WarmupCosineSchedule WarmupCosineLR LinearWarmupCosineAnnealingLR get_cosine_schedule_with_warmup "
    "cosine_with_min_lr",
    "cosine_restarts": "CosineAnnealingWarmRestarts CosineDecayRestarts sgdr cosine_with_restarts "
    "cosine_with_hard_restarts cosine_annealing_with_restarts get_cosine_with_hard_restarts_schedule_with_warmup",
    "cyclic": "CyclicLR clr triangular2 exp_range cyclical",
    "one_cycle": "OneCycleLR 1cycle super_convergence",
    "triangular": "slanted_triangular stlr",
    "inverse_sqrt": "inv_sqrt inverse_square_root rsqrt noam sqrt InverseSqrtLR",
    "inverse_time": "InverseTimeDecay",
    "wsd": "warmup_stable_decay trapezoid trapezoidal",
    "tanh": "tanh_decay hyperbolic_tangent",
    "piecewise": "PiecewiseConstantDecay piecewise_constant PiecewiseLinear",
    "plateau": "ReduceLROnPlateau reduce_on_plateau",
    "custom": "LambdaLR MultiplicativeLR lambda",
    "a schedule is one type with a warmup before it, as in {type: cosine, warmup: 0.1}": "SequentialLR "
    "ChainedScheduler chained sequential",
}
"""Our types, and what others call them."""

_PEAK = "did you mean 'init_lr'? It is the peak of every schedule"
_FLOOR = "did you mean 'floor'? KEY is a learning rate, and floor a share of init_lr: KEY / init_lr"
_LENGTH = "leave it out: a schedule is as long as the training, train.epochs"
_START = "did you mean 'start', inside warmup? It is a share of init_lr, as in warmup: {epochs: 1, start: 0.1}"
_MOMENTUM = "leave it out: the momentum is fixed, train.momentum"
PARAMETERS: Mapping[str, str] = {
    **_all("lr learning_rate max_lr peak_lr lr_max initial_lr initial_learning_rate init_learning_rate", _PEAK),
    **_all(
        "eta_min min_lr lr_min final_lr end_lr min_learning_rate end_learning_rate eta_max_min cycle_min_lr", _FLOOR
    ),
    **_all("min_lr_ratio min_lr_rate end_factor alpha", "did you mean 'floor'?"),
    **_all("base_lr", "did you mean 'init_lr', the peak, or 'floor', the lowest as a share of it?"),
    **_all("T_max total_steps total_iters total_epochs num_training_steps max_steps max_epochs num_epochs", _LENGTH),
    **_all("epochs decay_steps steps_per_epoch t_initial max_iters num_steps", _LENGTH),
    **_all(
        "warmup_steps num_warmup_steps warmup_iters warmup_iterations warmup_updates warmup_batches",
        "did you mean warmup: {updates: VALUE}?",
    ),
    **_all("warmup_epochs num_warmup_epochs warmup_t", "did you mean warmup: {epochs: VALUE}?"),
    **_all(
        "warmup_ratio warmup_proportion warmup_fraction warmup_frac warmup_percent warmup_pct",
        "did you mean warmup: VALUE, a fraction of training?",
    ),
    **_all("warmup_lr warmup_lr_init warmup_start_lr warmup_init_lr warmup_factor start_factor", _START),
    **_all("warmup_type warmup_method warmup_mode warmup_strategy", "did you mean 'form', inside warmup?"),
    **_all("decay_rate lr_decay decay decay_factor factor lr_gamma", "did you mean 'gamma'?"),
    **_all("decay_epochs decay_t lr_step_size drop_every epochs_drop", "did you mean step_size: {epochs: VALUE}?"),
    **_all(
        "lr_steps lr_milestones decay_milestones steps", "did you mean milestones: {epochs: VALUE}, of multistep?"
    ),
    **_all("num_cycles n_cycles cycle_limit", "did you mean 'cycles'?"),
    **_all("cycle_decay cycle_momentum_decay restart_decay", "did you mean 'peak_decay'?"),
    **_all("cycle_mul", "did you mean 't_mult'?"),
    **_all("step_size_up step_size_down", "did you mean 'cycles', how many, and 'up', the share of one that rises?"),
    **_all("anneal_strategy", "did you mean 'anneal'?"),
    **_all("base_momentum max_momentum cycle_momentum", _MOMENTUM),
    **_all("decay_ratio decay_fraction decay_frac num_decay_steps cooldown_fraction", "did you mean 'cooldown'?"),
    **_all("decay_type cooldown_type", "did you mean 'shape'?"),
    **_all("boundaries", "did you mean 'at'?"),
    **_all("lr_lambda", "did you mean function: my_package.my_function, of type: custom?"),
    **_all("mode monitor", "leave it out: plateau follows the objective, and nothing else needs one"),
    **_all("last_epoch verbose threshold_mode eps", "leave it out"),
}
"""What others call the parameters of schedules."""

UNITS: Mapping[str, str] = {
    **_all("steps step iterations iters batches update num_steps", "updates"),
    **_all("epoch ep num_epochs", "epochs"),
    **_all("ratio frac share proportion percent pct", "fraction"),
}
"""What others call the units of a length."""
WARMUP: Mapping[str, str] = {
    **{name: f"did you mean {unit!r}?" for name, unit in UNITS.items()},
    **_all(
        "start_factor from factor lr init_lr start_lr warmup_lr", "did you mean 'start'? It is a share of init_lr"
    ),
    **_all("type mode method strategy shape", "did you mean 'form'?"),
}
"""What others call the keys of a warmup."""

VALUES: Mapping[str, Mapping[str, str]] = {
    "precision": _all("float32 32 full highest", "fp32")
    | _all("bfloat16 bf16mixed", "bf16")
    | _all("fp16 float16 half 16 16mixed amp mixed fp8", ""),
    "optimizer": _all("adam nadam radam adamax adagrad adadelta rmsprop lion lamb lars adafactor lbfgs muon", ""),
    "sampler": _all("bayes bayesian optuna tpesampler hyperopt hyperband", "tpe")
    | _all("sobol halton qmcsampler", "qmc")
    | {"randomsampler": "random", "gridsampler": "grid", "cmaes": "", "nsgaii": "", "gp": ""},
    "metric": _all("acc accuracy valacc val/acc valaccuracy validationaccuracy", "val/accuracy")
    | _all("loss valloss validationloss", "val/loss")
    | _all("train/loss train/accuracy test/loss test/accuracy", ""),
    "epoch": {"final": "last", "end": "last", "max": "best"},
    "source": _all("imagefolder images", "folder") | _all("huggingface hf datasets", "parquet"),
    "interval": _all("step steps batch iteration iter", "update"),
    "anneal": {"cosine": "cos"},
    "form": {"cos": "cosine", "exp": "exponential"},
    "shape": {"cos": "cosine", "sqrt": "1-sqrt", "square": "1-square", "exp": "exponential"},
    "balance": {"true": "equal", "false": "free", "balanced": "equal"},
}
"""What others call the values of a key; an empty one is not offered, though something has nearly its name."""

RANGES: Mapping[str, str] = {
    **_all("uniform float suggestfloat suggestuniform quniform range interval between continuous real", "uniform"),
    **_all("loguniform suggestloguniform qloguniform reciprocal log loguniformvalues logrange", "log_uniform"),
    **_all("int randint suggestint integer intuniform lograndint", "int"),
    **_all("choice choices values options categorical suggestcategorical grid gridsearch oneof", "choice"),
}
"""What others call the four kinds of ranges."""
ENDS = ("low", "min", "lower", "minimum"), ("high", "max", "upper", "maximum")

_NO_PRUNER = "there is no pruner any more: curves that are cut off favour schedules that decay early; leave it out"
_FLAG = "that is KEY on the command line"
SWEEP_KEYS: Mapping[str, str] = {
    **_all("pruner parole early_terminate early_stopping hyperband", _NO_PRUNER),
    **_all("method algorithm search_alg search_method strategy", "search.sampler"),
    **_all("n_trials num_trials max_trials num_samples run_cap trials", "search.trials"),
    **_all("parameters hyperparameters search_space param_space", "space"),
    **_all("lr learning_rate init_lr max_lr base_lr", "space.init_lr"),
    **_all("warmup warmup_steps warmup_epochs warmup_ratio", "space.warmup"),
    **_all("scheduler schedulers schedule schedules lr_scheduler lr_schedule lr_scheduler_type", "space.schedules"),
    **_all("baseline", "space.baseline"),
    **_all("metric monitor", "objective.metric"),
    **_all("goal direction mode", "leave it out: every metric has its direction"),
    **_all("epochs max_epochs num_epochs n_epochs num_train_epochs", "train.epochs"),
    **_all("batch bs batch_size train_batch_size per_device_train_batch_size", "train.batch_size"),
    **_all("optimizer optim", "train.optimizer"),
    **_all("weight_decay wd l2", "train.weight_decay"),
    **_all("momentum", "train.momentum"),
    **_all("nesterov", "train.nesterov"),
    **_all("precision amp fp16 bf16 mixed_precision dtype", "train.precision"),
    **_all("seed random_state random_seed", "train.seed"),
    **_all("dataset data_source", "data.source"),
    **_all("root data_path folder", "data.path"),
    **_all("image_size img_size resolution resize", "data.size"),
    **_all("val_split validation_split val_size val_fraction", "data.val"),
    **_all("test_split test_size test_fraction", "data.test"),
    **_all("transforms augmentation", "data.augment"),
    **_all("hflip horizontal_flip random_flip", "data.augment.flip"),
    **_all("crop random_crop padding", "data.augment.pad"),
    **_all("arch architecture backbone network model_name", "model.name"),
    **_all("pretrained weights", "leave it out: every trial starts from weights that its seed makes"),
    **_all("num_classes classes", "leave it out: the data say how many"),
    **_all("study_name sweep_name", "name"),
    **_all("description title notes", "question"),
    **_all("device gpus accelerator", "that is --device on the command line"),
    **_all("num_workers workers n_jobs lanes parallel", "that is --lanes on the command line"),
    **_all("data_dir", "that is --data-dir on the command line"),
    **_all("storage", "study.storage stands in mlflow.yaml"),
    **_all("tracking_uri mlflow_tracking_uri", "server.mlflow_tracking_uri stands in mlflow.yaml"),
    **_all("experiment experiment_name project", "tracking.experiment.name stands in mlflow.yaml"),
}
"""Keys of other tools' sweep files: where it stands here, or what to do."""
PLACE_KEYS: Mapping[str, str] = {
    **_all("tracking_uri mlflow_tracking_uri uri", "server.mlflow_tracking_uri"),
    **_all("experiment experiment_name", "tracking.experiment.name"),
    **_all(
        "artifact_location artifact_path artifact_root",
        "tracking.experiment.create_experiment_kwargs.artifact_location",
    ),
    **_all("tags", "tracking.run.tags"),
    **_all("storage optuna", "study.storage"),
    **_all("host", "ui.host"),
    **_all("port", "ui.port"),
    **_all(
        "credentials username password token",
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment are for that",
    ),
}
"""The same, of mlflow.yaml."""


def where(table: Mapping[str, str], key: object, value: object, own: Iterable[str]) -> str:
    """What is meant by an unknown key of a file, whose section has the keys ``own``: the end of an error sentence."""
    said, own = advice(table, key, value), list(own)
    if not said:
        return did_you_mean(key, own)
    if " " in said:
        return said
    return f"did you mean {said.rpartition('.')[2]!r}?" if said.rpartition(".")[2] in own else f"here it is {said}"
