"""Multilayer perceptrons of scalars."""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.nn.activation import Activation, SiLU
from pyg_equivariant.nn.dense import Dense, linear

__all__ = ["MLP", "PairMLP", "dense"]


def dense(in_channels: int, out_channels: int, *, bias: bool = True, parts: int = 1) -> nn.Linear:
    """A linear layer, or so many side by side, with Glorot-uniform weights and a zero bias."""
    layer = Dense(in_channels, out_channels, bias=bias)
    for weight in layer.weight.chunk(parts):
        nn.init.xavier_uniform_(weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Sequential):
    """Dense layers with a nonlinearity between them, none after the last.

    Args:
        sizes: Channels of input, hidden layers and output.
        activation: SiLU if not given.
        bias: Whether the layers have one.

    Example:
        >>> MLP([8, 16, 1])(torch.zeros(5, 8)).shape
        torch.Size([5, 1])
    """

    def __init__(self, sizes: Sequence[int], activation: Activation | None = None, *, bias: bool = True) -> None:
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            if layers:
                layers.append(activation or SiLU())
            layers.append(dense(fan_in, fan_out, bias=bias))
        super().__init__(*layers)

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., sizes[0]] → [..., sizes[-1]]``."""
        return torch.nn.Module.__call__(self, x)


class PairMLP(MLP):
    """An MLP of ``[x_i, x_j, edge]`` for all edges, whose first layer multiplies x once a node, not once an edge.

    Args:
        channels: C, of the nodes.
        edge_channels: K, of the edges.
        sizes: Channels of hidden layers and output.
        activation: SiLU if not given.

    Example:
        >>> mlp, x, edge = PairMLP(4, 1, [8, 2]), torch.ones(3, 4), torch.ones(1, 1)
        >>> edge_index = torch.tensor([[0], [2]])
        >>> torch.allclose(mlp.of_edges(x, edge_index, edge), mlp(torch.ones(1, 9)))
        True
    """

    def __init__(
        self, channels: int, edge_channels: int, sizes: Sequence[int], activation: Activation | None = None
    ) -> None:
        super().__init__([2 * channels + edge_channels, *sizes], activation)
        self.split = [channels, channels, edge_channels]

    def of_edges(
        self, x: Float[Tensor, "N C"], edge_index: Int[Tensor, "2 E"], edge: Float[Tensor, "E K"]
    ) -> Float[Tensor, "E D"]:
        """The MLP of source j and target i of every edge.

        Args:
            x: Features of the nodes.
            edge_index: Sources j and targets i.
            edge: Features of the edges.
        """
        first, *rest = self
        assert isinstance(first, nn.Linear)
        to_target, to_source, to_edge = first.weight.split(self.split, dim=1)
        y = linear(x, to_target, first.bias).index_select(0, edge_index[1])
        y = y + linear(x, to_source).index_select(0, edge_index[0]) + linear(edge, to_edge)
        for layer in rest:
            y = layer(y)
        return y
