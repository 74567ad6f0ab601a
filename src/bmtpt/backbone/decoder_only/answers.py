"""Answer texts that each have a prompt of their own on a decoder-only model: rows of many prompts share a pass."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from bmtpt.backbone.decoder_only.engine import CausalPassEngine, Reading
from bmtpt.backbone.engine import Query, Reply
from bmtpt.backbone.passes.packing import Pass
from bmtpt.backbone.passes.run import sound_attention

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class AnsweringCausalEngine(CausalPassEngine):
    """A `CausalPassEngine` that answers queries with different prompts in shared passes."""

    @torch.no_grad()
    def answer(self, queries: Sequence[Query]) -> list[Reply]:
        """Answer queries in order, whatever their prompts; a prompt that several queries share is read once.

        Those whose prompts are of one length share passes if they have as many answers to rank, of one longest length,
        or if they ask for a text of one limit. What is both ranked and continued is read twice.
        """
        scores, texts = [torch.empty(0)] * len(queries), [""] * len(queries)
        prefixes = Prefixes(self, queries)
        padded = {id(query.answers): self.padded_answers(query.answers) for query in queries if query.answers}  # [C, T]
        with sound_attention(self.backbone.device):
            for rows in _grouped(queries, lambda query: padded[id(query.answers)].shape if query.answers else None):
                _rank(prefixes, queries, rows, padded, scores)
            for rows in _grouped(queries, lambda query: query.max_new_tokens or None):
                _continue(prefixes, queries, rows, texts)
        return [Reply(*each) for each in zip(scores, texts, strict=True)]


class Prefixes:
    """What an engine makes of the prompts of queries; those that serve several rows are read once and kept."""

    def __init__(self, engine: CausalPassEngine, queries: Sequence[Query]) -> None:
        self.engine = engine
        self.uses = Counter(
            id(query.prompt) for query in queries for asked in (query.answers, query.max_new_tokens) if asked
        )
        self.kept: dict[int, tuple[Tensor, ...]] = {}

    def of(self, queries: Sequence[Query]) -> tuple[Tensor, ...]:
        """Return what `CausalPassEngine.prefix` does for the prompts of queries, which are of one length, in order."""
        missing = {id(query.prompt): query.prompt for query in queries if id(query.prompt) not in self.kept}
        found = dict(self.kept)
        if missing:
            made = self.engine.prefix(torch.stack(list(missing.values())))
            found.update(zip(missing, zip(*(torch.split(each, 1) for each in made), strict=True), strict=True))
        self.kept.update({key: found[key] for key in missing if self.uses[key] > 1})
        rows = [found[id(query.prompt)] for query in queries]
        return tuple(torch.cat(states) for states in zip(*rows, strict=True))


def _grouped(queries: Sequence[Query], kind: Callable[[Query], Hashable]) -> list[list[int]]:
    """Group the rows that have a kind by it and the prompt's length."""
    groups = defaultdict(list)
    for row, query in enumerate(queries):
        if (own := kind(query)) is not None:
            groups[len(query.prompt), own].append(row)
    return list(groups.values())


def _rank(
    prefixes: Prefixes,
    queries: Sequence[Query],
    rows: Sequence[int],
    padded: dict[int, Tensor],
    scores: list[Tensor],
) -> None:
    """Fill in the scores of rows whose answers have one shape."""
    C, T = padded[id(queries[rows[0]].answers)].shape

    def scored(asked: Sequence[Query], reading: Reading, first: Tensor) -> Tensor:
        labels = torch.cat([padded[id(query.answers)] for query in asked])  # [R·C, T]
        return prefixes.engine.answer_scores(reading, first, labels, C).cpu()

    _fill(scores, scored, prefixes, queries, rows, after=T, copies=C)


def _continue(prefixes: Prefixes, queries: Sequence[Query], rows: Sequence[int], texts: list[str]) -> None:
    """Fill in the texts of rows that have one limit."""
    limit = queries[rows[0]].max_new_tokens

    def continued(_: Sequence[Query], reading: Reading, first: Tensor) -> list[str]:
        return prefixes.engine.continued(reading, first, limit)

    _fill(texts, continued, prefixes, queries, rows, after=limit, copies=1)


def _fill(
    found: list[Answer],
    answered: Callable[[Sequence[Query], Reading, Tensor], Iterable[Answer]],
    prefixes: Prefixes,
    queries: Sequence[Query],
    rows: Sequence[int],
    after: int,
    copies: int,
) -> None:
    """Read the rows of some queries in passes, and put what is ``answered`` to each in its place."""
    engine = prefixes.engine

    def one_pass(part: Pass) -> None:
        asked = [queries[rows[i]] for i in part.rows]
        reading, first = engine.read_texts(prefixes.of(asked), [query.text for query in asked], own=True)
        for i, each in zip(part.rows, answered(asked, reading, first), strict=True):
            found[rows[i]] = each

    engine.run(engine.cut_rows([queries[row] for row in rows], after, copies), one_pass)
