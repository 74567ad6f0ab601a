"""The target stage that every prompt method shares: R candidates trained side by side on the same examples.

    objective(θ) = mean NLL(D | θ) + penalty(θ) / N_T,       θ = A ∘ (u vᵀ) or θ itself

A candidate is a start and a prior. Methods differ in their candidates only (`map_target.py`, `prompt_tuning.py`,
`spot.py`, …); σ and the start are chosen by ranking the candidates on the target's validation part. R candidates on one
example have one length, so they share a forward pass without padding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.artifacts.card import PromptCard
from bmtpt.artifacts.saved import Prompt
from bmtpt.backbone.engine import Choice, Engine
from bmtpt.errors import TrainingError
from bmtpt.inference.calibrate import RANKING_ROWS, fit_readouts
from bmtpt.inference.score import Prompts, PromptScore, Scorer, score_prompts
from bmtpt.posterior.priors import gaussian_penalty, mixture_penalty
from bmtpt.posterior.prompts import compose
from bmtpt.posterior.readout import Readout
from bmtpt.settings import AdaptSettings, Prior
from bmtpt.tasks.tokens import Tokenised, proportional_counts, standard_normal, stream_rows
from bmtpt.train.loop import Validation
from bmtpt.train.optimisers import ParameterGroup
from bmtpt.types import TokenBatch


@dataclass(frozen=True)
class Candidate:
    """One way to train a target prompt.

    Attributes:
        start: Where θ starts, fp32 [P, D].
        start_name: For the record: "mean", "particle 2", "vocabulary", a source task.
        prior: Which penalty.
        prior_std: σ in embedding units; None without a prior.
        centre: Where the prior `mean` is centred, fp32 [P, D]; None for the mean of the posterior.
        row, col: Where u and v start; None for ones. Then A starts at ``start``, and θ at A ∘ (u vᵀ).
        noise_std: Standard deviation of the noise that θ is trained under, in embedding units (`perturbation.py`).
    """

    start: Float[Tensor, "P D"]
    start_name: str
    prior: Prior = "none"
    prior_std: float | None = None
    centre: Float[Tensor, "P D"] | None = None
    row: Float[Tensor, " P"] | None = None
    col: Float[Tensor, " D"] | None = None
    noise_std: float = 0.0

    def describe(self) -> dict[str, Any]:
        """Return what the card says of it."""
        noise = {"noise_std": self.noise_std} if self.noise_std else {}
        return {"start": self.start_name, "prior": self.prior, "prior_std": self.prior_std, **noise}


@dataclass(frozen=True)
class TargetRows:
    """A target's tokenised training and validation rows, and how validation is scored.

    Attributes:
        lent: Whether the validation rows are a share of the labelled rows that the run was given, not the target's own.
        unlabelled: Rows whose texts the readouts see, and whose labels nothing looks at.
    """

    train: Tokenised
    select: Tokenised
    scorer: Scorer
    lent: bool = False
    unlabelled: Tokenised | None = None

    @property
    def labelled(self) -> list[Tokenised]:
        """All labelled rows that the run was given."""
        return [self.train, self.select] if self.lent else [self.train]

    @property
    def texts(self) -> Sequence[Tensor]:
        """Token ids of the texts without labels."""
        return self.unlabelled.batch.inputs if self.unlabelled else ()


class TargetStage(ABC):
    """What all target methods share: which examples a step sees, and how R candidates are ranked on validation."""

    def __init__(
        self,
        engine: Engine,
        targets: Mapping[str, TargetRows],
        candidates: Sequence[Candidate],
        settings: AdaptSettings,
    ) -> None:
        self.engine = engine
        self.targets = targets
        # With nothing to select by, the candidates cannot compete: the first (of each start) is the method's choice.
        if settings.selection == "none" and not settings.ensemble:
            firsts = {candidate.start_name: candidate for candidate in reversed(candidates)}
            candidates = [*reversed(firsts.values())] if settings.keeps_every_start else candidates[:1]
        self.candidates = candidates
        self.settings = settings
        self._readouts: dict[str, tuple[Readout, ...]] = {}
        self._supplied = [[0] * len(targets)]

    @abstractmethod
    def groups(self) -> list[ParameterGroup]:
        """Return the trained tensors, candidates first."""

    @abstractmethod
    def backward(self, batches: Mapping[str, TokenBatch], step: int) -> dict[str, list[float]]:
        """Leave the gradient of the objective in every trained tensor; return the mean NLL by target and candidate."""

    @abstractmethod
    def prompts(self, target: int) -> Prompts:
        """Return every candidate's prompts for one target, by its number."""

    @abstractmethod
    def result(self, trained: Sequence[Tensor], target: int, winners: Sequence[int], card: PromptCard) -> Any:
        """Return what predicts one target, from the winners among ``trained``, which are in the order of the groups."""

    @abstractmethod
    def trained_parameters(self) -> int:
        """Return how many numbers one candidate trains per target."""

    def draw(self, step: int) -> dict[str, TokenBatch]:
        """One target: epochs of its rows. Several: a draw in proportion to their (capped) sizes."""
        batches = {}
        while len(self._supplied) <= step:  # how many examples each target has supplied before a step
            supplied = zip(self._supplied[-1], self._counts(len(self._supplied) - 1), strict=True)
            self._supplied.append([sum(pair) for pair in supplied])
        starts, counts = self._supplied[step], self._counts(step)
        for k, (name, rows) in enumerate(self.targets.items()):
            if counts[k]:
                drawn = stream_rows(len(rows.train), starts[k], counts[k], seed=self.settings.seed, task=k)
                batches[name] = rows.train.rows(drawn)
        return batches

    def _counts(self, step: int) -> list[int]:
        """Return how many examples each target supplies at a step: at most all it has."""
        settings = self.settings
        sizes = [len(rows.train) for rows in self.targets.values()]
        counts = [settings.batch_size]
        if len(sizes) > 1:
            cap = settings.proportional_cap
            counts = proportional_counts(sizes, settings.batch_size, step, seed=settings.seed, cap=cap)
        return [min(pair) for pair in zip(counts, sizes, strict=True)]  # no row twice in a step

    def validate(self, losses: Sequence[float]) -> Validation:
        """Rank candidates by their mean over targets: score, then loss (or loss alone)."""
        if self.settings.selection == "none":
            return Validation(ranking=[], events=[])
        with torch.no_grad():
            scores = [self._scores(self.prompts(k), rows) for k, rows in enumerate(self.targets.values())]
        R = len(self.candidates)
        score = [sum(each[r].score for each in scores) / len(scores) for r in range(R)]
        loss = [sum(each[r].nll for each in scores) / len(scores) for r in range(R)]
        ranking = [(-loss[r],) if self.settings.selection == "loss" else (score[r], -loss[r]) for r in range(R)]
        by_target = {name: [each[r].nll for r in range(R)] for name, each in zip(self.targets, scores, strict=True)}
        event = {"event": "validation", "score": max(score), "candidate_scores": score, "loss": by_target}
        return Validation(ranking, [event])

    def _scores(self, prompts: Prompts, rows: TargetRows) -> list[PromptScore]:
        """Score every candidate on the validation rows, after its readout is fitted to training rows."""
        readouts = self._fitted(prompts, rows, RANKING_ROWS)
        return score_prompts(self.engine, prompts, rows.select, rows.scorer, readouts)

    def read_starts(self) -> None:
        """Fit the readouts of the untouched candidates, which stay in the loss while the prompts are trained.

        What a readout can express is then not asked of the prompt. Refitted while training, readouts would explain the
        training rows ever better, and the prompt would be free to drift (docs/method.md, section 5).
        """
        if self.settings.likelihood == "labels" and self.settings.steps:
            with torch.no_grad():
                for k, (name, rows) in enumerate(self.targets.items()):
                    # The loss takes their MAP: averaged, a text would count for less the further it is from the others.
                    self._readouts[name] = tuple(replace(e, spread=None) for e in self._fitted(self.prompts(k), rows))

    def _fitted(self, prompts: Prompts, rows: TargetRows, most: int | None = None) -> tuple[Readout, ...]:
        """Fit readouts to the training rows, or to a draw of so many."""
        return fit_readouts(self.engine, prompts, [rows.train], rows.scorer, self.settings, rows.texts, most)

    def choice(self, name: str) -> Choice | None:
        """Return the label words that a target's loss chooses among; None for the likelihood of the answer's tokens."""
        if self.settings.likelihood != "labels":
            return None
        return Choice(self.targets[name].scorer.answers, self._readouts.get(name, ()))


class TargetPrompts(TargetStage):
    """Trains candidates on one target, or on several that share A.

    Args:
        particles: θ_m of the source posterior, the centres of the priors; None if no candidate has one of them.
    """

    def __init__(
        self,
        engine: Engine,
        targets: Mapping[str, TargetRows],
        candidates: Sequence[Candidate],
        particles: Float[Tensor, "M P D"] | None,
        settings: AdaptSettings,
    ) -> None:
        super().__init__(engine, targets, candidates, settings)
        self.particles = particles
        self.full = torch.stack([candidate.start for candidate in self.candidates]).clone().requires_grad_(True)
        _, P, D = self.full.shape
        self.row = self._factors([candidate.row for candidate in self.candidates], P)
        self.col = self._factors([candidate.col for candidate in self.candidates], D)
        # Infinite σ for candidates without a prior keeps the arithmetic free of branches: their penalty is 0.
        self.std = self._by_candidate([candidate.prior_std or float("inf") for candidate in self.candidates])
        self.noise_std = self._by_candidate([candidate.noise_std for candidate in self.candidates])
        self.starts = [self.prompts(k).detach() for k in range(len(targets))]
        mean = None if particles is None else particles.mean(dim=0)
        centres = [
            c.start if (own := c.centre if c.centre is not None else mean) is None else own for c in self.candidates
        ]
        self.centres = torch.stack(centres).detach()
        self.is_mixture = torch.tensor([c.prior == "mixture" for c in self.candidates], device=self.full.device)

    def _factors(self, starts: Sequence[Float[Tensor, " W"] | None], width: int) -> Float[Tensor, "R N W"]:
        """Start u or v of every candidate and target."""
        ones = self.full.new_ones(width)
        started = torch.stack([ones if start is None else start.to(ones) for start in starts])
        return started[:, None].repeat(1, len(self.targets), 1).detach().requires_grad_(self.settings.decompose)

    def _by_candidate(self, values: Sequence[float]) -> Float[Tensor, " R"]:
        return torch.tensor(values, dtype=self.full.dtype, device=self.full.device)

    def groups(self) -> list[ParameterGroup]:
        """A at one learning rate (0: frozen), u and v at another; without decomposition θ alone."""
        full = ParameterGroup("A", [self.full], 0.0 if self.settings.freeze_full else self.settings.learning_rate)
        if not self.settings.decompose:
            return [full]
        return [full, ParameterGroup("u and v", [self.row, self.col], self.settings.factor_learning_rate)]

    def prompts(self, target: int) -> Float[Tensor, "R P D"]:
        """Return θ of every candidate for one target, by its number."""
        return compose(self.full, self.row[:, target], self.col[:, target])

    def composed(self, trained: Sequence[Tensor], target: int) -> Float[Tensor, "R P D"]:
        """Return θ for one target, given the trained tensors in the order of the groups."""
        full, row, col = trained if self.settings.decompose else (*trained, self.row, self.col)
        return compose(full, row[:, target], col[:, target])

    def result(self, trained: Sequence[Tensor], target: int, winners: Sequence[int], card: PromptCard) -> Prompt:
        """Return the winners' prompts for one target, after their starts if both answer.

        Raises:
            TrainingError: A ∘ (u vᵀ) overflows.
        """
        prompts = self.composed(trained, target)[list(winners)].detach().cpu()
        if self.settings.average in ("start", "starts") and self.settings.steps:
            prompts = torch.cat([self.starts[target][list(winners)].cpu(), prompts])
        if not bool(prompts.isfinite().all()):
            raise TrainingError(
                f"the prompt for {card.task} is not finite; lower the learning rates or widen the prior"
            )
        return Prompt(prompts, card)

    def backward(self, batches: Mapping[str, TokenBatch], step: int) -> dict[str, list[float]]:
        """Leave the gradient of the objective in A, u and v; return the mean NLL by target and candidate."""
        drawn = sum(len(batch) for batch in batches.values())
        objective = self.full.new_zeros(())
        # N_T; of several targets the rows that sampling counts.
        cap = self.settings.proportional_cap if len(self.targets) > 1 else None
        rows = sum(min(len(each.train), cap or len(each.train)) for each in self.targets.values())
        found = {}
        for k, name in enumerate(self.targets):
            prompts = self.prompts(k)
            objective = objective + self._penalty(prompts).sum() / rows
            if name in batches:
                weights = prompts.new_full((len(batches[name]),), 1 / drawn)
                at = prompts.detach()
                if bool(self.noise_std.any()):  # θ + δ; candidates share the draw, so that each trains as if alone
                    noise = standard_normal(*at.shape[1:], seed=self.settings.seed, step=step, task=k)
                    at = at + self.noise_std[:, None, None] * noise.to(at)
                losses, gradient = self.engine.gradients(at, batches[name], weights, self.choice(name))
                objective = objective + (prompts * gradient).sum()  # its gradient is the engine's
                found[name] = losses.mean(dim=1).tolist()
        objective.backward()  # type: ignore[no-untyped-call]
        return found

    def _penalty(self, prompts: Float[Tensor, "R P D"]) -> Float[Tensor, " R"]:
        """Return −log p(θ_r) of each candidate's prior, constants dropped."""
        gaussian = gaussian_penalty(prompts, self.centres, self.std)
        if self.particles is None or not bool(self.is_mixture.any()):
            return gaussian
        return torch.where(self.is_mixture, mixture_penalty(prompts, self.particles, self.std), gaussian)

    def trained_parameters(self) -> int:
        """Numbers trained per target: (l·d)/N + l + d with the decomposition (l + d with A frozen), l·d without."""
        _, P, D = self.full.shape
        share = 0 if self.settings.freeze_full else -(-P * D // len(self.targets))
        return share + P + D if self.settings.decompose else share
