"""A study as data: methods × targets × shots × seeds, and the settings of every stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from bmtpt.errors import SettingsError
from bmtpt.settings import (
    AdaptSettings,
    AttemptSettings,
    LearnSettings,
    MptSettings,
    WeightMethod,
    WeightSettings,
    later,
    read_yaml,
    validated,
)
from bmtpt.tasks import SplitLimits

PromptMethod = Literal[
    "pt", "ptp", "spot", "source_mean", "source_ensemble", "attempt", "mpt", "multitask", "bmtpt", "bmtpt_no_prior"
]
MethodName = Literal[PromptMethod, WeightMethod]
SOURCE_PROMPT_METHODS = {"spot", "source_mean", "source_ensemble", "attempt", "mpt"}
"""Methods that need a prompt tuned on each source alone."""


class StudySpec(BaseModel):
    """What a study compares.

    Attributes:
        name: Goes into every result line.
        backbone: Hub id, folder or "offline".
        data: "hub", "offline" or a data folder.
        sources: Source tasks, by name or by path of a YAML file (relative to the study's own file).
        targets: Target tasks, likewise; none may be a source.
        shots: Training examples per target; null for all.
        seeds: Each seed draws its own shots and starts.
        source_seeds: Seed s goes with source-stage seed number s, cycled (one source stage can serve several seeds).
        methods: What is compared.
        learn: Source stage of the posterior; with M = 1 it is also that of `multitask` and `mpt`.
        source_prompt: Source stage of the single-task prompts that SPoT, the mean and the ensemble of source prompts,
            ATTEMPT and MPT (its teachers) need.
        adapt: Target stage, the same for every method (priors apply to BMTPT only).
        attempt, mpt: What only these methods have.
        noise_std: Standard deviation of the noise that `ptp` trains under, in embedding units.
        weights: Learning rates and sizes of the methods that tune weights.
        candidates: Starts or priors that a method may try and select from; the budget is the same for all.
        limits: Most rows of the training, validation and test parts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    title: str = ""
    backbone: str = "offline"
    data: str = "hub"
    sources: tuple[str, ...] = Field(min_length=1)
    targets: tuple[str, ...] = Field(min_length=1)
    shots: tuple[PositiveInt | None, ...] = Field(default=(None,), min_length=1)
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    source_seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    methods: tuple[MethodName, ...] = Field(default=("pt", "spot", "bmtpt"), min_length=1)
    learn: LearnSettings = LearnSettings()
    source_prompt: LearnSettings = LearnSettings(particles=1)
    adapt: AdaptSettings = AdaptSettings()
    attempt: AttemptSettings = later(AttemptSettings())
    mpt: MptSettings = later(MptSettings())
    noise_std: PositiveFloat = later(1.0)
    weights: WeightSettings = later(WeightSettings())
    candidates: PositiveInt = 3
    limits: SplitLimits = SplitLimits()

    @field_validator("sources", "targets", "shots", "seeds", "methods")
    @classmethod
    def _each_once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise ValueError(f"{twice[0]} stands in it twice")
        return values

    @model_validator(mode="after")
    def _prompts_of_one_length(self) -> StudySpec:
        lengths = self.source_prompt.prompt_length, self.learn.prompt_length
        if SOURCE_PROMPT_METHODS & set(self.methods) and lengths[0] != lengths[1]:
            raise ValueError(
                f"source_prompt.prompt_length is {lengths[0]} and learn.prompt_length {lengths[1]}; "
                "methods compare with prompts of one length"
            )
        return self

    def source_seed(self, seed: int) -> int:
        """Return the source-stage seed that goes with a seed."""
        return self.source_seeds[seed % len(self.source_seeds)]


def load_study(path: Path) -> StudySpec:
    """Read a study; task files are looked up beside it.

    Raises:
        SettingsError: The file is wrong, or a target is also a source.
    """
    values = read_yaml(path)
    for key in ("sources", "targets"):
        names = values.get(key)
        if isinstance(names, list):
            values[key] = [_task_path(str(name), path) for name in names]
    study = validated(StudySpec, values, str(path))
    both = set(study.sources) & set(study.targets)
    if both:
        raise SettingsError(f"{path}: {sorted(both)[0]} is both a source and a target; name it once")
    return study


def _task_path(name: str, study: Path) -> str:
    return str(study.parent / name) if name.endswith((".yaml", ".yml")) else name
