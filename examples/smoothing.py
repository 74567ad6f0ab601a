"""Is the loss around a target prompt smooth, and what does blurring by a Gaussian take away?

    loss rise(r) = mean over directions δ of NLL(θ + r·δ) − NLL(θ)        rms(δ) = 1, θ a target prompt
    attenuation  = exp(−σ²ω²/2): what a Gaussian of width σ leaves of a cosine of frequency ω

The second is also measured, by blurring a sampled cosine. The first needs prompts that `bmtpt adapt` or a study saved:

    python examples/smoothing.py                                           # the blur, seconds
    python examples/smoothing.py runs/NAME/prompts/cb-bmtpt-k16-seed0 runs/NAME/prompts/cb-pt-k16-seed0 --data offline
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from bmtpt.artifacts.saved import Prompt
from bmtpt.backbone import Backbone
from bmtpt.tasks import load_data, saved_task
from bmtpt.tasks.tokens import tokenise

SAMPLES, PERIODS = 8_192, 16


def neighbours(prompt: Tensor, radius: float, directions: int, seed: int) -> Tensor:
    """Return the prompt [P, D], then one point per direction at a root mean square distance of ``radius``.

    The directions depend only on the seed: every radius and every prompt looks the same way.
    """
    drawn = torch.randn(directions, *prompt.shape, generator=torch.Generator().manual_seed(seed))
    drawn = drawn / drawn.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return torch.cat([prompt[None], prompt + radius * drawn])


def blurred_share(frequency: float, std: float) -> float:
    """Blur a cosine with a Gaussian; return the amplitude that is left, as a share."""
    length = PERIODS * 2 * math.pi / frequency
    wave = np.cos(frequency * np.arange(SAMPLES) * length / SAMPLES)
    blurred = gaussian_filter1d(wave, std * SAMPLES / length, mode="wrap", truncate=8.0)
    return float(2 * (blurred * wave).mean())


def loss_rises(folder: Path, data: str, radii: list[float], directions: int, rows: int) -> list[float]:
    """Return how much the loss on test rows rises at every radius around a saved prompt, in nats per example."""
    prompt = Prompt.load(folder)
    backbone = Backbone.from_pretrained(prompt.card.backbone.name)
    task = saved_task(prompt.card.task_definition)
    test = load_data(task, data).test[:rows]
    batch = tokenise(backbone, test, prompt.card.settings.get("max_length") or task.max_length).batch
    rises = []
    for radius in radii:
        around = neighbours(prompt.prompts[0], radius, directions, seed=0).to(backbone.device)
        losses = backbone.engine.losses(around, batch).mean(dim=1)
        rises.append(float(losses[1:].mean() - losses[0]))
    return rises


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="*", type=Path, help="folders of saved prompts")
    parser.add_argument("--data", default="offline", help="hub, offline or a data folder")
    parser.add_argument("--radii", type=float, nargs="+", default=[0.1, 0.3, 1.0, 3.0])
    parser.add_argument("--directions", type=int, default=8)
    parser.add_argument("--rows", type=int, default=48)
    options = parser.parse_args()
    print("what a blur of σ = 1 leaves of a cosine\nfrequency   measured   exp(−σ²ω²/2)")
    for frequency in (0.25, 0.5, 1.0, 2.0, 4.0):
        print(f"{frequency:<12}{blurred_share(frequency, 1.0):<11.6f}{math.exp(-(frequency**2) / 2):.6f}")
    if options.prompts:
        print("\nloss rise, nats per example, at a radius of".ljust(50), *(f"{r:<8g}" for r in options.radii))
    for folder in options.prompts:
        rises = loss_rises(folder, options.data, options.radii, options.directions, options.rows)
        print(folder.name.ljust(49), *(f"{rise:<8.3f}" for rise in rises))


if __name__ == "__main__":
    main()
