"""Weighted sums of tensors, exact where they have to be.

A sum is computed in the next wider dtype and rounded once. So a soup of equal values is that value:
with n shares w of sum 1 the wide result is w₁x + … = x(1 + ε), |ε| ≤ (n + 2)u, where u is half a
unit in the wide dtype's last place (2⁻²⁴ in float32, 2⁻⁵³ in float64). That is far less than half a
unit of the narrow dtype (2⁻⁹ in bfloat16, 2⁻¹² in float16, 2⁻²⁴ in float32), and x is a narrow
value, so rounding returns x. Shares of 0 are left out: what remains with a share of 1 keeps its
bits, −0 and all.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CHUNK = 2**24  # values that are wide at once: a whole embedding in float64 takes gigabytes
OPPOSITE = 1e-9  # of 1 + cos θ: closer to opposite directions, which arc joins them is not known


def split_shares(alpha: float | None, count: int) -> list[float]:
    """`alpha` for the first model and the rest equally for the others; None: equal shares."""
    if alpha is None:
        return [1 / count] * count
    return [alpha, *[(1 - alpha) / (count - 1)] * (count - 1)]


def sum_tensors(
    tensors: Sequence["torch.Tensor"], shares: Sequence[float], dtype: "torch.dtype"
) -> "torch.Tensor":
    """Σ share · tensor, rounded to `dtype`."""
    import torch

    terms = [(one.flatten(), share) for one, share in zip(tensors, shares, strict=True) if share]
    total = torch.empty(tensors[0].shape, dtype=dtype)
    flat, wide = total.view(-1), choose_wide(dtype)
    for start in range(0, len(flat), CHUNK):
        parts = [(values[start : start + CHUNK].to(wide), share) for values, share in terms]
        flat[start : start + CHUNK] = _sum_wide(parts)
    return total


def _sum_wide(parts: Sequence[tuple["torch.Tensor", float]]) -> "torch.Tensor":
    """Begins with the first term, not with 0: 0 + −0 is +0."""
    (first, share), *others = parts
    total = first * share
    for part, share in others:
        total.add_(part, alpha=share)
    return total


def choose_wide(dtype: "torch.dtype") -> "torch.dtype":
    import torch

    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else torch.float64


def slerp_shares(a: "torch.Tensor", b: "torch.Tensor", alpha: float) -> list[float]:
    """The shares of a and b on the arc from b to a, at `alpha` of its length (Shoemake 1985).

    sin(αθ)/sin θ and sin((1−α)θ)/sin θ, where θ is the angle between the tensors as vectors. For
    small θ they are α(1 + O(θ²)), and θ² = 2(1 − cos θ) + O(θ⁴): a cosine summed in float64 is
    exact enough at any angle. Equal tensors have cos θ = 1 exactly, as √(s·s) = s in binary.
    """
    norms = math.sqrt(_dot(a, a) * _dot(b, b))
    cosine = _dot(a, b) / norms if norms else 1.0  # a zero vector has no direction
    if 1 + cosine < OPPOSITE:
        raise ValueError("opposite directions")
    angle = math.acos(min(cosine, 1.0))
    if angle == 0:
        return [alpha, 1 - alpha]
    return [math.sin(share * angle) / math.sin(angle) for share in (alpha, 1 - alpha)]


def _dot(a: "torch.Tensor", b: "torch.Tensor") -> float:
    """Summed in float64. Products of half-precision values are exact in float32."""
    import torch

    wide = choose_wide(torch.promote_types(a.dtype, b.dtype))
    chunks = zip(a.flatten().split(CHUNK), b.flatten().split(CHUNK), strict=True)
    sums = ((x.to(wide) * y.to(wide)).sum(dtype=torch.float64) for x, y in chunks)
    return math.fsum(map(float, sums))
