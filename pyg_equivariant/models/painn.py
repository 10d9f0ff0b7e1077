"""PaiNN: scalars and vectors that exchange equivariant messages."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.compiler import stored
from pyg_equivariant.nn.conv import EdgeSumConv
from pyg_equivariant.nn.cutoff import CosineCutoff
from pyg_equivariant.nn.edge_sum import CONSTANT, Term
from pyg_equivariant.nn.embedding import AtomEmbedding
from pyg_equivariant.nn.filter import LinearFilter, by_column
from pyg_equivariant.nn.geometry import safe_norm, unit_vectors
from pyg_equivariant.nn.interpolation import Interpolation, RadialNodes, tabulate_filter
from pyg_equivariant.nn.mlp import MLP, dense
from pyg_equivariant.nn.pairs import find_pairs
from pyg_equivariant.nn.radial import GaussianBasis, RadialBasis

__all__ = ["PaiNN", "PaiNNConv", "PaiNNUpdate"]


class PaiNNConv(EdgeSumConv):
    r"""The message block (eqs. 7 and 8), for scalars s and vectors v.

    .. math::
        Δs_i = Σ_j φ_s(s_j) ∘ W_s(r_{ij}), \qquad
        Δv_i = Σ_j v_j ∘ φ_{vv}(s_j) ∘ W_{vv}(r_{ij}) + φ_{vs}(s_j) ∘ W_{vs}(r_{ij}) \, \hat r_{ij}

    In the first layer, where there are no vectors yet, what multiplies them is left out.

    Args:
        channels: C.
        num_basis: Columns of ``edge_rbf``.
        lmax_in: 1 if there are vectors already, else 0.

    Example:
        >>> conv = PaiNNConv(8, num_basis=4)
        >>> scalar, vector, edge_index = torch.zeros(3, 8), torch.zeros(3, 3, 8), torch.tensor([[0, 1], [1, 2]])
        >>> ds, dv = conv(scalar, vector, edge_index, torch.zeros(2, 3), torch.zeros(2, 4))
        >>> ds.shape, dv.shape
        (torch.Size([3, 8]), torch.Size([3, 3, 8]))
    """

    def __init__(self, channels: int, num_basis: int, *, lmax_in: int = 1) -> None:
        along = [Term(1 + k, 1, k, 1, 1.0) for k in range(3)]
        turned = [Term(1 + k, 2 + k, CONSTANT, 2, 1.0) for k in range(3 * lmax_in)]
        super().__init__([Term(0, 0, CONSTANT, 0, 1.0), *along, *turned], 4)
        self.parts = 2 + lmax_in
        self.context = MLP([channels, channels, self.parts * channels])
        self.filter = LinearFilter(num_basis, self.parts * channels)

    def forward(
        self,
        scalar: Float[Tensor, "N C"],
        vector: Float[Tensor, "N 3 C"],
        edge_index: Int[Tensor, "2 E"],
        edge_dir: Float[Tensor, "E 3"],
        edge_rbf: Float[Tensor, "R K"],
        pair: Int[Tensor, " E"] | None = None,
        table: Interpolation | None = None,
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N 3 C"]]:
        """The updates of scalars and vectors.

        Args:
            scalar: Scalars of the atoms.
            vector: Vectors of the atoms.
            edge_index: Sources j and targets i.
            edge_dir: Unit vectors from i to j.
            edge_rbf: Radial basis, zero from the cutoff on; of the edges, or of the nodes of ``table``.
            pair: Which row of ``edge_rbf`` an edge has, see :mod:`~pyg_equivariant.nn.pairs`; its own if not given.
            table: How the filters between nodes follow, see :mod:`~pyg_equivariant.nn.interpolation`.
        """
        sent = self.context(scalar).unflatten(1, (self.parts, -1))  # s, vs, vv
        weight = self.filter(edge_rbf).unflatten(1, (self.parts, -1))
        if self.parts == 3:
            sent = torch.cat([sent[:, :2], vector * sent[:, 2:]], 1)
        ds, dv = self.message_and_aggregate(edge_index, sent, weight, edge_dir, pair, table).split([1, 3], 1)
        return ds.squeeze(1), dv


class PaiNNUpdate(nn.Module):
    r"""The update block (eqs. 9 and 10), within each atom.

    .. math::
        Δs_i = a_{ss} + a_{sv} ⟨U v_i, V v_i⟩, \qquad Δv_i = a_{vv} ∘ U v_i, \qquad
        a = \mathrm{MLP}(s_i, ‖V v_i‖)

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = dense(channels, 2 * channels, bias=False)
        self.context = MLP([2 * channels, channels, 3 * channels])

    def forward(
        self, scalar: Float[Tensor, "N C"], vector: Float[Tensor, "N 3 C"]
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N 3 C"]]:
        """The updates of scalars and vectors."""
        left, right = self.mix(vector).chunk(2, -1)
        norm = (right.square().sum(1) + 1e-8).sqrt()  # smooth where the vectors vanish
        a_ss, a_sv, a_vv = self.context(torch.cat([scalar, norm], -1)).chunk(3, -1)
        return a_ss + a_sv * (left * right).sum(1), a_vv.unsqueeze(1) * left


class PaiNN(Representation):
    """Polarizable atom interaction neural network.

    Reference: Schütt, Unke & Gastegger 2021, arXiv:2102.03150, section 4: each layer is a message block
    (eqs. 7, 8) and an update block (eqs. 9, 10), both added to the features.

    Args:
        channels: C.
        num_layers: Number of layers.
        cutoff: Radius in Å.
        radial: Basis of the edge lengths; if not given 20 Gaussians, which the authors' SchNetPack trains with: the
            Bessel functions of section 4.2, ``BesselBasis(20, cutoff)``, need more than twice the epochs on rMD17.

    Returns scalars and vectors, ``[N, 1, 4, C]``.
    """

    paper = "Schütt et al. 2021, arXiv:2102.03150"

    def __init__(
        self,
        channels: int = 128,
        num_layers: int = 3,
        *,
        cutoff: float = 5.0,
        radial: RadialBasis | None = None,
    ) -> None:
        super().__init__(channels, cutoff, lmax=1)
        self.embedding = AtomEmbedding(channels)
        self.radial = radial or GaussianBasis(20, cutoff)
        self.nodes = RadialNodes(cutoff, self.radial.num_basis)
        self.envelope = CosineCutoff(cutoff)
        self.convs = nn.ModuleList(
            PaiNNConv(channels, self.radial.num_basis, lmax_in=min(index, 1)) for index in range(num_layers)
        )
        self.updates = nn.ModuleList(PaiNNUpdate(channels) for _ in range(num_layers))

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E 3"],
    ) -> Float[Tensor, "N 1 4 C"]:
        """Scalars and vectors of the atoms; the arguments are those of :class:`Representation`."""
        edge_len = safe_norm(edge_vec)
        pairs = find_pairs(edge_index, edge_vec)
        length = edge_len.index_select(0, pairs.first)
        nodes, table = self.nodes(length, edge_index.shape[1])
        edge_dir = stored(unit_vectors(edge_vec, edge_len))
        edge_rbf = self._basis(nodes)
        scalar: Tensor = self.embedding(z)
        vector = scalar.new_zeros(z.shape[0], 3, self.channels)
        for conv, update in zip(self.convs, self.updates, strict=True):
            ds, dv = conv(scalar, vector, edge_index, edge_dir, edge_rbf, pairs.of, table)
            scalar, vector = scalar + ds, vector + dv
            ds, dv = update(scalar, vector)
            scalar, vector = scalar + ds, vector + dv
        return torch.cat([scalar.unsqueeze(1), vector], 1).unsqueeze(1)

    def tabulate(self) -> None:
        """See :meth:`Representation.tabulate`."""
        nodes = self.nodes.fix(self.embedding.weight)
        if nodes is not None:
            for conv in self.convs:
                tabulate_filter(conv, self._basis(nodes))

    def _basis(self, length: Float[Tensor, " R"]) -> Float[Tensor, "R K"]:
        return by_column(self.radial(length) * self.envelope(length).unsqueeze(-1))
