"""Scores from 0 to 100 of predicted texts, on scikit-learn and SciPy.

Blanks around a prediction are stripped. A prediction that is not a label of the task counts as wrong in every
metric: where a metric needs a label it becomes the other label of two (as in T5's ``f1_score_with_invalid``),
or a class of its own that is never right.
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from bmtpt.errors import DataError
from bmtpt.tasks.spec import TaskSpec
from bmtpt.types import Example

INVALID = -1
NO_NUMBER = -1.0  # T5 scores text that is not a number as -1
BINS = 15
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score(spec: TaskSpec, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """Return every metric of a task, 0 to 100 (correlations: -100 to 100).

    Raises:
        DataError: There are no examples, or the number of predictions differs from theirs.
    """
    if not examples or len(predictions) != len(examples):
        raise DataError(f"task '{spec.name}': {len(predictions)} predictions for {len(examples)} examples")
    return {metric: 100.0 * _METRICS[spec.kind, metric](spec, predictions, examples) for metric in spec.metrics}


def constant_answer(spec: TaskSpec, examples: Sequence[Example]) -> float | None:
    """Return the headline metric of the best constant answer, or None where none is defined.

    A correlation with a constant is undefined; where each row has its own choices, the constant is always to take
    the same one; free answers are tried with the test set's most frequent ones.
    """
    if spec.kind == "number" or not examples:
        return None
    if spec.kind == "labels" and not spec.fixed_words:
        return 100.0 * max(Counter(example.label for example in examples).values()) / len(examples)
    candidates: Iterable[str] = spec.label_words
    if spec.kind == "answers":  # the 20 commonest: trying all of them would take N² comparisons
        counts = Counter(normalise_answer(text) for example in examples for text in set(example.references))
        candidates = [text for text, _ in counts.most_common(20)]
    metric = _METRICS[spec.kind, spec.primary]
    return max(100.0 * metric(spec, [text] * len(examples), examples) for text in candidates)


def invalid_share(spec: TaskSpec, predictions: Sequence[str]) -> float:
    """Return the share (0 to 100) of outputs that are not a label, not a number, or (free answers) empty."""
    if not predictions:
        return 0.0
    return 100.0 * sum(not is_valid(spec, text) for text in predictions) / len(predictions)


def is_valid(spec: TaskSpec, prediction: str) -> bool:
    """Tell whether an output is a possible answer of the task, right or wrong."""
    if spec.kind == "number":
        return number(prediction) is not None
    return prediction.strip() in spec.label_words if spec.fixed_words else bool(prediction.strip())


def number(text: str) -> float | None:
    """Read a finite number, or return None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def calibration(probabilities: Float[np.ndarray, "N C"], labels: Sequence[int]) -> dict[str, float]:
    """Compare predicted probabilities with the true labels: ``accuracy`` and ``ece`` (0 to 1), ``nll`` (nats).

    ECE is Σ_b n_b/N · |accuracy_b - confidence_b| over 15 bins of equal width, bin b being (b/15, (b+1)/15] of the
    highest probability (Guo et al. 2017, eq. 3).

    Raises:
        DataError: There are no rows.
    """
    n = len(labels)
    if n == 0:
        raise DataError("calibration needs at least one example")
    p = np.asarray(probabilities, dtype=np.float64)
    gold = np.asarray(labels, dtype=np.int64)
    confidence = p.max(axis=1)
    correct = p.argmax(axis=1) == gold
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gap = np.bincount(bins, weights=correct - confidence, minlength=BINS)  # n_b (accuracy_b - confidence_b)
    nll = -np.log(np.clip(p[np.arange(n), gold], np.finfo(np.float64).tiny, None)).mean()
    return {"accuracy": float(correct.mean()), "nll": float(nll), "ece": float(np.abs(gap).sum()) / n}


@lru_cache(maxsize=1 << 17)
def normalise_answer(text: str) -> str:
    """Lower case, without punctuation, articles and extra blanks (SQuAD 1.1's evaluation script).

    >>> normalise_answer("The  Cat, a hat!")
    'cat hat'
    """
    bare = text.lower().translate(NO_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of word precision and recall after normalisation (SQuAD 1.1)."""
    found, wanted = normalise_answer(prediction).split(), normalise_answer(reference).split()
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2.0 * common / (len(found) + len(wanted)) if common else 0.0


def _gold(examples: Sequence[Example]) -> list[int]:
    return [INVALID if example.label is None else example.label for example in examples]


def _indices(spec: TaskSpec, predictions: Sequence[str]) -> list[int]:
    index = {word: i for i, word in enumerate(spec.label_words)}
    return [index.get(text.strip(), INVALID) for text in predictions]


def _two_class_indices(spec: TaskSpec, predictions: Sequence[str], examples: Sequence[Example]) -> list[int]:
    """Predicted classes of a two-class task; an invalid output becomes the wrong one of the two."""
    pairs = zip(_indices(spec, predictions), _gold(examples), strict=True)
    return [1 - gold if found == INVALID else found for found, gold in pairs]


def _accuracy(spec: TaskSpec, predictions: Sequence[str], examples: Sequence[Example]) -> float:
    pairs = zip(predictions, examples, strict=True)
    return float(np.mean([text.strip() == example.target for text, example in pairs]))


def _f1(spec: TaskSpec, predictions: Sequence[str], examples: Sequence[Example]) -> float:
    from sklearn.metrics import f1_score

    found = _two_class_indices(spec, predictions, examples)
    return float(f1_score(_gold(examples), found, pos_label=1, zero_division=0.0))


def _macro_f1(spec: TaskSpec, predictions: Sequence[str], examples: Sequence[Example]) -> float:
    from sklearn.metrics import f1_score

    classes = range(len(spec.label_words))
    found = _indices(spec, predictions)
    return float(f1_score(_gold(examples), found, labels=classes, average="macro", zero_division=0.0))


def _matthews(spec: TaskSpec, predictions: Sequence[str], examples: Sequence[Example]) -> float:
    from sklearn.metrics import matthews_corrcoef

    if len(spec.label_words) == 2:
        found = _two_class_indices(spec, predictions, examples)
    else:
        found = _indices(spec, predictions)
    gold = _gold(examples)
    # A constant has no correlation; scikit-learn would say 0 too, but with a warning.
    return 0.0 if len(set(found)) == 1 or len(set(gold)) == 1 else float(matthews_corrcoef(gold, found))


def _group_em(spec: TaskSpec, predictions: Sequence[str], examples: Sequence[Example]) -> float:
    """Share of groups (MultiRC: questions) of which every row is right."""
    groups: dict[str, bool] = defaultdict(lambda: True)
    for text, example in zip(predictions, examples, strict=True):
        groups[example.group] &= text.strip() == example.target
    return float(np.mean(list(groups.values())))


def _best_reference(measure: Callable[[str, str], float]) -> _Metric:
    def metric(spec: TaskSpec, predictions: Sequence[str], examples: Sequence[Example]) -> float:
        pairs = zip(predictions, examples, strict=True)
        return float(np.mean([max(measure(text, ref) for ref in example.references) for text, example in pairs]))

    return metric


def _correlation(kind: str) -> _Metric:
    """Return Pearson's or Spearman's correlation; it is 0 where it is undefined, for a constant."""

    def metric(spec: TaskSpec, predictions: Sequence[str], examples: Sequence[Example]) -> float:
        from scipy import stats

        numbers = [number(text) for text in predictions]
        found = [NO_NUMBER if value is None else value for value in numbers]
        gold = [float(example.target) for example in examples]
        varying = len(set(found)) > 1 and len(set(gold)) > 1
        return float(getattr(stats, kind)(found, gold).statistic) if varying else 0.0

    return metric


_Metric = Callable[[TaskSpec, Sequence[str], Sequence[Example]], float]
_METRICS: dict[tuple[str, str], _Metric] = {
    ("labels", "accuracy"): _accuracy,
    ("labels", "f1"): _f1,
    ("labels", "macro_f1"): _macro_f1,
    ("labels", "matthews"): _matthews,
    ("labels", "group_em"): _group_em,
    ("answers", "f1"): _best_reference(token_f1),
    ("answers", "em"): _best_reference(lambda a, b: float(normalise_answer(a) == normalise_answer(b))),
    ("number", "pearson"): _correlation("pearsonr"),
    ("number", "spearman"): _correlation("spearmanr"),
}
