"""Energies of partial charges."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyg_equivariant.nn.configurable import Configurable
from pyg_equivariant.nn.conv import segment_sum
from pyg_equivariant.nn.cutoff import PolynomialCutoff
from pyg_equivariant.nn.geometry import safe_norm
from pyg_equivariant.units import COULOMB

__all__ = ["ShieldedCoulomb"]


class ShieldedCoulomb(Configurable):
    r"""Coulomb energy of partial charges, finite where atoms meet.

    .. math::
        E = \frac{k_e}{2} Σ_{i≠j} q_i q_j χ(r_{ij}), \qquad
        χ(r) = φ(2r) \frac{1}{\sqrt{r^2 + 1}} + (1 - φ(2r)) \frac 1 r

    where φ falls from 1 at 0 to 0 at ``shield``. Reference: Unke & Meuwly 2019, arXiv:1902.08408, section II. With a
    finite cutoff c, as in the authors' code, 1/d becomes :math:`1/d + d/c^2 - 2/c`, which is zero at c with its slope.

    Args:
        cutoff: Length in Å beyond which charges do not interact, not above that of the graphs. Without one the sum is
            exact, if the graphs connect all atoms.
        shield: Length in Å; from half of it on the law is 1/r. The cutoff of the model in the paper.

    Raises:
        ValueError: if the cutoff lies in the shielded region.

    Example:
        >>> ions = torch.tensor([1.0, -1.0], dtype=torch.float64)
        >>> edge_index = torch.tensor([[1, 0], [0, 1]])
        >>> edge_vec = torch.tensor([[0.0, 0.0, 20.0], [0.0, 0.0, -20.0]], dtype=torch.float64)
        >>> ShieldedCoulomb()(ions, edge_index, edge_vec).sum()  # −14.3996 eV Å / 20 Å
        tensor(-0.7200, dtype=torch.float64)
    """

    def __init__(self, cutoff: float = math.inf, *, shield: float = 10.0) -> None:
        super().__init__()
        if cutoff < shield / 2:
            raise ValueError(f"the cutoff must be at least half of the shield's {shield} Å, got {cutoff}")
        self.cutoff = cutoff
        self.near = PolynomialCutoff(shield / 2, p=3)

    def forward(
        self, charges: Float[Tensor, " N"], edge_index: Int[Tensor, "2 E"], edge_vec: Float[Tensor, "E 3"]
    ) -> Float[Tensor, " N"]:
        """Half the energy of each pair for each of its atoms, in eV.

        Args:
            charges: In e.
            edge_index: Row 0 the source j, row 1 the target i.
            edge_vec: ``r_j − r_i`` in Å.
        """
        source, target = edge_index
        r = safe_norm(edge_vec)
        near = self.near(r)
        # where atoms meet only the shielded law counts, whose derivative there is 0
        chi = near * self._law((r.square() + 1.0).sqrt()) + (1.0 - near) * self._law(torch.where(r == 0, 1.0, r))
        pair = charges.index_select(0, source) * charges.index_select(0, target)
        energy = 0.5 * COULOMB * pair * torch.where(r < self.cutoff, chi, 0.0)
        return segment_sum(energy, target, charges.shape[0])

    def _law(self, d: Float[Tensor, " E"]) -> Float[Tensor, " E"]:
        return 1.0 / d + d / self.cutoff**2 - 2.0 / self.cutoff
