"""Fit the readouts of prompts to labelled rows (docs/method.md, section 5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bmtpt.backbone.engine import Engine
from bmtpt.inference.score import Prompts, Scorer, labels_of, make_reader, read
from bmtpt.posterior.readout import Readout, Widths, fit, label_free_offset
from bmtpt.settings import AdaptSettings
from bmtpt.tasks.tokens import Tokenised, epoch_rows

ROWS = 1024
"""Rows that a readout is fitted to at most: more would hardly move it, and the fit would take seconds."""


def fit_readouts(
    engine: Engine, prompts: Prompts, rows: Sequence[Tokenised], scorer: Scorer, settings: AdaptSettings
) -> tuple[Readout, ...]:
    """Return a MAP readout for each of M prompts, rounded to fp32 as it is saved; none if the settings ask for none.

    Args:
        rows: Parts of the labelled rows of the task.
        scorer: Of the task, which has label words.
        settings: `readout` and the widths of its prior.
    """
    if settings.readout == "none":
        return ()
    texts, labels = [text for part in rows for text in part.batch.inputs], torch.cat([labels_of(part) for part in rows])
    drawn = epoch_rows(len(texts), min(len(texts), ROWS), 0, seed=settings.seed, task=0)
    labels = labels[drawn]
    readings = read(engine, prompts, [texts[i] for i in drawn], scorer)
    scores = make_reader(engine, prompts, scorer).scores(readings)
    linear = settings.readout == "linear"
    widths = Widths(settings.offset_std, settings.weight_std if linear else 0.0, settings.slope_std)
    return tuple(
        _as_saved(fit(own, labels, widths, states if linear else None, centre=label_free_offset(own)))
        for own, states in zip(scores.cpu(), readings.states.cpu(), strict=True)
    )


def _as_saved(readout: Readout) -> Readout:
    weights = None if readout.weights is None else readout.weights.float().double()
    return Readout(float(torch.tensor(readout.slope).float()), readout.offset.float().double(), weights)
