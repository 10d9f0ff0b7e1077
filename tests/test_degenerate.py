"""What every architecture makes of inputs at the edge: the right answer, or one sentence."""

import pytest
import torch
from torch_geometric.data import Batch, Data

from pyg_equivariant import models
from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.potential import Potential
from pyg_equivariant.testing import potential_of

CARBON_DIOXIDE = [8, 6, 8], [[0, 0, -1.16], [0, 0, 0], [0, 0, 1.16]]
FORMALDEHYDE = [6, 1, 1, 8], [[0, 0, 0], [0.94, 0.54, 0], [-0.94, 0.54, 0], [0, -1.2, 0]]


def graph(z: list[int], pos: list[list[float]]) -> Data:
    data = Data(z=torch.tensor(z, dtype=torch.long), pos=torch.tensor(pos, dtype=torch.float64).view(-1, 3))
    return RadiusGraph(3.0)(data)


def build(name: str) -> Potential:
    return potential_of(getattr(models, name)(channels=8, num_layers=2, cutoff=3.0))


@pytest.fixture(params=models.__all__)
def model(request: pytest.FixtureRequest) -> Potential:
    return build(request.param)


def test_collinear(model: Potential) -> None:
    """The symmetry of the molecule is that of the forces: along the axis, opposite at the ends, zero in the middle."""
    forces = model(graph(*CARBON_DIOXIDE)).forces
    assert forces.isfinite().all()
    if model.representation.group in ("E(3)", "SE(3)"):
        assert torch.allclose(forces[:, :2], torch.zeros(3, 2, dtype=torch.float64), atol=1e-9)
        assert torch.allclose(forces[0], -forces[2], atol=1e-9)
        assert forces[1].norm() < 1e-9


def test_planar(model: Potential) -> None:
    """Nothing pushes an atom out of a mirror plane, but a model that cannot see mirrors may."""
    prediction = model(graph(*FORMALDEHYDE))
    assert prediction.energy.isfinite().all()
    assert prediction.forces.isfinite().all()
    assert torch.allclose(prediction.forces.sum(0), torch.zeros(3, dtype=torch.float64), atol=1e-9)
    if model.representation.group == "E(3)":
        assert torch.allclose(prediction.forces[:, 2], torch.zeros(4, dtype=torch.float64), atol=1e-9)


def test_one_atom(model: Potential) -> None:
    prediction = model(graph([6], [[0, 0, 0]]))
    assert prediction.energy.isfinite().all()
    assert not prediction.forces.any()


def test_atoms_that_nearly_touch(model: Potential) -> None:
    """At 10⁻⁴ Å, and in training too."""
    graphs = graph([6, 1], [[0, 0, 0], [0, 0, 1e-4]])
    prediction = model.train()(graphs)
    assert prediction.energy.isfinite().all()
    assert prediction.forces.isfinite().all()
    (prediction.forces.square().sum() / (1 + prediction.forces.detach().square().sum())).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_atoms_far_apart(model: Potential) -> None:
    """At 100 Å, each is alone."""
    apart = model(graph([6, 1], [[0, 0, 0], [0, 0, 100]]))
    alone = [model(graph([z], [[0, 0, 0]])).energy for z in (6, 1)]
    assert torch.allclose(apart.energy, sum(alone))
    assert not apart.forces.any()


def test_nothing(model: Potential) -> None:
    """A graph without atoms, alone and in a batch."""
    assert model(graph([], [])).energy.tolist() == [0.0]
    energy = model(Batch.from_data_list([graph([], []), graph(*FORMALDEHYDE)])).energy
    assert energy[0] == 0
    assert torch.allclose(energy[1:], model(graph(*FORMALDEHYDE)).energy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(model: Potential, dtype: torch.dtype) -> None:
    """Right to the few digits that the type has."""
    expected, actual = model(graph(*FORMALDEHYDE)), model.to(dtype)(graph(*FORMALDEHYDE))
    error = (actual.energy - expected.energy).abs().item()
    assert error < 10 * torch.finfo(dtype).eps * max(1.0, expected.energy.abs().item())
    assert actual.forces.isfinite().all()


def test_autocast(model: Potential) -> None:
    """Forces under autocast to bfloat16, and the gradient of their loss."""
    expected = model(graph(*FORMALDEHYDE)).forces
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        forces = model(graph(*FORMALDEHYDE)).forces
        forces.square().sum().backward()
    assert (forces - expected).norm() < 0.2 * expected.norm() + 1e-6
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("number", [0, -1, 150])
def test_no_such_element(number: int) -> None:
    with pytest.raises(ValueError, match=f"atom 1 has the atomic number {number}: there are 1 to 118"):
        build("PaiNN")(graph([6, number], [[0, 0, 0], [0, 0, 1]]))
