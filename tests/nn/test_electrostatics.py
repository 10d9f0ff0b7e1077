"""The energy of charges."""

import math

import pytest
import torch

from pyg_equivariant.nn.electrostatics import ShieldedCoulomb
from pyg_equivariant.testing import assert_close
from pyg_equivariant.units import COULOMB


def energy(coulomb, r, charges=(0.7, -0.3)):
    """Of two charges at each distance, and its derivative."""
    r = torch.as_tensor(r, dtype=torch.float64).requires_grad_()
    edge_vec = torch.stack([r, -r], 1).flatten()[:, None] * torch.eye(3).double()[2]
    first = 2 * torch.arange(len(r))
    edge_index = torch.stack(
        [torch.stack([first + 1, first], 1).flatten(), torch.stack([first, first + 1], 1).flatten()]
    )
    value = coulomb(torch.tensor(charges, dtype=torch.float64).repeat(len(r)), edge_index, edge_vec).view(-1, 2)
    assert_close(value[:, 0].detach(), value[:, 1].detach(), "the two atoms' halves")
    (slope,) = torch.autograd.grad(value.sum(), r)
    return value.sum(1).detach(), slope


def test_is_coulombs_law_from_half_the_shield_on():
    r = torch.tensor([5.0, 7.0, 50.0]).double()
    value, slope = energy(ShieldedCoulomb(), r.clone())
    assert_close(value, COULOMB * 0.7 * -0.3 / r, "energy", tolerance=1e-14)
    assert_close(slope, -COULOMB * 0.7 * -0.3 / r**2, "slope", tolerance=1e-14)


def test_shielded_below():
    r = 2.0
    u = r / 5.0
    phi = 1 - 6 * u**5 + 15 * u**4 - 10 * u**3
    chi = phi / math.sqrt(r**2 + 1) + (1 - phi) / r
    value, _ = energy(ShieldedCoulomb(), [r, 0.0])
    expected = torch.tensor([chi, 1.0]).double() * COULOMB * 0.7 * -0.3
    assert_close(value, expected, "energy", tolerance=1e-7)


@pytest.mark.parametrize("r", [0.0, 1e-8, 1e-4])
def test_derivatives_where_atoms_meet(r):
    edge_vec = torch.tensor([[r, 0.0, 0.0], [-r, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    value = ShieldedCoulomb(12.0)(torch.ones(2).double(), torch.tensor([[1, 0], [0, 1]]), edge_vec)
    (force,) = torch.autograd.grad(value.sum(), edge_vec, create_graph=True)
    (second,) = torch.autograd.grad(force.square().sum(), edge_vec)
    assert force.abs().max() < 100
    assert torch.isfinite(second).all()


def test_vanishes_at_the_cutoff_with_its_slope():
    value, slope = energy(ShieldedCoulomb(8.0), [8.0 - 1e-7, 8.0, 9.0])
    assert_close(value, torch.zeros(3).double(), "energy", tolerance=1e-7)
    assert_close(slope, torch.zeros(3).double(), "slope", tolerance=1e-7)
    assert energy(ShieldedCoulomb(8.0), [7.0])[0].abs() > 1e-3


def test_cutoff_in_the_shielded_region():
    with pytest.raises(ValueError, match="at least half"):
        ShieldedCoulomb(4.0)
