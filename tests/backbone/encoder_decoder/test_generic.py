"""HuggingFaceEngine against the model itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plain import plain_gradients, plain_losses, random_batch, random_prompts, relative, tiny_backbone

from bmtpt.backbone import Backbone
from bmtpt.backbone.encoder_decoder.engine import PassEngine
from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.backbone.fast_t5.engine import PackedT5Engine
from bmtpt.types import TokenBatch


@pytest.mark.parametrize("family", ["v1.0", "v1.1"])
def test_losses_are_those_of_single_unpadded_examples(family: str) -> None:
    backbone, prompts = tiny_backbone(family), random_prompts(3, 5)
    batch = random_batch([4, 30, 17, 30], [2, 1, 5, 3])
    losses = HuggingFaceEngine(backbone).losses(prompts, batch)
    assert relative(losses, plain_losses(backbone, prompts, batch)) < 1e-5


@pytest.mark.parametrize("family", ["v1.0", "v1.1"])
def test_the_gradient_over_passes_is_autograd_over_the_whole_batch(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PassEngine, "token_budget", 100)  # several passes
    backbone, prompts, weights = tiny_backbone(family), random_prompts(2, 5), torch.tensor([1.0, 0.2, 3.0, 0.7])
    batch = random_batch([4, 30, 17, 30], [2, 1, 5, 3])
    losses, gradient = HuggingFaceEngine(backbone).gradients(prompts, batch, weights)
    true_losses, truth = plain_gradients(backbone, prompts, batch, weights)
    assert relative(losses, true_losses) < 1e-5
    assert relative(gradient, truth) < 1e-5


def test_no_examples_give_a_gradient_of_zero() -> None:
    prompts = random_prompts(2, 3)
    losses, gradient = HuggingFaceEngine(tiny_backbone("v1.1")).gradients(prompts, TokenBatch([], []), torch.ones(0))
    assert losses.shape == (2, 0)
    assert torch.equal(gradient, torch.zeros_like(prompts))


def test_answer_log_likelihoods_are_the_negative_losses_of_each_answer() -> None:
    engine, prompts = HuggingFaceEngine(tiny_backbone("v1.0")), random_prompts(2, 4)
    inputs, answers = random_batch([5, 22, 9], [1] * 3).inputs, random_batch([1, 4, 2], [1] * 3).inputs
    values = engine.answer_log_likelihoods(prompts, inputs, answers)
    for c, answer in enumerate(answers):
        truth = -plain_losses(engine.backbone, prompts, TokenBatch(inputs, [answer] * 3))
        torch.testing.assert_close(values[:, :, c], truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine_class", [HuggingFaceEngine, PackedT5Engine])
def test_generation_is_that_of_hugging_face_with_the_prompt_in_front(
    engine_class: type[PassEngine], tiny_t5_folder: Path
) -> None:
    backbone = Backbone.from_pretrained(str(tiny_t5_folder), precision="float32")
    prompts = random_prompts(2, 4)
    inputs = backbone.tokenizer(["the film is good .", "anna lives in paris . where is anna ?", "a dog"]).input_ids
    inputs = [torch.tensor(ids) for ids in inputs]
    texts = engine_class(backbone).generate(prompts, inputs, max_new_tokens=5)
    assert len({text for row in texts for text in row}) > 1  # else the test could not see a mix-up
    for m, prompt in enumerate(prompts):
        for n, ids in enumerate(inputs):
            embedded = torch.cat([prompt, backbone.embed(ids)])[None]
            tokens = backbone.model.generate(inputs_embeds=embedded, max_new_tokens=5, do_sample=False, num_beams=1)
            assert texts[m][n] == backbone.tokenizer.decode(tokens[0], skip_special_tokens=True).strip()
