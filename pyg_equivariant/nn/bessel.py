"""Spherical Bessel functions of edge lengths, for any degree."""

import itertools
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.polynomial import chebyshev
from scipy.optimize import brentq
from scipy.special import spherical_jn
from torch import Tensor

from pyg_equivariant.nn.native import operation, runs_on
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
    But each R is an entire function, even or odd in u like l. On [−1, 1] it equals a short Chebyshev series of the
    polynomials that are even or odd likewise, to the last digit, everywhere, as do its derivatives.

    Args:
        num_degrees: L, degrees 0 to L − 1.
        num_basis: K, functions a degree.
    """

    series: Tensor

    def __init__(self, num_degrees: int, num_basis: int) -> None:
        super().__init__()
        if num_degrees < 1 or num_basis < 1:
            raise ValueError(f"a basis needs degrees and functions, got {num_degrees} and {num_basis}")
        self.num_basis = num_basis
        roots = spherical_bessel_roots(num_degrees, num_basis)
        # the coefficients of cos(z u) are Bessel functions J_n(z), which vanish once n is well above z
        order = int(roots.max() + 8 * np.cbrt(roots.max()) + 8)
        u = chebyshev.chebpts1(order + 1)
        columns = []
        for degree, row in enumerate(roots):
            norm = math.sqrt(2.0) / np.abs(spherical_jn(degree + 1, row))
            columns.append(chebyshev.chebfit(u, norm * spherical_jn(degree, u[:, None] * row), order))
            columns[-1][(degree + 1) % 2 :: 2] = 0.0
        self.register_constant("series", torch.from_numpy(np.concatenate(columns, 1)))

    def forward(self, u: Float[Tensor, " E"]) -> Float[Tensor, "E L K"]:
        """The functions at lengths in units of the radius; beyond 1, what they are at 1."""
        u = u.clamp(max=1.0)
        values: Tensor
        if runs_on(u) and u.dtype == self.series.dtype:
            values = _chebyshev_series(u, self.series, 0)
        else:
            values = _chebyshev(u.unsqueeze(-1), len(self.series) - 1) @ self.series
        return values.unflatten(-1, (-1, self.num_basis))


def _chebyshev(x: Float[Tensor, "E 1"], order: int) -> Float[Tensor, "E D"]:
    """T_0 to T_order by ``T_{n+m} = 2 T_n T_m − T_{n−m}``: the number of known polynomials doubles each time."""
    known = torch.cat([torch.ones_like(x), x], -1)
    while (last := known.shape[-1] - 1) < order:
        count = min(last, order - last)
        known = torch.cat(
            [known, 2.0 * known[:, -1:] * known[:, 1 : count + 1] - known[:, last - count : last].flip(-1)], -1
        )
    return known


# The derivative of this order of Σ_n series[n] T_n(u), a series itself. The coefficients are constants.
_chebyshev_series = operation(
    "chebyshev_series(Tensor u, Tensor series, int order) -> Tensor",
    lambda u, series, order: u.new_empty(u.shape[0], series.shape[1]),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    u, series, ctx.order = inputs
    ctx.save_for_backward(u, series)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    u, series = ctx.saved_tensors
    return (g * _chebyshev_series(u, series, ctx.order + 1)).sum(-1), None, None


torch.library.register_autograd(_chebyshev_series, _backward, setup_context=_save)
