"""Answer texts that each have a prompt of their own: every row is encoded once for all that is asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bmtpt.backbone.encoder_decoder.encoded import Encoded, merged
from bmtpt.backbone.encoder_decoder.engine import PassEngine
from bmtpt.backbone.engine import Query, Reply
from bmtpt.backbone.passes.packing import Pass
from bmtpt.backbone.passes.run import sound_attention


@dataclass(frozen=True)
class AnsweringEngine(PassEngine):
    """A `PassEngine` that answers queries with different prompts in shared passes."""

    @torch.no_grad()
    def answer(self, queries: Sequence[Query]) -> list[Reply]:
        """Answer queries in order, whatever their prompts.

        Any of them share an encoder pass, and those that ask for texts of one limit share a run of the decoder.
        """
        scores, texts = [torch.empty(0)] * len(queries), [""] * len(queries)
        padded = {id(query.answers): self.targets(query.answers)[:, 0] for query in queries if query.answers}
        targets = [padded.get(id(query.answers)) for query in queries]  # [C, T] each
        to_continue: list[tuple[int, Encoded]] = []

        def one_pass(part: Pass) -> None:
            encoded = self._encoded(queries, part.rows)
            self._rank(encoded, targets, scores)
            to_continue.extend(encoded.split([queries[row].max_new_tokens or None for row in part.rows]).items())

        self.run([len(query.prompt) + len(query.text) for query in queries], 1, one_pass)
        with sound_attention(self.backbone.device):
            for limit, encoded in merged(to_continue, self.most_tokens()):
                for row, text in zip(encoded.rows, self.continued(encoded.states, encoded.mask, limit), strict=True):
                    texts[row] = text
        return [Reply(*each) for each in zip(scores, texts, strict=True)]

    def _encoded(self, queries: Sequence[Query], rows: Sequence[int]) -> Encoded:
        """Encode [θ; embed(x)] of some queries, padded at the end."""
        asked = [queries[row] for row in rows]
        ids = self.sent(torch.cat([query.text for query in asked]))
        words = self.backbone.model.get_input_embeddings()(ids).split([len(query.text) for query in asked])
        prompts = [query.prompt.to(self.backbone.dtype) for query in asked]
        joined = [torch.cat(pair) for pair in zip(prompts, words, strict=True)]
        padded = pad_sequence(joined, batch_first=True)  # [R, S, D]
        lengths = torch.tensor([len(row) for row in joined])
        mask = self.sent((torch.arange(padded.shape[1]) < lengths[:, None]).long())  # [R, S]
        return Encoded(rows, self.encode(padded, mask), mask)

    def _rank(self, encoded: Encoded, targets: Sequence[Tensor | None], scores: list[Tensor]) -> None:
        """Fill in the scores of the rows that have answers; rows with answers of one shape are decoded together."""
        shapes = [None if each is None else each.shape for each in (targets[row] for row in encoded.rows)]
        for part in encoded.split(shapes).values():
            asked = torch.stack([each for row in part.rows if (each := targets[row]) is not None])  # [R, C, T]
            found = -self.decode_losses(part.states, part.mask, asked).cpu()
            for row, score in zip(part.rows, found, strict=True):
                scores[row] = score
