"""Turn a settings class into command-line options, so that each option is described in one place only."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo


def with_settings(kind: type[BaseModel], *, without: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Add one option per field of ``kind`` to a command, handed over as the dictionary ``options``.

    Every value stays None unless the user gives it, and stays text: the settings class checks it, so a wrong value gets
    the same sentence from the command line as from YAML.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        hints = get_type_hints(command, include_extras=True)
        own = [
            parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in inspect.signature(command).parameters.items()
            if name != "options"
        ]
        docs = field_docs(kind)
        fields = {name: field for name, field in kind.model_fields.items() if name not in without}
        added = [_parameter(name, field, docs.get(name, "")) for name, field in fields.items()]

        def wrapped(**values: Any) -> Any:
            options = {name: _value(values.pop(name)) for name in fields}
            return command(**values, options=options)

        wrapped.__name__ = command.__name__
        wrapped.__doc__ = command.__doc__
        wrapped.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in [*own, *added]}
        return wrapped

    return decorate


def field_docs(kind: type[BaseModel]) -> dict[str, str]:
    """Return the description of each field from the "Attributes:" sections of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        section = (inspect.getdoc(base) or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE):
            found[name] = " ".join(text.split())
    return found


def _parameter(name: str, field: FieldInfo, doc: str) -> inspect.Parameter:
    option = name.replace("_", "-")
    default = "" if field.is_required() or field.default is None else f" [default: {_shown(field.default)}]"
    text = (doc.replace("[", "(").replace("]", ")") + default.replace("[", "\\[")).strip()
    if field.annotation is bool:
        annotation: Any = Annotated[bool | None, typer.Option(f"--{option}/--no-{option}", help=text)]
    elif _is_list(field):
        annotation = Annotated[list[str] | None, typer.Option(f"--{option}", help=text, metavar="NAME")]
    else:
        annotation = Annotated[str | None, typer.Option(f"--{option}", help=text, metavar="VALUE")]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _is_list(field: FieldInfo) -> bool:
    return str(field.annotation).startswith("tuple[")


def _shown(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default).lower()


def _value(value: Any) -> Any:
    """An empty list means that the option was not given; `none` is YAML's null."""
    if isinstance(value, list):
        return tuple(part for item in value for part in item.split(",")) or None
    return value
