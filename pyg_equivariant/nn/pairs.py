"""The two edges of a pair of atoms share their length, and what is learned of it."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyg_equivariant.nn.native import operation, runs_on

__all__ = ["Pairs", "find_pairs", "spread"]


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


def _shapes(edge_index: Tensor, edge_vec: Tensor) -> tuple[Tensor, Tensor]:
    of = torch.empty_like(edge_index[0])
    edges = of.shape[0]
    return of.new_empty(torch.library.get_ctx().new_dynamic_size(min=2) if edges > 1 else edges), of


_find_pairs = operation("find_pairs(Tensor edge_index, Tensor edge_vec) -> (Tensor, Tensor)", _shapes)
