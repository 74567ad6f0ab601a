"""The special tokens around texts and answers: a prompt works only with the framing it was trained with.

Encoder-decoders: text and answer each get what the tokenizer adds to one text (T5: ``</s>`` at the end; BART: ``<s>``
and ``</s>``). Decoder-only: the text gets what the tokenizer adds at the start (Llama: ``<s>``; GPT-2: nothing) and no
end, because the answer continues it: after a space, closed by the end of sequence.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bmtpt.backbone.model.encoding import plain_ids

ANCHOR = ":"
"""Text after which an answer is tokenised to find its ids: some vocabularies mark the space before a word,
others the word's start, and only the join of two words shows which."""


class Framing(NamedTuple):
    """Token ids around a text and around an answer.

    Attributes:
        text: Ids before and after a text.
        answer: Ids before and after an answer.
        joined: Whether the answer follows on the text in one sequence.
    """

    text: tuple[tuple[int, ...], tuple[int, ...]]
    answer: tuple[tuple[int, ...], tuple[int, ...]]
    joined: bool


def framing_of(tokenizer: Any, *, decoder_only: bool) -> Framing:
    """Read the framing off a tokenizer that has an end of sequence."""
    plain, framed = plain_ids(tokenizer, ANCHOR), list(tokenizer.encode(ANCHOR))
    start = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), None)
    head = () if start is None else tuple(framed[:start])
    tail = () if start is None else tuple(framed[start + len(plain) :])
    end = (tokenizer.eos_token_id,)
    if decoder_only:
        return Framing((head, ()), ((), end), joined=True)
    return Framing((head, tail or end), (head, tail or end), joined=False)


def answer_ids(tokenizer: Any, framing: Framing, answer: str) -> list[int]:
    """Return the ids of an answer, end of sequence included."""
    head, tail = framing.answer
    if not framing.joined:
        return [*head, *plain_ids(tokenizer, answer), *tail]
    before, both = plain_ids(tokenizer, ANCHOR), plain_ids(tokenizer, f"{ANCHOR} {answer}")
    added = both[len(before) :] if both[: len(before)] == before else plain_ids(tokenizer, f" {answer}")
    return [*head, *added, *tail]
