"""Products of what is left of two atoms' tensors across the edge between them."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyg_equivariant.nn.native import operation, runs_on, same_shapes, third_derivative

__all__ = ["rejection_product"]


def rejection_product(
    tensors: Float[Tensor, "N M C2"],
    edge_sh: Float[Tensor, "E M"],
    source: Int[Tensor, " E"],
    target: Int[Tensor, " E"],
) -> Float[Tensor, "E C"]:
    r"""The product of rejections, from which ViSNet's edges know dihedral angles (Wang et al. 2022, arXiv:2210.16518).

    .. math::
        r_{ij} = ⟨\mathrm{Rej}(t_i), \mathrm{Rej}(s_j)⟩ = ⟨t_i, s_j⟩ + (|Y_{ij}|^2 - 2) ⟨t_i, Y_{ij}⟩ ⟨s_j, Y_{ij}⟩,
        \qquad \mathrm{Rej}(v) = v - ⟨v, Y_{ij}⟩ \, Y_{ij}

    On the CPU it is one operation, and so is each of its first two derivatives: no tensor of edges and components is
    made.

    Args:
        tensors: Of the atoms, t for edges that they are the target of and s for those that they are the source of, side
            by side.
        edge_sh: Y, harmonics of the edges or any numbers.
        source: j of each edge.
        target: i of each edge.

    Raises:
        IndexError: if an edge names an atom that is not there.
        ValueError: if the shapes do not fit each other.

    Example:
        >>> tensors, along_x = torch.ones(2, 3, 2), torch.tensor([[1.0, 0.0, 0.0]])
        >>> rejection_product(tensors, along_x, torch.tensor([0]), torch.tensor([1]))  # two components are left
        tensor([[2.]])
    """
    if runs_on(tensors) and tensors.dtype == edge_sh.dtype:  # under autocast they may differ
        product: Tensor = _forward(tensors, edge_sh, source, target)
        return product
    return _by_parts(tensors, edge_sh, source, target)


def _by_parts(x: Tensor, y: Tensor, source: Tensor, target: Tensor) -> Tensor:
    own, other = x.chunk(2, -1)
    own, other, sh = own.index_select(0, target), other.index_select(0, source), y.unsqueeze(-1)
    along = (own * sh).sum(1) * (other * sh).sum(1)
    return (own * other).sum(1) + (y.square().sum(-1, keepdim=True) - 2.0) * along


_EDGES = "Tensor source, Tensor target"
_forward = operation(
    f"rejection_forward(Tensor x, Tensor y, {_EDGES}) -> Tensor",
    lambda x, y, source, target: x.new_empty(y.shape[0], x.shape[2] // 2),
)
_backward = operation(
    f"rejection_backward(Tensor x, Tensor y, Tensor g, {_EDGES}) -> (Tensor, Tensor)",
    lambda x, y, g, source, target: same_shapes(x, y),
)
_second = operation(
    f"rejection_second(Tensor x, Tensor y, Tensor g, Tensor hx, Tensor hy, {_EDGES}) -> (Tensor, Tensor, Tensor)",
    lambda x, y, g, hx, hy, source, target: same_shapes(x, y, g),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(*inputs)


def _forward_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, y, *edges = ctx.saved_tensors
    return *_backward(x, y, g, *edges), None, None


def _backward_backward(ctx: Any, hx: Tensor, hy: Tensor) -> tuple[Tensor | None, ...]:
    x, y, g, *edges = ctx.saved_tensors
    return *_second(x, y, g, hx, hy, *edges), None, None


def _second_backward(ctx: Any, *k: Tensor) -> tuple[Tensor | None, ...]:
    tensors, edges = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
    return *third_derivative(_along, tensors, edges, k), None, None


for _each, _derivative in (
    (_forward, _forward_backward),
    (_backward, _backward_backward),
    (_second, _second_backward),
):
    torch.library.register_autograd(_each, _derivative, setup_context=_save)


def _along(
    x: Tensor, y: Tensor, g: Tensor, hx: Tensor, hy: Tensor, source: Tensor, target: Tensor
) -> tuple[Tensor, ...]:
    """What ``rejection_second`` does, by PyTorch's operations: only a loss of second derivatives needs its own."""
    x, y, g = (tensor.view_as(tensor) for tensor in (x, y, g))
    found = torch.autograd.grad(_by_parts(x, y, source, target), (x, y), g, create_graph=True)
    return torch.autograd.grad(found, (x, y, g), (hx, hy), create_graph=True)
