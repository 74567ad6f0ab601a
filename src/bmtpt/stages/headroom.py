"""What is there to win on a task? What a model answers untrained, with few labels and with all, from one forward pass.

A prompt of vocabulary rows is asked once for every text; offsets and linear readouts are then fitted to draws of k
labels (docs/method.md, section 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from bmtpt.backbone import Backbone
from bmtpt.errors import DataError, SettingsError
from bmtpt.inference.score import labels_of, make_scorer, read
from bmtpt.posterior.prompts import from_vocabulary
from bmtpt.posterior.readout import Labelled, Readout, Widths, label_free_offset
from bmtpt.stages.rows import some
from bmtpt.tasks import TaskData
from bmtpt.tasks.metrics import calibration
from bmtpt.tasks.tokens import tokenise

POOL, TEST = 400, 250
"""Rows that labels are drawn from, and rows that are scored, at most."""

SHOTS = (4, 16, 64)
"""Numbers of labels that readouts are fitted to."""

LENGTH, DRAWS = 20, 8
"""Rows of the prompt, and draws of k labels that a figure is the mean of."""


@dataclass(frozen=True)
class Answerer:
    """One way to answer, with its figures.

    Attributes:
        name: For people.
        labels: How many it needs.
        accuracy: 0 to 100.
        nll: In nats.
    """

    name: str
    labels: int
    accuracy: float
    nll: float


@dataclass(frozen=True)
class Headroom:
    """The ways to answer a task without training, from none of its labels to all of them.

    Attributes:
        ways: The constant answer first, the linear readout of all rows last.
        test_rows: How many rows were scored.
        few: The number of labels that `verdict` is about.
    """

    ways: list[Answerer]
    test_rows: int
    few: int

    @property
    def noise(self) -> float:
        """Two standard errors, in points, of the accuracy with all labels."""
        n = self.test_rows + 4  # Agresti and Coull's two successes and two failures: no share of few rows is sure
        share = (self.ways[-1].accuracy / 100 * self.test_rows + 2) / n
        return 2 * 100 * math.sqrt(share * (1 - share) / n)

    @property
    def labels_help(self) -> bool:
        """Whether all labels are at least two standard errors better than the constant answer."""
        return self.ways[-1].accuracy - self.ways[0].accuracy >= self.noise

    @property
    def verdict(self) -> str:
        """What the figures mean, in a sentence; a difference counts from two standard errors."""
        constant, whole = self.ways[0], self.ways[-1]
        few = max((way for way in self.ways[1:-1] if way.labels <= self.few), key=lambda way: way.accuracy)
        if not self.labels_help:
            return (
                f"Even all {whole.labels} labels take a readout no further than a constant answer "
                f"({whole.accuracy:.0f} against {constant.accuracy:.0f}): try another wording or backbone before you "
                "train a prompt."
            )
        if whole.accuracy - few.accuracy < self.noise:
            return (
                f"With at most {self.few} labels '{few.name}' is within two standard errors of all {whole.labels} "
                f"({few.accuracy:.0f} against {whole.accuracy:.0f}): a readout may be all you need."
            )
        return (
            f"All {whole.labels} labels are worth {whole.accuracy - few.accuracy:.0f} points more than {self.few} "
            f"({whole.accuracy:.0f} against {few.accuracy:.0f}): that is room for a trained prompt."
        )


def headroom(backbone: Backbone, target: TaskData, shots: Sequence[int] | None = None, *, seed: int = 0) -> Headroom:
    """Measure what there is to win on a task with label words, from one forward pass over at most 650 texts.

    Args:
        shots: Numbers of labels, of which the median is what the verdict is about; None takes those of 4, 16 and 64
            that are fewer than the rows.
        seed: Of the prompt, the rows and the draws.

    Raises:
        SettingsError: The task has no label words, or no number of shots is given.
        DataError: It has no training or no test rows, or fewer than the shots.
    """
    task = target.task
    if not task.fixed_words:
        raise SettingsError(f"task {task.name} has no label words, and headroom compares ways to choose among them")
    if shots is not None and (not shots or min(shots) < 1):
        raise SettingsError("headroom needs numbers of labels, such as 16")
    pool, test = (some(part, most, seed) for part, most in ((target.train, POOL), (target.test, TEST)))
    shots = sorted(shots or [k for k in SHOTS if k < len(pool)] or SHOTS[:1])
    if len(pool) <= shots[-1] or not test:
        raise DataError(
            f"task {task.name} has {len(pool)} training rows and {len(test)} test rows, too few for {shots[-1]} "
            "shots; give fewer shots, or more rows"
        )
    prompt = from_vocabulary(backbone.frequent_rows(), LENGTH, torch.Generator().manual_seed(seed))
    rows = tokenise(backbone, [*pool, *test], task.max_length)
    readings = read(backbone.engine, prompt[None], rows.batch.inputs, make_scorer(backbone, task))
    texts = Labelled(readings.log_likelihoods[0].double().cpu(), readings.states[0].double().cpu(), labels_of(rows))
    taught, scored = texts.rows(range(len(pool))), texts.rows(range(len(pool), len(texts.labels)))

    def mean(name: str, k: int, widths: Widths) -> Answerer:
        draws = [torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed + d))[:k] for d in range(DRAWS)]
        found = [
            _judged(taught.rows(drawn).fit(widths, spread=True), scored)
            for drawn in (draws if k < len(pool) else draws[:1])
        ]
        return Answerer(name, k, *map(fmean, zip(*found, strict=True)))

    words = len(task.label_words)
    shares = (torch.bincount(taught.labels, minlength=words) + 1.0).log()
    ways = [
        Answerer("constant answer", len(pool), *_judged(Readout(0.0, shares.double()), scored)),
        Answerer("untrained prompt", 0, *_judged(Readout(1.0, torch.zeros(words).double()), scored)),
        Answerer("offset from texts", 0, *_judged(Readout(1.0, label_free_offset(taught.scores)), scored)),
    ]
    for k in shots:
        ways += [mean("offset", k, Widths(weights=0.0)), mean("offset and linear", k, Widths())]
    ways.append(mean("offset and linear", len(pool), Widths()))
    return Headroom(ways, len(test), shots[len(shots) // 2])


def _judged(readout: Readout, texts: Labelled) -> tuple[float, float]:
    """Return accuracy (0 to 100) and NLL (nats)."""
    found = calibration(readout.logits(texts.scores, texts.states).softmax(dim=1).numpy(), texts.labels.tolist())
    return 100 * found["accuracy"], found["nll"]
