"""Heads: symmetry, units of reference, conservation."""

import pytest
import torch

from pyg_equivariant.data.transforms import RadiusGraph
from pyg_equivariant.heads import (
    ChargesHead,
    DipoleMagnitudeHead,
    ElectrostaticEnergyHead,
    EnergyHead,
    ExtensiveHead,
    IntensiveHead,
    IsotropicPolarizabilityHead,
    PolarizabilityHead,
    SpatialExtentHead,
    VectorDipoleHead,
    head_for,
)
from pyg_equivariant.models import PaiNN, PhysNet
from pyg_equivariant.nn.electrostatics import ShieldedCoulomb
from pyg_equivariant.o3.wigner import random_rotation
from pyg_equivariant.potential import Potential, Predictor
from pyg_equivariant.testing import assert_close, example_molecule, fill_by_formula


def predict(head, data):
    model = Predictor(PaiNN(8, 2, cutoff=3.0), {"y": head}).double().eval()
    fill_by_formula(model)
    return model(RadiusGraph(3.0)(data)).properties["y"]


@pytest.mark.parametrize(
    "head",
    [
        ExtensiveHead(8),
        IntensiveHead(8),
        ChargesHead(8),
        VectorDipoleHead(8),
        DipoleMagnitudeHead(VectorDipoleHead(8)),
        PolarizabilityHead(8),
        IsotropicPolarizabilityHead(8),
        SpatialExtentHead(8),
    ],
    ids=lambda head: type(head).__name__,
)
def test_symmetry(head):
    """Each quantity turns as its rank says, and does not depend on the origin."""
    data = example_molecule()
    matrix = -random_rotation(torch.Generator().manual_seed(1))
    turned = data.clone()
    turned.pos = data.pos @ matrix.T + 2.0
    y, expected = predict(head, turned), predict(head, data)
    if expected.dim() == 2:
        expected = expected @ matrix.T
    elif expected.dim() == 3:
        expected = matrix @ expected @ matrix.T
    assert_close(y, expected, type(head).__name__, tolerance=1e-7)  # masses are float32
    assert y.abs().max() > 1e-4


def test_charges_sum_to_total():
    data = example_molecule()
    data.total_charge = torch.tensor([-1.0], dtype=torch.float64)
    assert_close(predict(ChargesHead(8), data).sum(), torch.tensor(-1.0).double(), "total charge")


def charged():
    head = ElectrostaticEnergyHead(8, ShieldedCoulomb(4.0, shield=2.0))
    model = Potential(PhysNet(8, 2, cutoff=4.0), head).double().eval()
    fill_by_formula(model)
    data = example_molecule()
    data.total_charge = torch.tensor([1.0], dtype=torch.float64)
    return model, RadiusGraph(4.0)(data)


def test_the_energy_of_charges_is_part_of_the_energy():
    model, data = charged()
    prediction = model(data)
    charges = prediction.properties["charges"]
    assert_close(charges.sum(), torch.tensor(1.0).double(), "total charge")
    assert charges.std() > 1e-3
    edges = data.pos[data.edge_index[0]] - data.pos[data.edge_index[1]]
    coulomb = model.head.coulomb(charges, data.edge_index, edges)
    assert coulomb.sum().abs() > 1e-3
    neutral = Potential(model.representation, EnergyHead(8)).double().eval()
    neutral.head.load_state_dict(model.head.state_dict(), strict=False)
    assert_close(prediction.energy - neutral(data).energy, coulomb.sum()[None], "Coulomb energy")


def test_the_dipole_is_that_of_the_charges():
    model, data = charged()
    properties = model(data).properties
    mass = model.head.dipole.masses[data.z].double()
    centre = (mass.unsqueeze(-1) * data.pos).sum(0) / mass.sum()
    expected = (properties["charges"].unsqueeze(-1) * (data.pos - centre)).sum(0)
    assert_close(properties["dipole"][0], expected, "dipole", tolerance=1e-7)


def test_forces_of_charges_are_the_derivative():
    model, data = charged()
    forces = model(data).forces
    for atom, axis in ((0, 0), (3, 2)):
        energies = []
        for step in (1e-4, -1e-4):
            moved = data.clone()
            moved.pos = data.pos.clone()
            moved.pos[atom, axis] += step
            energies.append(model(moved).energy)
        assert_close((energies[1] - energies[0])[0] / 2e-4, forces[atom, axis], "force", tolerance=1e-6)


def test_charges_beyond_the_edges_are_refused():
    with pytest.raises(ValueError, match=r"needs edges up to 10\.0 Å, but PhysNet has cutoff=5\.0"):
        Potential(PhysNet(8, 2, cutoff=5.0), ElectrostaticEnergyHead(8))


def test_extensive_and_intensive():
    """Two copies far apart: a sum doubles, a mean stays."""
    data = example_molecule(5)
    both = data.clone()
    both.z, both.pos = data.z.repeat(2), torch.cat([data.pos, data.pos + 50.0])
    assert_close(predict(ExtensiveHead(8), both), 2 * predict(ExtensiveHead(8), data), "sum")
    assert_close(predict(IntensiveHead(8), both), predict(IntensiveHead(8), data), "mean")


def test_standardize():
    data = example_molecule()
    head = IntensiveHead(8)
    raw = predict(head, data)
    head.standardize(3.0, mean=-7.0)
    assert_close(predict(head, data), 3 * raw - 7, "mean and scale")
    head = ExtensiveHead(8)
    raw = predict(head, data)
    references = torch.arange(119, dtype=torch.float64)
    head.standardize(3.0, references=references)
    assert_close(predict(head, data), 3 * raw + references[data.z].sum(), "references and scale")


def test_isotropic_polarizability_is_a_third_of_the_trace():
    torch.manual_seed(0)
    head = IsotropicPolarizabilityHead(8)
    isotropic, tensor = predict(head, example_molecule()), predict(head.tensor, example_molecule())
    assert isotropic.shape == (1,)
    assert tensor.shape == (1, 3, 3)
    assert_close(tensor, tensor.transpose(1, 2), "symmetry")


def test_head_for_every_kind():
    assert isinstance(head_for("dipole_magnitude", 8, 1).dipole, VectorDipoleHead)
    assert head_for("dipole_magnitude", 8, 0).lmax == 0
    assert isinstance(head_for("isotropic_polarizability", 8, 0), ExtensiveHead)
    with pytest.raises(ValueError, match="no head for a quantity of kind 'colour'"):
        head_for("colour", 8, 0)
