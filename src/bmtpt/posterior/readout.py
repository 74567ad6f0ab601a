"""A task's readout: what labels say beyond the prompt's words, MAP under Gaussian priors (docs/method.md, section 5).

    z_c(x) = a·s_c(x) + b_c + w_c·h(x)/√D              p(y|x) = softmax_c z
    a ~ N(1, σ_a²),   b ~ N(b₀, σ_b² I),   w_c ~ N(0, σ_w² I)
    MAP: maximise Σ_n log p(y_n|x_n) + log p(a) + log p(b) + log p(w)        strictly concave
    log Z ≈ the maximum − ½ log det H        H of the negative objective, in units of the prior's widths (Laplace)
    ∫ p(y|x, a, b, w) p(a, b, w|labels) ≈ softmax_c z/√(1 + π v(x)/√(8C))    v(x): the variance of z_c(x) (`Spread`)

s_c(x) is the log-likelihood of label word c under the prompt, and h(x) the frozen model's pooled states, standardised.
A width of 0 leaves its part out: σ_a = 0 keeps a = 1, σ_w = 0 is the offset alone. Texts without labels already say
how much the model prefers a word whatever it reads: b₀ takes that preference back (`label_free_offset`). Texts beyond
the labelled ones say it better (`Texts`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor

Array = np.ndarray[Any, np.dtype[np.float64]]

TOLERANCE = 1e-9
"""Largest norm of the gradient at the MAP, in nats per prior width."""

SMALLEST_SCALE = 1e-6
"""Coordinates of h that vary less than this hold nothing, and are left as they are."""


class Widths(NamedTuple):
    """Standard deviations of the readout's priors, in nats; 0 leaves a part out.

    The defaults were the best fixed widths that were tried, at 4, 16 and 32 labels (docs/method.md, section 5).

    Attributes:
        offset: σ_b.
        weights: σ_w, where Σ_d (w_cd h_d)²/D is the squared size of a logit's change.
        slope: σ_a.
    """

    offset: float = 1.0
    weights: float = 1.0
    slope: float = 0.0


Scale = tuple[Float[Tensor, " D"], Float[Tensor, " D"]]
"""The mean and the standard deviation of h."""


def standardised(features: Float[Tensor, "N D"]) -> Scale:
    """Return the mean and the standard deviation of h over N texts, float64; what does not vary keeps its own unit."""
    h = features.double().cpu()
    std = h.std(dim=0, correction=0)
    return h.mean(dim=0), torch.where(std > SMALLEST_SCALE, std, torch.ones_like(std))


DIRECTIONS = 16
"""Most directions of a `Spread`, so that it stays small: with 256 labels, all of them were no better."""


@dataclass(frozen=True, eq=False)
class Spread:
    """The variance of a logit under the readout's posterior: how little the labelled texts say of a text.

        v(x) = φᵀ(γ ΦᵀΦ + I)⁻¹φ = |φ|² − |Vφ|²        φ(x) = (σ_b, σ_w (h(x) − mean)/(std √D))

    Φ holds φ of the labelled texts, and γ = mean_n (1 − Σ_c p(c|x_n)²)/(C − 1) stands for the curvature
    diag p − p pᵀ of their likelihoods: one number for all words and texts. Then H = γ ΦᵀΦ + I for each word, the
    Kronecker-factored Laplace approximation (Ritter et al. 2018) with a multiple of the identity as its second factor.

    Attributes:
        offset: σ_b.
        mean: Of h.
        scale: σ_w/(std √D).
        directions: V, of which V Vᵀ is diagonal.
    """

    offset: float
    mean: Float[Tensor, " D"]
    scale: Float[Tensor, " D"]
    directions: Float[Tensor, "R D+1"]

    @classmethod
    def of(
        cls,
        features: Float[Tensor, "N D"],
        p: Float[Tensor, "N C"],
        widths: Widths,
        scale: Scale,
        most: int | None = DIRECTIONS,
    ) -> Spread:
        """Return the spread after labelled texts with these h, whose words have the probabilities p at the MAP.

        Args:
            most: R; None keeps every direction.
        """
        mean, std = scale
        spread = cls(widths.offset, mean, widths.weights / (std * math.sqrt(len(std))), torch.zeros(0, len(std) + 1))
        gamma = float((1 - p.square().sum(dim=1)).mean()) / max(1, p.shape[1] - 1)
        _, singular, V = torch.linalg.svd(spread.inputs(features.cpu()), full_matrices=False)
        share = gamma * singular**2 / (gamma * singular**2 + 1)
        return replace(spread, directions=(share.sqrt()[:, None] * V)[:most])

    def float32(self) -> Spread:
        """Return the spread rounded to fp32."""
        rounded = (each.float().double() for each in (self.mean, self.scale, self.directions))
        return Spread(float(np.float32(self.offset)), *rounded)

    def inputs(self, features: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D+1"]:
        """Return φ in float64."""
        own = (features.double() - self.mean.to(features.device)) * self.scale.to(features.device)
        return torch.cat([torch.full_like(own[..., :1], self.offset), own], dim=-1)

    def variance(self, features: Float[Tensor, "*N D"]) -> Float[Tensor, "*N 1"]:
        """Return v."""
        inputs = self.inputs(features)
        known = inputs @ self.directions.to(inputs).T
        return (inputs.square().sum(dim=-1, keepdim=True) - known.square().sum(dim=-1, keepdim=True)).clamp(min=0)


@dataclass(frozen=True, eq=False)
class Readout:
    """What turns a row's s and h into logits; the standardisation of h is folded into ``offset`` and ``weights``.

    Attributes:
        slope: a.
        offset: b, float64.
        weights: w/√D, float64; None where h is not read.
        spread: Averages the probabilities over the posterior of b and w; None takes their MAP alone.
    """

    slope: float
    offset: Float[Tensor, " C"]
    weights: Float[Tensor, "C D"] | None = None
    spread: Spread | None = None

    def __str__(self) -> str:
        offsets = " ".join(f"{value:+.2f}" for value in (self.offset - self.offset.mean())[:8].tolist())
        more = f" … ({len(self.offset)} in all)" if len(self.offset) > 8 else ""
        kind = "linear" if self.weights is not None else "offset" if self.offset.any() else "words alone"
        averaged = ", averaged over its posterior" if self.spread is not None else ""
        shown = f", offsets {offsets}{more}" if kind != "words alone" else ""
        return f"{kind}{averaged}, slope {self.slope:.2f}{shown}"

    def float32(self) -> Readout:
        """Return the readout rounded to fp32."""
        weights = None if self.weights is None else self.weights.float().double()
        spread = None if self.spread is None else self.spread.float32()
        return Readout(float(np.float32(self.slope)), self.offset.float().double(), weights, spread)

    def tempered(self, temperature: float) -> Readout:
        """Return the readout whose logits are z/T."""
        weights = None if self.weights is None else self.weights / temperature
        return Readout(self.slope / temperature, self.offset / temperature, weights, self.spread)

    def logits(
        self, scores: Float[Tensor, "*N C"], features: Float[Tensor, "*N D"] | None = None
    ) -> Float[Tensor, "*N C"]:
        """Return z in float64, or z/√(1 + π v/√(8C)) where there is a spread.

        For C = 2 that is MacKay's formula (1992), as z_0 − z_1 has the variance 2v. Of more words' noise less reaches
        the likeliest ones, as √(2/C) says well for 2 to 77 words.
        """
        z = self.slope * scores.double() + self.offset.to(scores.device)
        if self.weights is None and self.spread is None:
            return z
        assert features is not None, "this readout needs the pooled states"
        if self.weights is not None:
            z = z + features.double() @ self.weights.to(features.device).T
        if self.spread is None:
            return z
        return z / (1 + math.pi / math.sqrt(8 * z.shape[-1]) * self.spread.variance(features)).sqrt()


def read_out(
    readouts: Sequence[Readout], scores: Float[Tensor, "M N C"], features: Float[Tensor, "M N D"]
) -> Float[Tensor, "M N C"]:
    """Return z of M prompts, each by its own readout; s itself where there are none."""
    if not readouts:
        return scores
    return torch.stack([own.logits(*each) for own, *each in zip(readouts, scores, features, strict=True)])


def label_free_offset(scores: Float[Tensor, "N C"]) -> Float[Tensor, " C"]:
    """Return b₀: minus each word's mean log share of the probability of all words, over texts without labels."""
    return -scores.double().log_softmax(dim=1).mean(dim=0)


def fit(
    scores: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"],
    widths: Widths,
    features: Float[Tensor, "N D"] | None = None,
    centre: Float[Tensor, " C"] | None = None,
    scale: Scale | None = None,
) -> Readout:
    """Return the MAP readout of N labelled rows.

    Args:
        scores: s.
        labels: y.
        widths: σ_b, σ_w and σ_a.
        features: h; needed where σ_w > 0.
        centre: b₀; None for zeros.
        scale: What h is standardised by; None takes the mean and standard deviation of these rows.
    """
    problem = _Problem(scores, labels, widths, features, centre, scale)
    return problem.readout(problem.solve())


class Texts(NamedTuple):
    """Texts without labels as one prompt reads them: s and h."""

    scores: Float[Tensor, "U C"]
    states: Float[Tensor, "U D"]


class Labelled(NamedTuple):
    """Labelled texts as one prompt reads them: s, h and y."""

    scores: Float[Tensor, "N C"]
    states: Float[Tensor, "N D"]
    labels: Int[Tensor, " N"]

    def rows(self, chosen: Sequence[int] | Tensor) -> Labelled:
        """Return some of the texts."""
        return Labelled(*(each[torch.as_tensor(chosen)] for each in self))

    def fit(self, widths: Widths, more: Texts | None = None, *, spread: bool = False) -> Readout:
        """Return the MAP readout around the label-free offset of these texts, and of more without labels.

        Args:
            spread: Add the `Spread` of its posterior.
        """
        scores, states = self.scores, self.states
        if more is not None:
            scores, states = torch.cat([scores, more.scores]), torch.cat([states, more.states])
        scale = standardised(states)
        found = fit(self.scores, self.labels, widths, self.states, label_free_offset(scores), scale)
        if not spread:
            return found
        p = found.logits(self.scores, self.states).softmax(dim=1)
        return replace(found, spread=Spread.of(self.states, p, widths, scale))


def log_evidence(
    scores: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"],
    widths: Widths,
    features: Float[Tensor, "N D"] | None = None,
    centre: Float[Tensor, " C"] | None = None,
) -> float:
    """Return log ∫ Π_n p(y_n|x_n) p(a) p(b) p(w) by Laplace's method, in nats. Arguments as `fit`.

    The cost grows with (N·C)³: for a few hundred rows, not for thousands.
    """
    problem = _Problem(scores, labels, widths, features, centre)
    u = problem.solve()
    return -problem.objective(u)[0] - problem.half_log_det(u)


class _Problem:
    """The negative log posterior in u, the parameters in units of their prior's widths: u ~ N(0, I).

    u holds (a − 1)/σ_a if σ_a > 0, then (b − b₀)/σ_b if σ_b > 0, then ω/σ_w, [C, r]: the MAP weights lie in
    the span of the rows, so the r ≤ N coordinates ω of w in that span say as much as its D.
    """

    def __init__(
        self,
        scores: Float[Tensor, "N C"],
        labels: Int[Tensor, " N"],
        widths: Widths,
        features: Float[Tensor, "N D"] | None,
        centre: Float[Tensor, " C"] | None,
        scale: Scale | None = None,
    ) -> None:
        N, C = scores.shape
        self.scores, self.widths = scores.double().cpu().numpy(), widths
        self.centre = np.zeros(C) if centre is None else centre.double().cpu().numpy()
        self.right = np.eye(C)[labels.cpu().numpy()]  # [N, C]
        self.rows, self.basis, self.mean = np.zeros((N, 0)), torch.zeros(0, 0), torch.zeros(0)
        if widths.weights and features is not None:
            self.mean, std = standardised(features) if scale is None else scale
            unit = std * math.sqrt(len(std))
            left, singular, basis = torch.linalg.svd((features.double().cpu() - self.mean) / unit, full_matrices=False)
            self.rows, self.basis = (left * singular).numpy(), basis / unit
        self.sizes = (int(widths.slope > 0), C * (widths.offset > 0), C * self.rows.shape[1])

    def split(self, u: Array) -> tuple[float, Array, Array]:
        """Return a − 1, b − b₀ [C] and ω [C, r]."""
        C = self.scores.shape[1]
        slope, offset, weights = np.split(u, np.cumsum(self.sizes)[:-1])
        b = self.widths.offset * offset if len(offset) else np.zeros(C)
        return float(self.widths.slope * slope.sum()), b, self.widths.weights * weights.reshape(C, -1)

    def forward(self, u: Array) -> Array:
        """Return the part of z [N, C] that is linear in u."""
        slope, offset, weights = self.split(u)
        return np.asarray(slope * self.scores + offset + self.rows @ weights.T)

    def backward(self, z: Array) -> Array:
        """Return the adjoint of `forward`."""
        slope = np.atleast_1d(self.widths.slope * (z * self.scores).sum())[: self.sizes[0]]
        offset = (self.widths.offset * z.sum(axis=0))[: self.sizes[1]]
        return np.concatenate([slope, offset, self.widths.weights * (z.T @ self.rows).ravel()])

    def log_p(self, u: Array) -> Array:
        """Return log p(c|x_n) [N, C]."""
        return np.asarray(log_softmax(self.scores + self.centre + self.forward(u), axis=1))

    def objective(self, u: Array) -> tuple[float, Array]:
        """Return the negative log posterior, normalisers of the priors left out, and its gradient."""
        log_p = self.log_p(u)
        value = -(self.right * log_p).sum() + u @ u / 2
        return float(value), self.backward(np.exp(log_p) - self.right) + u

    def curvature(self, u: Array, direction: Array) -> Array:
        """Return H at u times a direction."""
        p = np.exp(self.log_p(u))
        moved = p * self.forward(direction)
        return self.backward(moved - p * moved.sum(axis=1, keepdims=True)) + direction

    def solve(self) -> Array:
        """Return the MAP u."""
        start = np.zeros(sum(self.sizes))
        if not len(start):
            return start
        options = {"gtol": TOLERANCE}
        found = minimize(self.objective, start, jac=True, hessp=self.curvature, method="trust-ncg", options=options)
        return np.asarray(found.x)

    def half_log_det(self, u: Array) -> float:
        """Return ½ log det H; on what the rows do not see H is the identity."""
        H = np.array([self.curvature(u, each) for each in np.eye(len(u))]).reshape(len(u), len(u))
        return float(np.linalg.slogdet(H)[1]) / 2

    def readout(self, u: Array) -> Readout:
        """Return the parameters for s and h as they are."""
        slope, offset, weights = self.split(u)
        b = torch.from_numpy(self.centre + offset)
        if not len(self.mean):
            return Readout(1 + slope, b)
        own = torch.from_numpy(weights) @ self.basis
        return Readout(1 + slope, b - own @ self.mean, own)
