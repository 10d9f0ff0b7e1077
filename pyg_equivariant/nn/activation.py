"""Nonlinearities of scalars, as modules that can be passed in and saved."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pyg_equivariant.nn.configurable import Configurable

__all__ = ["Activation", "ShiftedSoftplus", "SiLU", "silu", "silu_derivative"]


def silu(x: Tensor) -> Tensor:
    """``x · sigmoid(x)`` (Hendrycks & Gimpel 2016, arXiv:1606.08415), element by element.

    For the compiler it and each of its derivatives are one operation, PyTorch's several: what a first step waits for
    grows with their number.
    """
    if not torch.compiler.is_compiling():
        return functional.silu(x)
    y: Tensor = _derivative(x, 0)
    return y


def silu_derivative(x: Any, sigmoid: Any, order: int, constant: Callable[[float], Any] = float) -> Any:
    """A derivative of :func:`silu`, ``x P_n(s) + n P_{n−1}(s)`` with the derivatives P of the sigmoid s.

    Args:
        x: Where; whatever can be added and multiplied.
        sigmoid: s(x).
        order: n; 0 is the function itself.
        constant: Makes of a number what x can be added to and multiplied by.
    """

    def polynomial(coefficients: list[int]) -> Any:  # by Horner's rule
        y = sigmoid * constant(coefficients[-1])
        for c in coefficients[-2::-1]:
            y = (y + constant(c)) * sigmoid
        return y

    y = x * polynomial(_sigmoid_derivative(order))
    return y if order == 0 else y + polynomial([order * c for c in _sigmoid_derivative(order - 1)])


@functools.cache
def _sigmoid_derivative(order: int) -> list[int]:
    """Coefficients of P_n, a polynomial of s from s¹ on: P_0 = s, P_{n+1} = P_n'(s) (s − s²)."""
    if order == 0:
        return [1]
    before = [power * c for power, c in enumerate(_sigmoid_derivative(order - 1), 1)]
    return [c - d for c, d in zip([*before, 0], [0, *before], strict=True)]


@torch.library.custom_op("pyg_equivariant::silu_derivative", mutates_args=())
def _derivative(x: Tensor, order: int) -> Tensor:
    return silu_derivative(x, x.sigmoid(), order)


def _save(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    x, ctx.order = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    return g * _derivative(x, ctx.order + 1), None


_derivative.register_fake(lambda x, order: torch.empty_like(x))
_derivative.register_autograd(_backward, setup_context=_save)


class Activation(Configurable):
    """Element-wise nonlinearity, smooth because forces are differentiated again in training."""


class SiLU(Activation):
    """:func:`silu`."""

    def forward(self, x: Tensor) -> Tensor:
        """Element-wise, any shape."""
        return silu(x)


class ShiftedSoftplus(Activation):
    """``ln(½ eˣ + ½)`` (Schütt et al. 2017, arXiv:1706.08566, section 4.1)."""

    def forward(self, x: Tensor) -> Tensor:
        """Element-wise, any shape."""
        return functional.softplus(x) - math.log(2.0)
