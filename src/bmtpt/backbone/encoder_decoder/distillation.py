"""What a student prompt learns from a teacher prompt on the same text: outputs and hidden states of the frozen model.

The encoder is the engine's own; the decoder runs in Hugging Face's forward pass, which gives the logits that the
engines never keep.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor

from bmtpt.backbone.encoder_decoder.engine import PassEngine, decoder_inputs
from bmtpt.backbone.passes import IGNORED, Pass, at_least_fp32, summed_nll
from bmtpt.types import TokenBatch


class Terms(NamedTuple):
    """Losses of each example, fp32.

    Attributes:
        nll: Cross-entropy of the target, summed over its tokens, in nats.
        divergence: KL(teacher ‖ student) of the next token, summed over the target's tokens, in nats.
        distance: Mean squared difference of the encoder's output over positions and widths.
    """

    nll: Float[Tensor, " N"]
    divergence: Float[Tensor, " N"]
    distance: Float[Tensor, " N"]


def distillation_gradients(
    engine: PassEngine,
    students: Float[Tensor, "N P D"],
    teachers: Float[Tensor, "N P D"],
    batch: TokenBatch,
    weights: Float[Tensor, " N"],
    *,
    strength: float,
    temperature: float,
) -> tuple[Terms, Float[Tensor, "N P D"]]:
    """Return the losses and ∂/∂students Σ_n weights_n [nll_n + strength · (divergence_n + T_n · distance_n)].

    Args:
        students, teachers: The prompts of each example.
        weights: Each example's weight per target token; T_n turns the distance, which has no tokens, into that unit.
        strength: λ.
        temperature: Divides both logits in the divergence.
    """
    gradient = torch.zeros_like(students)
    found = Terms(*students.new_empty(3, len(batch)))
    tokens = engine.sent(torch.tensor(batch.target_tokens(), dtype=students.dtype))
    factors = engine.sent(weights)

    def one_pass(part: Pass) -> tuple[Tensor, ...]:
        rows = part.rows
        own = students[rows].detach().requires_grad_(True)
        terms = _pass_terms(engine, own, teachers[rows], batch, rows, temperature)
        extra = terms.divergence + tokens[rows] * terms.distance
        (pulled,) = torch.autograd.grad((factors[rows] * (terms.nll + strength * extra)).sum(), own)
        return pulled, *(value.detach() for value in terms)

    parts = engine.cut(students[None], batch.inputs, batch.target_tokens())
    for part, each in engine.run(parts, one_pass):
        for whole, values in zip((gradient, *found), each, strict=True):
            whole[part.rows] = values
    return found, gradient


def _pass_terms(
    engine: PassEngine,
    students: Float[Tensor, "n P D"],
    teachers: Float[Tensor, "n P D"],
    batch: TokenBatch,
    rows: list[int],
    temperature: float,
) -> Terms:
    texts = engine.texts(students[None], [batch.inputs[i] for i in rows])
    labels = engine.padded([batch.targets[i] for i in rows])  # [n, T]
    with torch.no_grad():
        teacher_states, mask = engine.encode_texts(teachers[None], texts)
        teacher_logits = _logits(engine, teacher_states, mask, labels)
    states, _ = engine.encode_texts(students[None], texts)
    logits = _logits(engine, states, mask, labels)
    # Positions where the mask is 0 hold nothing of use, not even finite numbers.
    difference = at_least_fp32(states) - at_least_fp32(teacher_states)
    if mask is None:
        distance = difference.square().mean(dim=(1, 2))
    else:
        squares = difference.masked_fill(mask[..., None] == 0, 0).square().mean(dim=2)
        distance = squares.sum(dim=1) / mask.sum(dim=1)
    student, teacher = ((each / temperature).log_softmax(-1) for each in (logits, teacher_logits))
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)  # [n, T]
    return Terms(summed_nll(logits, labels), (divergence * (labels != IGNORED)).sum(dim=1), distance)


def _logits(
    engine: PassEngine, states: Float[Tensor, "n S D"], mask: Int[Tensor, "n S"] | None, labels: Int[Tensor, "n T"]
) -> Float[Tensor, "n T V"]:
    model = engine.backbone.model
    logits: Tensor = model(
        encoder_outputs=(states,),
        attention_mask=mask,
        decoder_input_ids=decoder_inputs(labels, model.config.decoder_start_token_id),
        use_cache=False,
    ).logits
    return at_least_fp32(logits)
