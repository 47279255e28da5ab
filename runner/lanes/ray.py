"""Lanes on a Ray cluster: each is an actor with a share of some machine."""

from __future__ import annotations

import importlib
import logging
import os
import re
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any

from ..files.document import SpecError, first_line
from .lane import Lanes
from .worker import Shared, set_up_worker


class RayExecutor(Executor):
    """A Ray actor as an executor with one worker. Its errors are those of any executor."""

    def __init__(self, resources: Mapping[str, float], shared: Any) -> None:
        ray: Any = importlib.import_module("ray")

        class Worker:
            def __init__(self, shared: Shared | None) -> None:
                set_up_worker(shared)

            def call(self, function: Callable[..., Any], *args: Any) -> Any:
                return function(*args)

        self._ray = ray
        self._actor = ray.remote(**resources)(Worker).remote(shared)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
        outer: Future[Any] = Future()

        def hand_on(inner: Future[Any]) -> None:
            error = inner.exception()
            if error is None:
                outer.set_result(inner.result())
            elif isinstance(error, self._ray.exceptions.RayTaskError):
                outer.set_exception(error.cause)  # what the function raised
            else:  # the actor or its node is gone
                outer.set_exception(BrokenExecutor(str(error)))

        self._actor.call.remote(fn, *args).future().add_done_callback(hand_on)
        return outer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        self._ray.kill(self._actor)


def ray_lanes(
    address: str,
    device: str,
    number: Callable[[int], int],
    shared: Shared | None,
    resources: Mapping[str, float | None],
    **given: Any,
) -> Lanes:
    """Lanes on a Ray cluster; arguments and errors as in ``open_lanes``, ``given`` is for ``Lanes``."""
    try:
        ray: Any = importlib.import_module("ray")
    except ModuleNotFoundError:
        raise SpecError("--ray needs Ray: pip install 'lr-sweep-runner[ray]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if match := re.fullmatch(r"(?:ray://)?([^:/]+):([0-9]{1,5})", address):  # Ray itself would wait for minutes
            socket.create_connection((match[1], int(match[2])), timeout=5).close()
        if not ray.is_initialized():
            local = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == "local" else {}
            # "local" itself is a cluster of its own; with None, Ray joins one that it finds
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (OSError, ValueError, RuntimeError) as error:
        raise SpecError(f"--ray {address}: {first_line(error)}") from None
    gpu = device.startswith("cuda")
    each = {"num_cpus": 1.0, "num_gpus": 1.0 if gpu else 0.0} | {k: v for k, v in resources.items() if v is not None}
    kinds = [(resource, each[k]) for resource, k in (("CPU", "num_cpus"), ("GPU", "num_gpus")) if each[k] > 0]

    def capacity() -> int:
        have = ray.cluster_resources()
        return min((int(have.get(resource, 0) // share) for resource, share in kinds), default=0)

    if capacity() < 1:
        needs = " and ".join(f"{k} {v:g}" for k, v in each.items() if v)
        raise SpecError(f"--ray {address}: the cluster has no place for an actor with {needs}")
    stored = ray.put(shared)  # one copy for each node, which all of its workers read in place
    return Lanes(
        ["cuda" if gpu else "cpu"] * number(capacity()), lambda: RayExecutor(each, stored), capacity=capacity, **given
    )
