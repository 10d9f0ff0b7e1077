"""Products of an atom's features with themselves."""

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyg_equivariant.nn.embedding import MAX_Z
from pyg_equivariant.nn.polynomials import Monomial, Polynomials
from pyg_equivariant.o3.layout import num_components
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

    def forward(self, z: Int[Tensor, " N"]) -> Float[Tensor, "N R C"]:
        """The atoms' matrices."""
        if self.looks_up:
            return self.weight.index_select(0, z)
        return (self.one_hot[z] @ self.weight.flatten(1)).view(z.shape[0], *self.weight.shape[1:])


class SymmetricContraction(nn.Module):
    r"""All equivariant polynomials of a channel's true tensors up to an order, with weights of the element.

    .. math:: m_{i,LM,c} = \sum_{\nu=1}^{\nu_{max}} \sum_{\eta}
        W_{z_i,L\nu\eta,c} \; p_{L\nu\eta M}(x_{i\,\cdot\,c})

    with :func:`~pyg_equivariant.o3.symmetric.symmetric_coupling`'s p, of every multiset of degrees that makes a true
    tensor of degree L. Weights are normal with variance one at the start, the polynomials of each L are divided by the
    root of their number.
    Reference: Batatia et al. 2022, arXiv:2206.07697, eqs. 10 and 11.

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
        self.paths: list[tuple[int, tuple[int, ...]]] = []
        terms = []
        for degree in range(lmax_out + 1):
            found = [
                (degrees, path)
                for degrees in _multisets(lmax_in, correlation)
                if (sum(degrees) + degree) % 2 == 0
                for path in symmetric_coupling(degrees, degree)
            ]
            if not found:
                raise ValueError(
                    f"SymmetricContraction finds no product of degree {degree} with lmax_in={lmax_in} and "
                    f"correlation={correlation}"
                )
            for degrees, path in found:
                for component, row in enumerate(path / math.sqrt(len(found)), degree**2):
                    for factors, value in zip(monomials(degrees), row.tolist(), strict=True):
                        if value:
                            terms.append(Monomial(component, len(self.paths), factors, value))
                self.paths.append((degree, degrees))
        self.polynomials = Polynomials(terms, num_components(lmax_in), num_components(lmax_out))
        self.weight = ElementMatrix(len(self.paths), channels, elements=elements)

    def forward(self, x: Float[Tensor, "N 1 M C"], z: Int[Tensor, " N"]) -> Float[Tensor, "N 1 L C"]:
        """The polynomials of atoms with atomic numbers ``z``."""
        y: Tensor = self.polynomials(x.squeeze(1), self.weight(z))
        return y.unsqueeze(1)


def _multisets(lmax: int, correlation: int) -> list[tuple[int, ...]]:
    orders = range(1, correlation + 1)
    return [d for order in orders for d in itertools.combinations_with_replacement(range(lmax + 1), order)]
