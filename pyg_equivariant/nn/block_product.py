"""Products of blocks of rows with a matrix each, or with one that the atom's element has."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from pyg_equivariant.nn.native import is_wanted, operation, runs_on

__all__ = ["Blocks", "block_product"]


class Blocks(NamedTuple):
    """What the features of an atom consist of: of blocks, whose rows are all multiplied by the same matrix.

    Attributes:
        rows: Of each block.
        ins: Channels of its rows.
        outs: Channels of what becomes of them.
    """

    rows: Sequence[int]
    ins: Sequence[int]
    outs: Sequence[int]

    def split(self, x: Float[Tensor, "N A"]) -> list[Float[Tensor, "N _ _"]]:
        """The blocks ``[N, rows, ins]`` of features."""
        shapes = list(zip(self.rows, self.ins, strict=True))
        parts = x.split([rows * size for rows, size in shapes], 1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]

    def matrices(self, weight: Float[Tensor, " W"], count: int = 1) -> list[Float[Tensor, "Z _ _"]]:
        """The matrices ``[Z, ins, outs]`` of each block, ``count`` of them."""
        shapes = [(count, fan_in, fan_out) for fan_in, fan_out in zip(self.ins, self.outs, strict=True)]
        parts = weight.split([count * fan_in * fan_out for _, fan_in, fan_out in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def block_product(
    x: Float[Tensor, "N A"],
    weight: Float[Tensor, " W"],
    blocks: Blocks,
    index: Int[Tensor, " N"] | None = None,
    num_elements: int = 1,
) -> Float[Tensor, "N B"]:
    """Multiplies every row of a block b of the features of atom n by ``W_b``, or by ``W_{b, index_n}``.

    It is one operation with its derivatives, whatever the number of blocks. On the CPU neither blocks nor outcomes are
    copied, or, where there is an index, sorted by the element, so that it is one product of matrices a block and
    element. Elsewhere, with an index, it is one product with ``x ⊗ one-hot``, Z times the work, or where there are many
    elements one for each atom, with the matrices looked up.

    Args:
        x: Features, block by block, each row by row.
        weight: The matrices ``[ins, outs]``, block by block, each element by element.
        blocks: The sizes.
        index: The element of each atom, of those that there are; what has a negative one becomes NaN.
        num_elements: Z.

    Raises:
        IndexError: if there are fewer matrices than the index says.
        ValueError: if the sizes do not fit.

    Example:
        >>> weight = torch.cat([torch.ones(1), torch.eye(2).flatten()])
        >>> block_product(torch.arange(5.0).view(1, 5), weight, Blocks([1, 2], [1, 2], [1, 2]))
        tensor([[0., 1., 2., 3., 4.]])
        >>> block_product(torch.ones(3, 2), torch.arange(4.0), Blocks([2], [1], [1]), torch.tensor([0, 3, -1]), 4)
        tensor([[0., 0.],
                [3., 3.],
                [nan, nan]])
    """
    if runs_on(x) and x.dtype == weight.dtype:  # under autocast they may differ
        own = weight.view(-1)  # not a leaf, whose derivative could not be left out
        product: Tensor = _product(x, own, index, *map(list, blocks), num_elements, False)
        return product
    rows, matrices = blocks.split(x), blocks.matrices(weight, num_elements)
    if index is None:
        mixed = [part.contiguous() @ matrix[0] for part, matrix in zip(rows, matrices, strict=True)]
    else:
        mixed = [_looked_up(part, matrix, index) for part, matrix in zip(rows, matrices, strict=True)]
    return torch.cat([part.flatten(1) for part in mixed], 1)


def _looked_up(
    x: Float[Tensor, "N R C"], weight: Float[Tensor, "Z C D"], index: Int[Tensor, " N"]
) -> Float[Tensor, "N R D"]:
    num_elements, channels, _ = weight.shape
    known = index.clamp(min=0)
    if num_elements > max(16, channels):
        y = torch.bmm(x, weight.index_select(0, known))
    else:
        one_hot = functional.one_hot(known, num_elements).to(x.dtype)
        y = (one_hot[:, None, :, None] * x.unsqueeze(2)).flatten(2) @ weight.flatten(0, 1)
    return torch.where((index < 0)[:, None, None], torch.nan, y)


# Two operations whose derivatives are each other, so that all orders exist. The form of which all are derivatives is
# Q = Σ_bnr x_bnr W_b,index[n] · g_bnr: product = ∂Q/∂g, or ∂Q/∂x where transposed, outer = ∂Q/∂W.


_SIZES = "Tensor? index, int[] rows, int[] ins, int[] outs, int elements"


def _product_shape(x: Tensor, weight: Tensor, index: Tensor | None, *sizes: Any) -> Tensor:
    rows, ins, outs, _, transposed = sizes
    return x.new_empty(x.shape[0], sum(r * n for r, n in zip(rows, ins if transposed else outs, strict=True)))


def _outer_shape(x: Tensor, g: Tensor, index: Tensor | None, *sizes: Any) -> Tensor:
    _, ins, outs, elements = sizes
    return x.new_empty(elements * sum(n * m for n, m in zip(ins, outs, strict=True)))


_product = operation(f"block_product(Tensor x, Tensor weight, {_SIZES}, bool transposed) -> Tensor", _product_shape)
_outer = operation(f"block_outer(Tensor x, Tensor g, {_SIZES}) -> Tensor", _outer_shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.sizes = inputs[3:]
    ctx.save_for_backward(*inputs[:3])


def _product_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, index = ctx.saved_tensors
    *sizes, transposed = ctx.sizes
    of_x = _product(g, weight, index, *sizes, not transposed) if is_wanted(ctx, 0) else None
    pair = (g, x) if transposed else (x, g)
    return of_x, _outer(*pair, index, *sizes) if is_wanted(ctx, 1) else None, *(None,) * 6


def _outer_backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
    x, g, index = ctx.saved_tensors
    of_x = _product(g, h, index, *ctx.sizes, True) if is_wanted(ctx, 0) else None
    return of_x, _product(x, h, index, *ctx.sizes, False) if is_wanted(ctx, 1) else None, *(None,) * 5


torch.library.register_autograd(_product, _product_backward, setup_context=_save)
torch.library.register_autograd(_outer, _outer_backward, setup_context=_save)
