"""Answer a task's texts with an adapted prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, overload

from bmtpt.api.given import Artifact
from bmtpt.api.task import AnyTask, as_data
from bmtpt.artifacts import saved as artifacts
from bmtpt.artifacts.card import PromptCard
from bmtpt.backbone import Backbone
from bmtpt.errors import SettingsError, nearest
from bmtpt.inference.evaluation import Evaluation
from bmtpt.inference.predict import predict
from bmtpt.inference.rows import examples_of, is_one
from bmtpt.stages.evaluate import evaluate
from bmtpt.stages.target import read_again
from bmtpt.tasks import TaskData, TaskSpec, saved_task
from bmtpt.types import Normalise, ScorerKind

if TYPE_CHECKING:
    import pandas as pd

Text = str | Mapping[str, Any]
"""A text, or a row: a dict with the columns that the task's text names."""


class Prompt(Artifact[artifacts.Prompt]):
    """A prompt (or an ensemble of prompts) for one task; it answers texts with the frozen backbone."""

    _kind = artifacts.Prompt
    _wanted = "a prompt must come from Posterior.adapt or Prompt.load"

    def __init__(
        self, saved: artifacts.Prompt, backbone: Backbone | str | Path | None = None, data: TaskData | None = None
    ) -> None:
        super().__init__(saved, backbone)
        self._data = data
        self.task: TaskSpec = saved_task(self.card.task_definition)

    @property
    def card(self) -> PromptCard:
        """Where the prompt comes from: backbone, task, settings, how it was selected."""
        return self._saved.card

    @property
    def labels(self) -> tuple[str, ...]:
        """Label words in order; empty for free answers and numbers."""
        return self.task.label_words

    @overload
    def predict(self, texts: Text, *, normalise: Normalise | None = None) -> str: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, texts: Sequence[Text], *, normalise: Normalise | None = None) -> list[str]: ...

    def predict(self, texts: Any, *, normalise: Normalise | None = None) -> str | list[str]:
        """Return the answer to a text, or the answers to several: label words, or the text the model writes.

        Args:
            texts: One text or row (a dict with the task's columns), or several: a list, a DataFrame, a Series.
            normalise: How label words of different length are made comparable: "none", "length" or "pmi"
                (docs/method.md); None takes what the prompt was selected with.

        Raises:
            DataError: A row lacks a column, or the task needs several columns and gets a text.
            SettingsError: There is no such way, or it does not fit the task.
            TypeError: It is of another kind.
        """
        examples = examples_of(texts, self.task)
        found = predict(self.backbone, self._saved, examples, _known("way to normalise", normalise, Normalise))
        answers = [str(answer["label"]) for answer in found]
        return answers[0] if is_one(texts, self.task) else answers

    def predict_proba(
        self, texts: Text | Sequence[Text], *, normalise: Normalise | None = None
    ) -> pd.Series[float] | pd.DataFrame:
        """Return the probability of each label word: a DataFrame [N, C] with the words as columns, or a Series for one.

        They are softmax shares over the label words, averaged over an ensemble, and tend to be overconfident.

        Raises:
            SettingsError: The task has free answers or numbers, which have no probabilities.
            DataError, TypeError: As `predict`.
        """
        import pandas as pd

        if not self.task.fixed_words:
            raise SettingsError(f"task '{self.task.name}' has no fixed labels and so no probabilities; use predict")
        examples = examples_of(texts, self.task)
        answers = predict(self.backbone, self._saved, examples, _known("way to normalise", normalise, Normalise))
        table = pd.DataFrame([answer["all"] for answer in answers], columns=list(self.labels), dtype=float)
        return table.iloc[0].rename(None) if is_one(texts, self.task) else table

    def evaluate(
        self,
        task: AnyTask | None = None,
        *,
        part: str = "test",
        scorer: ScorerKind | None = None,
        normalise: Normalise | None = None,
    ) -> Evaluation:
        """Score the prompt on a task's rows.

        Args:
            task: Whose rows; None takes the task that the prompt was adapted to.
            part: "test", "select" or "train".
            scorer: "rank", "generate", or None for the task's usual one.
            normalise: As for `predict`.

        Raises:
            DataError: The part has no rows, or the task's rows were in memory when it was saved.
            SettingsError: The part, the scorer or the way to normalise does not exist or does not fit the task.
            TypeError: `task` is of another kind.
        """
        data = self._data if task is None else None
        data = data or as_data(self.task if task is None else task, self.backbone)
        if part not in list(data.parts):
            raise SettingsError(f"there is no part {part!r}; {nearest(str(part), data.parts)}")
        return evaluate(
            self.backbone,
            self._saved,
            data.parts[part],
            task=data.task,
            scorer=_known("scorer", scorer, ScorerKind),
            normalise=_known("way to normalise", normalise, Normalise),
        )

    def refit(self, task: AnyTask) -> Prompt:
        """Return the prompt with its readout fitted to a task's training rows; the prompt itself stays as it is.

        A few passes over the rows, where training takes hundreds: for labels that came in later.

        Args:
            task: The task that the prompt was adapted to, with all the rows that are to count.

        Raises:
            SettingsError: The prompt has no readout, or the task has other label words.
            DataError: There are no rows, or fewer than the `shots` the prompt was adapted with.
        """
        data = as_data(task, self.backbone)
        if not self._saved.readouts:
            raise SettingsError("the prompt has no readout to fit; adapt the task again")
        if data.task.label_words != self.labels:
            raise SettingsError(f"the prompt's labels are {', '.join(self.labels)}; the task must have the same")
        return Prompt(read_again(self.backbone, self._saved, data, {}), self._backbone, data)

    def __repr__(self) -> str:
        M, P, D = self._saved.prompts.shape
        kind = f"ensemble of {M} prompts" if M > 1 else "prompt"
        answer = "/".join(self.labels) or "free answers"
        return (
            f"Prompt({kind} of {P} × {D} for task {self.task.name!r} → {answer}; "
            f"method {self.card.method}; backbone {self.card.backbone.name!r})"
        )


def _known(what: str, value: Any, vocabulary: Any) -> Any:
    """Return a value that is None or one of a `Literal`; raise a SettingsError for others."""
    if value not in [None, *get_args(vocabulary)]:
        raise SettingsError(f"there is no {what} {value!r}; {nearest(str(value), get_args(vocabulary))}")
    return value
