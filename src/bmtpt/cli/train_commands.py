"""`bmtpt learn` and `bmtpt adapt`: the two stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from bmtpt.cli.common import listening, load_backbone, load_tasks, part, print_settings, with_unlabelled
from bmtpt.cli.console import note_cut, say, say_next, tell
from bmtpt.cli.options import Config, ExecutionOptions, Overwrite, Preset, Resume, ShowConfig, with_settings
from bmtpt.parallel.torchrun import place
from bmtpt.settings import AdaptSettings, LearnSettings, resolve
from bmtpt.types import TrackerName


class TrackOptions(BaseModel):
    """Where the run's figures go besides its folder.

    Attributes:
        track: Also log losses, diagnostics, scores and settings to tensorboard, trackio, wandb or mlflow.
    """

    track: TrackerName | None = None


class LearnOptions(TrackOptions, ExecutionOptions, LearnSettings):
    """Options of `bmtpt learn`.

    Attributes:
        backbone: Hub id (google/t5-v1_1-base), local folder, or "offline".
        source: A source task: name or YAML file; repeat for more.
        data: "hub", "offline" or a data folder.
        out: Folder for the posterior.
    """

    backbone: str
    source: tuple[str, ...] = Field(min_length=1)
    data: str = "hub"
    out: Path


class AdaptOptions(TrackOptions, ExecutionOptions, AdaptSettings):
    """Options of `bmtpt adapt`.

    Attributes:
        posterior: Folder of `bmtpt learn`.
        target: A target task: name or YAML file; several share A.
        backbone: As for learn; default: the one the posterior was learned with.
        data: "hub", "offline" or a data folder.
        unlabelled: File of texts without labels, as `bmtpt predict` reads them; at most 256 help the readout of one
            target.
        out: Folder for the prompt, or for one folder per target.
    """

    posterior: Path
    target: tuple[str, ...] = Field(min_length=1)
    backbone: str | None = None
    data: str = "hub"
    unlabelled: Path | None = None
    out: Path


@with_settings(LearnOptions)
def learn(
    options: dict[str, Any],
    preset: Preset = None,
    config: Config = None,
    show_config: ShowConfig = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Learn a posterior over soft prompts from source tasks (SVGD)."""
    settings = resolve(LearnOptions, config, {**options, "preset": preset})
    if show_config:
        print_settings(settings)
        return
    from bmtpt.artifacts.folder import output_folder
    from bmtpt.stages import source
    from bmtpt.train.trackers import require_tracker

    require_tracker(settings.track)
    own = settings.out if place().first else None
    with output_folder(own, "posterior", resume=resume, overwrite=overwrite):
        sources = load_tasks(settings.source, settings.data)
        backbone = load_backbone(settings.backbone, settings.execution)
        with listening("learn", settings, resume) as listener:
            posterior = source.learn(
                backbone,
                sources,
                part(settings, LearnSettings),
                folder=settings.out,
                resume=resume,
                overwrite=overwrite,
                listener=listener,
            )
    facts = posterior.card.diagnostics
    note_cut(sum(facts["texts_cut"].values()))
    say(f"posterior of {len(posterior.particles)} particles written to {settings.out}")
    say(f"held-back NLL of the mean minus that of the particles: {facts['mean_gap']:+.3f} nats")
    if curves := posterior.card.readout_prior:
        tell(f"readout prior, as the sources want it: {'; '.join(map(str, curves))}")
    say_next("adapt", "--posterior", settings.out, "--target", "TASK", *_data_option(settings.data), "--out", "DIR")


@with_settings(AdaptOptions)
def adapt(
    options: dict[str, Any],
    preset: Preset = None,
    config: Config = None,
    show_config: ShowConfig = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Adapt a posterior to one target, or to several that share A (MAP)."""
    settings = resolve(AdaptOptions, config, {**options, "preset": preset})
    if show_config:
        print_settings(settings)
        return
    from bmtpt.artifacts.folder import output_folder
    from bmtpt.artifacts.inspect import describe_artifact
    from bmtpt.artifacts.saved import Posterior
    from bmtpt.stages.target import adapt_together
    from bmtpt.train.trackers import require_tracker

    require_tracker(settings.track)
    posterior = Posterior.load(settings.posterior)
    own = settings.out if place().first else None
    with output_folder(own, "prompt", resume=resume, overwrite=overwrite):
        targets = load_tasks(settings.target, settings.data)
        if settings.unlabelled:
            targets = with_unlabelled(targets, settings.unlabelled)
        backbone = load_backbone(settings.backbone or posterior.card.backbone.name, settings.execution)
        with listening("adapt", settings, resume) as listener:
            prompts = adapt_together(
                posterior,
                targets,
                part(settings, AdaptSettings),
                backbone=backbone,
                folder=settings.out,
                resume=resume,
                overwrite=overwrite,
                listener=listener,
            )
    for (name, prompt), target in zip(prompts.items(), targets, strict=True):
        folder = settings.out if len(prompts) == 1 else settings.out / name
        facts = describe_artifact(prompt)
        note_cut(prompt.card.selection["texts_cut"])
        shown = "; ".join([facts["selected"], f"trained {facts['trained']}", *filter(None, [facts.get("calibration")])])
        say(f"{name}: {shown}; written to {folder}")
        own_rows = target.task.file or target.task.files
        say_next("evaluate", "--prompt", folder, *([] if own_rows else _data_option(settings.data)))


def _data_option(data: str) -> list[str]:
    """Return the option that names where rows come from, unless it is the default."""
    return [] if data == "hub" else ["--data", data]
