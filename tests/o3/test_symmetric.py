"""Symmetric couplings: equivariant, orthonormal, and all that there are."""

import itertools
import math
from collections import Counter

import pytest
import torch

from pyg_equivariant.o3 import coupling, degree_slices, random_rotation, wigner
from pyg_equivariant.o3.symmetric import monomials, symmetric_coupling

CASES = [
    (degrees, degree)
    for order in (1, 2, 3, 4)
    for degrees in itertools.combinations_with_replacement(range(4 if order < 4 else 3), order)
    for degree in range(4)
]


def values(degrees: tuple[int, ...], degree: int, x: torch.Tensor) -> torch.Tensor:
    products = torch.stack([x[list(product)].prod() for product in monomials(degrees)])
    return symmetric_coupling(degrees, degree) @ products


def multiplicity(degrees: tuple[int, ...], degree: int) -> int:
    """How often a degree occurs, by counting the products with each eigenvalue of the rotations about an axis."""
    blocks = [
        itertools.combinations_with_replacement(range(-value, value + 1), count)
        for value, count in Counter(degrees).items()
    ]
    weights = Counter(sum(map(sum, parts)) for parts in itertools.product(*blocks))
    return weights[degree] - weights[degree + 1]


@pytest.mark.parametrize("sign", [1, -1])
def test_equivariant(sign):
    generator = torch.Generator().manual_seed(0)
    matrix = wigner(sign * random_rotation(generator), 3)
    x = torch.randn(16, generator=generator, dtype=torch.float64)
    slices = degree_slices(3)
    for degrees, degree in CASES:
        parity = 1 if sign == 1 else (-1) ** (sum(degrees) + degree)  # an odd sum makes a pseudotensor
        expected = values(degrees, degree, x) @ matrix[slices[degree], slices[degree]].T * parity
        torch.testing.assert_close(values(degrees, degree, matrix @ x), expected, atol=1e-11, rtol=1e-11)


def test_none_is_missing():
    for degrees, degree in CASES:
        assert len(symmetric_coupling(degrees, degree)) == multiplicity(degrees, degree), (degrees, degree)


def test_orthonormal():
    for degrees, degree in CASES:
        paths = symmetric_coupling(degrees, degree).flatten(0, 1)
        metric = [math.prod(map(math.factorial, Counter(product).values())) for product in monomials(degrees)]
        gram = (paths * torch.tensor(metric, dtype=torch.float64)) @ paths.T
        torch.testing.assert_close(gram, torch.eye(len(paths), dtype=torch.float64), atol=1e-12, rtol=0)


def test_two_degrees_are_the_coupling():
    for low, high, degree in [(0, 2, 2), (1, 2, 1), (1, 2, 2), (1, 3, 2), (2, 3, 1)]:
        (path,) = symmetric_coupling((low, high), degree)
        torch.testing.assert_close(
            path.T.view(2 * low + 1, 2 * high + 1, -1).transpose(0, 1), coupling(high, low, degree)
        )


def test_degrees_ascend():
    with pytest.raises(ValueError, match=r"ascend, got \(2, 1\)"):
        symmetric_coupling((2, 1), 1)
