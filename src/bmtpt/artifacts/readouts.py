"""A prompt's readouts as tensors of its file.

slope [M], offset [M, C] and, if linear, weights [M, C, D]; if averaged over their posterior, spread_offset [M],
spread_mean and spread_scale [M, D] and spread_directions [M, R, D+1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bmtpt.errors import ArtifactError
from bmtpt.posterior.readout import Readout, Spread

MAP = frozenset({"slope", "offset", "weights"})
PARTS = ("offset", "mean", "scale", "directions")
"""Of a `Spread`, in its order."""
SPREAD = frozenset(f"spread_{part}" for part in PARTS)
NAMES = MAP | SPREAD


def to_tensors(readouts: Sequence[Readout]) -> dict[str, Tensor]:
    """Return the tensors of M readouts; none of no readouts."""
    if not readouts:
        return {}
    found = {
        "slope": torch.tensor([each.slope for each in readouts]),
        "offset": torch.stack([each.offset for each in readouts]),
    }
    if weights := [each.weights for each in readouts if each.weights is not None]:
        found["weights"] = torch.stack(weights)
    if spreads := [each.spread for each in readouts if each.spread is not None]:
        for part in PARTS:
            found[f"spread_{part}"] = torch.stack([torch.as_tensor(getattr(each, part)) for each in spreads])
    return found


def fitted_numbers(readouts: Sequence[Readout]) -> int:
    """Return how many parameters M readouts have, without what their posterior adds."""
    return sum(tensor.numel() for name, tensor in to_tensors(readouts).items() if name in MAP)


def from_tensors(tensors: Mapping[str, Tensor], prompts: int, words: int, width: int, path: str) -> tuple[Readout, ...]:
    """Return the readouts of M prompts among the tensors of an artifact.

    Raises:
        ArtifactError: They do not fit the number of prompts, the label words or the width of the model.
    """
    own = {name: tensor for name, tensor in tensors.items() if name in NAMES}
    right: dict[str, list[int | None]] = {"slope": [prompts], "offset": [prompts, words]}
    if "weights" in own:
        right["weights"] = [prompts, words, width]
    if SPREAD & set(own):
        right |= {"spread_offset": [prompts], "spread_mean": [prompts, width], "spread_scale": [prompts, width]}
        right["spread_directions"] = [prompts, None, width + 1]  # any number
    for name, sizes in right.items():
        shape = list(own[name].shape) if name in own else []
        if len(shape) != len(sizes) or any(size not in (None, found) for size, found in zip(sizes, shape, strict=True)):
            found = f"shape {shape}" if name in own else "no tensor"
            wanted = ", ".join("any" if size is None else str(size) for size in sizes)
            raise ArtifactError(f"{path}: the readout's {name} has {found} where [{wanted}] is right")
    return tuple(_readout({name: tensor[m].double() for name, tensor in own.items()}) for m in range(prompts))


def _readout(own: Mapping[str, Tensor]) -> Readout:
    """Return one readout of its float64 tensors."""
    spread = None
    if set(own) >= SPREAD:
        offset, *others = (own[f"spread_{part}"] for part in PARTS)
        spread = Spread(float(offset), *others)
    return Readout(float(own["slope"]), own["offset"], own.get("weights"), spread)
