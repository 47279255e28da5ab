"""Lanes on a Ray cluster: each is an actor with a share of some machine."""

from __future__ import annotations

import importlib
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import TYPE_CHECKING, Any

from ..files.document import SpecError, first_line
from .lane import Lanes
from .stop import ClusterError, Stop
from .worker import Shared, set_up_worker

if TYPE_CHECKING:
    from ..training.checkpoint import Checkpoints

ABSENCE = 5.0
"""Seconds for which what is gone may come back."""

NO_RAY = "--ray needs Ray: pip install 'lr-sweep-runner[ray]'"


class Cluster:
    """A Ray cluster, which may go away: asked something then, Ray waits a minute, and ends this process with 1."""

    def __init__(self, ray: Any, address: str, each: Mapping[str, float]) -> None:
        """``each``: what an actor takes, ``num_cpus`` and ``num_gpus``."""
        self.ray, here = ray, ray.get_runtime_context()
        head = re.fullmatch(r"ray://(.+):([0-9]{1,5})", address) or re.fullmatch(
            r"(.+):([0-9]{1,5})", here.gcs_address
        )
        self._peers = {"the head node of the Ray cluster": (head[1].strip("[]"), int(head[2]))} if head else {}
        for node in ray.nodes():
            if node["NodeID"] == here.get_node_id():
                peer = node["NodeManagerAddress"], int(node["NodeManagerPort"])
                self._peers["Ray's process on this machine (the raylet)"] = peer
        self._kinds = [(r, each[k]) for r, k in (("CPU", "num_cpus"), ("GPU", "num_gpus")) if each[k] > 0]
        self._answered = time.monotonic()

    def check(self) -> None:
        """Raise ClusterError where a process of the cluster, without which there is none, is gone."""
        missing = self._missing()
        if missing is None:
            self._answered = time.monotonic()
        elif time.monotonic() - self._answered > ABSENCE:
            raise ClusterError(f"{missing} has not answered for {ABSENCE:.0f} s")

    def _missing(self) -> str | None:
        """Which of its processes takes no connections."""
        for name, peer in self._peers.items():
            try:
                socket.create_connection(peer, timeout=2).close()
            except OSError:
                return name
        return None

    def capacity(self) -> int | None:
        """How many actors it has room for, running ones included; None while it does not answer."""
        if self._missing():
            return None
        have = self.ray.cluster_resources()
        return min((int(have.get(resource, 0) // share) for resource, share in self._kinds), default=0)

    def end(self, actor: Any) -> None:
        """End an actor; where nobody is there to be asked, it ends with this process."""
        if not self._missing():
            self.ray.kill(actor)


class RayExecutor(Executor):
    """A Ray actor as an executor with one worker. Its errors are those of any executor."""

    def __init__(self, cluster: Cluster, resources: Mapping[str, float], shared: Any, own_code: bool) -> None:
        class Worker:
            def __init__(self, shared: Shared | None) -> None:
                set_up_worker(shared, own_code)

            def call(self, function: Callable[..., Any], *args: Any) -> Any:
                return function(*args)

        self._cluster = cluster
        self._actor = cluster.ray.remote(**resources)(Worker).remote(shared)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
        outer: Future[Any] = Future()

        def hand_on(inner: Future[Any]) -> None:
            error = inner.exception()
            if error is None:
                outer.set_result(inner.result())
            elif isinstance(error, self._cluster.ray.exceptions.RayTaskError):
                outer.set_exception(error.cause)  # what the function raised
            else:  # the actor or its node is gone
                outer.set_exception(BrokenExecutor(str(error)))

        self._actor.call.remote(fn, *args).future().add_done_callback(hand_on)
        return outer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        self._cluster.end(self._actor)

    def kill(self) -> None:
        """End the actor now; what it still had to do raises BrokenExecutor."""
        self._cluster.end(self._actor)


def ray_lanes(
    address: str,
    device: str,
    number: Callable[[int], int],
    shared: Shared | None,
    resources: Mapping[str, float | None],
    *,
    own_code: bool = False,
    stop: Stop,
    checkpoints: Checkpoints,
) -> Lanes:
    """Lanes on a Ray cluster; arguments and errors as in ``open_lanes``."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # under uv, Ray would pack this folder, data and all
    try:
        ray: Any = importlib.import_module("ray")
    except ModuleNotFoundError:
        raise SpecError(NO_RAY) from None
    try:
        if match := re.fullmatch(r"(?:ray://)?([^:/]+):([0-9]{1,5})", address):  # Ray itself would wait for minutes
            socket.create_connection((match[1], int(match[2])), timeout=5).close()
        if not ray.is_initialized():
            local = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == "local" else {}
            # "local" itself is a cluster of its own; with None, Ray joins one that it finds
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (OSError, ValueError, RuntimeError) as error:
        raise SpecError(f"--ray {address}: {first_line(error)}") from None
    stop.take_back()  # Ray has a handler of its own for SIGTERM, which aborts
    gpu = device.startswith("cuda")
    each = {"num_cpus": 1.0, "num_gpus": 1.0 if gpu else 0.0} | {k: v for k, v in resources.items() if v is not None}
    cluster = Cluster(ray, address, each)
    room = cluster.capacity() or 0
    if room < 1:
        needs = " and ".join(f"{k} {v:g}" for k, v in each.items() if v)
        raise SpecError(f"--ray {address}: the cluster has no place for an actor with {needs}")
    stored = ray.put(shared)  # one copy for each node, which all of its workers read in place
    devices = ["cuda" if gpu else "cpu"] * number(room)
    return Lanes(
        devices,
        lambda _: RayExecutor(cluster, each, stored, own_code),
        stop,
        checkpoints,
        cluster.capacity,
        cluster.check,
    )
