"""The settings of each stage: the same names in YAML, on the command line and in Python.

Validated once at the edge, immutable inside. Defaults marked [paper] are those of arXiv 2402.08594 or of its family
(docs/method.md); the others are ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from bmtpt.errors import SettingsError, nearest
from bmtpt.refusals import in_one_sentence
from bmtpt.types import Annealing, Draw, KernelName, KernelScope, Normalise, PresetName

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

Optimiser = Literal["adamw", "adafactor", "sgd"]
Schedule = Literal["linear", "constant"]
LikelihoodUnit = Literal["example", "token"]
Likelihood = Literal["tokens", "labels"]
TargetLikelihood = Literal["auto", "tokens", "labels"]
SourceObjective = Literal["words", "readout"]
Calibrate = Literal["none", "temperature"]
Predictive = Literal["map", "laplace"]
ReadoutKind = Literal["auto", "none", "offset", "linear"]
Average = Literal["auto", "none", "start", "starts"]
ParticleInit = Literal["independent", "shared", "prompt"]
Prior = Literal["mean", "mixture", "none"]
Start = Literal["mean", "best", "particles", "auto"]
Selection = Literal["score", "loss", "none"]


def _between(low: float, high: float, why: str = "prompts are trained in float32") -> AfterValidator:
    def checked(value: float) -> float:
        if value and not low <= value <= high:
            raise ValueError(f"it must be between {low:g} and {high:g}, because {why}")
        return value

    return AfterValidator(checked)


Positive = Annotated[float, Field(gt=0), _between(1e-30, 1e30)]
NotNegative = Annotated[float, Field(ge=0), _between(1e-30, 1e30)]
Std = Annotated[float, Field(gt=0), _between(1e-15, 1e15)]
"""A standard deviation in embedding units: its square fits into float32, too."""
Width = Annotated[float, Field(ge=0), _between(1e-6, 1e6, "the fit is not exact beyond")]
"""A width of a readout's prior, in nats; 0 leaves its part out."""
Count = Annotated[int, Field(gt=0, lt=2**31)]


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ValueError("a name begins with a letter or digit, and letters, digits, '.', '_' and '-' follow")
    return name


FileName = Annotated[str, AfterValidator(_file_name)]
"""A name that files and folders may be called by: it leads to no other folder."""


class _OneSentence(ModelMetaclass):
    """Turns pydantic's report into a `SettingsError` where a settings class is called: `LearnSettings(stepps=3)`."""

    def __call__(cls, *values: Any, **options: Any) -> Any:  # noqa: N805 (a metaclass)
        try:
            return super().__call__(*values, **options)
        except ValidationError as error:
            raise SettingsError(in_one_sentence(error, cls, None)) from error  # type: ignore[arg-type]


class LoopSettings(BaseModel, metaclass=_OneSentence):
    """Settings that the training loop needs, whichever method runs in it.

    Attributes:
        steps: Most optimiser steps.
        batch_size: Examples drawn per task and step.
        optimiser: `adamw`, `adafactor` (scale_parameter and relative_step off), or `sgd`.
        learning_rate: Its highest value, after the warm-up.
        weight_decay: Explicit, because torch's AdamW defaults to 0.01 [family: 1e-5].
        warmup_steps: Steps over which the learning rate rises from zero.
        schedule: `linear` decay to zero after the warm-up, or `constant`.
        seed: Seed of initial prompts and of every draw of examples.
        evaluate_every: Steps between validations, which are also the checkpoints.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: Count = 300
    batch_size: Count = 8
    optimiser: Optimiser = "adamw"
    learning_rate: Positive = 0.3
    weight_decay: NotNegative = 1e-5
    warmup_steps: int = Field(default=0, ge=0, lt=2**31)
    schedule: Schedule = "linear"
    seed: int = Field(default=0, ge=0, lt=2**63)
    evaluate_every: Count = 50

    PAPER: ClassVar[Mapping[str, Any]] = {}
    """What `preset` "paper" sets; whatever is given next to it wins."""

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        """Put the values of a preset under those that are given."""
        if not isinstance(values, Mapping) or "preset" not in values:
            return values
        own = dict(values)
        if (preset := own.pop("preset")) not in get_args(PresetName):
            raise ValueError(f"preset cannot be {preset!r}; {nearest(str(preset), get_args(PresetName))}")
        return {**cls.PAPER, **own} if preset == "paper" else own

    @model_validator(mode="before")
    @classmethod
    def _none_is_null(cls, values: Any) -> Any:
        """Read the text `none` as None wherever None is allowed: a command line has no null."""
        if not isinstance(values, dict):
            return values
        optional = {name for name, field in cls.model_fields.items() if type(None) in get_args(field.annotation)}
        return {key: None if key in optional and value == "none" else value for key, value in values.items()}

    @model_validator(mode="after")
    def _the_warm_up_ends(self) -> Self:
        if self.warmup_steps and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}: give less than steps ({self.steps})")
        return self


class LearnSettings(LoopSettings):
    """Settings of the source stage (docs/method.md, section 1).

    Attributes:
        particles: M [paper: 5].
        kernel: k of the SVGD update [paper: rbf].
        bandwidth: `median` [paper] or a fixed float in squared embedding units.
        scope: One kernel over the whole `prompt` [paper], or one per prompt `row`.
        repulsion: Factor on ∇k; 1 is SVGD, any other value changes the distribution that is sampled.
        annealing: Factor on the score over time against mode collapse.
        likelihood_unit: What the mean cross-entropy of a draw is taken over: its `example`s, each with −log p of its
            whole answer, or their `token`s [paper], which gives every token of a long answer less weight.
        likelihood: What is learned from: −log p of the answer's `tokens` [paper], or −log of its share among the task's
            `labels`; a source with free answers keeps its tokens.
        source_objective: Learn what the model's `words` say [paper], or what each particle's `readout` makes of them:
            it is fitted to half of every draw and judged, by its share of the right label, on the other half. Needs
            label words; give a `batch_size` of 16 or so.
        offset_std: σ_b of that readout's prior, in nats; 0 leaves its part out.
        weight_std: σ_w of that readout's prior, in nats; 0 leaves its part out.
        readout_prior: Whether the widths of the prior of *targets'* readouts stay `fixed` by their settings, or are
            chosen on the `sources`, by held-back rows at 4, 16 and 64 labels, and noted in the posterior's card.
        likelihood_scale: `mean` cross-entropy as log-likelihood [paper], `data` (N_k times it), or a float.
        prompt_length: P, rows of a prompt [paper: 100].
        particle_init: `independent` vocabulary draws [paper], one `shared` draw plus jitter, or around a `prompt`
            trained first with M = 1 for `init_steps` steps. Independent starts stay apart, and their
            mean can be worthless (docs/results.md).
        init_jitter: Standard deviation of the jitter, in embedding units, for `shared` and `prompt`.
        init_steps: Steps of the M = 1 training for `prompt`; they count towards `steps`, so the cost is no higher.
        batch_size: Examples drawn per source task and step [paper: 1].
        max_length: Longest text in tokens, or None for each task's own.
        validation_rows: Held-back rows per source task on which NLL is watched.
        train_rows: Most training rows per source task, or None for all.
        task_factors: Multiply the particles by a factor u_k v_kᵀ per source task; only the particles go into the
            posterior.
        factor_learning_rate: Learning rate of u_k and v_k.
    """

    PAPER: ClassVar[Mapping[str, Any]] = {
        "particles": 5, "kernel": "rbf", "bandwidth": "median", "scope": "prompt", "repulsion": 1.0,
        "annealing": "none", "likelihood_unit": "token", "likelihood": "tokens", "source_objective": "words",
        "likelihood_scale": "mean", "prompt_length": 100, "particle_init": "independent", "batch_size": 1,
        "task_factors": False,
    }  # fmt: skip

    particles: Count = 5
    kernel: KernelName = "rbf"
    bandwidth: Literal["median"] | Positive = "median"
    scope: KernelScope = "prompt"
    repulsion: NotNegative = 1.0
    annealing: Annealing = "none"
    likelihood_unit: LikelihoodUnit = "example"
    likelihood: Likelihood = "tokens"
    source_objective: SourceObjective = "words"
    offset_std: Width = 1.0
    weight_std: Width = 1.0
    readout_prior: Literal["fixed", "sources"] = "fixed"
    likelihood_scale: Literal["mean", "data"] | Positive = "mean"
    prompt_length: Count = 100
    particle_init: ParticleInit = "shared"
    init_jitter: Annotated[float, Field(ge=0), _between(1e-15, 1e15)] = 0.1
    init_steps: Count = 100
    batch_size: Count = 2
    max_length: Count | None = None
    validation_rows: Count = 64
    train_rows: Count | None = None
    task_factors: bool = False
    factor_learning_rate: Positive = 0.01

    @property
    def svgd_steps(self) -> int:
        """Steps that all particles take: what `init_steps` leaves of `steps`."""
        return self.steps - self.init_steps if self.particle_init == "prompt" else self.steps

    @model_validator(mode="after")
    def _steps_are_left(self) -> LearnSettings:
        if self.svgd_steps < 1:
            raise ValueError(f"init_steps is {self.init_steps}: with particle_init 'prompt' give less than steps")
        return self

    @model_validator(mode="after")
    def _labels_are_of_examples(self) -> LearnSettings:
        readout = self.source_objective == "readout"
        if self.likelihood_unit == "token" and (readout or self.likelihood == "labels"):
            asked = "source_objective 'readout'" if readout else "likelihood 'labels'"
            raise ValueError(f"{asked} is a mean over examples: set likelihood_unit to 'example'")
        if readout and self.batch_size < 2:
            raise ValueError("batch_size is 1: source_objective 'readout' needs 2 or more, half of them to fit")
        return self


class AdaptSettings(LoopSettings):
    """Settings of the target stage (docs/method.md, section 2).

    Attributes:
        steps: Most optimiser steps; 0 keeps the start, for a readout alone.
        prior: `mean` N(θ̄, σ²I) [paper], `mixture` of one Gaussian per particle, or `none`.
        prior_std: σ in embedding units, or `auto`: chosen on the validation part from `prior_std_grid`.
        start: Where θ starts: the posterior's `mean` [paper], its `best` particle on the target's training rows, every
            one of the `particles` (the best on the validation part is kept), or `auto` (mean, best and a draw of the
            vocabulary compete).
        decompose: Train θ = A ∘ (u vᵀ) [paper] instead of θ itself.
        freeze_full: Train u and v only and leave A where it starts (an ablation: P + D numbers).
        factor_learning_rate: Learning rate of u and v; `learning_rate` is that of A.
        shots: Labelled examples drawn from the training part, or None for all. They are all the labels used, unless
            the target has a validation part of its own and `validation_rows` lets its labels select, too.
        draw: How the `shots` are drawn: at `random`, so that they show the label shares of the task, or `balanced` over
            its labels, which teaches wrong shares where labels are skewed.
        unlabelled_rows: How many of the training rows that the `shots` leave out lend their texts to the readout, which
            does not look at their labels.
        selection: Keep the step with the best validation `score` (ties: lower loss) or the lowest `loss`; or `none`:
            train on every labelled row, keep the last step, and take each method's first candidate.
        selection_share: Share of the training rows (of the `shots`) that selects where no validation rows do.
        patience: Validations without improvement before stopping, or None.
        validation_rows: Most rows of the target's own validation part that select, or None for all; 0 leaves that part
            alone.
        proportional_cap: Several targets are sampled in proportion to min(rows, this).
        normalise: How the likelihoods of label words of different length are made comparable: `none`, `length` (per
            token) or `pmi` (less the word's own, given the text without a row). See docs/method.md.
        likelihood: What is trained on: −log p of the answer's `tokens` [paper], or −log of its share among the task's
            `labels`, of logits that the start's readout has turned already; `auto`: labels where a task has them.
        readout: What the labels say beyond the prompt's words, fitted by MAP to all labelled rows: `none` [paper], an
            `offset` per label word, or a `linear` readout of the model's states too; `auto`: linear where a task has
            label words. It is part of the artifact.
        average: What answers along with the trained prompt, by averaged probabilities: `none` [paper], or its
            untouched `start` with a readout of its own; `starts`: every start of the method, trained and untouched, to
            which BMTPT adds a vocabulary draw with a prior around it, so that what the sources teach is never all that
            answers; `auto`: the start where a task has label words.
        offset_std: σ_b of the readout's prior, in nats; 0 leaves its part out.
        weight_std: σ_w of the readout's prior, in nats; 0 leaves its part out.
        slope_std: σ_a of the readout's prior; 0 leaves the model's own log-likelihoods as they are.
        readout_prior: Widths as given here (`fixed`), or those that the `posterior`'s sources chose at the nearest
            number of labels (`readout_prior` of learn); methods without a posterior keep those given here.
        predictive: What a readout answers by: its `map`, or the mean over its posterior (`laplace`), which is less sure
            of a text the less the labelled texts say about it. The likeliest label of a single prompt is the same.
        calibrate: `none` [paper], or one `temperature` for the answers, fitted by cross-fitting within the labelled
            rows. It is part of the artifact.
        ensemble: Keep an adapted prompt per start (particle or source prompt); predictions average their probabilities.
    """

    PAPER: ClassVar[Mapping[str, Any]] = {
        "prior": "mean", "prior_std": 30.0,  # one σ, of which the paper names no value
        "start": "mean", "decompose": True, "freeze_full": False, "draw": "balanced", "normalise": "none",
        "likelihood": "tokens", "readout": "none", "average": "none", "calibrate": "none", "ensemble": False,
        "unlabelled_rows": 0, "predictive": "map",
    }  # fmt: skip
    BEFORE: ClassVar[Mapping[str, Any]] = {
        "draw": "balanced", "readout": "none", "unlabelled_rows": 0, "predictive": "map",
    }  # fmt: skip
    """What was done where a card or a study's folder is older than the option."""

    prior: Prior = "mean"
    prior_std: Literal["auto"] | Std = "auto"
    prior_std_grid: tuple[Std, ...] = Field(default=(30.0, 100.0), min_length=1)
    start: Start = "auto"
    decompose: bool = True
    freeze_full: bool = False
    factor_learning_rate: Positive = 0.01
    shots: Count | None = None
    draw: Draw = "random"
    unlabelled_rows: Annotated[int, Field(ge=0, lt=2**31)] = 64
    selection: Selection = "score"
    selection_share: float = Field(default=0.25, gt=0, lt=1)
    patience: Count | None = None
    max_length: Count | None = None
    validation_rows: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    proportional_cap: Count = 2**18
    normalise: Normalise = "none"
    likelihood: TargetLikelihood = "tokens"
    readout: ReadoutKind = "auto"
    average: Average = "none"
    offset_std: Width = 1.0
    weight_std: Width = 1.0
    slope_std: Width = 0.0
    readout_prior: Literal["fixed", "posterior"] = "fixed"
    predictive: Predictive = "laplace"
    calibrate: Calibrate = "none"
    ensemble: bool = False
    steps: int = Field(default=200, ge=0, lt=2**31)
    batch_size: Count = 16
    evaluate_every: Count = 20

    @model_validator(mode="after")
    def _something_is_trained(self) -> AdaptSettings:
        if self.freeze_full and not self.decompose:
            raise ValueError("freeze_full leaves nothing to train without decompose; give one of them")
        return self

    @property
    def keeps_every_start(self) -> bool:
        """Whether a prompt is kept for each start, and not only the best one."""
        return self.ensemble or self.average == "starts"

    def decided(self, *, words: bool, prompts: bool) -> AdaptSettings:
        """Return the settings with every `auto` about label words replaced by what it stands for.

        Args:
            words: Whether all targets have label words.
            prompts: Whether the method trains prompts, which alone are read out and averaged.
        """
        able = {"likelihood": words, "readout": words and prompts, "average": words and prompts}
        found = {"likelihood": ("labels", "tokens"), "readout": ("linear", "none"), "average": ("start", "none")}
        chosen = {name: found[name][not able[name]] for name in found if getattr(self, name) == "auto"}
        return self.model_copy(update=chosen)


SettingsType = TypeVar("SettingsType", bound=BaseModel)


def resolve(
    kind: type[SettingsType], config: Path | None = None, options: Mapping[str, Any] | None = None
) -> SettingsType:
    """Build settings from defaults, then a YAML file, then options that are not None (the command line wins).

    Raises:
        SettingsError: One sentence naming the file or option, the value and what is allowed.
    """
    from bmtpt.yaml_files import read_yaml

    values = read_yaml(config) if config else {}
    for key in values:
        if key not in (*kind.model_fields, "preset"):
            raise SettingsError(f"{config}: unknown option '{key}'; {nearest(str(key), kind.model_fields)}")
    values |= {key: value for key, value in (options or {}).items() if value is not None}
    return validated(kind, values, str(config) if config else None)


def validated(kind: type[SettingsType], values: Mapping[str, Any], where: str | None = None) -> SettingsType:
    """Validate a mapping, turning pydantic's report into one sentence."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise SettingsError(in_one_sentence(error, kind, where)) from error
