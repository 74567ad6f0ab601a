"""Settings that a study varies: grids of overrides such as `learn.particles: [1, 3, 5]`, and the names of their points.

A grid maps dotted options to a value or to a list of values and means every combination; `{}` is the study as it
is. A point is named after the last parts of its options: "kernel=imq,scope=row".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import product
from typing import Any, NamedTuple

SOURCE_STAGE = ("learn", "source_prompt", "backbone")
"""Options, and groups of them, that decide a source stage."""


class Variant(NamedTuple):
    """One point of a grid: dotted options and their values, none for the study as it is."""

    overrides: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """What its result lines call it."""

        def shown(value: Any) -> str:
            if value is None or isinstance(value, bool):
                return str(value).lower()
            return f"{value:g}" if isinstance(value, float) else str(value)

        return ",".join(f"{option.rpartition('.')[2]}={shown(value)}" for option, value in self.overrides)

    def name_of(self, options: Collection[str]) -> str:
        """Return the part of the name that concerns some options, or groups of them."""
        kept = [pair for pair in self.overrides if {pair[0], pair[0].partition(".")[0]} & set(options)]
        return Variant(tuple(kept)).name

    def applied(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings with this point's values in them."""
        for option, value in self.overrides:
            for part in reversed(option.split(".")):
                value = {part: value}
            values = merged(values, value)
        return dict(values)


def expand(grids: Iterable[Mapping[str, Any]]) -> list[Variant]:
    """Return the points of several grids, in their order.

    >>> [variant.name for variant in expand([{}, {"learn.kernel": ["rbf", "imq"], "learn.scope": "row"}])]
    ['', 'kernel=rbf,scope=row', 'kernel=imq,scope=row']
    """
    found = []
    for grid in grids:
        lists = [value if isinstance(value, (list, tuple)) else [value] for value in grid.values()]
        found += [Variant(tuple(zip(grid, values, strict=True))) for values in product(*lists)]
    return found


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping with another one's values in place of its own; mappings inside are merged the same way.

    >>> merged({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"x": 5}, "b": None})
    {'a': {'x': 5, 'y': 2}, 'b': None}
    """
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
