"""Pairs of edges that meet in an atom."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["find_triplets"]

SAME_PLACE = 0.01
"""Å. Images of one atom lie a lattice vector apart, so that what is nearer is the same image but for rounding."""


def find_triplets(edge_index: Int[Tensor, "2 E"], edge_vec: Float[Tensor, "E 3"], num_atoms: int) -> Int[Tensor, "2 T"]:
    """All paths k → j → i of two edges that do not return to where they began.

    The path back over the same edge is left out. In a periodic system k may well be another image of i, and j one of
    either: only the path whose second vector is the first one's opposite returns.

    Their number depends on the values of ``edge_index``: on a GPU, this waits for the device. Under
    ``torch.compile`` it is one opaque operation and does not break the graph.

    Args:
        edge_index: Row 0 the source j, row 1 the target i, in any order.
        edge_vec: ``r_j − r_i`` in Å.
        num_atoms: N.

    Returns:
        Row 0 the edge k → j, row 1 the edge j → i, sorted by the latter.

    Example:
        >>> edge_index = torch.tensor([[1, 0, 2, 1], [0, 1, 1, 2]])  # a chain of three atoms, both ways
        >>> edge_vec = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
        >>> find_triplets(edge_index, edge_vec, 3)  # 2 → 1 → 0 and 0 → 1 → 2
        tensor([[2, 1],
                [0, 3]])
    """
    found: Tensor = _triplets(edge_index, edge_vec.detach(), num_atoms)
    return found


@torch.library.custom_op(
    "pyg_equivariant::triplets",
    mutates_args=(),
    schema="(Tensor edge_index, Tensor edge_vec, SymInt num_atoms) -> Tensor",
)
def _triplets(edge_index: Tensor, edge_vec: Tensor, num_atoms: int) -> Tensor:
    source, target = edge_index
    received = torch.bincount(target, minlength=num_atoms)
    by_target = target.argsort(stable=True)  # the edges that j receives are those from first[j] on
    first = received.cumsum(0) - received
    count = received[source]
    second = torch.repeat_interleave(count)  # j → i, once for each edge that j receives
    within = torch.arange(len(second), device=second.device) - (count.cumsum(0) - count)[second]
    incoming = by_target[first[source][second] + within]  # k → j
    same = (source[incoming] == target[second]).nonzero().flatten()
    sum_vec = edge_vec[incoming[same]] + edge_vec[second[same]]
    keep = torch.ones_like(second, dtype=torch.bool)
    keep[same[sum_vec.square().sum(-1) < SAME_PLACE**2]] = False
    return torch.stack((incoming[keep], second[keep]))


@_triplets.register_fake
def _(edge_index: Tensor, edge_vec: Tensor, num_atoms: int) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()
    return edge_index.new_empty(2, size)
