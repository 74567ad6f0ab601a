"""ATTEMPT, attentional mixtures of soft prompts (Asai et al. 2022, arXiv 2205.11961; their code: AkariAsai/ATTEMPT).

    x̂   = max over text positions of embed(x)          p̂_j = max over the rows of P_j          P_{K+1} = P_target
    h    = LayerNorm(W_up SiLU(W_down x̂))              a    = softmax_j( p̂_j · h / (e·d) )      j = 1 … K+1
    P(x) = P_target + Σ_{j=1}^{K+1} a_j P_j

The K source prompts are frozen; P_target and the attention are trained, each with its own learning rate. Several
targets share the attention. Ours: P_target starts from vocabulary rows; x̂ ignores padding (in their code it does not).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor

from bmtpt.artifacts.card import MixtureCard, PromptCard
from bmtpt.artifacts.saved import PromptMixture
from bmtpt.backbone.engine import Engine
from bmtpt.inference.score import InstancePrompts
from bmtpt.methods.prompt_tuning import plain_candidates
from bmtpt.methods.registry import Method, Options, Setup, register
from bmtpt.methods.target import Candidate, TargetRows, TargetStage
from bmtpt.settings import AdaptSettings, Count, Positive
from bmtpt.train.optimisers import ParameterGroup
from bmtpt.types import TokenBatch

INIT_STD = 0.01
"""Standard deviation of the projections at the start, as in the authors' code."""


class AttemptOptions(Options):
    """Settings of ATTEMPT in addition to those of every target stage.

    Attributes:
        attention_width: r, the width between the two projections [paper: 100].
        attention_learning_rate: Learning rate of the attention [family: 3e-4 for added modules]; `learning_rate` is
            that of the target prompt.
    """

    attention_width: Count = 100
    attention_learning_rate: Positive = 3e-4


Embed = Callable[[Int[Tensor, " L"]], Float[Tensor, "L D"]]


class Attention(NamedTuple):
    """The attention module of R candidates."""

    down: Float[Tensor, "R D r"]
    up: Float[Tensor, "R r D"]
    gain: Float[Tensor, "R D"]
    bias: Float[Tensor, "R D"]


def attend(module: Attention, text: Float[Tensor, "N D"], keys: Float[Tensor, "R J D"]) -> Float[Tensor, "R N J"]:
    """Return a, which sums to one over the J prompts, given x̂ and p̂."""
    d = text.shape[1]
    up = F.silu(text @ module.down) @ module.up  # [R, N, D]
    h = F.layer_norm(up, (d,)) * module.gain[:, None] + module.bias[:, None]
    return torch.softmax(h @ keys.mT / (math.e * d), dim=2)


def mix(
    target: Float[Tensor, "R P D"], sources: Float[Tensor, "K P D"], weights: Float[Tensor, "R N J"]
) -> Float[Tensor, "R N P D"]:
    """Return P_target + Σ_j a_j P_j; the last of the J = K + 1 weights is the target prompt's own."""
    from_sources = torch.einsum("rnk,kpd->rnpd", weights[:, :, :-1], sources)
    return (1 + weights[:, :, -1, None, None]) * target[:, None] + from_sources


def text_summary(embed: Embed, inputs: Sequence[Tensor]) -> Float[Tensor, "N D"]:
    """Return x̂ of each text, with the special tokens that its model reads."""
    return torch.stack([embed(ids).amax(dim=0) for ids in inputs])


def instance_prompts(
    target: Float[Tensor, "R P D"],
    sources: Float[Tensor, "K P D"],
    module: Attention,
    text: Float[Tensor, "N D"],
) -> Float[Tensor, "R N P D"]:
    """Return P(x) of every candidate and text."""
    pooled = sources.amax(dim=1).expand(len(target), -1, -1)  # [R, K, D]
    keys = torch.cat([pooled, target.amax(dim=1, keepdim=True)], dim=1)  # [R, J, D]
    return mix(target, sources, attend(module, text, keys))


def mixture_prompts(embed: Embed, tensors: Mapping[str, Tensor]) -> InstancePrompts:
    """Return the function that makes a trained mixture's prompts (`artifacts.PromptMixture.tensors`)."""
    module = Attention(*(tensors[name] for name in Attention._fields))
    target, sources = tensors["target"], tensors["sources"]
    return lambda inputs: instance_prompts(target, sources, module, text_summary(embed, inputs))


class Attempt(TargetStage):
    """Trains a target prompt per target and one attention that the targets share.

    Args:
        candidates: Starts of P_target.
        embed: Returns the model's input embeddings of token ids.
        sources: The frozen source prompts.
        attention: Width and learning rate of the attention.
    """

    def __init__(
        self,
        engine: Engine,
        targets: Mapping[str, TargetRows],
        candidates: Sequence[Candidate],
        settings: AdaptSettings,
        *,
        embed: Embed,
        sources: Float[Tensor, "K P D"],
        attention: AttemptOptions,
    ) -> None:
        super().__init__(engine, targets, candidates, settings)
        self.embed = embed
        self.sources = sources
        self.attention_learning_rate = attention.attention_learning_rate
        starts = torch.stack([candidate.start for candidate in self.candidates])
        self.target = starts[:, None].repeat(1, len(targets), 1, 1).requires_grad_(True)  # [R, targets, P, D]
        self.module = initial_attention(starts, attention.attention_width, settings.seed)

    def groups(self) -> list[ParameterGroup]:
        """Target prompts at one learning rate, the attention at another."""
        return [
            ParameterGroup("target prompts", [self.target], self.settings.learning_rate),
            ParameterGroup("attention", list(self.module), self.attention_learning_rate),
        ]

    def prompts(self, target: int) -> InstancePrompts:
        """Return the function from texts to every candidate's P(x)."""
        return lambda inputs: instance_prompts(
            self.target[:, target], self.sources, self.module, text_summary(self.embed, inputs)
        )

    def backward(self, batches: Mapping[str, TokenBatch], step: int) -> dict[str, list[float]]:
        """Leave the gradient of the mean NLL in the target prompts and the attention; return it by target."""
        drawn = sum(len(batch) for batch in batches.values())
        objective = self.target.new_zeros(())
        found = {}
        for k, name in enumerate(self.targets):
            if name in batches:
                own = self.prompts(k)(batches[name].inputs)  # [R, N, P, D]
                weights = own.new_full((len(batches[name]),), 1 / drawn)
                losses, gradient = self.engine.gradients(own.detach(), batches[name], weights, self.choice(name))
                objective = objective + (own * gradient).sum()  # its gradient is the engine's
                found[name] = losses.mean(dim=1).tolist()
        objective.backward()  # type: ignore[no-untyped-call]
        return found

    def mixture(self, trained: Sequence[Tensor], target: int, winner: int) -> dict[str, Tensor]:
        """Return the tensors that predict one target."""
        prompts, *module = (tensor.detach()[winner : winner + 1].cpu() for tensor in trained)
        named = dict(zip(Attention._fields, module, strict=True))
        return {"target": prompts[:, target], "sources": self.sources.cpu(), **named}

    def result(self, trained: Sequence[Tensor], target: int, winners: Sequence[int], card: PromptCard) -> PromptMixture:
        """Return the mixture that predicts one target."""
        return PromptMixture(
            self.mixture(trained, target, winners[0]), MixtureCard(**card.model_dump(exclude={"kind"}))
        )

    def trained_parameters(self) -> int:
        """Numbers trained per target: l·d, and its share of the attention's 2·d·r + 2·d."""
        *_, P, D = self.target.shape
        attention = sum(tensor[0].numel() for tensor in self.module)
        return P * D - (-attention // len(self.targets))


def initial_attention(like: Float[Tensor, "R P D"], width: int, seed: int) -> Attention:
    """Start every candidate's attention from one draw, in the dtype of ``like`` and on its device."""
    R, _, D = like.shape
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(2, D * width, generator=generator) * INIT_STD
    starts = (down.view(D, width), up.view(width, D), torch.ones(D), torch.zeros(D))
    return Attention(*(start.to(like).repeat(R, *[1] * start.ndim).requires_grad_(True) for start in starts))


def attempt_stage(setup: Setup) -> Attempt:
    """Return ATTEMPT over the prompts of the single sources; ``budget`` starts of the target prompt compete."""
    sources = torch.stack(list(setup.learned.prompts.values()))
    return Attempt(
        setup.engine,
        setup.rows,
        plain_candidates(setup.backbone, sources.shape[1], setup.settings.seed, setup.budget),
        setup.settings,
        embed=setup.backbone.embed,
        sources=sources,
        attention=setup.options,
    )


NOT_USED = {"prior": "none", "average": "none", "ensemble": False, "decompose": False, "freeze_full": False}
"""Settings of target stages that ATTEMPT does not have, turned off."""

ATTEMPT = register(
    Method(
        "attempt",
        "ATTEMPT",
        "Asai et al. 2022, arXiv 2205.11961",
        stage=attempt_stage,
        needs="source prompts",
        options=AttemptOptions,
        adjusted=lambda settings, _: settings.model_copy(update=NOT_USED),
        together=True,
        column=23,
    )
)
