"""The values that a sweep may give to a setting."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

Number = int | float
Scalar = bool | int | float | str | None


class Range(BaseModel):
    """Values that a setting may take; exactly one is given.

    Attributes:
        uniform: Lowest and highest number; whole ones for a setting that is a whole number.
        log: The same, drawn evenly over their logarithms.
        choice: The values themselves.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    uniform: tuple[Number, Number] | None = None
    log: tuple[Number, Number] | None = None
    choice: tuple[Scalar, ...] | None = Field(default=None, min_length=2)

    @model_validator(mode="after")
    def _one_that_can_be_drawn_from(self) -> Range:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give one of uniform, log and choice, such as {log: [0.01, 1]}")
        if self.bounds and not self.bounds[0] < self.bounds[1]:
            raise ValueError("the lowest number must be less than the highest")
        if self.log and self.log[0] <= 0:
            raise ValueError("logarithms need numbers above 0")
        return self

    @property
    def bounds(self) -> tuple[Number, Number] | None:
        """The lowest and the highest number."""
        return self.uniform or self.log

    @property
    def corners(self) -> tuple[Scalar, ...]:
        """The values by which the whole range can be judged."""
        return self.bounds or self.choice or ()

    def holds(self, value: object) -> bool:
        """Tell whether it may be drawn.

        >>> Range(log=(0.1, 1)).holds("auto"), Range(log=(0.1, 1)).holds(1.0), Range(choice=(1, "auto")).holds("auto")
        (False, True, True)
        """
        if self.bounds:
            return isinstance(value, Number) and self.bounds[0] <= value <= self.bounds[1]
        return value in self.corners
