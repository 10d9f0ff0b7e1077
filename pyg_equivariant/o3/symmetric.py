"""Couplings of several equal features: equivariant polynomials, each product once whatever its order."""

import functools
import itertools
import math
from collections import Counter

import torch
from jaxtyping import Float
from torch import Tensor

from pyg_equivariant.o3.clebsch_gordan import coupling

__all__ = ["monomials", "symmetric_coupling"]


def monomials(degrees: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The products of components of x that take one factor from each of these degrees, as sorted indices of components.

    Example:
        >>> monomials((0, 1))
        [(0, 1), (0, 2), (0, 3)]
        >>> len(monomials((1, 1)))  # not 9: the factors commute
        6
    """
    blocks = [
        itertools.combinations_with_replacement(range(degree**2, (degree + 1) ** 2), count)
        for degree, count in sorted(Counter(degrees).items())
    ]
    return [tuple(itertools.chain(*parts)) for parts in itertools.product(*blocks)]


def symmetric_coupling(degrees: tuple[int, ...], degree: int) -> Float[Tensor, "paths m K"]:
    r"""All polynomials of degree ``degree`` in x that take one factor from each of ``degrees``.

    Path η has the components

    .. math:: p_{\eta M}(x) = \sum_k C_{\eta M k} \prod_{i \in k} x_i

    with k over :func:`monomials`. These are the generalised Clebsch-Gordan coefficients (Drautz 2019,
    doi:10.1103/PhysRevB.99.014104; Batatia et al. 2022, arXiv:2206.07697, eqs. 10 and 14), symmetric in equal degrees
    and without the linear dependencies that chains of pairwise couplings have. The paths are orthonormal:

    .. math:: \sum_k C_{\eta M k}\, C_{\eta' M' k} \prod_i a_i(k)! = \delta_{\eta\eta'}\, \delta_{MM'}

    with :math:`a_i(k)` how often i occurs in k. For different degrees this is the normalisation of
    :func:`~pyg_equivariant.o3.coupling`.

    Args:
        degrees: Of the factors, ascending.
        degree: Of the outcome, with either parity: even and odd sums of all degrees are both allowed.

    Returns:
        In float64; no paths where the degrees do not couple.

    Raises:
        ValueError: if the degrees do not ascend.

    Example:
        >>> (symmetric_coupling((1, 1), 0) * 6**0.5).round(decimals=9)  # x² + y² + z²
        tensor([[[1., 0., 0., 1., 0., 1.]]], dtype=torch.float64)
        >>> symmetric_coupling((1, 1), 1).shape  # a vector has no cross product with itself
        torch.Size([0, 3, 6])
    """
    if list(degrees) != sorted(degrees):
        raise ValueError(f"the degrees of the factors ascend, got {degrees}")
    return _symmetric_coupling(degrees, degree).clone()


@functools.cache
def _symmetric_coupling(degrees: tuple[int, ...], degree: int) -> Tensor:
    if len(degrees) == 1:
        same = degrees[0] == degree
        identity = torch.eye(2 * degree + 1, dtype=torch.float64, device="cpu")
        return identity[None] if same else identity.new_zeros(0, 2 * degree + 1, 2 * degrees[0] + 1)
    *rest, last = degrees
    products = monomials(degrees)
    # Which product is component m of the last factor times product k of the others?
    number = {product: index for index, product in enumerate(products)}
    parts = itertools.product(range(last**2, (last + 1) ** 2), monomials(tuple(rest)))
    target = torch.tensor([number[tuple(sorted((*others, m)))] for m, others in parts], device="cpu")
    # The repeated factors' factorials: the metric in which paths are orthonormal.
    metric = torch.tensor(
        [float(math.prod(math.factorial(n) for n in Counter(product).values())) for product in products],
        dtype=torch.float64,
        device="cpu",
    )
    paths: list[Tensor] = []
    for between in range(abs(last - degree), last + degree + 1):
        pair = coupling(last, between, degree)
        for inner in _symmetric_coupling(tuple(rest), between):
            terms = torch.einsum("abm,bk->mak", pair, inner).flatten(1)
            path = terms.new_zeros(2 * degree + 1, len(products)).index_add_(1, target, terms)
            for _ in range(2):  # Gram-Schmidt, twice for its rounding
                for other in paths:
                    path = path - (metric * path[0] * other[0]).sum() * other
            norm = (metric * path[0].square()).sum().sqrt()
            if norm > 1e-6:
                path = path / norm
                paths.append(path.where(path.abs() > 1e-12, 0.0))
    return torch.stack(paths) if paths else torch.zeros(0, 2 * degree + 1, len(products), dtype=torch.float64)
