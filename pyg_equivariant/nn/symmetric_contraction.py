"""Products of an atom's features with themselves."""

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.nn.embedding import MAX_Z
from pyg_equivariant.o3.constants import ExactConstants
from pyg_equivariant.o3.layout import num_components
from pyg_equivariant.o3.symmetric import monomials, symmetric_coupling

__all__ = ["ElementTensor", "SymmetricContraction"]


class ElementTensor(nn.Module):
    """A learned tensor for each element, ``z [N] → [N, *shape]``, normal with variance one at the start.

    Args:
        shape: Of each element's tensor.
        elements: Atomic numbers that occur (any other gives NaN); all if not given.

    Raises:
        ValueError: if there is no element, or one that does not exist.
    """

    one_hot: Tensor

    def __init__(self, *shape: int, elements: Sequence[int] | None = None) -> None:
        super().__init__()
        known = range(MAX_Z + 1) if elements is None else sorted(set(elements))
        if not known or known[0] < 0 or known[-1] > MAX_Z:
            raise ValueError(f"elements must be atomic numbers from 1 to {MAX_Z}, got {elements}")
        self.looks_up = elements is None
        self.weight = nn.Parameter(torch.randn(len(known), *shape))
        table = torch.full((MAX_Z + 1, len(known)), math.nan)
        table[list(known)] = torch.eye(len(known))
        self.register_buffer("one_hot", table, persistent=False)

    def forward(self, z: Int[Tensor, " N"]) -> Float[Tensor, "N *shape"]:
        """The tensors of the atoms."""
        if self.looks_up:
            return self.weight.index_select(0, z)
        return (self.one_hot[z] @ self.weight.flatten(1)).view(len(z), *self.weight.shape[1:])


class SymmetricContraction(ExactConstants):
    r"""All equivariant polynomials of a channel's true tensors up to an order, with weights of the element.

    .. math:: m_{i,LM,c} = \sum_{\nu=1}^{\nu_{max}} \sum_{\eta}
        W_{z_i,L\nu\eta,c} \; p_{L\nu\eta M}(x_{i\,\cdot\,c})

    with :func:`~pyg_equivariant.o3.symmetric.symmetric_coupling`'s p, of every multiset of degrees that makes a true
    tensor of degree L. Weights are normal with variance one at the start, the polynomials of each L are divided by the
    root of their number.
    Reference: Batatia et al. 2022, arXiv:2206.07697, eqs. 10 and 11.

    A product of ν components is split into one of at most ⌈ν_max/2⌉ (*high*) times the rest (*low*): one matrix takes
    all high products to what each low one is to be multiplied with, which are few. For ν_max = 3 and lmax 3 that is
    153 products and, for L = 0, 25 rows, where there are 968 products of up to three components.

    Args:
        channels: C.
        lmax_in: Highest degree of the features.
        lmax_out: Highest degree of the outcome.
        correlation: Highest order ν_max.
        elements: Atomic numbers that occur (any other gives NaN); all if not given.

    Attributes:
        paths: ``(L, degrees of the factors)`` of each weight, L by L and order by order.

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
        if correlation < 1:
            raise ValueError(f"SymmetricContraction needs a correlation of 1 or more, got {correlation}")
        self.lmax_out = lmax_out
        self.max_high = (correlation + 1) // 2
        self.paths: list[tuple[int, tuple[int, ...]]] = []
        # Index 0 stands for the constant one, so that shorter products are products of full length too.
        num_high = math.comb(num_components(lmax_in) + self.max_high, self.max_high)
        for degree in range(lmax_out + 1):
            first = len(self.paths)
            rows: dict[tuple[int, int], Tensor] = {}  # (path, low product) -> what the high products contribute
            for degrees in _multisets(lmax_in, correlation):
                if (sum(degrees) + degree) % 2:
                    continue
                products = [tuple(index + 1 for index in product) for product in monomials(degrees)]
                for path in symmetric_coupling(degrees, degree):
                    for product, column in zip(products, path.T, strict=True):
                        if column.any():
                            low, high = product[: -self.max_high], product[-self.max_high :]
                            key = (len(self.paths), _position(low, self.max_high))
                            row = rows.setdefault(key, torch.zeros(2 * degree + 1, num_high, dtype=torch.float64))
                            row[:, _position(high, self.max_high)] = column
                    self.paths.append((degree, degrees))
            table = torch.stack([*rows.values()], dim=1) / math.sqrt(len(self.paths) - first)
            self.register_constant(f"table_{degree}", table.flatten(0, 1))
            self.register_buffer(f"path_{degree}", torch.tensor([path for path, _ in rows]), persistent=False)
            self.register_buffer(f"low_{degree}", torch.tensor([low for _, low in rows]), persistent=False)
        self.weight = ElementTensor(len(self.paths), channels, elements=elements)

    def forward(self, x: Float[Tensor, "N 1 M C"], z: Int[Tensor, " N"]) -> Float[Tensor, "N 1 L C"]:
        """The polynomials of atoms with atomic numbers ``z``."""
        num_atoms, _, _, channels = x.shape
        weight = self.weight(z).transpose(0, 1)
        factors = torch.cat([x.new_ones(1, num_atoms, channels), x[:, 0].transpose(0, 1)])
        products = factors
        for order in range(1, self.max_high):  # those with no component beyond a are a prefix of the shorter ones
            parts = [factors[a] * products[: math.comb(a + order, order)] for a in range(len(factors))]
            products = torch.cat(parts)
        outcome = []
        for degree in range(self.lmax_out + 1):
            path, low = getattr(self, f"path_{degree}"), getattr(self, f"low_{degree}")
            terms = (getattr(self, f"table_{degree}") @ products.flatten(1)).view(
                2 * degree + 1, len(path), num_atoms, channels
            )
            outcome.append((terms * (products[low] * weight[path])).sum(1))
        return torch.cat(outcome).transpose(0, 1).unsqueeze(1)


def _multisets(lmax: int, correlation: int) -> list[tuple[int, ...]]:
    orders = range(1, correlation + 1)
    return [d for order in orders for d in itertools.combinations_with_replacement(range(lmax + 1), order)]


def _position(product: tuple[int, ...], order: int) -> int:
    """Where a product of ascending factors, padded with ones, lies among all of the same order."""
    padded = (0,) * (order - len(product)) + product
    return sum(math.comb(index + k, k + 1) for k, index in enumerate(padded))
