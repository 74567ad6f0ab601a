"""The examples of a part: a tuple, or, of many rows, made when they are asked for."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import overload

from bmtpt.errors import DataError
from bmtpt.tasks.sources import CHUNK, Rows
from bmtpt.tasks.spec import TaskSpec, pieces
from bmtpt.tasks.splits import Part
from bmtpt.tasks.text import merge, to_examples, word_index
from bmtpt.types import Example

IN_MEMORY = 2**17
"""Most rows of a part whose examples are held in memory; of more, each is made when it is asked for."""

TextKey = tuple[str, str, str]


def text_key(example: Example) -> TextKey:
    """Return what two examples of one text share, without joining its parts anew."""
    return example.before, example.context, example.after


def is_empty(spec: TaskSpec, example: Example) -> bool:
    """Tell whether every placeholder of the template was filled with nothing."""
    return example.text == _bare(spec.text)


@lru_cache(maxsize=64)
def _bare(template: str) -> str:
    return "".join(literal for literal, _ in pieces(template))


class Lazy(Sequence[Example]):
    """Examples that are made when they are asked for.

    Attributes:
        digest: SHA-256 that names all of them.
    """

    digest: str

    @abstractmethod
    def at(self, number: int) -> Example:
        """Return one example."""

    @overload
    def __getitem__(self, item: int) -> Example: ...

    @overload
    def __getitem__(self, item: slice) -> list[Example]: ...

    def __getitem__(self, item: int | slice) -> Example | list[Example]:
        if isinstance(item, slice):
            return [self.at(i) for i in range(*item.indices(len(self)))]
        return self.at(range(len(self))[item])


class Examples(Lazy):
    """The examples of a part whose rows give one each. All rows are looked at once, in the order of the file.

    Args:
        watched: Texts whose occurrence among these is noted.

    Attributes:
        labels: How many have each label.
        empty: How many have an empty text.
        seen: Those of the watched texts that are here.

    Raises:
        DataError: A row does not fit the task; the sentence says where it is.
    """

    def __init__(self, spec: TaskSpec, part: Part, watched: Collection[TextKey] = ()) -> None:
        self.spec, self.part = spec, part
        self.labels: Counter[int | None] = Counter()
        self.empty = 0
        self.seen: set[TextKey] = set()
        digest = hashlib.sha256()
        # Only a list is in another order, and it is short enough to be sorted.
        ascending = sorted(part.index) if isinstance(part.index, list) else part.index
        for example in _made(spec, part.rows, ascending):
            self.labels[example.label] += 1
            self.empty += is_empty(spec, example)
            if (key := text_key(example)) in watched:
                self.seen.add(key)
            digest.update(repr(example).encode())
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.part)

    def __iter__(self) -> Iterator[Example]:
        return _made(self.spec, self.part.rows, self.part.index)

    def at(self, number: int) -> Example:
        return next(_made(self.spec, self.part.rows, [self.part.index[number]]))


class Picked(Lazy):
    """Some of the examples of a `Lazy`, by position."""

    def __init__(self, examples: Lazy, positions: Sequence[int]) -> None:
        import numpy as np

        self.examples, self.positions = examples, positions
        held = np.asarray(getattr(positions, "bits", positions))  # the bits of a `Chosen`
        self.digest = hashlib.sha256(f"{examples.digest} {len(positions)} ".encode() + held.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.positions)

    def at(self, number: int) -> Example:
        return self.examples.at(self.positions[number])


def picked(examples: Sequence[Example], positions: Sequence[int]) -> Sequence[Example]:
    """Return some examples by position: of a `Lazy`, more than fit into memory stay lazy."""
    if isinstance(examples, Lazy) and len(positions) > IN_MEMORY:
        return Picked(examples, positions)
    return tuple(examples[i] for i in positions)


def examples_of(
    spec: TaskSpec, part: Part, *, training: bool, watched: Collection[TextKey] = ()
) -> tuple[Example, ...] | Examples:
    """Turn the rows of a part into examples.

    Args:
        watched: As for `Examples`.

    Raises:
        DataError: A row does not fit the task; the sentence says where it is.
    """
    if len(part) > IN_MEMORY and not spec.prepare:
        return Examples(spec, part, watched)
    found = list(_made(spec, part.rows, part.index, training=training, chunk=IN_MEMORY))
    return tuple(found if training else merge(spec, found))


def _made(
    spec: TaskSpec, rows: Rows, index: Sequence[int], *, training: bool = True, chunk: int = CHUNK
) -> Iterator[Example]:
    words = word_index(spec)
    for position, row in zip(index, rows.each(index, chunk), strict=True):
        try:
            yield from to_examples(spec, row, training=training, index=words)
        except DataError as error:
            raise DataError(f"{rows.place(position)}: {error}") from error
