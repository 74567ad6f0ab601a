"""A classifier of texts for scikit-learn: in a Pipeline, in GridSearchCV, in cross_val_score.

    from bmtpt.sklearn import SoftPromptClassifier

    model = SoftPromptClassifier("offline", posterior="posterior", steps=60).fit(texts, teams)
    model.predict_proba(["Where is my money?"])

What is trained is a prompt and its readout (docs/method.md); the frozen model is shared by all copies of an estimator
and is in none of its pickles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from bmtpt.api.given import as_backbone, as_settings
from bmtpt.api.posterior import Posterior
from bmtpt.api.prompt import Prompt
from bmtpt.api.task import Task
from bmtpt.backbone import Backbone
from bmtpt.errors import DataError, SettingsError, described
from bmtpt.methods.registry import get_method
from bmtpt.settings import AdaptSettings
from bmtpt.stages.target import fit_method
from bmtpt.tasks.spec import placeholders

LABEL = "label"
"""The column of the answers in the rows of an estimator's task."""

Row = dict[str, Any]


class SoftPromptClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifies texts with a soft prompt of a frozen language model.

    Args:
        backbone: A `bmtpt.Backbone`, or the name or folder of one.
        posterior: Learned from other tasks (`bmtpt.learn`): a `bmtpt.Posterior` or its folder; the prompt is adapted
            from it. None trains a prompt from a draw of the vocabulary.
        text: Template with a {placeholder} for each text, or for the columns of a row where X is a table.
        words: The label words that stand for the classes, by class. None takes each class's own name.
        shots, steps, learning_rate, prior_std, readout, calibrate: Settings of the target stage
            (`bmtpt.AdaptSettings`); None takes the default.
        settings: Further ones, by name.
        prompt_length: Rows of a prompt without a posterior, whose particles have their own.
        random_state: Of the start, the draws and the split that selects.

    Attributes:
        classes_: The classes, sorted.
        prompt_: What `fit` has trained: a `bmtpt.Prompt`, which can be saved, evaluated and served.
    """

    def __init__(
        self,
        backbone: Backbone | str | Path = "offline",
        posterior: Posterior | str | Path | None = None,
        *,
        text: str = "{text}",
        words: Mapping[Any, str] | None = None,
        shots: int | None = None,
        steps: int | None = None,
        learning_rate: float | None = None,
        prior_std: float | str | None = None,
        readout: str | None = None,
        calibrate: str | None = None,
        settings: Mapping[str, Any] | None = None,
        prompt_length: int = 20,
        random_state: Any = None,
    ) -> None:
        self.backbone, self.posterior = backbone, posterior
        self.text, self.words = text, words
        self.shots, self.steps, self.learning_rate, self.prior_std = shots, steps, learning_rate, prior_std
        self.readout, self.calibrate = readout, calibrate
        self.settings, self.prompt_length, self.random_state = settings, prompt_length, random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Train a prompt, and fit its readout.

        Args:
            X: Texts (a list, an array or a Series of str), or a table with the columns of `text`.
            y: Their classes.

        Raises:
            DataError: A text or a class is wrong; the sentence says which.
            SettingsError: A setting does not exist, or has a wrong value.
            BackboneError: The posterior was learned with another backbone.
            ValueError: X and y differ in length, or y holds no classes.
        """
        rows, labels = self._rows(X), _classes_of(y)
        check_consistent_length(rows, labels)
        self.classes_ = np.unique(labels)
        self._seen: list[Row] = self._labelled(rows, labels)
        task, settings = self._task(), self._settings()
        if self.posterior is not None:
            self.prompt_ = self._posterior().adapt(task, settings, progress=False)
        else:
            backbone = as_backbone(self.backbone)
            data, length = task.data(backbone), self.prompt_length
            found = fit_method(get_method("pt"), backbone, [data], settings, prompt_length=length)[task.name]
            self.prompt_ = Prompt(found, backbone, data)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Fit the readout anew to all rows so far and these; the prompt stays as it is. The first call is `fit`.

        Args:
            classes: Every class to come; given, if at all, with the first rows, which must hold each of them.

        Raises:
            DataError: A class is new, so that a prompt has to be trained for it: call `fit`.
            SettingsError: There is no readout to fit.
            ValueError: As for `fit`.
        """
        if not hasattr(self, "prompt_"):
            lost = set([] if classes is None else np.asarray(classes).tolist()) - set(np.asarray(y).tolist())
            if lost:
                raise DataError(f"class {min(lost, key=str)!r} has no row; the first rows must hold every class")
            return self.fit(X, y)
        rows, labels = self._rows(X), _classes_of(y)
        check_consistent_length(rows, labels)
        if new := sorted(set(labels.tolist()) - set(self.classes_.tolist()), key=str):
            raise DataError(f"class {new[0]!r} is new, and the prompt was trained without it; call fit with all rows")
        self._seen = [*self._seen, *self._labelled(rows, labels)]
        self.prompt_ = self.prompt_.refit(self._task())
        return self

    def predict(self, X: Any) -> Any:
        """Return the likeliest class of each text."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def predict_proba(self, X: Any) -> Any:
        """Return the probability of each class, float64 [N, C], in the order of `classes_`."""
        check_is_fitted(self, "prompt_")
        rows = self._rows(X)
        if not rows:
            return np.empty((0, len(self.classes_)))
        return self.prompt_.predict_proba(rows).to_numpy()

    def _rows(self, X: Any) -> list[Row]:
        """Return a row for each text, with the columns of the template."""
        if hasattr(X, "columns"):
            return [{str(name): value for name, value in row.items()} for row in X.to_dict("records")]
        if isinstance(X, (str, bytes, Mapping)) or not hasattr(X, "__len__") or getattr(X, "ndim", 1) != 1:
            raise DataError(f"X is {described(X)}; give a list, an array or a Series of texts, or a table")
        columns = placeholders(self.text)
        rows: list[Row] = []
        for number, each in enumerate(X):
            if isinstance(each, str) and len(columns) == 1:
                rows.append({columns[0]: str(each)})
            elif isinstance(each, Mapping):
                rows.append(dict(each))
            else:
                wanted = "a text" if len(columns) == 1 else f"a row with the columns {', '.join(columns)}"
                raise DataError(f"X[{number}] is {described(each)}; give {wanted}")
        return rows

    def _labelled(self, rows: Sequence[Row], labels: Any) -> list[Row]:
        words = dict(zip(self.classes_.tolist(), self._words(), strict=True))
        return [{**row, LABEL: words[label]} for row, label in zip(rows, labels.tolist(), strict=True)]

    def _words(self) -> list[str]:
        if self.words is None:
            return [str(each) for each in self.classes_.tolist()]
        if lost := [each for each in self.classes_.tolist() if each not in self.words]:
            raise SettingsError(f"words has none for class {lost[0]!r}; give one for each class")
        return [self.words[each] for each in self.classes_.tolist()]

    def _task(self) -> Task:
        """Return the task of all rows so far; all of them train."""
        return Task(self._seen, self.text, label=LABEL, labels=self._words(), name="task", split="none")

    def _settings(self) -> AdaptSettings:
        own = ("shots", "steps", "learning_rate", "prior_std", "readout", "calibrate")
        given = {name: value for name in own if (value := getattr(self, name)) is not None}
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        return as_settings(AdaptSettings, {"seed": seed, **(self.settings or {})}, given)

    def _posterior(self) -> Posterior:
        if isinstance(self.posterior, Posterior):
            return self.posterior
        assert self.posterior is not None
        return Posterior.load(self.posterior, as_backbone(self.backbone))

    def __sklearn_tags__(self) -> Any:
        """Say that X is one-dimensional and holds texts."""
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array, tags.input_tags.two_d_array, tags.input_tags.string = True, False, True
        tags.no_validation = True
        return tags


def _classes_of(y: Any) -> Any:
    labels = column_or_1d(y)
    check_classification_targets(labels)
    return labels
