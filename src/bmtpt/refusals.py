"""Turn pydantic's report on settings into one sentence that names the option, the value and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from bmtpt.errors import nearest


def in_one_sentence(error: ValidationError, kind: type[BaseModel], where: str | None) -> str:
    """Return what is wrong with the first refused option of a settings class, and what is allowed.

    Args:
        where: The file that the values are from.
    """
    what = error.errors()[0]
    owner, path = _option(kind, what["loc"])
    option = ".".join(path)
    prefix = f"{where}: " if where else ""
    if not path:
        return prefix + _reason(what)
    if what["type"] in ("extra_forbidden", "unexpected_keyword_argument", "invalid_key"):
        return f"{prefix}unknown option '{option}'; {nearest(path[-1], _fields(owner))}"
    if what["type"] == "missing":
        return f"{prefix}option '{option}' is missing"
    inside = what["loc"][len(path) :]
    if what["type"] == "literal_error" and all(isinstance(part, int) for part in inside):
        expected = what["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{prefix}option '{option}' cannot be {what['input']!r}; {nearest(str(what['input']), expected)}"
    # A union reports one reason for each of its types.
    same_place = [item for item in error.errors() if _place(item, len(path)) == _place(what, len(path))]
    reasons = dict.fromkeys(map(_reason, same_place))
    return f"{prefix}option '{option}' cannot be {what['input']!r}: {' or '.join(reasons)}"


def _option(kind: Any, location: tuple[int | str, ...]) -> tuple[Any, list[str]]:
    """Follow pydantic's location through nested settings; return the class that owns the option, and its path."""
    owner, path = kind, list[str]()
    for part in location:
        if kind is None:
            break
        owner = kind
        path.append(str(part))
        field = _fields(kind).get(str(part))
        inner = getattr(field, "annotation", None)
        kind = inner if isinstance(inner, type) and _fields(inner) else None
    return owner, path


def _place(item: Any, depth: int) -> tuple[Any, int]:
    return item["loc"][:depth], len(item["loc"])


def _fields(kind: Any) -> Mapping[str, Any]:
    """Fields of a settings class, which may be a pydantic model or a plain dataclass."""
    found: Mapping[str, Any] = getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", {})
    return found


def _reason(item: Any) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    return re.sub(r"^(Input|String|Tuple|List) should", "it must", message)
