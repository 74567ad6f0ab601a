"""Describe an artifact for people: its card, its numbers, the tokens its rows are nearest to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from bmtpt.artifacts.card import require_backbone
from bmtpt.artifacts.folder import UNSEALED_VERSION
from bmtpt.artifacts.saved import Posterior, Prompt
from bmtpt.backbone import Backbone

NEAREST = 3


def describe_artifact(artifact: Posterior | Prompt) -> dict[str, str]:
    """Return the facts `bmtpt inspect` prints: card, shape, rms per prompt, trained numbers and their share."""
    card = artifact.card
    prompts = _prompts(artifact)
    M, P, D = prompts.shape
    unsealed = " (its card has no hash; saving it again adds one)" if card.format_version == UNSEALED_VERSION else ""
    facts = {
        "kind": f"{card.kind}, format {card.format_version}{unsealed}, made {card.created}",
        "backbone": f"{card.backbone.name} ({card.backbone.parameters:,} parameters, {card.backbone.fingerprint[:12]})",
        "sources": ", ".join(card.sources) or "none",
        "shape": f"{M} × {P} × {D} (prompts × rows × width), fp32",
        "rms per prompt": ", ".join(f"{value:.2f}" for value in prompts.pow(2).mean(dim=(1, 2)).sqrt().tolist()),
        "training": f"{card.steps:,} steps, {card.seconds:,.0f} s",
    }
    return facts | (_posterior_facts(artifact) if isinstance(artifact, Posterior) else _prompt_facts(artifact))


def _posterior_facts(posterior: Posterior) -> dict[str, str]:
    mean, diagnostics = posterior.mean, posterior.card.diagnostics
    spread = (posterior.particles - mean).pow(2).mean().sqrt()
    facts = {"spread": f"{spread:.2f} rms around a mean of rms {mean.pow(2).mean().sqrt():.2f}"}
    if (gap := diagnostics.get("mean_gap")) is not None:
        unit = posterior.card.settings.get("likelihood_unit", "token")  # older posteriors knew no other
        facts["mean gap"] = f"NLL(mean) − NLL(particles) = {gap:+.3f} nats per {unit} on held-back source rows"
    if curves := posterior.card.readout_prior:
        facts["readout prior"] = "; ".join(map(str, curves))
    svgd = diagnostics.get("svgd", {})
    if svgd.get("stein_discrepancy") is None:  # with one particle, and in older cards
        return facts
    shown = {
        "bandwidth": ("bandwidth", "h = {:.3g} (embedding units)²"),
        "kernel": ("kernel_rank", f"rank {{:.2f}} of {len(svgd.get('kernel', ()))}"),
        "Stein discrepancy": ("stein_discrepancy", "{:.3g} (squared; 0 is the posterior; noisy, of one draw)"),
        "repulsion": ("repulsion_to_drive", "{:.2g} of the drive"),
    }
    return facts | {name: text.format(svgd[key]) for name, (key, text) in shown.items() if svgd.get(key) is not None}


def _prompt_facts(prompt: Prompt) -> dict[str, str]:
    card, kept = prompt.card, []
    for winner in card.selection.get("winners", []):
        prior = "no prior" if winner["prior_std"] is None else f"prior {winner['prior']} (σ {winner['prior_std']:g})"
        best = ", ".join("not finite" if value is None else f"{value:.4g}" for value in winner["best"])
        step = f"step {winner['step']}" + (f" (validation {best})" if best else "")
        untouched = ", where no later step validated better" if best and winner["step"] == 0 else ""
        kept.append(f"start {winner['start']}, {prior}, {step}{untouched}")
    share = card.trained_parameters / card.backbone.parameters
    return {
        "task": f"{card.task}, by {card.method}",
        "trained": f"{card.trained_parameters:,} numbers, {share:.4%} of the model",
        "selected": "; ".join(kept) or "-",
        **({"readout": "; ".join(map(str, prompt.readouts))} if prompt.readouts else {}),
        **({"calibration": str(card.calibration)} if card.calibration else {}),
    }


def artifact_record(artifact: Posterior | Prompt) -> dict[str, Any]:
    """Return the card as JSON holds it, the `shape` [M, P, D] of the prompts and the `rms_per_prompt`."""
    prompts = _prompts(artifact)
    rms = prompts.pow(2).mean(dim=(1, 2)).sqrt().tolist()
    return {**artifact.card.model_dump(mode="json"), "shape": list(prompts.shape), "rms_per_prompt": rms}


class NearestTokens(NamedTuple):
    """The tokens whose embeddings are the nearest to one row of one prompt."""

    prompt: int
    row: int
    tokens: list[str]


def nearest_tokens(artifact: Posterior | Prompt, backbone: Backbone, rows: int) -> Iterator[NearestTokens]:
    """Yield the nearest vocabulary tokens (by cosine) of each prompt's first rows."""
    require_backbone(artifact.card.backbone, backbone)
    # A T5's table is longer than its vocabulary; the extra rows have no token.
    table = backbone.embed(torch.arange(min(len(backbone.tokenizer), backbone.vocab_size)))
    directions = normalize(table, dim=1)
    for m, prompt in enumerate(_prompts(artifact)):
        cosine = normalize(prompt[:rows].to(table.device), dim=1) @ directions.T  # [rows, V]
        for row, ids in enumerate(cosine.topk(NEAREST, dim=1).indices.tolist()):
            yield NearestTokens(m, row, backbone.tokenizer.convert_ids_to_tokens(ids))


def _prompts(artifact: Posterior | Prompt) -> Float[Tensor, "M P D"]:
    return artifact.particles if isinstance(artifact, Posterior) else artifact.prompts
