"""Prompts [M, N, P, D]: example n is paired with prompts of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plain import plain_gradients, plain_losses, random_batch, random_prompts, relative, tiny_backbone
from torch import Tensor

from bmtpt.backbone import Backbone
from bmtpt.backbone.encoder_decoder.engine import PassEngine
from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.backbone.fast_t5.engine import PackedT5Engine
from bmtpt.types import TokenBatch

ENGINES = pytest.mark.parametrize("engine_class", [HuggingFaceEngine, PackedT5Engine])
M, N, P = 2, 4, 5
WEIGHTS = torch.tensor([1.0, 0.2, 3.0, 0.7])
BATCH = random_batch([4, 30, 17, 30], [2, 1, 5, 3])


def own_prompts() -> Tensor:
    return random_prompts(M * N, P).view(M, N, P, 24)


def only(n: int) -> TokenBatch:
    return TokenBatch([BATCH.inputs[n]], [BATCH.targets[n]])


@ENGINES
def test_each_example_has_the_loss_and_gradient_of_its_own_prompts(
    engine_class: type[PassEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PassEngine, "token_budget", 150)  # several passes, in another order than the examples
    engine, prompts = engine_class(tiny_backbone("v1.1")), own_prompts()
    losses, gradient = engine.gradients(prompts, BATCH, WEIGHTS)
    for n in range(N):
        wanted, slope = plain_gradients(engine.backbone, prompts[:, n], only(n), WEIGHTS[n : n + 1])
        assert relative(losses[:, n : n + 1], wanted) < 1e-5
        assert relative(gradient[:, n], slope) < 1e-5
    torch.testing.assert_close(engine.losses(prompts, BATCH), losses, rtol=1e-5, atol=1e-5)


@ENGINES
def test_the_same_prompts_for_every_example_give_what_shared_prompts_give(engine_class: type[PassEngine]) -> None:
    engine, shared = engine_class(tiny_backbone("v1.0")), random_prompts(M, P)
    own = shared[:, None].expand(-1, N, -1, -1)
    losses, gradient = engine.gradients(own, BATCH, WEIGHTS)
    wanted, slope = engine.gradients(shared, BATCH, WEIGHTS)
    assert torch.equal(losses, wanted)
    assert relative(gradient.sum(dim=1), slope) < 1e-6


@ENGINES
def test_answers_are_ranked_with_the_prompts_of_their_example(engine_class: type[PassEngine]) -> None:
    engine, prompts = engine_class(tiny_backbone("v1.1")), own_prompts()
    answers = random_batch([1, 4, 2], [1] * 3).inputs
    found = engine.answer_log_likelihoods(prompts, BATCH.inputs, answers)
    for n, ids in enumerate(BATCH.inputs):
        for c, answer in enumerate(answers):
            wanted = -plain_losses(engine.backbone, prompts[:, n], TokenBatch([ids], [answer]))[:, 0]
            torch.testing.assert_close(found[:, n, c], wanted, rtol=1e-5, atol=1e-5)


@ENGINES
def test_texts_are_generated_with_the_prompts_of_their_example(
    engine_class: type[PassEngine], tiny_t5_folder: Path
) -> None:
    engine = engine_class(Backbone.from_pretrained(str(tiny_t5_folder), precision="float32"))
    sentences = ["the film is good .", "anna lives in paris . where is anna ?", "a dog", "a cat"]
    inputs = [torch.tensor(ids) for ids in engine.backbone.tokenizer(sentences).input_ids]
    prompts = own_prompts()
    texts = engine.generate(prompts, inputs, 5)
    assert len({text for row in texts for text in row}) > 1  # else the test could not see a mix-up
    for n, ids in enumerate(inputs):
        assert [texts[m][n] for m in range(M)] == [row[0] for row in engine.generate(prompts[:, n], [ids], 5)]
