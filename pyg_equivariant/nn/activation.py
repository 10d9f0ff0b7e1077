"""Nonlinearities of scalars, as modules that can be passed in and saved."""

import math

from torch import Tensor
from torch.nn import functional

from pyg_equivariant.nn.configurable import Configurable

__all__ = ["Activation", "ShiftedSoftplus", "SiLU"]


class Activation(Configurable):
    """Element-wise nonlinearity, smooth because forces are differentiated again in training."""


class SiLU(Activation):
    """``x · sigmoid(x)`` (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""

    def forward(self, x: Tensor) -> Tensor:
        """Element-wise, any shape."""
        return functional.silu(x)


class ShiftedSoftplus(Activation):
    """``ln(½ eˣ + ½)`` (Schütt et al. 2017, arXiv:1706.08566, section 4.1)."""

    def forward(self, x: Tensor) -> Tensor:
        """Element-wise, any shape."""
        return functional.softplus(x) - math.log(2.0)
