"""Choose the widths of a readout's prior on source tasks, and use them on targets (docs/method.md, section 5)."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from bmtpt.artifacts.card import require_backbone
from bmtpt.artifacts.readout_prior import WidthCurve, WidthPoint, nearest_curve
from bmtpt.artifacts.saved import Posterior
from bmtpt.backbone import Backbone
from bmtpt.inference.score import labels_of, make_scorer, read
from bmtpt.methods.target import TargetRows
from bmtpt.posterior.readout import Labelled
from bmtpt.posterior.widths import GRID, width_curves
from bmtpt.settings import AdaptSettings
from bmtpt.stages.rows import held_back_rows, some
from bmtpt.tasks import TaskData
from bmtpt.tasks.tokens import tokenise

log = logging.getLogger("bmtpt")

ROWS = 192
"""Held-back rows that are read of a source at most: three draws' worth of the largest number of labels."""


def with_readout_prior(backbone: Backbone, posterior: Posterior, sources: Sequence[TaskData]) -> Posterior:
    """Return the posterior with a card that holds, by number of labels, how wide a readout's prior should be.

    Costs a forward pass of the mean prompt over at most 192 held-back rows of each source with label words, and a few
    seconds of fits per source; it trains nothing.

    Args:
        sources: Tasks like those to come. The posterior's own have taught the prompt their words, so that their
            readouts have less to correct than those of a new task.

    Raises:
        BackboneError: The posterior belongs to another model.
    """
    require_backbone(posterior.card.backbone, backbone)
    started = time.perf_counter()
    log.info("choosing how wide a readout's prior should be on held-back rows of the sources")  # may take a minute
    tasks = [_labelled(backbone, posterior, source) for source in sources if source.task.fixed_words]
    curves = width_curves(tasks, seed=posterior.card.settings.get("seed", 0))
    if not curves:
        log.warning(
            "no source has label words and 8 held-back rows, so none tells how wide a readout's prior should be; the "
            "posterior's card holds no widths"
        )
    noted = []
    for k, nll in curves.items():
        pairs = zip(GRID, nll.tolist(), strict=True)
        points = [WidthPoint(offset_std=b, weight_std=w, slope_std=a, nll=value) for (b, w, a), value in pairs]
        noted.append(WidthCurve(shots=k, points=tuple(points)))
    seconds = posterior.card.seconds + time.perf_counter() - started
    return replace(
        posterior, card=posterior.card.model_copy(update={"readout_prior": tuple(noted), "seconds": seconds})
    )


def _labelled(backbone: Backbone, posterior: Posterior, source: TaskData) -> Labelled:
    """Return a source's held-back rows as the mean prompt reads them."""
    _, held = held_back_rows(source)
    length = posterior.card.settings.get("max_length") or source.task.max_length
    rows = tokenise(backbone, some(held, ROWS, seed=0), length)
    prompt = posterior.mean[None].to(backbone.device)
    readings = read(backbone.engine, prompt, rows.batch.inputs, make_scorer(backbone, source.task))
    return Labelled(readings.log_likelihoods[0].cpu(), readings.states[0].cpu(), labels_of(rows))


def with_widths(settings: AdaptSettings, posterior: Posterior | None, rows: Iterable[TargetRows]) -> AdaptSettings:
    """Return the settings with the widths of the posterior's card for the number of labels at hand, if asked for.

    Several targets share the widths of the one with the fewest labels.
    """
    if settings.readout_prior == "fixed" or settings.readout == "none" or posterior is None:
        return settings
    if not posterior.card.readout_prior:
        log.warning(
            "readout_prior is 'posterior', and the posterior's card holds no widths: those of the settings are used; "
            "learn with readout_prior 'sources'"
        )
        return settings
    labels = min(sum(map(len, each.labelled)) for each in rows)
    widths = nearest_curve(posterior.card.readout_prior, labels).best(settings.readout)
    return settings.model_copy(update=widths.model_dump(exclude={"nll"}))
