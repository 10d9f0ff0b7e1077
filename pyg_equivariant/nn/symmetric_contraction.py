"""Products of an atom's features with themselves."""

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.nn.embedding import MAX_Z
from pyg_equivariant.o3.constants import ExactConstants
from pyg_equivariant.o3.layout import degree_slices, num_components
from pyg_equivariant.o3.symmetric import monomials, symmetric_coupling

__all__ = ["ElementMatrix", "SymmetricContraction"]


class ElementMatrix(nn.Module):
    """A learned matrix for each element, normal with variance one at the start.

    Args:
        num_rows: Of each matrix.
        channels: C, its columns.
        elements: Atomic numbers that occur (any other gives NaN); all if not given.

    Raises:
        ValueError: if there is no element, or one that does not exist.
    """

    one_hot: Tensor

    def __init__(self, num_rows: int, channels: int, *, elements: Sequence[int] | None = None) -> None:
        super().__init__()
        known = range(MAX_Z + 1) if elements is None else sorted(set(elements))
        if not known or known[0] < 0 or known[-1] > MAX_Z:
            raise ValueError(f"elements must be atomic numbers from 1 to {MAX_Z}, got {elements}")
        self.looks_up = elements is None
        self.weight = nn.Parameter(torch.randn(len(known), num_rows, channels))
        table = torch.full((MAX_Z + 1, len(known)), math.nan)
        table[list(known)] = torch.eye(len(known))
        self.register_buffer("one_hot", table, persistent=False)

    def forward(self, z: Int[Tensor, " N"], rows: Int[Tensor, " R"]) -> Float[Tensor, "N R C"]:
        """These rows of the atoms' matrices; a row may be asked for several times."""
        weight = self.weight.index_select(1, rows)
        if self.looks_up:
            return weight.index_select(0, z)
        return (self.one_hot[z] @ weight.flatten(1)).view(z.shape[0], *weight.shape[1:])


class SymmetricContraction(ExactConstants):
    r"""All equivariant polynomials of a channel's true tensors up to an order, with weights of the element.

    .. math:: m_{i,LM,c} = \sum_{\nu=1}^{\nu_{max}} \sum_{\eta}
        W_{z_i,L\nu\eta,c} \; p_{L\nu\eta M}(x_{i\,\cdot\,c})

    with :func:`~pyg_equivariant.o3.symmetric.symmetric_coupling`'s p, of every multiset of degrees that makes a true
    tensor of degree L. Weights are normal with variance one at the start, the polynomials of each L are divided by the
    root of their number.
    Reference: Batatia et al. 2022, arXiv:2206.07697, eqs. 10 and 11.

    A product of ν components is split: its last ⌈ν_max/2⌉ factors, of the highest degrees (*high*), and the others
    (*low*), which are few. For each multiset of high degrees one matrix takes all products of their components to rows,
    one a component of the outcome, a path and a low product; what remains is to multiply rows with low products and
    weights, and to sum. Couplings of three degrees up to 3 make 168 high products and 123 rows for L = 1, where one
    channel of an atom has 968 products of up to three components.

    Args:
        channels: C.
        lmax_in: Highest degree of the features.
        lmax_out: Highest degree of the outcome.
        correlation: Highest order ν_max.
        elements: Atomic numbers that occur (any other gives NaN); all if not given.

    Attributes:
        paths: ``(L, degrees of the factors)`` of each weight, L by L and order by order.

    Raises:
        ValueError: if there is no product, or none of some degree L.

    Example:
        >>> contraction = SymmetricContraction(8, 1, 0, correlation=2)
        >>> contraction.paths  # a scalar, its square, the square of a vector
        [(0, (0,)), (0, (0, 0)), (0, (1, 1))]
        >>> contraction(torch.zeros(5, 1, 4, 8), torch.ones(5, dtype=torch.long)).shape
        torch.Size([5, 1, 1, 8])
    """

    def __init__(
        self,
        channels: int,
        lmax_in: int,
        lmax_out: int,
        *,
        correlation: int = 3,
        elements: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.slices = degree_slices(lmax_in)
        self.num_degrees = lmax_out + 1
        self.num_low = correlation // 2
        self.paths: list[tuple[int, tuple[int, ...]]] = []
        tables: dict[tuple[int, ...], list[dict[tuple[int, tuple[int, ...]], Tensor]]] = {}
        counts = []
        for degree in range(self.num_degrees):
            first = len(self.paths)
            for degrees in _multisets(lmax_in, correlation):
                paths = symmetric_coupling(degrees, degree) if (sum(degrees) + degree) % 2 == 0 else ()
                num_low = max(0, len(degrees) - (correlation - self.num_low))
                high = degrees[num_low:]
                for path in paths:
                    # (path, low product) -> what each high product contributes
                    rows = tables.setdefault(high, [{} for _ in range(self.num_degrees)])[degree]
                    for product, column in zip(monomials(degrees), path.T, strict=True):
                        if column.any():
                            size = 2 * degree + 1, math.prod(2 * value + 1 for value in high)
                            row = rows.setdefault(
                                (len(self.paths), product[:num_low]), torch.zeros(size, dtype=torch.float64)
                            )
                            row[:, _position(product[num_low:], high)] = column
                    self.paths.append((degree, degrees))
            counts.append(len(self.paths) - first)
        if 0 in counts:
            raise ValueError(
                f"SymmetricContraction finds no product of degree {counts.index(0)} with lmax_in={lmax_in} and "
                f"correlation={correlation}"
            )
        self.blocks = [(high, [len(rows) for rows in by_degree]) for high, by_degree in tables.items()]
        for number, by_degree in enumerate(tables.values()):
            parts = [
                torch.stack([*rows.values()], dim=1).flatten(0, 1) / math.sqrt(count)
                for rows, count in zip(by_degree, counts, strict=True)
                if rows
            ]
            self.register_constant(f"table_{number}", torch.cat(parts))
        for degree in range(self.num_degrees):
            keys = [key for by_degree in tables.values() for key in by_degree[degree]]
            low = torch.zeros(self.num_low, len(keys), num_components(lmax_in) + 1)
            for number, (_, product) in enumerate(keys):
                for place in range(self.num_low):  # index 0 stands for the factor one
                    low[place, number, product[place] + 1 if place < len(product) else 0] = 1.0
            self.register_buffer(f"low_{degree}", low, persistent=False)
            self.register_buffer(f"path_{degree}", torch.tensor([path for path, _ in keys]), persistent=False)
        self.weight = ElementMatrix(len(self.paths), channels, elements=elements)

    def forward(self, x: Float[Tensor, "N 1 M C"], z: Int[Tensor, " N"]) -> Float[Tensor, "N 1 L C"]:
        """The polynomials of atoms with atomic numbers ``z``."""
        num_atoms, _, _, channels = x.shape
        components = x[:, 0].transpose(0, 1).contiguous()
        factors = torch.cat([x.new_ones(1, num_atoms, channels), components]).flatten(1)
        multipliers = []
        for degree in range(self.num_degrees):
            multiplier = self.weight(z, getattr(self, f"path_{degree}")).transpose(0, 1)
            for one_hot in getattr(self, f"low_{degree}"):  # a matrix product, lest its derivative scatters
                multiplier = multiplier * (one_hot @ factors).view_as(multiplier)
            multipliers.append(torch.split(multiplier, [counts[degree] for _, counts in self.blocks]))
        outcome: list[list[Tensor]] = [[] for _ in range(self.num_degrees)]
        for number, (high, counts) in enumerate(self.blocks):
            products = components[self.slices[high[0]]]
            for degree in high[1:]:
                products = _outer(products, components[self.slices[degree]])
            rows = getattr(self, f"table_{number}") @ products.flatten(1)
            parts = torch.split(rows, [(2 * degree + 1) * count for degree, count in enumerate(counts)])
            for degree, (part, count) in enumerate(zip(parts, counts, strict=True)):
                if count:
                    terms = part.view(2 * degree + 1, count, num_atoms, channels) * multipliers[degree][number]
                    outcome[degree].append(terms.sum(1))
        return torch.cat([sum(terms[1:], terms[0]) for terms in outcome]).transpose(0, 1).unsqueeze(1)


def _multisets(lmax: int, correlation: int) -> list[tuple[int, ...]]:
    orders = range(1, correlation + 1)
    return [d for order in orders for d in itertools.combinations_with_replacement(range(lmax + 1), order)]


def _outer(first: Float[Tensor, "I N C"], second: Float[Tensor, "J N C"]) -> Float[Tensor, "K N C"]:
    """All products of a component of one and a component of the other."""
    if 1 in (len(first), len(second)):  # the compiler mistakes the strides of [1, J, N, C] in second derivatives
        return first * second
    return (first.unsqueeze(1) * second).flatten(0, 1)


def _position(product: tuple[int, ...], degrees: tuple[int, ...]) -> int:
    """Where a product lies in the flat outer product of the components of degrees."""
    position = 0
    for index, degree in zip(product, degrees, strict=True):
        position = position * (2 * degree + 1) + index - degree**2
    return position
