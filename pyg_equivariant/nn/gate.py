"""The equivariant nonlinearity."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyg_equivariant.nn.activation import silu

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
        self.sizes = [2 * degree + 1 for degree in range(1, lmax + 1)]

    def forward(self, x: Float[Tensor, "N P M C"], gates: Float[Tensor, "N G C"]) -> Float[Tensor, "N P M C"]:
        """Gated features.

        Args:
            x: Features.
            gates: True scalars, ``num_gates`` a channel: degrees 1 to lmax of slot 0, then of slot 1.
        """
        scalars, rest = x.split([1, x.shape[2] - 1], dim=2)
        true, *pseudo = scalars.unbind(1)
        active = [SILU_SCALE * silu(true), *(TANH_SCALE * torch.tanh(each) for each in pseudo)]
        if not self.num_gates:
            return torch.stack(active, dim=1)
        factors = (SILU_SCALE * silu(gates)).split(1, dim=1)
        sizes = self.sizes * self.parity
        spread = [factor.expand(-1, size, -1) for factor, size in zip(factors, sizes, strict=True)]
        return torch.cat([torch.stack(active, dim=1), rest * torch.cat(spread, dim=1).view_as(rest)], dim=2)
