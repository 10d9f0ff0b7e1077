"""Learned radial functions of the paths of a tensor product."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyg_equivariant.nn.compiler import stored
from pyg_equivariant.nn.gate import SILU_SCALE
from pyg_equivariant.nn.mlp import MLP

__all__ = ["EnvelopedFilter", "LinearFilter", "RadialFilter", "by_column"]


def by_column(edge_rbf: Float[Tensor, "E K"]) -> Float[Tensor, "E K"]:
    """The same values, laid out column by column: see :class:`LinearFilter`."""
    return stored(edge_rbf.T.contiguous()).T


class LinearFilter(nn.Module):
    """``edge_rbf [E, K] → weight [E, W]``, linear and without a bias, so that zero stays zero.

    The derivatives of such tall and narrow matrix products take half the time when the basis lies in memory column by
    column and the weights ``[K, W]`` row by row.

    Args:
        num_basis: K.
        num_filters: W.
    """

    def __init__(self, num_basis: int, num_filters: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_basis, num_filters)))

    def forward(self, edge_rbf: Float[Tensor, "... K"]) -> Float[Tensor, "... W"]:
        """The filters at the edges' lengths."""
        return edge_rbf @ self.weight


class EnvelopedFilter(nn.Sequential):
    """Layers of any kind under an envelope: ``edge_rbf [R, K], envelope [R] → weight [R, W]``."""

    def forward(  # type: ignore[override]
        self, edge_rbf: Float[Tensor, "R K"], envelope: Float[Tensor, " R"]
    ) -> Float[Tensor, "R W"]:
        """The filters at the edges' lengths."""
        weight = edge_rbf
        for layer in self:
            weight = layer(weight)
        return weight * envelope.unsqueeze(-1)


class RadialFilter(nn.Module):
    """``edge_rbf [E, K] → weight [E, W, C]``: an MLP without biases, so that zero stays zero.

    With a basis under an envelope the filters vanish smoothly at the cutoff. At the start their mean square is near 1
    for a basis such as Gaussians, of which few are large at a time: the sum of their squares is about 2.

    Args:
        num_basis: K.
        num_paths: W.
        channels: C.
        hidden: Channels of the MLP's hidden layers.
    """

    def __init__(self, num_basis: int, num_paths: int, channels: int, hidden: Sequence[int] = (32,)) -> None:
        super().__init__()
        self.num_paths = num_paths
        self.mlp = MLP([num_basis, *hidden, num_paths * channels], bias=False)
        layers = [layer for layer in self.mlp if isinstance(layer, nn.Linear)]
        nn.init.normal_(layers[0].weight, std=math.sqrt(0.5))
        for layer in layers[1:]:
            nn.init.normal_(layer.weight, std=SILU_SCALE / math.sqrt(layer.in_features))

    def forward(self, edge_rbf: Float[Tensor, "E K"]) -> Float[Tensor, "E W C"]:
        """The filters at the edges' lengths."""
        weight: Tensor = self.mlp(edge_rbf)
        return weight.unflatten(1, (self.num_paths, -1))
