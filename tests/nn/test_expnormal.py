"""Exponential-normal radial functions."""

import math

import torch

from pyg_equivariant.nn.expnormal import ExpNormalBasis, TrainableExpNormalBasis
from pyg_equivariant.testing import assert_close


def test_formula():
    values = ExpNormalBasis(3, 4.0).double()(torch.tensor([1.0, 4.0]).double())
    start = math.exp(-4.0)
    beta = (2 / 3 * (1 - start)) ** -2
    means = [start, (start + 1) / 2, 1.0]
    expected = [[math.exp(-beta * (math.exp(-5 * d / 4) - mean) ** 2) for mean in means] for d in (1.0, 4.0)]
    assert_close(values, torch.tensor(expected).double(), "the functions", tolerance=1e-7)


def test_trainable():
    edge_len = torch.linspace(0, 5, 7)
    trained = TrainableExpNormalBasis(4, 5.0)
    assert torch.equal(trained(edge_len), ExpNormalBasis(4, 5.0)(edge_len))
    assert {name for name, _ in trained.named_parameters()} == {"mean", "beta"}
    assert not list(ExpNormalBasis(4, 5.0).parameters())
