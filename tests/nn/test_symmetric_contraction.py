"""Symmetric contraction against its formula, written out."""

import math

import pytest
import torch

from pyg_equivariant.nn.symmetric_contraction import SymmetricContraction
from pyg_equivariant.o3 import random_rotation, rotate
from pyg_equivariant.o3.symmetric import monomials, symmetric_coupling
from pyg_equivariant.testing import assert_close

Z = torch.tensor([8, 1, 6, 1, 1])


@pytest.mark.parametrize("correlation", [1, 2, 3, 4, 5])
def test_formula(correlation):
    torch.manual_seed(0)
    lmax = 2 if correlation < 4 else 1
    contraction = SymmetricContraction(3, lmax, lmax, correlation=correlation, elements=[1, 6, 8]).double()
    x = torch.randn(5, 1, (lmax + 1) ** 2, 3, dtype=torch.float64)
    weight = contraction.weight.weight[[2, 0, 1, 0, 0]]
    expected = []
    for degree in range(lmax + 1):
        mine = [(k, degrees) for k, (out, degrees) in enumerate(contraction.paths) if out == degree]
        counts = [sum(d == degrees for _, d in mine[:number]) for number, (_, degrees) in enumerate(mine)]
        total = 0.0
        for (k, degrees), number in zip(mine, counts, strict=True):
            assert len(degrees) <= correlation
            products = torch.stack([x[:, 0, list(product)].prod(1) for product in monomials(degrees)], 1)
            value = torch.einsum("mk,nkc->nmc", symmetric_coupling(degrees, degree)[number], products)
            total = total + value * weight[:, k, None] / math.sqrt(len(mine))
        expected.append(total)
    assert_close(contraction(x, Z)[:, 0], torch.cat(expected, 1), "the polynomials", tolerance=1e-12)


def test_number_of_products():
    """Of lmax 3 and order 3: 1 + 4 + 8 scalars, where chains of couplings would be 1 + 4 + 23."""
    paths = SymmetricContraction(1, 3, 0).paths
    assert [sum(len(degrees) == order for _, degrees in paths) for order in (1, 2, 3)] == [1, 4, 8]


def test_equivariant():
    torch.manual_seed(0)
    contraction = SymmetricContraction(2, 3, 3, correlation=3).double()
    x = torch.randn(5, 1, 16, 2, dtype=torch.float64)
    mirror = -random_rotation(torch.Generator().manual_seed(0))
    assert_close(
        contraction(rotate(x, mirror), Z), rotate(contraction(x, Z), mirror), "the contraction", tolerance=1e-12
    )


def test_elements_given_or_not_is_the_same_function():
    torch.manual_seed(0)
    few = SymmetricContraction(4, 2, 1, elements=[8, 1, 6])
    every = SymmetricContraction(4, 2, 1)
    with torch.no_grad():
        every.weight.weight[[1, 6, 8]] = few.weight.weight
    x = torch.randn(5, 1, 9, 4)
    assert_close(every(x, Z), few(x, Z), "all elements", tolerance=1e-6)


def test_unknown_element_is_nan():
    contraction = SymmetricContraction(4, 1, 0, elements=[1, 6])
    y = contraction(torch.randn(5, 1, 4, 4), Z)
    assert y[0].isnan().all()
    assert y[1:].isfinite().all()


def test_size_at_the_start():
    torch.manual_seed(0)
    y = SymmetricContraction(64, 3, 2)(torch.randn(500, 1, 16, 64), torch.ones(500, dtype=torch.long))
    assert (y.square().mean((0, 1, 3)) > 0.5).all()
    assert (y.square().mean((0, 1, 3)) < 4).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"correlation": 0}, "no product of degree 0 with lmax_in=1 and correlation=0"),
        ({"elements": [119]}, "from 1 to 118"),
        ({"elements": []}, "from 1"),
    ],
    ids=str,
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        SymmetricContraction(4, 1, 0, **wrong)
