"""What the compiler is told, hints that change no value, and what it begins while a step is traced."""

import contextlib
import functools
import math
from collections.abc import Callable
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from pyg_equivariant.nn.native import DECOMPOSITIONS

__all__ = ["cut", "inductor_options", "register_rules", "stored", "warm_up"]

NARROW = 16
"""From so many columns on a product of matrices is as fast whichever of its factors they belong to."""


def _copying(name: str, backward: Callable[[Any, Tensor], Tensor | None]) -> Any:
    """An operation that returns what it gets, which the compiler has its own rule for."""

    def copy(x: Tensor) -> Tensor:
        return x.clone()

    operation = torch.library.custom_op(f"pyg_equivariant::{name}", copy, mutates_args=())
    operation.register_fake(torch.empty_like)
    operation.register_autograd(backward)
    return operation


_stored = _copying("stored", lambda ctx, gradient: stored(gradient))
_cut = _copying("cut", lambda ctx, gradient: None)


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


def cut(x: Tensor) -> Tensor:
    """``x``, by which derivatives can be taken that are not passed on to what it was made from.

    The compiler derives a loss by all that comes in and requires a gradient. The vectors of the edges do, for the
    forces, but the loss's derivative by them is nobody's concern. Without a compiler this is ``x`` itself.
    """
    if not torch.compiler.is_compiling():
        return x
    result: Tensor = _cut(x)
    return result


@functools.cache
def register_rules() -> None:
    """Tells the compiler what our operations are: without these rules it calls all of them by way of Python."""
    from torch._inductor.decomposition import register_decomposition
    from torch._inductor.lowering import make_pointwise, register_lowering
    from torch._inductor.virtualized import ops

    from pyg_equivariant.nn.activation import silu_derivative
    from pyg_equivariant.nn.host_code import register_loaders
    from pyg_equivariant.nn.shortcuts import take_shortcuts

    for operation, kernel in DECOMPOSITIONS.items():
        register_decomposition([operation])(kernel)

    def realize(x: "torch._inductor.ir.TensorBox") -> "torch._inductor.ir.TensorBox":
        x.realize()
        return x

    for operation in (torch.ops.pyg_equivariant.stored.default, torch.ops.pyg_equivariant.cut.default):
        register_lowering(operation, type_promotion_kind=None)(realize)

    @register_lowering(torch.ops.pyg_equivariant.silu_derivative.default, type_promotion_kind=None)
    def of_silu(x: "torch._inductor.ir.TensorBox", order: int) -> "torch._inductor.ir.TensorBox":
        constant = functools.partial(ops.constant, dtype=x.get_dtype())
        return make_pointwise(lambda x: silu_derivative(x, ops.sigmoid(x), order, constant))(x)

    _register_dense_layers()
    register_loaders()
    take_shortcuts()


def _register_dense_layers() -> None:
    """The compiler has products of matrices for them, and writes these to memory that it knows to be free."""
    from torch._inductor.ir import TensorBox
    from torch._inductor.lowering import lowerings, permute, register_lowering, view
    from torch._inductor.virtualized import V

    from pyg_equivariant.nn import dense

    mm, addmm = (lowerings[each.default] for each in (torch.ops.aten.mm, torch.ops.aten.addmm))
    of_forward, of_back, of_outer = (DECOMPOSITIONS[each] for each in dense.OPERATIONS)

    def rows(x: TensorBox) -> TensorBox:
        *leading, channels = x.get_size()
        return x if len(leading) == 1 else view(x, [math.prod(leading), channels])

    def like(y: TensorBox, x: TensorBox) -> TensorBox:
        *leading, _ = x.get_size()
        return y if len(leading) == 1 else view(y, [*leading, y.get_size()[-1]])

    @register_lowering(of_forward, type_promotion_kind=None)
    def forward(x: TensorBox, w: TensorBox, b: TensorBox | None) -> TensorBox:
        turned = permute(w, [1, 0])
        if b is None:
            return like(mm(rows(x), turned), x)
        return like(addmm(b, rows(x), turned), x)

    @register_lowering(of_back, type_promotion_kind=None)
    def back(g: TensorBox, w: TensorBox) -> TensorBox:
        return like(mm(rows(g), w), g)

    @register_lowering(of_outer, type_promotion_kind=None)
    def outer(g: TensorBox, x: TensorBox) -> TensorBox:
        # few columns on the right cost MKL up to eight times what as many rows on the left do
        if V.graph.sizevars.statically_known_lt(x.get_size()[-1], NARROW):
            return permute(mm(permute(rows(x), [1, 0]), rows(g)), [1, 0])
        return mm(permute(rows(g), [1, 0]), rows(x))


def inductor_options() -> dict[str, Any]:
    """For ``torch.compile``."""
    from pyg_equivariant.nn.partition import Partition

    return {"custom_partitioner_fn": Partition()}


@functools.cache
def warm_up(cpp_wrapper: bool) -> Thread:
    """Begins in the background, once a process, what the compiler would stop for before it compiles anything.

    It compiles and loads small programs to learn which vectors the processor has, and compiles a header. Meanwhile the
    step is traced, which takes a single core.

    Args:
        cpp_wrapper: Whether nothing of the compiled step is to be in Python.
    """
    from pyg_equivariant.nn.host_code import prepare

    def run() -> None:
        with contextlib.suppress(Exception):  # the compiler says it itself, with its reason, when it gets there
            prepare(cpp_wrapper)

    thread = Thread(target=run, name="compiler's warm-up", daemon=True)
    thread.start()
    return thread
