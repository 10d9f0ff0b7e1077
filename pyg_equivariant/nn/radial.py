"""Expansions of edge lengths."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyg_equivariant.nn.compiler import stored
from pyg_equivariant.nn.configurable import Configurable
from pyg_equivariant.nn.cutoff import Cutoff

__all__ = [
    "BesselBasis",
    "EnvelopedBasis",
    "GaussianBasis",
    "RadialBasis",
    "TrainableBesselBasis",
    "bump",
    "enveloped",
]


def bump(exponent: Float[Tensor, "E K"]) -> Float[Tensor, "E K"]:
    """``exp(exponent)`` of exponents up to 0, and zero where that is below float64's rounding of 1.

    Matrix products of numbers near the smallest ones there are take many times as long on Intel's processors.
    """
    least = -36.0
    return torch.exp(exponent.clamp(min=least)) * (exponent > least)


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
    """``exp(−(d − μₖ)² / 2Δ²)`` by :func:`bump`, μ evenly spaced by Δ over [0, cutoff].

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
        return bump(self.coefficient * (edge_len.unsqueeze(-1) - self.offset).square())


class BesselBasis(RadialBasis):
    """``√(2/c) sin(wₖ d/c) / d`` with ``wₖ = kπ``.

    Reference: Gasteiger et al. 2020, arXiv:2003.03123, eq. 7. Finite, with zero derivatives, at d = 0.
    """

    frequency: Tensor

    def __init__(self, num_basis: int = 8, cutoff: float = 5.0) -> None:
        super().__init__(num_basis, cutoff)
        self.register_buffer("frequency", torch.arange(1, num_basis + 1) * math.pi)

    def forward(self, edge_len: Float[Tensor, " E"]) -> Float[Tensor, "E K"]:
        """See the class."""
        d = edge_len.unsqueeze(-1)
        zero = d == 0
        wave = torch.sin(self.frequency * d / self.cutoff) / torch.where(zero, 1.0, d)
        return math.sqrt(2.0 / self.cutoff) * torch.where(zero, self.frequency / self.cutoff, wave)


class TrainableBesselBasis(BesselBasis):
    """The Bessel basis with trainable ``wₖ``, kπ at the start (DimeNet, NequIP)."""

    def __init__(self, num_basis: int = 8, cutoff: float = 5.0) -> None:
        super().__init__(num_basis, cutoff)
        frequency = self.frequency
        del self.frequency
        self.frequency = nn.Parameter(frequency)


class EnvelopedBasis(Configurable):
    """``edge_len [E] → [fₖ(d) u(d), u(d)]  [E, K + 1]``, a basis under an envelope u.

    A linear filter with a bias, multiplied by the envelope, is a linear map without a bias of these: one
    matrix product that vanishes smoothly at the cutoff.
    """

    def __init__(self, radial: RadialBasis, envelope: Cutoff) -> None:
        super().__init__()
        self.radial = radial
        self.envelope = envelope
        self.num_basis = radial.num_basis + 1

    def forward(self, edge_len: Float[Tensor, " E"]) -> Float[Tensor, "E K1"]:
        """The functions at these lengths in Å."""
        u = self.envelope(edge_len).unsqueeze(-1)
        return torch.cat([self.radial(edge_len) * u, u], -1)


def enveloped(
    radial: RadialBasis, envelope: Cutoff, length: Float[Tensor, " R"]
) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R K1"], Float[Tensor, " R"]]:
    """A basis under an envelope, the same twice under it and with a column for a bias, and the envelope."""
    edge_env = stored(envelope(length))
    edge_rbf = stored(radial(length) * edge_env.unsqueeze(-1))
    with_bias = torch.cat([edge_rbf, torch.ones_like(edge_rbf[:, :1])], -1) * edge_env.unsqueeze(-1)
    return edge_rbf, with_bias, edge_env
