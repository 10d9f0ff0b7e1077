"""Functions of a length alone, computed at a few lengths and interpolated.

A filter network is a smooth function of one number. Where there are thousands of pairs of atoms, it is computed at some
hundred evenly spaced lengths instead, the nodes, and between them by the polynomial through the eight nearest. The
values are as exact as the network's own in float32, slopes have a digit less, and the work of its layers does not grow
with the number of pairs.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.nn.native import operation, runs_on

__all__ = ["Interpolation", "RadialNodes", "Table", "interpolate", "tabulate_filter"]

POINTS = 8


class Interpolation(NamedTuple):
    """How values at lengths follow from those at nodes: ``y_p = Σ_m coefficient[p, m] · table[start[p] + m]``.

    Attributes:
        coefficient: Lagrange polynomials of the lengths.
        start: The first of the nodes that a length needs.
    """

    coefficient: Float[Tensor, "P 8"]
    start: Int[Tensor, " P"]


class RadialNodes(nn.Module):
    """The lengths at which a model computes its filters, and how to interpolate between them.

    These are the lengths of the pairs themselves, with nothing to interpolate, in float64, on a GPU, for an infinite
    cutoff, where there are too few to gain anything, or where products of matrices have fewer digits than float32,
    which slopes between nodes would show. The nodes lie in [0, cutoff]: a function that vanishes at the cutoff does so
    between nodes too. A length beyond the cutoff counts as the cutoff.

    Args:
        cutoff: In Å.
        num_basis: K, functions of the radial basis: the more there are, the faster they change. With 8 K nodes the
            error of a Gaussian of the usual width is 10⁻⁸ of its height.

    Example:
        >>> length = torch.linspace(0.5, 5.0, 10_000)
        >>> nodes, table = RadialNodes(5.0, num_basis=20)(length, num_edges=20_000)
        >>> len(nodes), (interpolate(nodes.cos().unsqueeze(1), table)[:, 0] - length.cos()).abs().max() < 1e-6
        (161, tensor(True))
    """

    def __init__(self, cutoff: float, num_basis: int) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.intervals = max(128, 8 * num_basis)
        self.fixed = False

    def forward(self, length: Float[Tensor, " P"], num_edges: int) -> tuple[Float[Tensor, " R"], Interpolation | None]:
        """Where filters shall be computed, and how those of the pairs follow.

        Args:
            length: In Å.
            num_edges: E, two for each length: the compiler knows it beforehand.

        Raises:
            TypeError: if filters were tabulated, and the lengths are not those of float32 on a CPU.
        """
        if self.fixed:
            if not self._fits(length):
                raise TypeError("this model's filters were tabulated for float32 on a CPU: load it again for others")
            return length[:0], self._place(length)
        many = num_edges >= 4 * self.intervals and not torch.is_autocast_enabled("cpu")
        if not (many and self._fits(length) and _full_products()):
            return length, None
        return self._nodes(length), self._place(length)

    def fix(self, like: Tensor) -> Float[Tensor, " R"] | None:
        """From now on filters are :class:`Table`; the nodes at which to compute these.

        Args:
            like: A weight of the model. If it is not float32 on a CPU nothing changes, and there are no nodes.
        """
        if self.fixed or not self._fits(like) or not _full_products():
            return None
        self.fixed = True
        return self._nodes(like)

    def _fits(self, x: Tensor) -> bool:
        return x.dtype == torch.float32 and math.isfinite(self.cutoff) and runs_on(x)

    @property
    def _spacing(self) -> float:
        return math.floor(2**18 * self.cutoff / self.intervals) / 2**18  # few binary digits: all nodes are exact

    def _nodes(self, like: Tensor) -> Float[Tensor, " R"]:
        return torch.arange(self.intervals + 1, device=like.device, dtype=like.dtype) * self._spacing

    def _place(self, length: Float[Tensor, " P"]) -> Interpolation:
        place = length.clamp(max=self.cutoff) / self._spacing
        start = (place.detach().floor() - (POINTS // 2 - 1)).clamp(0, self.intervals + 1 - POINTS).nan_to_num()
        return Interpolation(_polynomials(place - start, 0), start.long())


class Table(nn.Module):
    """Filters at the nodes, in the place of a network whose weights do not change any more.

    Args:
        values: What the network gives there.
    """

    values: Tensor

    def __init__(self, values: Float[Tensor, "R *W"]) -> None:
        super().__init__()
        self.register_buffer("values", values.detach())

    def forward(self, *inputs: Tensor) -> Float[Tensor, "R *W"]:
        """The filters, whatever the inputs are: there are none at no nodes."""
        return self.values


def tabulate_filter(layer: nn.Module, *inputs: Float[Tensor, "R ..."]) -> None:
    """Puts a :class:`Table` in the place of ``layer.filter``.

    Args:
        layer: What has a filter network of this name.
        inputs: What the network reads, at the nodes.
    """
    assert isinstance(layer.filter, nn.Module)
    layer.filter = Table(layer.filter(*inputs))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _full_products() -> bool:
    return torch.get_float32_matmul_precision() == "highest"


def interpolate(values: Float[Tensor, "R *W"], table: Interpolation | None) -> Float[Tensor, "P *W"]:
    """The values at the lengths from those at the nodes, or the values themselves if there is no table."""
    if table is None:
        return values
    between: Tensor = _read(values.flatten(1), table.coefficient, table.start)
    return between.unflatten(1, values.shape[1:])


# Three operations whose derivatives are each other, so that all orders exist. The form of which all are derivatives is
# Q = Σ_pm c[p, m] (table[start[p] + m] · g[p]): read = ∂Q/∂g, put = ∂Q/∂table, dot = ∂Q/∂c.


_read = operation(
    "interpolation_read(Tensor table, Tensor c, Tensor start) -> Tensor",
    lambda table, c, start: table.new_empty(c.shape[0], table.shape[1]),
)
_put = operation(
    "interpolation_put(Tensor c, Tensor g, Tensor start, SymInt nodes) -> Tensor",
    lambda c, g, start, nodes: g.new_empty(nodes, g.shape[1]),
)
_dot = operation(
    "interpolation_dot(Tensor g, Tensor table, Tensor start) -> Tensor",
    lambda g, table, start: g.new_empty(g.shape[0], POINTS),
)
# derivatives of the Lagrange polynomials Π_{k≠m} (t − k)/(m − k) for m = 0 to 7
_polynomials = operation(
    "interpolation_polynomials(Tensor place, int order) -> Tensor",
    lambda place, order: place.new_empty(place.shape[0], POINTS),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(*inputs[:3])


def _read_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    table, c, start = ctx.saved_tensors
    of_table = _put(c, g, start, table.shape[0]) if ctx.needs_input_grad[0] else None
    return of_table, _dot(g, table, start), None


def _put_backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
    c, g, start = ctx.saved_tensors
    return _dot(g, h, start), _read(h, c, start), None, None


def _dot_backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
    g, table, start = ctx.saved_tensors
    return _read(table, h, start), _put(h, g, start, table.shape[0]), None


def _polynomials_save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    place, ctx.order = inputs
    ctx.save_for_backward(place)


def _polynomials_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    (place,) = ctx.saved_tensors
    return (g * _polynomials(place, ctx.order + 1)).sum(-1), None


for _each, _derivative in ((_read, _read_backward), (_put, _put_backward), (_dot, _dot_backward)):
    torch.library.register_autograd(_each, _derivative, setup_context=_save)
torch.library.register_autograd(_polynomials, _polynomials_backward, setup_context=_polynomials_save)
