"""BMTPT's source stage (arXiv 2402.08594; docs/method.md, section 1): SVGD on the product of the tasks' likelihoods.

    score(θ_j) = −∇_{θ_j} Σ_k L_k(θ_j)        L_k = mean over task k's draw of −log p(y | [θ_j; embed(x)])
    φ(θ_i)     = (1/M) Σ_j [ k(θ_j, θ_i)·score(θ_j) + ∇_{θ_j} k(θ_j, θ_i) ]
    θ_i       ← θ_i + ε φ(θ_i)                −φ is what the optimiser is handed as the gradient

The paper's mean is over the tokens of the answers (`likelihood_unit` "token"): the deciding first token of a long
answer then weighs less than that of a short one, and long answers are learned badly (docs/method.md, section 1).
Other losses than −log p(y | [θ_j; embed(x)]) are in `source_loss.py`.

φ is `posterior/svgd.py::svgd_direction`. With M = 1 this is multi-task prompt tuning: one prompt for all sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.backbone.engine import Choice, Engine
from bmtpt.methods.source_loss import source_loss
from bmtpt.posterior.diagnostics import diagnose
from bmtpt.posterior.history import History, warnings
from bmtpt.posterior.positions import written_positions
from bmtpt.posterior.svgd import SvgdInfo, annealing, svgd_direction
from bmtpt.settings import LearnSettings
from bmtpt.tasks.tokens import Tokenised, TrainingRows, epoch_rows
from bmtpt.train.loop import Validation
from bmtpt.train.optimisers import ParameterGroup
from bmtpt.types import TokenBatch


class SvgdSource:
    """M particles on K source tasks. M = 1 is plain multi-task prompt tuning, bit for bit.

    Args:
        engine: The frozen model.
        particles: Where they start, fp32.
        train: Training rows by source task.
        held_back: Rows by source task on which NLL is watched.
        settings: Of the source stage.
        words: Token ids of the label words by source task; a source without any has the loss of its answers' tokens.
    """

    def __init__(
        self,
        engine: Engine,
        particles: Float[Tensor, "M P D"],
        train: Mapping[str, TrainingRows],
        held_back: Mapping[str, Tokenised],
        settings: LearnSettings,
        words: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        self.engine = engine
        self.particles = particles.clone().requires_grad_(True)
        self.train = train
        self.held_back = held_back
        self.settings = settings
        self.losses = {name: source_loss(engine, (words or {}).get(name, ()), settings) for name in train}
        self.last: tuple[Tensor, Tensor, SvgdInfo] | None = None

    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup("particles", [self.particles], self.settings.learning_rate)]

    def draw(self, step: int) -> dict[str, TokenBatch]:
        """The same number of examples from every source task; all rows, once, of a task that has fewer."""
        return {
            name: rows.rows(
                epoch_rows(len(rows), min(self.settings.batch_size, len(rows)), step, seed=self.settings.seed, task=k)
            )
            for k, (name, rows) in enumerate(self.train.items())
        }

    def backward(self, batches: Mapping[str, TokenBatch], step: int) -> dict[str, list[float]]:
        """Leave −φ in the particles' gradient; return L_k(θ_m) by task."""
        found = {
            name: self.losses[name].scored(self._prompts(k), batch) for k, (name, batch) in enumerate(batches.items())
        }
        batches = {name: batch for name, (batch, _) in found.items()}
        choices = {name: choice for name, (_, choice) in found.items() if choice}
        losses, gradient = self._gradients(batches, choices)
        score = -gradient
        phi, info = svgd_direction(
            self.particles.detach(),
            score,
            kernel=self.settings.kernel,
            bandwidth=self.settings.bandwidth,
            scope=self.settings.scope,
            repulsion=self.settings.repulsion,
            score_scale=annealing(step, self.settings.steps, self.settings.annealing),
        )
        self.particles.grad = -phi
        # The optimiser is about to move the particles; the score and the kernel belong to where they are now.
        self.last = self.particles.detach().clone(), score, info
        return self._means(losses, batches)

    def _prompts(self, task: int) -> Float[Tensor, "M P D"]:
        """Return the prompts of a source task, by its number."""
        return self.particles.detach()

    def _gradients(
        self, batches: Mapping[str, TokenBatch], choices: Mapping[str, Choice]
    ) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M P D"]]:
        """Return the losses and ∂/∂θ_m Σ_k scale_k · L_k(θ_m), where some sources choose among label words."""
        return self._pull(self.particles.detach(), batches, choices)

    def _pull(
        self,
        prompts: Float[Tensor, "M *N P D"],
        batches: Mapping[str, TokenBatch],
        choices: Mapping[str, Choice],
    ) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M *N P D"]]:
        """Return the losses and the gradient of their weighted sum in the prompts.

        One call pairs the prompts with the examples of all sources, unless label words differ between them.
        """
        weights = self._weights(batches)
        if not choices:
            return self.engine.gradients(prompts, joined(batches), weights)
        sizes = [len(batch) for batch in batches.values()]
        shared = prompts.ndim == 3
        own = [prompts] * len(sizes) if shared else torch.split(prompts, sizes, dim=1)
        parts = zip(batches.items(), own, torch.split(weights, sizes), strict=True)
        found = [self.engine.gradients(at, batch, w, choices.get(name)) for (name, batch), at, w in parts]
        losses, pulled = zip(*found, strict=True)
        return torch.cat(losses, dim=1), torch.stack(pulled).sum(dim=0) if shared else torch.cat(pulled, dim=1)

    def _weights(self, batches: Mapping[str, TokenBatch]) -> Float[Tensor, " N"]:
        """Each example's factor in Σ_k scale_k · L_k."""
        weights, scale = [], self.settings.likelihood_scale
        for name, batch in batches.items():
            by_name = len(self.train[name]) if scale == "data" else 1.0  # "mean"
            weights += [(by_name if isinstance(scale, str) else scale) / self._units(batch)] * len(batch)
        return torch.tensor(weights, dtype=self.particles.dtype, device=self.particles.device)

    def _units(self, batch: TokenBatch) -> int:
        """Return how many examples, or target tokens, the mean of a draw is over."""
        return len(batch) if self.settings.likelihood_unit == "example" else sum(batch.target_tokens())

    def _means(self, losses: Float[Tensor, "M N"], batches: Mapping[str, TokenBatch]) -> dict[str, list[float]]:
        """Return the mean cross-entropy of each task's share of the columns, per prompt."""
        shares = torch.split(losses, [len(batch) for batch in batches.values()], dim=1)
        sums = zip(batches.items(), shares, strict=True)
        return {name: (share.sum(dim=1) / self._units(batch)).tolist() for (name, batch), share in sums}

    def validate(self, losses: Sequence[float]) -> Validation:
        """Watch the gap NLL(θ̄) − mean_m NLL(θ_m) on held-back rows, and the particles' geometry."""
        nll = self.held_back_nll()
        mean = {name: values[0] for name, values in nll.items()}
        particles = {name: values[1:] for name, values in nll.items()}
        overall = _average([_average(values) for values in particles.values()])
        positions = written_positions(self.particles.detach().mean(dim=1).float().cpu().numpy())
        figures = {"loss": particles, "mean_nll": mean, "particle_nll": particles, "score": -overall}
        events: list[dict[str, Any]] = [{"event": "validation", **figures, "positions": positions}]
        if self.last is not None:
            history = History(
                losses=losses,
                particles=len(self.particles),
                mean_nll=_average(list(mean.values())),
                particle_nll=[_average(list(each)) for each in zip(*particles.values(), strict=True)],
            )
            facts = diagnose(*self.last)._asdict()
            events.append({"event": "diagnostics", "diagnostics": facts, "warnings": warnings(history)})
        return Validation(ranking=[], events=events)

    def held_back_nll(self) -> dict[str, list[float]]:
        """Return the mean NLL of [θ̄, θ_1, …, θ_M] on each source's held-back rows, in nats per `likelihood_unit`."""
        particles = self.particles.detach()
        candidates = torch.cat([particles.mean(dim=0, keepdim=True), particles])
        found: dict[str, list[float]] = {}
        for name, rows in self.held_back.items():
            found |= self._means(self.losses[name].held_back(candidates, rows.batch), {name: rows.batch})
        return found


def joined(batches: Mapping[str, TokenBatch]) -> TokenBatch:
    """Return all tasks' examples as one batch, in the order of the tasks."""
    return TokenBatch(
        [ids for batch in batches.values() for ids in batch.inputs],
        [ids for batch in batches.values() for ids in batch.targets],
    )


def _average(values: list[float]) -> float:
    return sum(values) / len(values)
