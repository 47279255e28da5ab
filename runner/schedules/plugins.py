"""A user's own functions, by name: an installed entry point, or a dotted path that the user permits; no other one."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Sequence
from functools import cache

from .zoo import Function, ScheduleError

PLUGINS = "runner.schedules"
"""The entry-point group under which an installed package names its own schedule functions."""


def find_function(name: str, allow: Sequence[str]) -> Function:
    """The function of an installed entry point, or of a dotted path under an allowed prefix; raises ScheduleError
    where it is neither, or cannot be imported."""
    if (entry := _installed(tuple(sys.path)).get(name)) is not None:
        loaded: Function = entry.load()
        return loaded
    module, attribute = split_path(name)
    if not all(part.isidentifier() for part in f"{module}.{attribute}".strip(".").split(".")):
        wrong = (
            f"{name!r} is no name of a function: write it into a module of yours, and name it as in my_package.lrs"
        )
        raise ScheduleError(["function"], wrong)

    def allowed(path: str) -> bool:
        return any(f"{path}.".startswith(prefix.rstrip(".") + ".") for prefix in allow if prefix.strip("."))

    if not module or not allowed(module):
        unnamed = f"your own code is named with its module, as in my_package.{name}"
        hint = f"to use your own code, run with --allow-plugin {module.split('.')[0]}." if module else unnamed
        raise ScheduleError(["function"], f"{name!r} is no plugin (an installed entry point of {PLUGINS!r}); {hint}")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever its author's module does when it is imported
        absent = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        hint = "; run where it lies, install it, or name its folder in PYTHONPATH" * absent
        message = f"{name!r} cannot be imported: {type(error).__name__}: {error}{hint}"
        raise ScheduleError(["function"], message) from None
    if not callable(function) or not allowed(getattr(function, "__module__", "") or ""):
        raise ScheduleError(["function"], f"{name!r} is not a function of an allowed package")
    return function  # type: ignore[no-any-return]


@cache
def _installed(_path: tuple[str, ...]) -> dict[str, importlib.metadata.EntryPoint]:
    """The installed plugins by name, looked for once on a path: that reads a file of every package."""
    return {entry.name: entry for entry in reversed(list(importlib.metadata.entry_points(group=PLUGINS)))}


def split_path(name: str) -> tuple[str, str]:
    """The module of a dotted path and the name in it; no module where it is the name of an entry point."""
    module, _, attribute = name.replace(":", ".").rpartition(".")
    return module, attribute
