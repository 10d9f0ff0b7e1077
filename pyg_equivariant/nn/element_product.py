"""Products of features with a matrix of the atom's element."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from pyg_equivariant.nn.native import operation, runs_on

__all__ = ["element_product"]


def element_product(
    x: Float[Tensor, "N R C"], weight: Float[Tensor, "Z C D"], index: Int[Tensor, " N"]
) -> Float[Tensor, "N R D"]:
    """``y_n = x_n W_index[n]``, with NaN where the index is negative.

    On the CPU atoms are sorted, so that it is one product of matrices an element. Elsewhere it is one product with
    ``x ⊗ one-hot``, Z times the work, or where there are many elements one for each atom, with the matrices looked up.

    Args:
        x: Rows of features of the atoms.
        weight: A matrix of each element.
        index: Which of them an atom has.

    Example:
        >>> weight = torch.stack([torch.eye(2), 3 * torch.eye(2)])
        >>> element_product(torch.ones(3, 1, 2), weight, torch.tensor([1, 0, -1]))[:, 0, 0]
        tensor([3., 1., nan])
    """
    if runs_on(x):
        product: Tensor = _product(x, weight, index)
        return product
    num_elements, channels, _ = weight.shape
    known = index.clamp(min=0)
    if num_elements > max(16, channels):
        y = torch.bmm(x, weight.index_select(0, known))
    else:
        one_hot = functional.one_hot(known, num_elements).to(x.dtype)
        y = (one_hot[:, None, :, None] * x.unsqueeze(2)).flatten(2) @ weight.flatten(0, 1)
    return torch.where((index < 0)[:, None, None], torch.nan, y)


# Two operations whose derivatives are each other, so that all orders exist. The form of which all are derivatives is
# Q = Σ_n x_n W_index[n] · g_n: product = ∂Q/∂g, outer = ∂Q/∂W.


def _product_shape(x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:2], weight.shape[2])


def _outer_shape(x: Tensor, g: Tensor, index: Tensor, elements: int) -> Tensor:
    return x.new_empty(elements, x.shape[2], g.shape[2])


_product = operation("element_product(Tensor x, Tensor weight, Tensor index) -> Tensor", _product_shape)
_outer = operation("element_outer(Tensor x, Tensor g, Tensor index, SymInt elements) -> Tensor", _outer_shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(*inputs[:3])


def _product_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, index = ctx.saved_tensors
    to_x, to_weight, _ = ctx.needs_input_grad
    of_x = _product(g, weight.transpose(1, 2), index) if to_x else None
    return of_x, _outer(x, g, index, weight.shape[0]) if to_weight else None, None


def _outer_backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
    x, g, index = ctx.saved_tensors
    return _product(g, h.transpose(1, 2), index), _product(x, h, index), None, None


torch.library.register_autograd(_product, _product_backward, setup_context=_save)
torch.library.register_autograd(_outer, _outer_backward, setup_context=_save)
