"""Linear maps of channels, one matrix a degree and parity."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.nn.block_product import Blocks, block_product
from pyg_equivariant.nn.embedding import MAX_Z
from pyg_equivariant.o3.layout import lmax_of

__all__ = ["DegreeLinear", "ElementLinear"]


class DegreeLinear(nn.Module):
    r"""Mixes channels: :math:`y_{plmd} = \sum_c x_{plmc} W_{plcd}`, all m of a degree alike.

    Args:
        in_channels: C.
        out_channels: D.
        lmax: Highest degree of the features.
        parity: Slots of the features.
        bias: Add a vector to the true scalars, the only components that may have one; zero at the start.
    """

    bias: nn.Parameter | None

    def __init__(
        self, in_channels: int, out_channels: int, *, lmax: int = 0, parity: int = 1, bias: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(parity, lmax + 1, in_channels, out_channels) / math.sqrt(in_channels))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_channels)) if bias else None)

    def forward(self, x: Float[Tensor, "N P M C"]) -> Float[Tensor, "N P M D"]:
        """Mixed features."""
        y = _by_degree(x, self.weight)
        if self.bias is not None:
            rows = y.flatten(1, 2)
            scalars, rest = rows.split([1, rows.shape[1] - 1], dim=1)
            y = torch.cat([scalars + self.bias, rest], dim=1).view_as(y)
        return y


class ElementLinear(nn.Module):
    r"""Mixes channels with a matrix for each element: :math:`y_{iplmd} = \sum_c x_{iplmc} W_{z_i,plcd}`.

    This is e3nn's ``FullyConnectedTensorProduct`` with one-hot elements, see
    :func:`~pyg_equivariant.nn.block_product.block_product`.

    Args:
        in_channels: C.
        out_channels: D.
        lmax: Highest degree of the features.
        parity: Slots of the features.
        elements: Atomic numbers that occur; any other gives NaN. All elements if not given.
    """

    place: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        lmax: int = 0,
        parity: int = 1,
        elements: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.lmax = lmax
        known = range(MAX_Z + 1) if elements is None else sorted(set(elements))
        if not known or known[0] < 0 or known[-1] > MAX_Z:
            raise ValueError(f"elements must be atomic numbers from 1 to {MAX_Z}, got {elements}")
        shape = (parity, lmax + 1, len(known), in_channels, out_channels)
        self.weight = nn.Parameter(torch.randn(shape) / math.sqrt(in_channels))
        place = torch.full((MAX_Z + 1,), -1)
        place[list(known)] = torch.arange(len(known))
        self.register_buffer("place", place, persistent=False)

    def forward(self, x: Float[Tensor, "N P M C"], z: Int[Tensor, " N"]) -> Float[Tensor, "N P M D"]:
        """Mixed features of atoms with atomic numbers ``z``."""
        index = self.place.index_select(0, z)
        return _by_degree(x, self.weight, index)


def _by_degree(
    x: Float[Tensor, "N P M C"], weight: Float[Tensor, "P L *Z C D"], index: Int[Tensor, " N"] | None = None
) -> Float[Tensor, "N P M D"]:
    """The rows of each slot and degree times the matrix of both, or of their matrices that of the atom's element."""
    rows = [2 * degree + 1 for degree in range(lmax_of(x.shape[2]) + 1)] * x.shape[1]
    *elements, channels, outcomes = weight.shape[2:]
    blocks = Blocks(rows, [channels] * len(rows), [outcomes] * len(rows))
    y = block_product(x.flatten(1), weight.flatten(), blocks, index, *elements)
    return y.view(*x.shape[:3], outcomes)
