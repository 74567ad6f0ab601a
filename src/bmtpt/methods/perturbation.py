"""Perturbation smoothing, after PTP (Chen et al. 2023, arXiv 2305.02423).

    θ* = argmin E_{δ ~ N(0, s²I)} NLL(D | θ + δ)        one δ a step; θ starts and is validated without noise

Of PTP's regularisers this is the random noise in embedding space, put on the prompt; its noise on the text and its
adversarial variant are left out. s = 0 is plain prompt tuning, bit for bit. δ is a pure function of (seed, step).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bmtpt.methods.prompt_tuning import plain_candidates
from bmtpt.methods.registry import Method, Options, Setup, register
from bmtpt.methods.target import Candidate
from bmtpt.settings import Std


class PtpOptions(Options):
    """Settings of prompt tuning under noise.

    Attributes:
        noise_std: s, in embedding units.
    """

    noise_std: Std = 1.0


def perturbed_candidates(candidates: Sequence[Candidate], noise_std: float) -> list[Candidate]:
    """Return the same candidates trained under noise of s = ``noise_std``."""
    return [replace(candidate, noise_std=noise_std) for candidate in candidates]


def _candidates(setup: Setup) -> list[Candidate]:
    plain = plain_candidates(setup.backbone, setup.prompt_length, setup.settings.seed, setup.budget)
    return perturbed_candidates(plain, setup.options.noise_std)


PTP = register(
    Method(
        "ptp",
        "prompt tuning under noise (PTP)",
        "Chen et al. 2023, arXiv 2305.02423",
        candidates=_candidates,
        options=PtpOptions,
        column=11,
    )
)
