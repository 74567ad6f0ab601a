"""What the engines for decoder-only models share: losses, gradients, scoring and generation.

A row is [prompt; text; answer] and positions count from the prompt's first token. Where rows of one pass differ in
length, the padding stands in front of the text, masked and without a position: the last token of every text then
stands in one column, and its answer behind it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bmtpt.backbone.engine import Query, Reply, answer_prompt_by_prompt
from bmtpt.backbone.model import Backbone
from bmtpt.backbone.packing import TOKEN_BUDGET, micro_batches
from bmtpt.backbone.passes import IGNORED, at_least_fp32
from bmtpt.errors import BackboneError
from bmtpt.types import TokenBatch


class Reading(ABC):
    """R rows that the model reads from left to right, each begun with its prompt."""

    @abstractmethod
    def feed(self, ids: Int[Tensor, "R S"], real: Int[Tensor, "R S"], keep: int) -> Float[Tensor, "R T V"]:
        """Read S more tokens (where ``real`` is 0 there is none) and return the logits behind the last T = keep."""

    @abstractmethod
    def repeat(self, copies: int) -> None:
        """Go on with ``copies`` of every row, next to each other."""


@dataclass(frozen=True)
class CausalPassEngine(ABC):
    """`Engine` in passes of bounded size; a subclass says what is shared by a prompt's rows and how they are read.

    Prompts are [M, P, D], the same for every example, or [M, N, P, D], where example n has prompts of its own: nothing
    is shared then, and examples go one by one.
    Axes of a pass: R rows (n examples × M prompts, example-major), C answers, T label tokens.
    """

    backbone: Backbone

    token_budget: ClassVar[int] = TOKEN_BUDGET

    @abstractmethod
    def prefix(self, prompts: Float[Tensor, "M P D"]) -> tuple[Tensor, ...]:
        """Return what all rows of a prompt share, differentiable in the prompts, M leading in each tensor."""

    @abstractmethod
    def read(self, shared: tuple[Tensor, ...], examples: int) -> Reading:
        """Begin n·M rows behind what `prefix` returned."""

    @torch.no_grad()
    def losses(self, prompts: Float[Tensor, "M *N P D"], batch: TokenBatch) -> Float[Tensor, "M N"]:
        """Return −log p(y_n | [θ_m; embed(x_n)]), summed over the target's tokens, in fp32."""
        if prompts.ndim == 4:
            return torch.cat([self.losses(own, one) for own, one in _one_by_one(prompts, batch)], dim=1)
        result = prompts.new_empty(len(prompts), len(batch))
        shared = self.prefix(prompts)
        for rows in self._passes(prompts, batch.inputs, batch.target_tokens()):
            result[:, rows] = self._pass_losses(shared, batch, rows)
        return result

    def gradients(
        self, prompts: Float[Tensor, "M *N P D"], batch: TokenBatch, weights: Float[Tensor, " N"]
    ) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M *N P D"]]:
        """Return the losses and ∂/∂θ_m Σ_n weights_n · loss_mn.

        The passes accumulate the gradient in what the rows share; one backward pass takes it from there to θ.
        """
        if prompts.ndim == 4:
            each = (
                self.gradients(own, one, weights[n : n + 1]) for n, (own, one) in enumerate(_one_by_one(prompts, batch))
            )
            losses, gradients = zip(*each, strict=True)
            return torch.cat(losses, dim=1), torch.stack(gradients, dim=1)
        leaf = prompts.detach().clone().requires_grad_(True)
        states = self.prefix(leaf)
        # In fp32, so that the sum over examples and passes is not rounded to the compute dtype.
        shared = tuple(at_least_fp32(state.detach()).requires_grad_(True) for state in states)
        result = prompts.new_empty(len(prompts), len(batch))
        for rows in self._passes(prompts, batch.inputs, batch.target_tokens()):
            loss = self._pass_losses(shared, batch, rows)  # [M, n]
            (loss * weights[rows].to(loss.device)).sum().backward()  # type: ignore[no-untyped-call]
            result[:, rows] = loss.detach()
        if not len(batch):
            return result, torch.zeros_like(prompts)
        torch.autograd.backward(
            states, [_gradient(each).to(state.dtype) for state, each in zip(states, shared, strict=True)]
        )
        return result, _gradient(leaf)

    @torch.no_grad()
    def answer_log_likelihoods(
        self, prompts: Float[Tensor, "M *N P D"], inputs: Sequence[Tensor], answers: Sequence[Tensor]
    ) -> Float[Tensor, "M N C"]:
        """Return log p(answer_c | [θ_m; embed(x_n)]) for every answer; each text is read once for all of them."""
        if prompts.ndim == 4:
            pairs = zip(prompts.unbind(1), inputs, strict=True)
            return torch.cat([self.answer_log_likelihoods(own, [text], answers) for own, text in pairs], dim=1)
        C, M = len(answers), len(prompts)
        result = prompts.new_empty(M, len(inputs), C)
        (targets,) = self._sent(pad_sequence(list(answers), batch_first=True, padding_value=IGNORED))  # [C, T]
        shared = self.prefix(prompts)
        for rows in self._passes(prompts, inputs, [targets.shape[1]] * len(inputs), copies=C):
            reading, first = self._read_texts(shared, [inputs[i] for i in rows])  # [n·M, 1, V]
            labels = targets.repeat(len(first), 1)  # [n·M·C, T]
            reading.repeat(C)
            logits = first.repeat_interleave(C, dim=0)
            if labels.shape[1] > 1:
                logits = torch.cat([logits, _feed_labels(reading, labels)], dim=1)  # [n·M·C, T, V]
            result[:, rows] = -summed_nll(logits, labels).view(len(rows), M, C).transpose(0, 1)
        return result

    @torch.no_grad()
    def generate(
        self, prompts: Float[Tensor, "M *N P D"], inputs: Sequence[Tensor], max_new_tokens: int
    ) -> list[list[str]]:
        """Decode greedily; return M lists of N texts without special tokens."""
        if prompts.ndim == 4:
            pairs = zip(prompts.unbind(1), inputs, strict=True)
            found = [self.generate(own, [text], max_new_tokens) for own, text in pairs]
            return [[text for (text,) in each] for each in zip(*found, strict=True)]
        texts = [[""] * len(inputs) for _ in prompts]
        shared = self.prefix(prompts)
        for rows in self._passes(prompts, inputs, [max_new_tokens] * len(inputs)):
            reading, logits = self._read_texts(shared, [inputs[i] for i in rows])
            ids = greedy(reading, logits, max_new_tokens, self.backbone.tokenizer.eos_token_id)
            decoded = self.backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)
            for position, text in enumerate(decoded):
                texts[position % len(prompts)][rows[position // len(prompts)]] = text.strip()
        return texts

    def answer(self, queries: Sequence[Query]) -> list[Reply]:
        """Answer texts that each have a prompt of their own, in order; those of one prompt share its prefix."""
        return answer_prompt_by_prompt(self, queries)

    def _passes(
        self, prompts: Tensor, inputs: Sequence[Tensor], answers: Sequence[int], copies: int = 1
    ) -> Iterator[list[int]]:
        """Cut examples into passes, given the lengths of their answers; ``copies`` answers are read side by side."""
        lengths = [len(ids) + answer for ids, answer in zip(inputs, answers, strict=True)]
        if not all(len(ids) for ids in inputs):
            raise BackboneError("a text has no tokens, and a decoder-only model answers behind a text: give one")
        self.backbone.require_positions(prompts.shape[1] + max(lengths, default=0))
        yield from self.grouped(prompts, [len(ids) for ids in inputs], [copies * length for length in lengths])

    def grouped(
        self, prompts: Float[Tensor, "M P D"], texts: Sequence[int], tokens: Sequence[int]
    ) -> Iterator[list[int]]:
        """Group examples, given the length of each text and how many tokens a row of it takes behind its prompt."""
        yield from micro_batches(tokens, copies=len(prompts), budget=self.token_budget)

    def _pass_losses(self, shared: tuple[Tensor, ...], batch: TokenBatch, rows: list[int]) -> Float[Tensor, "M n"]:
        padded = pad_sequence([batch.targets[i] for i in rows], batch_first=True, padding_value=IGNORED)
        (targets,) = self._sent(padded)  # [n, T]
        ids, real = self._sent(*_left_padded([batch.inputs[i] for i in rows]))
        T, M = targets.shape[1], len(shared[0])
        ids = torch.cat([ids, targets[:, :-1].clamp(min=0)], dim=1)  # [n, L + T − 1]
        real = F.pad(real, (0, T - 1), value=1)  # what stands behind a label's end is seen by no label position
        logits = self.read(shared, len(rows)).feed(_each(ids, M), _each(real, M), keep=T)  # [n·M, T, V]
        return summed_nll(logits, _each(targets, M)).view(len(rows), M).T

    def _sent(self, *ids: Tensor) -> tuple[Tensor, ...]:
        """Token ids may be on the CPU, where they are padded, and are sent together."""
        return tuple(each.to(self.backbone.device) for each in ids)

    def _read_texts(
        self, shared: tuple[Tensor, ...], inputs: Sequence[Tensor]
    ) -> tuple[Reading, Float[Tensor, "R 1 V"]]:
        ids, real = self._sent(*_left_padded(inputs))
        reading, M = self.read(shared, len(inputs)), len(shared[0])
        return reading, reading.feed(_each(ids, M), _each(real, M), keep=1)


def greedy(reading: Reading, logits: Float[Tensor, "R 1 V"], most: int, end: int) -> Int[Tensor, "R T"]:
    """Write up to ``most`` tokens a row, each the likeliest; a row that has ended is filled up with ``end``."""
    written = [logits[:, -1].argmax(dim=1)]
    ended = written[-1] == end
    while len(written) < most and not ended.all():
        last = written[-1][:, None]
        logits = reading.feed(last, torch.ones_like(last), keep=1)
        written.append(logits[:, -1].argmax(dim=1).masked_fill(ended, end))
        ended = ended | (written[-1] == end)
    return torch.stack(written, dim=1)


def summed_nll(logits: Float[Tensor, "R T V"], labels: Int[Tensor, "R T"]) -> Float[Tensor, " R"]:
    """Return each row's cross-entropy, summed over its labels; IGNORED labels count for nothing."""
    loss = F.cross_entropy(at_least_fp32(logits).transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return loss.sum(dim=1)


def _one_by_one(prompts: Float[Tensor, "M N P D"], batch: TokenBatch) -> Iterator[tuple[Tensor, TokenBatch]]:
    """Yield each example with its own prompts."""
    for own, text, target in zip(prompts.unbind(1), batch.inputs, batch.targets, strict=True):
        yield own, TokenBatch([text], [target])


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None, "every pass reads all that is shared"
    return leaf.grad


def _feed_labels(reading: Reading, labels: Int[Tensor, "R T"]) -> Float[Tensor, "R t V"]:
    ids = labels[:, :-1].clamp(min=0)
    return reading.feed(ids, torch.ones_like(ids), keep=ids.shape[1])


def _left_padded(inputs: Sequence[Tensor]) -> tuple[Int[Tensor, "n L"], Int[Tensor, "n L"]]:
    ids = pad_sequence(list(inputs), batch_first=True, padding_value=0, padding_side="left")
    real = pad_sequence([torch.ones_like(row) for row in inputs], batch_first=True, padding_side="left")
    return ids, real


def _each(rows: Int[Tensor, "n S"], prompts: int) -> Int[Tensor, "R S"]:
    return rows.repeat_interleave(prompts, dim=0)
