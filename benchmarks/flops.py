"""The floor: floating-point operations that one SVGD step must do, whoever does it.

Weights are frozen, so the backward pass costs one forward pass (∂/∂inputs only). For one sequence of S = P + L
positions and T label tokens, with a = heads·k, A = 4Da, F = 2Df (ReLU) or 3Df (gated):

    encoder   le·[2(A+F)S + 4S²a] forward            le·[2(A+F)S + 8S²a] backward
    cross     the cheaper of
      plain     ld·[4DaS + 4TSa]                       ld·[4DaS + 8TSa]
      absorbed  ld·[4TDa + 4T·heads·D·S]               ld·[4TDa + 8T·heads·D·S]
    decoder   ld·[2(A+2Da+F)T + 4T²a]                  ld·[2(A+2Da+F)T + 8T²a]
    head      2DVT                                     2DVT

SVGD itself is 2M²PD, which is nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from shapes import Shape


def step_flop(shape: Shape, M: int, P: int, lengths: Sequence[int], label_lengths: Sequence[int]) -> int:
    """Return the operations of one step over examples of the given text and label lengths."""
    pairs = zip(lengths, label_lengths, strict=True)
    return M * sum(sequence_flop(shape, P + L, T) for L, T in pairs)


def sequence_flop(shape: Shape, S: int, T: int) -> int:
    """Return the operations of one example under one prompt, forward and backward."""
    return encoder_flop(shape, S) + cross_flop(shape, S, T) + decoder_flop(shape, T) + 4 * shape.D * shape.V * T


def encoder_flop(shape: Shape, S: int) -> int:
    a = shape.heads * shape.k
    return shape.layers[0] * (4 * (4 * shape.D * a + _feed_forward(shape)) * S + 12 * S**2 * a)


def cross_flop(shape: Shape, S: int, T: int) -> int:
    """Return the operations of cross attention without its q and o, by the cheaper way."""
    D, a = shape.D, shape.heads * shape.k
    plain = 8 * D * a * S + 12 * T * S * a
    absorbed = 8 * T * D * a + 12 * T * shape.heads * D * S
    return shape.layers[1] * min(plain, absorbed)


def decoder_flop(shape: Shape, T: int) -> int:
    a = shape.heads * shape.k
    weights = 4 * shape.D * a + 2 * shape.D * a + _feed_forward(shape)
    return shape.layers[1] * (4 * weights * T + 12 * T**2 * a)


def _feed_forward(shape: Shape) -> int:
    return (3 if shape.gated else 2) * shape.D * shape.f
