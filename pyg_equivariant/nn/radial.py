"""Expansions of edge lengths."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyg_equivariant.nn.configurable import Configurable

__all__ = ["BesselBasis", "GaussianBasis", "RadialBasis"]


class RadialBasis(Configurable, ABC):
    """``edge_len [E] → edge_rbf [E, K]``, without an envelope.

    Args:
        num_basis: K.
        cutoff: Length in Å up to which the functions are spread; finite.
    """

    def __init__(self, num_basis: int, cutoff: float) -> None:
        super().__init__()
        if not math.isfinite(cutoff):
            raise ValueError(f"{type(self).__name__} is spread over a finite cutoff in Å, got {cutoff}")
        self.num_basis = num_basis
        self.cutoff = cutoff

    @abstractmethod
    def forward(self, edge_len: Float[Tensor, " E"]) -> Float[Tensor, "E K"]:
        """The functions at these lengths in Å."""


class GaussianBasis(RadialBasis):
    """``exp(−(d − μₖ)² / 2Δ²)``, μ evenly spaced by Δ over [0, cutoff].

    Reference: Schütt et al. 2017, arXiv:1706.08566, section 4.2.
    """

    offset: Tensor

    def __init__(self, num_basis: int = 50, cutoff: float = 5.0) -> None:
        super().__init__(num_basis, cutoff)
        if num_basis < 2:
            raise ValueError(f"GaussianBasis needs at least 2 functions to have a spacing, got {num_basis}")
        self.register_buffer("offset", torch.linspace(0.0, cutoff, num_basis))
        self.coefficient = -0.5 / (cutoff / (num_basis - 1)) ** 2

    def forward(self, edge_len: Float[Tensor, " E"]) -> Float[Tensor, "E K"]:
        """See the class."""
        return torch.exp(self.coefficient * (edge_len.unsqueeze(-1) - self.offset).square())


class BesselBasis(RadialBasis):
    """``√(2/c) sin(wₖ d/c) / d`` with trainable ``wₖ``, kπ at the start.

    Reference: Gasteiger et al. 2020, arXiv:2003.03123, eq. 7. Finite, with zero derivatives, at d = 0.
    """

    def __init__(self, num_basis: int = 8, cutoff: float = 5.0) -> None:
        super().__init__(num_basis, cutoff)
        self.frequency = nn.Parameter(torch.arange(1, num_basis + 1) * math.pi)

    def forward(self, edge_len: Float[Tensor, " E"]) -> Float[Tensor, "E K"]:
        """See the class."""
        d = edge_len.unsqueeze(-1)
        zero = d == 0
        wave = torch.sin(self.frequency * d / self.cutoff) / torch.where(zero, 1.0, d)
        return math.sqrt(2.0 / self.cutoff) * torch.where(zero, self.frequency / self.cutoff, wave)
