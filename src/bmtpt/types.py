"""The shared vocabulary: what an example is, and one alphabet for tensor axes.

Axes, everywhere in the code:

    M  particles (or prompts evaluated together)      K  tasks
    N  examples                                       C  label words of a task
    P  prompt tokens (the paper's l)                  L  text tokens
    S  = P + L                                        T  label tokens, end of sequence included
    D  width of the model's embeddings (the paper's d)
    V  vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:  # keeps `bmtpt tasks` and `--help` free of torch's import time
    from torch import Tensor

DataStatus = Literal["official", "cut", "rebuilt", "partial"]
"""How a task's rows relate to the published data set; printed with every score.

``official``: the published rows and splits. ``cut``: a published split cut into our own train/select/test.
``rebuilt``: rows remade by a recipe. ``partial``: some of the published rows.
"""

KernelName = Literal["rbf", "imq", "laplacian", "linear", "polynomial"]
"""k of the SVGD update (`posterior/kernels.py`)."""

KernelScope = Literal["prompt", "row"]
"""What counts as one point: the whole prompt, or each of its rows on its own."""

ScorerKind = Literal["rank", "generate"]
"""How a prompt is scored: by the likelihood of each label word, or by the text it generates."""

Normalise = Literal["none", "length", "pmi"]
"""How log p(label word | text) is made comparable between words: not at all, per token, or less log p(word) itself."""

Draw = Literal["random", "balanced"]
"""How labelled rows are drawn: every row as likely as another, or as many of each label as the rows allow."""

StreamFormat = Literal["text", "jsonl", "csv", "tsv"]
"""What a stream to answer holds: a text a line, a JSON object with the task's columns a line, or a table."""

OnError = Literal["stop", "report"]
"""What a row that cannot be answered does: end the work with its error, or get the error as its answer."""

Annealing = Literal["none", "linear", "cyclic"]
"""How the factor on the score changes over time (`posterior/svgd.py`)."""

TrackerName = Literal["tensorboard", "trackio", "wandb", "mlflow"]
"""Where a run's figures go besides its folder (`train/trackers.py`)."""

PresetName = Literal["default", "paper"]
"""Sets of settings: what won by our measurements or is left as in the paper, and the paper to the letter."""

DATA_ORDER: tuple[DataStatus, ...] = get_args(DataStatus)
"""From the published rows to those least like them; a mixture of several is shown as the last of them."""

CALIBRATION_BINS = 15
"""Bins of equal width of the expected calibration error and the calibration curve."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a task as text to text.

    Attributes:
        before: Text before the context; never cut.
        context: The only part that may be cut when the text is too long ("" if the task names none).
        after: Text after the context; never cut.
        target: What the model is taught to answer.
        label: Index into the task's label words, or None (regression, free answers).
        references: Every accepted answer; ``target`` is one of them.
        group: Rows that are scored together (MultiRC: one question), else "".
    """

    before: str
    context: str
    after: str
    target: str
    label: int | None = None
    references: tuple[str, ...] = ()
    group: str = ""

    @property
    def text(self) -> str:
        """The whole source text, uncut."""
        return self.before + self.context + self.after


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Tokenised examples without padding.

    Attributes:
        inputs: N tensors int64 [L_n], with the special tokens of the model's family (`backbone/model/framing.py`).
        targets: N tensors int64 [T_n], end of sequence included.
    """

    inputs: Sequence[Tensor]
    targets: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self.inputs)

    def target_tokens(self) -> list[int]:
        """Number of label tokens T_n of each example."""
        return [len(target) for target in self.targets]
