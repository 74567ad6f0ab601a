"""Where particles are at a check of a run, small enough for its log: their row averages, as 16-bit floats.

This module does not import torch, so that a report of finished runs does not wait for it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

MOST = 8
"""Particles whose positions are kept: a picture shows no more, and at 512 numbers each they take 11 kB a check."""


def written_positions(averages: Float[np.ndarray, "M D"]) -> dict[str, Any]:
    """Return the positions of the first 8 particles for JSON.

    Args:
        averages: Each particle averaged over its rows, as in the map of prompts (docs/method.md, section 1).
    """
    kept = averages[:MOST].astype("<f2")
    return {"particles": len(kept), "float16": base64.b64encode(kept.tobytes()).decode()}


def read_positions(written: Mapping[str, Any]) -> Float[np.ndarray, "M D"] | None:
    """Return what `written_positions` was given, to three digits, or None for anything else."""
    count = written.get("particles")
    try:
        numbers = np.frombuffer(base64.b64decode(written["float16"], validate=True), "<f2").astype(np.float64)
        found = numbers.reshape(count, -1) if isinstance(count, int) and count > 0 else None
    except (KeyError, TypeError, ValueError, binascii.Error):
        return None
    return found if found is not None and np.isfinite(found).all() else None
