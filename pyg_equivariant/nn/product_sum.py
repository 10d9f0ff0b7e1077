"""Sums at atoms of edges' harmonics times what edges compute of features and factors, which is never kept."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyg_equivariant.nn.harmonic_sum import sum_to_atoms
from pyg_equivariant.nn.native import operation, runs_on, same_shapes, third_derivative

__all__ = ["sum_products_to_atoms"]


def sum_products_to_atoms(
    edge_sh: Float[Tensor, "E M"],
    factors: Float[Tensor, "E R S"],
    weight: Float[Tensor, "S C"],
    x: Float[Tensor, "E C"],
    index: Int[Tensor, " E"],
    num_atoms: int,
    first: Sequence[int],
) -> Float[Tensor, "N M C"]:
    r""":math:`a_{n,m,c} = \sum_{e \to n} Y_{e,m} \, x_{e,c} \sum_s b_{e,r(m),s} w_{s,c}`.

    This is :func:`~pyg_equivariant.nn.harmonic_sum.sum_to_atoms` of the values ``x (b @ w)``, ``[E, R, C]``, which on a
    CPU a kernel computes edge by edge where they are needed, in the first two derivatives as well.

    Args:
        edge_sh: Harmonics Y of the edges, or any numbers.
        factors: b.
        weight: w.
        x: Features of the edges.
        index: The atom of each edge.
        num_atoms: N.
        first: R + 1 numbers: the components of row r are ``first[r]`` to ``first[r + 1] − 1``.

    Raises:
        IndexError: if an edge names an atom that is not there.
        ValueError: if the shapes do not fit each other.

    Example:
        >>> edge_sh, factors, weight = torch.ones(3, 4), torch.ones(3, 2, 5), torch.ones(5, 8)
        >>> x, index = torch.ones(3, 8), torch.tensor([0, 0, 1])
        >>> sum_products_to_atoms(edge_sh, factors, weight, x, index, 2, (0, 1, 4))[:, :, 0]
        tensor([[10., 10., 10., 10.],
                [ 5.,  5.,  5.,  5.]])
    """
    if runs_on(x) and x.dtype == edge_sh.dtype == factors.dtype == weight.dtype:  # under autocast they may differ
        total: Tensor = _to_atoms(edge_sh, factors, weight, x, index, list(first), num_atoms)
        return total
    return sum_to_atoms(edge_sh, (factors @ weight) * x.unsqueeze(1), index, num_atoms, first)


# The form of which all are derivatives is Q = Σ_em y[e, m] (x[e] (b[e, r(m)] @ w) · a[index[e], m]): to_atoms = ∂Q/∂a,
# backward is those by y, b, w and x, second those of a sum of these.


_INPUTS = "Tensor y, Tensor b, Tensor w, Tensor x"
_to_atoms = operation(
    f"product_to_atoms({_INPUTS}, Tensor index, int[] first, SymInt nodes) -> Tensor",
    lambda y, b, w, x, index, first, nodes: x.new_empty(nodes, y.shape[1], x.shape[1]),
)
_backward = operation(
    f"product_backward({_INPUTS}, Tensor g, Tensor index, int[] first) -> (Tensor, Tensor, Tensor, Tensor)",
    lambda *tensors: same_shapes(*tensors[:4]),
)
_second = operation(
    f"product_second({_INPUTS}, Tensor g, Tensor hy, Tensor hb, Tensor hw, Tensor hx, Tensor index, int[] first) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    lambda *tensors: same_shapes(*tensors[:5]),
)


def _save_to_atoms(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    *tensors, ctx.first, _ = inputs
    ctx.save_for_backward(*tensors)


def _save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    *tensors, ctx.first = inputs
    ctx.save_for_backward(*tensors)


def _to_atoms_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, index = ctx.saved_tensors
    return *_backward(*tensors, g, index, ctx.first), None, None, None


def _backward_backward(ctx: Any, *h: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, index = ctx.saved_tensors
    return *_second(*tensors, *h, index, ctx.first), None, None


def _second_backward(ctx: Any, *k: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, index = ctx.saved_tensors
    return *third_derivative(_along, tensors, (index, ctx.first), k), None, None


def _along(
    y: Tensor,
    b: Tensor,
    w: Tensor,
    x: Tensor,
    g: Tensor,
    hy: Tensor,
    hb: Tensor,
    hw: Tensor,
    hx: Tensor,
    index: Tensor,
    first: list[int],
) -> tuple[Tensor, ...]:
    """What ``product_second`` does."""
    inputs = [t.view_as(t) for t in (y, b, w, x, g)]
    y, b, w, x, g = inputs
    q = (sum_to_atoms(y, (b @ w) * x.unsqueeze(1), index, g.shape[0], first) * g).sum()
    derivatives = torch.autograd.grad(q, (y, b, w, x), create_graph=True)
    return torch.autograd.grad(derivatives, inputs, (hy, hb, hw, hx), create_graph=True, materialize_grads=True)


for _each, _derivative, _keep in (
    (_to_atoms, _to_atoms_backward, _save_to_atoms),
    (_backward, _backward_backward, _save),
    (_second, _second_backward, _save),
):
    torch.library.register_autograd(_each, _derivative, setup_context=_keep)
