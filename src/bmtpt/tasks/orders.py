"""Random orders and choices of more rows than a list should hold: they take a bit for each, or nothing at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import overload

import numpy as np
from jaxtyping import Int, UInt8, UInt64

BLOCK = 2**12
"""Positions of a `Chosen` that are counted together; a multiple of 8."""

PIECE = 2**18
"""Positions of a `Shuffled` that are computed at a time."""

ROUNDS = 6
"""Of the Feistel network; four give a pseudo-random permutation (Luby & Rackoff 1988) if the domain is large."""


def by_chance(keys: Iterable[object], count: int, share: float, seed: int) -> tuple[Chosen, Chosen]:
    """Divide ``count`` rows in two by a hash of their keys: a row is in the second part with probability ``share``.

    Rows of one key stay together, and none has to be remembered.
    """
    second = Chosen.where((_chance(key, seed) < share for key in keys), count)
    return second.others(), second


def _chance(key: object, seed: int) -> float:
    digest = hashlib.blake2b(repr((seed, key)).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little") / 2**64


class Shuffled:
    """A random order of n positions, of which each is computed when it is asked for.

    A Feistel network permutes the numbers below the next power of 4; an image beyond n is mapped again.

    Args:
        key: Seeds; other numbers give another order.
    """

    def __init__(self, n: int, *key: int) -> None:
        self.n = n
        self._half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
        self._low = np.uint64(2 ** int(self._half) - 1)
        self._keys = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)

    def __getitem__(self, position: int) -> int:
        return int(self.images(np.array([position]))[0])

    def pieces(self, start: int, stop: int) -> Iterator[Int[np.ndarray, " piece"]]:
        """Yield the images of the positions from ``start`` to ``stop``, some at a time."""
        for first in range(start, stop, PIECE):
            yield self.images(np.arange(first, min(stop, first + PIECE)))

    def images(self, positions: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
        """Return what is at some positions of the order."""
        assert (positions < self.n).all(), "beyond the order, the network has no image"
        found = self._permuted(positions.astype(np.uint64))
        while len(beyond := np.flatnonzero(found >= self.n)):
            found[beyond] = self._permuted(found[beyond])
        return found.astype(np.int64)

    def _permuted(self, numbers: UInt64[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
        left, right = numbers >> self._half, numbers & self._low
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._low)
        return left << self._half | right


def _mixed(x: UInt64[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
    """Return the finaliser of SplitMix64 (Steele et al. 2014): every bit depends on every bit."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64[np.ndarray, " N"] = x ^ x >> np.uint64(31)
    return mixed


class Chosen(Sequence[int]):
    """Some positions in ascending order, at one bit for each that could be chosen."""

    def __init__(self, bits: UInt8[np.ndarray, " bytes"], n: int) -> None:
        self.bits, self._n = bits, n
        blocks = range(-(-n // BLOCK))
        self._before = np.cumsum([0, *(len(self._block(number)) for number in blocks)])  # those before each block

    @classmethod
    def where(cls, flags: Iterable[bool], n: int) -> Chosen:
        """Choose the positions of n flags that are true."""
        each, bits = iter(flags), np.zeros(-(-n // 8), dtype=np.uint8)
        for start in range(0, n, BLOCK):
            block = np.packbits(np.fromiter(islice(each, BLOCK), dtype=bool))
            bits[start // 8 : start // 8 + len(block)] = block
        return cls(bits, n)

    @classmethod
    def of(cls, pieces: Iterable[Int[np.ndarray, " piece"]], n: int) -> Chosen:
        """Choose the given positions of n."""
        bits = np.zeros(-(-n // 8), dtype=np.uint8)
        for piece in pieces:
            np.bitwise_or.at(bits, piece // 8, (128 >> piece % 8).astype(np.uint8))
        return cls(bits, n)

    def others(self) -> Chosen:
        """Return the positions that are not chosen."""
        return Chosen(~self.bits, self._n)

    def __len__(self) -> int:
        return int(self._before[-1])

    @overload
    def __getitem__(self, item: int) -> int: ...

    @overload
    def __getitem__(self, item: slice) -> list[int]: ...

    def __getitem__(self, item: int | slice) -> int | list[int]:
        if isinstance(item, slice):
            return [self[i] for i in range(*item.indices(len(self)))]
        number = range(len(self))[item]
        block = int(np.searchsorted(self._before, number, side="right")) - 1
        return int(self._block(block)[number - self._before[block]])

    def __iter__(self) -> Iterator[int]:
        for block in range(len(self._before) - 1):
            yield from self._block(block).tolist()

    def _block(self, number: int) -> Int[np.ndarray, " chosen"]:
        bits = self.bits[number * BLOCK // 8 : (number + 1) * BLOCK // 8]
        return np.flatnonzero(np.unpackbits(bits, count=min(BLOCK, self._n - number * BLOCK))) + number * BLOCK
