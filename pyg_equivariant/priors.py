"""Energies that are known before anything is learned."""

import math
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
from pyg_equivariant.o3.constants import ExactConstants
from pyg_equivariant.typing import Graph
from pyg_equivariant.units import BOHR, COULOMB, HARTREE

__all__ = ["ZBL", "AtomicReferences", "D3Dispersion", "Prior"]


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
        return segment_sum(torch.where(coincident, 0.0, energy), target, graph.z.shape[0])


class D3Dispersion(Prior, ExactConstants):
    r"""Grimme's D3 dispersion with Becke-Johnson damping, of pairs.

    .. math::
        E = -\frac 1 2 Σ_{i≠j} \frac{s_6 C_6}{r^6 + f^6} + \frac{s_8 C_8}{r^8 + f^8}, \qquad
        f = a_1 \sqrt{C_8 / C_6} + a_2

    C_6 is interpolated between reference molecules by the coordination numbers of the two atoms. Reference: Grimme et
    al. 2010, doi:10.1063/1.3382344; Grimme, Ehrlich & Goerigk 2011, doi:10.1002/jcc.21759. With a finite cutoff, as in
    PhysNet (Unke & Meuwly 2019, arXiv:1902.08408), each power loses its value and slope at the cutoff, and neighbours
    cease to be counted over the last bohr. Elements up to Lr have references; the energy of others is NaN.

    Needs the package ``tad-dftd3``, which holds the references.

    Args:
        cutoff: Length in Å beyond which there is no dispersion, not above that of the model, whose edges are used.
        s6: Scale of the sixth power, by the density functional that is corrected; the defaults are Hartree-Fock's, with
            which PhysNet starts.
        s8: Scale of the eighth power.
        a1: Factor of the damping radius.
        a2: Constant of the damping radius in bohr.

    Raises:
        ModuleNotFoundError: if ``tad-dftd3`` is missing.
    """

    radius: Tensor
    root: Tensor
    number: Tensor
    c6: Tensor

    def __init__(
        self, cutoff: float = 10.0, *, s6: float = 1.0, s8: float = 0.9171, a1: float = 0.3385, a2: float = 2.8830
    ) -> None:
        super().__init__()
        try:
            from tad_dftd3.data import R4R2
            from tad_dftd3.reference import Reference
            from tad_mctc.data.radii import COV_D3
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "D3Dispersion reads its references from tad-dftd3: pip install tad-dftd3"
            ) from error
        self.cutoff, self.s6, self.s8, self.a1, self.a2 = cutoff, s6, s8, a1, a2
        self.step = PolynomialCutoff(1.0, p=3)
        reference = Reference()
        missing = MAX_Z + 1 - len(reference.cn)
        self.register_constant("number", nn.functional.pad(reference.cn, (0, 0, 0, missing), value=-1.0))
        self.register_constant("c6", nn.functional.pad(reference.c6, (0, 0, 0, 0, 0, missing, 0, missing)))
        self.register_constant("radius", COV_D3(dtype=torch.float64))
        self.register_constant("root", R4R2(dtype=torch.float64))

    def forward(self, graph: Graph) -> Float[Tensor, " N"]:
        """Half the energy of each pair for each of its atoms, in eV."""
        source, target = graph.edge_index
        r = safe_norm(graph.edge_vec) / BOHR
        weight = self._weights(graph.z, graph.edge_index, r)
        table = self.c6[graph.z[source], graph.z[target]]
        c6 = torch.einsum("ea,eb,eab->e", weight[source], weight[target], table)
        ratio = 3.0 * self.root[graph.z[source]] * self.root[graph.z[target]]  # C8 / C6
        damping = self.a1 * ratio.sqrt() + self.a2
        energy = c6 * (self.s6 * self._decay(r, damping, 6) + self.s8 * ratio * self._decay(r, damping, 8))
        return segment_sum(-0.5 * HARTREE * energy, target, graph.z.shape[0])

    def _weights(
        self, z: Int[Tensor, " N"], edge_index: Int[Tensor, "2 E"], r: Float[Tensor, " E"]
    ) -> Float[Tensor, "N A"]:
        """How much each atom is like each reference of its element, by its coordination number."""
        source, target = edge_index
        coincident = r == 0
        closeness = (self.radius[z[source]] + self.radius[z[target]]) / torch.where(coincident, 1.0, r)
        count = torch.where(coincident, 1.0, torch.sigmoid(16.0 * (closeness - 1.0)))
        count = count * self.step((r - self.cutoff / BOHR + 1.0).clamp(min=0.0))
        number = segment_sum(count, target, z.shape[0]).unsqueeze(-1)
        likeness = -4.0 * (number - self.number[z]).square()
        return torch.where(self.number[z] >= 0, likeness, -math.inf).softmax(-1)

    def _decay(self, r: Float[Tensor, " E"], damping: Float[Tensor, " E"], power: int) -> Float[Tensor, " E"]:
        inside = 1.0 / (r**power + damping**power)
        if math.isinf(self.cutoff):
            return inside
        end = self.cutoff / BOHR
        at_end = end**power + damping**power
        shifted = inside - 1.0 / at_end + power * end ** (power - 1) * (r - end) / at_end.square()
        return torch.where(r < end, shifted, 0.0)
