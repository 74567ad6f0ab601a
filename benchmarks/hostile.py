"""Make valid documents hostile: replace some of their values, damage some of their bytes."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 2, 10**30, 2**63, -0.0, 1e308, float("nan"), float("inf"), "", " ", "\n", "nan", "none",
    "no", "2024-02-30", "9" * 4400, "x" * 3000, "\x00", "\ud800", "\ufeffa", "a\u2028b", "é", "👍", "</s>", "<pad>",
    "<extra_id_0>", "{sentence}", "{", "}}{", "{}", "{0.__class__}", "{a!r:>999999999}", "../../etc/passwd",
    "/dev/zero", "/dev/null", "~", "http://localhost:1", "<script>alert(1)</script>", "=1+1", [], {}, [None], [[]],
    {"": ""}, ["a", "a"], [1, "1"], {"a": {"a": {"a": []}}}, {"nested": [[[[[[[[0]]]]]]]]},
)  # fmt: skip
"""What a value, or a key if it is text, may become."""

BYTES: tuple[bytes, ...] = (
    b'"', b"'", b"\n", b"\r", b"\r\n", b"\t", b",", b";", b"|", b":", b": ", b"- ", b"#", b"%", b"{", b"}", b"[",
    b"]", b"\x00", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\\u0000", b"\\ud800",
    b"\\", b"NaN", b"-Infinity", b"1e999", b"9" * 4400, b"[" * 20_000, b'{"a":' * 20_000, b"- " * 2000, b"&a [*a]",
    b"*a", b"&a {<<: *a}", b"!!python/object/apply:os.system [true]", b"!!binary x ", b"!!timestamp 9 ", b"!!bool ",
    b"!!int '' ", b"!!set ", b"---\n", b"...\n", b"? ", b"<<: ", b"\x1f\x8b", b"PK\x03\x04", b"PAR1",
    b'"' + b"a" * 200_000, b"\x1b[2J",
)  # fmt: skip
"""What may be put between two bytes."""


def damaged_values(value: Any, rng: random.Random) -> Any:
    """Return a copy of a JSON-like value with one to three places changed."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(value))
        if not places:
            break
        holder, key = rng.choice(places)
        hostile = copy.deepcopy(rng.choice(VALUES))
        change = rng.random()
        if change < 0.6:
            holder[key] = hostile
        elif change < 0.7:
            del holder[key]
        elif change < 0.85 and isinstance(holder, dict):
            holder[hostile if isinstance(hostile, str) else f"{hostile}"] = holder.pop(key)
        else:  # a value from somewhere else
            other, name = rng.choice(places)
            holder[key] = copy.deepcopy(other[name]) if name in (other if isinstance(other, dict) else ()) else hostile
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def damaged_bytes(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return bytes with one to four changes; ``other`` is another document, to splice with."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randint(0, len(found)), min(len(found), 1 + int(rng.expovariate(0.1)))
        change = rng.randrange(6)
        if change == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            found[at:at] = rng.choice(BYTES)
        elif change == 2:
            del found[at : at + length]
        elif change == 3:
            found[at:at] = found[at : at + length] * rng.choice((1, 2, 50))
        elif change == 4:
            found[at:] = other[rng.randint(0, len(other)) :]
        else:
            found[at : at + length] = rng.randbytes(length)
    return bytes(found)
