"""Dense layers."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyg_equivariant.nn.native import operation, runs_on

__all__ = ["Dense", "linear"]


class Dense(nn.Linear):
    """PyTorch's linear layer, of which a compiled training step has fewer operations.

    Arguments, parameters and their initial values are those of ``nn.Linear``; see :func:`linear`.

    Example:
        >>> Dense(8, 16)(torch.zeros(5, 3, 8)).shape
        torch.Size([5, 3, 16])
    """

    def forward(self, x: Float[Tensor, "... C"]) -> Float[Tensor, "... D"]:
        """``x Wᵀ + b``."""
        return linear(x, self.weight, self.bias)


def linear(
    x: Float[Tensor, "... C"], weight: Float[Tensor, "D C"], bias: Float[Tensor, " D"] | None = None
) -> Float[Tensor, "... D"]:
    """``x Wᵀ + b``, for a compiled step that learns W an operation whose derivatives are operations of the same kind.

    PyTorch's own is a product of matrices between transposes and changes of shape, and so are its derivatives: twice
    as many operations, for all of which a first step waits.

    Args:
        x: Rows.
        weight: W.
        bias: b.

    Raises:
        ValueError: if the shapes do not fit.
    """
    learned = torch.compiler.is_compiling() and weight.requires_grad
    if learned and runs_on(x) and x.dtype == weight.dtype and not torch.is_autocast_enabled("cpu"):
        y: Tensor = _forward(x, weight, bias)
        return y
    return functional.linear(x, weight, bias)


# Three operations whose derivatives are each other, so that all orders exist. The form of which all are derivatives is
# Q = Σ_n g_n · W x_n: forward = ∂Q/∂g, back = ∂Q/∂x, outer = ∂Q/∂W; forward adds b.


def _rows(x: Tensor, channels: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], channels)


_forward = operation("linear_forward(Tensor x, Tensor w, Tensor? b) -> Tensor", lambda x, w, b: _rows(x, w.shape[0]))
_back = operation("linear_back(Tensor g, Tensor w) -> Tensor", lambda g, w: _rows(g, w.shape[1]))
_outer = operation("linear_outer(Tensor g, Tensor x) -> Tensor", lambda g, x: g.new_empty(g.shape[-1], x.shape[-1]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(*inputs[:2])


def _forward_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, w = ctx.saved_tensors
    of_x, of_w, of_b = ctx.needs_input_grad
    sums = g.reshape(-1, g.shape[-1]).sum(0) if of_b else None
    return _back(g, w) if of_x else None, _outer(g, x) if of_w else None, sums


def _back_backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
    g, w = ctx.saved_tensors
    of_g, of_w = ctx.needs_input_grad
    return _forward(h, w, None) if of_g else None, _outer(g, h) if of_w else None


def _outer_backward(ctx: Any, k: Tensor) -> tuple[Tensor | None, ...]:
    g, x = ctx.saved_tensors
    of_g, of_x = ctx.needs_input_grad
    return _forward(x, k, None) if of_g else None, _back(g, k) if of_x else None


OPERATIONS = _forward, _back, _outer
for _each, _derivative in zip(OPERATIONS, (_forward_backward, _back_backward, _outer_backward), strict=True):
    torch.library.register_autograd(_each, _derivative, setup_context=_save)
