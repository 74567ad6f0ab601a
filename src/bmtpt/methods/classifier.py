"""Methods that classify without training steps: the baselines that a practitioner would try first.

They answer tasks with label words only, use all k labels as they are (there is nothing to select), and are kept in
memory alone: a study scores them and writes their lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from bmtpt.artifacts.card import TargetCard
from bmtpt.types import Example

Probabilities = Callable[[Sequence[Example]], Float[Tensor, "N C"]]
"""Returns the probability of every label word for each of N texts, on the CPU."""


@dataclass(frozen=True)
class Fitted:
    """What a method found in the labelled rows of a target.

    Attributes:
        probabilities: Answers texts.
        trained_parameters: Numbers fitted; 0 if no label was used.
        kept_bytes: What must be kept for the task, next to what all tasks share.
        seconds: Wall time of the fit, with the features of the rows that it needed.
    """

    probabilities: Probabilities
    trained_parameters: int = 0
    kept_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Classifier:
    """What predicts a target without a prompt.

    Attributes:
        fitted: What answers.
        card: Where it comes from and the task it is for.
    """

    fitted: Fitted
    card: TargetCard
