"""Weighted polynomials of an atom's components."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyg_equivariant.nn.native import is_wanted, operation, runs_on, third_derivative
from pyg_equivariant.o3.constants import ExactConstants

__all__ = ["Monomial", "Polynomials"]


class Monomial(NamedTuple):
    """One product in :class:`Polynomials`.

    Attributes:
        out: Row of the outcome.
        weight: Row of the weights.
        factors: Components, one or several.
        value: Number that multiplies the product.
    """

    out: int
    weight: int
    factors: tuple[int, ...]
    value: float


class Polynomials(ExactConstants):
    r"""Polynomials of the components of a channel, with weights of the atom and the channel.

    .. math:: y_{i,o,c} = \sum_{(o,f,a,v)} v \; w_{i,f,c} \prod_k x_{i,a_k,c}

    A product of up to ν factors is split: its last ⌈ν/2⌉ factors (*high*) and the others (*low*), which are few.
    Products of high factors are made once and summed to rows, one an outcome, a weight and a low product; what remains
    is to multiply rows with low products and weights.

    On a CPU a kernel does this with all values of an atom's channel at hand, and another one each of the first two
    derivatives. On other devices, for other types than float32 and float64 and where there is no compiler, products of
    matrices do the same.

    Args:
        monomials: The products.
        num_in: Rows of the features.
        num_out: Rows of the outcome.

    Raises:
        ValueError: if there is no product, or one that has no factor.

    Example:
        >>> square = Polynomials([Monomial(0, 0, (0, 0), 1.0), Monomial(0, 0, (1, 1), 1.0)], 2, 1)  # x² + y²
        >>> square(torch.tensor([[[3.0], [4.0]]]), torch.ones(1, 1, 1))
        tensor([[[25.]]])
    """

    factors: Tensor
    row: Tensor
    sums: Tensor

    def __init__(self, monomials: Iterable[Monomial], num_in: int, num_out: int) -> None:
        super().__init__()
        terms = sorted(monomials)
        if not terms or not all(term.factors for term in terms):
            raise ValueError("Polynomials need one product or more, each of one factor or more")
        self.num_out = num_out
        most = max(len(term.factors) for term in terms)
        rows: dict[tuple[int, int, tuple[int, ...]], dict[tuple[int, ...], float]] = {}
        for out, weight, factors, value in terms:
            cut = max(0, len(factors) - (most - most // 2))
            entries = rows.setdefault((out, weight, factors[:cut]), {})
            entries[factors[cut:]] = entries.get(factors[cut:], 0.0) + value
        rows = dict(sorted(rows.items(), key=lambda item: len(item[1])))  # loops of the same length after each other
        read = Counter(high for entries in rows.values() for high in entries)
        products = {beginning for product in (*read, *(low for *_, low in rows)) for beginning in _beginnings(product)}
        ordered = sorted(products, key=lambda product: (len(product), read[product], product))
        values = [(), *((m,) for m in range(num_in)), *ordered]
        place = {product: number for number, product in enumerate(values)}
        new = values[1 + num_in :]
        self.orders = [count for order in range(2, most + 1) if (count := sum(len(p) == order for p in new))]
        sums = torch.zeros(len(rows), len(values), dtype=torch.float64)
        for number, entries in enumerate(rows.values()):
            for product, value in entries.items():
                sums[number, place[product]] = value
        pairs = [(place[product[:-1]], place[product[-1:]]) for product in new]
        self.register_buffer("factors", torch.tensor(pairs, dtype=torch.long).view(-1, 2), persistent=False)
        row = torch.tensor([(out, weight, place[low]) for out, weight, low in rows])
        self.register_buffer("row", row.T.contiguous(), persistent=False)
        self.register_constant("sums", sums)

    def forward(self, x: Float[Tensor, "N M C"], weight: Float[Tensor, "N F C"]) -> Float[Tensor, "N O C"]:
        """The polynomials of ``x``.

        Raises:
            ValueError: if the shapes do not fit the products or each other.
        """
        tables = self.factors, self.row, self.sums, self.orders, self.num_out
        if runs_on(x) and x.dtype == weight.dtype == self.sums.dtype:  # under autocast they may differ
            y: Tensor = _forward(x, weight, *tables)
            return y
        return _by_parts(x, weight, *tables)


def _beginnings(product: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Each is the one before it times a component."""
    return [product[:count] for count in range(2, len(product) + 1)]


def _by_parts(
    x: Tensor, w: Tensor, factors: Tensor, row: Tensor, sums: Tensor, orders: list[int], num_out: int
) -> Tensor:
    """Values are one, the components, and products of two values before them; see the class for the rest."""
    values = torch.cat([x.new_ones(x.shape[0], 1, x.shape[2]), x], 1)
    for first, second in (part.T for part in factors.split(orders)):
        values = torch.cat([values, _read(values, first) * _read(values, second)], 1)
    out, weight, low = row
    rows = (sums @ values) * _read(values, low) * _read(w, weight)
    return _choice(out, num_out, x).T @ rows


def _read(x: Tensor, index: Tensor) -> Tensor:
    """These rows, by a product of matrices, lest the derivative scatters."""
    return _choice(index, x.shape[1], x) @ x


def _choice(index: Tensor, size: int, like: Tensor) -> Tensor:
    return (index[:, None] == torch.arange(size, device=like.device)).to(like.dtype)


_INPUTS, _TABLES = "Tensor x, Tensor w", "Tensor factors, Tensor row, Tensor sums, int[] orders, int num_out"


def _derivatives(x: Tensor, w: Tensor, weights: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), w.new_empty(w.shape if weights else (0,))


_forward = operation(
    f"polynomials_forward({_INPUTS}, {_TABLES}) -> Tensor",
    lambda x, w, factors, row, sums, orders, num_out: x.new_empty(x.shape[0], num_out, x.shape[2]),
)
_backward = operation(
    f"polynomials_backward({_INPUTS}, Tensor g, {_TABLES}, bool weights) -> (Tensor, Tensor)",
    lambda x, w, g, *rest: _derivatives(x, w, rest[-1]),
)
_second = operation(
    f"polynomials_second({_INPUTS}, Tensor g, Tensor? hx, Tensor? hw, {_TABLES}, bool weights) "
    "-> (Tensor, Tensor, Tensor)",
    lambda x, w, g, *rest: (*_derivatives(x, w, rest[-1]), g.new_empty(g.shape)),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    tensors = [x for x in inputs if x is None or isinstance(x, Tensor)]
    ctx.save_for_backward(*tensors)
    ctx.numbers = inputs[len(tensors) :][:2]  # orders and num_out
    ctx.set_materialize_grads(False)


def _forward_backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
    x, w, *tables = ctx.saved_tensors
    if g is None:
        return (None,) * 7
    weights = is_wanted(ctx, 1)
    of_x, of_w = _backward(x, w, g, *tables, *ctx.numbers, weights)
    return of_x, of_w if weights else None, *[None] * 5


def _backward_backward(ctx: Any, hx: Tensor | None, hw: Tensor | None) -> tuple[Tensor | None, ...]:
    x, w, g, *tables = ctx.saved_tensors
    weights = is_wanted(ctx, 1)
    of_x, of_w, of_g = _second(x, w, g, hx, hw, *tables, *ctx.numbers, weights)
    return of_x, of_w if weights else None, of_g, *[None] * 6


def _second_backward(ctx: Any, *k: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, factors, row, sums = ctx.saved_tensors
    return *third_derivative(_along, inputs, (factors, row, sums, *ctx.numbers), k), *[None] * 6


def _along(x: Tensor, w: Tensor, g: Tensor, hx: Tensor | None, hw: Tensor | None, *tables: Any) -> tuple[Tensor, ...]:
    """What ``polynomials_second`` does, by PyTorch's operations: only a loss of second derivatives needs its own."""
    x, w, g = (tensor.view_as(tensor) for tensor in (x, w, g))
    pairs = [(by, h) for by, h in ((x, hx), (w, hw)) if h is not None]
    found = torch.autograd.grad(_by_parts(x, w, *tables), [by for by, _ in pairs], g, create_graph=True)
    return torch.autograd.grad(found, (x, w, g), [h for _, h in pairs], create_graph=True, materialize_grads=True)


for _each, _derivative in (
    (_forward, _forward_backward),
    (_backward, _backward_backward),
    (_second, _second_backward),
):
    torch.library.register_autograd(_each, _derivative, setup_context=_save)
