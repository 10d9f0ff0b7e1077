"""LieConv: the paper's sum written out, equivariance on each group, estimates; LieResNet on T(3) and SE(3)."""

import math

import pytest
import torch

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models.lieconv import LieConv, LieResNet, sample_neighbors
from pyg_equivariant.nn.lie_groups import SE2, SE3, SO2, SO3, LieGroup, Translations, Trivial
from pyg_equivariant.o3 import random_rotation
from pyg_equivariant.testing import (
    CONTRACT,
    assert_close,
    compiled,
    example_molecule,
    fill_by_formula,
    potential_of,
    recorded,
)

QUICK = [promise for promise in CONTRACT if promise not in (compiled, recorded)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def complete(num_nodes: int) -> torch.Tensor:
    """All pairs, each node with itself too."""
    return torch.cartesian_prod(torch.arange(num_nodes), torch.arange(num_nodes)).T


def pairs(group: LieGroup, u: torch.Tensor, orbit: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
    source, target = edge_index
    return torch.cat([group.relative(u[target], u[source]), orbit[target], orbit[source]], dim=-1)


def test_equation():
    """The mean over neighbours of a matrix from the edge times the neighbour's values, edge by edge."""
    conv = LieConv(3, 2, pair_dim=4, rank=5).double()
    fill_by_formula(conv)
    edge_index = torch.tensor([[0, 1, 2, 0], [1, 1, 0, 2]])
    x, pair, weight = normal(3, 3), normal(4, 4, seed=1), torch.tensor([0.5, 1.0, 0.3, 0.9], dtype=torch.float64)
    actual = conv(x, edge_index, pair, weight)
    tensor = conv.linear.weight.view(2, 5, 3)  # W: what makes a matrix of the MLP's numbers
    for i in range(3):
        edges = [e for e in range(4) if edge_index[1, e] == i]
        matrices = [torch.einsum("dkc,k->dc", tensor, conv.kernel(pair[e])) for e in edges]
        total = sum(weight[e] * m @ x[edge_index[0, e]] for e, m in zip(edges, matrices, strict=True))
        assert_close(actual[i], total / weight[edges].sum() + conv.linear.bias, "convolution")


@pytest.mark.parametrize(
    "group", [Translations(2), SO2(), SE2(), Translations(3), SO3(), SE3()], ids=lambda g: repr(g)[:4]
)
def test_equivariant_to_any_element(group):
    """An element multiplied from the left to all lifts changes no value."""
    ndim = 2 if isinstance(group, SO2 | SE2) or group.dim == 2 else 3
    pos = normal(6, ndim)
    u = group.lift(pos, 2, torch.Generator().manual_seed(0)).flatten(0, 1)
    orbit, edge_index = group.orbit(pos).repeat_interleave(2, 0), complete(12)
    conv = LieConv(4, 3, pair_dim=group.dim + 2 * group.orbit_dim).double()
    fill_by_formula(conv)
    x, g = normal(12, 4, seed=1), group.exp(normal(group.dim, seed=2))
    values = conv(x, edge_index, pairs(group, u, orbit, edge_index))
    assert values.std(0).min() > 1e-3
    assert_close(conv(x, edge_index, pairs(group, g @ u, orbit, edge_index)), values, "left action", tolerance=1e-11)


def test_symmetry_conserves_momentum():
    """A potential on T(2) pushes nothing as a whole, one on SO(2) turns nothing, and neither does both."""

    def force(group: LieGroup) -> tuple[torch.Tensor, torch.Tensor]:
        conv = LieConv(2, 1, pair_dim=group.dim + 2 * group.orbit_dim).double()
        fill_by_formula(conv)
        pos, x, edge_index = normal(5, 2).requires_grad_(), normal(5, 2, seed=1), complete(5)
        energy = conv(x, edge_index, pairs(group, group.lift(pos)[:, 0], group.orbit(pos), edge_index)).square().sum()
        (gradient,) = torch.autograd.grad(energy, pos)
        pos = pos.detach()
        return gradient.sum(0).abs().max(), (pos[:, 0] * gradient[:, 1] - pos[:, 1] * gradient[:, 0]).sum().abs()

    push, torque = force(Translations(2))
    assert push < 1e-12 < 1e-3 < torque
    push, torque = force(SO2())
    assert torque < 1e-12 < 1e-3 < push
    push, torque = force(Trivial(2))
    assert min(push, torque) > 1e-3


def test_sampled_neighbors_estimate_the_mean():
    """Each target keeps ``count`` of its neighbours at most; the estimates' mean is the value of all neighbours."""
    edge_index = complete(7)[:, :-3]  # the last target has four sources less
    generator = torch.Generator().manual_seed(0)
    conv = LieConv(3, 2, pair_dim=2).double()
    fill_by_formula(conv)
    x, pair = normal(7, 3), normal(edge_index.shape[1], 2, seed=1)
    estimates, seen = [], torch.zeros(edge_index.shape[1])
    for _ in range(200):
        kept = sample_neighbors(edge_index, 3, 7, generator)
        assert torch.bincount(edge_index[1, kept], minlength=7).tolist() == [3] * 7
        seen[kept] += 1
        estimates.append(conv(x, edge_index[:, kept], pair[kept]).detach())
    full = conv(x, edge_index, pair).detach()
    estimate = torch.stack(estimates)
    error = estimate.std(0) / math.sqrt(200)
    assert ((estimate.mean(0) - full).abs() < 4 * error).all()
    degree = torch.bincount(edge_index[1], minlength=7)[edge_index[1]]
    assert ((seen / 200) - 3 / degree).abs().max() < 0.15
    assert len(sample_neighbors(edge_index, 100, 7)) == edge_index.shape[1]


def test_fewer_targets_than_sources():
    """Down-sampling: values at some elements from all."""
    conv = LieConv(3, 2, pair_dim=2).double()
    edge_index = torch.tensor([[0, 3, 4, 2], [0, 0, 1, 1]])
    assert conv(normal(5, 3), edge_index, normal(4, 2), num_targets=2).shape == (2, 2)


@pytest.mark.parametrize("promise", QUICK, ids=lambda promise: promise.__name__)
def test_contract_of_special_euclidean_group(promise):
    promise(LieResNet(channels=8, num_layers=2, cutoff=3.0, lie_group=SE3(), lifts=2))


def test_rotations_in_distribution():
    """Over many draws of the lifts a molecule and its rotation have the same mean energy; over one they differ."""
    model = potential_of(LieResNet(8, 1, cutoff=3.0, lie_group=SE3(), lifts=2))
    representation, generator = model.representation, torch.Generator().manual_seed(0)
    data = RadiusGraph(3.0)(example_molecule(4))
    turned = data.clone()
    turned.pos = data.pos @ random_rotation(torch.Generator().manual_seed(1)).T
    draws = torch.zeros(2, 60, dtype=torch.float64)
    graph = [model.graph(d) for d in (data, turned)]
    with torch.no_grad():
        for k in range(60):
            for row, g in enumerate(graph):
                representation.resample(generator)
                draws[row, k] = representation(g.z, g.edge_index, g.edge_vec)[..., 0].sum()
        same = [representation(g.z, g.edge_index, g.edge_vec)[..., 0].sum() for g in graph]
    difference = (draws[0].mean() - draws[1].mean()).abs()
    assert difference < 3 * (draws.var(1).sum() / 60).sqrt()
    assert (same[0] - same[1]).abs() > 1e-6


def test_lifts_are_reproducible():
    one, same, other = (LieResNet(4, 1, lie_group=SE3(), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.lifts, same.lifts)
    assert (one.lifts - other.lifts).abs().max() > 0.5
    assert "lifts" in one.state_dict()
    one.resample(torch.Generator().manual_seed(1))
    assert torch.equal(one.lifts, other.lifts)


def test_groups():
    assert LieResNet(4, 1).group == "T(3)"
    assert LieResNet(4, 1, lie_group=SE3()).group == "SE(3) in distribution"
    assert LieResNet(4, 1).lifts.shape[1] == 1
    with pytest.raises(ValueError, match="must contain the translations of space, which SO3 does not"):
        LieResNet(4, 1, lie_group=SO3())
    with pytest.raises(NotImplementedError, match="draws nothing at random"):
        LieResNet(4, 1).turn(torch.eye(3))
