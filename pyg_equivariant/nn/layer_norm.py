"""LayerNorm, for training on forces."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyg_equivariant.nn.native import is_wanted, operation, runs_on, third_derivative

__all__ = ["LayerNorm"]


class LayerNorm(nn.LayerNorm):
    r"""PyTorch's, of the last axis, with a kernel for the CPU that is closed under two derivatives.

    .. math:: y_c = w_c z_c + b_c, \qquad z_c = (x_c - m(x)) / \sqrt{m((x - m(x))^2) + ε}

    with m the mean over c. The gradient of a loss of forces, for which PyTorch has some hundred operations, is one
    operation then. Parameters have the names they have in PyTorch.

    Args:
        channels: C.
        eps: ε.

    Reference: Ba, Kiros & Hinton 2016, arXiv:1607.06450, eqs. 3 and 4.

    Example:
        >>> LayerNorm(2)(torch.tensor([[1.0, 3.0]])).round(decimals=2).tolist()
        [[-1.0, 1.0]]
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        """The normalised rows."""
        if runs_on(x) and x.dtype == self.weight.dtype and not torch.is_autocast_enabled("cpu"):
            w, b = (parameter.view_as(parameter) for parameter in (self.weight, self.bias))  # no leaves: see is_wanted
            y: Tensor = _forward(x, w, b, self.eps)
            return y
        return super().forward(x)


_forward = operation(
    "layer_norm_forward(Tensor x, Tensor w, Tensor b, float eps) -> Tensor",
    lambda x, w, b, eps: x.new_empty(x.shape),
)
_backward = operation(
    "layer_norm_backward(Tensor x, Tensor w, Tensor g, float eps, bool weights) -> (Tensor, Tensor)",
    lambda x, w, g, eps, weights: (x.new_empty(x.shape), w.new_empty(2 if weights else 0, w.shape[0])),
)
_second = operation(
    "layer_norm_second(Tensor x, Tensor w, Tensor g, Tensor h, float eps) -> (Tensor, Tensor, Tensor)",
    lambda x, w, g, h, eps: (x.new_empty(x.shape), w.new_empty(w.shape), g.new_empty(g.shape)),
)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    x, w, _, ctx.eps = inputs
    ctx.save_for_backward(x, w)


def _forward_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, w = ctx.saved_tensors
    weights = is_wanted(ctx, 1) or is_wanted(ctx, 2)
    of_x, of_weights = _backward(x, w, g, ctx.eps, weights)
    of_w, of_b = of_weights.unbind() if weights else (None, None)
    return of_x, of_w, of_b, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    *tensors, ctx.eps, ctx.weights = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _backward_backward(ctx: Any, h: Tensor | None, k: Tensor | None) -> tuple[Tensor | None, ...]:
    x, w, g = ctx.saved_tensors
    if h is not None and k is None:
        return *_second(x, w, g, h, ctx.eps), None, None
    return *third_derivative(_way_back, (x, w, g), (ctx.eps, ctx.weights), (h, k)), None, None


def _save_second(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _second_backward(ctx: Any, *k: Tensor | None) -> tuple[Tensor | None, ...]:
    return *third_derivative(_along, ctx.saved_tensors, (ctx.eps,), k), None


for _each, _derivative, _save in (
    (_forward, _forward_backward, _save_forward),
    (_backward, _backward_backward, _save_backward),
    (_second, _second_backward, _save_second),
):
    torch.library.register_autograd(_each, _derivative, setup_context=_save)


# What only a loss of second derivatives needs, by PyTorch's operations.


def _way_back(x: Tensor, w: Tensor, g: Tensor, eps: float, weights: bool) -> tuple[Tensor, Tensor]:
    """What ``layer_norm_backward`` does."""
    shifted = x - x.mean(-1, keepdim=True)
    r = (shifted.square().mean(-1, keepdim=True) + eps).rsqrt()
    z, u = r * shifted, w * g
    of_x = r * (u - u.mean(-1, keepdim=True) - z * (u * z).mean(-1, keepdim=True))
    of_weights = torch.stack([(g * z).reshape(-1, len(w)).sum(0), g.reshape(-1, len(w)).sum(0)])
    return of_x, of_weights if weights else of_weights[:0]


def _along(x: Tensor, w: Tensor, g: Tensor, h: Tensor, eps: float) -> tuple[Tensor, ...]:
    """What ``layer_norm_second`` does."""
    x, w, g = (tensor.view_as(tensor) for tensor in (x, w, g))
    of_x, _ = _way_back(x, w, g, eps, False)
    return torch.autograd.grad(of_x, (x, w, g), h, create_graph=True)
