"""What an atom knows of its neighbours before the first layer."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyg_equivariant.nn.conv import Conv
from pyg_equivariant.nn.embedding import AtomEmbedding
from pyg_equivariant.nn.mlp import dense

__all__ = ["NeighborEmbedding"]


class NeighborEmbedding(Conv):
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
        super().__init__()
        self.embedding = AtomEmbedding(channels)
        self.filter = dense(num_basis, channels, bias=False)
        self.combine = dense(2 * channels, channels)

    def forward(
        self,
        x: Float[Tensor, "N C"],
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_rbf: Float[Tensor, "E K"],
    ) -> Float[Tensor, "N C"]:
        """The mixed features.

        Args:
            x: Features of the atoms.
            z: Atomic numbers.
            edge_index: Sources j and targets i, without loops.
            edge_rbf: Radial basis, zero from the cutoff on; with the envelope as one of its columns the filter has a
                bias, see :class:`~pyg_equivariant.nn.radial.EnvelopedBasis`.
        """
        known = self.propagate(edge_index, size=(len(x), len(x)), e=self.embedding(z), weight=self.filter(edge_rbf))
        mixed: Tensor = self.combine(torch.cat([x, known], -1))
        return mixed

    def message(self, e_j: Float[Tensor, "E C"], weight: Float[Tensor, "E C"]) -> Float[Tensor, "E C"]:
        """What source j sends to target i."""
        return e_j * weight
