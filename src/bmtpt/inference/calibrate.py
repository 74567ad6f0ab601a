"""Fit to labelled rows what prompts' answers are read with: readouts and a temperature (docs/method.md, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bmtpt.artifacts.card import Calibration
from bmtpt.backbone.engine import Engine
from bmtpt.inference.score import Prompts, Scorer, labels_of, make_reader, read
from bmtpt.posterior.readout import Labelled, Readout, Texts, Widths, read_out
from bmtpt.posterior.temperature import fit_temperature, log_shares
from bmtpt.settings import AdaptSettings
from bmtpt.tasks.metrics import calibration
from bmtpt.tasks.tokens import Tokenised, epoch_rows
from bmtpt.tasks.units import together

ROWS = 1024
"""Rows that a readout or a temperature is fitted to at most: more would hardly move it, and the fit takes seconds."""

RANKING_ROWS = 256
"""Rows that the readouts of a validation are fitted to at most, so that validating costs less than training."""

FOLDS = 10
"""Parts of the rows that are left out in turn, so that at most 10 rows are each left out alone."""


class _Known(NamedTuple):
    """What M prompts make of labelled rows, on the CPU.

    Attributes:
        scores: s.
        states: h.
        labels: y.
        texts: The same of texts without labels, s and h by prompt.
    """

    scores: Float[Tensor, "M N C"]
    states: Float[Tensor, "M N D"]
    labels: Int[Tensor, " N"]
    texts: Sequence[Texts]

    def rows(self, chosen: Sequence[int]) -> _Known:
        at = list(chosen)
        return self._replace(scores=self.scores[:, at], states=self.states[:, at], labels=self.labels[at])

    def readouts(self, settings: AdaptSettings) -> tuple[Readout, ...]:
        """Return the MAP readout of each prompt; none if the settings ask for none."""
        if settings.readout == "none":
            return ()
        weight_std = settings.weight_std if settings.readout == "linear" else 0.0
        widths = Widths(settings.offset_std, weight_std, settings.slope_std)
        own = zip(self.scores, self.states, self.texts, strict=True)
        spread = settings.predictive == "laplace"
        return tuple(Labelled(s, h, self.labels).fit(widths, texts, spread=spread) for s, h, texts in own)


def fit_readouts(
    engine: Engine,
    prompts: Prompts,
    rows: Sequence[Tokenised],
    scorer: Scorer,
    settings: AdaptSettings,
    texts: Sequence[Tensor] = (),
    most: int | None = None,
) -> tuple[Readout, ...]:
    """Return a MAP readout for each of M prompts, rounded to fp32 as it is saved; none if the settings ask for none.

    Args:
        rows: Parts of the labelled rows of the task.
        scorer: Of the task, which has label words.
        settings: `readout`, the widths of its prior and `predictive`.
        texts: Token ids of texts without labels, which tell how much a prompt prefers a word whatever it reads.
        most: Labelled rows to fit to at most, a draw by the settings' seed; None for `ROWS`.
    """
    if settings.readout == "none":
        return ()
    drawn = _drawn(range(sum(map(len, rows))), settings.seed, most)
    return tuple(each.float32() for each in _know(engine, prompts, rows, drawn, scorer, texts).readouts(settings))


def fit_calibrated(
    engine: Engine,
    prompts: Prompts,
    rows: Sequence[Tokenised],
    scorer: Scorer,
    settings: AdaptSettings,
    held_back: Tokenised | None = None,
    texts: Sequence[Tensor] = (),
) -> tuple[tuple[Readout, ...], Calibration | None]:
    """Return the readouts of `fit_readouts` with a temperature in them if the settings ask for one, and what it does.

    One temperature serves all prompts. It is fitted to logits of rows that their readouts are not fitted to: for each
    fold of the rows, the readouts of the others. The prompts are not trained again.

    Args:
        rows, scorer, settings, texts: As for `fit_readouts`; without a readout the temperature stands alone.
        held_back: Rows that the prompts were not trained on, which judge alone: the last of ``rows``, or others. None
            lets all ``rows`` judge.
    """
    if settings.calibrate == "none":
        return fit_readouts(engine, prompts, rows, scorer, settings, texts), None
    parts = [*rows] if held_back is None or any(held_back is part for part in rows) else [*rows, held_back]
    examples = [example for part in parts for example in part.examples]
    fitted = _drawn(range(sum(map(len, rows))), settings.seed) if settings.readout != "none" else []
    judged = _drawn(range(len(examples) - len(held_back or examples), len(examples)), settings.seed)
    place = {row: i for i, row in enumerate(dict.fromkeys([*fitted, *judged]))}  # the fitted rows come first
    known = _know(engine, prompts, parts, list(place), scorer, texts if settings.readout != "none" else ())
    folds = [[place[judged[i]] for i in fold] for fold in _folds([examples[row].text for row in judged], settings.seed)]

    def logits(fold: Sequence[int]) -> Float[Tensor, "M n C"]:
        left_out, others = known.rows(fold), known.rows([i for i in range(len(fitted)) if i not in fold])
        return read_out(others.readouts(settings), left_out.scores, left_out.states)

    found = _calibration([logits(fold) for fold in folds], [known.labels[fold] for fold in folds])
    untouched = [Readout(1.0, torch.zeros(len(scorer.answers)).double())] * len(known.scores)
    own = known.rows(range(len(fitted))).readouts(settings) or untouched
    return tuple(readout.tempered(found.temperature).float32() for readout in own), found


def _calibration(logits: Sequence[Float[Tensor, "M _ C"]], labels: Sequence[Int[Tensor, " _"]]) -> Calibration:
    """Return the temperature of all folds, and what each fold gains by the temperature of the others."""
    z, y = torch.cat(list(logits), dim=1), torch.cat(list(labels))
    fold = torch.arange(len(labels)).repeat_interleave(torch.tensor([len(each) for each in labels]))
    others = [fit_temperature(z[:, fold != k], y[fold != k]) for k in range(len(labels))]
    after = torch.cat([log_shares(*each) for each in zip(logits, others, strict=True)])
    figures: dict[str, float] = {}
    for when, log_p in (("before", log_shares(z)), ("after", after)):
        judged = calibration(log_p.exp().numpy(), y.tolist())
        figures |= {f"nll_{when}": judged["nll"], f"ece_{when}": 100 * judged["ece"]}
    return Calibration(temperature=fit_temperature(z, y), rows=len(y), **figures)


def _drawn(rows: range, seed: int, most: int | None = None) -> list[int]:
    """Return at most so many of some rows, by their positions."""
    return [rows[i] for i in epoch_rows(len(rows), min(len(rows), most or ROWS), 0, seed=seed, task=0)]


def _folds(texts: Sequence[str], seed: int) -> list[list[int]]:
    """Divide positions into at most `FOLDS` parts; those of one text stay together."""
    unit = together(texts)
    count = int(unit.max()) + 1
    order = epoch_rows(count, count, 0, seed=seed, task=0)
    members = [np.flatnonzero(unit == each).tolist() for each in range(count)]
    return [[i for each in order[k::FOLDS] for i in members[each]] for k in range(min(FOLDS, count))]


def _know(
    engine: Engine,
    prompts: Prompts,
    parts: Sequence[Tokenised],
    chosen: Sequence[int],
    scorer: Scorer,
    texts: Sequence[Tensor],
) -> _Known:
    """Return what prompts make of the chosen rows of all parts, and of texts without labels."""
    labelled = [text for part in parts for text in part.batch.inputs]
    readings = read(engine, prompts, [*(labelled[i] for i in chosen), *texts], scorer)
    scores, states = make_reader(engine, prompts, scorer).scores(readings).cpu(), readings.states.cpu()
    labels = torch.cat([labels_of(part) for part in parts])[list(chosen)]
    n = len(labels)
    more = [Texts(*each) for each in zip(scores[:, n:], states[:, n:], strict=True)]
    return _Known(scores[:, :n], states[:, :n], labels, more)
