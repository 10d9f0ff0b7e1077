"""Products of rows that edges look up, summed over the channels of a head or over edges: what attention consists of."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyg_equivariant.nn.conv import segment_sum
from pyg_equivariant.nn.native import is_wanted, operation, runs_on

__all__ = ["head_dot", "head_sum"]

Factor = tuple[Float[Tensor, "_ C"], Int[Tensor, " E"]]
"""Rows, and which of them an edge reads: an atom's features by its source or target, filters by its pair."""


def head_dot(a: Factor, b: Factor, c: Factor, num_heads: int) -> Float[Tensor, "E H"]:
    r""":math:`s_{eh} = \sum_{c ∈ h} a_{ec} b_{ec} c_{ec}`, the scores of a dot product in heads.

    On the CPU a kernel does it and :func:`head_sum`, in all derivatives; no tensor of edges and channels is made.

    Args:
        a: Rows and the row of each edge.
        b: The same.
        c: The same.
        num_heads: H, a divisor of the channels.

    Raises:
        IndexError: if an edge names a row that is not there.
        ValueError: if the shapes do not fit each other.

    Example:
        >>> atoms, filters, edge = torch.ones(3, 4), torch.full((1, 4), 2.0), torch.tensor([0])
        >>> head_dot((atoms, torch.tensor([0])), (atoms, torch.tensor([1])), (filters, edge), num_heads=2)
        tensor([[4., 4.]])
    """
    (x, to_x), (y, to_y), (w, to_w) = a, b, c
    if runs_on(x) and x.dtype == y.dtype == w.dtype:  # under autocast they may differ
        scores: Tensor = _dot(x, y, w, to_x, to_y, to_w, num_heads)
        return scores
    product = x.index_select(0, to_x) * y.index_select(0, to_y) * w.index_select(0, to_w)
    return product.unflatten(1, (num_heads, -1)).sum(-1)


def head_sum(
    a: Factor, b: Factor, factors: Float[Tensor, "E H"], index: Int[Tensor, " E"], size: int
) -> Float[Tensor, "N C"]:
    r""":math:`y_{nc} = \sum_{e \to n} a_{ec} b_{ec} s_{eh(c)}`, the values of edges times their head's attention.

    Args:
        a: Rows and the row of each edge.
        b: The same.
        factors: s.
        index: Where each edge is added.
        size: N.

    Raises:
        IndexError: if an edge names a row that is not there.
        ValueError: if the shapes do not fit each other.

    Example:
        >>> value, filters = (torch.ones(3, 4), torch.tensor([1, 2])), (torch.ones(2, 4), torch.tensor([0, 1]))
        >>> head_sum(value, filters, torch.tensor([[1.0, 2.0], [10.0, 20.0]]), torch.tensor([0, 0]), 2)
        tensor([[11., 11., 22., 22.],
                [ 0.,  0.,  0.,  0.]])
    """
    (x, to_x), (y, to_y) = a, b
    if runs_on(x) and x.dtype == y.dtype == factors.dtype:
        total: Tensor = _sum(x, y, factors, to_x, to_y, index, size)
        return total
    product = (x.index_select(0, to_x) * y.index_select(0, to_y)).unflatten(1, (factors.shape[1], -1))
    return segment_sum((product * factors.unsqueeze(-1)).flatten(1), index, size)


# Two operations whose derivatives are each other, so that all orders exist. The form of which all are derivatives is
# Q = Σ_ec a[to_a[e], c] b[to_b[e], c] c[to_c[e], c] s[e, h(c)]: dot = ∂Q/∂s, sum = ∂Q/∂c, and by a or b likewise.


_dot = operation(
    "head_dot(Tensor a, Tensor b, Tensor c, Tensor to_a, Tensor to_b, Tensor to_c, int heads) -> Tensor",
    lambda a, b, c, to_a, to_b, to_c, heads: a.new_empty(to_a.shape[0], heads),
)
_sum = operation(
    "head_sum(Tensor a, Tensor b, Tensor s, Tensor to_a, Tensor to_b, Tensor to_c, SymInt size) -> Tensor",
    lambda a, b, s, to_a, to_b, to_c, size: a.new_empty(size, a.shape[1]),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(*inputs[:6])


def _dot_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    a, b, c, to_a, to_b, to_c = ctx.saved_tensors
    of_a = _sum(b, c, g, to_b, to_c, to_a, a.shape[0]) if is_wanted(ctx, 0) else None
    of_b = _sum(a, c, g, to_a, to_c, to_b, b.shape[0]) if is_wanted(ctx, 1) else None
    of_c = _sum(a, b, g, to_a, to_b, to_c, c.shape[0]) if is_wanted(ctx, 2) else None
    return of_a, of_b, of_c, None, None, None, None


def _sum_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    a, b, s, to_a, to_b, to_c = ctx.saved_tensors
    of_a = _sum(b, g, s, to_b, to_c, to_a, a.shape[0]) if is_wanted(ctx, 0) else None
    of_b = _sum(a, g, s, to_a, to_c, to_b, b.shape[0]) if is_wanted(ctx, 1) else None
    of_s = _dot(a, b, g, to_a, to_b, to_c, s.shape[1]) if is_wanted(ctx, 2) else None
    return of_a, of_b, of_s, None, None, None, None


torch.library.register_autograd(_dot, _dot_backward, setup_context=_save)
torch.library.register_autograd(_sum, _sum_backward, setup_context=_save)
