"""The registry of compared methods: one frozen record per method, declared in the method's own file.

Studies, reports, the command line and the pre-flight checks read what they need to know of a method here. A method of
your own is one call of `register` (examples/new_method.py); a file in this package that calls it is found by itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from bmtpt.artifacts.saved import Posterior
from bmtpt.backbone import Backbone
from bmtpt.backbone.engine import Engine
from bmtpt.errors import BackboneError, SettingsError, nearest
from bmtpt.methods.classifier import Fitted
from bmtpt.methods.target import Candidate, TargetPrompts, TargetRows, TargetStage
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.tasks.tokens import Tokenised, TrainingRows, tokenise_text
from bmtpt.train.loop import Method as LoopMethod
from bmtpt.types import Example

Need = Literal["nothing", "source prompts", "multi-task prompt", "posterior"]
"""Which source stage a method starts from: none, a prompt per source, one prompt for all sources, or M particles."""


class Options(BaseModel):
    """Settings that only one method has; a method without any has this class itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Learned:
    """What the source stages that a method needs have learned, on the backbone's device.

    Attributes:
        sources: Names of the source tasks.
        posterior: M particles, or one for a method that needs the multi-task prompt.
        prompts: The prompt tuned on each source alone.
        own: Tensors of the method's own source stage.
    """

    sources: tuple[str, ...] = ()
    posterior: Posterior | None = None
    prompts: Mapping[str, Float[Tensor, "P D"]] = field(default_factory=dict)
    own: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """All that a method may look at when it builds what is trained on a target.

    Attributes:
        backbone: The frozen model.
        rows: Training and validation rows by target.
        settings: Of the target stage, as `Method.adjusted` returned them.
        options: An instance of the method's own `options` class.
        budget: Starts or priors that the method may try, so that compared methods try equally many.
        prompt_length: P of prompts that start without a source.
        learned: What its source stages found.
    """

    backbone: Backbone
    rows: Mapping[str, TargetRows]
    settings: AdaptSettings
    options: Any
    budget: int
    prompt_length: int
    learned: Learned

    @property
    def engine(self) -> Engine:
        """The frozen model's losses and gradients."""
        return self.backbone.engine

    @property
    def particles(self) -> Float[Tensor, "M P D"] | None:
        """The posterior's particles on the backbone's device, or None without a posterior."""
        posterior = self.learned.posterior
        return None if posterior is None else posterior.particles.to(self.backbone.device)

    def token_ids(self, examples: Sequence[Example]) -> list[Int[Tensor, " L"]]:
        """Return the texts of the one target's rows as the backbone reads them, cut as its prompts' texts are."""
        ((_, rows),) = self.rows.items()
        length = self.settings.max_length or rows.scorer.task.max_length
        return [tokenise_text(self.backbone, example, length)[0] for example in examples]


@dataclass(frozen=True)
class SourceSetup:
    """All that a method's own source stage may look at; rows are by source task, ``start`` is a vocabulary draw."""

    backbone: Backbone
    train: Mapping[str, TrainingRows]
    held_back: Mapping[str, Tokenised]
    settings: LearnSettings
    options: Any
    prompts: Mapping[str, Float[Tensor, "P D"]]
    start: Float[Tensor, "P D"]


@dataclass(frozen=True)
class OwnSource:
    """A source stage that only one method has.

    Attributes:
        stage: Builds what the training loop trains.
        result: Names the tensors to keep, given the trained ones in the order of the stage's groups.
        trained_parameters: How many numbers were trained, given the kept tensors and the number of source tasks.
    """

    stage: Callable[[SourceSetup], LoopMethod]
    result: Callable[[Sequence[Tensor]], dict[str, Tensor]]
    trained_parameters: Callable[[Mapping[str, Tensor], int], int]


@dataclass(frozen=True)
class Method:
    """What is known of a method before it runs.

    Attributes:
        name: In studies and result lines.
        display_name: In tables and reports.
        paper: Where it was published.
        candidates: Builds the starts and priors that compete, for a method that is a list of candidates.
        stage: Builds what is trained, for every other method that trains in steps.
        classifier: Fits what answers without training steps. It uses all labels that it is given, without selection,
            and ignores `steps`, `selection`, `likelihood`, `readout` and `calibrate` with their settings.
        needs: The source stage that it starts from.
        own_source: A source stage of its own, after the one that it needs.
        options: The class of its own settings.
        adjusted: Returns the target stage's settings as this method uses them.
        together: Whether it can train several targets in one run.
        tunes_weights: Whether it changes the model instead of training a prompt.
        label_words_only: Whether it cannot answer tasks with free answers.
        backbones: Which models it runs on.
        package: An optional package that it needs.
        extra: The extra of bmtpt that installs it; None if it is named like the package.
        column: Its place among the columns of a table, ascending.
    """

    name: str
    display_name: str
    paper: str
    candidates: Callable[[Setup], list[Candidate]] | None = None
    stage: Callable[[Setup], TargetStage] | None = None
    classifier: Callable[[Setup], Fitted] | None = None
    needs: Need = "nothing"
    own_source: OwnSource | None = None
    options: type[Options] = Options
    adjusted: Callable[[AdaptSettings, Any], AdaptSettings] = lambda settings, options: settings
    together: bool = False
    tunes_weights: bool = False
    label_words_only: bool = False
    backbones: Literal["any", "encoder-decoder", "t5"] = "any"
    package: str | None = None
    extra: str | None = None
    column: int = 100

    def require_runs_on(self, backbone: str, config: Any) -> None:
        """Raise `BackboneError` for a model, given its name and its Hugging Face configuration, that cannot be used."""
        fits = {"any": True, "t5": config.model_type == "t5"}
        if not fits.get(self.backbones, getattr(config, "is_encoder_decoder", False)):
            kinds = {"t5": "T5 models", "encoder-decoder": "encoder-decoder models"}[self.backbones]
            raise BackboneError(
                f"method '{self.name}' runs on {kinds}, and '{backbone}' is a {config.model_type} model; "
                f"leave {self.name} out"
            )

    def build(self, setup: Setup) -> TargetStage:
        """Return what the training loop trains."""
        if self.stage is not None:
            return self.stage(setup)
        assert self.candidates is not None  # a classifier is not built, and `register` refuses what is neither
        return TargetPrompts(setup.engine, setup.rows, self.candidates(setup), setup.particles, setup.settings)


_registered: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a method to the registry; return it.

    Raises:
        SettingsError: Another method has this name, or the record does not say what is trained.
    """
    if method.name in _registered and _registered[method.name] != method:
        raise SettingsError(f"a method named '{method.name}' is registered already; choose another name")
    if sum(each is not None for each in (method.candidates, method.stage, method.classifier)) != 1:
        raise SettingsError(f"method '{method.name}' must give one of 'candidates', 'stage' and 'classifier'")
    _registered[method.name] = method
    return method


def all_methods() -> dict[str, Method]:
    """Return every registered method by name, in the order of the columns of a table."""
    for module in pkgutil.iter_modules(importlib.import_module(__package__).__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    return {each.name: each for each in sorted(_registered.values(), key=lambda each: each.column)}


def get_method(name: str) -> Method:
    """Return one method. Raises `SettingsError` if there is none of that name."""
    known = all_methods()
    if name not in known:
        raise SettingsError(f"there is no method '{name}'; {nearest(name, known)}")
    return known[name]
