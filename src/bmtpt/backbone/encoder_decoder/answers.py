"""Answer texts that each have a prompt of their own: every row is encoded once for all that is asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bmtpt.backbone.encoder_decoder.encoded import Encoded, merged
from bmtpt.backbone.engine import Query, Reply
from bmtpt.backbone.passes.packing import Pass

if TYPE_CHECKING:
    from bmtpt.backbone.encoder_decoder.engine import PassEngine


class Sent(NamedTuple):
    """Texts of several queries on the device.

    Attributes:
        ids: Text after text.
        mask: 0 where a row is padded, behind its text.
    """

    ids: Int[Tensor, " tokens"]
    mask: Int[Tensor, "R S"]


def answer_together(engine: PassEngine, queries: Sequence[Query]) -> list[Reply]:
    """Answer queries in order, whatever their prompts.

    Any of them share an encoder pass, and those to be continued share a run of the decoder.
    """
    scores, texts = [torch.empty(0)] * len(queries), [""] * len(queries)
    padded = {id(query.answers): engine.targets(query.answers)[:, 0] for query in queries if query.answers}
    targets = [padded.get(id(query.answers)) for query in queries]  # [C, T] each
    to_continue: list[tuple[int, Encoded]] = []

    def load(part: Pass) -> Sent:
        return _sent(engine, [queries[row] for row in part.rows])

    def one_pass(part: Pass, loaded: Sent) -> None:
        encoded = _encoded(engine, [queries[row] for row in part.rows], part.rows, loaded)
        _rank(engine, encoded, targets, scores)
        to_continue.extend(encoded.split([queries[row].max_new_tokens or None for row in encoded.rows]).items())

    engine.run([len(query.prompt) + len(query.text) for query in queries], 1, load, one_pass)
    with engine.settings():
        for limit, encoded in merged(to_continue, engine.most_tokens()):
            for row, text in zip(encoded.rows, engine.continued(encoded.states, encoded.mask, limit), strict=True):
                texts[row] = text
    return [Reply(*each) for each in zip(scores, texts, strict=True)]


def _rank(engine: PassEngine, encoded: Encoded, targets: Sequence[Tensor | None], scores: list[Tensor]) -> None:
    """Fill in the scores of the rows that have answers; rows with answers of one shape are decoded together."""
    shapes = [None if each is None else each.shape for each in (targets[row] for row in encoded.rows)]
    for part in encoded.split(shapes).values():
        asked = torch.stack([each for row in part.rows if (each := targets[row]) is not None])  # [R, C, T]
        found = -engine.decode_losses(part.states, part.mask, asked).cpu()
        for row, score in zip(part.rows, found, strict=True):
            scores[row] = score


def _sent(engine: PassEngine, queries: Sequence[Query]) -> Sent:
    lengths = torch.tensor([len(query.prompt) + len(query.text) for query in queries])
    S = engine.padded_length(int(lengths.max()))
    mask = (torch.arange(S) < lengths[:, None]).long()  # [R, S]
    return Sent(engine.sent(torch.cat([query.text for query in queries])), engine.sent(mask))


def _encoded(engine: PassEngine, queries: Sequence[Query], rows: Sequence[int], loaded: Sent) -> Encoded:
    """Encode [θ; embed(x)] of some queries, padded behind the text."""
    backbone, mask = engine.backbone, loaded.mask
    words = backbone.model.get_input_embeddings()(loaded.ids).split([len(query.text) for query in queries])
    prompts = [query.prompt.to(backbone.dtype) for query in queries]
    joined = [torch.cat(pair) for pair in zip(prompts, words, strict=True)]
    padded = pad_sequence(joined, batch_first=True)
    states = F.pad(padded, (0, 0, 0, mask.shape[1] - padded.shape[1]))  # [R, S, D]
    return Encoded(rows, engine.encode(states, mask), mask)
