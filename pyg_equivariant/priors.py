"""Energies that are known before anything is learned."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.nn.configurable import Configurable
from pyg_equivariant.nn.conv import segment_sum
from pyg_equivariant.nn.cutoff import PolynomialCutoff
from pyg_equivariant.nn.embedding import MAX_Z
from pyg_equivariant.nn.geometry import safe_norm
from pyg_equivariant.typing import Graph
from pyg_equivariant.units import BOHR, COULOMB

__all__ = ["ZBL", "AtomicReferences", "Prior"]


class Prior(Configurable):
    """Energies of the atoms that are added to what a model has learned: ``Graph → [N]`` in eV."""

    def forward(self, graph: Graph) -> Float[Tensor, " N"]:
        """The energies in eV."""
        raise NotImplementedError


class AtomicReferences(nn.Module):
    """``z [N] → e0[z] [N]`` in float64, whatever precision the rest of a model is in.

    Total energies are 10⁴ times larger than what is learned: in float32 they carry 0.1 to 0.3 meV of noise.
    """

    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(MAX_Z + 1, dtype=torch.float64))

    def forward(self, z: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """The references of the atoms."""
        return self.values[z]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves to other devices, but stays float64 under ``float()``, ``half()`` and ``to(dtype)``."""
        return super()._apply(  # type: ignore[no-untyped-call]
            lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), recurse
        )


class ZBL(Prior):
    r"""Screened repulsion of nuclei, for the short distances no training set holds.

    .. math::
        E = \frac{k_e}{2} Σ_{i≠j} \frac{Z_i Z_j}{r_{ij}} φ(r_{ij}/a) \, u(r_{ij}), \qquad
        a = \frac{0.8854 \, a_0}{Z_i^{0.23} + Z_j^{0.23}}

    Reference: Ziegler, Biersack & Littmark 1985, "The Stopping and Range of Ions in Matter", eqs. 2-60;
    u takes it to zero at ``cutoff``. An edge of length zero is left out: its energy has no finite value.

    Args:
        cutoff: Length in Å beyond which there is no repulsion; not above the cutoff of the model, whose
            edges are used.
    """

    COEFFICIENTS = (0.18175, 0.50986, 0.28022, 0.02817)
    EXPONENTS = (3.19980, 0.94229, 0.40290, 0.20162)

    def __init__(self, cutoff: float = 1.5) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.envelope = PolynomialCutoff(cutoff)

    def forward(self, graph: Graph) -> Float[Tensor, " N"]:
        """Half the repulsion of each pair for each of its atoms, in eV."""
        source, target = graph.edge_index
        r = safe_norm(graph.edge_vec)
        coincident = r == 0
        r = torch.where(coincident, 1.0, r)
        charge = graph.z.to(r.dtype)
        screening = (charge[source] ** 0.23 + charge[target] ** 0.23) / (0.8854 * BOHR)
        terms = [c * torch.exp(-a * screening * r) for c, a in zip(self.COEFFICIENTS, self.EXPONENTS, strict=True)]
        phi = torch.stack(terms).sum(0)
        energy = 0.5 * COULOMB * charge[source] * charge[target] / r * phi * self.envelope(r)
        return segment_sum(torch.where(coincident, 0.0, energy), target, len(graph.z))
