"""Edges from atoms to themselves."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["with_loops"]


def with_loops(
    edge_index: Int[Tensor, "2 E"], edge_vec: Float[Tensor, "E 3"], size: int
) -> tuple[Int[Tensor, "2 E2"], Float[Tensor, "E2 3"]]:
    """Adds, after the edges, one of length 0 from each of ``size`` atoms to itself.

    Example:
        >>> with_loops(torch.tensor([[0, 1], [1, 0]]), torch.ones(2, 3), 2)[0]
        tensor([[0, 1, 0, 1],
                [1, 0, 0, 1]])
    """
    loop = torch.arange(size, device=edge_index.device).expand(2, -1)
    return torch.cat([edge_index, loop], 1), torch.cat([edge_vec, edge_vec.new_zeros(size, 3)])
