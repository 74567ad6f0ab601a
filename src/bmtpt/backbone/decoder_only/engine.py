"""What the engines for decoder-only models share: losses, gradients, scoring and generation.

A row is [prompt; text; answer] and positions count from the prompt's first token. Where rows of one pass differ in
length, texts are padded on the left, masked and without a position: the last token of every text is then in one
column, followed by the answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bmtpt.backbone.engine import Choice, Engine, Query, Readings, Reply, Shared, Written
from bmtpt.backbone.passes import Pass, at_least_fp32, grouped, passes, summed_nll
from bmtpt.errors import BackboneError
from bmtpt.types import TokenBatch

Answer = TypeVar("Answer")


class Reading(ABC):
    """R rows that the model reads from left to right, each begun with its prompt.

    Attributes:
        last: What the vocabulary head read after the last token of each row.
    """

    last: Float[Tensor, "R D"]

    @abstractmethod
    def feed(self, ids: Int[Tensor, "R S"], real: Int[Tensor, "R S"], keep: int) -> Float[Tensor, "R T V"]:
        """Read S more tokens (none where ``real`` is 0); return the logits after each of the last T = keep."""

    @abstractmethod
    def repeat(self, copies: int) -> None:
        """Go on with ``copies`` of every row, next to each other."""


@dataclass(frozen=True)
class CausalPassEngine(Engine):
    """`Engine` for decoder-only models; a subclass says what a prompt's rows share and how they are read.

    If every example has prompts of its own nothing is shared, and losses and gradients go example by example.
    """

    @abstractmethod
    def read(self, shared: Shared, examples: int) -> Reading:
        """Begin n·M rows that continue what `prefix` returned."""

    @torch.no_grad()
    def losses(self, prompts: Float[Tensor, "M *N P D"], batch: TokenBatch) -> Float[Tensor, "M N"]:
        if prompts.ndim == 3:
            return super().losses(prompts, batch)
        result = prompts.new_empty(len(prompts), len(batch))
        for n, (own, one) in enumerate(_one_by_one(prompts, batch)):
            result[:, n : n + 1] = self.losses(own, one)
        return result

    def gradients(
        self,
        prompts: Float[Tensor, "M *N P D"],
        batch: TokenBatch,
        weights: Float[Tensor, " N"],
        choice: Choice | None = None,
    ) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M *N P D"]]:
        if prompts.ndim == 3:
            return super().gradients(prompts, batch, weights, choice)
        result, gradient = prompts.new_empty(len(prompts), len(batch)), torch.zeros_like(prompts)
        for n, (own, one) in enumerate(_one_by_one(prompts, batch)):
            result[:, n : n + 1], gradient[:, n] = self.gradients(own, one, weights[n : n + 1], choice)
        return result, gradient

    @torch.no_grad()
    def readings(
        self, prompts: Float[Tensor, "M *N P D"], inputs: Sequence[Tensor], answers: Sequence[Tensor]
    ) -> Readings:
        if prompts.ndim == 3:
            return super().readings(prompts, inputs, answers)
        M, N = len(prompts), len(inputs)
        found = Readings(prompts.new_empty(M, N, len(answers)), prompts.new_empty(M, N, prompts.shape[-1]))
        for i, reply in enumerate(self.answer(_own_queries(prompts, inputs, answers=answers))):
            found.log_likelihoods[i // N, i % N] = reply.log_likelihoods
            found.states[i // N, i % N] = reply.states
        return found

    @torch.no_grad()
    def generate(
        self, prompts: Float[Tensor, "M *N P D"], inputs: Sequence[Tensor], max_new_tokens: int
    ) -> list[list[Written]]:
        if prompts.ndim == 3:
            return super().generate(prompts, inputs, max_new_tokens)
        found = [each.text for each in self.answer(_own_queries(prompts, inputs, max_new_tokens=max_new_tokens))]
        return [found[m * len(inputs) :][: len(inputs)] for m in range(len(prompts))]

    def cut(self, prompts: Tensor, inputs: Sequence[Tensor], answers: Sequence[int], copies: int = 1) -> list[Pass]:
        """Cut examples × prompts into passes, given the lengths of the answers; ``copies`` are read side by side.

        A row of the pass holds a prompt of its own, be it embeddings or keys and values.

        Raises:
            BackboneError: A text has no tokens, or a row more than the model has positions.
        """
        P = prompts.shape[-2]
        lengths = [len(ids) + answer for ids, answer in zip(inputs, answers, strict=True)]
        if not all(len(ids) for ids in inputs):
            raise BackboneError("a text has no tokens, and a decoder-only model continues a text: give one with some")
        self.backbone.require_positions(P + max(lengths, default=0))
        return self.pack([len(ids) for ids in inputs], [copies * (P + length) for length in lengths], len(prompts))

    def pack(self, texts: Sequence[int], tokens: Sequence[int], prompts: int) -> list[Pass]:
        """Cut examples × prompts, given the length of each text and how many tokens it takes with one prompt."""
        return passes(tokens, copies=prompts, budget=self.budget())

    def pass_losses(self, shared: Shared, batch: TokenBatch, rows: list[int]) -> Float[Tensor, "m n"]:
        targets = self.padded([batch.targets[i] for i in rows])  # [n, T]
        ids, real = map(self.sent, _left_padded([batch.inputs[i] for i in rows]))
        T, M = targets.shape[1], len(shared[0])
        ids = torch.cat([ids, targets[:, :-1].clamp(min=0)], dim=1)  # [n, L + T − 1]
        real = F.pad(real, (0, T - 1), value=1)  # no label position sees what follows a label's end
        logits = self.read(shared, len(rows)).feed(_each(ids, M), _each(real, M), keep=T)  # [n·M, T, V]
        return summed_nll(logits, _each(targets, M)).view(len(rows), M).T

    def pass_readings(
        self, shared: Shared, inputs: Sequence[Tensor], labels: Int[Tensor, "C T"]
    ) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R D"]]:
        reading, first = self.read_texts(shared, inputs)  # [n·m, 1, V]
        states = at_least_fp32(reading.last)
        return self.answer_scores(reading, first, labels.repeat(len(first), 1), len(labels)), states

    def pass_texts(self, shared: Shared, inputs: Sequence[Tensor], limit: int) -> list[Written]:
        return self.continued(*self.read_texts(shared, inputs), limit)

    def read_texts(
        self, shared: Shared, inputs: Sequence[Tensor], own: bool = False
    ) -> tuple[Reading, Float[Tensor, "R 1 V"]]:
        """Read n texts that continue what `prefix` returned for M prompts; return the logits after each.

        The rows are every text with every prompt (example-major), or each text with its ``own`` prompt, M = n.
        """
        ids, real = map(self.sent, _left_padded(inputs))
        copies = 1 if own else len(shared[0])
        reading = self.read(shared, 1 if own else len(inputs))
        return reading, reading.feed(_each(ids, copies), _each(real, copies), keep=1)

    def answer_scores(
        self, reading: Reading, first: Float[Tensor, "R 1 V"], labels: Int[Tensor, "A T"], answers: int
    ) -> Float[Tensor, "R C"]:
        """Return the log-likelihoods of C = ``answers`` answers to each row that was read; A = R·C."""
        reading.repeat(answers)
        logits = first.repeat_interleave(answers, dim=0)
        if labels.shape[1] > 1:
            ids = labels[:, :-1].clamp(min=0)
            fed = reading.feed(ids, torch.ones_like(ids), keep=ids.shape[1])
            logits = torch.cat([logits, fed], dim=1)  # [R·C, T, V]
        return -summed_nll(logits, labels).view(-1, answers)

    def continued(self, reading: Reading, first: Float[Tensor, "R 1 V"], most: int) -> list[Written]:
        """Write up to ``most`` tokens after each row that was read."""
        return self.written(greedy(reading, first, most, self.backbone.tokenizer.eos_token_id))

    @torch.no_grad()
    def answer(self, queries: Sequence[Query]) -> list[Reply]:
        """Answer queries in order, whatever their prompts; a prompt that several queries share is read once.

        Those whose prompts are of one length share passes if they have as many answers to rank, of one longest length,
        or if they ask for a text of one limit. What is both ranked and continued is read twice.
        """
        ranks, texts = [(torch.empty(0), torch.empty(0))] * len(queries), [Written()] * len(queries)
        prefixes = Prefixes(self, queries)
        padded = {id(query.answers): self.padded(query.answers) for query in queries if query.answers}  # [C, T]
        ranked = [(len(query.prompt), *padded[id(query.answers)].shape) if query.answers else None for query in queries]
        for (_, C, T), rows in grouped(ranked).items():

            def ranked_rows(
                asked: Sequence[Query], reading: Reading, first: Tensor, C: int = C
            ) -> Iterable[tuple[Tensor, Tensor]]:
                labels = torch.cat([padded[id(query.answers)] for query in asked])  # [R·C, T]
                states = at_least_fp32(reading.last).cpu()
                return zip(self.answer_scores(reading, first, labels, C).cpu(), states, strict=True)

            self._fill(ranks, ranked_rows, prefixes, rows, after=T, copies=C)
        limits = [(len(query.prompt), query.max_new_tokens) if query.max_new_tokens else None for query in queries]
        for (_, limit), rows in grouped(limits).items():

            def continued(_: Sequence[Query], reading: Reading, first: Tensor, limit: int = limit) -> list[Written]:
                return self.continued(reading, first, limit)

            self._fill(texts, continued, prefixes, rows, after=limit, copies=1)
        return [Reply(*rank, text) for rank, text in zip(ranks, texts, strict=True)]

    def _fill(
        self,
        found: list[Answer],
        answered: Callable[[Sequence[Query], Reading, Tensor], Iterable[Answer]],
        prefixes: Prefixes,
        rows: Sequence[int],
        after: int,
        copies: int,
    ) -> None:
        """Read some queries, with prompts of one length, in passes; put what is ``answered`` to each in its place."""
        chosen = [prefixes.queries[row] for row in rows]

        def one_pass(part: Pass) -> Iterable[Answer]:
            asked = [chosen[i] for i in part.rows]
            reading, first = self.read_texts(prefixes.of(asked), [query.text for query in asked], own=True)
            return answered(asked, reading, first)

        texts = [query.text for query in chosen]
        parts = self.cut(chosen[0].prompt[None], texts, [after] * len(texts), copies)
        for part, answers in self.run_here(parts, one_pass):
            for i, each in zip(part.rows, answers, strict=True):
                found[rows[i]] = each


class Prefixes:
    """What an engine makes of the prompts of queries; those that serve several rows are read once and kept."""

    def __init__(self, engine: CausalPassEngine, queries: Sequence[Query]) -> None:
        self.engine, self.queries = engine, queries
        self.uses = Counter(
            id(query.prompt) for query in queries for asked in (query.answers, query.max_new_tokens) if asked
        )
        self.kept: dict[int, Shared] = {}

    def of(self, queries: Sequence[Query]) -> Shared:
        """Return what `Engine.prefix` does for the prompts of queries, which are of one length, in order."""
        missing = {id(query.prompt): query.prompt for query in queries if id(query.prompt) not in self.kept}
        found = dict(self.kept)
        if missing:
            made = self.engine.prefix(torch.stack(list(missing.values())))
            found.update(zip(missing, zip(*(torch.split(each, 1) for each in made), strict=True), strict=True))
        self.kept.update({key: found[key] for key in missing if self.uses[key] > 1})
        rows = [found[id(query.prompt)] for query in queries]
        return tuple(torch.cat(states) for states in zip(*rows, strict=True))


@contextmanager
def folded_head(model: Any) -> Iterator[list[Tensor]]:
    """Hand the vocabulary product contiguous states while the model runs; yield a list that receives them.

    What `logits_to_keep` cuts out of [R, S, D] is a slice, which torch does not fold into one product with frozen
    weights: it would copy all V × D of them once per row.
    """
    head, read = model.get_output_embeddings(), list[Tensor]()

    def contiguous(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        read[:] = [each.contiguous() for each in inputs]
        return tuple(read)

    hook = head.register_forward_pre_hook(contiguous)
    try:
        yield read
    finally:
        hook.remove()


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


def _own_queries(prompts: Float[Tensor, "M N P D"], inputs: Sequence[Tensor], **asked: Any) -> list[Query]:
    """Return the queries of M × N prompts, each with its text, m-major."""
    texts = list(inputs) * len(prompts)
    return [Query(prompt, text, **asked) for prompt, text in zip(prompts.flatten(0, 1), texts, strict=True)]


def _one_by_one(prompts: Float[Tensor, "M N P D"], batch: TokenBatch) -> Iterator[tuple[Tensor, TokenBatch]]:
    """Yield each example with its own prompts."""
    for own, text, target in zip(prompts.unbind(1), batch.inputs, batch.targets, strict=True):
        yield own, TokenBatch([text], [target])


def _left_padded(inputs: Sequence[Tensor]) -> tuple[Int[Tensor, "n L"], Int[Tensor, "n L"]]:
    ids = pad_sequence(list(inputs), batch_first=True, padding_value=0, padding_side="left")
    real = pad_sequence([torch.ones_like(row) for row in inputs], batch_first=True, padding_side="left")
    return ids, real


def _each(rows: Int[Tensor, "n S"], prompts: int) -> Int[Tensor, "R S"]:
    return rows.repeat_interleave(prompts, dim=0)
