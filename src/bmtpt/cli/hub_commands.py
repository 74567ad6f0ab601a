"""Commands that exchange artifacts with the Hugging Face hub: push, pull."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bmtpt.cli.common import load_backbone
from bmtpt.cli.console import doing, say
from bmtpt.cli.options import Data, Defaults, Device, Overwrite, execution_of
from bmtpt.errors import SettingsError

Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit; default: the newest.")]


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a posterior or a prompt.")],
    name: Annotated[str, typer.Argument(help="user/name on the hub; made if it does not exist.")],
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Score a prompt on its task's test rows, for the README.")
    ] = False,
    data: Data = "hub",
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="An existing branch; default: the main one.")] = (
        None
    ),
    device: Device = "auto",
    config: Defaults = None,
) -> None:
    """Upload a posterior or a prompt to the Hugging Face hub, with a README of its card (log in by hf auth login)."""
    from bmtpt.artifacts.hub import pushed
    from bmtpt.artifacts.inspect import describe_artifact
    from bmtpt.artifacts.saved import Prompt, read_artifact
    from bmtpt.stages import evaluate as stage
    from bmtpt.tasks import load_data, saved_task

    artifact = read_artifact(folder)
    scores = {}
    if evaluate:
        if not isinstance(artifact, Prompt):
            raise SettingsError(f"{folder} holds a posterior, which answers no task; leave --evaluate out")
        rows = load_data(saved_task(artifact.card.task_definition), data)
        model = load_backbone(artifact.card.backbone.name, execution_of(device))
        with doing(f"scoring {len(rows.test):,} rows"):
            scores = dict(stage.evaluate(model, artifact, rows.test, task=rows.task).figures)
    with doing("uploading"):
        address = pushed(
            folder, name, facts=describe_artifact(artifact), scores=scores, private=private or None, revision=revision
        )
    say(f"uploaded to {address}")


def pull(
    name: Annotated[str, typer.Argument(help="user/name on the hub.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    revision: Revision = None,
    overwrite: Overwrite = False,
    config: Defaults = None,
) -> None:
    """Download a posterior or a prompt from the Hugging Face hub (hub:user/name stands for a folder elsewhere)."""
    from bmtpt.artifacts.hub import pulled
    from bmtpt.artifacts.saved import read_artifact

    with doing("downloading"):
        artifact = read_artifact(pulled(name, revision))
    artifact.save(out, overwrite=overwrite)
    say(f"{artifact.card.kind} written to {out}")
