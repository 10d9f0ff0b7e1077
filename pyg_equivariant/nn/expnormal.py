"""Gaussians of an exponential of the edge length."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyg_equivariant.nn.radial import RadialBasis, bump

__all__ = ["ExpNormalBasis", "TrainableExpNormalBasis"]


class ExpNormalBasis(RadialBasis):
    """``exp(−βₖ (exp(−5d/c) − μₖ)²)``, μ evenly spaced over [exp(−c), 1] and ``βₖ = (2/K (1 − exp(−c)))⁻²``.

    The functions lie close together where atoms are close. Reference: Unke & Meuwly 2019, arXiv:1902.08408, with
    the exponent of TorchMD-NET (Thölke & De Fabritiis 2022, arXiv:2202.02541), the same at a cutoff c of 5 Å.
    """

    mean: Tensor
    beta: Tensor

    def __init__(self, num_basis: int = 32, cutoff: float = 5.0) -> None:
        super().__init__(num_basis, cutoff)
        start = math.exp(-cutoff)
        self.register_buffer("mean", torch.linspace(start, 1.0, num_basis))
        self.register_buffer("beta", torch.full((num_basis,), (2.0 / num_basis * (1.0 - start)) ** -2))

    def forward(self, edge_len: Float[Tensor, " E"]) -> Float[Tensor, "E K"]:
        """See the class."""
        decay = torch.exp(-5.0 / self.cutoff * edge_len).unsqueeze(-1)
        return bump(-self.beta * (decay - self.mean).square())


class TrainableExpNormalBasis(ExpNormalBasis):
    """The same with trainable βₖ and μₖ."""

    def __init__(self, num_basis: int = 32, cutoff: float = 5.0) -> None:
        super().__init__(num_basis, cutoff)
        mean, beta = self.mean, self.beta
        del self.mean, self.beta
        self.mean, self.beta = nn.Parameter(mean), nn.Parameter(beta)
