"""PhysNet: attention masks of the distances, refined by residual blocks."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.activation import ShiftedSoftplus
from pyg_equivariant.nn.conv import EdgeSumConv
from pyg_equivariant.nn.cutoff import PolynomialCutoff
from pyg_equivariant.nn.edge_sum import CONSTANT, Term
from pyg_equivariant.nn.embedding import AtomEmbedding
from pyg_equivariant.nn.filter import LinearFilter, by_column
from pyg_equivariant.nn.geometry import safe_norm
from pyg_equivariant.nn.orthogonal import orthogonal_dense
from pyg_equivariant.nn.pairs import find_pairs
from pyg_equivariant.nn.radial import RadialBasis, bump

__all__ = ["ExponentialBasis", "PhysNet", "PhysNetConv"]

INTERACTION_BLOCKS, ATOMIC_BLOCKS, OUTPUT_BLOCKS = 3, 2, 1
"""Residual blocks of each part of a module, as in all models of the paper (table 1)."""


class ExponentialBasis(RadialBasis):
    """``exp(−βₖ (exp(−d) − μₖ)²)``, d in Å, with trainable βₖ and μₖ.

    At the start μ is evenly spaced over [exp(−cutoff), 1], and ``βₖ = (2/K (1 − exp(−cutoff)))⁻²``; both stay positive,
    for what is trained is their inverse softplus. Reference: Unke & Meuwly 2019, arXiv:1902.08408, eq. 7.
    """

    def __init__(self, num_basis: int = 64, cutoff: float = 10.0) -> None:
        super().__init__(num_basis, cutoff)
        start = math.exp(-cutoff)
        beta = (2.0 / num_basis * (1.0 - start)) ** -2
        self.mean = nn.Parameter(_inverse_softplus(torch.linspace(start, 1.0, num_basis)))
        self.beta = nn.Parameter(_inverse_softplus(torch.full((num_basis,), beta)))

    def forward(self, edge_len: Float[Tensor, " E"]) -> Float[Tensor, "E K"]:
        """See the class."""
        mean, beta = nn.functional.softplus(self.mean), nn.functional.softplus(self.beta)
        return bump(-beta * (torch.exp(-edge_len).unsqueeze(-1) - mean).square())


def _inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))


class PhysNetConv(EdgeSumConv):
    r"""The proto-message of an interaction block.

    .. math:: y_i = σ(W_I σ(x_i) + b_I) + Σ_j G g(r_{ij}) ∘ σ(W_J σ(x_j) + b_J)

    with the attention mask :math:`G g`, zero at the start, and σ the shifted softplus.

    Args:
        channels: C.
        num_basis: K.

    Example:
        >>> conv = PhysNetConv(8, num_basis=4)
        >>> conv(torch.zeros(3, 8), torch.tensor([[0, 1], [1, 2]]), torch.zeros(2, 4)).shape
        torch.Size([3, 8])
    """

    def __init__(self, channels: int, num_basis: int) -> None:
        super().__init__([Term(0, 0, CONSTANT, 0, 1.0)], 1)
        self.activation = ShiftedSoftplus()
        self.own = orthogonal_dense(channels, channels)
        self.other = orthogonal_dense(channels, channels)
        self.mask = LinearFilter(num_basis, channels)
        nn.init.zeros_(self.mask.weight)

    def forward(
        self,
        x: Float[Tensor, "N C"],
        edge_index: Int[Tensor, "2 E"],
        edge_rbf: Float[Tensor, "P K"],
        pair: Int[Tensor, " E"] | None = None,
    ) -> Float[Tensor, "N C"]:
        """The proto-messages.

        Args:
            x: Scalars of the atoms.
            edge_index: Sources j and targets i.
            edge_rbf: Radial basis g, zero from the cutoff on.
            pair: Which row of ``edge_rbf`` an edge has, see :mod:`~pyg_equivariant.nn.pairs`; its own if not given.
        """
        active = self.activation(x)
        sent = self.activation(self.other(active))
        mask = self.mask(edge_rbf).unsqueeze(1)
        received = self.message_and_aggregate(edge_index, sent.unsqueeze(1), mask, pair=pair).squeeze(1)
        proto: Tensor = self.activation(self.own(active)) + received
        return proto


class _Residual(nn.Module):
    """``x + W₂ σ(W₁ σ(x) + b₁) + b₂``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.activation = ShiftedSoftplus()
        self.inner = orthogonal_dense(channels, channels)
        self.outer = orthogonal_dense(channels, channels)

    def forward(self, x: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        out: Tensor = x + self.outer(self.activation(self.inner(self.activation(x))))
        return out


def _residuals(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(_Residual(channels) for _ in range(count)))


class _Interaction(nn.Module):
    """``u ∘ x + W σ(v) + b``, v the proto-message after residual blocks."""

    def __init__(self, channels: int, num_basis: int) -> None:
        super().__init__()
        self.conv = PhysNetConv(channels, num_basis)
        self.refine = nn.Sequential(_residuals(channels, INTERACTION_BLOCKS), ShiftedSoftplus())
        self.dense = orthogonal_dense(channels, channels)
        self.gate = nn.Parameter(torch.ones(channels))

    def forward(
        self,
        x: Float[Tensor, "N C"],
        edge_index: Int[Tensor, "2 E"],
        edge_rbf: Float[Tensor, "P K"],
        pair: Int[Tensor, " E"],
    ) -> Float[Tensor, "N C"]:
        out: Tensor = self.gate * x + self.dense(self.refine(self.conv(x, edge_index, edge_rbf, pair)))
        return out


class PhysNet(Representation):
    r"""Invariant network for energies, forces, charges and dipole moments.

    Reference: Unke & Meuwly 2019, arXiv:1902.08408, section II and figure 1. A module refines the features by messages
    (:class:`PhysNetConv`) and residual blocks; from each branches off an output block, whose atomic predictions are
    summed over the modules:

    .. math:: y_i = Σ_m W_m \, σ(\text{residual block of } x_i^m)

    Here y has C components, not the two of the paper, and heads read them: ``EnergyHead`` the energies, with the shift
    of each element as its reference, or :class:`~pyg_equivariant.heads.ElectrostaticEnergyHead` these with charges,
    which sum to the total charge, and their Coulomb energy. :class:`~pyg_equivariant.priors.D3Dispersion` is the
    paper's dispersion. The recipe ``physnet_forcefield`` trains all of it.

    Args:
        channels: C.
        num_layers: Modules.
        cutoff: Radius in Å.
        radial: Basis of the edge lengths; ``ExponentialBasis(64, cutoff)`` if not given.

    Returns scalars, ``[N, 1, 1, C]``.
    """

    paper = "Unke & Meuwly 2019, arXiv:1902.08408"

    def __init__(
        self,
        channels: int = 128,
        num_layers: int = 5,
        *,
        cutoff: float = 10.0,
        radial: RadialBasis | None = None,
    ) -> None:
        super().__init__(channels, cutoff)
        self.embedding = AtomEmbedding(channels)
        self.radial = radial or ExponentialBasis(64, cutoff)
        self.envelope = PolynomialCutoff(cutoff, p=3)
        num_basis = self.radial.num_basis
        self.interactions = nn.ModuleList(_Interaction(channels, num_basis) for _ in range(num_layers))
        self.atomic = nn.ModuleList(_residuals(channels, ATOMIC_BLOCKS) for _ in range(num_layers))
        self.outputs = nn.ModuleList(
            nn.Sequential(
                _residuals(channels, OUTPUT_BLOCKS),
                ShiftedSoftplus(),
                orthogonal_dense(channels, channels, bias=False),
            )
            for _ in range(num_layers)
        )

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E 3"],
    ) -> Float[Tensor, "N 1 1 C"]:
        """Scalars of the atoms; the arguments are those of :class:`Representation`."""
        pairs = find_pairs(edge_index, edge_vec)
        length = safe_norm(edge_vec.index_select(0, pairs.first))
        edge_rbf = by_column(self.radial(length) * self.envelope(length).unsqueeze(-1))
        x: Tensor = self.embedding(z)
        y = torch.zeros_like(x)
        for interaction, atomic, output in zip(self.interactions, self.atomic, self.outputs, strict=True):
            x = atomic(interaction(x, edge_index, edge_rbf, pairs.of))
            y = y + output(x)
        return y[:, None, None]
