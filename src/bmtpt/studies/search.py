"""The search of a sweep, by Optuna: what a trial tries, when it stops early, and the journal from which it goes on.

What trial t tries is a pure function of the seed, t and the trials before it, and its number is taken together with its
settings in one write: a sweep that was killed goes on to the trials that it would have had.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from bmtpt.errors import ArtifactError, SettingsError
from bmtpt.report.names import direction
from bmtpt.report.sweep_page import SweepTrial, best_of
from bmtpt.studies.ranges import Range, Scalar
from bmtpt.studies.space import value_of, with_settings
from bmtpt.studies.spec import StudySpec

JOURNAL = "sweep.log"
"""Optuna's journal in the sweep's folder."""

DIGITS = 3
"""Digits that are kept of a drawn number: the lines of a result name its settings by six."""

P_VALUE = 0.1
"""Below it a trial is taken to be worse than the best one; four cells can reach it at the earliest (1/16)."""

Settings = dict[str, Scalar]


class Search:
    """The trials of a sweep.

    Attributes:
        metric: The score, a mean over cells.
    """

    def __init__(self, study: StudySpec, ranges: Mapping[str, Range], metric: str, seed: int, folder: Path) -> None:
        """Begin a search, or go on with the one in a folder.

        Raises:
            SettingsError: Optuna is not installed, or the folder holds another search.
            ArtifactError: The journal cannot be read.
        """
        try:
            import optuna
        except ImportError as error:
            raise SettingsError("a sweep needs the optuna package; run: pip install 'bmtpt[sweep]'") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna: Any = optuna
        own = {option: value_of(study, option) for option in ranges}
        self._own = own if all(each.holds(own[option]) for option, each in ranges.items()) else None
        self._space = {option: self._distribution(study, option, each) for option, each in ranges.items()}
        self._seed, self.metric = seed, metric
        self._direction = "minimize" if direction(metric) < 0 else "maximize"
        self._journal = self._opened(folder / JOURNAL)
        ways = {option: each.model_dump(mode="json", exclude_none=True) for option, each in ranges.items()}
        now = {"sweep": ways, "metric": metric, "sweep seed": seed, "method": study.methods[0]}
        now |= {name: getattr(study, name) for name in ("targets", "shots", "seeds")}
        self._claim(folder, json.loads(json.dumps(now)))

    def _distribution(self, study: StudySpec, option: str, values: Range) -> Any:
        found = self._optuna.distributions
        if values.bounds is None:
            return found.CategoricalDistribution(values.choice)
        low, high = values.bounds
        whole = isinstance(value_of(with_settings(study, {option: low}), option), int)
        kind = found.IntDistribution if whole else found.FloatDistribution
        return kind(low, high, log=values.log is not None)

    def _opened(self, path: Path) -> Any:
        """Return Optuna's study, after the end of the last whole line: a kill may have torn the line after it."""
        storages = self._optuna.storages
        if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
            path.write_bytes(content[: content.rfind(b"\n") + 1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the pruner is called experimental
            try:
                return self._optuna.create_study(
                    storage=storages.JournalStorage(storages.journal.JournalFileBackend(str(path))),
                    pruner=self._optuna.pruners.WilcoxonPruner(p_threshold=P_VALUE),
                    study_name="sweep",
                    direction=self._direction,
                    load_if_exists=True,
                )
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ArtifactError(f"{path} is not the journal of a sweep ({error}); choose another folder") from error

    def _claim(self, folder: Path, now: Mapping[str, Any]) -> None:
        begun = self._journal.user_attrs.get("begun")
        if begun is None:
            self._journal.set_user_attr("begun", now)
        for name, value in (begun or {}).items():
            if now.get(name) != value:
                raise SettingsError(
                    f"{folder} was begun with {name} = {value!r}, and this sweep has {now.get(name)!r}; "
                    "choose another folder"
                )

    def ended(self) -> list[Any]:
        """Return Optuna's records of the trials that have ended."""
        return [each for each in self._journal.get_trials(deepcopy=False) if each.state.is_finished()]

    def trials(self) -> list[SweepTrial]:
        """Return the trials that have ended."""
        return [
            SweepTrial(
                each.number,
                each.params,
                tuple(value for _, value in sorted(each.intermediate_values.items())),
                each.state.name == "COMPLETE",
                each.user_attrs.get("why", ""),
            )
            for each in self.ended()
        ]

    def next_trial(self) -> Any:
        """Return the trial that was not ended, or the next one."""
        trials = self._journal.get_trials(deepcopy=False)
        if all(each.state.is_finished() for each in trials):
            create, state = self._optuna.trial.create_trial, self._optuna.trial.TrialState.RUNNING
            self._journal.add_trial(create(state=state, params=self.drawn(), distributions=self._space))
        (begun,) = (each for each in self._journal.get_trials(deepcopy=False) if not each.state.is_finished())
        return self._optuna.trial.Trial(self._journal, begun._trial_id)

    def drawn(self) -> Settings:
        """Return what the next trial tries: first the study's own settings, if the ranges hold them."""
        ended = self.ended()
        if not ended and self._own:
            return self._own
        (seed,) = np.random.SeedSequence([self._seed, len(ended)]).generate_state(1)
        sampler = self._optuna.samplers.TPESampler(seed=int(seed))
        memory = self._optuna.create_study(direction=self._direction, sampler=sampler)
        memory.add_trials(ended)
        drawn = memory.ask(self._space).params
        return {option: _rounded(value, self._space[option]) for option, value in drawn.items()}

    def is_worse(self, trial: Any, scores: Sequence[float]) -> bool:
        """Note the scores of a trial's cells so far; tell whether it is worse than the best one on the same cells."""
        noted = len(self._journal.get_trials(deepcopy=False)[trial.number].intermediate_values)
        for cell in range(noted, len(scores)):
            trial.report(scores[cell], cell)
        return bool(trial.should_prune())

    def end(self, trial: Any, scores: Sequence[float], *, complete: bool, why: str = "") -> None:
        """Note how a trial ended, and say so."""
        if why:
            trial.set_user_attr("why", why)
        state = self._optuna.trial.TrialState
        value = fmean(scores) if complete else None
        self._journal.tell(trial, value, state=state.COMPLETE if complete else state.PRUNED)
        best = best_of(self.trials(), self.metric)
        what = f"{self.metric} {value:.4g}" if value is not None else why or f"stopped after {len(scores)} cells"
        shown = ", ".join(f"{option}={value}" for option, value in trial.params.items())
        after = f"; best: {best.score:.4g} (trial {best.number})" if best else ""
        logging.getLogger("bmtpt").info("trial %d (%s): %s%s", trial.number, shown, what, after)


def _rounded(value: Any, distribution: Any) -> Scalar:
    if not isinstance(value, float) or not hasattr(distribution, "low"):
        return value  # type: ignore[no-any-return]
    return float(min(max(float(f"{value:.{DIGITS}g}"), distribution.low), distribution.high))
