"""Does the prior leave a smoother loss? And what smoothing by a Gaussian takes away (thesis, appendix B).

    loss_rise(r) = mean over directions δ of NLL(θ + r·δ) − NLL(θ)        rms(δ) = 1, θ a target prompt
    attenuation  = exp(−σ²ω²/2): what a Gaussian of width σ leaves of a cosine of frequency ω

The second is measured too, by blurring a sampled cosine.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.artifacts.card import versions
from bmtpt.artifacts.saved import Prompt
from bmtpt.errors import ArtifactError
from bmtpt.results import Result, settings_hash
from bmtpt.studies.grid import PROMPT_SETTINGS, GridBench
from bmtpt.studies.jobs import Job, Place
from bmtpt.studies.spec import SmoothingSpec
from bmtpt.tasks import TaskData
from bmtpt.tasks.tokens import tokenise
from bmtpt.train.events import Listener

SAMPLES = 8_192
PERIODS = 16


class SmoothingBench(GridBench):
    """The cells of a grid; behind each the loss at every radius; and the blur of every frequency."""

    study: SmoothingSpec

    def jobs(self) -> list[Job]:
        found: list[Job] = []
        for job in super().jobs():
            found.append(job)
            if job.work[0] == "cell":
                found += [self._surface(job, radius) for radius in self.study.radii]
        return found + self._blurs()

    def _surface(self, cell: Job, radius: float) -> Job:
        study, place = self.study, cell.place
        point = f"radius={radius:g}"
        variant = f"{point},{place.variant}" if place.variant else point
        key = settings_hash({"cell": cell.settings_hash, "directions": study.directions, "rows": study.rows})
        there = place._replace(study=f"{study.name}-surface", variant=variant)
        return Job(there, key, frozenset({"loss_rise", "loss"}), ("surface", cell, radius), (cell,))

    def _blurs(self) -> list[Job]:
        found = []
        for method in ("measured", "closed_form"):
            for std in self.study.blur_stds:
                for frequency in self.study.frequencies:
                    variant = f"frequency={frequency:g},std={std:g}"
                    place = Place(f"{self.study.name}-blur", method, variant, "cosine", None, 0)
                    key = settings_hash({"samples": SAMPLES, "periods": PERIODS})
                    found.append(Job(place, key, frozenset({"attenuation"}), ("blur", frequency, std)))
        return found

    def run(self, job: Job, listener: Listener | None) -> list[Result]:
        if job.work[0] == "surface":
            return self._run_surface(job)
        return _run_blur(job) if job.work[0] == "blur" else super().run(job, listener)

    def _run_surface(self, job: Job) -> list[Result]:
        _, cell, radius = job.work
        contender, data = self.contenders[cell.work[1]], self.data(*cell.work[2])
        prompt = self._prompt_of(cell)
        backbone = self.backbone(contender.study)
        adapt = contender.study.adapt
        length = adapt.max_length or data.task.max_length
        rows = tokenise(backbone, data.test[: self.study.rows], length)
        around = neighbours(prompt.prompts[0], radius, self.study.directions, job.place.seed).to(backbone.device)
        losses = backbone.engine.losses(around, rows.batch).mean(dim=1)
        loss = float(losses[1:].mean())
        figures = {"loss_rise": loss - float(losses[0]), "loss": loss}
        return [_line(job, metric, value, prompt, data) for metric, value in figures.items()]

    def _prompt_of(self, cell: Job) -> Prompt:
        """Return the prompt that a cell ended with, and no other run's, which would stand in the same folder."""
        place = self.place_of_prompt(cell.place)
        note = place / PROMPT_SETTINGS
        if not note.is_file() or note.read_text(encoding="utf-8") != cell.settings_hash:
            raise ArtifactError(
                f"{place} does not hold the prompt of these settings, but perhaps that of another run; "
                "run this study in a folder of its own"
            )
        return Prompt.load(place)


def neighbours(prompt: Float[Tensor, "P D"], radius: float, directions: int, seed: int) -> Float[Tensor, "R P D"]:
    """Return the prompt, and behind it one point per direction at a root mean square distance of ``radius``.

    The directions depend on the seed alone: every radius and every method looks the same way.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(directions, *prompt.shape, generator=generator)
    drawn = drawn / drawn.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return torch.cat([prompt[None], prompt + radius * drawn])


def blurred_share(frequency: float, std: float) -> float:
    """Blur a cosine with a Gaussian; return the amplitude that is left, as a share."""
    import numpy as np
    from scipy.ndimage import gaussian_filter1d

    length = PERIODS * 2 * math.pi / frequency
    wave = np.cos(frequency * np.arange(SAMPLES) * length / SAMPLES)
    blurred = gaussian_filter1d(wave, std * SAMPLES / length, mode="wrap", truncate=8.0)
    return float(2 * (blurred * wave).mean())


def _run_blur(job: Job) -> list[Result]:
    _, frequency, std = job.work
    measured = job.place.method == "measured"
    value = blurred_share(frequency, std) if measured else math.exp(-((std * frequency) ** 2) / 2)
    return [_line(job, "attenuation", value)]


def _line(job: Job, metric: str, value: float, prompt: Prompt | None = None, data: TaskData | None = None) -> Result:
    """Return a line; what it says of cost is that of the prompt it looks at."""
    card = prompt.card if prompt else None
    return Result(
        **job.place._asdict(),
        backbone=card.backbone.name if card else "none",
        sources=card.sources if card else (),
        metric=metric,
        value=value,
        primary=metric in ("loss_rise", "attenuation"),
        constant_answer=None,
        invalid_share=0.0,
        trained_parameters=card.trained_parameters if card else 0,
        trained_share=card.trained_parameters / card.backbone.parameters if card else 0.0,
        steps=card.steps if card else 0,
        seconds=card.seconds if card else 0.0,
        settings_hash=job.settings_hash,
        data=data.status if data else "official",
        versions=versions(),
    )
