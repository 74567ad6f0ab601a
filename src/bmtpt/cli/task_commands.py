"""`bmtpt tasks`: list, show and check tasks."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent
from typing import Annotated

import typer

from bmtpt.cli.completion import complete_backbone, complete_data, complete_task
from bmtpt.cli.console import columns, print_json, say, show_fact
from bmtpt.cli.options import Data, Json
from bmtpt.errors import SettingsError
from bmtpt.report.terminal import folded


def list_tasks(
    context: typer.Context,
    folder: Annotated[Path | None, typer.Option("--dir", help="Also list the task files (*.yaml) here.")] = None,
    as_json: Json = False,
) -> None:
    """List the tasks: rows (train / select / test), metrics (* headline), where from, template → labels."""
    if context.invoked_subcommand:
        return
    from bmtpt.tasks import builtin_tasks, describe
    from bmtpt.tasks.check import task_record

    if folder and not folder.is_dir():
        raise SettingsError(f"there is no folder {folder}; --dir names one with task files (*.yaml)")
    own = sorted(folder.glob("*.yaml")) if folder else []
    tasks: list[str | Path] = [*builtin_tasks(), *own]
    for task in tasks:
        if as_json:
            print_json(task_record(task))
            continue
        facts = describe(task)
        show_fact(facts["name"], f"rows {facts['rows']}; metrics {facts['metrics']}; from {facts['data']}")
        say(indent(folded(f"{facts['text']} → {facts['labels']}", columns() - 4), "    "))


def show_task(
    name: Annotated[
        str, typer.Argument(help="A task's name, or the path of its YAML file.", autocompletion=complete_task)
    ],
    rows: Annotated[int, typer.Option("--rows", min=1, help="Examples to print.")] = 3,
    data: Data = "hub",
    backbone: Annotated[
        str, typer.Option("--backbone", help="Whose tokenizer counts tokens.", autocompletion=complete_backbone)
    ] = "offline",
) -> None:
    """Print a task's text-to-text examples and the percentiles of their length in tokens."""
    from bmtpt.backbone.model.load import load_tokenizer
    from bmtpt.tasks import load_data, load_task
    from bmtpt.tasks.check import token_percentiles

    loaded = load_data(load_task(name), data)
    tokenizer = load_tokenizer(backbone)
    say(f"{loaded.task.name}: rows are '{loaded.status}'")
    say(f"train {len(loaded.train):,}, select {len(loaded.select):,}, test {len(loaded.test):,}")
    for example in loaded.train[:rows]:
        say(f"\n{example.text}\n  → {example.target}")
    percentiles = token_percentiles(loaded.train, tokenizer)
    shown = ", ".join(f"{share} % ≤ {length}" for share, length in percentiles.items())
    say(f"\ntokens of the text ({backbone}): {shown}; the task's limit is {loaded.task.max_length}")


def check_task(
    file: Annotated[Path, typer.Argument(help="A task's YAML file.")],
    data: Annotated[
        str | None,
        typer.Option("--data", help="hub, offline or a folder, if not its own files.", autocompletion=complete_data),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", help="Also count tokens, with its tokenizer.", autocompletion=complete_backbone),
    ] = None,
) -> None:
    """Validate a task file and every row it leads to; count the rows of each label in each part."""
    from bmtpt.backbone.model.load import load_tokenizer
    from bmtpt.tasks.check import WrongRowsError, check_file

    try:
        lines = check_file(file, data, load_tokenizer(backbone) if backbone else None)
    except WrongRowsError as error:
        for line in error.listed:
            say(line)
        raise
    for line in lines:
        say(line)
