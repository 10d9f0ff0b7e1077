"""Softmax over the edges of a target."""

import torch

from pyg_equivariant.nn.attention import edge_softmax
from pyg_equivariant.nn.cutoff import CosineCutoff
from pyg_equivariant.testing import assert_close

INDEX = torch.tensor([0, 0, 0, 2, 2, 3])


def test_is_softmax_where_the_envelope_is_one():
    score = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = edge_softmax(score, torch.ones(6, dtype=torch.float64), INDEX, 4)
    expected = torch.cat([score[:3].softmax(0), score[3:5].softmax(0), torch.ones(1, 2, 3)])
    assert_close(weight, expected, "softmax of each target")


def test_formula():
    score, u = (
        torch.tensor([0.3, -1.0, 2.0, 0.0, 1.0, 5.0]).double(),
        torch.tensor([0.9, 0.1, 0.5, 1.0, 0.2, 0.3]).double(),
    )
    weight = edge_softmax(score, u, INDEX, 4)
    for target in (0, 2, 3):
        own = target == INDEX
        part = u[own] * score[own].exp()
        assert_close(weight[own], u[own] * part / part.sum(), f"weights of target {target}")
        assert_close((weight[own] / u[own]).sum(), torch.ones(()).double(), "sum of the fractions")


def test_large_scores_do_not_overflow():
    weight = edge_softmax(torch.tensor([1e4, 1e4 - 1.0, -1e4]), torch.ones(3), torch.tensor([0, 0, 1]), 2)
    assert_close(weight, torch.cat([torch.tensor([1.0, 0.0]).softmax(0), torch.ones(1)]), "weights", tolerance=1e-6)


def test_smooth_where_edges_leave():
    """The last neighbour, or two at once: weights and slopes go to zero; derivatives are finite, at the cutoff too."""
    cutoff = CosineCutoff(3.0)
    for index in (torch.tensor([0]), torch.tensor([0, 0])):
        score = torch.tensor([4.0, 0.0], dtype=torch.float64)[: len(index)]
        for gap in (1e-6, 1e-8, 0.0, -1.0):
            edge_len = torch.full((len(index),), 3.0 - gap, dtype=torch.float64, requires_grad=True)
            weight = edge_softmax(score * edge_len, cutoff(edge_len), index, 1)
            (slope,) = torch.autograd.grad(weight.sum(), edge_len, create_graph=True)
            (curvature,) = torch.autograd.grad(slope.sum(), edge_len)
            assert weight.abs().max() <= 3 * max(gap, 0) ** 2
            assert slope.abs().max() <= 20 * max(gap, 1e-16)
            assert torch.isfinite(curvature).all()


def test_no_edges():
    assert edge_softmax(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, dtype=torch.long), 3).shape == (0, 2)
