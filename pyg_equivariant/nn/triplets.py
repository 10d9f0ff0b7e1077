"""Pairs of edges that meet in an atom, and sums over them."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Triplets", "find_triplets", "legendre", "sum_over_paths"]

SAME_PLACE = 0.01
"""Å. Images of one atom lie a lattice vector apart, so that what is nearer is the same image but for rounding."""


class Triplets(NamedTuple):
    """All paths k → j → i of two edges that do not return to where they began, as one table for each j.

    Its rows are the edges j → i, its columns the edges k → j, both padded to D, the most edges of any atom and
    at least 2. A sum over triplets is then a matrix product for each atom.

    Attributes:
        incoming: Place ``j D + column`` of each edge k → j.
        outgoing: Place ``j D + row`` of each edge j → i.
        open: Which pairs are paths that do not return.
    """

    incoming: Int[Tensor, " E"]
    outgoing: Int[Tensor, " E"]
    open: Bool[Tensor, "N D D"]


def find_triplets(edge_index: Int[Tensor, "2 E"], edge_vec: Float[Tensor, "E 3"], num_atoms: int) -> Triplets:
    """The triplets of a graph.

    The path back over the same edge is left out. In a periodic system k may well be another image of i, and j one of
    either: only the path whose second vector is the first one's opposite returns.

    The width of the table depends on the values of ``edge_index``: on a GPU, this waits for the device. Under
    ``torch.compile`` it is one opaque operation and does not break the graph.

    Args:
        edge_index: Row 0 the source j, row 1 the target i, in any order.
        edge_vec: ``r_j − r_i`` in Å.
        num_atoms: N.

    Example:
        >>> edge_index = torch.tensor([[1, 0, 2, 1], [0, 1, 1, 2]])  # a chain of three atoms, both ways
        >>> edge_vec = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
        >>> find_triplets(edge_index, edge_vec, 3).open[1]  # 2 → 1 → 0 and 0 → 1 → 2
        tensor([[False,  True],
                [ True, False]])
    """
    return Triplets(*_triplets(edge_index, edge_vec.detach(), num_atoms))


def legendre(triplets: Triplets, edge_dir: Float[Tensor, "E 3"], num_degrees: int) -> Float[Tensor, "N D DL"]:
    """Y_l0 of the angle at j, for the degrees l below ``num_degrees``, the last index; 0 where there is no path.

    Y_l0 is a Legendre polynomial of the cosine: collinear atoms have all derivatives.

    Args:
        triplets: Of the graph.
        edge_dir: Unit vectors of ``edge_vec``.
        num_degrees: L.
    """
    to_source, to_target = _table(triplets, edge_dir, triplets.incoming), _table(triplets, -edge_dir, triplets.outgoing)
    x = torch.bmm(to_target, to_source.transpose(1, 2))
    values = [torch.ones_like(x), x]
    for degree in range(1, num_degrees - 1):
        values.append(((2 * degree + 1) * x * values[-1] - degree * values[-2]) / (degree + 1))
    norms = [math.sqrt((2 * degree + 1) / (4 * math.pi)) for degree in range(num_degrees)]
    table = torch.stack([norm * value for norm, value in zip(norms, values, strict=False)], -1)
    return (table * triplets.open.unsqueeze(-1)).flatten(2)


def sum_over_paths(
    triplets: Triplets, angles: Float[Tensor, "N D DL"], values: Float[Tensor, "E L C"]
) -> Float[Tensor, "E C"]:
    r""":math:`y_{ji} = \sum_k \sum_l Y_{l0}(α_{kji}) \, v_{kj,l}`, for all channels.

    Args:
        triplets: Of the graph.
        angles: What :func:`legendre` returns.
        values: What each edge k → j sends, one value a degree.
    """
    sent = _table(triplets, values.flatten(1), triplets.incoming)
    received = torch.bmm(angles, sent.view(angles.shape[0], angles.shape[2], values.shape[2]))
    return received.flatten(0, 1).index_select(0, triplets.outgoing)


def _table(triplets: Triplets, values: Float[Tensor, "E F"], place: Int[Tensor, " E"]) -> Float[Tensor, "N D F"]:
    num_atoms, width, _ = triplets.open.shape
    empty = values.new_zeros(num_atoms * width, values.shape[1])
    return empty.index_add(0, place, values).view(num_atoms, width, values.shape[1])


@torch.library.custom_op(
    "pyg_equivariant::triplets",
    mutates_args=(),
    schema="(Tensor edge_index, Tensor edge_vec, SymInt num_atoms) -> (Tensor, Tensor, Tensor)",
)
def _triplets(edge_index: Tensor, edge_vec: Tensor, num_atoms: int) -> tuple[Tensor, Tensor, Tensor]:
    source, target = edge_index
    received, sent = (torch.bincount(end, minlength=num_atoms) for end in (target, source))
    width = max(2, int(torch.maximum(received, sent).max())) if len(source) else 2
    incoming = target * width + _rank(target, received)
    outgoing = source * width + _rank(source, sent)

    places, none = num_atoms * width, -1
    edge_in = source.new_full((places,), none).index_copy_(0, incoming, torch.arange(len(source), device=source.device))
    edge_out = torch.full_like(edge_in, none).index_copy_(0, outgoing, edge_in[incoming])
    edge_in, edge_out = edge_in.view(num_atoms, 1, width), edge_out.view(num_atoms, width, 1)
    paths = (edge_in != none) & (edge_out != none)
    if len(source):
        where = (paths & (source[edge_in] == target[edge_out])).nonzero(as_tuple=True)  # about one an edge
        there, back = edge_in.expand_as(paths)[where], edge_out.expand_as(paths)[where]
        paths[where] = (edge_vec[there] + edge_vec[back]).square().sum(-1) >= SAME_PLACE**2
    return incoming, outgoing, paths


@_triplets.register_fake
def _(edge_index: Tensor, edge_vec: Tensor, num_atoms: int) -> tuple[Tensor, Tensor, Tensor]:
    width = torch.library.get_ctx().new_dynamic_size(min=2)  # the compiler asks whether it is 1
    place = torch.empty_like(edge_index[0])
    return place, torch.empty_like(place), edge_index.new_empty(num_atoms, width, width, dtype=torch.bool)


def _rank(index: Int[Tensor, " E"], count: Int[Tensor, " N"]) -> Int[Tensor, " E"]:
    """How many equal numbers come before each."""
    order = index.argsort(stable=True)
    first = count.cumsum(0) - count
    within = torch.arange(len(index), device=index.device) - first[index[order]]
    return torch.empty_like(index).index_copy_(0, order, within)
