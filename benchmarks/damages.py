"""Ways in which a file is damaged: by a disk, by a copy that stops, by a hand.

Each takes a generator, the content and that of the same file in another folder, and returns the new content.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from safetensors.torch import load as parse
from safetensors.torch import save

Damage = Callable[[Random, bytes, bytes], bytes]


def one_bit(rng: Random, content: bytes, other: bytes) -> bytes:
    return flipped(content, [rng.randrange(8 * len(content))])


def many_bits(rng: Random, content: bytes, other: bytes) -> bytes:
    return flipped(content, rng.sample(range(8 * len(content)), rng.randint(2, 16)))


def flipped(content: bytes, bits: Iterable[int]) -> bytes:
    """Return content in which the bits of some numbers are the other way round."""
    changed = bytearray(content)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _block(rng: Random, content: bytes) -> tuple[int, int]:
    start = rng.randrange(len(content))
    return start, min(len(content), start + rng.randint(1, 512))


def noise(rng: Random, content: bytes, other: bytes) -> bytes:
    start, stop = _block(rng, content)
    return content[:start] + rng.randbytes(stop - start) + content[stop:]


def zeros(rng: Random, content: bytes, other: bytes) -> bytes:
    start, stop = _block(rng, content)
    return content[:start] + bytes(stop - start) + content[stop:]


def cut_off(rng: Random, content: bytes, other: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def cut_out(rng: Random, content: bytes, other: bytes) -> bytes:
    start, stop = _block(rng, content)
    return content[:start] + content[stop:]


def twice(rng: Random, content: bytes, other: bytes) -> bytes:
    start, stop = _block(rng, content)
    return content[:stop] + content[start:]


def longer(rng: Random, content: bytes, other: bytes) -> bytes:
    return content + rng.randbytes(rng.randint(1, 512))


def exchanged(rng: Random, content: bytes, other: bytes) -> bytes:
    first, second = sorted(rng.sample(range(len(content)), 2))
    size = min(second - first, len(content) - second, rng.randint(1, 512))
    one, two = content[first : first + size], content[second : second + size]
    return content[:first] + two + content[first + size : second] + one + content[second + size :]


def swapped(rng: Random, content: bytes, other: bytes) -> bytes:
    return other


def edited(rng: Random, content: bytes, other: bytes) -> bytes:
    """Change one value so that the file is still well-formed."""
    if content[8:9] == b"{":
        return _edited_tensors(rng, content)
    if content.startswith(b"{\n"):
        return json.dumps(_edited_value(rng, json.loads(content)), indent=2).encode()
    lines = content.splitlines()
    number = rng.randrange(len(lines))
    lines[number] = json.dumps(_edited_value(rng, json.loads(lines[number]))).encode()
    return b"\n".join(lines) + b"\n"


def _edited_tensors(rng: Random, content: bytes) -> bytes:
    size = int.from_bytes(content[:8], "little")
    notes: dict[str, str] = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    tensors = parse(content)
    if "header" in notes and rng.random() < 0.5:
        notes["header"] = json.dumps(_edited_value(rng, json.loads(notes["header"])))
    else:
        name = rng.choice(sorted(tensors))
        numbers = tensors[name].reshape(-1)
        numbers[rng.randrange(len(numbers))] += 1
    return save(tensors, metadata=notes or None)


def _edited_value(rng: Random, value: Any) -> Any:
    """Return a JSON value in which one value within is another, or gone."""
    if isinstance(value, (dict, list)) and value:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        if rng.random() < 0.1:
            del value[key]
        else:
            value[key] = _edited_value(rng, value[key])
        return value
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return rng.choice([value + 1, -value - 1, value * 1.5 + 1e-6, str(value), None])
    return rng.choice([f"{value}x", 1, [], {}]) if isinstance(value, str) else rng.choice(["x", 0, [1]])


DAMAGES: dict[str, Damage] = {
    "one bit": one_bit,
    "many bits": many_bits,
    "noise": noise,
    "zeros": zeros,
    "cut off": cut_off,
    "cut out": cut_out,
    "twice": twice,
    "longer": longer,
    "exchanged": exchanged,
    "another's": swapped,
    "edited": edited,
}
COMMON = ("one bit", "edited")
"""Damages that are drawn three times as often."""
