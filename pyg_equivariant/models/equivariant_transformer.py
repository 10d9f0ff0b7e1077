"""TorchMD-NET's equivariant transformer: attention that distances modulate, with a vector beside each scalar."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.activation import silu
from pyg_equivariant.nn.compiler import stored
from pyg_equivariant.nn.conv import EdgeSumConv
from pyg_equivariant.nn.cutoff import CosineCutoff
from pyg_equivariant.nn.edge_sum import CONSTANT, Term
from pyg_equivariant.nn.embedding import AtomEmbedding
from pyg_equivariant.nn.exchange import exchange
from pyg_equivariant.nn.expnormal import ExpNormalBasis
from pyg_equivariant.nn.geometry import safe_norm, unit_vectors
from pyg_equivariant.nn.head_sum import head_dot, head_sum
from pyg_equivariant.nn.interpolation import Interpolation, RadialNodes, interpolate, tabulate_filter
from pyg_equivariant.nn.layer_norm import LayerNorm
from pyg_equivariant.nn.loops import with_loops
from pyg_equivariant.nn.mlp import dense
from pyg_equivariant.nn.neighbor_embedding import NeighborEmbedding
from pyg_equivariant.nn.pairs import find_pairs
from pyg_equivariant.nn.radial import RadialBasis, enveloped

__all__ = ["EquivariantTransformer", "EquivariantTransformerConv", "EquivariantTransformerFilter"]


class EquivariantTransformerFilter(nn.Module):
    """Modulates keys and values by ``[D^k, u D^1, u D^2, u D^3]``: ``edge_rbf [R, K], envelope [R] → weight [R, 4 C]``.

    Args:
        channels: C.
        num_basis: K.
    """

    def __init__(self, channels: int, num_basis: int) -> None:
        super().__init__()
        self.key = dense(num_basis, channels)
        self.value = dense(num_basis, 3 * channels)

    def forward(self, edge_rbf: Float[Tensor, "R K"], envelope: Float[Tensor, " R"]) -> Float[Tensor, "R W"]:
        """The filters at the edges' lengths."""
        value = silu(self.value(edge_rbf)) * envelope.unsqueeze(-1)
        return torch.cat([silu(self.key(edge_rbf)), value], -1)


class EquivariantTransformerConv(EdgeSumConv):
    r"""An update layer with its attention, for scalars s and vectors v.

    .. math::
        q, k, (v^1, v^2, v^3) &= \text{linear maps of LayerNorm}(s), \qquad
        D = \mathrm{SiLU}(W_D f(d_{ij}) + b_D) \\
        y_i &= \sum_j \mathrm{SiLU}\big(\textstyle\sum q_i ∘ k_j ∘ D^k_{ij}\big) \, u_{ij} \, v^1_j ∘ D^1_{ij} \\
        w_i &= \sum_j u_{ij} \big(v_j ∘ v^2_j ∘ D^2_{ij} + v^3_j ∘ D^3_{ij} \, \hat r_{ij}\big) \\
        Δs_i &= o^2_i ∘ ⟨U_1 v_i, U_2 v_i⟩ + o^3_i, \qquad Δv_i = w_i + o^1_i ∘ U_3 v_i, \qquad o_i = W_o y_i + b_o

    The inner sum of the attention runs over the channels of a head. The envelope u multiplies the scalars, as in the
    paper, and the vectors too, without which an atom that leaves the cutoff would take a finite vector with it: the
    authors' code has that as its option ``vector_cutoff``.

    Args:
        channels: C.
        num_basis: Columns of ``edge_rbf``.
        num_heads: Heads of the attention, a divisor of C.

    Raises:
        ValueError: if the heads do not divide the channels.

    Example:
        >>> conv = EquivariantTransformerConv(8, num_basis=4, num_heads=2)
        >>> scalar, vector, edge_index = torch.zeros(3, 8), torch.zeros(3, 3, 8), torch.tensor([[0, 1], [1, 2]])
        >>> ds, dv = conv(scalar, vector, edge_index, torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2))
        >>> ds.shape, dv.shape
        (torch.Size([3, 8]), torch.Size([3, 3, 8]))
    """

    def __init__(self, channels: int, num_basis: int, num_heads: int = 8) -> None:
        turned = [Term(k, k, CONSTANT, 0, 1.0) for k in range(3)]
        along = [Term(k, 3, k, 1, 1.0) for k in range(3)]
        super().__init__([*turned, *along], 3)
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f"the channels must be a multiple of num_heads, got channels={channels}, {num_heads=}")
        self.num_heads = num_heads
        self.norm = LayerNorm(channels)
        self.query = dense(channels, channels)
        self.key = dense(channels, channels)
        self.value = dense(channels, 3 * channels)
        self.filter = EquivariantTransformerFilter(channels, num_basis)
        self.mix = dense(channels, 3 * channels, bias=False)
        self.out = dense(channels, 3 * channels)

    def forward(
        self,
        scalar: Float[Tensor, "N C"],
        vector: Float[Tensor, "N 3 C"],
        edge_index: Int[Tensor, "2 E"],
        edge_dir: Float[Tensor, "E 3"],
        edge_rbf: Float[Tensor, "R K"],
        envelope: Float[Tensor, " R"],
        pair: Int[Tensor, " E"] | None = None,
        table: Interpolation | None = None,
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N 3 C"]]:
        """The updates of scalars and vectors.

        Args:
            scalar: Scalars of the atoms.
            vector: Vectors of the atoms.
            edge_index: Sources j and targets i.
            edge_dir: Unit vectors from i to j; 0 for loops, through which an atom attends to itself.
            edge_rbf: Radial basis of the edges, or of the nodes of ``table``.
            envelope: Zero from the cutoff on, likewise.
            pair: Which row of ``edge_rbf`` and ``envelope`` an edge has, see :mod:`~pyg_equivariant.nn.pairs`; its own
                if not given.
            table: How the filters between nodes follow, see :mod:`~pyg_equivariant.nn.interpolation`.
        """
        scalar = self.norm(scalar)
        scalars, turned, along = self.value(scalar).chunk(3, -1)
        of_scalars, of_vectors = self.filter(edge_rbf, envelope).unflatten(1, (4, -1)).split(2, 1)
        weight_key, weight_value = interpolate(of_scalars, table).unbind(1)
        source, target = edge_index
        row = torch.arange(source.shape[0], device=source.device) if pair is None else pair
        score = head_dot((self.query(scalar), target), (self.key(scalar), source), (weight_key, row), self.num_heads)
        y = head_sum((scalars, source), (weight_value, row), silu(score), target, scalar.shape[0])
        sent = torch.cat([vector * turned.unsqueeze(1), along.unsqueeze(1)], 1)
        w = self.message_and_aggregate(edge_index, sent, of_vectors, edge_dir, pair, table)
        ds, dv = exchange(self.out(y), self.mix(vector))
        return ds, w + dv


class EquivariantTransformer(Representation):
    """The equivariant transformer of TorchMD-NET.

    Reference: Thölke & De Fabritiis 2022, arXiv:2202.02541. The defaults are those of its MD17 models; on
    QM9 it has 256 channels, 8 layers and 64 radial functions. As in the authors' code every atom is one of its own
    neighbours.

    Args:
        channels: C, a multiple of the heads.
        num_layers: Number of layers.
        num_heads: Heads of the attention.
        cutoff: Radius in Å.
        radial: Basis of the edge lengths; 32 functions ``ExpNormalBasis(32, cutoff)`` if not given.

    Returns scalars, after a last LayerNorm, and vectors, ``[N, 1, 4, C]``.
    """

    paper = "Thölke & De Fabritiis 2022, arXiv:2202.02541"
    embedding_steps = 1

    def __init__(
        self,
        channels: int = 128,
        num_layers: int = 6,
        *,
        num_heads: int = 8,
        cutoff: float = 5.0,
        radial: RadialBasis | None = None,
    ) -> None:
        super().__init__(channels, cutoff, lmax=1)
        self.embedding = AtomEmbedding(channels)
        self.radial = radial or ExpNormalBasis(32, cutoff)
        self.envelope = CosineCutoff(cutoff)
        num_basis = self.radial.num_basis
        self.nodes = RadialNodes(cutoff, num_basis)
        self.neighbors = NeighborEmbedding(channels, num_basis + 1)
        self.convs = nn.ModuleList(
            EquivariantTransformerConv(channels, num_basis, num_heads) for _ in range(num_layers)
        )
        self.norm = LayerNorm(channels)

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E 3"],
    ) -> Float[Tensor, "N 1 4 C"]:
        """Scalars and vectors of the atoms; the arguments are those of :class:`Representation`."""
        looped, edge_vec = with_loops(edge_index, edge_vec, z.shape[0])
        pairs = find_pairs(looped, edge_vec)
        edge_dir = stored(unit_vectors(edge_vec, safe_norm(edge_vec)))
        length = safe_norm(edge_vec.index_select(0, pairs.first))
        nodes, table = self.nodes(length, edge_index.shape[1])
        edge_rbf, with_bias, envelope = enveloped(self.radial, self.envelope, nodes)
        scalar = self.neighbors(self.embedding(z), z, edge_index, with_bias, pairs.of[: edge_index.shape[1]], table)
        vector = scalar.new_zeros(z.shape[0], 3, self.channels)
        for conv in self.convs:
            ds, dv = conv(scalar, vector, looped, edge_dir, edge_rbf, envelope, pairs.of, table)
            scalar, vector = scalar + ds, vector + dv
        return torch.cat([self.norm(scalar).unsqueeze(1), vector], 1).unsqueeze(1)

    def tabulate(self) -> None:
        """See :meth:`Representation.tabulate`."""
        nodes = self.nodes.fix(self.norm.weight)
        if nodes is not None:
            edge_rbf, with_bias, envelope = enveloped(self.radial, self.envelope, nodes)
            tabulate_filter(self.neighbors, with_bias)
            for conv in self.convs:
                tabulate_filter(conv, edge_rbf, envelope)
