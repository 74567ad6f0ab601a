"""Zero-shot: the frozen model ranks the label words of the task's text, without a prompt and without labels.

p(c|x) = softmax_c log p(word_c | embed(x)),       words of different length as `normalise` says
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from bmtpt.inference.score import label_probabilities, make_reader
from bmtpt.methods.classifier import Fitted
from bmtpt.methods.registry import Method, Setup, register
from bmtpt.types import Example


def zero_shot(setup: Setup) -> Fitted:
    """Return the frozen model's own answers."""
    ((_, rows),) = setup.rows.items()
    engine = setup.engine
    reader = make_reader(engine, engine.no_prompt, rows.scorer)

    def probabilities(examples: Sequence[Example]) -> Float[Tensor, "N C"]:
        return label_probabilities(engine, engine.no_prompt, setup.token_ids(examples), reader)

    return Fitted(probabilities)


ZERO_SHOT = register(
    Method("zero_shot", "zero-shot", "-", classifier=zero_shot, label_words_only=True, column=50),
)
