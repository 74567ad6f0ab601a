"""Decoder-only models: queries with prompts, answers and tasks of their own in one batch, against one at a time."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from causal_plain import plain_greedy, plain_loss, tiny_causal
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import random_batch, random_prompts
from torch import Tensor

from bmtpt.backbone import Backbone
from bmtpt.backbone.decoder_only.engine import CausalPassEngine
from bmtpt.backbone.decoder_only.generic import HuggingFaceCausalEngine
from bmtpt.backbone.decoder_only.shared_prompt import CausalEngine
from bmtpt.backbone.engine import Query
from bmtpt.errors import BackboneError

both_engines = pytest.mark.parametrize("engine_class", [CausalEngine, HuggingFaceCausalEngine])

TASKS = st.lists(
    st.tuples(st.integers(1, 4), st.lists(st.integers(1, 3), max_size=3), st.integers(0, 4)), min_size=1, max_size=4
)
"""Length of the prompt, lengths of the answers to rank, most tokens to write."""
ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20)), max_size=10)
"""Task and length of the text."""


@cache
def backbone(family: str) -> Backbone:
    return tiny_causal(family)


def queries(kinds: list[Any], rows: list[tuple[int, int]], seed: int) -> list[Query]:
    tasks = [
        (random_prompts(1, P, seed + k)[0], random_batch(answers, [1] * len(answers), seed + k).inputs, most)
        for k, (P, answers, most) in enumerate(kinds)
    ]
    texts = random_batch([length for _, length in rows], [1] * len(rows), seed).inputs
    chosen = [tasks[k % len(tasks)] for k, _ in rows]
    return [Query(prompt, text, words, most) for (prompt, words, most), text in zip(chosen, texts, strict=True)]


@both_engines
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@settings(max_examples=12, deadline=None)
@given(kinds=TASKS, rows=ROWS, budget=st.sampled_from([40, 4_000]), seed=st.integers(0, 99))
def test_each_query_of_a_mixed_batch_gets_what_the_model_gives_it_alone(
    family: str,
    engine_class: type[CausalPassEngine],
    kinds: list[Any],
    rows: list[tuple[int, int]],
    budget: int,
    seed: int,
) -> None:
    loaded, asked = backbone(family), queries(kinds, rows, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CausalPassEngine, "token_budget", budget)
        replies = engine_class(loaded).answer(asked)
    assert len(replies) == len(asked)
    for query, reply in zip(asked, replies, strict=True):
        wanted = [-float(plain_loss(loaded, query.prompt, query.text, word)) for word in query.answers]
        assert reply.log_likelihoods.tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-4)
        assert reply.text == plain_greedy(loaded, query.prompt, query.text, query.max_new_tokens)


def test_rows_of_many_prompts_share_passes_and_each_prompt_is_read_once() -> None:
    P, L, loaded = 5, 7, tiny_causal("gpt2")
    own, texts = random_prompts(3, P).unbind(), random_batch([L] * 12, [1] * 12).inputs
    shapes: list[tuple[int, ...]] = []
    loaded.model.transformer.h[0].register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[:2])))
    asked = [Query(own[i % 3], text, [torch.tensor([5]), torch.tensor([7])]) for i, text in enumerate(texts)]
    CausalEngine(loaded).answer(asked)
    assert shapes == [(3, P), (12, L)]
    shapes.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CausalPassEngine, "token_budget", 4 * 2 * (P + L + 1))
        CausalEngine(loaded).answer(asked)
    assert sorted(shapes) == [(3, P), (4, L), (4, L), (4, L)]


@both_engines
def test_prompts_of_their_own_for_every_example_are_continued_and_ranked_each_with_its_text(
    engine_class: type[CausalPassEngine],
) -> None:
    loaded, prompts = backbone("gpt2"), random_prompts(6, 4).view(2, 3, 4, 24)
    texts, words = random_batch([6, 9, 6], [1] * 3).inputs, random_batch([2, 1], [1] * 2).inputs
    engine = engine_class(loaded)
    found, scores = engine.generate(prompts, texts, 4), engine.answer_log_likelihoods(prompts, texts, words)
    assert found == [[plain_greedy(loaded, own[n], texts[n], 4) for n in range(3)] for own in prompts]
    assert len({text for row in found for text in row}) > 3  # else the test could not see a mix-up
    wanted = [
        [[-float(plain_loss(loaded, own[n], texts[n], word)) for word in words] for n in range(3)] for own in prompts
    ]
    torch.testing.assert_close(scores, torch.tensor(wanted), rtol=1e-4, atol=1e-4)


@both_engines
def test_no_queries_have_no_replies(engine_class: type[CausalPassEngine]) -> None:
    assert engine_class(backbone("gpt2")).answer([]) == []


@both_engines
def test_the_longest_row_of_a_mixed_batch_must_fit_the_models_positions(engine_class: type[CausalPassEngine]) -> None:
    long: Tensor = random_batch([253], [1]).inputs[0]
    asked = [Query(random_prompts(1, P)[0], long, [torch.tensor([5])]) for P in (2, 3)]
    engine_class(tiny_causal("gpt2")).answer(asked[:1])
    with pytest.raises(BackboneError, match="256 positions and prompt, text and answer need 257"):
        engine_class(tiny_causal("gpt2")).answer(asked)
