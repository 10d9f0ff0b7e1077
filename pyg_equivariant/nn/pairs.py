"""Opposite edges: the two of a pair of atoms share their length, and what is learned of it."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyg_equivariant.nn.native import implement, operation, runs_on

__all__ = ["Pairs", "find_pairs", "find_returns", "spread"]

SAME_PLACE = 0.01
"""Å. Images of one atom lie a lattice vector apart, so that what is nearer is the same image but for rounding."""


class Pairs(NamedTuple):
    """Groups of edges with opposite (or equal) vectors between the same two atoms: nearly always i → j and j → i.

    A filter of the length is computed once a pair, on the rows ``first``, which halves the work and memory of most
    models' largest layers, and read by each edge through ``of``.

    Attributes:
        first: An edge of each pair.
        of: The pair of each edge.
    """

    first: Int[Tensor, " P"]
    of: Int[Tensor, " E"]


def find_pairs(edge_index: Int[Tensor, "2 E"], edge_vec: Float[Tensor, "E 3"]) -> Pairs:
    """The pairs of a graph; an edge without its opposite is a pair of its own.

    Vectors must be opposite to the last bit, as differences of positions are. Derivatives with respect to positions
    and strain do not change; those with respect to the vectors of a pair all arrive at its first edge.

    How many there are depends on the values: on a GPU, which would have to wait for it, every edge is a pair of its
    own. Under ``torch.compile`` this is one opaque operation.

    Args:
        edge_index: Row 0 the source j, row 1 the target i, in any order.
        edge_vec: ``r_j − r_i`` in Å.

    Example:
        >>> edge_index = torch.tensor([[1, 0, 2], [0, 1, 1]])
        >>> find_pairs(edge_index, torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0]]))
        Pairs(first=tensor([0, 2]), of=tensor([0, 0, 1]))
    """
    if runs_on(edge_vec):
        return Pairs(*_find_pairs(edge_index, edge_vec.detach()))
    edge = torch.arange(edge_index.shape[1], device=edge_index.device)
    return Pairs(edge, edge)


def spread(values: Float[Tensor, "P ..."], pair: Int[Tensor, " E"] | None) -> Float[Tensor, "E ..."]:
    """The values of the edges from those of their pairs, or the values themselves where each edge has its own."""
    return values if pair is None else values.index_select(0, pair)


def find_returns(edge_index: Int[Tensor, "2 E"], edge_vec: Float[Tensor, "E 3"], num_atoms: int) -> Int[Tensor, " E"]:
    """The edge that leads each edge back to where it began, or −1 where there is none.

    In a periodic system several edges join two atoms: only the one whose vector is the opposite, within 0.01 Å,
    returns. Under ``torch.compile`` this is one opaque operation.

    Args:
        edge_index: Row 0 the source j, row 1 the target i, in any order.
        edge_vec: ``r_j − r_i`` in Å.
        num_atoms: N.

    Raises:
        IndexError: if an edge names an atom that is not there (looked for on a CPU only).

    Example:
        >>> edge_index = torch.tensor([[1, 0, 2], [0, 1, 1]])
        >>> find_returns(edge_index, torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0]]), 3)
        tensor([ 1,  0, -1])
    """
    edge_vec = edge_vec.detach().to(torch.promote_types(edge_vec.dtype, torch.float32))
    runs_on(edge_vec)  # loads the kernels, if there are any
    returns: Tensor = _find_returns(edge_index, edge_vec, num_atoms, SAME_PLACE)
    return returns


def _by_search(
    edge_index: Int[Tensor, "2 E"], edge_vec: Float[Tensor, "E 3"], num_atoms: int, same: float
) -> Int[Tensor, " E"]:
    source, target = edge_index
    ends, order = (source * num_atoms + target).sort()
    wanted = target * num_atoms + source
    start = torch.searchsorted(ends, wanted)
    count = torch.searchsorted(ends, wanted, right=True) - start
    edge = torch.arange(len(source), device=source.device).repeat_interleave(count)
    place = torch.arange(len(edge), device=source.device) + (start - count.cumsum(0) + count)[edge]
    back = order[place]
    near = (edge_vec[edge] + edge_vec[back]).square().sum(-1) < same**2
    return torch.full_like(source, -1).index_copy_(0, edge[near], back[near])


def _shapes(edge_index: Tensor, edge_vec: Tensor) -> tuple[Tensor, Tensor]:
    of = torch.empty_like(edge_index[0])
    edges = of.shape[0]
    return of.new_empty(torch.library.get_ctx().new_dynamic_size(min=2) if edges > 1 else edges), of


_find_pairs = operation("find_pairs(Tensor edge_index, Tensor edge_vec) -> (Tensor, Tensor)", _shapes)
_find_returns = operation(
    "find_returns(Tensor edge_index, Tensor edge_vec, SymInt num_atoms, float same) -> Tensor",
    lambda edge_index, edge_vec, num_atoms, same: torch.empty_like(edge_index[0]),
)
implement("find_returns", _by_search)
