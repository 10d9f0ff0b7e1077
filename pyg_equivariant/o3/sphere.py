"""Functions on the sphere, by their values on a grid."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pyg_equivariant.o3.constants import ExactConstants
from pyg_equivariant.o3.harmonics import spherical_harmonics
from pyg_equivariant.o3.layout import num_components

__all__ = ["SphereGrid"]


class SphereGrid(ExactConstants):
    """Gauss–Legendre points in the polar angle times equally spaced ones around the axis.

    The signal of features ``x`` is ``f(v) = Σ_m x_m Y_m(v) / sqrt(M)``, so that features of variance one
    give values of variance one. ``from_grid(to_grid(x))`` is exact, and so is ``from_grid`` of any signal
    whose degree is at most ``2 · resolution − 1 − lmax``.

    Args:
        lmax: Highest degree of the features.
        resolution: Points in the polar angle; twice as many lie around the axis. The default ``lmax + 1`` is the
            least that is exact; products of signals need more.

    Raises:
        ValueError: if the resolution cannot resolve ``lmax``.
    """

    points: Tensor
    synthesis: Tensor
    analysis: Tensor

    def __init__(self, lmax: int, resolution: int | None = None) -> None:
        super().__init__()
        count = lmax + 1 if resolution is None else resolution
        if count <= lmax:
            raise ValueError(f"a grid for lmax {lmax} needs a resolution of {lmax + 1} or more, got {count}")
        heights, shares = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(count))
        angles = torch.arange(2 * count, dtype=torch.float64) * (math.pi / count)
        radii = (1 - heights.square()).sqrt()
        x, z = radii[:, None] * angles.sin(), radii[:, None] * angles.cos()
        points = torch.stack([x, heights[:, None].expand_as(x), z], dim=-1).flatten(0, 1)
        weights = shares.repeat_interleave(2 * count) / (4 * count)  # they sum to one
        harmonics = spherical_harmonics(points, lmax)
        scale = math.sqrt(num_components(lmax))
        self.register_constant("points", points)
        self.register_constant("synthesis", harmonics / scale)
        self.register_constant("analysis", harmonics * weights[:, None] * scale)

    def to_grid(self, x: Float[Tensor, "N P M C"]) -> Float[Tensor, "N P G C"]:
        """Values at the grid's points."""
        return torch.einsum("gm,npmc->npgc", self.synthesis, x)

    def from_grid(self, values: Float[Tensor, "N P G C"]) -> Float[Tensor, "N P M C"]:
        """Features of the values, projected onto degrees up to ``lmax``."""
        return torch.einsum("gm,npgc->npmc", self.analysis, values)
