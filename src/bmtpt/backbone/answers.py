"""Answer texts that each have a prompt of their own: every row is encoded once for all that is asked of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bmtpt.backbone.encoded import Encoded, merged
from bmtpt.backbone.engine import Query, Reply

if TYPE_CHECKING:
    from bmtpt.backbone.passes import PassEngine


def answer_together(engine: PassEngine, queries: Sequence[Query]) -> list[Reply]:
    """Answer queries in order, whatever their prompts.

    Any of them share an encoder pass, and those to be continued share a run of the decoder.
    """
    scores, texts = [torch.empty(0)] * len(queries), [""] * len(queries)
    for limit, encoded in merged(_ranked(engine, queries, scores), engine.token_budget):
        for row, text in zip(encoded.rows, engine.continued(encoded.states, encoded.mask, limit), strict=True):
            texts[row] = text
    return [Reply(*each) for each in zip(scores, texts, strict=True)]


def _ranked(engine: PassEngine, queries: Sequence[Query], scores: list[Tensor]) -> Iterator[tuple[int, Encoded]]:
    """Encode the queries and fill in their scores; hand on those to be continued, with how far."""
    padded = {id(query.answers): engine.targets(query.answers)[:, 0] for query in queries if query.answers}
    targets = [padded.get(id(query.answers)) for query in queries]  # [C, T] each
    for encoded in _encoded(engine, queries):
        shapes = [None if each is None else each.shape for each in (targets[row] for row in encoded.rows)]
        for part in encoded.split(shapes).values():
            asked = torch.stack([each for row in part.rows if (each := targets[row]) is not None])  # [R, C, T]
            found = -engine.decode_losses(part.states, part.mask, asked).cpu()
            for row, score in zip(part.rows, found, strict=True):
                scores[row] = score
        yield from encoded.split([queries[row].max_new_tokens or None for row in encoded.rows]).items()


def _encoded(engine: PassEngine, queries: Sequence[Query]) -> Iterator[Encoded]:
    """Encode [θ; embed(x)] of every query, those of about one length together, padded behind the text."""
    backbone = engine.backbone
    lengths = [len(query.prompt) + len(query.text) for query in queries]
    for part in engine.cut(lengths, 1):
        S = engine.padded_length(max(lengths[row] for row in part.rows))
        mask = engine.sent(torch.arange(S) < torch.tensor([lengths[row] for row in part.rows])[:, None])  # [R, S]
        texts = [queries[row].text for row in part.rows]
        words = backbone.model.get_input_embeddings()(engine.sent(torch.cat(texts))).split([len(x) for x in texts])
        prompts = [queries[row].prompt.to(backbone.dtype) for row in part.rows]
        joined = [torch.cat(pair) for pair in zip(prompts, words, strict=True)]
        rows = pad_sequence(joined, batch_first=True)
        states = torch.nn.functional.pad(rows, (0, 0, 0, S - rows.shape[1]))  # [R, S, D]
        with engine.settings():
            encoded = engine.encode(states, mask.long())
        yield Encoded(part.rows, encoded, mask.long())
