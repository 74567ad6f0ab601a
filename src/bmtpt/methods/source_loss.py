"""The losses of a source task's examples (docs/method.md, sections 1 and 5).

    tokens    −log p(y | [θ; embed(x)])                                                                   [paper]
    labels    −log softmax_c(s(x))[y]        s_c(x) = log p(word_c | [θ; embed(x)])
    readout   −log softmax_c(z(x))[y]        z_c(x) = s_c(x) + b_c + w_c·h(x)/√D

For the last, a draw is divided in a support and a query. Each θ_m has a readout (b, w) of its own, the MAP fit to the
support; the loss is over the query. What is learned is then a prompt whose words *and states* a few labels can read, as
the target stage reads them. Of the hierarchical model's ∇_θ log ∫ p(D | θ, b, w) p(b) p(w) this is the cheap cousin:
the readout is held fixed in the gradient, which does not go through the fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bmtpt.backbone.engine import Choice, Engine, Readings
from bmtpt.posterior.readout import Readout, Widths, fit, label_free_offset, read_out
from bmtpt.settings import LearnSettings
from bmtpt.types import TokenBatch


class SourceLoss(Protocol):
    """The loss of one source task."""

    def scored(self, prompts: Float[Tensor, "M P D"], batch: TokenBatch) -> tuple[TokenBatch, Choice | None]:
        """Return the examples of a draw that the loss is over, and the label words that it chooses among, if any."""
        ...

    def held_back(self, prompts: Float[Tensor, "M P D"], batch: TokenBatch) -> Float[Tensor, "M N"]:
        """Return the loss of every example, without a gradient."""
        ...


def source_loss(engine: Engine, words: Sequence[Tensor], settings: LearnSettings) -> SourceLoss:
    """Return the loss that the settings ask for; without label words it is that of the answer's tokens."""
    if words and settings.source_objective == "readout":
        widths = Widths(settings.offset_std, settings.weight_std)
        return ReadoutLoss(engine, words, widths, settings.batch_size)
    return LabelLoss(engine, words) if words and settings.likelihood == "labels" else TokenLoss(engine)


@dataclass(frozen=True)
class TokenLoss:
    """−log p of the answer's tokens."""

    engine: Engine

    def scored(self, prompts: Float[Tensor, "M P D"], batch: TokenBatch) -> tuple[TokenBatch, Choice | None]:
        return batch, None

    def held_back(self, prompts: Float[Tensor, "M P D"], batch: TokenBatch) -> Float[Tensor, "M N"]:
        return self.engine.losses(prompts, batch)


@dataclass(frozen=True)
class LabelLoss:
    """−log of the right label word's share.

    Attributes:
        words: Token ids of the C label words.
    """

    engine: Engine
    words: Sequence[Tensor]

    def scored(self, prompts: Float[Tensor, "M P D"], batch: TokenBatch) -> tuple[TokenBatch, Choice | None]:
        return batch, Choice(self.words)

    def held_back(self, prompts: Float[Tensor, "M P D"], batch: TokenBatch) -> Float[Tensor, "M N"]:
        scores = self.engine.answer_log_likelihoods(prompts, batch.inputs, self.words)
        return _chosen(scores, self.labels(batch))

    def labels(self, batch: TokenBatch) -> Int[Tensor, " N"]:
        """Return which label word each example's answer is."""
        return torch.tensor(Choice(self.words).labels(batch.targets))


@dataclass(frozen=True)
class ReadoutLoss(LabelLoss):
    """−log of the right label's share, as read by each prompt's readout of other examples.

    Attributes:
        widths: Of the readout's prior.
        draw: Examples of a draw, at least 2.
    """

    widths: Widths
    draw: int

    def scored(self, prompts: Float[Tensor, "M P D"], batch: TokenBatch) -> tuple[TokenBatch, Choice | None]:
        half = len(batch) - len(batch) // 2
        parts = slice(half), slice(half, None)
        support, query = (TokenBatch(batch.inputs[part], batch.targets[part]) for part in parts)
        readings = self.engine.readings(prompts, support.inputs, self.words)
        return query, Choice(self.words, self._fitted(readings, self.labels(support)))

    def held_back(self, prompts: Float[Tensor, "M P D"], batch: TokenBatch) -> Float[Tensor, "M N"]:
        """Return every example's loss under readouts of the other half of its draw, as many as a step draws."""
        readings, labels = self.engine.readings(prompts, batch.inputs, self.words), self.labels(batch)
        losses = prompts.new_empty(len(prompts), len(batch))
        for draw in np.array_split(np.arange(len(batch)), max(1, len(batch) // self.draw)):
            halves = np.array_split(draw, 2)
            for support, query in (halves, halves[::-1]):
                fitted = self._fitted(Readings(*(each[:, support] for each in readings)), labels[support])
                z = read_out(fitted, *(each[:, query] for each in readings))
                losses[:, query] = _chosen(z, labels[query]).to(losses)
        return losses

    def _fitted(self, readings: Readings, labels: Int[Tensor, " N"]) -> list[Readout]:
        """Return each prompt's MAP readout."""
        pairs = zip(*(each.cpu() for each in readings), strict=True)
        return [fit(s, labels, self.widths, h, label_free_offset(s)) for s, h in pairs]


def _chosen(scores: Float[Tensor, "M N C"], labels: Int[Tensor, " N"]) -> Float[Tensor, "M N"]:
    """Return −log softmax_c(scores)[label]."""
    return -scores.log_softmax(dim=2)[:, range(len(labels)), labels.to(scores.device)]
