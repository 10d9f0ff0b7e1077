"""Sums over paths of two edges that meet in an atom, weighted by their angle, without a list of the paths."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyg_equivariant.nn.compiler import stored
from pyg_equivariant.nn.dense import linear
from pyg_equivariant.nn.harmonic_sum import sum_to_atoms, sum_to_edges
from pyg_equivariant.nn.harmonics import spherical_harmonics
from pyg_equivariant.nn.pairs import find_returns
from pyg_equivariant.nn.product_sum import sum_products_to_atoms
from pyg_equivariant.o3.layout import degrees, lmax_of

__all__ = ["Paths", "find_paths", "sum_over_paths", "sum_products_over_paths"]


class Paths(NamedTuple):
    """All paths k → j → i of two edges that do not return to where they began.

    Attributes:
        edge_index: Row 0 the source j, row 1 the target i.
        arriving: Harmonics of the edges as seen from their target, scaled.
        leaving: Harmonics of the edges as seen from their source.
        back: The edge that leads each edge back, or −1.
        num_atoms: N.
    """

    edge_index: Int[Tensor, "2 E"]
    arriving: Float[Tensor, "E M"]
    leaving: Float[Tensor, "E M"]
    back: Int[Tensor, " E"]
    num_atoms: int


def find_paths(
    edge_index: Int[Tensor, "2 E"], edge_vec: Float[Tensor, "E 3"], num_atoms: int, num_degrees: int
) -> Paths:
    """The paths of a graph.

    The path back over the same edge is left out. In a periodic system k may well be another image of i, and j one of
    either: only the path whose second vector is the first one's opposite returns.

    Args:
        edge_index: Row 0 the source j, row 1 the target i, in any order.
        edge_vec: ``r_j − r_i`` in Å.
        num_atoms: N.
        num_degrees: L, degrees of the angles, from 0.

    Example:
        >>> import torch
        >>> edge_index = torch.tensor([[1, 0, 2, 1], [0, 1, 1, 2]])  # a chain of three atoms, both ways
        >>> edge_vec = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
        >>> paths = find_paths(edge_index, edge_vec, 3, num_degrees=1)
        >>> count = sum_over_paths(paths, torch.ones(4, 1, 1))[:, 0] * math.sqrt(4 * math.pi)
        >>> count.round().tolist()  # how many edges precede each
        [1.0, 0.0, 0.0, 1.0]
    """
    edge_sh = spherical_harmonics(edge_vec, num_degrees - 1)
    order = degrees(num_degrees - 1)
    scale = edge_vec.new_tensor([1.0 / math.sqrt(4 * math.pi * (2 * degree + 1)) for degree in order])
    sign = edge_vec.new_tensor([(-1.0) ** degree for degree in order])  # of Y(−r)
    back = find_returns(edge_index, edge_vec, num_atoms)
    return Paths(edge_index, stored(edge_sh * scale), stored(edge_sh * sign), back, num_atoms)


def sum_over_paths(paths: Paths, values: Float[Tensor, "E L C"]) -> Float[Tensor, "E C"]:
    r"""What the edges k → j send to each edge j → i, by the angle at j.

    .. math::
        y_{ji} = \sum_{k ≠ i} \sum_l Y_{l0}(α_{kji}) \, v_{kj,l}, \qquad
        Y_{l0}(α_{kji}) = \frac{1}{\sqrt{4 π (2 l + 1)}} \sum_m Y_{lm}(\hat r_{jk}) \, Y_{lm}(\hat r_{ji})

    By the addition theorem on the right (Y_lm component-normalised) an atom sums what arrives, harmonics times values,
    once for all edges that leave: the work grows with the edges, not with their pairs. What came over the edge itself
    is taken off again, its angle being zero.

    Args:
        paths: Of the graph.
        values: What each edge k → j sends, one value a degree.
    """
    tensors = sum_to_atoms(paths.arriving, values, paths.edge_index[1], paths.num_atoms, _first(paths))
    return _received(paths, tensors, (_straight(paths).unsqueeze(-1) * values).sum(1))


def sum_products_over_paths(
    paths: Paths, factors: Float[Tensor, "E L S"], weight: Float[Tensor, "S C"], x: Float[Tensor, "E C"]
) -> Float[Tensor, "E C"]:
    """:func:`sum_over_paths` of the values ``x (factors @ weight)``, which are not kept.

    Args:
        paths: Of the graph.
        factors: Of each edge k → j, for a degree.
        weight: What they are multiplied by, the same for all edges and degrees.
        x: Features of the edges.
    """
    target = paths.edge_index[1]
    tensors = sum_products_to_atoms(paths.arriving, factors, weight, x, target, paths.num_atoms, _first(paths))
    straight = torch.tensordot(factors, _straight(paths), dims=([1], [0]))
    return _received(paths, tensors, x * linear(straight, weight.T))


def _first(paths: Paths) -> tuple[int, ...]:
    """Where the components of each degree begin."""
    return tuple(degree**2 for degree in range(lmax_of(paths.arriving.shape[1]) + 2))


def _straight(paths: Paths) -> Float[Tensor, " L"]:
    """``Y_l0(0)``."""
    lmax = lmax_of(paths.arriving.shape[1])
    return paths.arriving.new_tensor([math.sqrt((2 * degree + 1) / (4 * math.pi)) for degree in range(lmax + 1)])


def _received(paths: Paths, tensors: Float[Tensor, "N M C"], straight: Float[Tensor, "E C"]) -> Float[Tensor, "E C"]:
    """What each edge reads of its source, less what came over itself, its angle being zero."""
    received = sum_to_edges(paths.leaving, tensors, paths.edge_index[0], (0, tensors.shape[1])).squeeze(1)
    returned = straight.index_select(0, paths.back.clamp(min=0)) * (paths.back >= 0).unsqueeze(-1)
    return received - returned
