"""What the engines for encoder-decoders share: [θ; embed(x)] is encoded, and the decoder reads or writes the answer.

Training, scoring and generation share one encoder path, so that what is evaluated is what was trained.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bmtpt.backbone.engine import Engine, Query, Reply, Shared, Written
from bmtpt.backbone.passes import Pass, at_least_fp32, grouped, passes, sound_attention
from bmtpt.types import TokenBatch

Texts = tuple[Int[Tensor, "n L"], Int[Tensor, "n S"] | None]
"""Token ids padded at the end, and the mask of prompt and text: 0 where padded, None where every position counts."""


@dataclass(frozen=True)
class PassEngine(Engine):
    """`Engine` for encoder-decoders; a subclass says how one pass is encoded and decoded. S positions are P + L."""

    @abstractmethod
    def encode(self, embeddings: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"] | None) -> Float[Tensor, "R S D"]:
        """Return the encoder's output in the compute dtype; positions where the mask is 0 hold nothing of use.

        The mask is None where every position counts, so that no number has to be read from the device.
        """

    @abstractmethod
    def decode_losses(
        self, states: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"] | None, targets: Int[Tensor, "n C T"]
    ) -> Float[Tensor, "R C"]:
        """Return each target's summed cross-entropy in fp32; targets hold IGNORED where they are padded.

        The R/n rows of one example are adjacent and share its targets.
        """

    def cut(self, prompts: Tensor, inputs: Sequence[Tensor], answers: Sequence[int], copies: int = 1) -> list[Pass]:
        P = prompts.shape[-2]
        lengths = [max(P + len(ids), copies * answer) for ids, answer in zip(inputs, answers, strict=True)]
        return self.pack(lengths, len(prompts))

    def pack(self, lengths: Sequence[int], prompts: int) -> list[Pass]:
        """Cut examples × prompts into passes, given the positions of each: the encoder's, or its answers' if more."""
        return passes(lengths, copies=prompts, budget=self.budget())

    def pass_losses(self, shared: Shared, batch: TokenBatch, rows: list[int]) -> Float[Tensor, "m n"]:
        states, mask = self.encode_texts(shared[0], self.texts(shared[0], [batch.inputs[i] for i in rows]))
        loss = self.decode_losses(states, mask, self.padded([batch.targets[i] for i in rows])[:, None])  # [n·m, 1]
        return loss.view(len(rows), -1).T

    def pass_readings(
        self, shared: Shared, inputs: Sequence[Tensor], labels: Int[Tensor, "C T"]
    ) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R D"]]:
        states, mask = self.encode_texts(shared[0], self.texts(shared[0], inputs))  # [n·m, S, D]
        scores = -self.decode_losses(states, mask, labels[None])  # the same for all rows
        return scores, pooled(states, mask, [shared[0].shape[-2]])

    def pass_texts(self, shared: Shared, inputs: Sequence[Tensor], limit: int) -> list[Written]:
        return self.continued(*self.encode_texts(shared[0], self.texts(shared[0], inputs)), limit)

    def texts(self, prompts: Float[Tensor, "m *n P D"], inputs: Sequence[Tensor]) -> Texts:
        """Return texts on the device, and the mask that covers their prompts too."""
        P, lengths = prompts.shape[-2], torch.tensor([len(ids) for ids in inputs])
        ids = self.sent(pad_sequence(list(inputs), batch_first=True))
        if lengths.min() == lengths.max():
            return ids, None
        real = torch.arange(P + ids.shape[1]) < P + lengths[:, None]
        return ids, self.sent(real.to(torch.int64))

    def encode_texts(
        self, prompts: Float[Tensor, "m *n P D"], texts: Texts
    ) -> tuple[Float[Tensor, "R S D"], Int[Tensor, "R S"] | None]:
        """Encode [θ_m; embed(x_n)], example-major; return states [n·m, S, D] and the mask of every row."""
        m, (ids, mask) = len(prompts), texts
        text = self.backbone.model.get_input_embeddings()(ids)  # [n, L, D]
        rows = prompts.repeat(len(ids), 1, 1) if prompts.ndim == 3 else prompts.transpose(0, 1).flatten(0, 1)
        # Cast after the repeat: the gradient over n examples is then summed in fp32.
        joined = torch.cat([rows.to(self.backbone.dtype), text.repeat_interleave(m, dim=0)], dim=1)  # [n·m, S, D]
        each = None if mask is None else mask.repeat_interleave(m, dim=0)
        return self.encode(joined, each), each

    def continued(self, states: Float[Tensor, "R S D"], mask: Tensor | None, max_new_tokens: int) -> list[Written]:
        """Decode greedily from encoder outputs."""
        from transformers.modeling_outputs import BaseModelOutput

        ids = self.backbone.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=states.new_ones(states.shape[:2], dtype=torch.int64) if mask is None else mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
        )
        return self.written(ids)

    @torch.no_grad()
    def answer(self, queries: Sequence[Query]) -> list[Reply]:
        """Answer queries in order, whatever their prompts; each is encoded once for all that is asked of it.

        Any of them share an encoder pass, and those that ask for texts of one limit share a run of the decoder.
        """
        scores, pools = [torch.empty(0)] * len(queries), [torch.empty(0)] * len(queries)
        texts = [Written()] * len(queries)
        padded = {id(query.answers): self.padded(query.answers) for query in queries if query.answers}  # [C, T] each

        def one_pass(part: Pass) -> list[tuple[int, Encoded]]:
            asked = [queries[row] for row in part.rows]
            states, mask = self._encode_queries(asked)
            shapes = [padded[id(query.answers)].shape if query.answers else None for query in asked]
            for own in grouped(shapes).values():
                targets = torch.stack([padded[id(asked[i].answers)] for i in own])  # [R, C, T]
                found = -self.decode_losses(states[own], mask[own], targets).cpu()
                means = pooled(states[own], mask[own], [len(asked[i].prompt) for i in own]).cpu()
                for i, score, mean in zip(own, found, means, strict=True):
                    scores[part.rows[i]], pools[part.rows[i]] = score, mean
            limits = grouped([query.max_new_tokens or None for query in asked])
            return [(n, Encoded([part.rows[i] for i in own], states[own], mask[own])) for n, own in limits.items()]

        answers = [padded[id(query.answers)].numel() if query.answers else 0 for query in queries]
        sizes = [max(len(q.prompt) + len(q.text), ranked) for q, ranked in zip(queries, answers, strict=True)]
        to_continue = [each for _, encoded in self.run_here(self.pack(sizes, 1), one_pass) for each in encoded]
        with sound_attention(self.backbone.device):
            for limit, encoded in joined(to_continue, self.budget()):
                found = self.continued(encoded.states, encoded.mask, limit)
                for row, text in zip(encoded.rows, found, strict=True):
                    texts[row] = text
        return [Reply(*each) for each in zip(scores, pools, texts, strict=True)]

    def _encode_queries(self, asked: Sequence[Query]) -> tuple[Float[Tensor, "R S D"], Int[Tensor, "R S"]]:
        """Encode [θ; embed(x)] of queries, padded at the end."""
        ids = self.sent(torch.cat([query.text for query in asked]))
        words = self.backbone.model.get_input_embeddings()(ids).split([len(query.text) for query in asked])
        prompts = [query.prompt.to(self.backbone.dtype) for query in asked]
        rows = [torch.cat(pair) for pair in zip(prompts, words, strict=True)]
        padded = pad_sequence(rows, batch_first=True)  # [R, S, D]
        mask = self.sent((torch.arange(padded.shape[1]) < torch.tensor([[len(row)] for row in rows])).long())
        return self.encode(padded, mask), mask


class Encoded(NamedTuple):
    """Some queries as the encoder returned them; the mask is 0 where a row is padded, after its text."""

    rows: list[int]
    states: Float[Tensor, "R S D"]
    mask: Int[Tensor, "R S"]


def joined(parts: Iterable[tuple[int, Encoded]], budget: int) -> Iterator[tuple[int, Encoded]]:
    """Join queries that ask for texts of one limit, as long as they fit into ``budget`` padded tokens.

    One more token of the decoder costs about the same for a few rows as for many.
    """
    waiting: dict[int, list[list[Encoded]]] = {}
    for limit, part in parts:
        groups = waiting.setdefault(limit, [[]])
        together = [*groups[-1], part]
        tokens = sum(len(each.rows) for each in together) * max(each.mask.shape[1] for each in together)
        if tokens > budget and groups[-1]:
            groups.append([part])
        else:
            groups[-1].append(part)
    for limit, groups in waiting.items():
        for group in groups:
            states = pad_sequence([row for part in group for row in part.states], batch_first=True)
            mask = pad_sequence([row for part in group for row in part.mask], batch_first=True)
            yield limit, Encoded([row for part in group for row in part.rows], states, mask)


def pooled(
    states: Float[Tensor, "R S D"], mask: Int[Tensor, "R S"] | None, prompts: Sequence[int]
) -> Float[Tensor, "R D"]:
    """Return the mean of the states over each text's tokens, in fp32, given the length of its prompt (one, or each)."""
    text = torch.arange(states.shape[1], device=states.device) >= torch.tensor(prompts, device=states.device)[:, None]
    if mask is not None:
        text = text & mask.bool()
    kept = at_least_fp32(states) * text[..., None]
    return kept.sum(dim=1) / text.sum(dim=1, keepdim=True).clamp(min=1)


def decoder_inputs(targets: Int[Tensor, "R T"], start: int) -> Int[Tensor, "R T"]:
    """Shift the targets right and prepend the start token; padding becomes token 0, which no label position sees."""
    return F.pad(targets.clamp(min=0)[:, :-1], (1, 0), value=start)
