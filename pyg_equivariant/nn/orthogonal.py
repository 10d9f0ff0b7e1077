"""Linear layers whose initial weights are orthogonal."""

from torch import nn
from torch_geometric.nn.inits import glorot_orthogonal

from pyg_equivariant.nn.dense import Dense

__all__ = ["orthogonal_dense"]


def orthogonal_dense(in_channels: int, out_channels: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer with random semi-orthogonal weights of Glorot's variance, and a zero bias.

    PhysNet and DimeNet start with these (Unke & Meuwly 2019, arXiv:1902.08408, section II.C).
    """
    layer = Dense(in_channels, out_channels, bias=bias)
    glorot_orthogonal(layer.weight, scale=2.0)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
