"""Coupling coefficients against e3nn."""

import itertools

import pytest
import torch
from e3nn.o3 import wigner_3j

from pyg_equivariant.o3 import coupling, coupling_entries

TRIPLES = [
    (l1, l2, l3) for l1, l2, l3 in itertools.product(range(5), repeat=3) if abs(l1 - l2) <= l3 <= min(l1 + l2, 4)
]


def test_equal_to_e3nn():
    for l1, l2, l3 in TRIPLES:
        expected = (2 * l3 + 1) ** 0.5 * wigner_3j(l1, l2, l3, dtype=torch.float64)
        torch.testing.assert_close(coupling(l1, l2, l3), expected, atol=1e-12, rtol=0)


def test_variance_is_kept():
    for l1, l2, l3 in TRIPLES:
        variance = coupling(l1, l2, l3).square().sum((0, 1))
        torch.testing.assert_close(variance, torch.ones(2 * l3 + 1, dtype=torch.float64))


def test_entries_are_the_tensor():
    for l1, l2, l3 in TRIPLES:
        tensor = torch.zeros(2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1, dtype=torch.float64)
        for m1, m2, m3, value in coupling_entries(l1, l2, l3):
            tensor[m1, m2, m3] = value
        assert torch.equal(tensor, coupling(l1, l2, l3))


def test_couplings_are_exact_whatever_the_default_dtype():
    assert torch.get_default_dtype() == torch.float32
    assert coupling(2, 2, 2).dtype == torch.float64
    assert coupling(1, 1, 0)[0, 0, 0].item() == pytest.approx(3**-0.5, abs=1e-15)
    coupling(1, 1, 0).zero_()  # a copy: the cache is untouched
    assert coupling(1, 1, 0).any()


def test_triangle():
    with pytest.raises(ValueError, match="1 and 1 do not couple to 3"):
        coupling(1, 1, 3)
