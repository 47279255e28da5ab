"""YAML files as plain data that knows its lines: strict, bounded, YAML 1.2 numbers, no code.

Refused, each with its line: anchors, aliases, tags, repeated keys, keys that are no strings, non-finite numbers,
control and bidirectional characters, deep nesting, and files that are too large to be a person's.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ..schedules.words import SHOWN, SWEEP_KEYS, as_number, as_range, did_you_mean, quoted, shown, where

Key = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)

SECTIONS = ("data", "model", "train", "search", "confirm", "objective")
"""Of a sweep file: what is the same for all trials, and how they are searched and judged."""
MAX_BYTES, MAX_EVENTS, MAX_DEPTH, MAX_SCALAR = 256 * 1024, 10_000, 20, 4096
INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")
NUMBER = re.compile(r"[-+]?(?!0[0-9]+\Z)(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\Z")
NON_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF|nan|NaN|NAN)\Z")
WORDS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
NULLS = {"", "~", "null", "Null", "NULL"}


class SpecError(Exception):
    """A file that a user can mend: its name, line and key, what is wrong, what would be right."""

    def __init__(self, message: str, *, path: Path | str = "", line: int = 0, key: Key = ()) -> None:
        self.path, self.line, self.key, self.message = str(path), line, key, message
        place = ", ".join(filter(None, [self.path, f"line {line}" if line else ""]))
        shortened = message if len(message) < 600 else message[:600] + "..."
        text = ": ".join(filter(None, [place, ".".join(str(part) or "''" for part in key), shortened]))
        super().__init__(printable(text).replace("\n", "\\n"))


def printable(text: str) -> str:
    """``text`` with every character that could move a cursor or hide another written as its escape."""
    moving = {c for c in {*text} - {"\n"} if unicodedata.category(c).startswith(("C", "Zl", "Zp"))}
    return "".join(ascii(c)[1:-1] if c in moving else c for c in text)


def first_line(error: BaseException | None) -> str:
    """What an error says first; nothing where it says nothing, or cannot even say it."""
    try:
        said = str(error)
    except Exception:
        said = ""
    return (said.strip().splitlines() or [""])[0]


@dataclass(frozen=True)
class Document:
    """The data of a file, and the line of every key."""

    path: Path
    data: dict[str, Any]
    lines: Mapping[Key, int]
    text: str = ""
    """As it was read."""

    def error(self, key: Key, message: str) -> SpecError:
        """A SpecError at ``key``, or at the nearest thing around it that stands in the file."""
        at = key
        while at and at not in self.lines:
            at = at[:-1]
        return SpecError(message, path=self.path, line=self.lines.get(at, 1), key=key)

    @contextmanager
    def locating(self) -> Iterator[None]:
        """What turns out to be wrong with a key of this file is said with its line."""
        try:
            yield
        except SpecError as error:
            raise self.error(error.key, error.message) if error.key and not error.path else error from None

    def parse(self, model: type[Model]) -> Model:
        """The data as ``model``; raises SpecError for the first thing that does not fit."""
        try:
            return model.model_validate(self.data)
        except ValidationError as error:
            raise self.error(*_explain(error, self.data)) from None


class Frozen(BaseModel):
    """A part of a file: immutable, strictly typed, and misspelt keys are named."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
    elsewhere: ClassVar[Mapping[str, str]] = SWEEP_KEYS
    """Keys of other tools' files, and where they stand in ours."""

    @model_validator(mode="before")
    @classmethod
    def _know_every_key(cls, value: Any) -> Any:
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise at((), f"should be a mapping of keys to values, not {shown(value)}{cls._meant(value)}")
        for key in value:
            if key not in cls.model_fields:
                raise at((key,), f"unknown key; {where(cls.elsewhere, key, value[key], cls.model_fields)}")
        return value

    @classmethod
    def _meant(cls, value: Any) -> str:
        """A hint where a value stands for the section: it is that of its first key, or there is nothing to say."""
        first = next(iter(cls.model_fields))
        try:
            cls.model_validate({first: value})
            return f"; did you mean {shown({first: value})}?"
        except ValidationError:
            return "" if any(f.is_required() for f in cls.model_fields.values()) else "; {} takes the defaults"


def at(key: Key, message: str) -> PydanticCustomError:
    """The error of a validator, at a key below what it validates; raise it."""
    return PydanticCustomError("at", "{message}", {"message": message, "key": key})


def matching(pattern: str, rule: str) -> AfterValidator:
    """``Annotated[str, matching(...)]``: text of a form, whose ``rule`` is said where it has another one."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{rule}, not {quoted(value)}")
        return value

    return AfterValidator(check)


def _explain(error: ValidationError, data: Any) -> tuple[Key, str]:
    """The key and the sentence of the first thing that pydantic found wrong with the data of a file."""
    first = error.errors()[0]
    value, kind, context = first["input"], first["type"], first.get("ctx", {})
    key = (*first["loc"], *context["key"]) if kind == "at" else first["loc"]
    if kind == "missing":
        return key, "is missing"
    key = _written(key[:-1], data) + key[-1:] if kind == "at" else _written(key, data)
    if kind in ("at", "value_error"):
        return key, first["msg"].removeprefix("Value error, ")
    single = {"int_type": "whole number", "float_type": "number", "bool_type": "value", "literal_error": "value"}
    if kind in single and key[0] in SECTIONS and isinstance(value, (dict, list)) and as_range(value):
        fixed = "is fixed for all trials: " * (key[0] in ("train", "model", "data"))
        one = f"{fixed}write one {single[kind]}, not {shown(value)}"
        return key, f"{one}; ranges belong into space, and only schedules have them"
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        return key, f"unknown value {quoted(value)}; {did_you_mean(value, known, str(key[-1]))}"
    if kind == "bool_type":
        return key, f"is true or false, not {shown(value)}{_as_text(kind, value)}"
    if kind in ("too_short", "too_long"):
        bound = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        return key, f"needs {bound} values, not {len(value)}"
    message = first["msg"].removeprefix("Input ")
    message = message[:1].lower() + message[1:]
    if kind == "dict_type":
        message = "should be a mapping of keys to values"
    return key, f"{message}, not {shown(value)}{_as_text(kind, value)}"


def _written(key: Key, data: Any) -> Key:
    """As much of pydantic's path as stands in a file: it has words of its own in it, such as ``[key]``."""
    for n, part in enumerate(key):
        if not (part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int)):
            return key[:n]
        data = data[part]
    return key


def _as_text(kind: str, value: Any) -> str:
    """How a value is written that has the wrong type by its spelling alone; empty where that is not clear."""
    text = value.strip().lower() if isinstance(value, str) else ""
    meant = ""
    if kind == "string_type" and isinstance(value, (bool, int, float)):
        meant = f"'{shown(value)}'"
    elif kind == "bool_type":
        yes, no = ("yes", "on", "y", "true", "1"), ("no", "off", "n", "false", "0")
        word = text or str(value)
        meant = "true" if word in yes else "false" if word in no else ""
    elif kind.startswith(("int", "float")):
        meant = as_number(value, whole=kind.startswith("int"))
    elif kind == "list_type" and value is not None and not isinstance(value, dict):
        meant = f"[{shown(value)}]"
    return f"; write {meant}" if meant else ""


def read(path: Path | str) -> Document:
    """Read a YAML file; raises SpecError where it is missing, unreadable, too large, or uses what is refused."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise SpecError("cannot be read: it is no regular file", path=path)
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason, likely = getattr(error, "strerror", None) or error, Path("sweeps") / f"{path.name}.yaml"
        hint = f"; {likely} can" if likely.is_file() else ""
        raise SpecError(f"cannot be read: {reason}{hint}", path=path) from None
    if len(raw) > MAX_BYTES:
        raise SpecError(f"is larger than {MAX_BYTES // 1024} KiB; a file of settings is not", path=path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError("is not UTF-8 text", path=path, line=raw[: error.start].count(b"\n") + 1) from None
    try:
        _guard(text, path)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise SpecError(f"is not YAML: {error.problem}", path=path, line=mark.line + 1 if mark else 0) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        line = text[: getattr(error, "position", 0)].count("\n") + 1
        raise SpecError(f"is not YAML: {first_line(error)}", path=path, line=line) from None
    lines: dict[Key, int] = {}
    data = _value(node, (), lines, path) if node is not None else None
    if not isinstance(data, dict):
        raise SpecError("should be a mapping of keys to values", path=path, line=1)
    return Document(path, data, lines, text)


def _guard(text: str, path: Path) -> None:
    """Walk the events, which is iterative and cheap, before anything is built from them."""
    depth = 0
    for n, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if n > MAX_EVENTS:
            raise SpecError(f"has more than {MAX_EVENTS} values", path=path, line=line)
        if getattr(event, "anchor", None):  # an AliasEvent has one too
            raise SpecError("anchors and aliases (&, *) are not allowed: write the value out", path=path, line=line)
        if tag := getattr(event, "tag", None):
            raise SpecError(f"the tag {tag!r} is not allowed: quote the value if it is text", path=path, line=line)
        if isinstance(event, yaml.DocumentStartEvent) and event.tags:
            raise SpecError("directives (%TAG) are not allowed", path=path, line=line)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise SpecError(f"is nested deeper than {MAX_DEPTH}", path=path, line=line)


def _value(node: yaml.Node, key: Key, lines: dict[Key, int], path: Path) -> Any:
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            if not isinstance(name_node, yaml.ScalarNode) or not isinstance(_scalar(name_node, key, path), str):
                wrong = (
                    f"a key must be text, not {str(name_node.value)[:SHOWN]}: quote it"
                    if isinstance(name_node, yaml.ScalarNode)
                    else "a key must be text: quote it"
                )
                raise SpecError(f"{wrong}, or put a list into brackets", path=path, line=line, key=key)
            name = unicodedata.normalize("NFC", name_node.value)
            if (first := lines.get((*key, name))) is not None:
                raise SpecError(f"stands twice; first on line {first}", path=path, line=line, key=(*key, name))
            lines[(*key, name)] = line
            result[name] = _value(value_node, (*key, name), lines, path)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*key, i), lines, path) for i, item in enumerate(node.value)]
    return _scalar(cast("yaml.ScalarNode", node), key, path)


def _scalar(node: yaml.ScalarNode, key: Key, path: Path) -> Any:
    """A scalar after YAML 1.2's core schema: ``1e-3`` is a float; ``yes``, ``012`` and dates are text."""
    text, line = str(node.value), node.start_mark.line + 1
    if len(text) > MAX_SCALAR:
        raise SpecError(f"is longer than {MAX_SCALAR} characters", path=path, line=line, key=key)
    if printable(text) != text:
        raise SpecError("has a control or bidirectional character", path=path, line=line, key=key)
    if node.style is not None:  # quoted or block text
        return text
    if text in WORDS or text in NULLS:
        return WORDS.get(text)
    if INTEGER.match(text):
        return int(text)
    if NUMBER.match(text):
        number = float(text)
        if math.isinf(number):
            raise SpecError(f"{text} is too large for a number", path=path, line=line, key=key)
        return number
    if NON_FINITE.match(text):
        raise SpecError(f"{text} is not a finite number", path=path, line=line, key=key)
    return text


def no_control(values: Sequence[str]) -> None:
    """Raise SpecError if any command-line value carries control characters."""
    for value in values:
        if printable(value) != value or "\n" in value:
            raise SpecError(f"{value!r} has a control character")
