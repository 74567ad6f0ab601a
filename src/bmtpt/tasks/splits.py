"""Which rows train, select and test: the split rules of the literature, caps, and the few-shot draw.

ATTEMPT, MPT and DePT halve small validation sets and hold 1,000 training rows out of large sets, always by
``torch.randperm`` with seed 42; numbers compare only if that is kept.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import PositiveInt

from bmtpt.errors import DataError, shortened
from bmtpt.tasks.layout import label_key
from bmtpt.tasks.sources import Row, Rows
from bmtpt.tasks.spec import PARTS, SPLIT_NAMES, PartName, TaskSpec, placeholders
from bmtpt.types import Draw, Example

HELD_OUT = 1_000
TEST_SHARE = 0.2
SPLIT_SEED = 42
LARGE = 2**20
"""Most rows of which an order is a list, as the literature's splits need it; more are drawn by `bmtpt.tasks.orders`."""


@dataclass(frozen=True)
class SplitLimits:
    """Most raw rows of each split; None keeps all. Rows are drawn by seed, so a cap does not favour the first ones."""

    train: PositiveInt | None = None
    select: PositiveInt | None = None
    test: PositiveInt | None = None


@dataclass(frozen=True)
class Part:
    """Some of a table's rows: positions ``index`` of ``rows``."""

    rows: Rows
    index: Sequence[int]

    def __len__(self) -> int:
        return len(self.index)


Parts = tuple[Part, ...]
"""Train, select, test."""


def permutation(n: int, seed: int) -> list[int]:
    """Return ``torch.randperm(n)`` of a fresh CPU generator."""
    import torch

    return list(torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist())


def stretches(n: int, seed: int, *ends: int) -> list[Sequence[int]]:
    """Cut a random order of n rows at ``ends``.

    Up to `LARGE` rows the order is that of `permutation`. Of more rows, each stretch is in ascending order.
    """
    edges = list(pairwise((0, *(min(end, n) for end in ends), n)))
    if n <= LARGE:
        order = permutation(n, seed)
        return [order[start:stop] for start, stop in edges]
    from bmtpt.tasks.orders import Chosen, Shuffled

    shuffled = Shuffled(n, seed)
    return [Chosen.of(shuffled.pieces(start, stop), n) for start, stop in edges]


def split_rows(spec: TaskSpec, found: Sequence[Rows | None], seed: int) -> Parts:
    """Apply the task's split rule to its published splits, in the order of ``spec.split_names``.

    Where a split is missing the rule cannot be kept: of two splits, the first then trains and selects and the second
    tests; one split is cut in three.
    """
    present = [rows for rows in found if rows is not None]
    if len(present) == 3:
        return tuple(map(_all, present))
    if len(present) == 1:
        return cut_in_three(present[0], seed)
    train, validation = present
    if spec.split == "halve":
        return (_all(train), *halve(validation, seed))
    return (*hold_out(train, seed, first=spec.train_rows), _all(validation))


def split_table(spec: TaskSpec, rows: Rows, seed: int) -> Parts:
    """Divide one table of a user's by the task's rule (`SPLITS`); raise a DataError if a row names no part."""
    if spec.split == "cut":
        return cut_in_three(rows, seed)
    if spec.split == "column":
        return _by_column(spec, rows)
    if spec.split == "none":
        return _all(rows), Part(rows, ()), Part(rows, ())
    columns = placeholders(spec.text)
    from bmtpt.tasks.orders import Chosen, by_chance
    from bmtpt.tasks.units import divide, together

    if len(rows) > LARGE:  # enough for each label to be in proportion by chance, and too many texts to compare
        kept = [spec.group] if spec.group else columns
        train, test = by_chance((_cells(row, kept) for row in rows.each()), len(rows), TEST_SHARE, seed)
        return Part(rows, train), Part(rows, ()), Part(rows, test)
    texts = (_cells(row, columns) for row in rows.each())
    groups = [(str(row.get(spec.group)) for row in rows.each())] if spec.group else []
    labels = (label_key(row.get(spec.label)) if spec.labels else "" for row in rows.each())
    first, second = divide(together(texts, *groups), labels, round(TEST_SHARE * len(rows)), seed)
    train, test = Chosen.of([first], len(rows)), Chosen.of([second], len(rows))
    return Part(rows, train), Part(rows, ()), Part(rows, test)


def _cells(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(row.get(column)).strip() for column in columns)


def _by_column(spec: TaskSpec, rows: Rows) -> Parts:
    from bmtpt.tasks.orders import Chosen

    part = bytearray(len(rows))
    for i, row in enumerate(rows.each()):
        try:
            part[i] = PARTS.index(part_of(spec, row))
        except DataError as error:
            raise DataError(f"{rows.place(i)}: {error}") from error
    return tuple(Part(rows, Chosen.where((each == number for each in part), len(part))) for number in range(len(PARTS)))


def part_of(spec: TaskSpec, row: Row) -> str:
    """Return the part that a row names; raise a DataError if it names none."""
    part = str(row.get(spec.split_column)).strip()
    if part not in PARTS:
        raise DataError(f"column '{spec.split_column}' says '{shortened(part)}', and a part is {', '.join(PARTS)}")
    return part


def split_files(spec: TaskSpec, found: Mapping[PartName, Rows], seed: int) -> Parts:
    """Use each file as the part it is named for, or apply ``halve`` or ``hold_out`` to train and validation."""
    if "train" not in found:
        raise DataError(f"task '{spec.name}' has no training rows; add 'train' to its files")
    if spec.split != "own":
        return split_rows(spec, [found.get(part) for part in SPLIT_NAMES[spec.split]], seed)
    nothing = Part(next(iter(found.values())), ())
    return tuple(_all(found[part]) if part in found else nothing for part in PARTS)


def halve(validation: Rows, seed: int) -> tuple[Part, Part]:
    """The first half of a random order selects, the second half tests (the odd row tests)."""
    n = _at_least(validation, 2)
    select, test = stretches(n, seed, n // 2)
    return Part(validation, select), Part(validation, test)


def hold_out(train: Rows, seed: int, *, first: int | None = None) -> tuple[Part, Part]:
    """Take 1,000 random training rows to select with; the others train.

    Below 5,000 rows a fifth is held out instead. With ``first`` only that many first rows train, and those held
    out come from the rows after them if there are enough (Yelp: 100,000 train, 1,000 others select).
    """
    n = _at_least(train, 2)
    if first is not None and n >= first + HELD_OUT:
        held_out, _ = stretches(n - first, seed, HELD_OUT)
        return Part(train, range(first)), Part(train, [first + i for i in held_out])
    n = min(n, first or n)
    select, others = stretches(n, seed, min(HELD_OUT, max(1, n // 5)))
    return Part(train, others), Part(train, select)


def cut_in_three(rows: Rows, seed: int) -> Parts:
    """Cut one split into 60 % train, 20 % select, 20 % test, disjoint and seeded."""
    fifth = max(1, _at_least(rows, 3) // 5)
    select, test, train = stretches(len(rows), seed, fifth, 2 * fifth)
    return Part(rows, train), Part(rows, select), Part(rows, test)


def limit(parts: Parts, limits: SplitLimits, seed: int) -> Parts:
    """Cap each part by a seeded draw."""
    kept = []
    for part, most in zip(parts, (limits.train, limits.select, limits.test), strict=True):
        drawn = stretches(len(part), seed, most)[0] if most is not None and most < len(part) else None
        kept.append(part if drawn is None else Part(part.rows, [part.index[i] for i in drawn]))
    return tuple(kept)


def few_shot(examples: Sequence[Example], shots: int, seed: int, draw: Draw = "random") -> tuple[Example, ...]:
    """Draw ``shots`` examples in total.

    The draw is a pure function of its arguments, and a smaller draw of the same seed is the head of a larger one.

    Args:
        draw: `random`: every example is as likely as another. `balanced`: as many of each label as the examples allow;
            those without a label (numbers, free answers) are drawn at random.

    Raises:
        DataError: There are fewer examples than shots, or no shot is asked for.
    """
    if not 1 <= shots <= len(examples):
        raise DataError(f"cannot draw {shots} examples from {len(examples)}; ask for 1 to {len(examples)} shots")
    order = list(examples)
    generator = random.Random(seed)
    generator.shuffle(order)
    return tuple((order if draw == "random" else _balanced(order, generator))[:shots])


def _balanced(order: Sequence[Example], generator: random.Random) -> list[Example]:
    """Return examples in an order of which every head is balanced over labels, as far as they go."""
    queues: dict[int | None, list[Example]] = defaultdict(list)
    for example in order:
        queues[example.label].append(example)
    classes = sorted(queues, key=lambda label: -1 if label is None else label)
    generator.shuffle(classes)
    rounds = max(map(len, queues.values()))
    return [queues[label][turn] for turn in range(rounds) for label in classes if turn < len(queues[label])]


def _all(rows: Rows) -> Part:
    return Part(rows, range(len(rows)))


def _at_least(rows: Rows, least: int) -> int:
    if len(rows) < least:
        raise DataError(f"{rows.where} has {len(rows)} rows; at least {least} are needed to split it")
    return len(rows)
