"""Encoder outputs kept for all that is asked of them: ranking answers, generating, or both."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Asked = TypeVar("Asked", bound=Hashable)


@dataclass(frozen=True)
class Encoded:
    """R rows as the encoder returned them.

    Attributes:
        rows: Which queries they are.
        states: In the compute dtype.
        mask: int64; 0 where a row is padded, after its text.
    """

    rows: Sequence[int]
    states: Float[Tensor, "R S D"]
    mask: Int[Tensor, "R S"]

    def split(self, asked: Sequence[Asked | None]) -> dict[Asked, Encoded]:
        """Return the rows that ask for the same thing together; those that ask for None are left out."""
        groups: dict[Asked, list[int]] = {}
        for position, what in enumerate(asked):
            if what is not None:
                groups.setdefault(what, []).append(position)
        return {what: self._only(positions) for what, positions in groups.items()}

    def _only(self, positions: list[int]) -> Encoded:
        return Encoded([self.rows[i] for i in positions], self.states[positions], self.mask[positions])


def merged(parts: Iterable[tuple[Asked, Encoded]], budget: int) -> Iterator[tuple[Asked, Encoded]]:
    """Join parts that ask for the same thing as long as they fit into ``budget`` padded tokens.

    For decoding: one more token costs about the same for a few rows as for many.
    """
    waiting: dict[Asked, list[Encoded]] = {}
    for asked, part in parts:
        before = waiting.setdefault(asked, [])
        if before and _padded_tokens([*before, part]) > budget:
            yield asked, _joined(before)
            before.clear()
        before.append(part)
    for asked, rest in waiting.items():
        yield asked, _joined(rest)


def _joined(parts: Sequence[Encoded]) -> Encoded:
    states = pad_sequence([row for part in parts for row in part.states], batch_first=True)
    mask = pad_sequence([row for part in parts for row in part.mask], batch_first=True)
    return Encoded([row for part in parts for row in part.rows], states, mask)


def _padded_tokens(parts: Sequence[Encoded]) -> int:
    return sum(len(part.rows) for part in parts) * max(part.mask.shape[1] for part in parts)
