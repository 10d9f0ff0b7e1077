import math

import jaxtyping
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.md.velocitydistribution import force_temperature
from ase.md.verlet import VelocityVerlet

from pyg_equivariant.calculators import PygEquivariantCalculator, VerletList
from pyg_equivariant.data.neighbors import neighbor_list
from pyg_equivariant.heads import ChargesHead, VectorDipoleHead
from pyg_equivariant.models import PaiNN
from pyg_equivariant.potential import Potential


def potential(**kwargs):
    torch.manual_seed(0)
    representation = PaiNN(8, 2, cutoff=3.5)
    model = Potential(representation, **kwargs).double()
    model.head.references.values[[1, 6, 8, 14]] = torch.tensor([-10.0, -50.0, -110.0, -80.0], dtype=torch.float64)
    return model


def ethanol():
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=1)
    return atoms


def silicon():
    atoms = bulk("Si") * (2, 1, 1)  # neighbours beyond the neighbouring cell, and images of one's own
    strain = 0.05 * np.random.default_rng(0).normal(size=(3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def slab():
    atoms = silicon()
    atoms.pbc = (True, True, False)
    return atoms


def edges(edge_index, shift):
    return sorted(map(tuple, torch.cat([edge_index.T.double(), shift.double()], 1).tolist()))


def fresh(atoms, cutoff):
    cell, pbc = torch.tensor(atoms.cell.array)[None], torch.tensor(atoms.pbc)[None]
    periodic = atoms.pbc.any()
    edge_index, shift = neighbor_list(
        torch.tensor(atoms.positions), cutoff, cell if periodic else None, pbc if periodic else None
    )
    return edge_index, torch.zeros(edge_index.shape[1], 3) if shift is None else shift


def ask(verlet, atoms):
    return verlet(torch.tensor(atoms.positions), torch.tensor(atoms.cell.array)[None], torch.tensor(atoms.pbc)[None])


@pytest.mark.parametrize("make", [ethanol, silicon, slab])
def test_forces_are_the_derivative_of_the_energy(make):
    atoms = make()
    atoms.calc = PygEquivariantCalculator(potential())
    forces = atoms.get_forces()
    assert np.abs(forces).max() > 0.1
    np.testing.assert_allclose(forces, calculate_numerical_forces(atoms, eps=1e-4), atol=1e-5)


def test_stress_is_the_derivative_with_respect_to_strain():
    atoms = silicon()
    atoms.calc = PygEquivariantCalculator(potential())
    stress = atoms.get_stress()
    assert np.abs(stress).max() > 1e-3
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, eps=1e-5), atol=1e-7)


def test_what_is_not_asked_for_is_not_computed():
    atoms = silicon()
    atoms.calc = PygEquivariantCalculator(potential())
    energy = atoms.get_potential_energy()
    assert "forces" not in atoms.calc.results
    atoms.get_forces()
    assert "stress" not in atoms.calc.results
    stress = atoms.get_stress()
    assert {"energy", "forces", "stress"} <= set(atoms.calc.results)
    assert stress.shape == (6,)
    assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
    assert energy == atoms.get_potential_energy(force_consistent=True)
    assert atoms.get_potential_energies().shape == (4,)


def test_no_stress_without_a_cell():
    atoms = ethanol()
    atoms.calc = PygEquivariantCalculator(potential())
    with pytest.raises(PropertyNotImplementedError, match="cell of three vectors"):
        atoms.get_stress()
    assert np.isfinite(atoms.get_forces()).all()


@pytest.mark.parametrize("make", [ethanol, silicon, slab])
def test_the_verlet_list_is_exact_along_a_trajectory(make):
    atoms = make()
    atoms.calc = PygEquivariantCalculator(potential(), skin=0.6)
    rng = np.random.default_rng(0)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * np.sqrt(atoms.get_masses())[:, None])
    force_temperature(atoms, 1500)
    dynamics = VelocityVerlet(atoms, 0.05)
    verlet, steps = VerletList(3.5, 0.6), 60
    for step in range(steps):
        dynamics.run(1)
        if step == 30 and atoms.pbc.any():
            atoms.wrap()
        if step == 45 and atoms.pbc.any():
            atoms.set_cell(atoms.cell * 1.02, scale_atoms=True)
        assert edges(*ask(verlet, atoms)) == edges(*fresh(atoms, 3.5))
        assert atoms.get_potential_energy() == pytest.approx(_energy(atoms), abs=1e-9)
    assert 1 < verlet.searches < steps / 2
    assert atoms.calc.neighbors.searches < steps / 2


def _energy(atoms):
    again = atoms.copy()
    again.calc = PygEquivariantCalculator(potential(), skin=0.0)
    return again.get_potential_energy()


def test_the_verlet_list_searches_when_it_must():
    atoms = silicon()
    verlet = VerletList(3.0, 0.4)
    ask(verlet, atoms)
    atoms.positions[0, 0] += 0.19
    ask(verlet, atoms)
    assert verlet.searches == 1
    atoms.positions[0, 0] += 0.02
    ask(verlet, atoms)
    assert verlet.searches == 2
    for change in (
        lambda: atoms.set_cell(atoms.cell * 1.001),
        lambda: atoms.set_pbc([True, True, False]),
        lambda: atoms.append("Si"),
    ):
        before = verlet.searches
        change()
        assert edges(*ask(verlet, atoms)) == edges(*fresh(atoms, 3.0))
        assert verlet.searches == before + 1


def test_the_verlet_list_sorts_by_target():
    edge_index, _ = ask(VerletList(3.0, 1.0), silicon())
    assert (edge_index[1].diff() >= 0).all()


def test_without_a_cutoff_all_pairs_are_edges():
    edge_index, _ = ask(VerletList(math.inf, 0.5), ethanol())
    assert edge_index.shape == (2, 72)


def test_a_negative_skin_is_refused():
    with pytest.raises(ValueError, match="skin must not be negative"):
        VerletList(5.0, -0.1)


def test_an_unseen_element_is_refused():
    model = potential()
    model.metadata.elements = [1, 6, 8]
    atoms = Atoms("OHSH", np.eye(4)[:, :3])
    atoms.calc = PygEquivariantCalculator(model)
    with pytest.raises(ValueError, match=r"trained on H, C, O and has never seen S \(first at atom 2 of OHSH\)"):
        atoms.get_potential_energy()
    atoms.numbers[2] = 8
    assert np.isfinite(atoms.get_potential_energy())


def test_a_changed_composition_is_seen():
    calculator = PygEquivariantCalculator(potential())
    first, second = ethanol(), silicon()
    first.calc = second.calc = calculator
    assert first.get_potential_energy() == pytest.approx(_energy(first))
    assert second.get_potential_energy() == pytest.approx(_energy(second))
    assert first.get_forces().shape == (9, 3)


def test_heads_named_as_ase_names_them():
    model = potential(heads={"dipole": VectorDipoleHead(8), "charges": ChargesHead(8)})
    atoms = ethanol()
    atoms.calc = PygEquivariantCalculator(model)
    assert atoms.get_dipole_moment().shape == (3,)
    assert atoms.get_charges().sum() == pytest.approx(0, abs=1e-6)
    atoms.info["charge"] = -1
    assert atoms.get_charges().sum() == pytest.approx(-1, abs=1e-6)
    atoms.calc = PygEquivariantCalculator(potential())
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_dipole_moment()


def test_total_charge_of_initial_charges():
    atoms = ethanol()
    atoms.calc = PygEquivariantCalculator(potential(heads={"charges": ChargesHead(8)}))
    atoms.set_initial_charges([0.5, 0.5, *[0] * 7])
    assert atoms.get_charges().sum() == pytest.approx(1, abs=1e-6)


def test_from_a_file_in_another_precision(tmp_path):
    model = potential()
    model.save(tmp_path / "model")
    atoms = ethanol()
    atoms.calc = PygEquivariantCalculator(tmp_path / "model")
    exact = atoms.get_forces()
    atoms.calc = PygEquivariantCalculator(str(tmp_path / "model"), dtype=torch.float32)
    np.testing.assert_allclose(atoms.get_forces(), exact, atol=1e-3)
    assert np.abs(atoms.get_forces() - exact).max() > 0
    assert model.dtype == torch.float64


def test_the_model_given_is_left_alone():
    model = potential().train()
    atoms = ethanol()
    atoms.calc = PygEquivariantCalculator(model, dtype=torch.float32)
    atoms.get_potential_energy()
    assert model.training
    assert model.forces
    assert model.dtype == torch.float64
    with torch.inference_mode():
        atoms.rattle(0.01)
        assert np.isfinite(atoms.get_forces()).all()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")  # as users have, for whom the compiler writes other code than for one
def test_compiled_step_is_that_of_eager(monkeypatch):
    """For another number of atoms and edges too, and when the stress is asked for after the forces."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks cannot be traced
    torch._dynamo.reset()
    model = potential()
    for atoms in (ethanol(), silicon()):
        results = []
        for calculator in (PygEquivariantCalculator(model), PygEquivariantCalculator(model, compile=True)):
            atoms.calc = calculator
            results.append([atoms.get_potential_energy(), atoms.get_forces()])
            if atoms.pbc.any():
                results[-1].append(atoms.get_stress())
        for eager, compiled in zip(*results, strict=True):
            assert compiled == pytest.approx(eager, abs=1e-9)


def test_one_atom_and_far_fragments():
    atoms = Atoms("O")
    atoms.calc = PygEquivariantCalculator(potential())
    np.testing.assert_array_equal(atoms.get_forces(), 0)
    pair = Atoms("OO", [[0, 0, 0], [50, 0, 0]])
    pair.calc = PygEquivariantCalculator(potential())
    assert pair.get_potential_energy() == pytest.approx(2 * atoms.get_potential_energy(), abs=1e-9)
