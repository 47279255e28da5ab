"""What every result file says of where it was measured, and how it is written."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from runner.files.images import cores
from runner.lanes import open as opening
from runner.lanes.lane import Lanes
from runner.lanes.stop import Stop
from runner.training.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"


def open_lanes(*args: Any, **kwargs: Any) -> Lanes:
    """Lanes that nobody stops, and of whose trials nothing is kept."""
    return opening.open_lanes(*args, stop=Stop(), checkpoints=Checkpoints(ROOT / "unused", math.inf, print), **kwargs)


def machine() -> dict[str, Any]:
    """Date, commit (with ``+`` where the tree differed from it), processor, what it computes in, versions.

    A processor without AVX-512 says so in its name, and one with AMX: ratios of one are not those of the other. Cores
    are those that this process may use (``taskset -c 0,1`` makes two of many).
    """
    commit = _git("rev-parse", "--short", "HEAD") + "+" * bool(_git("status", "--porcelain", "--", ":/runner"))
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    kind = " (AMX)" if "amx_bf16" in flags else " (AVX2)" if "avx2" in flags and "avx512f" not in flags else ""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit,
        "cpu": (cpu or platform.machine()) + kind,
        "cores": cores(),
        "bf16": [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "torchvision", "optuna", "mlflow")},
    }


def result_file(folder: Path, what: str, device: str) -> Path:
    """Where what was measured on a device is written: the name says which processor it is."""
    here = machine()
    name = here["gpu"] if device.startswith("cuda") else here["cpu"]
    return folder / f"{what}-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def environment() -> dict[str, str]:
    """For a process that is begun elsewhere: this one's, in which the package is found as it is here."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes, and every value in the order in which it was measured."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "all": list(values)}


def save(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result file: the machine first, then what was measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**machine(), **result}, indent=1) + "\n")


def _git(*args: str) -> str:
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, check=False, cwd=RESULTS.parent)
    except OSError:  # no git here
        return ""
    return done.stdout.strip()
