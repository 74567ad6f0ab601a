"""Units of rows that stay together, and how they are divided in two."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable

import numpy as np
from jaxtyping import Int

from bmtpt.tasks.splits import permutation


def together(*keys: Iterable[str | tuple[str, ...]]) -> Int[np.ndarray, " N"]:
    """Number the rows' units in order: rows that share a key, directly or through others, have the same number.

    Keys are not remembered, but digests of 16 bytes, so that a million long texts fit.

    >>> together(["a", "b", "a", "c"], ["1", "2", "3", "3"])
    array([0, 1, 0, 0])
    """
    found = [np.unique(np.fromiter(map(_digest, column), "S16"), return_inverse=True)[1] for column in keys]
    if len(found) == 1:
        return _in_order(found[0])
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # A graph of all rows and, after them, all keys: a row is joined to its keys.
    rows, ends = np.arange(len(found[0])), np.cumsum([len(found[0]), *(column.max(initial=-1) + 1 for column in found)])
    joined = np.concatenate([column + end for column, end in zip(found, ends[:-1], strict=True)])
    links = coo_array((np.ones(len(joined), bool), (np.tile(rows, len(found)), joined)), shape=(ends[-1], ends[-1]))
    return _in_order(connected_components(links, directed=False)[1][: len(rows)])


def divide(
    unit: Int[np.ndarray, " N"], labels: Iterable[Hashable], count: int, seed: int
) -> tuple[Int[np.ndarray, " A"], Int[np.ndarray, " B"]]:
    """Divide rows in two, each with the labels in about their proportions, and the rows of a unit in the same part.

    Args:
        unit: Number of each row's unit (`together`).
        labels: Label of each row; that of a unit is its first row's.
        count: Most rows of the second part; of two units or more, one goes there however many rows it has.
        seed: Seed of the order.
    """
    known: dict[Hashable, int] = {}
    label = np.fromiter((known.setdefault(each, len(known)) for each in labels), np.int32, len(unit))
    order = _spread(label[np.unique(unit, return_index=True)[1]], seed)
    sizes, second, left = np.bincount(unit), np.zeros(len(order), bool), count
    for each in order[::-1]:
        second[each] = sizes[each] <= left
        left -= sizes[each] if second[each] else 0
    if count and not second.any() and len(order) > 1:
        second[order[-1]] = True
    by_unit = np.argsort(np.argsort(order)[unit], kind="stable")
    in_second = second[unit[by_unit]]
    return by_unit[~in_second], by_unit[in_second]


def _digest(key: str | tuple[str, ...]) -> bytes:
    return hashlib.blake2b(repr(key).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _in_order(numbers: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Renumber from 0 in the order in which each number is first seen."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _spread(labels: Int[np.ndarray, " N"], seed: int) -> Int[np.ndarray, " N"]:
    """Return positions in a random order of which every stretch holds the labels in about their proportions."""
    shuffled = np.array(permutation(len(labels), seed), dtype=np.int64)
    found, sizes = labels[shuffled], np.bincount(labels)
    by_label = np.argsort(found, kind="stable")
    seen = np.empty(len(found))  # how many of its label stand before each one
    seen[by_label] = np.arange(len(found)) - (np.cumsum(sizes) - sizes)[found[by_label]]
    # How far into its own label each one is, from 0 to 1: sorted by it, every stretch is proportional.
    return shuffled[np.argsort((seen + 0.5) / sizes[found], kind="stable")]
