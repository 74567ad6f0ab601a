"""Posteriors, prompts and mixtures on disk: a folder with `card.json` and safetensors. Loading runs no code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from bmtpt.artifacts.card import (
    AnyCard,
    BackboneCard,
    Card,
    MixtureCard,
    PosteriorCard,
    PromptCard,
    TargetCard,
    as_card,
    read_card,
    stamped,
)
from bmtpt.artifacts.files import write_files_atomically
from bmtpt.artifacts.folder import CARD, output_folder, raw_card, read_weights, require_hash
from bmtpt.artifacts.hub import local
from bmtpt.artifacts.readouts import NAMES, from_tensors, to_tensors
from bmtpt.errors import ArtifactError
from bmtpt.posterior.readout import Readout
from bmtpt.tasks import saved_task


@dataclass(frozen=True)
class Posterior:
    """The source posterior: M SVGD particles (docs/method.md, section 1).

    Attributes:
        particles: Soft prompts, stored as fp32.
        card: Where they come from.
    """

    particles: Float[Tensor, "M P D"]
    card: PosteriorCard

    @property
    def mean(self) -> Float[Tensor, "P D"]:
        """θ̄, the mean over particles."""
        return self.particles.mean(dim=0)

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the file that `save` writes: the posterior's name in the cards of prompts made from it."""
        return hashlib.sha256(to_safetensors(_stored({"particles": self.particles}))).hexdigest()

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Self:
        """Write ``posterior.safetensors`` and ``card.json``, keep other files, and return the posterior as written.

        Raises:
            ArtifactError: The folder cannot be written, holds a run already (unless ``overwrite`` and a posterior), or
                the particles are not finite or do not fit the backbone. Nothing is changed then.
        """
        return replace(self, card=_save(folder, self.card, {"particles": self.particles}, overwrite))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a posterior and check it against its card; raise an ArtifactError if it is missing or damaged.

        Args:
            folder: Or `hub:user/name`, with `@revision` if it is not to be the newest.
        """
        tensors, card = _read(local(folder), PosteriorCard)
        return cls(tensors["particles"], card)


@dataclass(frozen=True)
class Prompt:
    """What predicts a task: one MAP prompt (M = 1) or an ensemble whose probabilities are averaged (M > 1).

    Attributes:
        prompts: Soft prompts, stored as fp32.
        card: Where they come from and the task they are for.
        readouts: What each prompt's answers are read with (docs/method.md, section 5); none reads the words alone.
    """

    prompts: Float[Tensor, "M P D"]
    card: PromptCard
    readouts: tuple[Readout, ...] = ()

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Self:
        """Write ``prompt.safetensors`` and ``card.json``. Returns and raises as `Posterior.save`."""
        tensors = {"prompts": self.prompts, **to_tensors(self.readouts)}
        return replace(self, card=_save(folder, self.card, tensors, overwrite))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a prompt and check it against its card. Takes and raises as `Posterior.load`."""
        folder = local(folder)
        tensors, card = _read(folder, PromptCard)
        return cls(tensors["prompts"], card, _readouts(folder, tensors, card, tensors["prompts"]))

    @classmethod
    def from_files(cls, card: Mapping[str, Any], weights: bytes, name: str) -> Self:
        """Return the prompt that the fields of ``card.json`` and the bytes of ``prompt.safetensors`` hold.

        Args:
            name: What messages call it in place of a folder.

        Raises:
            ArtifactError: As `load`.
        """
        noted = as_card(raw_card(card, f"{name}/{CARD}"), name, PromptCard)
        path = f"{name}/{noted.kind}.safetensors"
        require_hash(weights, noted.weights_sha256, path)
        tensors = _parsed(weights, noted, path)
        return cls(tensors["prompts"], noted, _readouts(name, tensors, noted, tensors["prompts"]))


@dataclass(frozen=True)
class PromptMixture:
    """What predicts a task with another prompt for every text: ATTEMPT (`methods/attempt.py`).

    Attributes:
        tensors: Target prompt ``target`` [1, P, D], frozen source prompts ``sources`` [K, P, D], and the attention that
            mixes them: ``down`` [1, D, r], ``up`` [1, r, D], ``gain`` [1, D], ``bias`` [1, D].
        card: Where they come from and the task they are for.
        readouts: What the answers are read with, one or none.
    """

    tensors: dict[str, Tensor]
    card: MixtureCard
    readouts: tuple[Readout, ...] = ()

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Self:
        """Write ``mixture.safetensors`` and ``card.json``. Returns and raises as `Posterior.save`."""
        tensors = {**self.tensors, **to_tensors(self.readouts)}
        return replace(self, card=_save(folder, self.card, tensors, overwrite))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a mixture and check it against its card. Raises as `Posterior.load`."""
        tensors, card = _read(Path(folder), MixtureCard)
        own = {name: tensor for name, tensor in tensors.items() if name not in NAMES}
        return cls(own, card, _readouts(folder, tensors, card, own["target"]))


# The tensors in each kind's safetensors file, and those of them that are prompts.
_TENSORS: dict[str, set[str]] = {
    "posterior": {"particles"},
    "prompt": {"prompts"},
    "mixture": {"target", "sources", "down", "up", "gain", "bias"},
}
_OPTIONAL: dict[str, frozenset[str]] = {"prompt": NAMES, "mixture": NAMES}
_PROMPTS = {"particles", "prompts", "target", "sources"}


def read_artifact(folder: str | Path) -> Posterior | Prompt:
    """Read the posterior or the prompt that a folder holds, whichever it is. Takes and raises as `Posterior.load`."""
    folder = local(folder)
    card = read_card(folder, PosteriorCard, PromptCard)
    return Posterior.load(folder) if card.kind == "posterior" else Prompt.load(folder)


def _readouts(
    folder: str | Path, tensors: dict[str, Tensor], card: TargetCard, prompts: Float[Tensor, "M P D"]
) -> tuple[Readout, ...]:
    if not NAMES & set(tensors):
        return ()
    words, path = saved_task(card.task_definition).label_words, str(Path(folder) / f"{card.kind}.safetensors")
    return from_tensors(tensors, len(prompts), len(words), prompts.shape[2], path)


def _save(folder: str | Path, card: AnyCard, tensors: dict[str, Tensor], overwrite: bool) -> AnyCard:
    stored = _stored(tensors)
    _check_tensors(stored, card.backbone, f"the {card.kind}")
    weights = to_safetensors(stored)
    card, content = stamped(card, weights)
    with output_folder(folder, card.kind, overwrite=overwrite):
        # The card goes last: until it is there, a reader finds no artifact or one whose hash does not fit.
        write_files_atomically(Path(folder), {f"{card.kind}.safetensors": weights, CARD: content})
    return card


def _stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}


def _check_tensors(tensors: dict[str, Tensor], backbone: BackboneCard, what: str) -> None:
    for name, tensor in tensors.items():
        wrong = tensor.ndim != 3 or 0 in tensor.shape or tensor.shape[2] != backbone.d_model
        if name in _PROMPTS and wrong:
            raise ArtifactError(
                f"{what} has shape {list(tensor.shape)} where [M, P, {backbone.d_model}] is right for backbone "
                f"'{backbone.name}'"
            )
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"{what} holds numbers that are not finite; train with a lower learning rate")


def _read(folder: Path, model: type[AnyCard]) -> tuple[dict[str, Tensor], AnyCard]:
    """Read a card and its tensors, and check all that a wrong, damaged or edited folder could break."""
    card = read_card(folder, model)
    content = read_weights(folder, card.kind, card.weights_sha256)
    return _parsed(content, card, str(folder / f"{card.kind}.safetensors")), card


def _parsed(content: bytes, card: Card, path: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    What a hash cannot tell is checked: a card and a file that fit each other can still both be wrong.
    """
    try:
        tensors = parse_safetensors(content)
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(f"{path} is not a safetensors file: {error}") from error
    if set(tensors) - _OPTIONAL.get(card.kind, frozenset()) != _TENSORS[card.kind]:
        wanted = ", ".join(f"'{name}'" for name in sorted(_TENSORS[card.kind]))
        raise ArtifactError(f"{path} holds {sorted(tensors)} where only {wanted} belongs")
    for tensor in tensors.values():
        if tensor.dtype != torch.float32:
            raise ArtifactError(f"{path} holds {tensor.dtype} where torch.float32 belongs")
    _check_tensors(tensors, card.backbone, path)
    return tensors
