"""Functions of a length alone, computed at a few lengths and interpolated.

A filter network is a smooth function of one number. Where there are thousands of pairs of atoms, it is computed at some
hundred evenly spaced lengths instead, the nodes, and between them by the polynomial through the eight nearest. That is
as exact as the network itself in float32, and the work of its layers no longer grows with the number of pairs.
"""

import ctypes
import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyg_equivariant.nn.native import addresses, kernels, one_by_one, runs_on

__all__ = ["Interpolation", "interpolate", "radial_nodes"]

POINTS = 8


class Interpolation(NamedTuple):
    """How values at lengths follow from those at nodes: ``y_p = Σ_m coefficient[p, m] · table[start[p] + m]``.

    Attributes:
        coefficient: Lagrange polynomials of the lengths.
        start: The first of the nodes that a length needs.
    """

    coefficient: Float[Tensor, "P 8"]
    start: Int[Tensor, " P"]


def radial_nodes(
    length: Float[Tensor, " P"], cutoff: float, num_basis: int, num_edges: int
) -> tuple[Float[Tensor, " R"], Interpolation | None]:
    """Lengths at which filters shall be computed, and how to interpolate.

    These are the given lengths, with nothing to interpolate, in float64, on a GPU, for an infinite cutoff, where there
    are too few to gain anything, or where products of matrices have fewer digits than float32, which slopes between
    nodes would show. The nodes lie in [0, cutoff]: a function that vanishes at the cutoff
    does so between nodes too. A length beyond the cutoff counts as the cutoff.

    Args:
        length: In Å.
        cutoff: In Å.
        num_basis: K, functions of the radial basis: the more there are, the faster they change. With 8 K nodes the
            error of a Gaussian of the usual width is 10⁻⁸ of its height.
        num_edges: E, two for each length: the compiler knows it beforehand.

    Example:
        >>> length = torch.linspace(0.5, 5.0, 10_000)
        >>> nodes, table = radial_nodes(length, 5.0, num_basis=20, num_edges=20_000)
        >>> len(nodes), (interpolate(nodes.cos().unsqueeze(1), table)[:, 0] - length.cos()).abs().max() < 1e-6
        (161, tensor(True))
    """
    exact = length.dtype == torch.float32 and _full_products() and not torch.is_autocast_enabled("cpu")
    if not (exact and math.isfinite(cutoff) and runs_on(length)):
        return length, None
    intervals = max(128, 8 * num_basis)
    if num_edges < 4 * intervals:
        return length, None
    spacing = math.floor(2**18 * cutoff / intervals) / 2**18  # of so few binary digits that all nodes are exact
    count = torch.arange(intervals + 1, device=length.device, dtype=length.dtype)
    length = length.clamp(max=cutoff)
    start = ((length.detach() / spacing).floor() - (POINTS // 2 - 1)).clamp(0, intervals + 1 - POINTS).nan_to_num()
    nodes, place = count * spacing, (length - start * spacing) / spacing
    return nodes, Interpolation(_lagrange(place), start.long())


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _full_products() -> bool:
    return torch.get_float32_matmul_precision() == "highest"


def interpolate(values: Float[Tensor, "R *W"], table: Interpolation | None) -> Float[Tensor, "P *W"]:
    """The values at the lengths from those at the nodes, or the values themselves if there is no table."""
    if table is None:
        return values
    between: Tensor = _read(values.flatten(1), table.coefficient, table.start)
    return between.unflatten(1, values.shape[1:])


def _lagrange(t: Float[Tensor, " P"]) -> Float[Tensor, "P 8"]:
    """``Π_{k≠m} (t − k)/(m − k)`` for m = 0 to 7: products of the factors before m and of those after."""
    factors = t.unsqueeze(-1) - torch.arange(POINTS, device=t.device, dtype=t.dtype)
    before, after = [torch.ones_like(t)], [torch.ones_like(t)]
    for m in range(POINTS - 1):
        before.append(before[-1] * factors[:, m])
        after.append(after[-1] * factors[:, POINTS - 1 - m])
    norms = [torch.tensor([float(m - k) for k in range(POINTS) if k != m]).prod().item() for m in range(POINTS)]
    return torch.stack([b * a / n for b, a, n in zip(before, reversed(after), norms, strict=True)], 1)


# Three operations whose derivatives are each other, so that all orders exist. The form of which all are derivatives is
# Q = Σ_pm c[p, m] (table[start[p] + m] · g[p]): read = ∂Q/∂g, put = ∂Q/∂table, dot = ∂Q/∂c.


def _run(name: str, start: Tensor, nodes: int, width: int, inputs: tuple[Tensor, Tensor], out: Tensor) -> Tensor:
    library = kernels()
    if library is None or not out.is_cpu:
        raise RuntimeError("interpolation has kernels for the CPU only, made by a C++ compiler")
    start, first, second = start.contiguous(), *(tensor.contiguous() for tensor in inputs)
    size = (ctypes.c_int64 * 5)(len(start), nodes, width, torch.get_num_threads(), start.data_ptr())
    kind = "float" if out.dtype == torch.float32 else "double"
    function = getattr(library, f"interpolation_{name}_{kind}")
    if not function(size, *(ctypes.c_void_p(address) for address in addresses(first, second, out))):
        raise IndexError(f"an interpolation reads beyond its {nodes} nodes")
    return out


@torch.library.custom_op("pyg_equivariant::interpolation_read", mutates_args=())
def _read(table: Tensor, c: Tensor, start: Tensor) -> Tensor:
    nodes, width = table.shape
    return _run("read", start, nodes, width, (table, c), table.new_empty(len(start), width))


@torch.library.custom_op("pyg_equivariant::interpolation_put", mutates_args=())
def _put(c: Tensor, g: Tensor, start: Tensor, nodes: int) -> Tensor:
    return _run("put", start, nodes, g.shape[1], (c, g), g.new_zeros(nodes, g.shape[1]))


@torch.library.custom_op("pyg_equivariant::interpolation_dot", mutates_args=())
def _dot(g: Tensor, table: Tensor, start: Tensor) -> Tensor:
    nodes, width = table.shape
    return _run("dot", start, nodes, width, (g, table), g.new_empty(len(start), POINTS))


@_read.register_fake
def _(table: Tensor, c: Tensor, start: Tensor) -> Tensor:
    return table.new_empty(c.shape[0], table.shape[1])


@_put.register_fake
def _(c: Tensor, g: Tensor, start: Tensor, nodes: int) -> Tensor:
    return g.new_empty(nodes, g.shape[1])


@_dot.register_fake
def _(g: Tensor, table: Tensor, start: Tensor) -> Tensor:
    return g.new_empty(g.shape[0], POINTS)


def _save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(*inputs[:3])


def _read_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    table, c, start = ctx.saved_tensors
    return _put(c, g, start, table.shape[0]), _dot(g, table, start), None


def _put_backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
    c, g, start = ctx.saved_tensors
    return _dot(g, h, start), _read(h, c, start), None, None


def _dot_backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
    g, table, start = ctx.saved_tensors
    return _read(table, h, start), _put(h, g, start, table.shape[0]), None


_read.register_autograd(_read_backward, setup_context=_save)
_put.register_autograd(_put_backward, setup_context=_save)
_dot.register_autograd(_dot_backward, setup_context=_save)
for _each in (_read, _put, _dot):
    _each.register_vmap(one_by_one(_each))
