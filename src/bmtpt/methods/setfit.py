"""SetFit: a sentence encoder is tuned on pairs of the k texts and then read by logistic regression.

The library `setfit` tunes MiniLM with its own defaults, AdamW at 2e-5, once over all pairs of the k rows, of which the
scarcer kind is repeated until both are as many:

    loss(x, x') = (cos(h(x), h(x')) − 1[y = y'])²

The regression has SetFit's default penalty, c = 1, and answers a label that no row has as in `logreg.py`. What is
trained, and must be kept for each task, is the whole encoder.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from bmtpt.backbone.model.minilm import sentence_transformer
from bmtpt.inference.score import labels_of
from bmtpt.methods.classifier import Fitted
from bmtpt.methods.logreg import BYTES, fitted
from bmtpt.methods.registry import Method, Setup, register
from bmtpt.tasks.text import own_texts
from bmtpt.types import Example


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put the process's random generators back afterwards: the library's trainer seeds all of them."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def tune(encoder: Any, texts: Sequence[str], labels: Sequence[int], seed: int) -> None:
    """Tune a `SentenceTransformer` on pairs of the texts, in place; NumPy's generator takes 32 bits of the seed."""
    import datasets
    from setfit import SetFitModel, Trainer, TrainingArguments, logging
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    datasets.disable_progress_bars()
    logging.set_verbosity_warning()
    with generators_kept(), tempfile.TemporaryDirectory() as unused:
        settings = TrainingArguments(
            output_dir=unused, save_strategy="no", report_to="none", logging_first_step=False, seed=seed % 2**32
        )
        trainer = Trainer(SetFitModel(model_body=encoder), settings)
        for printing in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(printing)
        trainer.st_trainer.args.dataloader_pin_memory = False  # it warns on a machine without a GPU
        trainer.train_embeddings(list(texts), list(labels))


def setfit(setup: Setup) -> Fitted:
    """Tune MiniLM on the labelled rows and fit its sentence vectors; with one label in all rows nothing is tuned.

    Raises:
        BackboneError: As `Wheel.checked_files`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    ((_, rows),) = setup.rows.items()
    task, labels = rows.scorer.task, labels_of(rows.train).tolist()
    started = time.perf_counter()
    encoder = sentence_transformer(setup.backbone.device)
    several = len(set(labels)) > 1
    if several:
        tune(encoder, own_texts(task, rows.train.examples), labels, setup.settings.seed)
    seconds = time.perf_counter() - started

    def vectors(examples: Sequence[Example]) -> Float[np.ndarray, "N D"]:
        found: Float[np.ndarray, "N D"] = encoder.encode(own_texts(task, examples), show_progress_bar=False)
        return found.astype(np.float64)

    head = fitted(make_pipeline(LogisticRegression(max_iter=1000)), vectors, setup)
    numbers = head.trained_parameters + several * sum(each.numel() for each in encoder.parameters())
    return replace(head, trained_parameters=numbers, kept_bytes=BYTES * numbers, seconds=seconds + head.seconds)


SETFIT = register(
    Method(
        "setfit",
        "SetFit (MiniLM)",
        "Tunstall et al. 2022, arXiv 2209.11055",
        classifier=setfit,
        label_words_only=True,
        package="setfit",
        column=54,
    )
)
