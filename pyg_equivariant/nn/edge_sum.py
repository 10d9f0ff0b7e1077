"""Sums over edges of products of features, geometry and filters: the inner loop of nearly all models."""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyg_equivariant.nn.native import define, kernels, operation, runs_on, third_derivative

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
        row = torch.arange(source.shape[0], device=source.device) if pair is None else pair
        if runs_on(x) and x.dtype == edge_sh.dtype == weight.dtype:  # under autocast they may differ
            if not torch.compiler.is_compiling():
                _tell(self.key)
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


# The kernel and its derivatives, as operations that autograd and the compiler know.


def _empty(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def _total(key: str, x: Tensor, *others: Tensor) -> Tensor:
    _tell(key)
    return x.new_empty(x.shape[0], _TABLES[key].num_out, x.shape[2])


_TERMS = "int[] a, int[] f, int[] first_term, int[] o, int[] first_entry, int[] b, float[] v"
define(f"edge_sum_terms(str key, {_TERMS}, int num_out) -> ()")
_GRAPH = "Tensor source, Tensor target, Tensor row"
_forward = operation(
    f"edge_sum_forward(str key, Tensor x, Tensor y, Tensor w, {_GRAPH}) -> Tensor",
    _total,
)
_backward = operation(
    f"edge_sum_backward(str key, Tensor x, Tensor y, Tensor w, Tensor g, {_GRAPH}) -> (Tensor, Tensor, Tensor)",
    lambda key, x, y, w, *others: (_empty(x), _empty(y), _empty(w)),
)
_second = operation(
    "edge_sum_second(str key, Tensor x, Tensor y, Tensor w, Tensor g, Tensor hx, Tensor hy, Tensor hw, "
    f"{_GRAPH}) -> (Tensor, Tensor, Tensor, Tensor)",
    lambda key, x, y, w, g, *others: (_empty(x), _empty(y), _empty(w), _empty(g)),
)


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
    *inputs, source, target, row = ctx.saved_tensors
    third = third_derivative(_second_derivative, inputs, (_TABLES[ctx.key], source, target, row), gradients)
    return None, *third, None, None, None


def _second_derivative(
    x: Tensor, y: Tensor, w: Tensor, g: Tensor, hx: Tensor, hy: Tensor, hw: Tensor, table: _Table, *graph: Tensor
) -> tuple[Tensor, ...]:
    """What ``edge_sum_second`` does."""
    inputs = [tensor.view_as(tensor) for tensor in (x, y, w, g)]
    *others, g = inputs
    q = (_reference(table, *others, *graph) * g).sum()
    first = torch.autograd.grad(q, others, create_graph=True)
    return torch.autograd.grad(first, inputs, (hx, hy, hw), create_graph=True, materialize_grads=True)


for _each, _derivative in ((_forward, _forward_backward), (_backward, _backward_backward), (_second, _second_backward)):
    torch.library.register_autograd(_each, _derivative, setup_context=_save)
