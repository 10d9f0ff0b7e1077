import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from torch_geometric.data import Batch, Data

from pyg_equivariant.data import FlatDataset, from_ase, to_ase
from pyg_equivariant.data.atoms import unit_factors

FORCES = np.arange(9.0).reshape(3, 3)
VOIGT = np.array([0.1, 0.2, 0.3, 0.04, 0.05, 0.06])
FULL = np.array([[0.1, 0.06, 0.05], [0.06, 0.2, 0.04], [0.05, 0.04, 0.3]])


def water(info=None, arrays=None, cell=None, **results) -> Atoms:
    atoms = molecule("H2O", cell=cell, pbc=cell is not None)
    atoms.info.update(info or {})
    for name, value in (arrays or {}).items():
        atoms.arrays[name] = value
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def test_structure():
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    data = from_ase(atoms)
    assert set(data.keys()) == {"z", "pos", "cell", "pbc", "total_charge"}
    assert data.z.tolist() == [11, 17]
    assert data.pos.dtype == data.cell.dtype == torch.float64
    np.testing.assert_array_equal(data.cell[0], atoms.cell)
    assert data.pbc.tolist() == [[True] * 3]
    data.pos += 1.0
    np.testing.assert_array_equal(atoms.positions, bulk("NaCl", "rocksalt", a=5.64).positions)


def test_box_of_a_molecule_is_no_cell():
    assert set(from_ase(Atoms("H", cell=[9, 9, 9])).keys()) == {"z", "pos", "total_charge"}


@pytest.mark.parametrize("pbc", [(True, False, False), (True, True, False), (False, False, True)])
def test_mixed_periodicity_round_trip(pbc):
    atoms = Atoms("Cu2", [[0, 0, 0], [1, 2, 3]], cell=np.diag(np.where(pbc, 4.0, 0.0)), pbc=pbc)
    back = to_ase(from_ase(atoms))
    assert back.pbc.tolist() == list(pbc)
    np.testing.assert_array_equal(back.cell, atoms.cell)


def test_labels_of_a_single_point():
    charges = np.array([-0.8, 0.4, 0.4])
    atoms = water(cell=[5, 5, 5], energy=-1.5, forces=FORCES, stress=VOIGT, dipole=[1.0, 2.0, 3.0], charges=charges)
    data = from_ase(atoms)
    assert data.energy.tolist() == [-1.5]
    np.testing.assert_array_equal(data.forces, FORCES)
    np.testing.assert_array_equal(data.stress, FULL[None])
    assert data.dipole.tolist() == [[1.0, 2.0, 3.0]]
    np.testing.assert_array_equal(data.charges, charges)
    for name in ("energy", "forces", "stress", "dipole", "charges"):
        assert data[name].dtype == torch.float64

    back = to_ase(data)
    assert back.get_potential_energy() == -1.5
    np.testing.assert_array_equal(back.get_forces(), FORCES)
    np.testing.assert_allclose(back.get_stress(), VOIGT)
    np.testing.assert_array_equal(back.get_dipole_moment(), [1, 2, 3])
    np.testing.assert_array_equal(back.get_charges(), charges)


@pytest.mark.parametrize(
    "energy", ["energy", "Energy", "REF_energy", "dft_energy", "DFT_Energy", "total_energy", "qm_energy"]
)
@pytest.mark.parametrize("forces", ["forces", "force", "REF_forces", "dft_force"])
def test_usual_names(energy, forces):
    data = from_ase(water({energy: -1.5}, {forces: FORCES}))
    assert data.energy.tolist() == [-1.5]
    np.testing.assert_array_equal(data.forces, FORCES)


@pytest.mark.parametrize("value", [VOIGT, FULL, FULL.ravel(), FULL[None]])
def test_stress_in_all_its_shapes(value):
    np.testing.assert_array_equal(from_ase(water({"REF_stress": value}, cell=[5, 5, 5])).stress, FULL[None])


@pytest.mark.parametrize("name", ["virial", "dft_virial", "REF_virials"])
def test_virial(name):
    data = from_ase(water({name: -8.0 * FULL}, cell=[2, 2, 2]))
    torch.testing.assert_close(data.stress, torch.tensor(FULL)[None])
    with pytest.raises(ValueError, match="no cell to make a stress"):
        from_ase(water({name: FULL}))


def test_sign_of_the_stress_is_ase_s():
    copper = bulk("Cu", a=3.8)  # stretched, so in tension
    copper.calc = EMT()
    copper.get_stress()
    assert from_ase(copper).stress[0].diagonal().min() > 0


def test_names_of_ones_own():
    info = {"E": -1.5, "W": -8.0 * FULL, "gap": 2.0, "modes": [1.0, 2.0, 3.0], "energy": 7.0}
    keys = {"energy": "E", "virial": "W", "gap": "gap", "modes": "modes", "spin": "s"}
    data = from_ase(water(info, {"s": np.ones(3)}, cell=[2, 2, 2]), keys=keys)
    assert data.energy.tolist() == [-1.5]  # not 7
    torch.testing.assert_close(data.stress, torch.tensor(FULL)[None])
    assert data.gap.tolist() == [2.0]
    assert data.modes.tolist() == [[1.0, 2.0, 3.0]]
    assert data.spin.tolist() == [1.0] * 3
    assert (
        from_ase(water({"free": 1.0}, energy=2.0, free_energy=3.0), keys={"energy": "free_energy"}).energy.item() == 3.0
    )


def test_what_is_asked_for_must_be_there():
    atoms = water({"a": 1}, energy=-1.5)
    assert set(from_ase(atoms, labels=("energy",)).keys()) == {"z", "pos", "total_charge", "energy"}
    assert set(from_ase(atoms, labels=()).keys()) == {"z", "pos", "total_charge"}
    with pytest.raises(ValueError, match="there is no forces, only energy, a"):
        from_ase(atoms, labels=("energy", "forces"))
    with pytest.raises(ValueError, match="there is no energy under the name 'E'"):
        from_ase(atoms, keys={"energy": "E"})
    with pytest.raises(ValueError, match="there is no stress under the name 'W'"):
        from_ase(atoms, labels=["stress"], keys={"virial": "W"})
    with pytest.raises(ValueError, match="unknown label 'enrgy'"):
        from_ase(atoms, labels=["enrgy"])


@pytest.mark.parametrize("name", ["index", "surface", "pos", "edge_index", "a b"])
def test_names_that_batching_would_corrupt(name):
    with pytest.raises(ValueError, match=f"'{name}' cannot be the name of a label"):
        from_ase(water({"q": 1.0}), keys={name: "q"})


def test_two_different_energies_are_one_too_many():
    atoms = water({"REF_energy": -2.0}, energy=-1.5)
    with pytest.raises(ValueError, match="calculator 'energy' and info 'REF_energy' hold different values of energy"):
        from_ase(atoms)
    assert from_ase(atoms, keys={"energy": "REF_energy"}).energy.item() == -2.0
    assert "energy" not in from_ase(atoms, labels=())
    assert from_ase(water({"REF_energy": -1.5}, energy=-1.5)).energy.item() == -1.5


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"energy": [1.0, 2.0]}, r"info 'energy' has shape \[2\], but energy has \[1\]"),
        ({"energy": "low"}, "info 'energy' is 'low', not the numbers of energy"),
        ({"stress": [1.0, 2.0]}, "but stress has"),
        ({"forces": np.zeros((2, 3))}, r"has shape \[2, 3\], but forces has \[3, 3\]"),
    ],
)
def test_values_that_are_no_labels(info, message):
    with pytest.raises(ValueError, match=message):
        from_ase(water(info))


def test_results_for_other_positions_are_not_labels():
    atoms = water(energy=-1.5, forces=FORCES)
    atoms.rattle(0.1)
    assert "energy" not in from_ase(atoms)


def test_nothing_is_computed():
    atoms = bulk("Cu")
    atoms.calc = EMT()
    assert "energy" not in from_ase(atoms)
    energy = atoms.get_potential_energy()
    assert from_ase(atoms).energy.item() == energy


def test_constraints_do_not_zero_forces():
    atoms = water(forces=FORCES)
    atoms.set_constraint(FixAtoms([0, 1, 2]))
    np.testing.assert_array_equal(from_ase(atoms).forces, FORCES)


def test_total_charge():
    assert from_ase(water({"charge": -1})).total_charge.tolist() == [-1.0]
    assert from_ase(water({"total_charge": 2.0}), labels=()).total_charge.tolist() == [2.0]
    atoms = water()
    atoms.set_initial_charges([0.5, 0.25, 0.25])
    assert from_ase(atoms).total_charge.tolist() == [1.0]
    assert to_ase(from_ase(water({"charge": -1}))).info == {"charge": -1.0}
    assert from_ase(water(arrays={"charge": np.array([-0.8, 0.4, 0.4])})).charges.tolist() == [-0.8, 0.4, 0.4]


def test_units():
    atoms = water({"energy": 1.0, "dipole": [1.0, 0, 0], "stress": FULL}, {"forces": FORCES}, cell=[2, 2, 2])
    data = from_ase(atoms, units={"energy": "Hartree", "length": "Bohr", "stress": "GPa", "dipole": "Debye"})
    np.testing.assert_allclose(data.pos, atoms.positions * units.Bohr)
    np.testing.assert_allclose(data.cell[0], atoms.cell.array * units.Bohr)
    assert data.energy.item() == pytest.approx(units.Hartree)
    np.testing.assert_allclose(data.forces, FORCES * units.Hartree / units.Bohr)
    np.testing.assert_allclose(data.stress[0], FULL * units.GPa)
    assert data.dipole[0, 0].item() == pytest.approx(units.Debye)
    virial = from_ase(
        water({"virial": -FULL}, cell=[2, 2, 2]), units={"energy": "Hartree", "length": "Bohr", "stress": "GPa"}
    )
    np.testing.assert_allclose(virial.stress[0], FULL / 8 * units.Hartree / units.Bohr**3)


def test_unit_factors():
    assert unit_factors(None) == dict.fromkeys(("energy", "length", "forces", "virial", "stress", "dipole"), 1.0)
    assert unit_factors({"forces": "kcal/mol/Å"})["forces"] == pytest.approx(units.kcal / units.mol)
    assert unit_factors({"stress": "Ha/Bohr^3"})["stress"] == pytest.approx(units.Hartree / units.Bohr**3)
    assert unit_factors({"dipole": "e*Bohr"})["dipole"] == pytest.approx(units.Bohr)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"energy": "joule"}, "unknown unit of energy 'joule'"),
        ({"length": "mile"}, "unknown unit of length 'mile'"),
        ({"forces": "eV"}, "unknown unit of forces 'eV'"),
        ({"forces": "eV/mile"}, "unknown unit of length 'mile'"),
        ({"stress": "eV/Å"}, "unknown unit of stress 'eV/Å'"),
        ({"stress": "kbar"}, "unknown unit of stress 'kbar'"),
        ({"dipole": "C"}, "unknown unit of length 'C'"),
        ({"mass": "kg"}, "no unit can be given for 'mass'"),
    ],
)
def test_unknown_units(wrong, message):
    with pytest.raises(ValueError, match=message):
        from_ase(water(), units=wrong)


def test_impossible_structures():
    with pytest.raises(ValueError, match="atom 1 has atomic number 0"):
        from_ase(Atoms("HX"))
    with pytest.raises(ValueError, match="periodic along b, but that cell vector is zero"):
        from_ase(Atoms("H", cell=[5, 0, 5], pbc=True))


def test_batches():
    frames = [
        water({"smiles": "O", "charge": 1}, cell=[4, 5, 6], energy=-1.5, forces=FORCES, stress=VOIGT),
        water({"smiles": "[OH2]"}, cell=[5, 5, 5], energy=-2.5, forces=2 * FORCES, stress=2 * VOIGT),
    ]
    frames[1].pbc = frames[1].calc.atoms.pbc = [True, False, True]
    graphs = [from_ase(atoms) for atoms in frames]
    for batch in (Batch.from_data_list(graphs), FlatDataset.from_data_list(graphs).to_batch()):
        for back, atoms in zip(to_ase(batch), frames, strict=True):
            np.testing.assert_array_equal(back.positions, atoms.positions)
            np.testing.assert_array_equal(back.cell, atoms.cell)
            np.testing.assert_array_equal(back.pbc, atoms.pbc)
            np.testing.assert_array_equal(back.get_forces(), atoms.get_forces())
            np.testing.assert_allclose(back.get_stress(), atoms.get_stress())
            assert back.get_potential_energy() == atoms.get_potential_energy()
            assert back.info == atoms.info


def test_bare_graph():
    atoms = to_ase(Data(z=torch.tensor([8]), pos=torch.zeros(1, 3)))
    assert atoms.calc is None
    assert atoms.info == {}


def test_extxyz_round_trip(tmp_path):
    graphs = [from_ase(water(cell=[4, 5, 6], energy=-1.5, forces=FORCES, stress=VOIGT))]
    ase.io.write(tmp_path / "a.xyz", [to_ase(data) for data in graphs])
    again = from_ase(ase.io.read(tmp_path / "a.xyz"))
    for name in ("energy", "forces", "stress", "cell", "pbc", "z"):
        torch.testing.assert_close(again[name], graphs[0][name])
