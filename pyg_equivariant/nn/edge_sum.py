"""Sums over edges of products of features, geometry and filters: the inner loop of nearly all models."""

import ctypes
import functools
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyg_equivariant.nn.native import addresses, kernels, one_by_one, runs_on

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
        weight: Float[Tensor, "P W C"],
        edge_index: Int[Tensor, "2 E"],
        pair: Int[Tensor, " E"] | None = None,
    ) -> Float[Tensor, "N M3 C"]:
        """The sums.

        Args:
            x: Features of the atoms.
            edge_sh: Geometry of the edges, such as harmonics.
            weight: Filters.
            edge_index: Row 0 the source j, row 1 the target i.
            pair: Which row of ``weight`` an edge has, see :mod:`~pyg_equivariant.nn.pairs`; its own if not given.

        Raises:
            IndexError: if an edge names an atom or a row of ``weight`` that is not there.
            ValueError: if the shapes do not fit the terms or each other.
        """
        source, target = edge_index
        row = torch.arange(len(source), device=source.device) if pair is None else pair
        if runs_on(x) and x.dtype == edge_sh.dtype == weight.dtype:  # under autocast they may differ
            total: Tensor = _forward(self.key, x, edge_sh, weight, source, target, row)
            return total
        return _reference(_TABLES[self.key], x, edge_sh, weight, source, target, row)


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
        integers = (*rows, first_term, out, first_entry, columns)
        self.integers = [(ctypes.c_int32 * len(numbers))(*numbers) for numbers in integers]
        self.values = (ctypes.c_double * len(values))(*values)
        self.num_terms = len(out)
        self.num_x = 1 + max(term.x for term in terms)
        self.num_sh = 1 + max(term.sh for term in terms)
        self.num_weight = 1 + max(term.weight for term in terms)


def _chunks(values: list[Any]) -> list[list[Any]]:
    return [values[n : n + _MOST_TERMS] for n in range(0, len(values), _MOST_TERMS)]


_TABLES: dict[str, _Table] = {}


@functools.lru_cache(maxsize=1024)
def _pack(key: str, x_rows: int, weight_rows: int, columns: int) -> Any:
    """What the kernel reads of a table for such features, filters and geometry; ``None`` if they are too small."""
    table = _TABLES[key]
    if x_rows < table.num_x or weight_rows < table.num_weight or columns < table.num_sh:
        return None
    numbers = len(table.groups), table.num_terms, x_rows, weight_rows, table.num_out, columns
    where = [ctypes.addressof(array) for array in table.integers]
    return (ctypes.c_int64 * 13)(*numbers, *where, ctypes.addressof(table.values))


def _run(name: str, key: str, graph: Sequence[Tensor], arguments: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    graph, arguments = [tensor.contiguous() for tensor in graph], [tensor.contiguous() for tensor in arguments]
    (atoms, x_rows, channels), (geometries, columns), (filters, weight_rows, width) = (t.shape for t in arguments[:3])
    pack = _pack(key, x_rows, weight_rows, columns)
    edges = len(graph[0])
    if pack is None or width != channels or not edges == geometries == len(graph[1]) == len(graph[2]):
        table = _TABLES[key]
        raise ValueError(
            f"a sum over {edges} edges with {table.num_x} rows of features, {table.num_sh} columns of geometry and "
            f"{table.num_weight} rows of filters got features {[atoms, x_rows, channels]}, geometry "
            f"{[geometries, columns]}, filters {[filters, weight_rows, width]} and indices {[len(i) for i in graph]}"
        )
    numbers = edges, atoms, filters, channels, torch.get_num_threads()
    size = _SIZE(*numbers, *(index.data_ptr() for index in graph))
    function = getattr(kernels(), _NAMES[name, arguments[0].dtype])
    stray = function(pack, size, addresses(*arguments), addresses(*out))
    if stray >= 0:
        source, target, row = (int(index[stray]) for index in graph)
        raise IndexError(
            f"edge {stray} leads from atom {source} to atom {target} with filter {row}, but there are {atoms} atoms "
            f"and {filters} filters"
        )


_SIZE = ctypes.c_int64 * 8
_NAMES = {
    (name, dtype): f"{name}_{kind}"
    for name in ("forward", "backward", "second")
    for dtype, kind in ((torch.float32, "float"), (torch.float64, "double"))
}


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
    return message.new_zeros(len(x), table.num_out, x.shape[2]).index_add(0, target, message)


# The kernel and its derivatives, as operations that autograd and the compiler know.


@torch.library.custom_op("pyg_equivariant::edge_sum_forward", mutates_args=())
def _forward(key: str, x: Tensor, y: Tensor, w: Tensor, source: Tensor, target: Tensor, row: Tensor) -> Tensor:
    out = x.new_zeros(len(x), _TABLES[key].num_out, x.shape[2])
    _run("forward", key, (source, target, row), (x, y, w), (out,))
    return out


@_forward.register_fake
def _(key: str, x: Tensor, y: Tensor, w: Tensor, source: Tensor, target: Tensor, row: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], _TABLES[key].num_out, x.shape[2])


@torch.library.custom_op("pyg_equivariant::edge_sum_backward", mutates_args=())
def _backward(
    key: str, x: Tensor, y: Tensor, w: Tensor, g: Tensor, source: Tensor, target: Tensor, row: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    out = _zeros(x), _zeros(y), _empty(w)
    _run("backward", key, (source, target, row), (x, y, w, g), out)
    return out


@_backward.register_fake
def _(
    key: str, x: Tensor, y: Tensor, w: Tensor, g: Tensor, source: Tensor, target: Tensor, row: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(x), _empty(y), _empty(w)


@torch.library.custom_op("pyg_equivariant::edge_sum_second", mutates_args=())
def _second(
    key: str,
    x: Tensor,
    y: Tensor,
    w: Tensor,
    g: Tensor,
    hx: Tensor,
    hy: Tensor,
    hw: Tensor,
    source: Tensor,
    target: Tensor,
    row: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = _zeros(x), _zeros(y), _empty(w), _zeros(g)
    _run("second", key, (source, target, row), (x, y, w, g, hx, hy, hw), out)
    return out


@_second.register_fake
def _(key: str, x: Tensor, y: Tensor, w: Tensor, g: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty(x), _empty(y), _empty(w), _empty(g)


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=like.dtype, device=like.device)


def _empty(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.key, *tensors = inputs
    ctx.save_for_backward(*tensors)


def _forward_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, y, w, *graph = ctx.saved_tensors
    return None, *_backward(ctx.key, x, y, w, g, *graph), None, None, None


def _backward_backward(ctx: Any, hx: Tensor, hy: Tensor, hw: Tensor) -> tuple[Tensor | None, ...]:
    x, y, w, g, *graph = ctx.saved_tensors
    return None, *_second(ctx.key, x, y, w, g, hx, hy, hw, *graph), None, None, None


def _second_backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    """The third derivative, which only a loss of the Hessian needs, by PyTorch's operations."""
    *arguments, source, target, row = ctx.saved_tensors
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in arguments]
        x, y, w, g, *h = inputs
        q = (_reference(_TABLES[ctx.key], x, y, w, source, target, row) * g).sum()
        first = torch.autograd.grad(q, (x, y, w), create_graph=True)
        outcome = torch.autograd.grad(first, (x, y, w, g), h, create_graph=True, materialize_grads=True)
        third = torch.autograd.grad(outcome, inputs, gradients, materialize_grads=True, allow_unused=True)
    return None, *third, None, None, None


_forward.register_autograd(_forward_backward, setup_context=_save)
_backward.register_autograd(_backward_backward, setup_context=_save)
_second.register_autograd(_second_backward, setup_context=_save)


for _each in (_forward, _backward, _second):
    _each.register_vmap(one_by_one(_each))
