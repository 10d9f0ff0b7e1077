"""Radial Field: the formula, any dimension, conserved momentum, what moves."""

import pytest
import torch

from pyg_equivariant.models.radial_field import RadialField, RadialFieldConv, VelocityRadialFieldConv
from pyg_equivariant.testing import assert_close, fill_by_formula


def complete(num_nodes: int) -> torch.Tensor:
    return (1 - torch.eye(num_nodes)).nonzero().T.flip(0)


def particles(dimension: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Five: positions, velocities, charges, edges and the products of charges."""
    generator = torch.Generator().manual_seed(seed)
    pos, vel = torch.randn(2, 5, dimension, generator=generator, dtype=torch.float64)
    charges = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    edge_index = complete(5)
    return pos, vel, charges, edge_index, charges[edge_index].prod(0).unsqueeze(-1)


def test_formula():
    """Particle by particle, with velocities and an envelope."""
    conv = VelocityRadialFieldConv(6, edge_channels=1, avg_num_neighbors=4.0).double()
    fill_by_formula(conv)
    pos, vel, charges, edge_index, products = particles(3)
    edge_env = torch.rand(20, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shift = conv(edge_index, pos[edge_index[0]] - pos[edge_index[1]], edge_env, products, vel)
    for i in range(5):
        moved = conv.velocity_mlp(vel[i].norm().view(1)) * vel[i]
        for (j, target), u in zip(edge_index.T.tolist(), edge_env, strict=True):
            if target == i:
                field = conv.field(torch.stack([(pos[i] - pos[j]).norm(), charges[i] * charges[j]]))
                moved = moved + (pos[i] - pos[j]) * field * u / 4
        assert_close(shift[i], moved, "displacement")


@pytest.mark.parametrize("dimension", [1, 2, 3, 5])
def test_any_dimension(dimension):
    conv = VelocityRadialFieldConv(6, edge_channels=1).double()
    fill_by_formula(conv)
    pos, vel, _, edge_index, products = particles(dimension, seed=dimension)
    generator = torch.Generator().manual_seed(dimension)
    matrix, _ = torch.linalg.qr(torch.randn(dimension, dimension, generator=generator, dtype=torch.float64))
    edge_vec, ones = pos[edge_index[0]] - pos[edge_index[1]], torch.ones(20, 1, dtype=torch.float64)
    shift = conv(edge_index, edge_vec, ones, products, vel)
    turned = conv(edge_index, edge_vec @ matrix.T, ones, products, vel @ matrix.T)
    assert_close(turned, shift @ matrix.T, "displacements")


def test_central_forces_conserve_momentum():
    conv = RadialFieldConv(6, edge_channels=1, avg_num_neighbors=4.0).double()
    fill_by_formula(conv)
    pos, _, _, edge_index, products = particles(3)
    ones = torch.ones(20, 1, dtype=torch.float64)
    shift = conv(edge_index, pos[edge_index[0]] - pos[edge_index[1]], ones, products, num_nodes=5)
    assert shift.abs().max() > 1e-2
    assert_close(shift.sum(0), torch.zeros(3, dtype=torch.float64), "net displacement", tolerance=1e-14)


def test_displacement_is_what_moves():
    """The l = 1 features are where the atoms went; the second layer sees them there."""
    model = RadialField(4, 2).double()
    fill_by_formula(model)
    pos = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z, edge_index = torch.tensor([6, 1, 8, 1]), complete(4)
    source, target = edge_index
    ones, types = torch.ones(12, 1, dtype=torch.float64), model.embedding(z)
    edge_attr = types[source] * types[target]
    first = model.convs[0](edge_index, pos[source] - pos[target], ones, edge_attr, 4)
    there = pos + first
    second = model.convs[1](edge_index, there[source] - there[target], ones, edge_attr, 4)
    x = model(z, edge_index, pos[source] - pos[target])
    assert_close(x[:, 0, 1:4], (first + second).unsqueeze(-1).expand(-1, -1, 4), "displacement")


def test_elements_push_differently():
    model = RadialField(4, 1).double()
    fill_by_formula(model)
    edge_index, edge_vec = complete(2), torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]], dtype=torch.float64)
    first, second = (model(torch.tensor([6, z]), edge_index, edge_vec)[:, 0, 1:4] for z in (1, 8))
    assert (first - second).abs().max() > 1e-3
