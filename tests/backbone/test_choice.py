"""The loss that chooses among label words, against autograd through Hugging Face's model, one row at a time."""

from __future__ import annotations

from typing import Any

import causal_plain
import plain
import pytest
import torch
from plain import random_batch, random_prompts, relative
from torch import Tensor

from bmtpt.backbone.decoder_only.engine import CausalPassEngine
from bmtpt.backbone.decoder_only.generic import HuggingFaceCausalEngine
from bmtpt.backbone.decoder_only.shared_prompt import CausalEngine
from bmtpt.backbone.encoder_decoder.engine import PassEngine
from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.backbone.engine import Choice, Query
from bmtpt.backbone.fast_t5.engine import PackedT5Engine
from bmtpt.posterior.readout import Readout
from bmtpt.types import TokenBatch

ANSWERS = random_batch([3, 1, 2], [1] * 3).inputs
RIGHT = [2, 0, 1, 2]
BATCH = TokenBatch(random_batch([4, 30, 17, 30], [1] * 4).inputs, [ANSWERS[c] for c in RIGHT])
WEIGHTS = torch.tensor([1.0, 0.2, 3.0, 0.7])

ENGINES = [
    ("v1.0", HuggingFaceEngine),
    ("v1.1", PackedT5Engine),
    ("gpt2", HuggingFaceCausalEngine),
    ("gpt2", CausalEngine),
]
every_engine = pytest.mark.parametrize(("family", "kind"), ENGINES)


def made(family: str, kind: Any) -> Any:
    causal = issubclass(kind, CausalPassEngine)
    return kind(causal_plain.tiny_causal(family) if causal else plain.tiny_backbone(family))


def readouts(prompts: Tensor) -> list[Readout]:
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randn(3, 1 + prompts.shape[-1], generator=generator).double() for _ in prompts]
    return [Readout(0.7 + m, each[:, 0], each[:, 1:]) for m, each in enumerate(drawn)]


def pooled_state(backbone: Any, prompt: Tensor, text: Tensor) -> Tensor:
    """What the model makes of one text, by its own forward."""
    model = backbone.model
    row = torch.cat([prompt, model.get_input_embeddings()(text)])[None]
    if backbone.decoder_only:
        return model(inputs_embeds=row, output_hidden_states=True).hidden_states[-1][0, -1]
    return model.get_encoder()(inputs_embeds=row).last_hidden_state[0, len(prompt) :].mean(dim=0)


def truth(backbone: Any, prompts: Tensor, batch: TokenBatch, own: list[Readout]) -> tuple[Tensor, Tensor]:
    """−log softmax_c(z)[y] and the gradient of its weighted sum."""
    leaf = prompts.clone().requires_grad_(True)
    loss = causal_plain.plain_loss if backbone.decoder_only else plain.plain_loss
    rows = []
    for m, prompt in enumerate(leaf):
        for text, c in zip(batch.inputs, RIGHT, strict=True):
            z = -torch.stack([loss(backbone, prompt, text, answer) for answer in ANSWERS])
            if own:
                z = own[m].logits(z, pooled_state(backbone, prompt, text))
            rows.append(-z.log_softmax(dim=0)[c])
    losses = torch.stack(rows).view(len(prompts), -1)
    (gradient,) = torch.autograd.grad((losses * WEIGHTS).sum(), leaf)
    return losses.detach(), gradient


@every_engine
@pytest.mark.parametrize("read", [False, True])
def test_losses_and_gradients_are_those_of_autograd(family, kind, read, monkeypatch):
    monkeypatch.setattr(PassEngine, "token_budget", 100)  # several passes
    engine, prompts = made(family, kind), random_prompts(2, 5)
    own = readouts(prompts) if read else []
    losses, gradient = engine.gradients(prompts, BATCH, WEIGHTS, Choice(ANSWERS, own))
    true_losses, true_gradient = truth(engine.backbone, prompts, BATCH, own)
    assert relative(losses, true_losses) < 1e-5
    assert relative(gradient, true_gradient) < 1e-5


@every_engine
def test_the_states_that_are_read_are_those_of_each_text_alone_and_of_mixed_queries(family, kind):
    engine, prompts = made(family, kind), random_prompts(2, 5)
    found = engine.readings(prompts, BATCH.inputs, ANSWERS)
    each = [[pooled_state(engine.backbone, prompt, text) for text in BATCH.inputs] for prompt in prompts]
    assert relative(found.states, torch.stack([torch.stack(row) for row in each])) < 1e-5
    asked = [Query(prompts[m], text, ANSWERS) for m in (1, 0) for text in BATCH.inputs]
    replies = engine.answer(asked)
    assert relative(torch.stack([reply.states for reply in replies[:4]]), found.states[1]) < 1e-5
    assert relative(torch.stack([reply.states for reply in replies[4:]]), found.states[0]) < 1e-5


@every_engine
def test_texts_with_prompts_of_their_own_have_the_same_losses(family, kind):
    engine, prompts = made(family, kind), random_prompts(2, 5)
    choice = Choice(ANSWERS, readouts(prompts))
    shared, gradient = engine.gradients(prompts, BATCH, WEIGHTS, choice)
    own, each = engine.gradients(prompts[:, None].expand(-1, 4, -1, -1), BATCH, WEIGHTS, choice)
    assert relative(own, shared) < 1e-5
    assert relative(each.sum(dim=1), gradient) < 1e-5
