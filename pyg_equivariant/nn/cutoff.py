"""Envelopes that take messages smoothly to zero at the cutoff."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from pyg_equivariant.nn.configurable import Configurable

__all__ = ["CosineCutoff", "Cutoff", "PolynomialCutoff"]


class Cutoff(Configurable, ABC):
    """A factor of each edge: 1 at length 0, and 0 from ``cutoff`` on; 1 everywhere if that is ``math.inf``."""

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def forward(self, edge_len: Float[Tensor, " E"]) -> Float[Tensor, " E"]:
        """The factors of edges of these lengths in Å."""
        return torch.where(edge_len < self.cutoff, self.envelope(edge_len / self.cutoff), 0.0)

    @abstractmethod
    def envelope(self, u: Float[Tensor, " E"]) -> Float[Tensor, " E"]:
        """The factor at ``u = edge_len / cutoff`` in [0, 1)."""


class CosineCutoff(Cutoff):
    """``½ (cos πu + 1)`` (Behler 2011, doi:10.1063/1.3553717, eq. 4)."""

    def envelope(self, u: Float[Tensor, " E"]) -> Float[Tensor, " E"]:
        """See the class."""
        return 0.5 * (torch.cos(math.pi * u) + 1.0)


class PolynomialCutoff(Cutoff):
    """``1 − (p+1)(p+2)/2 uᵖ + p(p+2) uᵖ⁺¹ − p(p+1)/2 uᵖ⁺²`` (Gasteiger et al. 2020, arXiv:2003.03123, eq. 8)."""

    def __init__(self, cutoff: float, p: int = 6) -> None:
        super().__init__(cutoff)
        self.p = p

    def envelope(self, u: Float[Tensor, " E"]) -> Float[Tensor, " E"]:
        """See the class."""
        p = self.p
        inner = (p + 1) * (p + 2) / 2 - u * (p * (p + 2) - u * (p * (p + 1) / 2))
        return 1.0 - u**p * inner
