"""Matrices by which rotations and reflections act on features."""

import torch
from jaxtyping import Float
from torch import Tensor

from pyg_equivariant.o3.clebsch_gordan import coupling
from pyg_equivariant.o3.layout import degree_slices, lmax_of, num_components

__all__ = ["random_rotation", "rotate", "wigner"]


def wigner(rotation: Float[Tensor, "... 3 3"], lmax: int) -> Float[Tensor, "... M M"]:
    r"""Block-diagonal D(R) of all degrees up to ``lmax``: ``Y(R v) = D(R) Y(v)``.

    Degree 1 is R itself; the coupling of l and 1 to l + 1 lifts it,
    :math:`D^{l+1} \propto C^T (D^l \otimes R)\,C`. Every entry is a polynomial in R, so a reflection may be
    given as well, under which true tensors get their (−1)^l.

    Args:
        rotation: Orthogonal matrices that act on column vectors; determinant +1 or −1.
        lmax: Highest degree.
    """
    result = rotation.new_zeros(*rotation.shape[:-2], num_components(lmax), num_components(lmax))
    block = torch.ones_like(rotation[..., :1, :1])
    for degree, rows in enumerate(degree_slices(lmax)):
        if degree:
            lift = coupling(degree - 1, 1, degree, rotation.dtype).to(rotation.device)
            block = torch.einsum("abm,...ac,...bd,cdn->...mn", lift, block, rotation, lift)
        result[..., rows, rows] = block
    return result


def rotate(x: Float[Tensor, "N P M C"], rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "N P M C"]:
    """Features of the rotated (or reflected) system; pseudotensors, in slot 1, get the determinant's sign."""
    turned = torch.einsum("mk,npkc->npmc", wigner(rotation, lmax_of(x.shape[2])), x)
    sign = torch.linalg.det(rotation).sign()
    signs = torch.stack([torch.ones_like(sign), sign])[: x.shape[1]]
    return turned * signs[:, None, None]


def random_rotation(
    generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
) -> Float[Tensor, "3 3"]:
    """A rotation drawn uniformly from SO(3)."""
    quaternion = torch.randn(4, generator=generator, dtype=torch.float64)
    w, x, y, z = (quaternion / quaternion.norm()).tolist()
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.tensor(rows, dtype=dtype)
