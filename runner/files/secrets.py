"""Passwords and tokens: taken out of whatever is shown or kept, and refused in files."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import quote, unquote

from .document import Document

SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD")
"""Environment variables that are secrets; the passwords in these are secrets too:"""
NAMES = r"pass|password|passwd|pwd|token|secret|(?:api|access)[_-]?key|signature|sig|auth|credentials?"
NAMED = rf"(?i)([\w-]*(?:{NAMES}))=('[^']*'|\"[^\"]*\"|[^&\s'\"]+)"
"""A secret by its name, as in a query or in PostgreSQL's key=value."""
ADDRESSES = ("MLFLOW_TRACKING_URI", "RUNNER_STUDY_STORAGE", "MLFLOW_BACKEND_STORE_URI")


def redacted(uri: str) -> str:
    """``uri``, or a text with one in it, without the password that may stand there, or that the environment has."""
    secrets = [os.environ.get(name, "") for name in SECRETS]
    for address in (os.environ.get(name, "") for name in ADDRESSES):
        secrets += re.findall(r"://[^/@]*?:([^/]*)@", address)
        secrets += re.findall(r"https?://([^/@:]+)@", address)  # a token in the user's place
        secrets += [value.strip("'\"") for _, value in re.findall(NAMED, address)]
    for secret in {form for value in secrets if len(value) >= 4 for form in (value, unquote(value), quote(value))}:
        uri = uri.replace(secret, "***")
    return _masked(uri)


def _masked(uri: str) -> str:
    """``uri`` without what has the form of a password."""
    uri = re.sub(r"://([^\s:/@]*):\S*@", r"://\1:***@", uri)
    uri = re.sub(r"(https?://)[^\s:/@]+@", r"\1***@", uri)
    return re.sub(NAMED, r"\1=***", uri)


def refuse_secrets(document: Document, advice: str) -> None:
    """Raise SpecError, with ``advice``, where a password stands: files are committed, and kept with every sweep."""

    def walk(value: Any, key: tuple[str | int, ...]) -> None:
        if isinstance(value, (dict, list)):
            for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
                walk(name, key)
                walk(inner, (*key, name))
        elif isinstance(value, str) and _masked(value) != value:
            raise document.error(key, f"holds a password or a token; {advice}")

    walk(document.data, ())
