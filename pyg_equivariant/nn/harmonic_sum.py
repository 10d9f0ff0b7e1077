"""Sums of edges' harmonics at atoms, and what edges read of them: how edges that meet in an atom know their angles."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyg_equivariant.nn.native import operation, runs_on

__all__ = ["sum_to_atoms", "sum_to_edges"]


def sum_to_atoms(
    edge_sh: Float[Tensor, "E M"],
    values: Float[Tensor, "E R C"],
    index: Int[Tensor, " E"],
    num_atoms: int,
    first: Sequence[int],
) -> Float[Tensor, "N M C"]:
    r""":math:`a_{n,m,c} = \sum_{e \to n} Y_{e,m} \, v_{e,r(m),c}`, without a tensor of all products.

    On a CPU a kernel does it, and :func:`sum_to_edges`, in all derivatives: three operations, each other's derivatives.

    Args:
        edge_sh: Harmonics of the edges, or any numbers.
        values: What they are multiplied by.
        index: The atom of each edge.
        num_atoms: N.
        first: R + 1 numbers: the components of row r are ``first[r]`` to ``first[r + 1] − 1``.

    Raises:
        IndexError: if an edge names an atom that is not there.
        ValueError: if the shapes do not fit each other.

    Example:
        >>> edge_sh, values = torch.ones(3, 4), torch.ones(3, 2, 8)  # a value for degree 0, one for degree 1
        >>> sum_to_atoms(edge_sh, values, torch.tensor([0, 0, 1]), 2, (0, 1, 4))[:, :, 0]
        tensor([[2., 2., 2., 2.],
                [1., 1., 1., 1.]])
    """
    if runs_on(values) and values.dtype == edge_sh.dtype:  # under autocast they may differ
        total: Tensor = _to_atoms(edge_sh, values, index, list(first), num_atoms)
        return total
    sizes = torch.tensor([b - a for a, b in itertools.pairwise(first)], device=values.device)
    row = torch.repeat_interleave(sizes, output_size=first[-1])
    product = edge_sh.unsqueeze(-1) * values.index_select(1, row)
    return product.new_zeros(num_atoms, *product.shape[1:]).index_add(0, index, product)


def sum_to_edges(
    edge_sh: Float[Tensor, "E M"], tensors: Float[Tensor, "N M C"], index: Int[Tensor, " E"], first: Sequence[int]
) -> Float[Tensor, "E R C"]:
    r""":math:`v_{e,r,c} = \sum_{m \in r} Y_{e,m} \, a_{n(e),m,c}`, the transpose of :func:`sum_to_atoms`.

    Args:
        edge_sh: Harmonics of the edges, or any numbers.
        tensors: Of the atoms.
        index: The atom of each edge.
        first: As for :func:`sum_to_atoms`.
    """
    if runs_on(tensors) and tensors.dtype == edge_sh.dtype:
        total: Tensor = _to_edges(edge_sh, tensors, index, list(first))
        return total
    product = edge_sh.unsqueeze(-1) * tensors.index_select(0, index)
    return torch.stack([product[:, a:b].sum(1) for a, b in itertools.pairwise(first)], 1)


# The form of which all are derivatives is Q = Σ_em y[e, m] (v[e, r(m)] · a[index[e], m]): to_atoms = ∂Q/∂a,
# to_edges = ∂Q/∂v, dot = ∂Q/∂y.


_to_atoms = operation(
    "harmonic_to_atoms(Tensor y, Tensor v, Tensor index, int[] first, SymInt nodes) -> Tensor",
    lambda y, v, index, first, nodes: v.new_empty(nodes, y.shape[1], v.shape[2]),
)
_to_edges = operation(
    "harmonic_to_edges(Tensor y, Tensor a, Tensor index, int[] first) -> Tensor",
    lambda y, a, index, first: a.new_empty(y.shape[0], len(first) - 1, a.shape[2]),
)
_dot = operation(
    "harmonic_dot(Tensor v, Tensor a, Tensor index, int[] first) -> Tensor",
    lambda v, a, index, first: v.new_empty(v.shape[0], a.shape[1]),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.first = inputs[3]


def _to_atoms_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    y, v, index = ctx.saved_tensors
    of_y = _dot(v, g, index, ctx.first) if ctx.needs_input_grad[0] else None
    return of_y, _to_edges(y, g, index, ctx.first), None, None, None


def _to_edges_backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
    y, a, index = ctx.saved_tensors
    of_y = _dot(h, a, index, ctx.first) if ctx.needs_input_grad[0] else None
    return of_y, _to_atoms(y, h, index, ctx.first, a.shape[0]), None, None


def _dot_backward(ctx: Any, k: Tensor) -> tuple[Tensor | None, ...]:
    v, a, index = ctx.saved_tensors
    return _to_edges(k, a, index, ctx.first), _to_atoms(k, v, index, ctx.first, a.shape[0]), None, None


for _each, _derivative in ((_to_atoms, _to_atoms_backward), (_to_edges, _to_edges_backward), (_dot, _dot_backward)):
    torch.library.register_autograd(_each, _derivative, setup_context=_save)
