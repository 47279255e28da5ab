"""A schedule as stand-alone code to paste, in PyTorch or in the form of a library that trains with it.

Where classes of torch's give the same learning rates, the code uses them; elsewhere it is a ``LambdaLR`` with the
source of the function that drives training here. To add a library, write a function of a ``Draft``, and put it into
``LIBRARIES``.
"""

from __future__ import annotations

import inspect
import json
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from .plugins import split_path
from .schedule import Moment, Schedule
from .zoo import TYPES, WARMUPS, Function, did_you_mean


@dataclass(frozen=True)
class Draft:
    """What every library's form is made of."""

    schedule: Schedule
    moment: Moment
    T: int  # updates of the training
    body: str  # code that makes ``scheduler`` for ``optimizer``
    native: bool  # whether that is torch's own classes
    optimizer: str  # an expression with ``{}`` for the parameters

    @property
    def plateau(self) -> bool:
        return self.schedule.type == "plateau"

    @property
    def commented_optimizer(self) -> str:
        return f"# optimizer = {self.optimizer.format('model.parameters()')}\n"


def code(
    schedule: Schedule,
    T: int,
    *,
    epochs: int | None = None,
    library: str = "torch",
    optimizer: tuple[str, Mapping[str, Any]] | None = None,
) -> str:
    """Python that sets ``scheduler`` for an ``optimizer`` whose learning rate is ``schedule.init_lr``; for torch it
    ends with a comment that says when to call ``scheduler.step()``.

    Args:
        schedule: any schedule.
        T: the number of updates of the training it is for.
        epochs: the number of epochs that these updates make up; ``T`` by default.
        library: whose training loop it is for: ``torch`` is a loop of one's own; ``lightning`` gives
            ``configure_optimizers``; ``transformers`` a function for ``Trainer(optimizers=...)``; ``timm`` a class
            with ``step`` and ``step_update``, which go where they are told, as a training that is resumed does.
        optimizer: what it was found with: a class of ``torch.optim`` and its arguments beside ``lr``.

    Raises ValueError for plateau with a warmup in another library than torch, or in ``transformers`` at all.
    """
    moment = schedule.moment(0, T, epochs)
    native = _native(schedule, moment)
    head = f"# {schedule.type}, init_lr {schedule.init_lr:g}, {moment.total} {schedule.interval}s"
    head += f" ({epochs} epochs of {T // epochs})" * (schedule.interval == "update") if epochs else ""
    head += f", of them {moment.w} warmup" if moment.w else ""
    name, options = optimizer or ("SGD", {})
    arguments = "".join(f", {key}={value!r}" for key, value in options.items())
    expression = f"torch.optim.{name}({{}}, lr={schedule.init_lr!r}{arguments})"
    expression += "" if optimizer else "  # or yours, with this lr"
    draft = Draft(schedule, moment, T, native or _inlined(schedule, moment), native is not None, expression)
    if draft.plateau and library != "torch" and (not native or library == "transformers"):
        raise ValueError(f"plateau needs the validation accuracy, for which {library} has no place here")
    if library not in LIBRARIES:
        raise ValueError(f"unknown library {library!r}; {did_you_mean(library, [*LIBRARIES])}")
    return f"{head}\n# {json.dumps(schedule.to_json())}\n{LIBRARIES[library](draft)}"


def _torch(draft: Draft) -> str:
    advice = f"# call scheduler.step() after every {draft.schedule.interval}"
    if draft.plateau and draft.native:
        advice = "# call scheduler.step(validation_accuracy) after every epoch"
    elif draft.plateau:
        advice += "; before the one that ends an epoch call\n# history.append(validation_accuracy)"
    return f"{draft.commented_optimizer}{draft.body}{advice}\n"


def _lightning(draft: Draft) -> str:
    by_epoch = draft.plateau or draft.schedule.interval == "epoch"
    options = '"scheduler": scheduler, "interval": ' + ('"epoch"' if by_epoch else '"step"')
    options += ', "monitor": "val_accuracy"' * draft.plateau
    body = f"optimizer = {draft.optimizer.format('self.parameters()')}\n{draft.body}"
    body += f'return {{"optimizer": optimizer, "lr_scheduler": {{{options}}}}}\n'
    head = "import torch\n\ndef configure_optimizers(self):  # of your LightningModule\n"
    return head + textwrap.indent(body, "    ")


def _transformers(draft: Draft) -> str:
    moment, body = draft.moment, draft.body
    if draft.schedule.interval == "epoch":  # Trainer calls step() after every update
        epoch = f"min(t * {moment.total} // {draft.T}, {moment.total})"
        body = _inlined(draft.schedule, moment)
        body = body.replace("LambdaLR(optimizer, factor)", f"LambdaLR(optimizer, lambda t: factor({epoch}))")
    use = "# Trainer(model, args, ..., optimizers=(optimizer, make_scheduler(optimizer)))\n"
    inside = textwrap.indent(f"{body}return scheduler\n", "    ")
    return f"def make_scheduler(optimizer):\n{inside}\n{draft.commented_optimizer}{use}"


def _timm(draft: Draft) -> str:
    use, moment = f"\n{draft.commented_optimizer}# lr_scheduler = Scheduler(optimizer)\n", draft.moment
    if draft.plateau:
        return TIMM_PLATEAU.format(body=textwrap.indent(draft.body.rstrip(), " " * 8)) + use
    convertible = moment.epochs < draft.T  # how many updates an epoch has, and so the one count from the other
    epoch, update = "self.set(epoch)", "self.set(num_updates)"
    if draft.schedule.interval == "epoch":
        update = f"self.set(num_updates * {moment.epochs} // {draft.T})" if convertible else "pass"
    else:
        epoch = f"self.set(epoch * {draft.T} // {moment.epochs})" if convertible else "pass"
    formula = textwrap.indent(_inlined(draft.schedule, moment, scheduler=False).rstrip(), " " * 8)
    return TIMM.format(formula=formula, epoch=epoch, update=update) + use


TIMM = """\
class Scheduler:  # called as timm's training loop calls its own, also when it resumes
    def __init__(self, optimizer):
{formula}

        self.optimizer, self.factor = optimizer, factor
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.set(0)

    def set(self, t):
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor(t) * group.get("lr_scale", 1.0)

    def step(self, epoch, metric=None):
        {epoch}

    def step_update(self, num_updates, metric=None):
        {update}

    def state_dict(self):
        return {{}}  # the loop says where it stands

    def load_state_dict(self, state):
        pass
"""
"""timm's scheduler of what is a function of progress."""
TIMM_PLATEAU = """\
class Scheduler:  # called as timm's training loop calls its own
    # All accuracies so far decide: keep state_dict() in the checkpoint, for an epoch's number alone cannot resume it.
    def __init__(self, optimizer):
{body}
        self.scheduler = scheduler

    def step(self, epoch, metric=None):
        if metric is not None:  # timm has none where it resumes
            self.scheduler.step(metric)

    def step_update(self, num_updates, metric=None):
        pass

    def state_dict(self):
        return self.scheduler.state_dict()

    def load_state_dict(self, state):
        self.scheduler.load_state_dict(state)
"""
"""timm's scheduler of what is not: plateau."""
LIBRARIES: Mapping[str, Callable[[Draft], str]] = {
    "torch": _torch,
    "lightning": _lightning,
    "transformers": _transformers,
    "timm": _timm,
}
"""By the name that ``--for`` gives them."""


def _native(schedule: Schedule, moment: Moment) -> str | None:
    """Imports and the expression of torch's own classes, or None where none is exact."""
    pieces = _body(schedule, moment)
    if pieces is None:
        return None
    if moment.w:
        warmup = _warmup(schedule, moment.w)
        if warmup is None or pieces[0][0].startswith(("OneCycleLR", "CyclicLR", "ReduceLROnPlateau")):
            return None  # these overwrite initial_lr or cannot be composed
        pieces = [(warmup, moment.w), *pieces]
    ends = list(accumulate(length for _, length in pieces[:-1]))
    classes = sorted({call.partition("(")[0] for call, _ in pieces} | ({"SequentialLR"} if ends else set()))
    imports = f"from torch.optim.lr_scheduler import {', '.join(classes)}\n\n"
    if not ends:
        return f"{imports}scheduler = {pieces[0][0]}\n"
    listed = "".join(f"    {call},\n" for call, _ in pieces)
    return f"{imports}scheduler = SequentialLR(optimizer, [\n{listed}], milestones={ends})\n"


def _warmup(schedule: Schedule, w: int) -> str | None:
    form, start = schedule.warmup.form, schedule.warmup.start
    if form == "linear" and start is None:
        return f"LinearLR(optimizer, {1 / w!r}, 1.0, {max(w - 1, 1)})"
    if form == "linear" and start:
        return f"LinearLR(optimizer, {start!r}, 1.0, {w})"
    return f"ConstantLR(optimizer, {start!r}, {w})" if form == "constant" and start else None


def _body(schedule: Schedule, moment: Moment) -> list[tuple[str, int]] | None:
    """The decay as (constructor, its length in intervals) one after the other, or None."""
    p, D, floor, lr, kind = schedule.arguments(moment), moment.D, schedule.floor, schedule.init_lr, schedule.type
    if D < 1:
        return None
    if kind in ("step", "multistep") and floor == 0:
        return _drops(schedule, moment)
    if schedule.clock == "absolute" and moment.w:
        return None  # SequentialLR starts the clock of what it starts
    if kind == "constant":
        return [("ConstantLR(optimizer, 1.0, 1)", D)]
    if kind == "exponential" and floor == 0:
        return [(f"ExponentialLR(optimizer, {_rate(p, D)!r})", D)]
    if kind == "polynomial" and floor == 0:
        return [(f"PolynomialLR(optimizer, {D}, {p['power']!r})", D)]
    if kind == "linear":
        return [(f"LinearLR(optimizer, 1.0, {floor!r}, {D})", D)]
    if kind == "cosine":
        return [(f"CosineAnnealingLR(optimizer, {D}, {floor * lr!r})", D)]
    if kind in ("wsd", "knee") and (kind == "knee" or p["shape"] == "linear"):
        cooldown = D - p["explore"] if kind == "knee" else p["cooldown"]
        C = round(cooldown)
        if not 1 <= C <= D or abs(cooldown - C) > 1e-9:
            return None
        decay = (f"LinearLR(optimizer, 1.0, {floor!r}, {C})", C)
        return [decay] if C == D else [("ConstantLR(optimizer, 1.0, 1)", D - C), decay]
    if kind == "cosine_restarts" and p["peak_decay"] == 1 and p["t_mult"] == int(p["t_mult"]):
        m = int(p["t_mult"])
        first = p["t_0"] or D / (p["cycles"] if m == 1 else (m ** p["cycles"] - 1) / (m - 1))
        if first >= 1 and abs(first - round(first)) < 1e-9:
            return [(f"CosineAnnealingWarmRestarts(optimizer, {round(first)}, {m}, {floor * lr!r})", D)]
    if kind == "one_cycle" and floor == 0 and p["pct_start"] * D > 1 and p["pct_start"] < 1:
        call = f"OneCycleLR(optimizer, {lr!r}, total_steps={D}, pct_start={p['pct_start']!r}, "
        call += f"anneal_strategy={p['anneal']!r}, cycle_momentum=False, div_factor={p['div_factor']!r}, "
        return [(f"{call}final_div_factor={p['final_div_factor']!r}, three_phase={p['three_phase']!r})", D)]
    if kind == "cyclic" and floor > 0:
        return _cyclic(schedule, moment)
    if kind == "plateau" and moment.w == 0 and p["gamma"] < 1:
        call = f"ReduceLROnPlateau(optimizer, mode='max', factor={p['gamma']!r}, patience={p['patience']!r}, "
        call += f"threshold={p['threshold']!r}, threshold_mode='abs', cooldown={p['cooldown']!r}, "
        return [(f"{call}min_lr={floor * lr!r}, eps=0.0)", D)]
    return None


def _rate(p: dict[str, Any], D: int) -> float:
    """torch's gamma, the factor per interval, of ``final`` over the whole decay or of a gamma per epoch."""
    return float(p["gamma"] ** (1 / p["epoch"]) if p["final"] is None else p["final"] ** (1 / D))


def _drops(schedule: Schedule, moment: Moment) -> list[tuple[str, int]] | None:
    """StepLR or MultiStepLR; on the absolute clock the milestones are counted from the end of the warmup."""
    p, D = schedule.arguments(moment), moment.D
    late = moment.w if schedule.clock == "absolute" else 0
    if schedule.type == "step":
        size = max(1, math.ceil(p["step_size"] - 1e-9))
        if late == 0:
            return [(f"StepLR(optimizer, {size}, {p['gamma']!r})", D)]
        at = list(range(size, D, size))
    else:
        at = sorted(math.ceil(m - 1e-9) for m in p["milestones"])
    at = [m - late for m in at]
    if any(m <= 0 for m in at):
        return None  # a drop that has happened before the class begins to count
    return [(f"MultiStepLR(optimizer, {at}, {p['gamma']!r})", D)]


def _cyclic(schedule: Schedule, moment: Moment) -> list[tuple[str, int]] | None:
    p, lr = schedule.arguments(moment), schedule.init_lr
    length = moment.D / p["cycles"]
    up = length * p["up"]
    if min(up, length - up) < 1 or abs(up - round(up)) > 1e-9 or abs(length - round(length)) > 1e-9:
        return None
    call = f"CyclicLR(optimizer, {schedule.floor * lr!r}, {lr!r}, {round(up)}, {round(length - up)}, "
    return [(f"{call}mode={p['mode']!r}, gamma={_rate(p, moment.D)!r}, cycle_momentum=False)", moment.D)]


def _inlined(schedule: Schedule, moment: Moment, scheduler: bool = True) -> str:
    """A LambdaLR made of the sources of the functions that drive training, or its ``factor`` alone."""
    w, D, floor = moment.w, moment.D, schedule.floor
    given = "".join(f", {name}={value!r}" for name, value in schedule.arguments(moment).items())
    tau = "min(t - w, D)" if schedule.clock == "prefix" else "min(t, D)"
    if D < 1:  # warmup to the end, and past it the decay is over
        D, tau = 1, "1"
    if schedule.type == "custom":
        assert schedule.function is not None
        module, name = split_path(str(schedule.params["function"]))
        if not module:
            module, name = schedule.function.__module__, schedule.function.__name__
        rule, definition = "clamp", f"from {module} import {name}"
    else:
        name, rule = schedule.type, TYPES[schedule.type].floor
        definition = _source(TYPES[name].function)
    lengths = f"w, D = {w}, {D}  # {schedule.interval}s of warmup, {schedule.interval}s of the decay's clock"
    if schedule.type == "plateau":
        given += ", history=history"
        lengths += "\nhistory = []  # the validation accuracy of every finished epoch"
        if w and schedule.clock == "prefix":
            skipped = math.ceil(w * moment.epochs / moment.total)
            given = given.replace("history=history", f"history=history[{skipped}:]")
    value = f"{name}(t, D{given})"
    if floor and rule == "affine":
        value = f"{floor!r} + {1 - floor!r} * {value}"
    if floor and rule == "clamp":
        value = f"max({floor!r}, {value})"
    parts, ramp = [definition], ""
    if w:
        function, _ = WARMUPS[schedule.warmup.form]
        parts.append(_source(function))
        target = "" if schedule.decay(0, moment) == 1 else " * decay(0)"  # what the warmup leads to
        ramp = f"    if t < w:\n        return {function.__name__}(t, w, {schedule.warmup.start!r}){target}\n"
    parts += [lengths, f"def decay(t):\n    return {value}", f"def factor(t):\n{ramp}    return decay({tau})"]
    if scheduler:
        parts = ["from torch.optim.lr_scheduler import LambdaLR", *parts, "scheduler = LambdaLR(optimizer, factor)"]
    source = "\n\n".join(parts) + "\n"
    imports = "".join(f"import {module}\n" for module in ("itertools", "math") if f"{module}." in source)
    return f"{imports}\n{source}" if imports else source


def _source(function: Function) -> str:
    """The function's own source, without its decorator and type annotations."""
    parameters = ", ".join(inspect.signature(function).parameters)
    _, quotes, body = inspect.getsource(function).partition('"""')
    return f"def {function.__name__}({parameters}):\n    {quotes}{body.rstrip()}"
