"""A study as data: what is compared, on what, how often, and the settings of every stage."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple, Self

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

from bmtpt.errors import SettingsError, nearest
from bmtpt.methods.registry import Method, Options, all_methods, get_method
from bmtpt.settings import AdaptSettings, LearnSettings, later, validated
from bmtpt.studies.variants import Variant, expand, joined
from bmtpt.tasks import SplitLimits

Distribution = Literal["gaussian", "gaussian_mixture", "student_mixture"]

SVGD_OPTIONS = (
    *("learn.particles", "learn.kernel", "learn.bandwidth", "learn.scope", "learn.repulsion", "learn.annealing"),
    *("learn.steps", "learn.optimiser", "learn.learning_rate", "learn.weight_decay", "learn.warmup_steps"),
    "learn.schedule",
)
"""What of the source stage counts where the density is known."""

EVERY_METHOD = "all"
"""In `variants`, the grids of every method."""


class Contender(NamedTuple):
    """A method with one variant of the study's settings: a column of its table.

    Attributes:
        study: The study with the variant's settings and without variants.
    """

    method: str
    variant: Variant
    study: Any

    @property
    def key(self) -> tuple[str, str]:
        """What result lines say of it."""
        return self.method, self.variant.name


class BaseStudy(BaseModel):
    """What studies of all kinds have.

    Attributes:
        name: Goes into every result line.
        title: The question, for people.
        seeds: Each seed is one repetition; error bars are over seeds.
        learn: SVGD, that is, the source stage of the posterior.
        variants: By method (or `all`): a list of grids, each a mapping of dotted options to a value or a list of
            values, such as `learn.particles: [1, 5]`. `{}` is the study's own settings. A method without an entry has
            these only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    _methods: ClassVar[tuple[str, ...]] = ("svgd",)
    _varied: ClassVar[tuple[str, ...]] = SVGD_OPTIONS
    """Options, and groups of them, that a variant may set: those that its cells heed."""
    _fixed: ClassVar[tuple[str, ...]] = ()
    """Options of these groups that the study sets itself."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    title: str = ""
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    learn: LearnSettings = LearnSettings()
    variants: dict[str, tuple[dict[str, Any], ...]] = later({})

    @field_validator("seeds", "sources", "targets", "tuning", "shots", "methods", check_fields=False)
    @classmethod
    def _each_once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise ValueError(f"{twice[0]} stands in it twice")
        return values

    def compared(self) -> tuple[str, ...]:
        """Return the methods."""
        return self._methods

    def contenders(self) -> list[Contender]:
        """Return every method with every one of its variants.

        Raises:
            SettingsError: A variant sets an option that does not exist or that cannot be varied, or to a value that it
                cannot have; or two variants of a method have one name.
        """
        common = expand(self.variants.get(EVERY_METHOD, ({},)))
        found = [
            Contender(method, variant, self._with(variant))
            for method in self.compared()
            for left in common
            for right in expand(self.variants.get(method, ({},)))
            for variant in [joined(left, right)]
        ]
        keys = [contender.key for contender in found]
        if twice := [key for key in keys if keys.count(key) > 1]:
            method, name = twice[0]
            raise SettingsError(
                f"variants: {method} has two variants named '{name}'; make a second study for one of them"
            )
        return found

    def _with(self, variant: Variant) -> Self:
        plain = self.model_copy(update={"variants": {}})
        if not variant.overrides:
            return plain
        found = validated(type(self), variant.applied(plain.model_dump(mode="json")), "variants")
        if odd := [option for option, _ in variant.overrides if not self._may_vary(option)]:
            raise SettingsError(f"variants: option '{odd[0]}' cannot be varied; make a second study")
        return found

    def _may_vary(self, option: str) -> bool:
        heeded = any(option == each or option.startswith(f"{each}.") for each in self._varied)
        return heeded and option not in self._fixed

    @model_validator(mode="after")
    def _variants_can_be_told_apart(self) -> Self:
        for method, grids in self.variants.items():
            known = (*self.compared(), EVERY_METHOD)
            if method not in known:
                raise ValueError(f"variants are given for '{method}', which is not compared; choose from {known}")
            names = [variant.name for variant in expand(grids)]
            if not names:
                raise ValueError(f"variants of '{method}' are none; give a grid such as {{}}, or leave '{method}' out")
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"variant '{twice[0]}' of {method} stands in it twice")
        return self


class StudySpec(BaseStudy):
    """Methods × targets × shots × seeds.

    Attributes:
        kind: Always `grid` (see the other classes of this module).
        backbone: Hub id, folder or "offline".
        data: "hub", "offline" or a data folder.
        sources: Source tasks, by name or by path of a YAML file (relative to the study's own file).
        targets: Target tasks, likewise; none may be a source, unless `sources_as_targets` says so.
        sources_as_targets: Targets may be sources too, as in the literature. What is scored there is no transfer to a
            new task, though never on a row that was trained on.
        tuning: Targets on which settings may be tuned; they are not reported, so none may be a target.
        shots: Training examples per target; null for all.
        seeds: Each seed draws its own shots and starts.
        source_seeds: Seed s goes with source-stage seed number s, cycled (one source stage can serve several seeds).
        methods: What is compared.
        learn: Source stage of the posterior; with M = 1 it is also that of `multitask` and `mpt`.
        source_prompt: Source stage of the single-task prompts that SPoT, the mean and the ensemble of source prompts,
            ATTEMPT and MPT (its teachers) need.
        adapt: Target stage, the same for every method (priors apply to BMTPT only).
        options: By method, the settings that only this method has (`Method.options`).
        candidates: Starts or priors that a method may try and select from; the budget is the same for all.
        limits: Most rows of the training, validation and test parts.
        together: Train all targets in one run per method, shots and seed: those of BMTPT and MPT share A and have u and
            v of their own, those of ATTEMPT share the attention. A step's `batch_size` is that of all targets. Other
            methods cannot, so it is usually set in the variants of some.
    """

    _varied: ClassVar[tuple[str, ...]] = (
        *("learn", "source_prompt", "adapt", "options", "candidates", "backbone"),
        "together",
    )
    _fixed: ClassVar[tuple[str, ...]] = (
        *("learn.seed", "source_prompt.seed", "adapt.seed", "adapt.shots", "adapt.ensemble"),
    )

    kind: Literal["grid"] = later("grid")
    backbone: str = "offline"
    data: str = "hub"
    sources: tuple[str, ...] = Field(min_length=1)
    targets: tuple[str, ...] = Field(min_length=1)
    sources_as_targets: bool = later(False)
    tuning: tuple[str, ...] = later(())
    shots: tuple[PositiveInt | None, ...] = Field(default=(None,), min_length=1)
    source_seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    methods: tuple[str, ...] = Field(default=("pt", "spot", "bmtpt"), min_length=1)
    source_prompt: LearnSettings = LearnSettings(particles=1)
    adapt: AdaptSettings = AdaptSettings()
    options: dict[str, dict[str, Any]] = later({})
    candidates: PositiveInt = 3
    limits: SplitLimits = SplitLimits()
    together: bool = later(False)

    @field_validator("methods")
    @classmethod
    def _registered(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        for name in methods:
            if name not in all_methods():
                raise ValueError(f"there is no method '{name}'; {nearest(name, all_methods())}")
        return methods

    @model_validator(mode="after")
    def _prompts_of_one_length(self) -> StudySpec:
        lengths = self.source_prompt.prompt_length, self.learn.prompt_length
        needed = any(get_method(name).needs == "source prompts" for name in self.methods)
        if needed and lengths[0] != lengths[1]:
            raise ValueError(
                f"source_prompt.prompt_length is {lengths[0]} and learn.prompt_length {lengths[1]}; "
                "methods compare with prompts of one length"
            )
        return self

    def compared(self) -> tuple[str, ...]:
        """Return the methods."""
        return self.methods

    def contenders(self) -> list[Contender]:
        """Return every method with every one of its variants.

        Raises:
            SettingsError: As for every study; or a method is to train targets together and cannot.
        """
        found = super().contenders()
        for each in found:
            each.study.options_of(get_method(each.method))
        known = all_methods()
        odd = [each.method for each in found if each.study.together and not known[each.method].together]
        if odd:
            able = [name for name, method in known.items() if method.together]
            raise SettingsError(
                f"option 'together': {', '.join(dict.fromkeys(odd))} cannot train several targets in one run; "
                f"set it for {', '.join(able)} only (in their variants)"
            )
        if strange := set(self.options) - set(self.methods) - set(known):
            name = sorted(strange)[0]
            raise SettingsError(f"unknown option 'options.{name}'; {nearest(name, known)}")
        return found

    def options_of(self, method: Method) -> Options:
        """Return a method's own settings.

        Raises:
            SettingsError: One that it does not have, or a value that it cannot have.
        """
        return validated(method.options, self.options.get(method.name, {}), f"options.{method.name}")

    def source_seed(self, seed: int) -> int:
        """Return the source-stage seed that goes with a seed."""
        return self.source_seeds[seed % len(self.source_seeds)]


class SmoothingSpec(StudySpec):
    """Cells as in a grid, then the loss around the prompts they end with, and what a Gaussian blur takes away.

    Attributes:
        radii: Distances from the prompt, as root mean square per number, in embedding units.
        directions: Random directions per radius.
        rows: Test rows on which the loss is measured.
        frequencies: Of the cosines that are blurred, in radians per unit.
        blur_stds: σ of the Gaussians that they are blurred with.
    """

    kind: Literal["smoothing"] = "smoothing"  # type: ignore[assignment]
    radii: tuple[PositiveFloat, ...] = (0.1, 0.3, 1.0, 3.0)
    directions: PositiveInt = 8
    rows: PositiveInt = 64
    frequencies: tuple[PositiveFloat, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    blur_stds: tuple[PositiveFloat, ...] = (0.5, 1.0)

    @field_validator("methods")
    @classmethod
    def _end_with_one_prompt(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        several = {"attempt", "source_ensemble", "full", "bitfit", "lora", "adapter"}
        if odd := [method for method in methods if method in several]:
            raise ValueError(f"{odd[0]} ends with no single prompt to measure the loss around; leave it out")
        return methods

    @field_validator("together")
    @classmethod
    def _one_by_one(cls, together: bool) -> bool:
        if together:
            raise ValueError("the loss is measured around prompts that were trained one by one; leave it out")
        return together


class GaussianSpec(BaseStudy):
    """Gaussian task posteriors, whose product SVGD must find and no average of theirs does.

    Attributes:
        dimensions: Of the space.
        tasks: K, the number of posteriors.
        anisotropy: Ratio of the largest to the smallest standard deviation of a posterior.
    """

    kind: Literal["gaussian"] = "gaussian"
    dimensions: tuple[PositiveInt, ...] = Field(default=(2,), min_length=1)
    tasks: PositiveInt = 3
    anisotropy: PositiveFloat = 5.0


class CollapseSpec(BaseStudy):
    """Distributions with a known truth, against dimension: which modes are covered, and how much variance is kept.

    Attributes:
        distributions: `gaussian`, `gaussian_mixture`, or `student_mixture` (3 degrees of freedom: heavy tails).
        dimensions: Of the space, at least 2; multiples of `row_width`.
        row_width: D; a point of n numbers is seen as n/D rows, which is what the kernel scope `row` looks at.
        modes: Of a mixture, all of one weight.
        separation: Distance of the modes from the centre, in standard deviations of a mode.
        start_std: Of the Gaussian around the centre from which the particles are drawn.
    """

    _varied: ClassVar[tuple[str, ...]] = (*SVGD_OPTIONS, "row_width", "modes", "separation", "start_std")

    kind: Literal["collapse"] = "collapse"
    distributions: tuple[Distribution, ...] = Field(default=("gaussian_mixture", "student_mixture"), min_length=1)
    dimensions: tuple[PositiveInt, ...] = Field(default=(2, 10, 50), min_length=1)
    row_width: int = Field(default=2, ge=2)
    modes: PositiveInt = 4
    separation: PositiveFloat = 6.0
    start_std: PositiveFloat = 3.0

    @model_validator(mode="after")
    def _whole_rows(self) -> CollapseSpec:
        if odd := [n for n in self.dimensions if n % self.row_width]:
            raise ValueError(f"dimension {odd[0]} is no multiple of row_width {self.row_width}")
        return self


AnyStudy = StudySpec | SmoothingSpec | GaussianSpec | CollapseSpec
KINDS: dict[str, type[BaseStudy]] = {
    "grid": StudySpec,
    "smoothing": SmoothingSpec,
    "gaussian": GaussianSpec,
    "collapse": CollapseSpec,
}
