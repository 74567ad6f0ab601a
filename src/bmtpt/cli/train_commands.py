"""`bmtpt learn` and `bmtpt adapt`: the two stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from bmtpt.cli.common import (
    ERR,
    OUT,
    Config,
    Overwrite,
    Resume,
    ShowConfig,
    as_yaml,
    load_tasks,
    part,
    save_settings,
)
from bmtpt.cli.main import app
from bmtpt.cli.options import with_settings
from bmtpt.settings import AdaptSettings, LearnSettings, resolve


class LearnOptions(LearnSettings):
    """Options of `bmtpt learn`.

    Attributes:
        backbone: Hub id (google/t5-v1_1-base), local folder, or "offline".
        source: A source task: name or YAML file; give it several times.
        data: "hub", "offline" or a data folder.
        out: Folder for the posterior.
    """

    backbone: str
    source: tuple[str, ...] = Field(min_length=1)
    data: str = "hub"
    out: Path


class AdaptOptions(AdaptSettings):
    """Options of `bmtpt adapt`.

    Attributes:
        posterior: Folder of `bmtpt learn`.
        target: A target task: name or YAML file; several share A.
        backbone: As for learn; default: the one the posterior was learned with.
        data: "hub", "offline" or a data folder.
        out: Folder for the prompt, or for one folder per target.
    """

    posterior: Path
    target: tuple[str, ...] = Field(min_length=1)
    backbone: str | None = None
    data: str = "hub"
    out: Path


@app.command(epilog="Example: bmtpt learn --backbone offline --data offline --source sst2 --source mrpc --out post")
@with_settings(LearnOptions)
def learn(
    options: dict[str, Any],
    config: Config = None,
    show_config: ShowConfig = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Learn a posterior over soft prompts from source tasks (SVGD)."""
    settings = resolve(LearnOptions, config, options)
    if show_config:
        OUT.print(as_yaml(settings), markup=False, highlight=False, end="")
        return
    from bmtpt import api
    from bmtpt.backbone.load import load_backbone
    from bmtpt.cli.progress import TrainingProgress
    from bmtpt.train.run import prepare_folder

    sources = load_tasks(settings.source, settings.data)
    backbone = load_backbone(settings.backbone, precision=settings.precision)
    prepare_folder(settings.out, resume=resume, overwrite=overwrite)
    save_settings(settings.out, settings)
    with TrainingProgress(ERR, "learn") as progress:
        posterior = api.learn(
            backbone,
            sources,
            part(settings, LearnSettings),
            folder=settings.out,
            resume=resume,
            overwrite=overwrite,
            listener=progress,
        )
    facts = posterior.card.diagnostics
    _say_cut(sum(facts["texts_cut"].values()))
    gap = facts["mean_gap"]
    OUT.print(f"posterior of {len(posterior.particles)} particles written to {settings.out}")
    OUT.print(f"held-back NLL of the mean minus that of the particles: {gap:+.3f} nats per token")
    for warning in api.learn_warnings(posterior):
        OUT.print(f"[yellow]note:[/] {warning}")
    OUT.print(f"next: bmtpt adapt --posterior {settings.out} --target TASK --out DIR", markup=False)


@app.command(epilog="Example: bmtpt adapt --posterior post --data offline --target cb --shots 16 --out prompts/cb")
@with_settings(AdaptOptions)
def adapt(
    options: dict[str, Any],
    config: Config = None,
    show_config: ShowConfig = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Adapt a posterior to one target, or to several that share A (MAP)."""
    settings = resolve(AdaptOptions, config, options)
    if show_config:
        OUT.print(as_yaml(settings), markup=False, highlight=False, end="")
        return
    from bmtpt import api
    from bmtpt.artifacts import Posterior
    from bmtpt.backbone.load import load_backbone
    from bmtpt.cli.progress import TrainingProgress
    from bmtpt.train.run import prepare_folder

    posterior = Posterior.load(settings.posterior)
    targets = load_tasks(settings.target, settings.data)
    backbone = load_backbone(settings.backbone or posterior.card.backbone.name, precision=settings.precision)
    prepare_folder(settings.out, resume=resume, overwrite=overwrite)
    save_settings(settings.out, settings)
    with TrainingProgress(ERR, "adapt") as progress:
        prompts = api.adapt_together(
            posterior,
            targets,
            part(settings, AdaptSettings),
            backbone=backbone,
            folder=settings.out,
            resume=resume,
            overwrite=overwrite,
            listener=progress,
        )
    for name, prompt in prompts.items():
        winner = prompt.card.selection["winners"][0]
        share = prompt.card.trained_parameters / backbone.parameters
        folder = settings.out if len(prompts) == 1 else settings.out / name
        _say_cut(prompt.card.selection["texts_cut"])
        OUT.print(
            f"{name}: start {winner['start']}, prior {winner['prior']} (σ {winner['prior_std']}), "
            f"{prompt.card.trained_parameters:,} trained numbers ({share:.4%} of the model), written to {folder}",
            markup=False,
            highlight=False,
        )
        OUT.print(f"next: bmtpt evaluate --prompt {folder} --task {settings.target[0]} --data {settings.data}")


def _say_cut(count: int) -> None:
    if count:
        OUT.print(f"[yellow]note:[/] {count} texts were longer than the limit and were cut (see --max-length)")
