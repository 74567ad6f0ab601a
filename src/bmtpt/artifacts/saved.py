"""Artifacts on disk (posteriors, prompts, mixtures, tuned weights): a folder with `card.json` and safetensors.

The card is JSON and the numbers are safetensors, so loading runs no code. The card notes the SHA-256 of the weights:
an edited, truncated or half-replaced pair is noticed before it predicts anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from bmtpt.artifacts.files import write_files_atomically
from bmtpt.backbone.model.frozen import Backbone
from bmtpt.errors import ArtifactError, BackboneError

FORMAT_VERSION: Final = 1
CARD = "card.json"


class BackboneCard(BaseModel):
    """Which frozen language model an artifact belongs to.

    Attributes:
        name: Hub id, folder, or "offline".
        fingerprint: SHA-256 in hexadecimal over architecture and fp32 weights.
        parameters: Distinct parameters (tied weights count once).
        decoder_only: Whether the prompt stands in front of text and answer in one sequence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    fingerprint: str
    parameters: int
    d_model: int
    vocab_size: int
    decoder_only: bool = False


class _Card(BaseModel):
    """What every kind of artifact notes.

    Attributes:
        settings: The resolved settings of the run.
        steps: Optimiser steps.
        seconds: Wall time.
        created: ISO 8601 time, given by the caller.
        weights_sha256: SHA-256 of the safetensors file; `save` fills it in.
    """

    # ser_json_inf_nan is pydantic's default, stated: a diagnostic that is NaN becomes null, not broken JSON.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    format_version: Literal[1] = FORMAT_VERSION
    backbone: BackboneCard
    sources: tuple[str, ...]
    settings: dict[str, Any]
    steps: int
    seconds: float
    versions: dict[str, str]
    created: str
    weights_sha256: str = ""


class PosteriorCard(_Card):
    """Where a posterior comes from.

    Attributes:
        diagnostics: Held-back losses of θ̄ and of the particles, how many texts were cut, and under `svgd` where the
            particles ended (`posterior.diagnostics.Diagnostics`).
    """

    kind: Literal["posterior"] = "posterior"
    diagnostics: dict[str, Any]


class _TargetCard(_Card):
    """What the artifacts of a target note: enough of its task to predict from the folder alone.

    Attributes:
        task_definition: Dump of the resolved task.
        posterior: ``weights_sha256`` of the posterior that was its prior, or None.
        selection: How the model was chosen (validation curve, prior_std curve, ...).
        trained_parameters: Numbers trained for this task.
    """

    task: str
    task_definition: dict[str, Any]
    method: str
    posterior: str | None
    selection: dict[str, Any]
    trained_parameters: int


class PromptCard(_TargetCard):
    """Where a prompt comes from."""

    kind: Literal["prompt"] = "prompt"


class MixtureCard(_TargetCard):
    """Where a mixture of prompts comes from."""

    kind: Literal["mixture"] = "mixture"


class WeightsCard(_TargetCard):
    """Where tuned weights come from (`stages/weights.py`)."""

    kind: Literal["weights"] = "weights"


_AnyCard = TypeVar("_AnyCard", PosteriorCard, PromptCard, MixtureCard)


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

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the file that `save` writes: the posterior's name in the cards of prompts made from it."""
        return _sha256(_to_bytes({"particles": self.particles}))

    def save(self, folder: Path, *, overwrite: bool = False) -> Self:
        """Write ``posterior.safetensors`` and ``card.json`` into a folder and keep its other files.

        Returns:
            The posterior with the card as written.

        Raises:
            ArtifactError: The folder cannot be written, holds an artifact already (unless ``overwrite`` and a
                posterior), or the particles are not finite or do not fit the backbone. Nothing is changed then.
        """
        return replace(self, card=_save(folder, self.card, {"particles": self.particles}, overwrite))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a posterior and check it against its card.

        Raises:
            ArtifactError: The folder holds no posterior, or one that is damaged or from another format version.
        """
        tensors, card = _load(folder, PosteriorCard)
        return cls(tensors["particles"], card)


@dataclass(frozen=True)
class Prompt:
    """What predicts a task: one MAP prompt (M = 1) or an ensemble whose probabilities are averaged (M > 1).

    Attributes:
        prompts: Soft prompts, stored as fp32.
        card: Where they come from and the task they are for.
    """

    prompts: Float[Tensor, "M P D"]
    card: PromptCard

    def save(self, folder: Path, *, overwrite: bool = False) -> Self:
        """Write ``prompt.safetensors`` and ``card.json`` into a folder and keep its other files.

        Returns:
            The prompt with the card as written.

        Raises:
            ArtifactError: As `Posterior.save`.
        """
        return replace(self, card=_save(folder, self.card, {"prompts": self.prompts}, overwrite))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a prompt and check it against its card.

        Raises:
            ArtifactError: The folder holds no prompt, or one that is damaged or from another format version.
        """
        tensors, card = _load(folder, PromptCard)
        return cls(tensors["prompts"], card)


@dataclass(frozen=True)
class PromptMixture:
    """What predicts a task with another prompt for every text: ATTEMPT (`methods/attempt.py`).

    Attributes:
        tensors: Target prompt ``target`` [1, P, D], frozen source prompts ``sources`` [K, P, D], and the attention that
            mixes them: ``down`` [1, D, r], ``up`` [1, r, D], ``gain`` [1, D], ``bias`` [1, D].
        card: Where they come from and the task they are for.
    """

    tensors: dict[str, Tensor]
    card: MixtureCard

    def save(self, folder: Path, *, overwrite: bool = False) -> Self:
        """Write ``mixture.safetensors`` and ``card.json``. Returns and raises as `Posterior.save`."""
        return replace(self, card=_save(folder, self.card, self.tensors, overwrite))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a mixture and check it against its card. Raises as `Posterior.load`."""
        return cls(*_load(folder, MixtureCard))


# The tensors in each kind's safetensors file.
_TENSORS = {
    "posterior": {"particles"},
    "prompt": {"prompts"},
    "mixture": {"target", "sources", "down", "up", "gain", "bias"},
}
_PROMPTS = {"particles", "prompts", "target", "sources"}


def load_artifact(folder: Path) -> Posterior | Prompt:
    """Read whichever artifact a folder holds.

    Raises:
        ArtifactError: The folder holds none, or a damaged one.
    """
    kind = _read_card(folder)["kind"]
    return Posterior.load(folder) if kind == "posterior" else Prompt.load(folder)


def require_backbone(card: BackboneCard, fingerprint: str, name: str) -> None:
    """Refuse to use an artifact with another backbone than the one it was trained on.

    Args:
        card: The artifact's backbone.
        fingerprint: Fingerprint of the loaded backbone.
        name: What the user called the loaded backbone.

    Raises:
        BackboneError: The fingerprints differ; the sentence names both backbones.
    """
    if card.fingerprint != fingerprint:
        raise BackboneError(
            f"this artifact was trained with backbone '{card.name}' (fingerprint {card.fingerprint[:12]}) and "
            f"cannot be used with '{name}' (fingerprint {fingerprint[:12]}): load the backbone it was trained with"
        )


def backbone_card(backbone: Backbone) -> BackboneCard:
    """Return what an artifact notes about the model it belongs to."""
    return BackboneCard(
        name=backbone.name,
        fingerprint=backbone.fingerprint,
        parameters=backbone.parameters,
        d_model=backbone.d_model,
        vocab_size=backbone.embeddings.shape[0],
        decoder_only=backbone.decoder_only,
    )


def now() -> str:
    """Return the time for a card, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions that decide a run's numbers: bmtpt, python, torch, transformers."""
    found = {name: _version(name) for name in ("bmtpt", "torch", "transformers")}
    return {**found, "python": platform.python_version()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a source tree on PYTHONPATH
        return "not installed"


def _save(folder: Path, card: _AnyCard, tensors: dict[str, Tensor], overwrite: bool) -> _AnyCard:
    _check_place(folder, card.kind, overwrite)
    stored = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in tensors.items()}
    _check_tensors(stored, card.backbone, f"the {card.kind}")
    weights = _to_bytes(stored)
    stamped = card.model_copy(update={"weights_sha256": _sha256(weights)})
    text = stamped.model_dump_json(indent=2) + "\n"
    # The card goes last: until it is there, a reader finds no artifact or one whose hash does not fit.
    write_files_atomically(folder, {f"{card.kind}.safetensors": weights, CARD: text.encode()})
    return stamped


def _check_place(folder: Path, kind: str, overwrite: bool) -> None:
    if not os.path.exists(folder / CARD):  # unlike Path.exists, never raises
        return
    if not overwrite:
        raise ArtifactError(f"{folder} holds an artifact already; choose another folder or allow overwriting")
    for other in set(_TENSORS) - {kind}:
        if os.path.exists(folder / f"{other}.safetensors"):
            raise ArtifactError(f"{folder} holds a {other} and not a {kind}; choose another folder")


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


def _to_bytes(tensors: dict[str, Tensor]) -> bytes:
    return to_safetensors(
        {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _load(folder: Path, model: type[_AnyCard]) -> tuple[dict[str, Tensor], _AnyCard]:
    raw = _read_card(folder)
    kind = model.model_fields["kind"].default
    if raw["kind"] != kind:
        raise ArtifactError(f"{folder} holds a {raw['kind']} where a {kind} is needed")
    try:
        card = model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{folder / CARD} is not a valid card: {field}: {first['msg'].lower()}") from error
    return _read_weights(folder / f"{kind}.safetensors", card, _TENSORS[kind]), card


def _read_card(folder: Path) -> dict[str, Any]:
    """Return the card as a dictionary whose kind is known and whose format version is ours."""
    path = folder / CARD
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} holds no posterior or prompt: there is no {CARD}") from error
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise ArtifactError(f"{path} is not JSON: it was cut off or edited; copy the folder again") from error
    if not isinstance(raw, dict) or raw.get("kind") not in list(_TENSORS):
        raise ArtifactError(f"{path} is not the card of a posterior or a prompt")
    if raw.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {raw.get('format_version')!r} and this bmtpt reads {FORMAT_VERSION}; use the "
            f"bmtpt that wrote it ({_writer(raw)}) or train again"
        )
    return raw


def _writer(raw: dict[str, Any]) -> str:
    noted = raw.get("versions")
    return str(noted.get("bmtpt", "unknown version")) if isinstance(noted, dict) else "unknown version"


def _read_weights(path: Path, card: PosteriorCard | _TargetCard, names: set[str]) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    if _sha256(content) != card.weights_sha256:
        raise ArtifactError(
            f"{path} is not the file that {CARD} describes (its SHA-256 differs): it was cut off, edited or replaced; "
            "copy the folder again or train again"
        )
    return _parse(path, content, card, names)


def _parse(path: Path, content: bytes, card: PosteriorCard | _TargetCard, names: set[str]) -> dict[str, Tensor]:
    """Check what a hash cannot: a card and a file that fit each other can still both be wrong."""
    try:
        tensors = parse_safetensors(content)
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(f"{path} is not a safetensors file: {error}") from error
    if set(tensors) != names:
        wanted = ", ".join(f"'{name}'" for name in sorted(names))
        raise ArtifactError(f"{path} holds {sorted(tensors)} where only {wanted} belongs")
    for tensor in tensors.values():
        if tensor.dtype != torch.float32:
            raise ArtifactError(f"{path} holds {tensor.dtype} where torch.float32 belongs")
    _check_tensors(tensors, card.backbone, str(path))
    return tensors
