"""Real spherical harmonics in e3nn's basis, component normalisation."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["spherical_harmonics"]


def _unit_vectors(vec: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3"]:
    """``vec / |vec|``; a vector shorter than 1e-9 counts as zero and keeps direction zero.

    No bare norm is differentiated, so that the first and second derivatives are finite everywhere.
    """
    square = vec.square().sum(-1, keepdim=True)
    positive = square > 1e-18
    inverse = torch.where(positive, torch.where(positive, square, 1.0).rsqrt(), 0.0)
    return vec * inverse


def spherical_harmonics(vec: Float[Tensor, "... 3"], lmax: int) -> Float[Tensor, "... M"]:
    r"""Harmonics of the directions of ``vec``, all degrees up to ``lmax``.

    Degree 1 is :math:`\sqrt 3 (x, y, z)`; in each degree the mean square of a component over the sphere is
    one (Σ_m Y_lm² = 2l + 1). The zero vector has the harmonics (1, 0, 0, ...).

    With the polar axis y and :math:`(z + ix)^m = a_m + i b_m`, component ±m of degree l is
    :math:`P_l^m(y)\,a_m` and :math:`P_l^m(y)\,b_m`, where the normalised Legendre polynomials (without
    :math:`\sin^m`, which a and b carry) follow from

    .. math::
        P_m^m = \sqrt{\tfrac{2m+1}{2m}}\,P_{m-1}^{m-1},\quad
        P_l^m = \sqrt{\tfrac{4l^2-1}{l^2-m^2}}\,y\,P_{l-1}^m
              - \sqrt{\tfrac{(2l+1)(l+m-1)(l-m-1)}{(2l-3)(l^2-m^2)}}\,r^2 P_{l-2}^m

    with :math:`r^2 = x^2 + y^2 + z^2`, which makes every component homogeneous of degree l.

    Args:
        vec: Vectors of any length, in Å or without unit.
        lmax: Highest degree.
    """
    unit = _unit_vectors(vec)
    x, y, z = unit.unbind(-1)
    columns: list[list[Tensor]] = [[torch.ones_like(x)]]
    if lmax >= 1:
        columns.append(list((math.sqrt(3) * unit).unbind(-1)))
    if lmax >= 2:
        columns += _higher_degrees(x, y, z, lmax)
    return torch.stack([component for degree in columns for component in degree], dim=-1)


def _higher_degrees(x: Tensor, y: Tensor, z: Tensor, lmax: int) -> list[list[Tensor]]:
    square = x * x + y * y + z * z
    cosines, sines = [torch.ones_like(x), z], [torch.zeros_like(x), x]
    for _ in range(2, lmax + 1):
        cosines.append(z * cosines[-1] - x * sines[-1])
        sines.append(z * sines[-1] + x * cosines[-2])
    legendre: dict[tuple[int, int], Tensor] = {}
    sectoral = 1.0  # P_m^m, a number
    for m in range(lmax + 1):
        sectoral *= math.sqrt((2 * m + 1) / (2 * m) * (2 if m == 1 else 1)) if m else 1.0
        legendre[m, m] = torch.full_like(y, sectoral)
        for degree in range(m + 1, lmax + 1):
            gap = degree**2 - m**2
            value = math.sqrt((4 * degree**2 - 1) / gap) * y * legendre[degree - 1, m]
            if degree > m + 1:
                back = (2 * degree + 1) * (degree + m - 1) * (degree - m - 1) / ((2 * degree - 3) * gap)
                value = value - math.sqrt(back) * square * legendre[degree - 2, m]
            legendre[degree, m] = value
    return [
        [legendre[degree, m] * sines[m] for m in range(degree, 0, -1)]
        + [legendre[degree, 0]]
        + [legendre[degree, m] * cosines[m] for m in range(1, degree + 1)]
        for degree in range(2, lmax + 1)
    ]
