"""`answer`: queries with prompts, answers and tasks of their own in one batch, against one query at a time."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import plain_loss, random_batch, random_prompts, tiny_backbone
from torch import Tensor

from bmtpt.backbone import Backbone
from bmtpt.backbone.encoder_decoder.engine import PassEngine
from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.backbone.engine import Query
from bmtpt.backbone.fast_t5.engine import PackedT5Engine

ENGINES = pytest.mark.parametrize("engine_class", [HuggingFaceEngine, PackedT5Engine])
SENTENCES = ["the film is good .", "anna lives in paris . where is anna ?", "a dog", "carla sees the dull house ."]


@cache
def backbone(family: str) -> Backbone:
    return tiny_backbone(family)


def task(prompt_length: int, answer_lengths: list[int], seed: int) -> tuple[Tensor, list[Tensor]]:
    """A prompt and answers to rank with it."""
    return random_prompts(1, prompt_length, seed)[0], random_batch(
        answer_lengths, [1] * len(answer_lengths), seed
    ).inputs


TASKS = st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 5), max_size=3)), min_size=1, max_size=4)
ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), max_size=10)


@ENGINES
@settings(max_examples=12, deadline=None)
@given(kinds=TASKS, rows=ROWS, budget=st.sampled_from([60, 4_000]), seed=st.integers(0, 99))
def test_each_query_of_a_mixed_batch_has_the_likelihoods_it_has_alone(
    engine_class: type[PassEngine], kinds: list[Any], rows: list[tuple[int, int]], budget: int, seed: int
) -> None:
    engine = engine_class(backbone("v1.1"))
    tasks = [task(*kind, seed=seed + k) for k, kind in enumerate(kinds)]
    texts = random_batch([length for _, length in rows], [1] * len(rows), seed).inputs
    chosen = [tasks[k % len(tasks)] for k, _ in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PassEngine, "token_budget", budget)
        replies = engine.answer(
            [Query(prompt, text, words) for (prompt, words), text in zip(chosen, texts, strict=True)]
        )
    assert [len(reply.log_likelihoods) for reply in replies] == [len(words) for _, words in chosen]
    for reply, (prompt, words), text in zip(replies, chosen, texts, strict=True):
        wanted = [-float(plain_loss(engine.backbone, prompt, text, word)) for word in words]
        assert reply.log_likelihoods.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def queries(loaded: Backbone, seed: int = 0) -> list[Query]:
    """Two tasks that rank, generate or do both, three times over."""
    inputs = [torch.tensor(ids) for ids in loaded.tokenizer(SENTENCES).input_ids] * 3
    kinds = [(*task(3, [2, 1], seed), 0), (*task(8, [], seed + 1), 6), (*task(5, [1, 4, 2], seed + 2), 3)]
    return [
        Query(prompt, text, words, limit) for i, text in enumerate(inputs) for prompt, words, limit in [kinds[i % 3]]
    ]


@ENGINES
@pytest.mark.parametrize("budget", [40, 4_000])
def test_each_query_of_a_mixed_batch_is_continued_as_hugging_face_continues_it_alone(
    engine_class: type[PassEngine], budget: int, tiny_t5_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PassEngine, "token_budget", budget)
    loaded = Backbone.from_pretrained(str(tiny_t5_folder), precision="float32")
    asked = queries(loaded)
    texts = [reply.text for reply in engine_class(loaded).answer(asked)]
    assert len(set(texts)) > 2  # else the test could not see a mix-up
    for query, text in zip(asked, texts, strict=True):
        embedded = torch.cat([query.prompt, loaded.embed(query.text)])[None]
        limit = query.max_new_tokens or 1
        tokens = loaded.model.generate(inputs_embeds=embedded, max_new_tokens=limit, do_sample=False, num_beams=1)
        wanted = loaded.tokenizer.decode(tokens[0], skip_special_tokens=True).strip()
        assert text == (wanted if query.max_new_tokens else "")


@ENGINES
def test_a_mixed_batch_is_answered_as_each_query_by_the_other_questions(
    engine_class: type[PassEngine], tiny_t5_folder: Path
) -> None:
    loaded = Backbone.from_pretrained(str(tiny_t5_folder), precision="float32")
    engine, asked = engine_class(loaded), queries(loaded, seed=7)
    for query, reply in zip(asked, engine.answer(asked), strict=True):
        prompt, text, words, limit = query
        scores = engine.answer_log_likelihoods(prompt[None], [text], words)[0, 0] if words else torch.empty(0)
        torch.testing.assert_close(reply.log_likelihoods, scores, rtol=1e-5, atol=1e-5)
        assert reply.text == (engine.generate(prompt[None], [text], limit)[0][0] if limit else "")


@ENGINES
def test_a_text_that_is_ranked_and_continued_is_encoded_once(
    engine_class: type[PassEngine], tiny_t5_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Backbone.from_pretrained(str(tiny_t5_folder), precision="float32")
    engine, encode = engine_class(loaded), engine_class.encode
    ours: list[int] = []
    theirs: list[int] = []

    def counted(self: PassEngine, embeddings: Tensor, mask: Tensor) -> Tensor:
        ours.append(len(embeddings))
        return encode(self, embeddings, mask)

    monkeypatch.setattr(engine_class, "encode", counted)
    loaded.model.encoder.register_forward_hook(lambda *_: theirs.append(1))
    asked = [query._replace(max_new_tokens=4, answers=task(1, [1, 2], 0)[1]) for query in queries(loaded)]
    replies = engine.answer(asked)
    assert any(reply.text for reply in replies)
    assert all(len(reply.log_likelihoods) == 2 for reply in replies)
    assert sum(ours) == len(asked)
    assert len(theirs) == (len(ours) if engine_class is HuggingFaceEngine else 0)


@pytest.mark.parametrize("allowed", [60, 10_000])
def test_as_many_rows_are_continued_together_as_the_budget_allows(
    allowed: int, tiny_t5_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PassEngine, "token_budget", allowed)
    loaded = Backbone.from_pretrained(str(tiny_t5_folder), precision="float32")
    engine, asked, rows = PackedT5Engine(loaded), queries(loaded), []
    continued = engine.continued

    def counted(states: Tensor, mask: Tensor, limit: int) -> list[str]:
        rows.append(len(states))
        assert mask.numel() <= allowed
        return continued(states, mask, limit)

    monkeypatch.setattr(PackedT5Engine, "continued", lambda _, *inputs: counted(*inputs))
    engine.answer([query._replace(max_new_tokens=1) for query in asked])
    assert sum(rows) == len(asked)
    assert (len(rows) == 1) == (allowed > 200)


def test_no_queries_have_no_replies() -> None:
    assert HuggingFaceEngine(backbone("v1.0")).answer([]) == []
