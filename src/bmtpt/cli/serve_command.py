"""`bmtpt serve`: answer requests over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bmtpt.backbone.execution import Precision
from bmtpt.cli.common import load_backbone, part, print_settings
from bmtpt.cli.console import say
from bmtpt.cli.options import Config, ExecutionOptions, ShowConfig, with_settings
from bmtpt.errors import SettingsError
from bmtpt.serve.settings import ServeSettings
from bmtpt.settings import resolve


class ServeOptions(ExecutionOptions, ServeSettings):
    """Options of `bmtpt serve`.

    Attributes:
        prompts: Folder of a prompt, or of folders of prompts; repeat for more. A prompt is called like its folder.
        backbone: Hub id, folder or offline; default: the prompts' own.
        precision: Compute dtype of the frozen model. In bfloat16 a row's answer depends on the rows that share its
            pass (by some points of probability); in float32 it does not.
    """

    prompts: tuple[Path, ...] = ()
    backbone: str | None = None
    precision: Precision = "float32"


@with_settings(ServeOptions, without=("memory",))
def serve(options: dict[str, Any], config: Config = None, show_config: ShowConfig = False) -> None:
    """Answer texts over HTTP with many prompts on one model, until Ctrl-C or SIGTERM (docs/serve.md)."""
    settings = resolve(ServeOptions, config, options)
    if show_config:
        print_settings(settings)
        return
    try:
        from bmtpt.serve import run
    except ImportError as error:
        raise SettingsError(f"serving needs {error.name}; run: pip install 'bmtpt[serve]'") from error
    run.serve(
        part(settings, ServeSettings),
        settings.prompts,
        lambda name: load_backbone(name, settings.execution),
        backbone=settings.backbone,
        announce=say,
    )
