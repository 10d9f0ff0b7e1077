import builtins

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

from pyg_equivariant import reference
from pyg_equivariant.reference import XTB, label, sample_dynamics, thermalize

pytest.importorskip("tblite", reason="reference labels need tblite")


def shaken(name="CH3OH", seed=0):
    atoms = molecule(name)
    atoms.rattle(0.05, seed=seed)
    return atoms


def test_units_are_those_of_ase():
    # GFN2-xTB's energy of water, in Hartree, from the documentation of tblite
    (water,), _ = label([molecule("H2O")], progress=False)
    assert water.get_potential_energy() / units.Hartree == pytest.approx(-5.0701, abs=2e-4)
    assert np.linalg.norm(water.get_dipole_moment()) / units.Debye == pytest.approx(2.28, abs=0.05)
    assert water.get_charges().sum() == pytest.approx(0, abs=1e-9)


def test_forces_and_stress_are_derivatives():
    atoms = shaken()
    atoms.calc = XTB()
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-3), atol=2e-4)
    crystal = bulk("Si")
    crystal.rattle(0.05, seed=0)
    (labelled,), _ = label([crystal], progress=False)
    crystal.calc = XTB()
    np.testing.assert_allclose(labelled.get_stress(), calculate_numerical_stress(crystal, eps=1e-4), atol=1e-5)


def test_a_label_does_not_depend_on_its_neighbours():
    frames = [shaken(seed=i) for i in range(4)]
    forward, failures = label(frames, progress=False)
    backward, _ = label(frames[::-1], progress=False)
    assert not failures
    for one, other in zip(forward, backward[::-1], strict=True):
        assert one.get_potential_energy() == other.get_potential_energy()
        np.testing.assert_array_equal(one.get_forces(), other.get_forces())


def test_what_cannot_be_labelled_is_told():
    frames = [molecule("H2O"), Atoms("OO", np.zeros((2, 3))), Atoms("Lr"), molecule("CH4")]
    labelled, failures = label(frames, progress=False)
    assert [atoms.get_chemical_formula() for atoms in labelled] == ["H2O", "CH4"]
    assert [failure.frame for failure in failures] == [1, 2]
    assert failures[0].reason == "frame 1 (O2): Too close interatomic distances found"
    assert "Z >86" in failures[1].reason


def test_frames_are_not_changed():
    atoms = shaken()
    before = atoms.copy()
    label([atoms], progress=False)
    assert atoms == before
    assert atoms.calc is None


def test_total_charge():
    neutral, cation, same = molecule("H2O"), molecule("H2O"), molecule("H2O")
    cation.info["charge"] = 1
    same.set_initial_charges([1, 0, 0])
    labelled, _ = label([neutral, cation, same], progress=False)
    energies = [atoms.get_potential_energy() for atoms in labelled]
    assert 5 < energies[1] - energies[0] < 20  # an ionisation energy
    assert energies[1] == energies[2]
    neutral.calc = XTB()
    neutral.get_potential_energy()
    neutral.info["charge"] = 1  # ASE itself would not notice
    assert neutral.get_potential_energy() == pytest.approx(energies[1], abs=1e-5)


def test_a_failed_cycle_is_started_again(monkeypatch):
    exact = label([shaken()], progress=False)[0][0]
    monkeypatch.setattr(reference, "_ATTEMPTS", ({"max_iterations": 2}, {"max_iterations": 3}, {}))
    (labelled,), failures = label([shaken()], progress=False)
    assert not failures
    np.testing.assert_allclose(labelled.get_forces(), exact.get_forces(), atol=1e-6)
    monkeypatch.setattr(reference, "_ATTEMPTS", ({"max_iterations": 2}, {"max_iterations": 3}))
    nothing, failures = label([shaken()], progress=False)
    assert nothing == []
    assert "SCF not converged in 3 cycles (2 attempts)" in failures[0].reason
    atoms = shaken()
    atoms.calc = XTB()
    with pytest.raises(CalculationFailed):
        atoms.get_forces()


def test_an_attempt_forgets_the_molecule_it_last_helped_with(monkeypatch):
    monkeypatch.setattr(reference, "_ATTEMPTS", ({"max_iterations": 2}, {}))
    calculator = XTB()
    for atoms in (molecule("H2O"), molecule("CH4"), molecule("H2O")):
        atoms.calc = calculator
        energy = atoms.get_potential_energy()
        assert energy == pytest.approx(label([atoms], progress=False)[0][0].get_potential_energy(), abs=1e-6)


def test_nothing_is_printed(capfd):
    label([molecule("H2O"), Atoms("OO", np.zeros((2, 3)))], progress=False)
    assert capfd.readouterr() == ("", "")


def test_without_tblite_one_sentence(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("tblite"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'pyg_equivariant\[xtb\]'"):
        label([molecule("H2O")], progress=False)


def test_unknown_method():
    with pytest.raises(ValueError, match="unknown method 'B3LYP': use one of GFN2-xTB"):
        label([], "B3LYP")


def test_thermalize():
    atoms = bulk("Cu") * (12, 12, 12)
    thermalize(atoms, 400.0, np.random.default_rng(0))
    assert atoms.get_temperature() == pytest.approx(400, rel=0.03)
    np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), 0, atol=1e-9)


def test_sample_dynamics():
    options = {"temperatures": (300.0, 600.0), "interval": 5.0, "equilibration": 20.0, "progress": False}
    frames, failures = sample_dynamics([molecule("H2O"), molecule("H2O")], 10, **options)
    assert not failures
    assert [atoms.info["walker"] for atoms in frames] == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    assert [atoms.info["temperature"] for atoms in frames[::3]] == [300, 600, 300, 600]
    assert frames[0].info["time"] == 25.0
    assert frames[1].info["time"] == 30.0
    for atoms in frames:
        np.testing.assert_allclose(atoms.get_center_of_mass(), 0, atol=1e-6)
        np.testing.assert_array_equal(atoms.positions, atoms.positions.round(6))
    again, _ = sample_dynamics([molecule("H2O"), molecule("H2O")], 10, **options)
    assert all(one == other for one, other in zip(frames, again, strict=True))
    other, _ = sample_dynamics(molecule("H2O"), 2, seed=1, **options)
    assert other[0] != frames[0]
    relabelled, _ = label(frames, progress=False)
    for one, same in zip(frames, relabelled, strict=True):
        np.testing.assert_array_equal(one.get_forces(), same.get_forces())


def test_sampling_reaches_the_temperature():
    frames, _ = sample_dynamics(molecule("H2O"), 150, interval=10.0, progress=False)
    excess = np.array([atoms.get_potential_energy() for atoms in frames])
    minimum = -137.9678  # eV, relaxed with GFN2-xTB
    # three vibrations hold (3/2) kT of potential energy, where they are harmonic
    assert excess.mean() - minimum == pytest.approx(1.5 * units.kB * 500, rel=0.25)


def test_a_walker_that_fails_is_told(monkeypatch):
    calls = iter(range(1000))
    real = XTB.calculate

    def brittle(self, *args, **kwargs):
        if next(calls) == 60:
            raise CalculationFailed("SCF not converged in 250 cycles")
        real(self, *args, **kwargs)

    monkeypatch.setattr(XTB, "calculate", brittle)
    options = {"interval": 5.0, "equilibration": 5.0, "progress": False}
    frames, failures = sample_dynamics([molecule("H2O"), molecule("H2O")], 16, **options)
    assert failures == [(0, "walker 0 at 500 K stopped after 4 of 8 frames: SCF not converged in 250 cycles")]
    assert len(frames) == 12


WRONG = [{"temperatures": (0.0,)}, {"interval": 0.0}, {"timestep": -1.0}, {"temperatures": ()}]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments(wrong):
    with pytest.raises(ValueError, match="reference dynamics"):
        sample_dynamics(molecule("H2O"), 2, progress=False, **wrong)
