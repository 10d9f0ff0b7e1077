"""D3 against the package that holds its references, where that is installed."""

import math
import sys

import pytest
import torch
from torch_geometric.data import Batch, Data

from pyg_equivariant.data import FullyConnected, RadiusGraph
from pyg_equivariant.models import PaiNN
from pyg_equivariant.potential import Potential
from pyg_equivariant.priors import D3Dispersion
from pyg_equivariant.testing import assert_close, example_molecule, fill_by_formula
from pyg_equivariant.units import BOHR, HARTREE

HARTREE_FOCK = {"s6": 1.0, "s8": 0.9171, "a1": 0.3385, "a2": 2.8830}


@pytest.fixture
def d3():
    return pytest.importorskip("tad_dftd3", reason="D3 needs tad-dftd3")


def energy_and_gradient(prior: D3Dispersion, data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """What the prior adds to a model, and its derivative with respect to the positions."""
    model = Potential(PaiNN(8, 1)).double()
    pos = data.pos.clone().requires_grad_()
    graph = data.clone().update({"pos": pos})
    atomic = prior.double()(model.graph(graph))
    (gradient,) = torch.autograd.grad(atomic.sum(), pos)
    return atomic.detach(), gradient


def test_agrees_with_tad_dftd3(d3):
    parameters = {name: torch.tensor(value, dtype=torch.float64) for name, value in HARTREE_FOCK.items()}
    for seed, spread in ((0, 1.1), (1, 1.6), (2, 3.0)):
        data = FullyConnected()(example_molecule(8, spread=spread, seed=seed))
        pos = (data.pos / BOHR).requires_grad_()
        expected = d3.dftd3(data.z, pos, {**parameters, "s9": torch.tensor(0.0).double()})
        (gradient,) = torch.autograd.grad(expected.sum(), pos)
        energy, ours = energy_and_gradient(D3Dispersion(math.inf), data)
        assert expected.sum() < -1e-4
        assert_close(energy, expected.detach() * HARTREE, "energies of the atoms", tolerance=1e-8)
        assert_close(ours, gradient * HARTREE / BOHR, "gradient", tolerance=1e-8)


def test_ends_at_the_cutoff_with_its_slope(d3):
    def at(distance):
        pos = torch.tensor([[0.0, 0, 0], [distance, 0, 0]], dtype=torch.float64)
        data = Data(z=torch.tensor([54, 54]), pos=pos)
        return energy_and_gradient(D3Dispersion(6.0), RadiusGraph(12.0)(data))

    for distance in (6.0 - 1e-7, 6.0 + 1e-7, 8.0):
        energy, gradient = at(distance)
        assert_close(energy, torch.zeros(2).double(), "energy", tolerance=1e-9)
        assert_close(gradient, torch.zeros(2, 3).double(), "gradient", tolerance=1e-7)
    assert at(4.0)[0].sum() < -1e-3


def test_adds_to_a_model(d3):
    """In a batch, and where atoms meet, alone or lie close to many."""
    model = Potential(PaiNN(8, 1, cutoff=5.0), priors=[D3Dispersion(5.0)]).double().train()
    fill_by_formula(model)
    meeting = Data(z=torch.tensor([6, 8, 8]), pos=torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 0, 0]]).double())
    alone = Data(z=torch.tensor([1]), pos=torch.zeros(1, 3).double())
    crowd = example_molecule(40, spread=1.5)
    graphs = [RadiusGraph(5.0)(graph) for graph in (meeting, alone, crowd)]
    prediction = model(Batch.from_data_list(graphs))
    (prediction.energy.sum() + prediction.forces.square().sum()).backward()
    assert torch.isfinite(prediction.forces).all()
    singles = torch.cat([model(graph).energy for graph in graphs])
    assert_close(prediction.energy.detach(), singles.detach(), "energies")
    assert_close(model.float()(graphs[2]).energy.detach(), singles[2:].detach(), "single precision", tolerance=1e-4)


def test_unknown_elements_are_not_silent(d3):
    data = FullyConnected()(Data(z=torch.tensor([110, 6]), pos=torch.eye(3)[:2].double()))
    assert energy_and_gradient(D3Dispersion(math.inf), data)[0].isnan().all()


def test_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tad_dftd3", None)
    monkeypatch.setitem(sys.modules, "tad_dftd3.data", None)
    with pytest.raises(ModuleNotFoundError, match="pip install tad-dftd3"):
        D3Dispersion()
