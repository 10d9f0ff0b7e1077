"""The equivariant nonlinearity."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyg_equivariant.o3.layout import degrees

__all__ = ["Gate"]

# With them the mean square of the function of a normal variable is 1 (e3nn samples the first to 1.679).
SILU_SCALE = 1.6765324703310904
TANH_SCALE = 1.5925374197228312


class Gate(nn.Module):
    """SiLU of true scalars, tanh of pseudoscalars, and every other degree times the SiLU of a scalar of its own.

    Pseudoscalars need an odd function, lest a reflection change more than their sign. All nonlinearities
    are scaled so that their mean square is one for normal input.
    Reference: Weiler et al. 2018, arXiv:1807.02547, section 3.3; Batzner et al. 2022, arXiv:2101.03164, methods.

    Args:
        lmax: Highest degree of the features.
        parity: Slots of the features.

    Attributes:
        num_gates: Gates each channel needs, ``parity · lmax``.
    """

    def __init__(self, lmax: int, parity: int = 1) -> None:
        super().__init__()
        self.parity = parity
        self.num_gates = parity * lmax
        self.gate_of = [slot * lmax + degree - 1 for slot in range(parity) for degree in degrees(lmax)[1:]]

    def forward(self, x: Float[Tensor, "N P M C"], gates: Float[Tensor, "N G C"]) -> Float[Tensor, "N P M C"]:
        """Gated features.

        Args:
            x: Features.
            gates: True scalars, ``num_gates`` a channel: degrees 1 to lmax of slot 0, then of slot 1.
        """
        scalars = [SILU_SCALE * functional.silu(x[:, :1, :1])]
        if self.parity == 2:
            scalars.append(TANH_SCALE * torch.tanh(x[:, 1:, :1]))
        if not self.num_gates:
            return torch.cat(scalars, dim=1)
        factors = (SILU_SCALE * functional.silu(gates))[:, self.gate_of].view_as(x[:, :, 1:])
        return torch.cat([torch.cat(scalars, dim=1), x[:, :, 1:] * factors], dim=2)
