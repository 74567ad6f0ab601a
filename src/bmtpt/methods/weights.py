"""Weight tuning: baselines that change the model and use no prompt.

    w* = argmin_w (1/N) Σ_n −log p_w(y_n | x_n)          the target loss of the prompt methods; dropout is off as there

    full      w: every weight of the model
    bitfit    w: biases (Ben Zaken et al. 2022)           stock T5 has none: like the literature (Karimi Mahabadi et al.
              2021, github.com/rabeehk/compacter) we add one, from zero, to every linear map and norm: 282,496 on
              T5-base, the head's too, which compacter's own setting freezes; the published 280K fit only with it
    lora      W + (α/r)·B A, w: A and B (Hu et al. 2022)  through peft; B from zero
    adapter   y + U gelu(V y + b) + c after the self-attention and the feed-forward of every block, w: V, U, b, c and
              the gains of all norms (Houlsby et al. 2019; placed as in compacter: 1,855,104 on T5-base with a width of
              D/32); U, b and c from zero

At step 0 each equals the frozen model. The adapters are our own code: `adapters` 1.3 needs transformers 4.57, and peft
0.21 does not have bottleneck adapters.

Trained weights are fp32 from the frozen model's (rounded where that is bfloat16); weights that stay frozen keep its
dtype, and bfloat16 matmuls run under autocast.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from pydantic import Field
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from bmtpt.artifacts.card import PromptCard, WeightsCard, stamped
from bmtpt.artifacts.files import write_files_atomically
from bmtpt.artifacts.folder import CARD, output_folder
from bmtpt.artifacts.peft import WEIGHTS as PEFT_WEIGHTS
from bmtpt.backbone.encoder_decoder.tuned import TunedEngine
from bmtpt.errors import ArtifactError, SettingsError, cannot_write
from bmtpt.methods.registry import Method, Options, Setup, register
from bmtpt.methods.target import Candidate, TargetRows, TargetStage
from bmtpt.settings import AdaptSettings, Count, Positive
from bmtpt.train.optimisers import ParameterGroup
from bmtpt.types import TokenBatch

WEIGHTS = "weights.safetensors"


class FullOptions(Options):
    """Full fine-tuning: its learning rate [family: 3e-4]."""

    learning_rate: Positive = 3e-4


class BitFitOptions(Options):
    """BitFit: its learning rate (the family's 3e-4 is for thousands of steps)."""

    learning_rate: Positive = 3e-3


class LoraOptions(Options):
    """LoRA.

    Attributes:
        learning_rate: The family's 3e-4 is for thousands of steps.
        rank: r.
        alpha: α; what is added is scaled by α/r.
        modules: Names of the linear maps that get it [LoRA paper: queries and values].
    """

    learning_rate: Positive = 3e-3
    rank: Count = 8
    alpha: Positive = 16
    modules: tuple[str, ...] = Field(default=("q", "v"), min_length=1)


class AdapterOptions(Options):
    """Bottleneck adapters.

    Attributes:
        learning_rate: The family's 3e-4 is for thousands of steps.
        reduction: The bottleneck is D/reduction wide [family: 32].
    """

    learning_rate: Positive = 1e-3
    reduction: Count = 32


def trainable_copy(model: Any, method: str, options: Any, seed: int) -> Any:
    """Return a copy of a frozen model in which only a method's weights require a gradient, all of them fp32.

    Args:
        model: Hugging Face's T5; it is left as it is.
        method: Which weights: `full`, `bitfit`, `lora` or `adapter`.
        options: Sizes of what is added.
        seed: Of what starts at random.

    Raises:
        SettingsError: LoRA is asked for without peft, or for modules that the model does not have.
    """
    frozen = copy.deepcopy(model).requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # torch's global generator is the only one that peft uses
        torch.default_generator.manual_seed(seed)
        return _VARIANTS[method](frozen, options).eval()


def _with_biases(model: Any, options: BitFitOptions) -> Any:
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            module.bias = _zeros(module.weight, module.out_features)
    for norm in _norms(model):
        norm.bias = _zeros(norm.weight, len(norm.weight))
        norm.register_forward_hook(lambda norm, _, output: output + norm.bias)
    return model


def _with_lora(model: Any, options: LoraOptions) -> Any:
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise SettingsError("LoRA needs the peft package; run: pip install 'bmtpt[peft]'") from error
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=list(options.modules),
        lora_dropout=0.0,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise SettingsError(f"LoRA cannot be put on the modules {', '.join(options.modules)}: {error}") from error


def _with_adapters(model: Any, options: AdapterOptions) -> Any:
    for norm in _norms(model):
        norm.weight = nn.Parameter(norm.weight.to(_wide(norm.weight.dtype)))
    for block in (*model.encoder.block, *model.decoder.block):
        # The last linear map of a sublayer: what it returns is the sublayer's output, before the residual sum.
        for last in (block.layer[0].SelfAttention.o, block.layer[-1].DenseReluDense.wo):
            last.adapter = Adapter(last.out_features, options.reduction).to(
                last.weight.device, _wide(last.weight.dtype)
            )
            last.register_forward_hook(lambda last, _, output: last.adapter(output))
    return model


_VARIANTS: dict[str, Callable[[Any, Any], Any]] = {
    "full": lambda model, _: model.to(_wide(model.dtype)).requires_grad_(True),
    "bitfit": _with_biases,
    "lora": _with_lora,
    "adapter": _with_adapters,
}


class Adapter(nn.Module):
    """A bottleneck of width D/reduction (at least 1) with a residual connection, the identity at its start."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, max(1, width // reduction))
        self.up = nn.Linear(self.down.out_features, width)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, y: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Return y + U gelu(V y + b) + c."""
        added: Tensor = self.up(nn.functional.gelu(self.down(y)))
        return y + added


def _norms(model: Any) -> list[Any]:
    from transformers.models.t5.modeling_t5 import T5LayerNorm

    return [module for module in model.modules() if isinstance(module, T5LayerNorm)]


def _zeros(weight: Tensor, length: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(length, device=weight.device, dtype=_wide(weight.dtype)))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class TargetWeights(TargetStage):
    """Trains the weights of a `trainable_copy` that require a gradient: one candidate, which starts at the model."""

    engine: TunedEngine

    def __init__(self, engine: TunedEngine, targets: Mapping[str, TargetRows], settings: AdaptSettings) -> None:
        self.no_prompt = engine.no_prompt
        super().__init__(engine, targets, [Candidate(self.no_prompt[0], "the model")], settings)
        self.weights = [weight for weight in engine.backbone.model.parameters() if weight.requires_grad]
        # The same storage with a first axis of one candidate, which is what the loop selects by.
        self.tensors = [weight.detach()[None].requires_grad_(True) for weight in self.weights]

    def groups(self) -> list[ParameterGroup]:
        """All trained weights at one learning rate."""
        return [ParameterGroup("weights", self.tensors, self.settings.learning_rate)]

    def prompts(self, target: int) -> Float[Tensor, "1 0 D"]:
        """Return a prompt without rows."""
        return self.no_prompt

    def backward(self, batches: Mapping[str, TokenBatch], step: int) -> dict[str, list[float]]:
        """Leave the gradient of the mean NLL in every trained weight; return the mean NLL by target."""
        for weight in self.weights:
            weight.grad = None
        drawn = sum(len(batch) for batch in batches.values())
        found = {}
        for name, batch in batches.items():
            share = self.no_prompt.new_full((len(batch),), 1 / drawn)
            losses, _ = self.engine.gradients(self.no_prompt, batch, share, self.choice(name))
            found[name] = losses.mean(dim=1).tolist()
        for weight, tensor in zip(self.weights, self.tensors, strict=True):
            tensor.grad = weight.grad[None]
        return found

    def result(self, trained: Sequence[Tensor], target: int, winners: Sequence[int], card: PromptCard) -> TunedModel:
        """Return the tuned model, with the selected tensors in it."""
        self.keep(trained)
        return TunedModel(self.engine, WeightsCard(**card.model_dump(exclude={"kind"})))

    def keep(self, best: Sequence[Tensor]) -> None:
        """Put the selected tensors into the model, and free the gradients."""
        with torch.no_grad():
            for weight, tensor, chosen in zip(self.weights, self.tensors, best, strict=True):
                tensor.copy_(chosen)
                weight.grad = tensor.grad = None

    def trained_parameters(self) -> int:
        """Numbers trained; the targets share them all."""
        total: int = sum(weight.numel() for weight in self.weights)
        return -(-total // len(self.targets))


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
        with output_folder(folder, "weights", overwrite=overwrite):
            if self.card.method == "lora":
                try:
                    # Without the flag, peft asks the hub whether the vocabulary was changed.
                    model = self.engine.backbone.model
                    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
                    name, weights = PEFT_WEIGHTS, (folder / PEFT_WEIGHTS).read_bytes()
                except OSError as error:
                    raise ArtifactError(cannot_write(folder, error)) from error
            else:
                stored = {name: tensor.to("cpu", torch.float32).contiguous() for name, tensor in self.tensors.items()}
                name, weights = WEIGHTS, to_safetensors(stored)
            card, content = stamped(self.card, weights)
            write_files_atomically(folder, {name: weights, CARD: content})
            return replace(self, card=card)


def weights_stage(method: str, setup: Setup) -> TargetWeights:
    """Return the training of a copy's weights; the backbone is left as it is. Raises as `trainable_copy`."""
    backbone = setup.backbone
    model = trainable_copy(backbone.model, method, setup.options, setup.settings.seed)
    engine = TunedEngine(replace(backbone, model=model), backbone.dtype)
    return TargetWeights(engine, setup.rows, setup.settings)


def _adjusted(settings: AdaptSettings, options: Any) -> AdaptSettings:
    """Turn off what only prompts have (prior, decomposition, ensemble), and set the method's own learning rate."""
    used = {"learning_rate": options.learning_rate, "prior": "none", "ensemble": False, "decompose": False}
    return settings.model_copy(update=used)


def _facts(name: str, options: type[Options]) -> dict[str, Any]:
    """Return what the records of all weight-tuning methods have in common."""
    stage = partial(weights_stage, name)
    return {"stage": stage, "options": options, "adjusted": _adjusted, "tunes_weights": True, "backbones": "t5"}


FULL = register(Method("full", "full fine-tuning", "-", column=40, **_facts("full", FullOptions)))
BITFIT = register(Method("bitfit", "BitFit", "Ben Zaken et al. 2022", column=41, **_facts("bitfit", BitFitOptions)))
LORA = register(
    Method("lora", "LoRA", "Hu et al. 2022", package="peft", column=42, **_facts("lora", LoraOptions)),
)
ADAPTER = register(
    Method("adapter", "bottleneck adapters", "Houlsby et al. 2019", column=43, **_facts("adapter", AdapterOptions)),
)
