"""ViSNet: scalars, spherical tensors and edges that inform each other."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.activation import silu
from pyg_equivariant.nn.compiler import stored
from pyg_equivariant.nn.conv import EdgeSumConv, segment_sum
from pyg_equivariant.nn.cutoff import CosineCutoff
from pyg_equivariant.nn.dense_chain import DenseChain
from pyg_equivariant.nn.edge_sum import CONSTANT, Term
from pyg_equivariant.nn.embedding import AtomEmbedding
from pyg_equivariant.nn.exchange import exchange
from pyg_equivariant.nn.expnormal import ExpNormalBasis
from pyg_equivariant.nn.geometry import safe_norm
from pyg_equivariant.nn.harmonics import spherical_harmonics
from pyg_equivariant.nn.head_sum import head_dot, head_sum
from pyg_equivariant.nn.layer_norm import LayerNorm
from pyg_equivariant.nn.loops import with_loops
from pyg_equivariant.nn.mlp import dense
from pyg_equivariant.nn.neighbor_embedding import NeighborEmbedding
from pyg_equivariant.nn.pairs import find_pairs, spread
from pyg_equivariant.nn.radial import RadialBasis, enveloped
from pyg_equivariant.nn.rejection import rejection_product
from pyg_equivariant.o3.layout import degrees, num_components

__all__ = ["ViSNet", "ViSNetConv", "ViSNetEdgeUpdate"]


class ViSNetConv(EdgeSumConv):
    r"""The vector-scalar interactive message passing (scalar2vec and vec2scalar), for the atoms.

    For scalars s and vectors v of all degrees from 1, with features f of the edges

    .. math::
        m_{ij} &= \mathrm{SiLU}\big(\textstyle\sum W_q s_i ∘ W_k s_j ∘ σ(W_{dk} f_{ij})\big) \, u_{ij} \,
            W_v s_j ∘ σ(W_{dv} f_{ij}) \\
        Δs_i &= o^2_i ∘ ⟨U_1 v_i, U_2 v_i⟩ + o^3_i, \qquad o_i = W_o \textstyle\sum_j m_{ij} + b_o \\
        Δv_i &= o^1_i ∘ U_3 v_i + \textstyle\sum_j σ(W_1 m_{ij}) ∘ v_j + σ(W_2 m_{ij}) \, Y(\hat r_{ij})

    where s is normalised by a LayerNorm before all maps, and the inner sum runs over the channels of a head. W_1 and
    W_2 have no bias, which is zero when the authors begin to train: it would let an atom leave the cutoff with a finite
    vector. In the first layer, where there are no vectors yet, what reads them is left out.

    Args:
        channels: C.
        num_heads: Heads of the attention, a divisor of C.
        lmax: Highest degree of the vectors.
        lmax_in: Highest degree of the vectors that there are already, 0 or ``lmax``; ``lmax`` if not given.

    Raises:
        ValueError: if the heads do not divide the channels.

    Example:
        >>> conv = ViSNetConv(8, num_heads=2)
        >>> scalar, vec, edge_index = torch.zeros(3, 8), torch.zeros(3, 3, 8), torch.tensor([[0, 1], [1, 2]])
        >>> ds, dv = conv(scalar, vec, edge_index, torch.zeros(2, 8), torch.zeros(2, 3), torch.ones(2))
        >>> ds.shape, dv.shape
        (torch.Size([3, 8]), torch.Size([3, 3, 8]))
    """

    def __init__(self, channels: int, num_heads: int = 8, lmax: int = 1, *, lmax_in: int | None = None) -> None:
        # of the source's vectors and of ones, for what is the edge's alone
        ones = num_components(lmax if lmax_in is None else lmax_in) - 1
        rows, kinds = num_components(lmax) - 1, 2 if ones else 1
        turned = [Term(m, m, CONSTANT, 0, 1.0) for m in range(ones)]
        along = [Term(m, ones, m, kinds - 1, 1.0) for m in range(rows)]
        super().__init__([*turned, *along], rows)
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f"the channels must be a multiple of num_heads, got channels={channels}, {num_heads=}")
        if ones not in (0, rows):
            raise ValueError(f"lmax_in must be 0 or lmax={lmax}, got {lmax_in}")
        self.num_heads = num_heads
        self.norm = LayerNorm(channels)
        self.query_key_value = dense(channels, 3 * channels, parts=3)
        self.filter = DenseChain([dense(channels, 2 * channels, parts=2)])
        self.to_vectors = DenseChain([dense(channels, kinds * channels, bias=False)])
        self.mix = dense(channels, 3 * channels, bias=False) if ones else None
        self.out = dense(channels, 3 * channels if ones else channels)

    def forward(
        self,
        scalar: Float[Tensor, "N C"],
        vec: Float[Tensor, "N M C"],
        edge_index: Int[Tensor, "2 E"],
        edge: Float[Tensor, "P C"],
        edge_sh: Float[Tensor, "E M"],
        envelope: Float[Tensor, " E"],
        pair: Int[Tensor, " E"] | None = None,
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N M C"]]:
        """The updates of scalars and vectors.

        Args:
            scalar: Scalars of the atoms.
            vec: Vectors of the atoms, degrees from 1.
            edge_index: Sources j and targets i.
            edge: Features of the edges, or of their pairs.
            edge_sh: Harmonics of their directions, degrees from 1.
            envelope: Zero from the cutoff on.
            pair: Which row of ``edge`` an edge has, see :mod:`~pyg_equivariant.nn.pairs`; its own if not given.
        """
        query, key, value = self.query_key_value(self.norm(scalar)).chunk(3, -1)
        weight_key, weight_value = self.filter(edge).chunk(2, -1)
        source, target = edge_index
        own = torch.arange(source.shape[0], device=source.device)
        row = own if pair is None else pair
        score = head_dot((query, target), (key, source), (weight_key, row), self.num_heads)
        attention = silu(score) * envelope.unsqueeze(-1)
        message = head_sum((value, source), (weight_value, row), attention, own, own.shape[0])
        ds = self.out(segment_sum(message, target, scalar.shape[0]))
        filters = self.to_vectors(message).unflatten(1, (-1, scalar.shape[1]))
        ones = torch.ones_like(scalar).unsqueeze(1)
        sent = ones if self.mix is None else torch.cat([vec, ones], 1)
        dv = self.message_and_aggregate(edge_index, sent, filters, edge_sh)
        if self.mix is not None:
            ds, turned = exchange(ds, self.mix(vec))
            dv = dv + turned
        return ds, dv


class ViSNetEdgeUpdate(nn.Module):
    r"""The runtime geometry calculation, for the edges: dihedral angles without a list of quadruplets.

    .. math::
        Δf_{ij} = σ(W_f f_{ij}) ∘ ⟨\mathrm{Rej}(W_t v_i), \mathrm{Rej}(W_s v_j)⟩, \qquad
        \mathrm{Rej}(v) = v - ⟨v, Y(\hat r_{ij})⟩ \, Y(\hat r_{ij})

    Args:
        channels: C.

    Example:
        >>> update = ViSNetEdgeUpdate(8)
        >>> vec, edge_index = torch.zeros(3, 3, 8), torch.tensor([[0, 1], [1, 2]])
        >>> update(torch.zeros(2, 8), vec, edge_index, torch.zeros(2, 3)).shape
        torch.Size([2, 8])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense = DenseChain([dense(channels, channels)])
        self.mix = dense(channels, 2 * channels, bias=False, parts=2)

    def forward(
        self,
        edge: Float[Tensor, "E C"],
        vec: Float[Tensor, "N M C"],
        edge_index: Int[Tensor, "2 E"],
        edge_sh: Float[Tensor, "E M"],
    ) -> Float[Tensor, "E C"]:
        """The update of the edges' features; the arguments are those of :class:`ViSNetConv`."""
        out: Tensor = self.dense(edge) * rejection_product(self.mix(vec), edge_sh, *edge_index)
        return out


class ViSNet(Representation):
    r"""Vector-scalar interactive equivariant network.

    Reference: Wang et al. 2022, arXiv:2210.16518 (Nature Communications 2024, doi:10.1038/s41467-023-43720-2), methods.
    Atoms have scalars and vectors of the degrees 1 to lmax, edges have scalars
    :math:`f_{ij} = (s_i + s_j) ∘ W_e e(r_{ij})`. Each layer updates the atoms (:class:`ViSNetConv`) and, but for the
    first, whose update is zero as there are no vectors yet, and the last, the edges (:class:`ViSNetEdgeUpdate`). As
    in the authors' code every atom is one of its own neighbours. Agrees with ``torch_geometric.nn.models.ViSNet``.

    The defaults are those of its rMD17 models; on QM9 it has 512 channels and 64 radial functions. The normalisation of
    vectors between their shortest and longest channel, an option that only QM9 uses, has no derivative where
    two change places, and is left out.

    Args:
        channels: C, a multiple of the heads.
        num_layers: Number of layers.
        cutoff: Radius in Å.
        lmax: Highest degree.
        num_heads: Heads of the attention.
        radial: Basis of the edge lengths; 32 functions ``ExpNormalBasis(32, cutoff)`` if not given.

    Returns scalars, after a last LayerNorm, and vectors, ``[N, 1, M, C]``.
    """

    paper = "Wang et al. 2022, arXiv:2210.16518"
    embedding_steps = 1

    def __init__(
        self,
        channels: int = 256,
        num_layers: int = 9,
        *,
        cutoff: float = 5.0,
        lmax: int = 2,
        num_heads: int = 8,
        radial: RadialBasis | None = None,
    ) -> None:
        super().__init__(channels, cutoff, lmax=lmax)
        if lmax < 1 or num_layers < 1:
            raise ValueError(
                f"ViSNet has vectors and layers: lmax and num_layers are at least 1, got {lmax}, {num_layers}"
            )
        self.embedding = AtomEmbedding(channels)
        self.radial = radial or ExpNormalBasis(32, cutoff)
        self.envelope = CosineCutoff(cutoff)
        self.neighbors = NeighborEmbedding(channels, self.radial.num_basis + 1)
        self.edges = dense(self.radial.num_basis, channels)
        self.convs = nn.ModuleList(
            ViSNetConv(channels, num_heads, lmax, lmax_in=lmax if index else 0) for index in range(num_layers)
        )
        self.edge_updates = nn.ModuleList(ViSNetEdgeUpdate(channels) for _ in range(num_layers - 2))
        self.norm = LayerNorm(channels)
        # harmonics of every degree have length 1 here
        self.sh_scale = [1.0 / math.sqrt(2 * degree + 1) for degree in degrees(lmax)[1:]]

    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E 3"],
    ) -> Float[Tensor, "N 1 M C"]:
        """Scalars and vectors of the atoms; the arguments are those of :class:`Representation`."""
        looped, edge_vec = with_loops(edge_index, edge_vec, z.shape[0])
        pairs = find_pairs(looped, edge_vec)
        source, target = looped.index_select(1, pairs.first)
        length = stored(safe_norm(edge_vec.index_select(0, pairs.first)))
        edge_rbf, with_bias, envelope = enveloped(self.radial, self.envelope, length)
        edge_sh = spherical_harmonics(edge_vec, self.lmax)[:, 1:] * edge_vec.new_tensor(self.sh_scale)
        scalar = self.neighbors(self.embedding(z), z, edge_index, with_bias, pairs.of[: edge_index.shape[1]])
        edge = (scalar.index_select(0, source) + scalar.index_select(0, target)) * self.edges(edge_rbf)
        pair: Tensor | None = pairs.of  # at first both edges of a pair have the same features
        envelope = stored(spread(envelope, pair))
        vec = scalar.new_zeros(z.shape[0], num_components(self.lmax) - 1, self.channels)
        for conv, update in zip(self.convs, [None, *self.edge_updates, None], strict=False):
            ds, dv = conv(scalar, vec, looped, edge, edge_sh, envelope, pair)
            edge, pair = spread(edge, pair), None  # the layers from here on are alike, and so compiled once
            if update is not None:
                edge = edge + update(edge, vec, looped, edge_sh)
            scalar, vec = scalar + ds, vec + dv
        return torch.cat([self.norm(scalar).unsqueeze(1), vec], 1).unsqueeze(1)
