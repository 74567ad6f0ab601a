"""What a prompt's answers to a test set are worth: figures, rows and the confusion matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from bmtpt.tasks import TaskSpec
from bmtpt.tasks.metrics import reliability
from bmtpt.types import Example

if TYPE_CHECKING:
    import pandas as pd

OTHER = "no label"
"""Column of a confusion matrix for answers that are no label word."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A prompt (or an ensemble of prompts, or a classifier) on a test set.

    Attributes:
        task: What the rows are.
        examples: N rows.
        metrics: Every metric of the task, 0–100.
        constant_answer: The primary metric of the best constant answer, or None if undefined.
        invalid_share: Share (0–100) of outputs that are not an answer of the task.
        calibration: `ece` (0–100) and `nll` (nats) of the label probabilities; empty for free answers.
        predictions: N answers.
        probabilities: Of the label words, [N, C]; None for free answers.
        texts_cut: How many texts were cut to the length limit.
        answers_cut: How many generated answers were cut to the limit on their tokens.
        unwritable: Reference answers that the tokenizer cannot write, and what the tokens say instead. Generated
            answers are compared with the latter.
        seconds: Wall time of answering them all, tokenising included; None if it was not measured.
    """

    task: TaskSpec
    examples: tuple[Example, ...]
    metrics: dict[str, float]
    constant_answer: float | None
    invalid_share: float
    calibration: dict[str, float]
    predictions: list[str]
    probabilities: Float[Tensor, "N C"] | None
    texts_cut: int = 0
    answers_cut: int = 0
    unwritable: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def figures(self) -> dict[str, float]:
        """Metrics, calibration and, if it is defined, the primary metric of the best constant answer."""
        constant = {} if self.constant_answer is None else {"constant answer": self.constant_answer}
        return {**self.metrics, **self.calibration, **constant}

    @property
    def reliability(self) -> list[tuple[int, int, float, float]]:
        """The calibration curve: number (from 0), rows, mean confidence and accuracy (0 to 1) of each bin with rows.

        Empty for free answers.
        """
        labels = [example.label for example in self.examples if example.label is not None]
        return [] if self.probabilities is None else reliability(self.probabilities.double().numpy(), labels)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each row with its answer, as `bmtpt.inference.answer_file` writes them.

        They are ``text``, ``target``, ``references`` of free answers, ``prediction`` and, for label words,
        ``probability`` and ``p(WORD)``.
        """
        shares = [None] * len(self.examples) if self.probabilities is None else self.probabilities.tolist()
        for example, prediction, row in zip(self.examples, self.predictions, shares, strict=True):
            found: dict[str, Any] = {"text": example.text, "target": example.target}
            if self.task.kind == "answers":
                found["references"] = list(example.references)
            found["prediction"] = str(prediction)
            if row is not None:
                words = dict(zip(self.task.label_words, row, strict=True))
                found |= {"probability": words.get(prediction), **{f"p({word})": p for word, p in words.items()}}
            yield found

    def confusion(self) -> pd.DataFrame | None:
        """Return how often each label (a row) was answered with each word (a column); None for free answers.

        Answers that are no label word are counted in a last column, ``no label``, if there are any.
        """
        import pandas as pd

        if not self.task.fixed_words:
            return None
        words = list(self.task.label_words)
        found = [text.strip() if text.strip() in words else OTHER for text in self.predictions]
        counts = pd.crosstab(pd.Series([example.target for example in self.examples]), pd.Series(found))
        columns = words + ([OTHER] if OTHER in found else [])
        table = counts.reindex(index=words, columns=columns, fill_value=0)
        return table.rename_axis(index="label", columns="prediction")

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in self.figures.items())
        return f"Evaluation({shown}; {len(self.predictions):,} rows)"

    def _repr_html_(self) -> str:
        import pandas as pd

        table = pd.Series(self.figures, name="value").map("{:.4g}".format).to_frame()
        return f"<p>{len(self.predictions):,} rows</p>{table.to_html()}"
