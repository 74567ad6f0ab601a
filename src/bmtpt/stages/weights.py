"""Full fine-tuning, BitFit, LoRA and adapters on a target, in the loop and on the rows of the prompt methods."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from bmtpt.artifacts.card import WeightsCard
from bmtpt.artifacts.files import write_files_atomically
from bmtpt.artifacts.folder import CARD, require_free
from bmtpt.backbone.encoder_decoder.tuned import TunedEngine
from bmtpt.backbone.model.frozen import Backbone
from bmtpt.errors import ArtifactError, BackboneError
from bmtpt.methods.weights import TargetWeights, trainable_copy
from bmtpt.settings import AdaptSettings, WeightMethod, WeightSettings
from bmtpt.stages.target import all_target_rows, train_targets
from bmtpt.tasks import TaskData
from bmtpt.train.events import Listener
from bmtpt.train.run import Run

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class TunedModel:
    """A model tuned for one task.

    Attributes:
        engine: Over the tuned copy.
        card: Where it comes from and the task it is for.
    """

    engine: TunedEngine
    card: WeightsCard

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The trained weights by their names in the model."""
        named = self.engine.backbone.model.named_parameters()
        return {name: weight.detach() for name, weight in named if weight.requires_grad}

    def save(self, folder: Path, *, overwrite: bool = False) -> Self:
        """Write ``card.json`` and what was trained: LoRA as peft's own folder, else ``weights.safetensors``.

        `peft.PeftModel.from_pretrained` loads the first; the names in the second are those of the model's state.

        Raises:
            ArtifactError: The folder holds a run already, or cannot be written.
        """
        require_free(folder, "weights", overwrite=overwrite)
        files = {CARD: (self.card.model_dump_json(indent=2) + "\n").encode()}
        if self.card.method == "lora":
            _save_by_peft(self.engine.backbone.model, folder)
        else:
            stored = {name: tensor.to("cpu", torch.float32).contiguous() for name, tensor in self.tensors.items()}
            files = {WEIGHTS: to_safetensors(stored), **files}
        write_files_atomically(folder, files)
        return self


def fit_weights(
    backbone: Backbone,
    target: TaskData,
    settings: AdaptSettings | None = None,
    weights: WeightSettings | None = None,
    *,
    method: WeightMethod,
    listener: Listener | None = None,
) -> TunedModel:
    """Tune a copy of the model's weights on one target; the backbone is left as it is.

    Args:
        settings: Of the target stage; its priors, prompts and learning rates are not used.
        weights: Learning rate and sizes of each method.
        method: Which weights.
        listener: Hears every event.

    Raises:
        BackboneError: The model is not a T5.
        DataError, TrainingError: As `fit_targets`.
        SettingsError: As `trainable_copy`.
    """
    if (kind := backbone.model.config.model_type) != "t5":
        raise BackboneError(
            f"method '{method}' tunes the weights of T5 models, and '{backbone.name}' is a {kind} model"
        )
    settings, weights = settings or AdaptSettings(), weights or WeightSettings()
    own = getattr(weights, method)
    used = {"learning_rate": own.learning_rate, "prior": "none", "ensemble": False, "decompose": False}
    settings = settings.model_copy(update={**used, "engine": "generic"})
    rows = all_target_rows(backbone, [target], settings)
    model = trainable_copy(backbone.model, method, weights, settings.seed)
    engine = TunedEngine(replace(backbone, model=model), backbone.dtype, cpu_tuning=settings.cpu_tuning)
    stage = TargetWeights(engine, rows, settings)
    trained = train_targets(backbone, [target], stage, Run(backbone.fingerprint, None, False, listener), method=method)
    stage.keep(trained.tensors)
    (card,) = trained.cards.values()
    noted = {**card.settings, "weights": own.model_dump(mode="json")}
    return TunedModel(engine, WeightsCard(**{**card.model_dump(exclude={"kind"}), "settings": noted}))


def _save_by_peft(model: Any, folder: Path) -> None:
    try:
        # Without the flag, peft asks the hub whether the vocabulary was changed.
        model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    except OSError as error:
        raise ArtifactError(f"cannot write {folder}: {error.strerror}; choose another folder") from error
