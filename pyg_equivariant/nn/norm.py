"""Normalisation of features."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyg_equivariant.o3.layout import degree_slices, degrees

__all__ = ["DegreeNorm"]


class DegreeNorm(nn.Module):
    r"""Divides each degree of an atom by its root mean square: :math:`y_{plmc} = g_{plc}\, x_{plmc} / s_{pl}` with

    .. math:: s_{pl}^2 = \varepsilon + \frac{1}{(2l+1)C} \sum_{mc} x_{plmc}^2

    Nothing is subtracted, so that zero stays zero. The map is smooth, at x = 0 too, because ε lies under the root.

    Args:
        channels: C.
        lmax: Highest degree of the features.
        parity: Slots of the features.
        eps: ε; degrees much smaller than its root are not blown up to one.
    """  # noqa: D415

    def __init__(self, channels: int, *, lmax: int = 0, parity: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.lmax = lmax
        self.degrees = degrees(lmax)
        self.weight = nn.Parameter(torch.ones(parity, lmax + 1, channels))

    def forward(self, x: Float[Tensor, "N P M C"]) -> Float[Tensor, "N P M C"]:
        """Normalised features."""
        squares = [x[:, :, rows].square().mean((2, 3)) for rows in degree_slices(self.lmax)]
        inverse = (torch.stack(squares, dim=-1) + self.eps).rsqrt()  # [N, P, lmax + 1]
        return x * (inverse.unsqueeze(-1) * self.weight)[:, :, self.degrees]
