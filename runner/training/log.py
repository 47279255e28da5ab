"""What a training of one's own prints: its log, the end of which is shown, and which does not grow without end."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ..files.document import printable
from ..files.secrets import redacted

TAIL = 10
"""The last lines of what a training printed, which are kept where it fails."""
LOGGED = 2**20
"""Bytes at the beginning and at the end of a trial's log that are kept of a longer one."""


def tail(log: Path, lines: int = TAIL) -> list[str]:
    """The last lines of a log, as they may be shown."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2**16))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [printable(redacted(line.rstrip()))[:300] for line in text.splitlines() if line.strip()][-lines:]


def shorten(log: Path) -> None:
    """Cut out the middle of a log that has become long; who writes to it goes on at its end."""
    with contextlib.suppress(OSError), log.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size > 4 * LOGGED:
            file.seek(size - LOGGED)
            end = file.read()
            file.seek(LOGGED)
            file.write(b"\n... %d bytes are left out here ...\n" % (size - 2 * LOGGED) + end)
            file.truncate()
