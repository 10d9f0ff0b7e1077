"""Nonlinearities of features as functions on the sphere."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyg_equivariant.nn.activation import silu
from pyg_equivariant.nn.configurable import Configurable
from pyg_equivariant.nn.mlp import dense
from pyg_equivariant.o3.constants import ExactConstants
from pyg_equivariant.o3.layout import degrees, num_components
from pyg_equivariant.o3.sphere import SphereGrid

__all__ = ["GridSiLU", "QuadraticSiLU", "SeparableS2Activation", "SphereActivation"]


class SphereActivation(Configurable, ABC):
    """A nonlinearity of the values that a signal has at the points of a grid on the sphere."""

    @abstractmethod
    def resolution(self, lmax: int, depth: int) -> int:
        """Points in the polar angle that signals of degree ``lmax`` need if it is applied ``depth`` times."""

    @abstractmethod
    def forward(self, values: Float[Tensor, "N G C"], share: Float[Tensor, " G"]) -> Float[Tensor, "N G C"]:
        """New values.

        Args:
            values: Of N signals of C channels.
            share: Of the sphere's area, one for each point; their sum is one.
        """


class QuadraticSiLU(SphereActivation):
    r"""SiLU to second order, which a grid integrates exactly: equivariant to machine precision.

    .. math:: f(x) = \frac x 2 + \frac{x^2}{4 \sqrt{1 + s^2}}, \qquad s^2 = \text{mean of } x^2 \text{ over the sphere}

    Small signals see SiLU's Taylor polynomial up to the third order (its cubic term is zero). The root keeps the growth
    linear, as SiLU's is, and gives the quadratic term close to the weight it has in SiLU's expansion in Hermite
    polynomials, that is for normal x: .177 against .179 at s = 1.
    """

    def resolution(self, lmax: int, depth: int) -> int:
        """See :class:`SphereActivation`."""
        return (2**depth + 1) * lmax // 2 + 1

    def forward(self, values: Float[Tensor, "N G C"], share: Float[Tensor, " G"]) -> Float[Tensor, "N G C"]:
        """See :class:`SphereActivation`."""
        square = torch.einsum("g,ngc->nc", share, values.square()).unsqueeze(1)
        return values * (0.5 + values * (0.25 * (1.0 + square).rsqrt()))


class GridSiLU(SphereActivation):
    """SiLU at each point, as in the papers: equivariant up to what the grid cannot resolve.

    SiLU makes all degrees of a signal; those beyond the grid's reach are mistaken for low ones. For normal features
    of lmax 4 a rotation before instead of after it changes the result by 5e-2, 5e-3, 2e-4 and 5e-7 at 9, 12, 18 and
    30 points. Forces remain gradients of the energy, but there is a net torque of that order.
    Reference: Cohen et al. 2018, arXiv:1801.10130; Zitnick et al. 2022, arXiv:2206.14331.

    Args:
        points: In the polar angle; twice as many lie around the axis. 9 reach as far (degree 17) as the 18 × 18 equal
            angles of the papers.
    """

    def __init__(self, points: int = 9) -> None:
        super().__init__()
        self.points = points

    def resolution(self, lmax: int, depth: int) -> int:
        """See :class:`SphereActivation`."""
        return self.points

    def forward(self, values: Float[Tensor, "N G C"], share: Float[Tensor, " G"]) -> Float[Tensor, "N G C"]:
        """See :class:`SphereActivation`."""
        return silu(values)


class SeparableS2Activation(ExactConstants):
    r"""Higher degrees by a function on the sphere, true scalars by a SiLU of their own.

    .. math:: y_{l > 0} = G^{-1} F(G\, x), \qquad y_0 = \mathrm{SiLU}(s)

    G takes features to values on a grid, :math:`\sum_l (2l + 1)^{-1/2} \sum_m x_{lm} Y_{lm} / \sqrt{l_{max} + 1}`, so
    that all degrees have the same share in them, as in e3nn. F is the activation alone, or an MLP of the channels at
    each point.
    Reference: Liao et al. 2023, arXiv:2306.12059, section 3.3 and Fig. 2c.

    Args:
        lmax: Highest degree of the features.
        activation: Of values on the sphere; it fixes the grid.
        sizes: Channels of input, hidden layers and output of the MLP F; the activation alone if empty.
        rows: Components of the features, in their order, the scalar first; all in the usual order if not given.
    """

    share: Tensor
    synthesis: Tensor
    analysis: Tensor

    def __init__(
        self,
        lmax: int,
        activation: SphereActivation,
        *,
        sizes: Sequence[int] = (),
        rows: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.linears = nn.ModuleList(dense(a, b, bias=False) for a, b in itertools.pairwise(sizes))
        grid = SphereGrid(lmax, activation.resolution(lmax, max(1, len(self.linears) - 1))).double()
        kept = list(range(num_components(lmax))) if rows is None else list(rows)
        self.register_constant("share", grid.analysis[:, 0] / math.sqrt(num_components(lmax)))
        shares = [num_components(lmax) / ((2 * n + 1) * (lmax + 1)) for n in degrees(lmax)]
        scale = torch.tensor(shares, dtype=torch.float64).sqrt()
        self.register_constant("synthesis", (grid.synthesis * scale)[:, kept])
        self.register_constant("analysis", (grid.analysis / scale)[:, kept[1:]].T.contiguous())

    def forward(self, x: Float[Tensor, "N R C"], scalars: Float[Tensor, "N D"]) -> Float[Tensor, "N R D"]:
        """Features y.

        Args:
            x: Features; their scalars, too, take part in the function on the sphere.
            scalars: s.
        """
        values = torch.einsum("gr,nrc->ngc", self.synthesis, x)
        if not len(self.linears):
            values = self.activation(values, self.share)
        for index, linear in enumerate(self.linears):
            values = linear(self.activation(values, self.share) if index else values)
        rest = torch.einsum("rg,ngc->nrc", self.analysis, values)
        return torch.cat([silu(scalars).unsqueeze(1), rest], dim=1)
