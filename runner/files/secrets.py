"""Passwords and tokens: taken out of whatever is shown or kept, and refused in files."""

from __future__ import annotations

import base64
import os
import re
from typing import Any
from urllib.parse import quote, unquote

from .document import Document, SpecError

SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD")
"""Environment variables that are secrets; the passwords in these are secrets too:"""
WORDS = r"password|passwd|passphrase|pwd|token|secret|(?:api|access|secret|private)[_-]?key|credentials?"
NAMES = rf"pass|{WORDS}|signature|sig|auth|authorization|bearer|cookie"
NAMED = re.compile(rf"({NAMES})=('[^']*'|\"[^\"]*\"|[^&\s'\"]+)", re.IGNORECASE)
"""A secret by its name, as in a query or in PostgreSQL's key=value."""
SAID = re.compile(rf"({WORDS})([\"']?\s*:\s*[\"']?)([^\s\"',}}]{{0,100}}?\d[^\s\"',}}]{{0,200}})", re.IGNORECASE)
"""The same in the form of YAML, JSON or a header. A word without a digit may be prose."""
KNOWN = re.compile(r"\b(gh[opsu]_|github_pat_|glpat-|hf_|sk-|xox[abp]-|AKIA|dapi)[A-Za-z0-9_-]{12,200}")
"""How tokens of well-known services begin."""
COOKIE = re.compile(r"\b((?:set-)?cookie)\s*:[^\n]*", re.IGNORECASE)
KEY = re.compile(rf"(.*[_.-])?({NAMES})", re.IGNORECASE)
"""What a key is called whose value is a secret."""
HEADER = re.compile(r"\b(Basic|Bearer)(\s+|%20)([\w+/=.~-]{8,})", re.IGNORECASE)
"""What a request says of who sends it."""
LONGEST = 2_000
"""Characters without a space beyond which a word is not looked through, and not shown: no address is so long."""
ADDRESSES = ("MLFLOW_TRACKING_URI", "RUNNER_STUDY_STORAGE", "MLFLOW_BACKEND_STORE_URI")


def redacted(text: str) -> str:
    """``text`` without the passwords and tokens that may stand there, or that the environment has. It takes a time in
    proportion to the length, whatever somebody else has put into it."""
    words = (word if len(word) < LONGEST else f"[{len(word)} characters]" for word in re.split(r"(\s+)", text))
    text = "".join(words)
    secrets = [os.environ.get(name, "") for name in SECRETS]
    for address in (os.environ.get(name, "") for name in ADDRESSES):
        secrets += re.findall(r"://[^/@]*?:([^/]*)@", address)
        secrets += re.findall(r"https?://([^/@:]+)@", address)  # a token in the user's place
        secrets += [value.strip("'\"") for _, value in NAMED.findall(address)]
    forms = {form for value in secrets if len(value) >= 4 for form in (value, unquote(value), quote(value))}
    for secret in sorted(forms, key=len, reverse=True):
        text = text.replace(secret, "***")
    return _masked(text)


def _masked(text: str) -> str:
    """``text`` without what has the form of a password."""
    text = re.sub(r"(?<!\S)\S*://\S*", _address, text)
    text = re.sub(r"(https?://)[^\s:/@]{1,256}@", r"\1***@", text)
    text = COOKIE.sub(r"\1: ***", HEADER.sub(_header, NAMED.sub(r"\1=***", text)))
    return KNOWN.sub(r"\1***", SAID.sub(r"\1\2***", text))


def _names_a_secret(key: object) -> bool:
    """Whether what a key is called says that its value is one: ``db_password``, ``dbPassword``, ``secret_key``."""
    return KEY.fullmatch(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(key))) is not None


def _address(found: re.Match[str]) -> str:
    """A word with an address in it, without what stands between the user's name and the last @."""
    word, at = found[0], found[0].rfind("@")
    user = re.search("://[^:/@]{0,256}:", word[: max(at, 0)])
    return f"{word[: user.end()]}***{word[at:]}" if user else word


def _header(found: re.Match[str]) -> str:
    """A header's credentials masked; after the word Basic only what is base64 of ``user:password``."""
    kind, space, value = found.groups()
    if kind.lower() == "basic":
        try:
            if b":" not in base64.b64decode(value + "=" * (-len(value) % 4), validate=True):
                return found[0]
        except ValueError:
            return found[0]
    elif not re.search(r"[\d.=_~+/-]", value):  # a word, such as "bearer instruments"
        return found[0]
    return f"{kind}{space}***"


def refuse_secrets(document: Document, advice: str) -> None:
    """Raise SpecError, with ``advice``, where a password stands, be it in a comment: files are committed, and kept
    with every sweep."""

    def walk(value: Any, key: tuple[str | int, ...]) -> None:
        if isinstance(value, (dict, list)):
            for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
                walk(name, key)
                walk(inner, (*key, name))
        elif isinstance(value, str) and (_masked(value) != value or (value and key and _names_a_secret(key[-1]))):
            raise document.error(key, f"holds a password or a token; {advice}")

    walk(document.data, ())
    for number, line in enumerate(document.text.splitlines(), 1):
        if _masked(line) != line:
            raise SpecError(f"holds a password or a token; {advice}", path=document.path, line=number)
