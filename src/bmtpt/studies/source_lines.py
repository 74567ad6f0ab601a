"""The result lines of source stages: what is known of a posterior, and what every stage cost."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from bmtpt.artifacts.card import versions
from bmtpt.artifacts.saved import Posterior
from bmtpt.methods.registry import get_method
from bmtpt.results import Result
from bmtpt.studies.jobs import Job
from bmtpt.studies.sources import START_STAGE, Sources, Stage
from bmtpt.studies.spec import StudySpec
from bmtpt.types import DATA_ORDER

SOURCES = "sources"
"""What stands for the target in the lines of a source stage."""

POSTERIOR_METRICS = frozenset({"spread", "mean_nll", "particle_nll", "mean_gap"})
"""What the lines of a posterior hold at least; lines that are committed have no more."""

COST_METRICS = frozenset({"seconds"})
"""What the line of any other stage holds: its cost."""

SVGD_METRICS = ("kernel_rank", "repulsion_to_drive", "stein_discrepancy")
"""Diagnostics of the last step that have lines too, where they are defined."""


class Cost(NamedTuple):
    """What a source stage learned from, and what it took."""

    sources: tuple[str, ...]
    trained: int
    steps: int
    seconds: float


def stage_name(stage: Stage, study: StudySpec) -> str:
    """Return what stands for the method in the lines of a source stage."""
    if stage == ("posterior", study.learn.particles):
        return "posterior"
    kind, *arguments = stage
    if kind == "own":
        return f"{arguments[0]} sources"
    return (
        f"source prompt {arguments[0]}"
        if kind == "prompt"
        else {"posterior": "multitask sources"}.get(str(kind), str(kind))
    )


def stage_metrics(stage: Stage, study: StudySpec) -> frozenset[str]:
    """Return what the lines of a source stage hold; what particles start around counts with their posterior."""
    if stage == START_STAGE:
        return frozenset()
    return POSTERIOR_METRICS if stage == ("posterior", study.learn.particles) else COST_METRICS


def stage_lines(job: Job, learned: Posterior | dict[str, Tensor], sources: Sources) -> list[Result]:
    """Return the lines of a source stage that is learned."""
    cost = _cost(learned) if isinstance(learned, Posterior) else _own_cost(str(job.work[2][1]), learned, sources)
    if cost is None or not job.metrics:
        return []
    figures = {"seconds": cost.seconds}
    if isinstance(learned, Posterior) and job.metrics == POSTERIOR_METRICS:
        figures = _measured(learned)
    return [_line(job, cost, sources, metric, value) for metric, value in figures.items()]


def _cost(posterior: Posterior) -> Cost:
    card = posterior.card
    return Cost(card.sources, posterior.particles.numel(), card.steps, card.seconds)


def _own_cost(method: str, learned: dict[str, Tensor], sources: Sources) -> Cost | None:
    """Return the cost of a method's own stage alone, or None if the folder does not tell."""
    end = sources.end_of_own(method)
    own = get_method(method).own_source
    assert own is not None
    trained = own.trained_parameters(learned, len(sources.names))
    return Cost(sources.names, trained, int(end["step"]), float(end["seconds"])) if end else None


def _measured(posterior: Posterior) -> dict[str, float]:
    """Return what is known of a posterior itself: `spread` is rms per number, the others are nats."""
    particles, facts = posterior.particles, posterior.card.diagnostics
    own = [value for values in facts["particle_nll"].values() for value in values]
    means = list(facts["mean_nll"].values())
    return {
        "spread": float((particles - posterior.mean).square().mean().sqrt()),
        "mean_nll": sum(means) / len(means),
        "particle_nll": sum(own) / len(own),
        "mean_gap": facts["mean_gap"],
        "mean_rms": float(posterior.mean.square().mean().sqrt()),
        **{name: value for name in SVGD_METRICS if (value := facts.get("svgd", {}).get(name)) is not None},
    }


def _line(job: Job, cost: Cost, sources: Sources, metric: str, value: float) -> Result:
    statuses = [data.status for data in sources.data if data.task.name in cost.sources]
    return Result(
        **job.place._asdict(),
        backbone=sources.backbone.name,
        sources=cost.sources,
        metric=metric,
        value=value,
        primary=False,
        constant_answer=None,
        invalid_share=0.0,
        trained_parameters=cost.trained,
        trained_share=cost.trained / sources.backbone.parameters,
        steps=cost.steps,
        seconds=cost.seconds,
        settings_hash=job.settings_hash,
        data=max(statuses, key=DATA_ORDER.index),
        versions=versions(),
    )
