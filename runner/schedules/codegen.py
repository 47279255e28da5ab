"""A schedule as stand-alone code to paste, in PyTorch or in the form of a library that trains with it.

The code is one function, ``make_scheduler``: a ``LambdaLR`` with the source of the function that drives training
here, of which only what this schedule uses is left. It sets the optimizer's learning rate, it has the length of the
training that it is pasted into, and past its end it stays where it ended: of torch's own classes some rise again
there, and one raises. To add a library, write a function of a ``Draft``, and put it into ``LIBRARIES``.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import operator
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .plugins import split_path
from .schedule import Schedule, summary
from .words import did_you_mean
from .zoo import TYPES, WARMUPS, Function, Length


@dataclass(frozen=True)
class Draft:
    """What every library's form is made of."""

    schedule: Schedule
    optimizer: str  # an expression with ``{}`` for the parameters
    fixed: Mapping[str, int]  # T and epochs of the training, where the code is for one of that length
    metric: str = "val/accuracy"  # what plateau follows
    rises: bool = True  # whether more of it is better
    by_update: bool = False  # whether the library counts updates, also for what moves with the epochs

    @property
    def plateau(self) -> bool:
        return self.schedule.type == "plateau"

    @property
    def native(self) -> bool:
        """Whether it is torch's own class, which does what it says: ReduceLROnPlateau."""
        return self.plateau and not self.schedule.warmup.length.value and self.schedule.params["gamma"] < 1

    @property
    def monitor(self) -> str:
        """The metric's name where it is logged: ``val_loss``."""
        return re.sub(r"\W+", "_", self.metric)

    @property
    def variable(self) -> str:
        """The metric as a variable: ``validation_loss``."""
        return re.sub("^val_", "validation_", self.monitor)

    @property
    def words(self) -> str:
        """The metric in a sentence: ``validation loss``."""
        return self.variable.replace("_", " ")

    @property
    def commented_optimizer(self) -> str:
        return f"# optimizer = {self.optimizer.format('model.parameters()')}\n"

    @property
    def body(self) -> str:
        """What ``make_scheduler`` does."""
        return _native(self.schedule, self.rises) if self.native else _lambda(self.schedule, self.by_update)

    @property
    def lengths(self) -> list[str]:
        """Of ``T`` (updates) and ``epochs``, what ``make_scheduler`` asks for."""
        used = _names(self.body)
        return [name for name in ("T", "epochs") if name in used]

    @property
    def definition(self) -> str:
        """The function ``make_scheduler(optimizer, ...)``; what it asks for has a default where that is fixed."""
        parameters = [f"{name}={self.fixed[name]}" if self.fixed else name for name in self.lengths]
        return f"def make_scheduler({', '.join(['optimizer', *parameters])}):\n{_indented(self.body)}\n"

    def call(self, **expressions: str) -> str:
        """The call of it: ``expressions`` say where the library has ``T`` and ``epochs``."""
        given = [] if self.fixed else [f"{name}={expressions[name]}" for name in self.lengths]
        return f"make_scheduler({', '.join(['optimizer', *given])})"


def code(
    schedule: Schedule,
    T: int | None = None,
    *,
    epochs: int | None = None,
    library: str = "torch",
    optimizer: tuple[str, Mapping[str, Any]] | None = None,
    metric: tuple[str, str] = ("val/accuracy", "maximize"),
) -> str:
    """Python that makes a scheduler for an optimizer, and sets its learning rate; for torch it needs ``optimizer``,
    ``loader`` (the batches of an epoch) and ``epochs``, sets ``scheduler``, and says when to call its ``step()``.

    Of several param groups the one with the highest learning rate gets ``schedule.init_lr``; the others keep their
    ratios to it.

    Args:
        schedule: any schedule.
        T: the number of updates of the training it is for; by default the code takes it from that training.
        epochs: the number of epochs that ``T`` updates make up; ``T`` by default.
        library: whose training loop it is for: ``torch`` is a loop of one's own; ``lightning`` gives
            ``configure_optimizers``; ``transformers`` gives ``create_scheduler``, of a subclass of ``Trainer``;
            ``timm`` a class with ``step`` and ``step_update``, which go where they are told, as a training that is
            resumed does.
        optimizer: what it was found with: a class of ``torch.optim`` and its arguments beside ``lr``.
        metric: what plateau follows, and whether to ``maximize`` or ``minimize`` it.

    Raises ValueError for plateau with a warmup in another library than torch, or in ``transformers`` at all.
    """
    name, options = optimizer or ("SGD", {})
    arguments = "".join(f", {key}={value!r}" for key, value in options.items())
    expression = f"torch.optim.{name}({{}}, lr={schedule.init_lr!r}{arguments})"
    expression += "" if optimizer else "  # or yours"
    draft = Draft(
        schedule, expression, {} if T is None else {"T": T, "epochs": epochs or T}, metric[0], metric[1] == "maximize"
    )
    if draft.plateau and library != "torch" and (not draft.native or library == "transformers"):
        raise ValueError(f"plateau needs the {draft.words}, for which {library} has no place here")
    if library not in LIBRARIES:
        raise ValueError(f"unknown library {library!r}; {did_you_mean(library, [*LIBRARIES])}")
    source = LIBRARIES[library](draft)
    used = _names(source)
    lines = [f"# {_title(schedule)}", f"# {json.dumps(schedule.to_json())}"]
    lines += [f"import {module}" for module in ("itertools", "math") if module in used]
    lines += ["", *(["import torch"] if "torch" in used else [])]
    lines += [f"from torch.optim.lr_scheduler import {'ReduceLROnPlateau' if draft.native else 'LambdaLR'}"]
    if schedule.type == "custom":
        lines += ["", "from {} import {}".format(*_path(schedule))]
    if "history" in used:
        value = draft.words if draft.rises else f"{draft.words}, negated,"
        lines += ["", f"history = []  # the {value} of every finished epoch"]
    return "\n".join([*lines, "", "", source])


def _torch(draft: Draft) -> str:
    by_epoch = draft.native or draft.schedule.interval == "epoch"
    advice = f"# call scheduler.step() after every {'epoch' if by_epoch else 'update'}"
    if draft.native:
        advice = f"# call scheduler.step({draft.variable}) after every epoch"
    elif draft.plateau:
        value = draft.variable if draft.rises else f"-{draft.variable}"
        advice += f"; before the one that ends an epoch call\n# history.append({value})"
    use = f"scheduler = {draft.call(T='math.ceil(len(loader) / accumulation) * epochs', epochs='epochs')}\n"
    if "accumulation" in use:
        use = f"accumulation = 1  # batches for one update; loader and epochs are your training's\n{use}"
    if not by_epoch:
        advice += (
            "\n# with Accelerate: after prepare(loader); a scheduler that is prepared steps once for every process"
        )
    return f"{draft.definition}\n\n{draft.commented_optimizer}{use}{advice}\n"


def _lightning(draft: Draft) -> str:
    by_epoch = draft.native or draft.schedule.interval == "epoch"
    options = '"scheduler": scheduler, "interval": ' + ('"epoch"' if by_epoch else '"step"')
    options += f', "monitor": "{draft.monitor}"' * draft.plateau
    body = [f"optimizer = {draft.optimizer.format('self.parameters()')}"]
    if draft.lengths and not draft.fixed:
        body += ["T = int(self.trainer.estimated_stepping_batches)"]
        body += ['assert T > 0, "give the Trainer max_steps: these data have no length"']
    if "epochs" in draft.lengths and not draft.fixed:
        body += ["self.trainer.fit_loop.setup_data()"]
        body += ["updates = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)"]
    body += [f"scheduler = {draft.call(T='T', epochs='T / updates')}"]
    body += [f'return {{"optimizer": optimizer, "lr_scheduler": {{{options}}}}}']
    head = "def configure_optimizers(self):  # of your LightningModule\n"
    return f"{draft.definition}\n\n{head}{_indented(*body)}\n"


def _transformers(draft: Draft) -> str:
    draft = replace(draft, by_update=True)  # Trainer calls step() after every update
    body = ["optimizer = self.optimizer if optimizer is None else optimizer"]
    if "epochs" in draft.lengths and not draft.fixed:
        body += ["batches = len(self.get_train_dataloader())"]
        body += ["updates = math.ceil(batches / self.args.gradient_accumulation_steps)"]
    body += [f"self.lr_scheduler = {draft.call(T='num_training_steps', epochs='num_training_steps / updates')}"]
    body += ["return self.lr_scheduler"]
    head = "def create_scheduler(self, num_training_steps, optimizer=None):  # of your subclass of Trainer\n"
    use = f"{draft.commented_optimizer}# trainer = MyTrainer(model, args, ..., optimizers=(optimizer, None))\n"
    return f"{draft.definition}\n\n{head}{_indented(*body)}\n\n\n{use}"


def _timm(draft: Draft) -> str:
    draft = replace(draft, by_update=True)
    if draft.plateau:
        use = f"{draft.commented_optimizer}# lr_scheduler = Scheduler(optimizer)  # its metric: the {draft.words}\n"
        return f"{draft.definition}\n\n{TIMM_PLATEAU}\n\n{use}"
    lengths = "".join(f", {name}={n}" for name, n in draft.fixed.items()) or ", T, epochs"
    given = "".join(f", {name}={name}" for name in draft.lengths)
    known = len(set(draft.fixed.values())) != 1  # how many updates an epoch has
    scheduler = TIMM.format(
        lengths=lengths, given=given, epoch="self.set(math.ceil(epoch * self.T / self.epochs))" if known else "pass"
    )
    where = "" if draft.fixed else ", T=updates_per_epoch * args.epochs, epochs=args.epochs"
    use = f"{draft.commented_optimizer}# lr_scheduler = Scheduler(optimizer{where})\n"
    return f"{draft.definition}\n\n{scheduler}\n\n{use}"


TIMM = """\
class Scheduler:  # called as timm's training loop calls its own, also when it resumes
    def __init__(self, optimizer{lengths}):
        self.optimizer, self.T, self.epochs = optimizer, T, epochs
        self.factor = make_scheduler(optimizer{given}).lr_lambdas[0]
        self.set(0)

    def set(self, t):
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor(t) * group.get("lr_scale", 1.0)

    def step(self, epoch, metric=None):
        {epoch}

    def step_update(self, num_updates, metric=None):
        self.set(num_updates)

    def state_dict(self):
        return {{}}  # the loop says where it stands

    def load_state_dict(self, state):
        pass
"""
"""timm's scheduler of what is a function of progress."""
TIMM_PLATEAU = """\
class Scheduler:  # called as timm's training loop calls its own
    # All epochs so far decide: keep state_dict() in the checkpoint, for an epoch's number alone cannot resume it.
    def __init__(self, optimizer):
        self.scheduler = make_scheduler(optimizer)

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


SET_LR = """\
bases = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
for group, base in zip(optimizer.param_groups, bases):  # several groups keep their ratios
    {keys} = {lr!r} * (base / max(bases) if any(bases) else 1.0)"""
"""The learning rate that the schedule was found with, whatever the optimizer has."""


def _native(schedule: Schedule, rises: bool) -> str:
    """ReduceLROnPlateau, which knows nothing of ``initial_lr``."""
    p, floor = schedule.params, schedule.floor
    least = f"[{floor!r} * group['lr'] for group in optimizer.param_groups]" if floor else "0.0"
    options = f"mode={'max' if rises else 'min'!r}, factor={p['gamma']!r}, patience={p['patience']!r}, "
    options += f"threshold={p['threshold']!r}, threshold_mode='abs',\n    "
    options += f"cooldown={p['cooldown']!r}, min_lr={least}, eps=0.0"
    keys = 'group["lr"] = group["initial_lr"]'
    return f"{SET_LR.format(keys=keys, lr=schedule.init_lr)}\nreturn ReduceLROnPlateau(\n    optimizer, {options}\n)"


def _lambda(schedule: Schedule, by_update: bool) -> str:
    """A LambdaLR of what ``Schedule.factor`` computes."""
    by_epoch, floor = schedule.interval == "epoch", schedule.floor
    total, unit = ("epochs", "epochs") if by_epoch else ("T", "updates")
    warm, prefix = schedule.warmup.length.value > 0, schedule.clock == "prefix"
    D = "D" if warm and prefix else total
    count = f"min(t * epochs // T, {total})" if by_epoch and by_update else f"min(t, {total})"
    lines = []

    def length(value: Length, whole: str) -> str:
        """In the schedule's own intervals, as in ``Schedule.moment``."""
        units = {"fraction": whole, "epochs": "(T / epochs)", "updates": "(epochs / T)", unit: ""}
        return f"{value.value!r} * {units[value.unit]}".removesuffix(" * ")

    if warm:
        w = length(schedule.warmup.length, total)
        w = f"math.floor({w} + 0.5)" if " * " in w else str(math.floor(float(w) + 0.5))
        lines.append(f"w = min({w}, {total})  # {unit} of warmup")
    if D == "D":
        lines.append(f"D = max({total} - w, 1)  # {unit} of decay")
    given: dict[str, str] = {"T": D}
    for name, value in schedule.params.items() if schedule.type != "custom" else ():
        lengths = [v for v in (value if isinstance(value, tuple) else [value]) if isinstance(v, Length)]
        said = [length(v, D) for v in lengths] or [repr(value)]
        given[name] = f"[{', '.join(said)}]" if lengths and isinstance(value, tuple) else said[0]
        if isinstance(value, tuple) or (lengths and " * " in said[0]):
            lines.append(f"{name} = {given[name]}")
            given[name] = name
    past = "history if t else []" if warm else "history"  # none counts in the warmup
    if D == "D":
        past = "history[w:]" if by_epoch else "history[math.ceil(w * epochs / T):]"
    context = {"epoch": "1.0" if by_epoch else "T / epochs", "warmup": "w" if warm else "0", "history": past}
    given |= context | {"floor": repr(floor)}
    if schedule.type == "custom":
        own = "".join(f", {name}={value!r}" for name, value in schedule.params["params"].items())
        rule, source = "clamp", f"return {_path(schedule)[1]}(t, {D}{own})"
    else:
        kind = TYPES[schedule.type]
        rule, source = kind.floor, _specialised(kind.function, given)

    def floored(value: str) -> str:
        affine = f"{floor!r} + {1 - floor!r} * {value}"
        return {"affine": affine, "clamp": f"max({floor!r}, {value})"}.get(rule, value) if floor else value

    lines += ["", f"def decay(t):  # z = t / {D}", _indented(source), "", "def factor(t):  # past the end it stays"]
    if warm:
        tau = "max(t - w, 0)" if prefix else "t if t >= w else 0"
        function, _ = WARMUPS[schedule.warmup.form]
        ramp = _specialised(function, {"start": repr(schedule.warmup.start)}).removeprefix("return ")
        ramp = ast.unparse(ast.parse(f"({ramp}) * value"))
        lines += [f"    t = {count}", f"    value = {floored(f'decay({tau})')}"]
        lines += [f"    return {ramp} if t < w else value"]
    else:
        lines += [f"    return {floored(f'decay({count})')}"]
    lines += [
        "",
        SET_LR.format(keys='group["initial_lr"]', lr=schedule.init_lr),
        "return LambdaLR(optimizer, factor)",
    ]
    return "\n".join(lines).lstrip("\n")


def _title(schedule: Schedule) -> str:
    """What it is, in one line, whatever text is in it."""
    warmup, unit = schedule.warmup.length.value, schedule.warmup.length.unit
    said = f"warmup {warmup:.3g} {unit.replace('fraction', 'of training')}" if warmup else ""
    parts = [f"{schedule.type}: init_lr {schedule.init_lr:g}", said, summary(schedule.to_json())]
    return "".join(c if c.isprintable() else " " for c in ", ".join(filter(None, parts)))


def _path(schedule: Schedule) -> tuple[str, str]:
    """Where one's own function is imported from."""
    assert schedule.function is not None
    module, name = split_path(str(schedule.params["function"]))
    return (module, name) if module else (schedule.function.__module__, schedule.function.__name__)


def _names(source: str) -> set[str]:
    """What a piece of code calls by its name."""
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


def _indented(*lines: str) -> str:
    return textwrap.indent("\n".join(lines), "    ")


def _specialised(function: Function, given: Mapping[str, str]) -> str:
    """The statements of a function, with these expressions in place of its parameters, and without the branches that
    they rule out."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    tree = _Specialiser({name: ast.parse(f"({text})", mode="eval").body for name, text in given.items()}).visit(tree)
    statements = tree.body[1:]  # without the docstring
    end = next(i for i, statement in enumerate(statements) if isinstance(statement, ast.Return))
    return "\n".join(map(ast.unparse, statements[: end + 1]))


class _Specialiser(ast.NodeTransformer):
    """Puts expressions in place of names, and drops what they decide: none is None, unless it is the word itself."""

    def __init__(self, given: Mapping[str, ast.expr]) -> None:
        self.given = given

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.given.get(node.id, node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        known = isinstance(node.left, ast.Name) and node.left.id in self.given
        self.generic_visit(node)
        if known and isinstance(node.ops[0], ast.Is):
            return ast.Constant(ast.unparse(node.left) == "None")
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        every = isinstance(node.op, ast.And)
        values = [value for value in node.values if _truth(value) is not every] or node.values[-1:]
        return values[0] if len(values) == 1 or _truth(values[0]) is (not every) else ast.BoolOp(node.op, values)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        truth = _truth(node.test)
        return node if truth is None else node.body if truth else node.orelse

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        truth = _truth(node.test)
        return node if truth is None else node.body if truth else node.orelse


def _truth(test: ast.expr) -> bool | None:
    """What a condition is in any case; None where that depends."""
    compare = {ast.Eq: operator.eq, ast.Lt: operator.lt, ast.Gt: operator.gt}
    try:
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and type(test.ops[0]) in compare:
            left, right = ast.literal_eval(test.left), ast.literal_eval(test.comparators[0])
            return bool(compare[type(test.ops[0])](left, right))
        return bool(ast.literal_eval(test))
    except ValueError:  # there is a name in it
        return None
