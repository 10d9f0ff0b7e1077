"""What the scalars and vectors of an atom send each other."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyg_equivariant.nn.native import operation, runs_on, same_shapes, third_derivative

__all__ = ["exchange"]


def exchange(
    scalars: Float[Tensor, "N C3"], vectors: Float[Tensor, "N M C3"]
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N M C"]]:
    r"""Scalars gate vectors, and products of vectors are added to scalars.

    .. math:: Δs = o^2 ∘ ⟨l, r⟩ + o^3, \qquad Δv = o^1 ∘ v

    This is how the layers of TorchMD-NET (Thölke & De Fabritiis 2022, arXiv:2202.02541, eqs. 11 and 12) and ViSNet
    end. On the CPU it is one operation, and so is each of its first two derivatives.

    Args:
        scalars: o¹, o² and o³ side by side.
        vectors: l, r and v side by side.

    Raises:
        ValueError: if the shapes do not fit each other.

    Example:
        >>> ds, dv = exchange(torch.tensor([[2.0, 1.0, 0.5]]), torch.ones(1, 3, 3))
        >>> ds.tolist(), dv.flatten().tolist()
        ([[3.5]], [2.0, 2.0, 2.0])
    """
    if runs_on(scalars) and scalars.dtype == vectors.dtype:  # under autocast they may differ
        ds, dv = _forward(scalars, vectors)
        return ds, dv
    return _by_parts(scalars, vectors)


def _by_parts(o: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    gate, factor, own = o.chunk(3, -1)
    left, right, vector = x.chunk(3, -1)
    return factor * (left * right).sum(1) + own, gate.unsqueeze(1) * vector


def _outcomes(o: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    channels = o.shape[1] // 3
    return o.new_empty(o.shape[0], channels), x.new_empty(*x.shape[:2], channels)


_forward = operation("exchange_forward(Tensor o, Tensor x) -> (Tensor, Tensor)", _outcomes)
_backward = operation(
    "exchange_backward(Tensor o, Tensor x, Tensor g, Tensor h) -> (Tensor, Tensor)",
    lambda o, x, *by: same_shapes(o, x),
)
_second = operation(
    "exchange_second(Tensor o, Tensor x, Tensor g, Tensor h, Tensor p, Tensor q) -> (Tensor, Tensor, Tensor, Tensor)",
    lambda o, x, g, h, p, q: same_shapes(o, x, g, h),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(*inputs)


def _forward_backward(ctx: Any, g: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    outcomes: tuple[Tensor, ...] = _backward(*ctx.saved_tensors, g, h)
    return outcomes


def _backward_backward(ctx: Any, p: Tensor, q: Tensor) -> tuple[Tensor, ...]:
    outcomes: tuple[Tensor, ...] = _second(*ctx.saved_tensors, p, q)
    return outcomes


def _second_backward(ctx: Any, *k: Tensor) -> tuple[Tensor | None, ...]:
    return tuple(third_derivative(_along, ctx.saved_tensors, (), k))


for _each, _derivative in (
    (_forward, _forward_backward),
    (_backward, _backward_backward),
    (_second, _second_backward),
):
    torch.library.register_autograd(_each, _derivative, setup_context=_save)


def _along(o: Tensor, x: Tensor, g: Tensor, h: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, ...]:
    """What ``exchange_second`` does, by PyTorch's operations: only a loss of second derivatives needs its own."""
    o, x, g, h = (tensor.view_as(tensor) for tensor in (o, x, g, h))
    found = torch.autograd.grad(_by_parts(o, x), (o, x), (g, h), create_graph=True)
    return torch.autograd.grad(found, (o, x, g, h), (p, q), create_graph=True)
