"""`bmtpt lm-eval`: a prompt in lm-evaluation-harness; `bmtpt tasks export`: a task as its YAML."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from bmtpt.cli.common import load_backbone
from bmtpt.cli.completion import complete_task
from bmtpt.cli.console import doing, say, show_table
from bmtpt.cli.options import (
    Data,
    Defaults,
    Device,
    Json,
    OtherBackbone,
    PrecisionOption,
    PromptFolder,
    Split,
    SplitOption,
    execution_of,
    require_one_of,
)


def lm_eval(
    prompt: PromptFolder,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="The harness's own task, which may need the hub; default: the prompt's, its rows."),
    ] = None,
    data: Data = "hub",
    split: SplitOption = "test",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Take this many first rows.")] = None,
    as_json: Json = False,
    backbone: OtherBackbone = None,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    config: Defaults = None,
) -> None:
    """Score a prompt with lm-evaluation-harness: on its own task's rows as evaluate does, or on the harness's tasks."""
    require_one_of("--split", split, Split)
    from bmtpt.artifacts.saved import Prompt
    from bmtpt.lm_eval import PromptLM, require_harness, write_task
    from bmtpt.report.table import Table
    from bmtpt.tasks import load_data, saved_task

    require_harness()
    loaded = Prompt.load(prompt)
    rows = None if task else load_data(saved_task(loaded.card.task_definition), data)
    model = load_backbone(backbone or loaded.card.backbone.name, execution_of(device, precision))
    import lm_eval as harness
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder, doing("scoring with lm-evaluation-harness"):
        tasks = [write_task(rows, folder, split=split)] if rows else task
        found = harness.simple_evaluate(
            model=PromptLM(loaded, model),
            tasks=tasks,
            task_manager=TaskManager(include_defaults=rows is None),  # its own tasks are thousands of files to read
            limit=limit,
            bootstrap_iters=0,
        )
    records = [
        {"table": "lm-eval", "task": name, "metric": metric.partition(",")[0], "value": value}
        for name, figures in found["results"].items()
        for metric, value in figures.items()
        if isinstance(value, float) and "stderr" not in metric
    ]
    shown = tuple((each["task"], each["metric"], f"{each['value']:.4g}") for each in records)
    table = Table(("task", "metric", "value"), shown, words=2, records=tuple(records))
    show_table(table, "lm-evaluation-harness, 0 to 1", as_json=as_json)


def export_task(
    name: Annotated[
        str, typer.Argument(help="A task's name, or the path of its YAML file.", autocompletion=complete_task)
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the definition and the rows.")],
    data: Data = "hub",
    split: SplitOption = "test",
) -> None:
    """Write a task's rows and its definition for lm-evaluation-harness (lm_eval --include_path)."""
    require_one_of("--split", split, Split)
    from bmtpt.lm_eval import write_task
    from bmtpt.tasks import load_data, load_task

    definition = write_task(load_data(load_task(name), data), out, split=split)
    say(f"task {definition['task']} written to {out}")
