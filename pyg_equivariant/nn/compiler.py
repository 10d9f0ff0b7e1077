"""Hints for the compiler that change no value."""

import torch
from torch import Tensor

__all__ = ["stored"]


@torch.library.custom_op("pyg_equivariant::stored", mutates_args=())
def _stored(x: Tensor) -> Tensor:
    return x.clone()


@_stored.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _backward(ctx: object, gradient: Tensor) -> Tensor:
    return stored(gradient)


_stored.register_autograd(_backward)


def stored(x: Tensor) -> Tensor:
    """``x``, written to memory once when compiled, and its gradients likewise.

    The compiler computes cheap expressions anew in every loop that reads them. For a quantity of an edge, such as its
    direction, these loops run over the channels too, so that square roots and divisions of one edge are repeated
    a hundred times. Without a compiler this is ``x`` itself.
    """
    if not torch.compiler.is_compiling():
        return x
    result: Tensor = _stored(x)
    return result
