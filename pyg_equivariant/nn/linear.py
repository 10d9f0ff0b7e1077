"""Linear maps of channels, one matrix a degree and parity."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.nn.embedding import MAX_Z
from pyg_equivariant.o3.layout import degree_slices

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
        y = _mix(x, self.weight)
        if self.bias is not None:
            scalars, rest = y.flatten(1, 2).tensor_split([1], dim=1)
            y = torch.cat([scalars + self.bias, rest], dim=1).view_as(y)
        return y


class ElementLinear(nn.Module):
    r"""Mixes channels with a matrix for each element: :math:`y_{iplmd} = \sum_c x_{iplmc} W_{z_i,plcd}`.

    This is e3nn's ``FullyConnectedTensorProduct`` with one-hot elements. With few elements it is one matrix product of
    ``x ⊗ one-hot(z)``; with many, the matrix of each atom is looked up, which takes P·(lmax + 1)·C·D numbers an atom.

    Args:
        in_channels: C.
        out_channels: D.
        lmax: Highest degree of the features.
        parity: Slots of the features.
        elements: Atomic numbers that occur; any other gives NaN. All elements if not given.
    """

    one_hot: Tensor

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
        self.looks_up = len(known) > max(16, in_channels)
        shape = (parity, lmax + 1, len(known), in_channels, out_channels)
        self.weight = nn.Parameter(torch.randn(shape) / math.sqrt(in_channels))
        table = torch.full((MAX_Z + 1, len(known)), math.nan)
        table[list(known)] = torch.eye(len(known))
        self.register_buffer("one_hot", table, persistent=False)

    def forward(self, x: Float[Tensor, "N P M C"], z: Int[Tensor, " N"]) -> Float[Tensor, "N P M D"]:
        """Mixed features of atoms with atomic numbers ``z``."""
        if self.looks_up:
            weight = self.weight.movedim(2, 0).index_select(0, z)
            blocks = [x[:, :, rows] @ weight[:, :, degree] for degree, rows in enumerate(degree_slices(self.lmax))]
            return torch.cat(blocks, dim=2)
        spread = x.unsqueeze(3) * self.one_hot[z][:, None, None, :, None]
        return _mix(spread.flatten(3), self.weight.flatten(2, 3))


def _mix(x: Float[Tensor, "N P M C"], weight: Float[Tensor, "P L C D"]) -> Float[Tensor, "N P M D"]:
    """One product of matrices for each slot and degree."""
    num_atoms, num_slots, num_components, channels = x.shape
    blocks = [
        (x[:, slot, rows].reshape(-1, channels) @ weight[slot, degree]).view(num_atoms, 2 * degree + 1, weight.shape[3])
        for slot in range(num_slots)
        for degree, rows in enumerate(degree_slices(weight.shape[1] - 1))
    ]
    return torch.cat(blocks, dim=1).view(num_atoms, num_slots, num_components, weight.shape[3])
