"""Tokenise examples, and draw the rows of step t as a pure function of (seed, t), so that resuming is exact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from bmtpt.backbone import Backbone
from bmtpt.backbone.model.encoding import plain_ids
from bmtpt.backbone.model.framing import answer_ids
from bmtpt.tasks import splits
from bmtpt.tasks.examples import Lazy
from bmtpt.tasks.orders import Shuffled
from bmtpt.types import Example, TokenBatch

LOOKED_AT = 1_000
"""Examples of a streamed part that are tokenised before it is drawn from."""


@dataclass(frozen=True)
class Tokenised:
    """Examples and their token ids.

    Attributes:
        examples: N rows.
        batch: Their tokens, in the same order.
        cut: How many texts were cut to the length limit.
        written: Each answer that the tokenizer cannot write as it is, and what the tokens say instead.
    """

    examples: tuple[Example, ...]
    batch: TokenBatch
    cut: int
    written: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every row's token ids, label and accepted answers, in order."""
        found = hashlib.sha256()
        for example, text, target in zip(self.examples, self.batch.inputs, self.batch.targets, strict=True):
            row = (text.tolist(), target.tolist(), example.label, example.references, example.group)
            found.update(json.dumps(row).encode())
        return found.hexdigest()

    def rows(self, indices: Sequence[int]) -> TokenBatch:
        """Return the tokens of some rows."""
        return TokenBatch([self.batch.inputs[i] for i in indices], [self.batch.targets[i] for i in indices])


@dataclass(frozen=True)
class Streamed:
    """Examples that are tokenised when they are drawn.

    Attributes:
        looked_at: Some of them, drawn at random, on which the tokenizer is tried.
    """

    backbone: Backbone
    examples: Lazy
    max_length: int
    looked_at: Tokenised

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def cut(self) -> int:
        """How many of those looked at were cut to the length limit."""
        return self.looked_at.cut

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all examples, the tokenizer and the length limit."""
        facts = (self.examples.digest, self.backbone.tokenizer_hash, self.max_length)
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def rows(self, indices: Sequence[int]) -> TokenBatch:
        """Return the tokens of some rows."""
        return tokenise(self.backbone, [self.examples[i] for i in indices], self.max_length).batch


TrainingRows = Tokenised | Streamed
"""What a source stage draws from."""


def training_rows(backbone: Backbone, examples: Sequence[Example], max_length: int, seed: int) -> TrainingRows:
    """Return examples to draw from: tokenised, or, if there are too many to hold, when they are drawn.

    Args:
        seed: Draws the examples that are looked at of those.
    """
    if not isinstance(examples, Lazy):
        return tokenise(backbone, examples, max_length)
    drawn = splits.stretches(len(examples), seed, LOOKED_AT)[0]
    return Streamed(backbone, examples, max_length, tokenise(backbone, [examples[i] for i in drawn], max_length))


def tokenise(backbone: Backbone, examples: Sequence[Example], max_length: int) -> Tokenised:
    """Tokenise examples; texts longer than ``max_length`` tokens are cut in their context and counted.

    Ids stay on the CPU whatever the device: a pass is sent as one tensor, not as a million small ones.
    """
    examples = tuple(examples)
    texts = [tokenise_text(backbone, example, max_length) for example in examples]
    inputs = [ids for ids, _ in texts]
    targets = [tokenise_answer(backbone, example.target) for example in examples]
    answers = {example.target: ids for example, ids in zip(examples, targets, strict=True)}
    for reference in {reference for example in examples for reference in example.references}.difference(answers):
        answers[reference] = tokenise_answer(backbone, reference)
    written = as_written(backbone, answers)
    return Tokenised(examples, TokenBatch(inputs, targets), sum(cut for _, cut in texts), written)


def tokenise_text(backbone: Backbone, example: Example, max_length: int) -> tuple[torch.Tensor, bool]:
    """Return the int64 ids [L] of an example's text, and whether it was cut to ``max_length`` tokens."""
    framing = backbone.framing
    source = _without_end_blank(example) if framing.joined else example
    ids, cut = truncate(source, backbone.tokenizer, max_length, framing.text)
    return torch.tensor(ids, dtype=torch.int64), cut


def tokenise_answer(backbone: Backbone, answer: str) -> torch.Tensor:
    """Return the int64 ids [T] of an answer, end of sequence included."""
    return torch.tensor(answer_ids(backbone.tokenizer, backbone.framing, answer))


def as_written(backbone: Backbone, answers: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the answers whose tokens say something else, as those tokens read; others are left out.

    A tokenizer may lack characters (T5's has no "ï") or change them ("…" into "...").
    """
    if not answers:  # of no rows, transformers decodes one empty text
        return {}
    shown = backbone.tokenizer.batch_decode(list(answers.values()), skip_special_tokens=True)
    pairs = ((answer, text.strip()) for answer, text in zip(answers, shown, strict=True))
    return {answer: text for answer, text in pairs if text != answer.strip()}


def unknown_words(tokenizer: Any, words: Sequence[str]) -> list[str]:
    """Return the words of which the tokenizer's vocabulary lacks a part."""
    unknown = tokenizer.unk_token_id
    return [word for word in words if unknown is not None and unknown in plain_ids(tokenizer, word)]


def truncate(
    example: Example, tokenizer: Any, max_length: int, framing: tuple[Sequence[int], Sequence[int]] | None = None
) -> tuple[list[int], bool]:
    """Tokenise an example's source text, cutting the end of its context if it is too long; tell whether it was cut.

    Text that fits is tokenised in one piece. Otherwise the parts are tokenised one by one, each with the blank
    before it, so that SentencePiece and byte-level vocabularies both see whole words at the joints.
    If the parts around the context alone are too long, the context goes and their end is cut as well.

    Args:
        tokenizer: A Hugging Face tokenizer (``encode`` and ``eos_token_id``).
        max_length: Most tokens returned, framing included.
        framing: Ids before and after the text; None means the end of sequence after it.
    """
    head, tail = ((), (tokenizer.eos_token_id,)) if framing is None else framing
    room = max_length - len(head) - len(tail)
    whole = plain_ids(tokenizer, example.text)
    if len(whole) <= room:
        return [*head, *whole, *tail], False
    before = example.before.rstrip()  # blanks at the end of a part go to the head of the next one
    rest = example.before[len(before) :] + example.context
    context = rest.rstrip()
    after = rest[len(context) :] + example.after
    front, middle, back = (plain_ids(tokenizer, part) for part in (before, context, after))
    left = max(0, room - len(front) - len(back))
    kept = [*front, *middle[:left], *back][:room]
    return [*head, *kept, *tail], True


def _without_end_blank(example: Example) -> Example:
    """Strip blanks from the end of a text: the answer that continues it brings its own."""
    for part in ("after", "context", "before"):
        kept = getattr(example, part).rstrip()
        example = replace(example, **{part: kept})
        if kept:
            break
    return example


def epoch_rows(rows: int, batch_size: int, step: int, *, seed: int, task: int) -> list[int]:
    """Return the row indices of one task at one step: epochs of fresh permutations, read in order.

    A batch may span two epochs, and holds a row twice if it exceeds ``rows``. ``task`` is the task's number in the run:
    tasks are shuffled independently.
    """
    return stream_rows(rows, step * batch_size, batch_size, seed=seed, task=task)


def stream_rows(rows: int, start: int, count: int, *, seed: int, task: int) -> list[int]:
    """Return ``count`` row indices from position ``start`` of a task's endless stream of epochs (see `epoch_rows`)."""
    return [int(_permutation(rows, seed, task, p // rows)[p % rows]) for p in range(start, start + count)]


@lru_cache(maxsize=256)
def _permutation(rows: int, seed: int, task: int, epoch: int) -> Shuffled | Int[np.ndarray, " rows"]:
    if rows > splits.LARGE:
        return Shuffled(rows, seed, task, epoch)
    return np.random.default_rng((seed, task, epoch)).permutation(rows)


def proportional_counts(rows: Sequence[int], batch_size: int, step: int, *, seed: int, cap: int) -> list[int]:
    """Return how many of a step's examples each task supplies: a multinomial draw in proportion to min(rows, cap)."""
    weights = np.minimum(np.asarray(rows, dtype=float), cap)
    generator = np.random.default_rng((seed, step, len(rows)))
    return [int(count) for count in generator.multinomial(batch_size, weights / weights.sum())]


def standard_normal(*shape: int, seed: int, step: int, task: int) -> Float[torch.Tensor, "..."]:
    """Return the noise of one task at one step: standard normal numbers, float64, on the CPU."""
    # The fourth number keeps the stream apart from the draws of examples above.
    return torch.from_numpy(np.random.default_rng((seed, step, task, 1)).standard_normal(shape))
