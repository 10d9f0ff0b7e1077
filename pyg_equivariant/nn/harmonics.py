"""Spherical harmonics of edges, for training on forces."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyg_equivariant.nn.native import operation, runs_on, third_derivative
from pyg_equivariant.o3 import harmonics
from pyg_equivariant.o3.layout import num_components

__all__ = ["spherical_harmonics"]


def spherical_harmonics(edge_vec: Float[Tensor, "E 3"], lmax: int) -> Float[Tensor, "E M"]:
    """:func:`o3's <pyg_equivariant.o3.harmonics.spherical_harmonics>`, on the CPU by a kernel with two derivatives.

    By PyTorch's operations each of the M components is several, and its derivatives are many more.

    Args:
        edge_vec: Vectors of any length.
        lmax: Highest degree.

    Example:
        >>> spherical_harmonics(torch.tensor([[0.0, 2.0, 0.0]]), 1)
        tensor([[1.0000, 0.0000, 1.7321, 0.0000]])
    """
    if not runs_on(edge_vec):
        return harmonics.spherical_harmonics(edge_vec, lmax)
    y: Tensor = _forward(edge_vec, lmax)
    return y


_forward = operation(
    "harmonics_forward(Tensor v, int lmax) -> Tensor",
    lambda v, lmax: v.new_empty(v.shape[0], num_components(lmax)),
)
_backward = operation(
    "harmonics_backward(Tensor v, Tensor g, int lmax) -> Tensor", lambda v, g, lmax: v.new_empty(v.shape)
)
_second = operation(
    "harmonics_second(Tensor v, Tensor g, Tensor h, int lmax) -> (Tensor, Tensor)",
    lambda v, g, h, lmax: (v.new_empty(v.shape), g.new_empty(g.shape)),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    *tensors, ctx.lmax = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _forward_backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, None]:
    (v,) = ctx.saved_tensors
    return None if g is None else _backward(v, g, ctx.lmax), None


def _backward_backward(ctx: Any, h: Tensor | None) -> tuple[Tensor | None, ...]:
    v, g = ctx.saved_tensors
    return *((None, None) if h is None else _second(v, g, h, ctx.lmax)), None


def _second_backward(ctx: Any, *k: Tensor | None) -> tuple[Tensor | None, ...]:
    return *third_derivative(_along, ctx.saved_tensors, (ctx.lmax,), k), None


for _each, _derivative in (
    (_forward, _forward_backward),
    (_backward, _backward_backward),
    (_second, _second_backward),
):
    torch.library.register_autograd(_each, _derivative, setup_context=_save)


def _along(v: Tensor, g: Tensor, h: Tensor, lmax: int) -> tuple[Tensor, ...]:
    """What ``harmonics_second`` does, by PyTorch's operations: only a loss of second derivatives needs its own."""
    v, g = v.view_as(v), g.view_as(g)
    (of_v,) = torch.autograd.grad(harmonics.spherical_harmonics(v, lmax), v, g, create_graph=True)
    return torch.autograd.grad(of_v, (v, g), h, create_graph=True)
