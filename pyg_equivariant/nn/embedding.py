"""Learned vectors of the elements."""

from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["MAX_Z", "AtomEmbedding"]

MAX_Z = 118
"""Oganesson, the last element."""


class AtomEmbedding(nn.Embedding):
    """``z [N] → x [N, C]``, one learned vector an element, normal with variance 1 at the start."""

    def __init__(self, channels: int) -> None:
        super().__init__(MAX_Z + 1, channels)

    def forward(self, z: Int[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """The vectors of the atoms."""
        return super().forward(z)
