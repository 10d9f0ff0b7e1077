"""What an atom knows of its neighbours before the first layer."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyg_equivariant.nn.conv import EdgeSumConv
from pyg_equivariant.nn.edge_sum import CONSTANT, Term
from pyg_equivariant.nn.embedding import AtomEmbedding
from pyg_equivariant.nn.interpolation import Interpolation
from pyg_equivariant.nn.mlp import dense

__all__ = ["NeighborEmbedding"]


class NeighborEmbedding(EdgeSumConv):
    r"""Mixes the elements of the neighbours into the features of the atoms.

    .. math::
        x_i' = W \Big[x_i, \; \sum_j e_{z_j} ∘ W_r f(d_{ij}) \Big] + b

    with the vectors e of a second embedding. Reference: Thölke & De Fabritiis 2022, arXiv:2202.02541, eq. 3.

    Args:
        channels: C.
        num_basis: Columns of ``edge_rbf``.

    Example:
        >>> layer = NeighborEmbedding(8, num_basis=4)
        >>> z, edge_index = torch.tensor([1, 6, 1]), torch.tensor([[0, 2], [1, 1]])
        >>> layer(torch.zeros(3, 8), z, edge_index, torch.zeros(2, 4)).shape
        torch.Size([3, 8])
    """

    def __init__(self, channels: int, num_basis: int) -> None:
        super().__init__([Term(0, 0, CONSTANT, 0, 1.0)], 1)
        self.embedding = AtomEmbedding(channels)
        self.filter = dense(num_basis, channels, bias=False)
        self.combine = dense(2 * channels, channels)

    def forward(
        self,
        x: Float[Tensor, "N C"],
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_rbf: Float[Tensor, "R K"],
        pair: Int[Tensor, " E"] | None = None,
        table: Interpolation | None = None,
    ) -> Float[Tensor, "N C"]:
        """The mixed features.

        Args:
            x: Features of the atoms.
            z: Atomic numbers.
            edge_index: Sources j and targets i, without loops.
            edge_rbf: Radial basis, zero from the cutoff on; with the envelope as one of its columns the filter has a
                bias, see :class:`~pyg_equivariant.nn.radial.EnvelopedBasis`.
            pair: Which row of ``edge_rbf`` an edge has, see :mod:`~pyg_equivariant.nn.pairs`; its own if not given.
            table: How the filters between the nodes, whose basis ``edge_rbf`` is then, follow; see
                :mod:`~pyg_equivariant.nn.interpolation`.
        """
        sent, weight = self.embedding(z).unsqueeze(1), self.filter(edge_rbf).unsqueeze(1)
        known = self.message_and_aggregate(edge_index, sent, weight, pair=pair, table=table).squeeze(1)
        mixed: Tensor = self.combine(torch.cat([x, known], -1))
        return mixed
