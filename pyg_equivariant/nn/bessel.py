"""Spherical Bessel functions of edge lengths, for any degree."""

import itertools
import math

import numpy as np
import torch
from jaxtyping import Float
from numpy.polynomial import chebyshev
from scipy.optimize import brentq
from scipy.special import spherical_jn
from torch import Tensor

from pyg_equivariant.o3.constants import ExactConstants

__all__ = ["SphericalBesselBasis", "spherical_bessel_roots"]


def spherical_bessel_roots(num_degrees: int, num_basis: int) -> Float[np.ndarray, "L K"]:
    """The first ``num_basis`` positive zeros of the spherical Bessel functions of degree 0 to ``num_degrees − 1``.

    Example:
        >>> spherical_bessel_roots(2, 2).round(3).tolist()
        [[3.142, 6.283], [4.493, 7.725]]
    """
    roots = np.arange(1, num_basis + num_degrees) * math.pi
    rows = [roots[:num_basis]]
    for degree in range(1, num_degrees):
        # each degree has one zero between two neighbouring zeros of the degree below
        pairs = itertools.pairwise(roots)
        roots = np.array([brentq(lambda t: spherical_jn(degree, t), *pair, xtol=1e-15) for pair in pairs])  # noqa: B023
        rows.append(roots[:num_basis])
    return np.stack(rows)


class SphericalBesselBasis(ExactConstants):
    r"""``u [E] → [E, L, K]``, the radial functions of a ball of radius 1 that vanish on its surface.

    .. math:: R_{lk}(u) = \sqrt{2 / j_{l+1}^2(z_{lk})} \, j_l(z_{lk} u), \qquad \int_0^1 R_{lk} R_{lk'} u^2 du = δ_{kk'}

    with z_lk the k-th zero of j_l. Reference: Gasteiger et al. 2020, arXiv:2003.03123, eq. 6, with c = 1.

    The closed forms of j_l lose all digits at small arguments (as u to the power of −l − 1), their derivatives more.
    But each R is an entire function, even or odd in u like l. On [0, 1] it equals a short Chebyshev series in u² (times
    u, if odd) to the last digit: all functions are one matrix product, right everywhere, as are their derivatives.

    Args:
        num_degrees: L, degrees 0 to L − 1.
        num_basis: K, functions a degree.
    """

    series: Tensor

    def __init__(self, num_degrees: int, num_basis: int) -> None:
        super().__init__()
        if num_degrees < 1 or num_basis < 1:
            raise ValueError(f"a basis needs degrees and functions, got {num_degrees} and {num_basis}")
        self.num_degrees = num_degrees
        self.num_basis = num_basis
        roots = spherical_bessel_roots(num_degrees, num_basis)
        # the coefficients of cos(z u) are Bessel functions J_2m(z), which vanish once 2m is well above z
        self.order = int(roots.max() / 2 + 4 * np.cbrt(roots.max()) + 4)
        points = chebyshev.chebpts1(self.order + 1)
        u = np.sqrt((points + 1) / 2)
        columns = []
        for degree, row in enumerate(roots):
            norm = math.sqrt(2.0) / np.abs(spherical_jn(degree + 1, row))
            values = norm * spherical_jn(degree, u[:, None] * row)
            columns.append(chebyshev.chebfit(points, values / u[:, None] if degree % 2 else values, self.order))
        self.register_constant("series", torch.from_numpy(np.concatenate(columns, 1)))

    def forward(self, u: Float[Tensor, " E"]) -> Float[Tensor, "E L K"]:
        """The functions at lengths in units of the radius; beyond 1, what they are at 1."""
        u = u.clamp(max=1.0).unsqueeze(-1)
        values = (_chebyshev(2.0 * u.square() - 1.0, self.order) @ self.series).unflatten(-1, (-1, self.num_basis))
        odd = torch.arange(self.num_degrees, device=u.device).remainder(2).view(-1, 1)
        return values * torch.where(odd == 1, u.unsqueeze(-1), 1.0)


def _chebyshev(x: Float[Tensor, "E 1"], order: int) -> Float[Tensor, "E D"]:
    """T_0 to T_order by ``T_{n+m} = 2 T_n T_m − T_{n−m}``: the number of known polynomials doubles each time."""
    known = torch.cat([torch.ones_like(x), x], -1)
    while (last := known.shape[-1] - 1) < order:
        count = min(last, order - last)
        known = torch.cat(
            [known, 2.0 * known[:, -1:] * known[:, 1 : count + 1] - known[:, last - count : last].flip(-1)], -1
        )
    return known
