"""JSON on disk: one reader for all of it, and a seal that shows whether an object is as it was written.

A seal is a SHA-256 without a key. It notices accidents (a damaged disk, a copy that was cut off, an edit), not an
adversary, who can write a new seal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from bmtpt.errors import ArtifactError, BmtptError, cannot_read

SEAL = "sha256"
LINE_DIGITS = 16
"""Hexadecimal digits of a seal at least, and of the seal of one line among many."""


def parse_json(content: str | bytes) -> Any:
    """Return what JSON holds; raise a ValueError if it is no JSON, no UTF-8, or nested over 200 deep.

    Python's own parser raises a RecursionError for deep nesting, and accepts nesting on which later code fails.

    >>> parse_json('{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """
    try:
        return from_json(content)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error


def read_json(path: Path, error: type[BmtptError] = ArtifactError) -> Any:
    """Return what a JSON file holds; raise an error of a kind if it cannot be read or is not JSON."""
    try:
        return parse_json(path.read_bytes())
    except OSError as cause:
        raise error(cannot_read(path, cause)) from cause
    except ValueError as cause:
        raise error(f"{path} is {cause}: it was cut off or edited; copy it again") from cause


def field_problem(error: ValidationError) -> str:
    """Name the first field that a pydantic model refuses, and why."""
    first = error.errors(include_url=False)[0]
    field, reason = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return f"{field}: {reason[:1].lower()}{reason[1:]}" if field else reason


def digest(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON object, whatever the order of its keys and its white space.

    >>> digest({"a": 1, "b": [2.5]}) == digest({"b": [2.5], "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(values: Mapping[str, Any], digits: int = 64) -> dict[str, Any]:
    """Return a JSON-able object with its seal, of which `unsealed` is the inverse."""
    plain = parse_json(json.dumps(values))  # as it will be read: tuples are lists, keys are text
    return {**plain, SEAL: digest(plain)[:digits]}


def unsealed(found: dict[str, Any]) -> dict[str, Any]:
    """Return a sealed object without its seal, or one that never had a seal as it is.

    Raises:
        ValueError: It is not as it was sealed.
    """
    # The seal is the last key. If that is called otherwise and still fits, what was damaged is its name.
    name = SEAL if SEAL in found else next(reversed(found), SEAL)
    values = {key: value for key, value in found.items() if key != name}
    noted = found.get(name)
    fits = isinstance(noted, str) and len(noted) >= LINE_DIGITS and digest(values).startswith(noted)
    if fits is (SEAL in found):
        return values if fits else found
    raise ValueError("not as it was written (its SHA-256 differs)")


def read_sealed(path: Path, error: type[BmtptError] = ArtifactError) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if there is no file; one without a seal counts as it is.

    Raises an error of a kind if it cannot be read, is no object, or is not as it was sealed.
    """
    if not path.is_file():
        return None
    try:
        found = read_json(path, error)
        if isinstance(found, dict):
            return unsealed(found)
        raise ValueError("not a JSON object")
    except ValueError as cause:
        raise error(f"{path} is {cause}; delete it if you changed it, or copy it again") from cause


def sealed_line(values: Mapping[str, Any]) -> str:
    """Return a JSON-able object as a sealed line of a JSON-lines file, of which `line_values` is the inverse."""
    return json.dumps(sealed(values, LINE_DIGITS), ensure_ascii=False, separators=(",", ":")) + "\n"


def line_values(line: str) -> dict[str, Any]:
    """Return the object on a line of a JSON-lines file; one without a seal counts as it is (older versions wrote none).

    Raises:
        ValueError: It is no JSON object, or not as it was sealed.
    """
    found = parse_json(line)
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return unsealed(found)
