"""Answer texts that each have a prompt of their own on a decoder-only model: rows of many prompts share a pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bmtpt.backbone.engine import Query, Reply
from bmtpt.backbone.packing import Pass

if TYPE_CHECKING:
    from bmtpt.backbone.causal_passes import CausalPassEngine


def answer_together(engine: CausalPassEngine, queries: Sequence[Query]) -> list[Reply]:
    """Answer queries in order, whatever their prompts.

    Those whose prompts are of one length share passes if they have as many answers to rank, of one longest length, or
    if they ask for a text of one limit. Each pass reads each of its prompts once.
    """
    scores, texts = [torch.empty(0)] * len(queries), [""] * len(queries)
    padded = {id(query.answers): engine.padded_answers(query.answers) for query in queries if query.answers}  # [C, T]
    with engine.settings():
        for rows in _alike(queries, lambda query: padded[id(query.answers)].shape if query.answers else None):
            _rank(engine, queries, rows, padded, scores)
        for rows in _alike(queries, lambda query: query.max_new_tokens or None):
            _continue(engine, queries, rows, texts)
    return [Reply(*each) for each in zip(scores, texts, strict=True)]


def _alike(queries: Sequence[Query], kind: Callable[[Query], Hashable]) -> list[list[int]]:
    """Group the rows that have a kind by it and the prompt's length."""
    groups = defaultdict(list)
    for row, query in enumerate(queries):
        if (own := kind(query)) is not None:
            groups[len(query.prompt), own].append(row)
    return list(groups.values())


def _rank(
    engine: CausalPassEngine,
    queries: Sequence[Query],
    rows: Sequence[int],
    padded: dict[int, Tensor],
    scores: list[Tensor],
) -> None:
    """Fill in the scores of rows whose answers have one shape."""
    C, T = padded[id(queries[rows[0]].answers)].shape

    def one_pass(part: Pass) -> None:
        asked = [rows[i] for i in part.rows]
        reading, first = engine.read_texts(*_prefixes(engine, queries, asked), own=True)
        labels = torch.cat([padded[id(queries[row].answers)] for row in asked])  # [R·C, T]
        for row, score in zip(asked, engine.answer_scores(reading, first, labels, C).cpu(), strict=True):
            scores[row] = score

    engine.run(engine.cut_rows([queries[row] for row in rows], behind=T, copies=C), one_pass)


def _continue(engine: CausalPassEngine, queries: Sequence[Query], rows: Sequence[int], texts: list[str]) -> None:
    """Fill in the texts of rows that have one limit."""
    limit = queries[rows[0]].max_new_tokens

    def one_pass(part: Pass) -> None:
        asked = [rows[i] for i in part.rows]
        reading, first = engine.read_texts(*_prefixes(engine, queries, asked), own=True)
        for row, text in zip(asked, engine.continued(reading, first, limit), strict=True):
            texts[row] = text

    engine.run(engine.cut_rows([queries[row] for row in rows], behind=limit, copies=1), one_pass)


def _prefixes(
    engine: CausalPassEngine, queries: Sequence[Query], rows: Sequence[int]
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Return what each row shares with the others of its prompt, rows leading in each tensor, and the rows' texts."""
    distinct = {id(queries[row].prompt): queries[row].prompt for row in rows}
    place = {key: i for i, key in enumerate(distinct)}
    of = torch.tensor([place[id(queries[row].prompt)] for row in rows], device=engine.backbone.device)
    shared = engine.prefix(torch.stack(list(distinct.values())))
    return tuple(each[of] for each in shared), [queries[row].text for row in rows]
