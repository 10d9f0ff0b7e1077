"""Attention over the edges that an atom receives."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyg_equivariant.nn.conv import segment_sum

__all__ = ["edge_softmax"]


def edge_softmax(
    score: Float[Tensor, "E ..."], envelope: Float[Tensor, " E"], index: Int[Tensor, " E"], size: int
) -> Float[Tensor, "E ..."]:
    r"""Softmax of the scores of all edges with the same target, smooth where an edge leaves the cutoff.

    .. math::
        α_{ij} = u_{ij} \, \frac{u_{ij} \exp(s_{ij})}{\sum_k u_{ik} \exp(s_{ik})}

    The envelope u in the softmax lets an edge fade from the sum, so that the weights of the others do not jump when it
    is gone; the one before it lets its own message fade, which the softmax alone does not: an only neighbour has
    all the attention up to the cutoff. The fractions sum to one for every target that has edges within the cutoff.

    Args:
        score: s, with heads or channels on further axes.
        envelope: u, 0 from the cutoff on.
        index: Target i of each edge.
        size: Number of targets.

    Returns:
        α, finite with finite derivatives, 0 from the cutoff on.

    Example:
        >>> edge_softmax(torch.zeros(3, 1), torch.ones(3), torch.tensor([0, 0, 1]), size=2).flatten()
        tensor([0.5000, 0.5000, 1.0000])
    """
    u = envelope.view(-1, *[1] * (score.dim() - 1))
    known = score.detach()
    rows = index.view_as(u).expand_as(known)
    largest = known.new_zeros((size, *known.shape[1:])).scatter_reduce(0, rows, known, "amax", include_self=False)
    weight = u * torch.exp(score - largest.index_select(0, index))  # the largest cancels: it avoids overflow
    total = segment_sum(weight, index, size)
    return u * weight / torch.where(total == 0, 1.0, total).index_select(0, index)
