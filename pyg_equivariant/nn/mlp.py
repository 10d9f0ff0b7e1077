"""Multilayer perceptrons of scalars."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyg_equivariant.nn.activation import Activation, SiLU

__all__ = ["MLP", "dense"]


def dense(in_channels: int, out_channels: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer with Glorot-uniform weights and a zero bias."""
    layer = nn.Linear(in_channels, out_channels, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
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
