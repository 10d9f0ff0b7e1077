"""Products of rows that edges look up, summed over the channels of a head or over edges: what attention consists of."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyg_equivariant.nn.conv import segment_sum
from pyg_equivariant.nn.native import operation, runs_on, same_shapes, third_derivative

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


# The form of which all are derivatives is Q = Σ_ec a[to_a[e], c] b[to_b[e], c] c[to_c[e], c] s[e, h(c)]: dot = ∂Q/∂s,
# sum = ∂Q/∂c, first = ∂Q/∂(a, b, c) or ∂Q/∂(a, b, s): what a dot or a sum has as its derivatives, of which the gradient
# stands in the place of s or c. second = the derivatives of h · first by all four.


_INDICES = "Tensor to_a, Tensor to_b, Tensor to_c"
_dot = operation(
    f"head_dot(Tensor a, Tensor b, Tensor c, {_INDICES}, int heads) -> Tensor",
    lambda a, b, c, to_a, to_b, to_c, heads: a.new_empty(to_a.shape[0], heads),
)
_sum = operation(
    f"head_sum(Tensor a, Tensor b, Tensor s, {_INDICES}, SymInt size) -> Tensor",
    lambda a, b, s, to_a, to_b, to_c, size: a.new_empty(size, a.shape[1]),
)
_first = operation(
    f"head_first(Tensor a, Tensor b, Tensor c, Tensor s, {_INDICES}, bool by_s) -> (Tensor, Tensor, Tensor)",
    lambda a, b, c, s, to_a, to_b, to_c, by_s: same_shapes(a, b, s if by_s else c),
)
_second = operation(
    "head_second(Tensor a, Tensor b, Tensor c, Tensor s, Tensor ha, Tensor hb, Tensor h, "
    f"{_INDICES}, bool by_s) -> (Tensor, Tensor, Tensor, Tensor)",
    lambda a, b, c, s, ha, hb, h, to_a, to_b, to_c, by_s: same_shapes(a, b, c, s),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    *tensors, ctx.last = inputs
    ctx.save_for_backward(*tensors)


def _dot_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    a, b, c, *indices = ctx.saved_tensors
    return *_first(a, b, c, g, *indices, False), None, None, None, None


def _sum_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    a, b, s, *indices = ctx.saved_tensors
    return *_first(a, b, g, s, *indices, True), None, None, None, None


def _first_backward(ctx: Any, *h: Tensor) -> tuple[Tensor | None, ...]:
    tensors, indices = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
    return *_second(*tensors, *h, *indices, ctx.last), None, None, None, None


def _second_backward(ctx: Any, *k: Tensor) -> tuple[Tensor | None, ...]:
    tensors, indices = ctx.saved_tensors[:7], ctx.saved_tensors[7:]
    return *third_derivative(_along, tensors, (*indices, ctx.last), k), None, None, None, None


for _each, _derivative in (
    (_dot, _dot_backward),
    (_sum, _sum_backward),
    (_first, _first_backward),
    (_second, _second_backward),
):
    torch.library.register_autograd(_each, _derivative, setup_context=_save)


def _along(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    s: Tensor,
    ha: Tensor,
    hb: Tensor,
    h: Tensor,
    to_a: Tensor,
    to_b: Tensor,
    to_c: Tensor,
    by_s: bool,
) -> tuple[Tensor, ...]:
    """What ``head_second`` does, by PyTorch's operations: only a loss of second derivatives needs its own."""
    a, b, c, s = (tensor.view_as(tensor) for tensor in (a, b, c, s))
    product = a.index_select(0, to_a) * b.index_select(0, to_b) * c.index_select(0, to_c)
    form = (product.unflatten(1, (s.shape[1], -1)).sum(-1) * s).sum()
    first = torch.autograd.grad(form, (a, b, s if by_s else c), create_graph=True)
    return torch.autograd.grad(first, (a, b, c, s), (ha, hb, h), create_graph=True)
