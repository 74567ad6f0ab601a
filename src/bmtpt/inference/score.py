"""Score prompts on a task's rows: rank classification over label words, or greedy generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.backbone import Backbone
from bmtpt.backbone.engine import Engine, Written
from bmtpt.errors import SettingsError, TaskError
from bmtpt.tasks import TaskSpec
from bmtpt.tasks.metrics import calibration, constant_answer, invalid_share, score
from bmtpt.tasks.tokens import Tokenised, as_written, tokenise_answer
from bmtpt.types import Example, ScorerKind, TokenBatch

ANSWER_ROOM = 4
"""Tokens that generation may write beyond the longest training answer, so that a wrong answer can show itself."""

ANSWER_TOKENS = 32
"""Fewest tokens that a free answer may have: a few training answers do not show how long others are."""


@dataclass(frozen=True)
class Scorer:
    """How a task's answers are read off the model.

    Attributes:
        task: What the task is.
        kind: `rank` takes the likeliest label word; `generate` decodes greedily.
        answers: Token ids of each label word, end of sequence included; empty for free answers.
        words: What each label word reads as the tokenizer writes it, and the word.
        answer_tokens: Most tokens of a generated answer.
    """

    task: TaskSpec
    kind: ScorerKind
    answers: tuple[Tensor, ...]
    words: Mapping[str, str]
    answer_tokens: int


InstancePrompts = Callable[[Sequence[Tensor]], Float[Tensor, "M N P D"]]
"""Makes the prompts of some texts from their token ids, for methods whose prompt depends on the text (ATTEMPT)."""

Prompts = Float[Tensor, "M P D"] | InstancePrompts
"""M prompts for every text, or a function that makes M prompts for each text."""

BLOCK = 256
"""Texts whose own prompts are made and held at once."""


class PromptScore(NamedTuple):
    """A prompt on held-back rows: the task's primary metric (0–100) and the mean NLL of the right answers."""

    score: float
    nll: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A prompt (or an ensemble of prompts) on a test set.

    Attributes:
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
    """

    metrics: dict[str, float]
    constant_answer: float | None
    invalid_share: float
    calibration: dict[str, float]
    predictions: list[str]
    probabilities: Float[Tensor, "N C"] | None
    texts_cut: int
    answers_cut: int = 0
    unwritable: Mapping[str, str] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float]:
        """Metrics, calibration and, if it is defined, the primary metric of the best constant answer."""
        constant = {} if self.constant_answer is None else {"constant answer": self.constant_answer}
        return {**self.metrics, **self.calibration, **constant}

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in self.figures.items())
        return f"Evaluation({shown}; {len(self.predictions):,} rows)"

    def _repr_html_(self) -> str:
        import pandas as pd

        table = pd.Series(self.figures, name="value").map("{:.4g}".format).to_frame()
        return f"<p>{len(self.predictions):,} rows</p>{table.to_html()}"


def metric_names(task: TaskSpec) -> set[str]:
    """Return the names of all figures that an `Evaluation` of the task holds with its usual scorer."""
    return {*task.metrics, *(("ece", "nll") if task.fixed_words else ())}


def answer_limit(task: TaskSpec, train: TokenBatch) -> int:
    """Return the most tokens of a generated answer, given the training answers."""
    longest = max(train.target_tokens()) + ANSWER_ROOM
    return longest if task.fixed_words or task.kind == "number" else max(longest, ANSWER_TOKENS)


def make_scorer(
    backbone: Backbone, task: TaskSpec, kind: ScorerKind | None = None, answer_tokens: int | None = None
) -> Scorer:
    """Choose rank classification where the task has label words, else generation.

    Args:
        answer_tokens: Most tokens of a generated answer (`answer_limit`); all label words fit in any case. None allows
            `ANSWER_TOKENS`, or what label words need.

    Raises:
        SettingsError: Rank classification is asked of a task without label words.
        TaskError: The backbone's tokenizer writes two label words as the same tokens.
    """
    if kind == "rank" and not task.fixed_words:
        raise SettingsError(f"task {task.name} has no fixed label words to rank; use the scorer 'generate'")
    if not task.fixed_words:
        return Scorer(task, "generate", (), {}, answer_tokens or ANSWER_TOKENS)
    answers = {word: tokenise_answer(backbone, word) for word in task.label_words}
    words: dict[tuple[int, ...], str] = {}
    for word, ids in answers.items():
        other = words.setdefault(tuple(ids.tolist()), word)
        if other != word:  # the model could not tell them apart: every answer would be the first of them
            raise TaskError(
                f"task {task.name}: the tokenizer of backbone '{backbone.name}' writes the label words '{other}' and "
                f"'{word}' as the same tokens, so no answer could tell them apart; choose other words"
            )
    written = as_written(backbone, answers)
    shown = {text: word for word, text in written.items()} | {word: word for word in answers if word not in written}
    longest = max(map(len, answers.values())) + ANSWER_ROOM
    return Scorer(task, kind or "rank", tuple(answers.values()), shown, max(longest, answer_tokens or 0))


def score_prompts(engine: Engine, prompts: Prompts, rows: Tokenised, scorer: Scorer) -> list[PromptScore]:
    """Score each of R prompts on its own, as validation does."""
    if scorer.kind == "rank":
        likelihoods = _answer_log_likelihoods(engine, prompts, rows.batch.inputs, scorer.answers)  # [R, N, C]
        labels = _labels(rows).to(likelihoods.device)
        nll = -likelihoods.gather(2, labels.expand(len(likelihoods), -1)[..., None]).mean(dim=(1, 2))
        answers = [_words(scorer.task, each) for each in likelihoods]
    else:
        blocks = _blocks(prompts, rows.batch.inputs)
        losses = [engine.losses(each, rows.rows(block)) for each, block in blocks]
        nll = torch.cat(losses, dim=1).mean(dim=1)
        answers = _generate(engine, prompts, rows, scorer)
    references = _references(rows, scorer)
    values = [score(scorer.task, each, references)[scorer.task.primary] for each in answers]
    return [PromptScore(value, loss) for value, loss in zip(values, nll.tolist(), strict=True)]


def evaluate_prompts(engine: Engine, prompts: Prompts, rows: Tokenised, scorer: Scorer) -> Evaluation:
    """Evaluate one prompt a text, or an ensemble whose label *probabilities* (never logits) are averaged."""
    probabilities, reliability, cut = None, {}, 0
    if scorer.answers:
        probabilities = label_probabilities(engine, prompts, rows.batch.inputs, scorer.answers)
        found = calibration(probabilities.double().numpy(), _labels(rows).tolist())
        # `accuracy` is among the metrics already where it means something for the task.
        reliability = {"ece": 100 * found["ece"], "nll": found["nll"]}
    if scorer.kind == "rank":
        assert probabilities is not None
        predictions = _words(scorer.task, probabilities)
    elif isinstance(prompts, Tensor) and len(prompts) > 1:
        raise SettingsError(f"an ensemble of {len(prompts)} prompts can only rank label words; use the scorer 'rank'")
    else:
        (predictions,) = _generate(engine, prompts, rows, scorer)
        cut = sum(isinstance(text, Written) and not text.ended for text in predictions)
    references = _references(rows, scorer)
    return Evaluation(
        metrics=score(scorer.task, predictions, references),
        constant_answer=constant_answer(scorer.task, references),
        invalid_share=invalid_share(scorer.task, predictions),
        calibration=reliability,
        predictions=predictions,
        probabilities=probabilities,
        texts_cut=rows.cut,
        answers_cut=cut,
        unwritable={} if scorer.answers else rows.written,
    )


def label_probabilities(
    engine: Engine, prompts: Prompts, inputs: Sequence[Tensor], answers: Sequence[Tensor]
) -> Float[Tensor, "N C"]:
    """Return p(label word | text), normalised over the label words and averaged over the prompts, on the CPU."""
    likelihoods = _answer_log_likelihoods(engine, prompts, inputs, answers)  # [M, N, C]
    return torch.softmax(likelihoods, dim=2).mean(dim=0).cpu()


def _blocks(prompts: Prompts, inputs: Sequence[Tensor]) -> Iterator[tuple[Float[Tensor, "M *N P D"], range]]:
    """Yield prompts and which texts they go with: all at once where every text has the same."""
    if isinstance(prompts, Tensor):
        yield prompts, range(len(inputs))
        return
    for start in range(0, len(inputs), BLOCK):
        rows = range(start, min(start + BLOCK, len(inputs)))
        yield prompts([inputs[i] for i in rows]), rows


def _answer_log_likelihoods(
    engine: Engine, prompts: Prompts, inputs: Sequence[Tensor], answers: Sequence[Tensor]
) -> Float[Tensor, "M N C"]:
    blocks = _blocks(prompts, inputs)
    found = [engine.answer_log_likelihoods(each, [inputs[i] for i in rows], answers) for each, rows in blocks]
    return torch.cat(found, dim=1)


def _generate(engine: Engine, prompts: Prompts, rows: Tokenised, scorer: Scorer) -> list[list[str]]:
    """Return M lists of N texts; a label word is named as the task names it, however the tokenizer writes it."""
    inputs, most = rows.batch.inputs, scorer.answer_tokens
    found = [engine.generate(each, [inputs[i] for i in block], most) for each, block in _blocks(prompts, inputs)]
    return [[scorer.words.get(text, text) for texts in each for text in texts] for each in zip(*found, strict=True)]


def _references(rows: Tokenised, scorer: Scorer) -> Sequence[Example]:
    """Return the examples with their answers as the tokenizer writes them, as a generated answer is written, too.

    An answer of which nothing can be written stays as it is: an empty output is not right.
    """
    if scorer.answers or not rows.written:
        return rows.examples

    def shown(answer: str) -> str:
        return rows.written.get(answer, answer) or answer

    return [
        replace(example, target=shown(example.target), references=tuple(map(shown, example.references)))
        for example in rows.examples
    ]


def _words(task: TaskSpec, scores: Float[Tensor, "N C"]) -> list[str]:
    return [task.label_words[i] for i in scores.argmax(dim=1).tolist()]


def _labels(rows: Tokenised) -> Tensor:
    return torch.tensor([example.label for example in rows.examples])
