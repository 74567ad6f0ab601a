"""Scores from 0 to 100 of predicted texts, on scikit-learn and SciPy.

Blanks around a prediction are stripped. A prediction that is not a label of the task counts as wrong in every
metric: where a metric needs a label it becomes the other label of two (as in T5's ``f1_score_with_invalid``),
or a class of its own that is never right.
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from bmtpt.errors import DataError
from bmtpt.tasks.spec import TaskSpec
from bmtpt.types import CALIBRATION_BINS, Example

INVALID = -1
NO_NUMBER = -1.0  # T5 scores text that is not a number as -1
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score(spec: TaskSpec, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """Return every metric of a task, 0 to 100 (correlations: -100 to 100)."""
    if not examples or len(predictions) != len(examples):
        raise DataError(f"task '{spec.name}': {len(predictions)} predictions for {len(examples)} examples")
    return {metric: _measure(spec, metric, predictions, examples) for metric in spec.metrics}


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
    return max(_measure(spec, spec.primary, [text] * len(examples), examples) for text in candidates)


def invalid_share(spec: TaskSpec, predictions: Sequence[str]) -> float:
    """Return the share (0 to 100) of outputs that are not a label, not a number, or (free answers) empty."""
    words = spec.label_words

    def valid(text: str) -> bool:
        if spec.kind == "number":
            return number(text) is not None
        return text.strip() in words if spec.fixed_words else bool(text.strip())

    return 100.0 * sum(not valid(text) for text in predictions) / max(1, len(predictions))


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
    """
    n = len(labels)
    if n == 0:
        raise DataError("calibration needs at least one example")
    p = np.asarray(probabilities, dtype=np.float64)
    gold = np.asarray(labels, dtype=np.int64)
    confidence = p.max(axis=1)
    correct = p.argmax(axis=1) == gold
    # n_b (accuracy_b - confidence_b) of each bin b
    gap = np.bincount(_bins(confidence), weights=correct - confidence, minlength=CALIBRATION_BINS)
    nll = -np.log(np.clip(p[np.arange(n), gold], np.finfo(np.float64).tiny, None)).mean()
    return {"accuracy": float(correct.mean()), "nll": float(nll), "ece": float(np.abs(gap).sum()) / n}


def reliability(probabilities: Float[np.ndarray, "N C"], labels: Sequence[int]) -> list[tuple[int, int, float, float]]:
    """Return the calibration curve: number, rows, mean confidence and accuracy of each bin that has rows."""
    p = np.asarray(probabilities, dtype=np.float64)
    confidence = p.max(axis=1)
    correct, bins = p.argmax(axis=1) == np.asarray(labels), _bins(confidence)
    counts, sums, right = (np.bincount(bins, weights, CALIBRATION_BINS) for weights in (None, confidence, correct))
    return [
        (b, int(counts[b]), float(sums[b] / counts[b]), float(right[b] / counts[b]))
        for b in np.flatnonzero(counts).tolist()
    ]


def _bins(confidence: Float[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    bins: Int[np.ndarray, " N"] = np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1
    return bins.clip(0, CALIBRATION_BINS - 1)


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


def _measure(spec: TaskSpec, metric: str, predictions: Sequence[str], examples: Sequence[Example]) -> float:
    """Return one metric of a task, 0 to 100."""
    pairs = list(zip(predictions, examples, strict=True))
    if spec.kind == "number":
        return 100.0 * _correlation(metric, predictions, [float(example.target) for example in examples])
    if spec.kind == "answers":  # the best reference counts
        likeness = token_f1 if metric == "f1" else _exact_match
        return 100.0 * float(np.mean([max(likeness(text, ref) for ref in each.references) for text, each in pairs]))
    if metric not in ("accuracy", "group_em"):
        return 100.0 * _classification(spec, metric, predictions, examples)
    right: dict[int | str, bool] = defaultdict(lambda: True)  # of each row, or of each group (MultiRC: a question)
    for row, (text, example) in enumerate(pairs):
        right[example.group if metric == "group_em" else row] &= text.strip() == example.target
    return 100.0 * float(np.mean(list(right.values())))


def _exact_match(prediction: str, reference: str) -> float:
    return float(normalise_answer(prediction) == normalise_answer(reference))


def _classification(spec: TaskSpec, metric: str, predictions: Sequence[str], examples: Sequence[Example]) -> float:
    from sklearn.metrics import f1_score, matthews_corrcoef

    index = {word: i for i, word in enumerate(spec.label_words)}
    gold = [INVALID if example.label is None else example.label for example in examples]
    found = [index.get(text.strip(), INVALID) for text in predictions]
    if metric == "macro_f1":
        return float(f1_score(gold, found, labels=range(len(index)), average="macro", zero_division=0.0))
    if len(index) == 2:  # an invalid output becomes the wrong one of the two
        found = [1 - right if each == INVALID else each for each, right in zip(found, gold, strict=True)]
    if metric == "f1":
        return float(f1_score(gold, found, pos_label=1, zero_division=0.0))
    # A constant has no correlation; scikit-learn would say 0 too, but with a warning.
    return 0.0 if len(set(found)) == 1 or len(set(gold)) == 1 else float(matthews_corrcoef(gold, found))


def _correlation(metric: str, predictions: Sequence[str], gold: list[float]) -> float:
    """Return Pearson's or Spearman's correlation; it is 0 where it is undefined, for a constant."""
    from scipy import stats

    numbers = [number(text) for text in predictions]
    found = [NO_NUMBER if value is None else value for value in numbers]
    if len(set(found)) == 1 or len(set(gold)) == 1:
        return 0.0
    return float({"pearson": stats.pearsonr, "spearman": stats.spearmanr}[metric](found, gold).statistic)
