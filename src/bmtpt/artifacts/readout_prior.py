"""How wide source tasks want a readout's prior, as a posterior's card notes it (docs/method.md, section 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt

from bmtpt.settings import ReadoutKind, Width


class WidthPoint(BaseModel):
    """Widths of the prior, and what readouts under it say of rows that they were not fitted to.

    Attributes:
        nll: In nats per row, mean over tasks and draws of labels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    offset_std: Width
    weight_std: Width
    slope_std: Width
    nll: FiniteFloat


class WidthCurve(BaseModel):
    """The widths that were compared at one number of labels.

    Attributes:
        shots: k.
        points: The simplest widths first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shots: PositiveInt
    points: tuple[WidthPoint, ...] = Field(min_length=1)

    def best(self, readout: ReadoutKind) -> WidthPoint:
        """Return the widths of least NLL; for an offset among those without weights, if there are any."""
        offsets = [point for point in self.points if not point.weight_std]
        return min((readout == "offset" and offsets) or self.points, key=lambda point: point.nll)

    def __str__(self) -> str:
        offset, linear = self.best("offset"), self.best("linear")
        return f"{self.shots} labels: offset {_shown(offset)}, linear {_shown(linear)}"


def nearest_curve(curves: Sequence[WidthCurve], labels: int) -> WidthCurve:
    """Return the curve whose number of labels is nearest by ratio."""
    return min(curves, key=lambda curve: abs(math.log(curve.shots / labels)))


def _shown(point: WidthPoint) -> str:
    slope = f", σ_a {point.slope_std:g}" if point.slope_std else ""
    weights = f", σ_w {point.weight_std:g}" if point.weight_std else ""
    return f"σ_b {point.offset_std:g}{weights}{slope} ({point.nll:.3f} nats)"
