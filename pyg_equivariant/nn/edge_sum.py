"""Sums over edges of products of features, geometry and filters: the inner loop of nearly all models."""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyg_equivariant.nn.interpolation import Interpolation, interpolate
from pyg_equivariant.nn.native import define, is_wanted, kernels, operation, runs_on, third_derivative

__all__ = ["CONSTANT", "EdgeSum", "Term"]

CONSTANT = -1
_MOST_TERMS = 4  # of a group in the kernel


class Term(NamedTuple):
    """One product in an :class:`EdgeSum`.

    Attributes:
        out: Row of the outcome.
        x: Row of the features of the edge's source.
        sh: Column of the edge's geometry, or ``CONSTANT`` for none.
        weight: Row of the filters.
        value: Number that multiplies the product.
    """

    out: int
    x: int
    sh: int
    weight: int
    value: float


class EdgeSum:
    r"""What all neighbours send to an atom, without a tensor of all messages.

    .. math:: y_{i,o,c} = \sum_{j \to i} \sum_{(o,a,b,f,v)} v \; x_{j,a,c} \, Y_{ij,b} \, w_{ij,f,c}

    On a CPU a kernel reads each edge once, here and in the first two derivatives; it is compiled on first use, which
    takes some seconds and needs a C++ compiler, and kept. On other devices, for other types than float32 and float64
    and where there is no compiler, PyTorch's operations do the same.

    Args:
        terms: The products.
        num_out: Rows of the outcome.

    Example:
        >>> total = EdgeSum([Term(0, 0, CONSTANT, 0, 1.0)], 1)  # what the source has times the filter
        >>> x, weight, edge_index = torch.ones(3, 1, 4), torch.ones(2, 1, 4), torch.tensor([[1, 2], [0, 0]])
        >>> total(x, torch.zeros(2, 0), weight, edge_index)[:, 0, 0]
        tensor([2., 0., 0.])
    """

    def __init__(self, terms: Sequence[Term], num_out: int) -> None:
        self.key = repr((num_out, [tuple(term) for term in terms]))
        self.key = hashlib.sha256(self.key.encode()).hexdigest()[:16]
        if self.key not in _TABLES:
            _TABLES[self.key] = _Table(terms, num_out)

    def __call__(
        self,
        x: Float[Tensor, "N M1 C"],
        edge_sh: Float[Tensor, "E M2"],
        weight: Float[Tensor, "R W C"],
        edge_index: Int[Tensor, "2 E"],
        pair: Int[Tensor, " E"] | None = None,
        table: Interpolation | None = None,
    ) -> Float[Tensor, "N M3 C"]:
        """The sums.

        Args:
            x: Features of the atoms.
            edge_sh: Geometry of the edges, such as harmonics.
            weight: Filters, or those at the nodes of ``table``.
            edge_index: Row 0 the source j, row 1 the target i.
            pair: Which row of the filters an edge has, see :mod:`~pyg_equivariant.nn.pairs`; its own if not given.
            table: How the rows of the filters follow from those at nodes; the kernel computes them edge by edge.

        Raises:
            IndexError: if an edge names an atom or a row of the filters that is not there, or these a node.
            ValueError: if the shapes do not fit the terms or each other.
        """
        source, target = edge_index
        row = torch.arange(source.shape[0], device=source.device) if pair is None else pair
        if runs_on(x) and x.dtype == edge_sh.dtype == weight.dtype:  # under autocast they may differ
            if not torch.compiler.is_compiling():
                _tell(self.key)
            coefficient, start = (None, None) if table is None else table
            total: Tensor = _forward(self.key, x, edge_sh, weight, coefficient, source, target, row, start)
            return total
        return _reference(_TABLES[self.key], x, edge_sh, interpolate(weight, table), source, target, row)


class _Table:
    """Terms in the order of the kernel: those with the same x and weight together, and of these with the same out."""

    def __init__(self, terms: Sequence[Term], num_out: int) -> None:
        self.num_out = num_out
        ordered = sorted(terms, key=lambda term: (term.weight, term.x, term.out))
        groups: dict[tuple[int, int], dict[int, list[Term]]] = {}
        for term in ordered:
            groups.setdefault((term.weight, term.x), {}).setdefault(term.out, []).append(term)
        self.groups = [
            (x, weight, chunk) for (weight, x), outs in groups.items() for chunk in _chunks(list(outs.items()))
        ]
        first_term, out, first_entry, columns, values = [0], [], [0], [], []
        for _, _, outs in self.groups:
            for row, entries in outs:
                out.append(row)
                columns += [term.sh for term in entries]
                values += [term.value for term in entries]
                first_entry.append(len(columns))
            first_term.append(len(out))
        rows = [x for x, _, _ in self.groups], [weight for _, weight, _ in self.groups]
        self.lists = (*rows, first_term, out, first_entry, columns, values)


def _chunks(values: list[Any]) -> list[list[Any]]:
    return [values[n : n + _MOST_TERMS] for n in range(0, len(values), _MOST_TERMS)]


_TABLES: dict[str, _Table] = {}


@functools.cache
def _tell(key: str) -> None:
    """Lets the kernels know these terms."""
    if kernels():
        torch.ops.pyg_equivariant.edge_sum_terms(key, *_TABLES[key].lists, _TABLES[key].num_out)


def _reference(
    table: _Table, x: Tensor, edge_sh: Tensor, weight: Tensor, source: Tensor, target: Tensor, row: Tensor
) -> Tensor:
    x_j, weight = x.index_select(0, source), weight.index_select(0, row)
    rows: list[Tensor | None] = [None] * table.num_out
    for a, f, outs in table.groups:
        product = x_j[:, a] * weight[:, f]
        for out, entries in outs:
            factor: Any = sum(term.value for term in entries if term.sh == CONSTANT)
            for term in entries:
                if term.sh != CONSTANT:
                    factor = factor + term.value * edge_sh[:, term.sh, None]
            known = rows[out]
            rows[out] = product * factor if known is None else known + product * factor
    message = torch.stack([torch.zeros_like(x_j[:, 0]) if part is None else part for part in rows], 1)
    return message.new_zeros(x.shape[0], table.num_out, x.shape[2]).index_add(0, target, message)


# The kernel and its derivatives, as operations that autograd and the compiler know. Where there is a table w holds the
# filters at its nodes, and c and start say what lies between them.


def _empty(like: Tensor, wanted: bool = True) -> Tensor:
    return torch.empty(like.shape if wanted else (0,), dtype=like.dtype, device=like.device)


def _total(key: str, x: Tensor, *others: Tensor) -> Tensor:
    _tell(key)
    return x.new_empty(x.shape[0], _TABLES[key].num_out, x.shape[2])


def _derivatives(
    x: Tensor, y: Tensor, w: Tensor, c: Tensor | None, geometry: bool, filters: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_c = _empty(y, False) if c is None else _empty(c, geometry)
    return _empty(x), _empty(y, geometry), _empty(w, filters), of_c


_TERMS = "int[] a, int[] f, int[] first_term, int[] o, int[] first_entry, int[] b, float[] v"
define(f"edge_sum_terms(str key, {_TERMS}, int num_out) -> ()")
_INPUTS = "str key, Tensor x, Tensor y, Tensor w, Tensor? c"
_GRAPH = "Tensor source, Tensor target, Tensor row, Tensor? start"
_WANTED = "bool geometry, bool filters"
_forward = operation(
    f"edge_sum_forward({_INPUTS}, {_GRAPH}) -> Tensor",
    _total,
)
_backward = operation(
    f"edge_sum_backward({_INPUTS}, Tensor g, {_GRAPH}, {_WANTED}) -> (Tensor, Tensor, Tensor, Tensor)",
    lambda key, x, y, w, c, g, source, target, row, start, *wanted: _derivatives(x, y, w, c, *wanted),
)
_second = operation(
    f"edge_sum_second({_INPUTS}, Tensor g, Tensor? hx, Tensor? hy, Tensor? hw, Tensor? hc, {_GRAPH}, {_WANTED}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    lambda key, x, y, w, c, g, hx, hy, hw, hc, source, target, row, start, *wanted: (
        *_derivatives(x, y, w, c, *wanted),
        _empty(g),
    ),
)


def _wanted(ctx: Any, c: Tensor | None) -> tuple[bool, bool]:
    """Whether derivatives by the geometry (y and c) are, and those by w: by filters of edges always."""
    return is_wanted(ctx, 1) or (c is not None and is_wanted(ctx, 3)), c is None or is_wanted(ctx, 2)


def _given(of: Sequence[Tensor], c: Tensor | None, geometry: bool, filters: bool) -> tuple[Tensor | None, ...]:
    """Without those that nobody asked for."""
    of_x, of_y, of_w, of_c, *of_g = of
    return (
        of_x,
        of_y if geometry else None,
        of_w if filters else None,
        of_c if geometry and c is not None else None,
        *of_g,
    )


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.key, *tensors = inputs
    ctx.save_for_backward(*tensors)


def _save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.key, *tensors, _, _ = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _forward_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, y, w, c, *graph = ctx.saved_tensors
    wanted = _wanted(ctx, c)
    of = _backward(ctx.key, x, y, w, c, g, *graph, *wanted)
    return None, *_given(of, c, *wanted), *[None] * 4


def _backward_backward(ctx: Any, *h: Tensor | None) -> tuple[Tensor | None, ...]:
    x, y, w, c, g, *graph = ctx.saved_tensors
    wanted = _wanted(ctx, c)
    of = _second(ctx.key, x, y, w, c, g, *h, *graph, *wanted)
    return None, *_given(of, c, *wanted), *[None] * 6


def _second_backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, source, target, row, start = ctx.saved_tensors
    rest = _TABLES[ctx.key], source, target, row, start
    return None, *third_derivative(_second_derivative, inputs, rest, gradients), *[None] * 6


def _second_derivative(
    x: Tensor,
    y: Tensor,
    w: Tensor,
    c: Tensor | None,
    g: Tensor,
    hx: Tensor | None,
    hy: Tensor | None,
    hw: Tensor | None,
    hc: Tensor | None,
    table: _Table,
    source: Tensor,
    target: Tensor,
    row: Tensor,
    start: Tensor | None,
) -> tuple[Tensor, ...]:
    """What ``edge_sum_second`` does, whoever asks."""
    x, y, w, g = (tensor.view_as(tensor) for tensor in (x, y, w, g))
    c = None if c is None else c.view_as(c)
    between = interpolate(w, None if c is None or start is None else Interpolation(c, start))
    q = (_reference(table, x, y, between, source, target, row) * g).sum()
    pairs = [(by, h) for by, h in zip((x, y, w, c), (hx, hy, hw, hc), strict=True) if by is not None and h is not None]
    along = torch.autograd.grad(q, [by for by, _ in pairs], create_graph=True, materialize_grads=True)
    by = [tensor for tensor in (x, y, w, c, g) if tensor is not None]
    of = iter(torch.autograd.grad(along, by, [h for _, h in pairs], create_graph=True, materialize_grads=True))
    return tuple(_empty(y, False) if tensor is None else next(of) for tensor in (x, y, w, c, g))


for _each, _derivative, _keep in (
    (_forward, _forward_backward, _save_forward),
    (_backward, _backward_backward, _save),
    (_second, _second_backward, _save),
):
    torch.library.register_autograd(_each, _derivative, setup_context=_keep)
