"""The distillation losses against Hugging Face's model, one unpadded example at a time."""

from __future__ import annotations

import pytest
import torch
from plain import plain_loss, random_batch, random_prompts, relative, tiny_backbone
from torch import Tensor

from bmtpt.backbone import Backbone
from bmtpt.backbone.encoder_decoder.distillation import Terms, distillation_gradients
from bmtpt.backbone.encoder_decoder.engine import PassEngine
from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.backbone.fast_t5.engine import PackedT5Engine

N, P = 4, 5
BATCH = random_batch([4, 30, 17, 28], [2, 1, 5, 3])
WEIGHTS = torch.tensor([1.0, 0.2, 3.0, 0.7])
STUDENTS, TEACHERS = random_prompts(N, P, 1), random_prompts(N, P, 2)


def forward(backbone: Backbone, prompt: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the logits [T, V] and the encoder's output [S, D]."""
    embedded = torch.cat([prompt, backbone.model.get_input_embeddings()(BATCH.inputs[n])])[None]
    out = backbone.model(inputs_embeds=embedded, labels=BATCH.targets[n][None])
    return out.logits[0], out.encoder_last_hidden_state[0]


def plain_terms(backbone: Backbone, students: Tensor, temperature: float) -> Terms:
    nll, divergence, distance = [], [], []
    for n in range(N):
        logits, states = forward(backbone, students[n], n)
        with torch.no_grad():
            teacher, teacher_states = forward(backbone, TEACHERS[n], n)
        p, q = (teacher / temperature).softmax(-1), (logits / temperature).softmax(-1)
        divergence.append((p * (p / q).log()).sum())
        distance.append(((states - teacher_states) ** 2).mean())
        nll.append(plain_loss(backbone, students[n], BATCH.inputs[n], BATCH.targets[n]))
    return Terms(*map(torch.stack, (nll, divergence, distance)))


@pytest.mark.parametrize("engine_class", [HuggingFaceEngine, PackedT5Engine])
@pytest.mark.parametrize(("strength", "temperature"), [(0.9, 1.0), (3.0, 2.5)])
def test_losses_and_gradients_are_those_of_single_unpadded_examples(
    engine_class: type[PassEngine], strength: float, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PassEngine, "token_budget", 90)  # several passes, one of them padded
    backbone = tiny_backbone("v1.1")
    found, gradient = distillation_gradients(
        engine_class(backbone), STUDENTS, TEACHERS, BATCH, WEIGHTS, strength=strength, temperature=temperature
    )
    leaf = STUDENTS.clone().requires_grad_(True)
    wanted = plain_terms(backbone, leaf, temperature)
    tokens = torch.tensor(BATCH.target_tokens())
    loss = wanted.nll + strength * (wanted.divergence + tokens * wanted.distance)
    (WEIGHTS * loss).sum().backward()
    for value, truth in zip(found, wanted, strict=True):
        assert relative(value, truth.detach()) < 1e-4
    assert relative(gradient, leaf.grad) < 1e-4


def test_a_pass_that_memory_is_too_small_for_is_halved_with_the_same_results() -> None:
    class Small(HuggingFaceEngine):
        def encode(self, embeddings: Tensor, mask: Tensor | None) -> Tensor:
            if len(embeddings) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().encode(embeddings, mask)

    found, truth = (
        distillation_gradients(
            kind(tiny_backbone("v1.1")), STUDENTS, TEACHERS, BATCH, WEIGHTS, strength=0.9, temperature=1.0
        )
        for kind in (Small, HuggingFaceEngine)
    )
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it() -> None:
    engine = HuggingFaceEngine(tiny_backbone("v1.0"))
    found, gradient = distillation_gradients(engine, STUDENTS, STUDENTS, BATCH, WEIGHTS, strength=5.0, temperature=1.0)
    assert found.divergence.abs().max() < 1e-5
    assert torch.equal(found.distance, torch.zeros(N))
    _, plain = engine.gradients(STUDENTS[None], BATCH, WEIGHTS)
    assert relative(gradient, plain[0]) < 1e-5
