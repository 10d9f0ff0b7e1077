"""The dense layout of equivariant features, ``[N, P, M, C]`` with ``M = (lmax + 1)²``.

Degree l lies at components ``l² .. (l + 1)² − 1`` in e3nn's order of m. Slot 0 of the parity axis holds
true tensors, which a reflection multiplies by (−1)^l; slot 1 holds pseudotensors, which it multiplies by
(−1)^(l + 1).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["degree_slices", "degrees", "from_irreps", "irreps", "lmax_of", "num_components", "to_irreps"]


def num_components(lmax: int) -> int:
    """Components of all degrees up to ``lmax``.

    Example:
        >>> num_components(2)
        9
    """
    return (lmax + 1) ** 2


def lmax_of(num_components: int) -> int:
    """The inverse of :func:`num_components`.

    Raises:
        ValueError: if the number is not a square.

    Example:
        >>> lmax_of(9)
        2
    """
    lmax = math.isqrt(max(num_components, 0)) - 1
    if num_components != (lmax + 1) ** 2 or lmax < 0:
        raise ValueError(f"an axis of components has (lmax + 1)² entries (1, 4, 9, ...), got {num_components}")
    return lmax


def degree_slices(lmax: int) -> list[slice]:
    """Where each degree lies on the axis M.

    Example:
        >>> degree_slices(1)
        [slice(0, 1, None), slice(1, 4, None)]
    """
    return [slice(degree**2, (degree + 1) ** 2) for degree in range(lmax + 1)]


def degrees(lmax: int) -> list[int]:
    """Degree of each component.

    Example:
        >>> degrees(1)
        [0, 1, 1, 1]
    """
    return [degree for degree in range(lmax + 1) for _ in range(2 * degree + 1)]


def irreps(channels: int, lmax: int, parity: int = 1) -> str:
    """The e3nn ``Irreps`` whose flat layout :func:`to_irreps` writes, slot after slot.

    Example:
        >>> irreps(8, 1, parity=2)
        '8x0e+8x1o+8x0o+8x1e'
    """
    letters = ("eo", "oe")
    return "+".join(
        f"{channels}x{degree}{letters[slot][degree % 2]}" for slot in range(parity) for degree in range(lmax + 1)
    )


def to_irreps(x: Float[Tensor, "N P M C"]) -> Float[Tensor, "N PMC"]:
    """Features in e3nn's flat layout (channel before component in each degree), see :func:`irreps`.

    Example:
        >>> to_irreps(torch.zeros(2, 1, 4, 8)).shape
        torch.Size([2, 32])
    """
    blocks = [
        x[:, slot, degree].transpose(1, 2).flatten(1)
        for slot in range(x.shape[1])
        for degree in degree_slices(lmax_of(x.shape[2]))
    ]
    return torch.cat(blocks, dim=1)


def from_irreps(flat: Float[Tensor, "N PMC"], channels: int, lmax: int, parity: int = 1) -> Float[Tensor, "N P M C"]:
    """The inverse of :func:`to_irreps`.

    Raises:
        ValueError: if the width is not ``parity · (lmax + 1)² · channels``.
    """
    width = parity * num_components(lmax) * channels
    if flat.shape[1] != width:
        raise ValueError(f"{irreps(channels, lmax, parity)} has {width} numbers an atom, got {flat.shape[1]}")
    sizes = [(2 * degree + 1) * channels for _ in range(parity) for degree in range(lmax + 1)]
    blocks = [
        block.view(flat.shape[0], channels, block.shape[1] // channels) for block in torch.split(flat, sizes, dim=1)
    ]
    joined = torch.cat([block.transpose(1, 2) for block in blocks], dim=1)
    return joined.view(flat.shape[0], parity, num_components(lmax), channels)
