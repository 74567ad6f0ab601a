"""Score prompts on a task's rows: rank classification over label words, or greedy generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bmtpt.backbone import Backbone
from bmtpt.backbone.engine import Engine, Readings, Written
from bmtpt.errors import SettingsError, TaskError
from bmtpt.inference.evaluation import Evaluation
from bmtpt.posterior.readout import Readout, read_out
from bmtpt.tasks import TaskSpec
from bmtpt.tasks.metrics import calibration, constant_answer, invalid_share, score
from bmtpt.tasks.spec import placeholders
from bmtpt.tasks.text import render
from bmtpt.tasks.tokens import Tokenised, as_written, tokenise_answer, tokenise_text
from bmtpt.types import Example, Normalise, ScorerKind, TokenBatch

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
        normalise: How the likelihoods of label words are made comparable (`normalised`).
        domain: Token ids of the task's text without a row, which `pmi` needs.
    """

    task: TaskSpec
    kind: ScorerKind
    answers: tuple[Tensor, ...]
    words: Mapping[str, str]
    answer_tokens: int
    normalise: Normalise = "none"
    domain: Int[Tensor, " L"] | None = None


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


def metric_names(task: TaskSpec) -> set[str]:
    """Return the names of all figures that an `Evaluation` of the task holds with its usual scorer."""
    return {*task.metrics, *(("ece", "nll") if task.fixed_words else ())}


def answer_limit(task: TaskSpec, train: TokenBatch) -> int:
    """Return the most tokens of a generated answer, given the training answers."""
    longest = max(train.target_tokens()) + ANSWER_ROOM
    return longest if task.fixed_words or task.kind == "number" else max(longest, ANSWER_TOKENS)


def make_scorer(
    backbone: Backbone,
    task: TaskSpec,
    kind: ScorerKind | None = None,
    *,
    answer_tokens: int | None = None,
    normalise: Normalise = "none",
) -> Scorer:
    """Choose rank classification where the task has label words, else generation.

    Args:
        answer_tokens: Most tokens of a generated answer (`answer_limit`); all label words fit in any case. None allows
            `ANSWER_TOKENS`, or what label words need.
        normalise: How the likelihoods of label words are made comparable (`normalised`).

    Raises:
        SettingsError: Rank classification is asked of a task without label words, or its words are to be normalised; or
            `pmi` is asked of a decoder-only model whose task has no text but the row's.
        TaskError: The backbone's tokenizer writes two label words as the same tokens.
    """
    if kind == "rank" and not task.fixed_words:
        raise SettingsError(f"task {task.name} has no fixed label words to rank; use the scorer 'generate'")
    if normalise != "none" and not task.fixed_words:
        raise SettingsError(f"task {task.name} has no fixed label words; leave normalise '{normalise}' out")
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
    limit = max(longest, answer_tokens or 0)
    domain = _domain(backbone, task) if normalise == "pmi" else None
    return Scorer(task, kind or "rank", tuple(answers.values()), shown, limit, normalise, domain)


def _domain(backbone: Backbone, task: TaskSpec) -> Int[Tensor, " L"]:
    """Return the token ids of the task's text with every column empty: what is left says the task and no row."""
    before, context, after = render(task, dict.fromkeys(placeholders(task.text), ""))
    ids, _ = tokenise_text(backbone, Example(before, context, after, target=""), task.max_length)
    if not len(ids):
        raise SettingsError(
            f"task {task.name}: normalise 'pmi' needs a text around the columns ('{task.text}' has none); add one, or "
            "take 'length' or 'none'"
        )
    return ids


def chosen_way(asked: Normalise | None, settings: Mapping[str, Any], readouts: Sequence[Readout]) -> Normalise:
    """Return how to normalise: as asked, or as a prompt was selected (its card's settings).

    Raises:
        SettingsError: The prompt has a readout, which was fitted to scores that were normalised in another way.
    """
    own: Normalise = settings.get("normalise", "none")
    if readouts and asked not in (None, own):
        raise SettingsError(
            f"the prompt's readout or temperature was fitted with normalise '{own}' and cannot be read with '{asked}'; "
            "leave it out"
        )
    return asked or own


class Reader(NamedTuple):
    """How M prompts' readings become scores of label words.

    Attributes:
        scorer: How answers are read off the model.
        domain: log p(word_c | [θ_m; domain]); only `pmi` needs it.
        readouts: One per prompt, or none.
    """

    scorer: Scorer
    domain: Float[Tensor, "M 1 C"] | None = None
    readouts: Sequence[Readout] = ()

    def scores(self, readings: Readings) -> Float[Tensor, "M N C"]:
        """Return scores whose softmax over the words are their probabilities."""
        scores = normalised(readings.log_likelihoods, self.scorer, self.domain)
        return read_out(self.readouts, scores, readings.states)


def make_reader(engine: Engine, prompts: Prompts, scorer: Scorer, readouts: Sequence[Readout] = ()) -> Reader:
    """Return how these prompts' readings become scores."""
    domain = None
    if scorer.domain is not None:
        domain = read(engine, prompts, [scorer.domain], scorer).log_likelihoods
    return Reader(scorer, domain, readouts)


def normalised(
    likelihoods: Float[Tensor, "M N C"], scorer: Scorer, domain: Float[Tensor, "M 1 C"] | None
) -> Float[Tensor, "M N C"]:
    """Return scores of label words whose softmax are their probabilities, given ℓ_c = log p(word_c | [θ; text]).

    `none`: ℓ_c. `length`: ℓ_c / T_c, per token, end of sequence included. `pmi`: ℓ_c − log p(word_c | [θ; domain]), the
    pointwise mutual information of word and text (Holtzman et al. 2021), where the domain is the text without a row.

    Args:
        domain: log p(word_c | [θ_m; domain]); only `pmi` needs it.
    """
    if scorer.normalise == "length":
        return likelihoods / torch.tensor([len(ids) for ids in scorer.answers]).to(likelihoods)
    if scorer.normalise == "pmi":
        assert domain is not None
        return likelihoods - domain
    return likelihoods


def score_prompts(
    engine: Engine, prompts: Prompts, rows: Tokenised, scorer: Scorer, readouts: Sequence[Readout] = ()
) -> list[PromptScore]:
    """Score each of R prompts on its own, as validation does; with a readout, NLL is that of the label's share."""
    if scorer.kind == "rank":
        readings = read(engine, prompts, rows.batch.inputs, scorer)
        scores = make_reader(engine, prompts, scorer, readouts).scores(readings)  # [R, N, C]
        judged = scores.log_softmax(dim=2) if readouts else readings.log_likelihoods
        labels = labels_of(rows).to(judged.device)
        nll = -judged.gather(2, labels.expand(len(judged), -1)[..., None]).mean(dim=(1, 2))
        answers = [_words(scorer.task, each) for each in scores]
    else:
        blocks = _blocks(prompts, rows.batch.inputs)
        losses = [engine.losses(each, rows.rows(block)) for each, block in blocks]
        nll = torch.cat(losses, dim=1).mean(dim=1)
        answers = _generate(engine, prompts, rows, scorer)
    references = _references(rows, scorer)
    values = [score(scorer.task, each, references)[scorer.task.primary] for each in answers]
    return [PromptScore(value, loss) for value, loss in zip(values, nll.tolist(), strict=True)]


def evaluate_prompts(
    engine: Engine, prompts: Prompts, rows: Tokenised, scorer: Scorer, readouts: Sequence[Readout] = ()
) -> Evaluation:
    """Evaluate one prompt a text, or an ensemble whose label *probabilities* (never logits) are averaged."""
    probabilities, cut = None, 0
    if scorer.answers:
        reader = make_reader(engine, prompts, scorer, readouts)
        probabilities = label_probabilities(engine, prompts, rows.batch.inputs, reader)
    if scorer.kind == "rank":
        assert probabilities is not None
        predictions = _words(scorer.task, probabilities)
    elif isinstance(prompts, Tensor) and len(prompts) > 1:
        raise SettingsError(f"an ensemble of {len(prompts)} prompts can only rank label words; use the scorer 'rank'")
    else:
        (predictions,) = _generate(engine, prompts, rows, scorer)
        cut = sum(isinstance(text, Written) and not text.ended for text in predictions)
    found = evaluated(scorer.task, rows.examples, predictions, probabilities, _references(rows, scorer))
    return replace(found, texts_cut=rows.cut, answers_cut=cut, unwritable={} if scorer.answers else rows.written)


def evaluate_classifier(task: TaskSpec, examples: Sequence[Example], probabilities: Float[Tensor, "N C"]) -> Evaluation:
    """Evaluate the likeliest label word of each row."""
    return evaluated(task, examples, _words(task, probabilities), probabilities, examples)


def evaluated(
    task: TaskSpec,
    examples: Sequence[Example],
    predictions: list[str],
    probabilities: Float[Tensor, "N C"] | None,
    references: Sequence[Example],
) -> Evaluation:
    """Return what predictions are worth; ``references`` are the examples with their answers as they can be written."""
    reliability = {}
    if probabilities is not None:
        labels = [example.label for example in examples if example.label is not None]
        found = calibration(probabilities.double().numpy(), labels)
        # `accuracy` is among the metrics already where it means something for the task.
        reliability = {"ece": 100 * found["ece"], "nll": found["nll"]}
    return Evaluation(
        task=task,
        examples=tuple(examples),
        metrics=score(task, predictions, references),
        constant_answer=constant_answer(task, references),
        invalid_share=invalid_share(task, predictions),
        calibration=reliability,
        predictions=predictions,
        probabilities=probabilities,
    )


def label_probabilities(
    engine: Engine, prompts: Prompts, inputs: Sequence[Tensor], reader: Reader
) -> Float[Tensor, "N C"]:
    """Return p(label word | text): softmax shares over the label words, averaged over the prompts, on the CPU."""
    return reader.scores(read(engine, prompts, inputs, reader.scorer)).softmax(dim=2).mean(dim=0).float().cpu()


def _blocks(prompts: Prompts, inputs: Sequence[Tensor]) -> Iterator[tuple[Float[Tensor, "M *N P D"], range]]:
    """Yield prompts and which texts they go with: all at once where every text has the same."""
    if isinstance(prompts, Tensor):
        yield prompts, range(len(inputs))
        return
    for start in range(0, len(inputs), BLOCK):
        rows = range(start, min(start + BLOCK, len(inputs)))
        yield prompts([inputs[i] for i in rows]), rows


def read(engine: Engine, prompts: Prompts, inputs: Sequence[Tensor], scorer: Scorer) -> Readings:
    """Return what the prompts make of texts: the log-likelihoods of the label words, and the pooled states."""
    blocks = _blocks(prompts, inputs)
    found = [engine.readings(each, [inputs[i] for i in rows], scorer.answers) for each, rows in blocks]
    return Readings(*(torch.cat(parts, dim=1) for parts in zip(*found, strict=True)))


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


def labels_of(rows: Tokenised) -> Int[Tensor, " N"]:
    """Return the label of each row."""
    return torch.tensor([example.label for example in rows.examples], dtype=torch.int64)  # of no rows, too
