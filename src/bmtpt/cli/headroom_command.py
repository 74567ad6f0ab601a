"""`bmtpt headroom`: what there is to win on a task, before anything is trained."""

from __future__ import annotations

from typing import Annotated

import typer

from bmtpt.cli.common import load_backbone
from bmtpt.cli.completion import complete_backbone, complete_task
from bmtpt.cli.console import doing, show_table, tell
from bmtpt.cli.options import Data, Device, Engine, Json, PrecisionOption, execution_of


def headroom(
    task: Annotated[
        str, typer.Argument(help="A task's name, or the path of its YAML file.", autocompletion=complete_task)
    ],
    data: Data = "hub",
    backbone: Annotated[
        str, typer.Option("--backbone", help="Hub id, folder or offline.", autocompletion=complete_backbone)
    ] = "offline",
    shots: Annotated[
        list[int] | None,
        typer.Option(
            "--shots", min=1, help="Labels to fit to; repeat. (default: 4, 16 and 64, as far as there are rows)"
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the prompt, the rows and the draws.")] = 0,
    as_json: Json = False,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    engine: Engine = "auto",
) -> None:
    """Say what there is to win on a task: constant, untrained, with few labels and with all, in about a minute."""
    from dataclasses import asdict

    from bmtpt.report.table import Table
    from bmtpt.stages.headroom import headroom as measure
    from bmtpt.tasks import load_data, load_task

    rows = load_data(load_task(task), data)
    model = load_backbone(backbone, execution_of(device, precision, engine))
    with doing("reading texts"):
        found = measure(model, rows, shots, seed=seed)
    heads = ("answers by", "labels", "accuracy", "NLL (lower is better)")
    lines = tuple((way.name, f"{way.labels:,}", f"{way.accuracy:.1f}", f"{way.nll:.2f}") for way in found.ways)
    shared = {"task": rows.task.name, "test_rows": found.test_rows}
    table = Table(heads, lines, records=tuple(shared | asdict(way) for way in found.ways))
    show_table(table, f"{rows.task.name}: {found.test_rows} test rows ({rows.status})", as_json=as_json)
    if not as_json:
        tell(found.verdict)
