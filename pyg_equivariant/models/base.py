"""The one interface of all architectures."""

import math
from abc import ABC, abstractmethod
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from pyg_equivariant.nn.configurable import Configurable
from pyg_equivariant.nn.dense_chain import DenseChain

__all__ = ["Group", "Representation"]

Group = Literal["E(3)", "SE(3)", "SE(3) in distribution", "T(3)"]


class Representation(Configurable, ABC):
    """Atoms and edge vectors in, equivariant features out: ``[N], [2, E], [E, 3] → [N, P, M, C]``.

    A representation sees no positions (translation invariance holds by type), no batch vector (nothing
    leaks between molecules by type) and no targets. It is differentiable with respect to ``edge_vec``, twice.

    Args:
        channels: C.
        cutoff: Radius in Å beyond which atoms do not interact; ``math.inf`` for fully connected graphs.
        lmax: Highest degree of the features, M = (lmax + 1)².
        parity: P; 2 where pseudotensors are kept in slot 1.

    Attributes:
        group: What the features are equivariant to, besides permutations. T(3) is translations only; 'SE(3) in
            distribution' is SE(3) on the average over what the model drew at random, and exact if that is turned along
            (:meth:`turn`).
        embedding_steps: Steps of message passing before the first layer; they, too, widen the receptive field.
    """

    group: Group = "E(3)"
    embedding_steps: int = 0

    def __init__(self, channels: int, cutoff: float, *, lmax: int = 0, parity: int = 1) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if not cutoff > 0 or math.isnan(cutoff):
            raise ValueError(f"cutoff must be a positive length in Å, got {cutoff}")
        self.channels = channels
        self.cutoff = float(cutoff)
        self.lmax = lmax
        self.parity = parity

    @abstractmethod
    def forward(
        self,
        z: Int[Tensor, " N"],
        edge_index: Int[Tensor, "2 E"],
        edge_vec: Float[Tensor, "E 3"],
    ) -> Float[Tensor, "N P M C"]:
        """Features of the atoms.

        Args:
            z: Atomic numbers.
            edge_index: Row 0 the source j, row 1 the target i.
            edge_vec: ``r_j − r_i`` in Å.
        """

    def tabulate(self) -> None:
        """Does once and for all what weights that do not change any more need no more than once.

        On a CPU networks of the edges' lengths alone are tabulated, in float32, and the weights of a
        :class:`~pyg_equivariant.nn.dense_chain.DenseChain` arranged. The model can be neither trained nor saved then.
        """
        for module in self.modules():
            if isinstance(module, DenseChain):
                module.freeze()

    def turn(self, rotation: Float[Tensor, "3 3"]) -> None:
        """Rotates what the model drew at random, where its group is 'SE(3) in distribution'."""
        raise NotImplementedError(f"{type(self).__name__} draws nothing at random")
