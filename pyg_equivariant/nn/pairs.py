"""The two edges of a pair of atoms share their length, and what is learned of it."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
    return Pairs(*_find_pairs(edge_index, edge_vec.detach()))


def spread(values: Float[Tensor, "P ..."], pair: Int[Tensor, " E"] | None) -> Float[Tensor, "E ..."]:
    """The values of the edges from those of their pairs, or the values themselves where each edge has its own."""
    return values if pair is None else values.index_select(0, pair)


@torch.library.custom_op("pyg_equivariant::find_pairs", mutates_args=())
def _find_pairs(edge_index: Tensor, edge_vec: Tensor) -> tuple[Tensor, Tensor]:
    source, target = edge_index
    edge = torch.arange(len(source), device=source.device)
    alone = edge, edge.clone()
    if edge_vec.device.type != "cpu" or len(source) == 0:
        return alone
    x, y, z = edge_vec.unbind(1)
    along = torch.where(source == target, (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0)))), source < target)
    vector = torch.where(along.unsqueeze(1), edge_vec, -edge_vec).double() + 0.0  # no negative zeros
    keys = torch.cat([edge_index.amin(0, True), edge_index.amax(0, True), vector.view(torch.int64).T])
    mixed = keys * keys.new_tensor(_FACTORS).unsqueeze(1)
    order = mixed.bitwise_xor_(mixed >> 32).sum(0).argsort()  # brings equal keys together; at worst keeps some apart
    keys = keys[:, order]
    is_first = torch.ones_like(along)
    torch.any(keys[:, 1:] != keys[:, :-1], 0, out=is_first[1:])
    first = order[is_first]
    if len(first) == 1:  # the compiler asks all the time whether a size is 1, and must know that it is not
        return alone
    number = torch.zeros_like(edge).index_fill_(0, first, 1).cumsum(0) - 1  # in the order of the edges
    of = torch.empty_like(edge).index_copy_(0, order, number[first[is_first.cumsum(0) - 1]])
    return first.sort().values, of


_FACTORS = [0x2545F4914F6CDD1D, 0x5851F42D4C957F2D, 0x369DEA0F31A53F85, 0x27BB2EE687B0B0FD, 0x106689D45497FDB5]


@_find_pairs.register_fake
def _(edge_index: Tensor, edge_vec: Tensor) -> tuple[Tensor, Tensor]:
    of = torch.empty_like(edge_index[0])
    return of.new_empty(torch.library.get_ctx().new_dynamic_size(min=2) if len(of) > 1 else len(of)), of
