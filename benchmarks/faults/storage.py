"""A disk that is full, a database that is locked, a folder that cannot be written to, a study that is deleted."""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
import victims


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Every case ends with a sentence and goes on with the same command, to the table of an undisturbed sweep."""
    wrong: list[str] = []
    cases: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as root:
        expected = victims.undisturbed(Path(root))

        def case(
            name: str, folder: Path, code: int | None, seen: dict[tuple[Any, ...], str], wanted: set[int]
        ) -> None:
            """How it ended, and how it goes on."""
            log = (folder / "log").read_text() if (folder / "log").exists() else ""
            said = [line for line in log.splitlines() if line.startswith("error: ")]
            cases[name] = f"exit {code}: {said[-1].replace(str(folder), '...') if said else ''}"
            if code not in wanted or (code != 0 and not said) or "Traceback" in log:
                wrong.append(f"{name}: ended with {code}: {log[-1500:]}")
            wrong.extend(
                f"{name}: {text}" for text in victims.finish(folder) or victims.compared(folder, expected, seen)
            )

        with small_disk(Path(root) / "disk") as disk:
            for free in [0, 16, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072] if disk else []:
                folder = victims.folder_of_a_sweep(disk, checkpoint_seconds=0)
                fill(folder / "ballast", free * 1024)
                with elsewhere(folder, logs := Path(root) / f"full-{free}"):
                    code = victims.wait(victims.begin(folder))
                seen = victims.committed(folder)
                (folder / "ballast").unlink()
                shutil.copy(logs, folder / "log")
                case(f"disk full after {free} KiB", folder, code, seen, {0, 2, 4})
                shutil.rmtree(folder)
            if disk:
                folder = victims.folder_of_a_sweep(disk)
                with elsewhere(folder, logs := Path(root) / "read-only"):
                    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
                    code = victims.wait(victims.begin(folder))
                    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
                shutil.copy(logs, folder / "log")
                case("the folder is read-only", folder, code, {}, {2})
                folder = victims.folder_of_a_sweep(disk)
                pid = victims.begun(folder)
                results = folder / "results"
                subprocess.run(["mount", "--bind", results, results], check=True)
                subprocess.run(["mount", "-o", "remount,ro,bind", results], check=True)
                code = victims.wait(pid)
                subprocess.run(["umount", results], check=True)
                case("the results become read-only", folder, code, victims.committed(folder), {4})
        for seconds in (5, 120):  # the sweep gives up after a minute, and the attempt that it is at
            folder, code, seen = locked(Path(root), seconds)
            case(f"locked for {seconds} s", folder, code, seen, {0} if seconds < 60 else {4})
        folder = victims.folder_of_a_sweep(Path(root))
        pid = victims.begun(folder)
        url = f"sqlite:///{folder}/optuna.db"
        optuna.delete_study(study_name="tiny", storage=url)
        code = victims.wait(pid)
        for name in set(optuna.get_all_study_names(url)):
            optuna.delete_study(study_name=name, storage=url)
        (folder / "mlflow.db").unlink()
        shutil.copy(victims.template(), folder / "mlflow.db")
        case("the study is deleted", folder, code, {}, {4})
    return {"cases": cases, "wrong": wrong}


def locked(root: Path, seconds: float) -> tuple[Path, int | None, dict[tuple[Any, ...], str]]:
    """A sweep whose database another process locks for so long: its folder, its exit code, what was on record."""
    folder = victims.folder_of_a_sweep(root)
    pid = victims.begun(folder)
    with closing(sqlite3.connect(folder / "optuna.db", timeout=60, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        seen, started, code = victims.committed(folder), time.monotonic(), None
        while time.monotonic() < started + seconds and code is None:
            done, status = os.waitpid(pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if done else None
            time.sleep(0.1)
        database.execute("ROLLBACK")
    if code == 0:  # it had nothing left to write when the lock came
        return locked(root, seconds)
    return folder, victims.wait(pid) if code is None else code, seen


@contextmanager
def elsewhere(folder: Path, path: Path) -> Iterator[None]:
    """The log of what runs inside goes where there is room for it."""
    path.touch()
    (folder / "log").symlink_to(path)
    yield
    (folder / "log").unlink()


@contextmanager
def small_disk(path: Path, megabytes: int = 24) -> Iterator[Path | None]:
    """A file system of its own; None where this user may not mount one."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", path], capture_output=True, check=False
    )
    if done.returncode:
        print("no disk of its own can be mounted here: these cases are left out")
        yield None
        return
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=False)


def fill(path: Path, free: int) -> None:
    """Take all of the file system's room but ``free`` bytes."""
    with path.open("wb") as file:
        room = os.statvfs(path.parent)
        file.truncate(0)
        left = room.f_bavail * room.f_frsize - free
        while left > 0:
            left -= file.write(b"\0" * min(left, 1 << 20))
