"""A study as data: what is compared, on what, how often, and the settings of every stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from bmtpt.errors import SettingsError, nearest
from bmtpt.methods.registry import Method, Options, all_methods, get_method
from bmtpt.settings import AdaptSettings, FileName, LearnSettings, validated
from bmtpt.studies.ranges import Range
from bmtpt.studies.variants import Variant, expand
from bmtpt.tasks import SplitLimits

EVERY_METHOD = "all"
"""In `variants`, the grids of every method."""

VARIED = ("learn", "source_prompt", "adapt", "options", "candidates", "backbone", "together")
"""Options, and groups of them, that a variant may set."""

FIXED = ("learn.seed", "source_prompt.seed", "adapt.seed", "adapt.shots", "adapt.ensemble")
"""Options of these groups that the study sets itself."""


REREAD = ("readout", "unlabelled_rows", "offset_std", "weight_std", "slope_std", "predictive", "calibrate")
"""Options of the target stage that a prompt may be read with once it is trained."""


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
        """Method and variant, as in its result lines."""
        return self.method, self.variant.name

    @property
    def reread(self) -> dict[str, Mapping[str, Any]]:
        """Settings with which its prompts are scored once more, by the variant that their lines name."""
        own, found = get_method(self.method), self.study.reread
        if own.tunes_weights or own.classifier or self.study.adapt.readout != "none":
            return {}
        adapt = [{f"adapt.{option}": value for option, value in settings.items()} for settings in found]
        names = [Variant((*self.variant.overrides, *settings.items())).name for settings in adapt]
        return dict(zip(names, found, strict=True))

    @property
    def label(self) -> str:
        """The same as one word: "bmtpt[particles=7]"."""
        return f"{self.method}[{self.variant.name}]" if self.variant.name else self.method


class StudySpec(BaseModel):
    """Methods × variants × targets × shots × seeds.

    Attributes:
        name: Goes into every result line.
        title: The question, for people.
        backbone: Hub id, folder or "offline".
        data: "hub", "offline" or a data folder.
        sources: Source tasks, by name or by path of a YAML file (relative to the study's own file).
        targets: Target tasks, given as sources are; none may be a source, unless `sources_as_targets` says so.
        sources_as_targets: Targets may be sources too, as in the literature. What is scored there is not transfer to a
            new task, though no scored row was trained on.
        tuning: Targets on which settings may be tuned; they are not reported, so none may be a target.
        shots: Labelled examples per target; null for all.
        seeds: Each seed draws its own shots and starts.
        source_seeds: Seed s starts from source-stage seed number s, cycled (one source stage can serve several seeds).
        methods: What is compared, by name (`bmtpt.methods.registry`).
        learn: Source stage of the posterior; with M = 1 it is also that of `multitask` and `mpt`.
        source_prompt: Source stage of the prompts of single sources, which SPoT, ATTEMPT, MPT and others need.
        adapt: Target stage, the same for every method (priors apply to BMTPT only).
        options: By method, the settings that only this method has (`Method.options`).
        reread: Settings of the target stage that concern a readout (`REREAD`), such as `{readout: linear}`, with which
            every trained prompt is scored once more, each as a variant. Nothing is trained again, so it needs
            `adapt.selection` "none" and counts where a variant has no readout.
        candidates: Starts or priors that a method may try and select from; the budget is the same for all.
        limits: Most rows of the training, validation and test parts.
        together: Train all targets in one run per method, shots and seed, for methods that can (`Method.together`). A
            step's `batch_size` is that of all targets. It is usually set in the variants of some methods.
        variants: By method (or `all`): a list of grids, each a mapping of dotted options to a value or a list of
            values, such as `learn.particles: [1, 5]`. `{}` is the study's own settings. A method without an entry has
            only these.
        sweep: What `bmtpt sweep` tries on the tuning targets: dotted options and their ranges, such as
            `adapt.learning_rate: {log: [0.03, 3]}` or `adapt.prior: {choice: [mean, mixture]}`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: FileName
    title: str = ""
    backbone: str = "offline"
    data: str = "hub"
    sources: tuple[str, ...] = Field(min_length=1)
    targets: tuple[str, ...] = Field(min_length=1)
    sources_as_targets: bool = False
    tuning: tuple[str, ...] = ()
    shots: tuple[PositiveInt | None, ...] = Field(default=(None,), min_length=1)
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    source_seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    methods: tuple[str, ...] = Field(default=("pt", "spot", "bmtpt"), min_length=1)
    learn: LearnSettings = LearnSettings()
    source_prompt: LearnSettings = LearnSettings(particles=1)
    adapt: AdaptSettings = AdaptSettings()
    options: dict[str, dict[str, Any]] = {}
    reread: tuple[dict[str, Any], ...] = ()
    candidates: PositiveInt = 3
    limits: SplitLimits = SplitLimits()
    together: bool = False
    variants: dict[str, tuple[dict[str, Any], ...]] = {}
    sweep: dict[str, Range] = {}

    @field_validator("seeds", "sources", "targets", "tuning", "shots", "methods", "reread")
    @classmethod
    def _each_once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if twice := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"{twice[0]} is given twice")
        return values

    @field_validator("sweep", mode="before")
    @classmethod
    def _ranges(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        for option, each in values.items():
            if not isinstance(each, Mapping | Range):
                raise ValueError(f"'{option}' needs a range, such as {{log: [0.01, 1]}} or {{choice: [a, b]}}")
        return {option: validated(Range, each, f"sweep: {option}") for option, each in values.items()}

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

    @field_validator("reread")
    @classmethod
    def _reading_alone(cls, values: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for settings in values:
            if strange := [option for option in settings if option not in REREAD]:
                raise ValueError(
                    f"'{strange[0]}' changes more than how a prompt is read; {nearest(strange[0], REREAD)}"
                )
            if validated(AdaptSettings, settings, "reread").readout not in ("offset", "linear"):
                raise ValueError("each entry needs a readout, such as {readout: linear}")
        return values

    @model_validator(mode="after")
    def _reading_again_changes_no_prompt(self) -> StudySpec:
        if self.reread and self.adapt.selection != "none":
            raise ValueError("reread is given, and validation ranks prompts after their readouts; select 'none'")
        return self

    @model_validator(mode="after")
    def _variants_can_be_told_apart(self) -> StudySpec:
        known = (*self.methods, EVERY_METHOD)
        for method, grids in self.variants.items():
            if method not in known:
                raise ValueError(f"variants are given for '{method}', which is not compared; choose from {known}")
            names = [variant.name for variant in expand(grids)]
            if not names:
                raise ValueError(f"variants of '{method}' are empty; give a grid such as {{}}, or leave '{method}' out")
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"variant '{twice[0]}' of {method} is given twice")
        return self

    def for_tuning(self) -> StudySpec:
        """Return the study on its tuning targets, under a name of its own: its lines are never taken for results.

        Raises:
            SettingsError: It names none.
        """
        if not self.tuning:
            raise SettingsError(f"study {self.name} names no targets for tuning; add 'tuning' to its file")
        return self.model_copy(update={"targets": self.tuning, "tuning": (), "name": f"{self.name}-tuning"})

    def as_in_the_paper(self) -> StudySpec:
        """Return the study with the paper's settings in every stage, whatever its own; variants stay as they are."""
        values = self.model_dump(mode="json")
        values["learn"] |= LearnSettings.PAPER
        values["adapt"] |= AdaptSettings.PAPER
        # Of a single source there is no SVGD.
        one_prompt = ("likelihood_unit", "likelihood", "source_objective", "likelihood_scale", "prompt_length")
        values["source_prompt"] |= {name: LearnSettings.PAPER[name] for name in one_prompt}
        return validated(StudySpec, values)

    def contenders(self) -> list[Contender]:
        """Return every method with every one of its variants.

        Raises:
            SettingsError: A variant sets an option that does not exist or that cannot be varied, or to a value that it
                cannot have; two variants of a method have one name; a method does not have an option that it is given,
                or cannot train targets together and is to.
        """
        plain = self.model_copy(update={"variants": {}})
        found: dict[tuple[str, str], Contender] = {}
        for method in self.methods:
            own, common = (expand(self.variants.get(name, ({},))) for name in (method, EVERY_METHOD))
            for variant in (Variant((*left.overrides, *right.overrides)) for left in common for right in own):
                study = plain
                if variant.overrides:
                    study = validated(StudySpec, variant.applied(plain.model_dump(mode="json")), "variants")
                for option, _ in variant.overrides:
                    if option in FIXED or not {option, option.partition(".")[0]} & set(VARIED):
                        raise SettingsError(f"variants: option '{option}' cannot be varied; make a second study")
                each = Contender(method, variant, study)
                if each.key in found:
                    raise SettingsError(
                        f"variants: {method} has two variants named '{variant.name}'; "
                        "make a second study for one of them"
                    )
                found[each.key] = each
        if self.reread and not any(each.reread for each in found.values()):
            raise SettingsError("reread is given, and every prompt has a readout already; set adapt.readout to none")
        known = all_methods()
        if strange := [name for name in self.options if name not in known]:
            raise SettingsError(f"unknown option 'options.{strange[0]}'; {nearest(strange[0], known)}")
        for name, again in ((each.method, again) for each in found.values() for again in each.reread):
            if (name, again) in found:
                raise SettingsError(f"variants: {name} has '{again}' already; leave it out, or leave reread out")
        for each in found.values():
            each.study.options_of(known[each.method])
        together = dict.fromkeys(each.method for each in found.values() if each.study.together)
        if odd := [name for name in together if not known[name].together]:
            able = ", ".join(name for name, method in known.items() if method.together)
            raise SettingsError(
                f"option 'together': {', '.join(odd)} cannot train several targets in one run; "
                f"set it for {able} only (in their variants)"
            )
        return list(found.values())

    def options_of(self, method: Method) -> Options:
        """Return a method's own settings.

        Raises:
            SettingsError: One that it does not have, or a value that it cannot have.
        """
        return validated(method.options, self.options.get(method.name, {}), f"options.{method.name}")

    def source_seed(self, seed: int) -> int:
        """Return the source-stage seed that goes with a seed."""
        return self.source_seeds[seed % len(self.source_seeds)]
