"""Which rows a step sees, and how rows become tokens."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmtpt.tasks.tokens import epoch_rows, proportional_counts, stream_rows, tokenise, tokenise_answer, truncate
from bmtpt.types import Example

ROWS = st.integers(1, 40)
BATCH = st.integers(1, 17)
no_deadline = settings(deadline=None, max_examples=60)


@no_deadline
@given(rows=ROWS, batch_size=BATCH, seed=st.integers(0, 2**32), task=st.integers(0, 9))
def test_every_row_is_visited_once_per_epoch_for_any_batch_size(rows, batch_size, seed, task):
    epochs = 3
    steps = -(-epochs * rows // batch_size)
    seen = [i for step in range(steps) for i in epoch_rows(rows, batch_size, step, seed=seed, task=task)]
    for epoch in range(epochs):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@no_deadline
@given(rows=ROWS, batch_size=BATCH, steps=st.lists(st.integers(0, 200), min_size=2, max_size=6))
def test_a_step_draws_the_same_rows_whatever_was_drawn_before(rows, batch_size, steps):
    once = {step: epoch_rows(rows, batch_size, step, seed=3, task=1) for step in steps}
    again = {step: epoch_rows(rows, batch_size, step, seed=3, task=1) for step in reversed(steps)}
    assert once == again


def test_epochs_seeds_and_tasks_are_shuffled_differently():
    def order(step: int = 0, seed: int = 0, task: int = 0) -> list[int]:
        return epoch_rows(50, 50, step, seed=seed, task=task)

    assert len({tuple(each) for each in (order(), order(step=1), order(seed=1), order(task=1))}) == 4


def test_a_stream_is_the_same_in_pieces_of_any_size():
    whole = stream_rows(7, 0, 30, seed=5, task=2)
    assert stream_rows(7, 0, 4, seed=5, task=2) + stream_rows(7, 4, 11, seed=5, task=2) == whole[:15]
    assert stream_rows(7, 15, 15, seed=5, task=2) == whole[15:]


@no_deadline
@given(rows=st.lists(ROWS, min_size=2, max_size=5), batch_size=BATCH, step=st.integers(0, 1000))
def test_proportional_counts_add_up_to_the_batch_and_depend_on_seed_and_step_alone(rows, batch_size, step):
    counts = proportional_counts(rows, batch_size, step, seed=1, cap=1000)
    assert sum(counts) == batch_size
    assert min(counts) >= 0
    assert counts == proportional_counts(rows, batch_size, step, seed=1, cap=1000)


@pytest.mark.parametrize(("cap", "share"), [(10**6, 3000 / 3200), (200, 0.5), (400, 2 / 3)])
def test_proportional_counts_follow_the_capped_sizes_in_expectation(cap, share):
    counts = [proportional_counts([3000, 200], 16, step, seed=0, cap=cap) for step in range(2000)]
    found = np.mean([first for first, _ in counts]) / 16
    error = np.sqrt(share * (1 - share) / (16 * 2000))
    assert abs(found - share) < 4 * error


def test_tokens_are_the_tokenizers_own_with_one_end_of_sequence(tiny_backbone, tiny_tasks):
    examples = tiny_tasks["pairs"].train[:3]
    rows = tokenise(tiny_backbone, examples, 64)
    for example, ids, target in zip(examples, rows.batch.inputs, rows.batch.targets, strict=True):
        assert ids.tolist() == tiny_backbone.tokenizer(example.text).input_ids
        assert target.tolist() == tiny_backbone.tokenizer(example.target).input_ids
        assert Counter(ids.tolist())[tiny_backbone.tokenizer.eos_token_id] == 1
    assert len(rows) == 3
    assert rows.cut == 0


def test_only_the_context_of_a_long_text_is_cut_and_the_cut_is_counted(tiny_backbone):
    long = Example("answers question: ", "paris " * 20, " answer", "paris")
    short = Example("answers question: ", "rome", " answer", "rome")
    rows = tokenise(tiny_backbone, [long, short], 12)
    assert rows.cut == 1
    kept = tiny_backbone.tokenizer.decode(rows.batch.inputs[0].tolist()).split()
    assert len(rows.batch.inputs[0]) == 12
    assert kept[:2] + kept[-2:] == ["answers", "question", "answer", "</s>"]


def test_rows_are_picked_in_the_order_asked_for(tiny_backbone, tiny_tasks):
    rows = tokenise(tiny_backbone, tiny_tasks["sentiment"].train, 64)
    batch = rows.rows([5, 0, 5])
    assert [ids.tolist() for ids in batch.inputs] == [rows.batch.inputs[i].tolist() for i in (5, 0, 5)]
    assert batch.target_tokens() == [len(rows.batch.targets[i]) for i in (5, 0, 5)]


def test_an_answers_tokens_are_int64_on_the_cpu(tiny_backbone):
    ids = tokenise_answer(tiny_backbone, "not equivalent")
    assert ids.tolist() == tiny_backbone.tokenizer("not equivalent").input_ids
    assert str(ids.dtype) == "torch.int64"
    assert ids.device.type == "cpu"


# Texts that are too long


class WordTokenizer:
    """Every word is a token of its own id; ids are remembered so that tests can read them back."""

    eos_token_id, unk_token_id = -1, None
    all_special_ids, all_special_tokens, added_tokens_decoder = [-1], ["</s>"], {}

    def __init__(self):
        self.words = {}

    def __len__(self):
        return 0

    def encode(self, text, add_special_tokens=False):
        return [self.words.setdefault(word, len(self.words)) for word in text.split()]

    def read(self, ids):
        names = {i: word for word, i in self.words.items()}
        return [names[i] for i in ids]


WORDS = st.lists(st.sampled_from(["a", "b", "c", "dd", "ee"]), max_size=12).map(" ".join)


@given(before=WORDS, context=WORDS, after=WORDS, most=st.integers(2, 40))
def test_only_the_context_is_cut(before, context, after, most):
    tokenizer = WordTokenizer()
    ids, cut = truncate(Example(f"{before} ", context, f" {after}", "x"), tokenizer, most)
    fixed, middle, end = before.split(), context.split(), after.split()
    kept = tokenizer.read(ids[:-1])
    room = most - 1
    assert ids[-1] == tokenizer.eos_token_id
    assert len(ids) <= most
    if len(fixed + middle + end) <= room:
        assert (kept, cut) == (fixed + middle + end, False)
    elif len(fixed + end) <= room:
        assert (kept, cut) == (fixed + middle[: room - len(fixed + end)] + end, True)
    else:
        assert (kept, cut) == ((fixed + end)[:room], True)


def test_the_question_behind_a_long_context_survives():
    tokenizer = WordTokenizer()
    ids, cut = truncate(Example("q context: ", "word " * 900, " question: why ?", "x"), tokenizer, 20)
    assert cut
    assert len(ids) == 20
    assert tokenizer.read(ids[-4:-1]) == ["question:", "why", "?"]


def test_text_that_fits_is_tokenised_in_one_piece():
    class Joiner(WordTokenizer):
        def encode(self, text, add_special_tokens=False):
            self.seen = [*getattr(self, "seen", []), text]
            return super().encode(text)

    tokenizer = Joiner()
    truncate(Example("rte sentence1: ", "a", " b", "x"), tokenizer, 50)
    assert tokenizer.seen == ["rte sentence1: a b"]


def test_blanks_go_to_the_head_of_the_next_part():
    """So that byte-level vocabularies, where " word" is one token, see whole words at the joints."""

    class Pieces(WordTokenizer):
        def encode(self, text, add_special_tokens=False):
            self.seen = [*getattr(self, "seen", []), text]
            return [0] * len(text)

    tokenizer = Pieces()
    truncate(Example("q: ", "some text", " end", "x"), tokenizer, 14)
    assert tokenizer.seen[1:] == ["q:", " some text", " end"]
