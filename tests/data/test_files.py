import ase.db
import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from rdkit import Chem

from pyg_equivariant.data import FilesDataset, FlatDataset, from_smiles, read_file, to_rdkit

KCAL = units.kcal / units.mol


def labelled(atoms: Atoms, energy: float = -1.5, **results) -> Atoms:
    results.setdefault("forces", np.arange(3.0 * len(atoms)).reshape(-1, 3))
    atoms.calc = SinglePointCalculator(atoms, energy=energy, **results)
    return atoms


def waters(count: int = 3) -> list[Atoms]:
    return [labelled(molecule("H2O"), float(i)) for i in range(count)]


def write(path, frames) -> str:
    ase.io.write(path, frames)
    return str(path)


# Formats


@pytest.mark.parametrize("name", ["a.xyz", "a.extxyz", "a.traj", "a.db", "a.json"])
def test_what_ase_reads(tmp_path, name):
    frames = [labelled(bulk("Cu", cubic=True), float(i), stress=np.arange(6.0)) for i in range(3)]
    graphs = read_file(write(tmp_path / name, frames), labels=("energy", "forces", "stress"))
    assert [data.energy.item() for data in graphs] == [0.0, 1.0, 2.0]
    for data, atoms in zip(graphs, frames, strict=True):
        np.testing.assert_allclose(data.pos, atoms.positions, atol=1e-8)
        np.testing.assert_allclose(data.forces, atoms.get_forces(), atol=1e-8)
        np.testing.assert_allclose(data.stress[0, 1, 2], 3.0)
        np.testing.assert_allclose(data.cell[0], atoms.cell)


def test_labels_under_other_names_in_extxyz(tmp_path):
    atoms = molecule("H2O")
    atoms.info["REF_energy"] = -3.0
    atoms.arrays["my_forces"] = np.ones((3, 3))
    path = write(tmp_path / "a.xyz", atoms)
    (data,) = read_file(path, keys={"forces": "my_forces"}, units={"energy": "kcal/mol"})
    assert data.energy.item() == pytest.approx(-3 * KCAL)
    assert data.forces[0, 0].item() == pytest.approx(KCAL)


@pytest.mark.parametrize(
    ("index", "energies"),
    [(":", [0, 1, 2, 3, 4]), (1, [1]), ("-1", [4]), ("-2:", [3, 4]), ("::2", [0, 2, 4]), (slice(1, 3), [1, 2])],
)
@pytest.mark.parametrize("name", ["a.xyz", "a.db", "a.npz"])
def test_index(tmp_path, name, index, energies):
    frames = waters(5)
    if name == "a.npz":
        arrays = {"R": np.stack([a.positions for a in frames]), "E": np.arange(5.0), "e_unit": "eV"}
        np.savez(tmp_path / name, z=frames[0].numbers, **arrays)
    else:
        write(tmp_path / name, frames)
    assert [data.energy.item() for data in read_file(tmp_path / name, index=index)] == energies


def test_database_columns_and_units(tmp_path):
    with ase.db.connect(tmp_path / "a.db") as database:
        for i in range(2):
            atoms = molecule("H2O")
            database.write(
                atoms, key_value_pairs={"gap": 0.5 + i}, data={"energy": [float(i)], "forces": np.ones((3, 3))}
            )
    keys = {"gap": "gap"}
    graphs = read_file(tmp_path / "a.db", labels=("energy", "forces", "gap"), keys=keys)
    assert [data.energy.item() for data in graphs] == [0.0, 1.0]
    assert [data.gap.tolist() for data in graphs] == [[0.5], [1.5]]
    with ase.db.connect(tmp_path / "a.db") as database:
        database.metadata = {
            "_distance_unit": "Bohr",
            "_property_unit_dict": {"energy": "Hartree", "forces": "Hartree/Bohr"},
        }
    data = read_file(tmp_path / "a.db")[1]
    assert data.energy.item() == pytest.approx(units.Hartree)
    assert data.forces[0, 0].item() == pytest.approx(units.Hartree / units.Bohr)
    np.testing.assert_allclose(data.pos, molecule("H2O").positions * units.Bohr)
    assert read_file(tmp_path / "a.db", units={"energy": "meV"})[1].energy.item() == pytest.approx(1e-3)


def write_sdf(path, smiles=("CCO", "C[NH3+]", "F/C=C/F")) -> None:
    with Chem.SDWriter(str(path)) as writer:
        for i, text in enumerate(smiles):
            mol = to_rdkit(from_smiles(text)[0])
            mol.SetProp("energy", str(-1.5 - i))
            mol.SetProp("dipole", "")
            writer.write(mol)


def test_sdf(tmp_path):
    write_sdf(tmp_path / "a.sdf")
    graphs = read_file(tmp_path / "a.sdf", labels=("energy",), units={"energy": "Hartree"})
    assert [data.smiles for data in graphs] == ["CCO", "C[NH3+]", "F/C=C/F"]
    assert [data.total_charge.item() for data in graphs] == [0, 1, 0]
    assert [data.energy.item() for data in graphs] == pytest.approx(
        [-1.5 * units.Hartree, -2.5 * units.Hartree, -3.5 * units.Hartree]
    )
    np.testing.assert_allclose(graphs[0].pos, from_smiles("CCO")[0].pos, atol=1e-4)
    (last,) = read_file(tmp_path / "a.sdf", index=-1, labels=())
    assert last.smiles == "F/C=C/F"


def test_bad_molecule_in_sdf(tmp_path, capfd):
    write_sdf(tmp_path / "a.sdf")
    text = (tmp_path / "a.sdf").read_text()
    broken = text.replace("    1.0", "    1.0", 1).split("$$$$\n")
    broken[1] = (
        "\n".join(line[:6] + "  4" + line[9:] if len(line.split()) == 4 else line for line in broken[1].splitlines())
        + "\n"
    )
    (tmp_path / "b.sdf").write_text("$$$$\n".join(broken))
    with pytest.raises(ValueError, match=r"b\.sdf, frame 1: .+") as error:
        read_file(tmp_path / "b.sdf", labels=())
    assert "\n" not in str(error.value)
    assert len(read_file(tmp_path / "b.sdf", index=0, labels=())) == 1
    with Chem.SDWriter(str(tmp_path / "c.sdf")) as writer:
        writer.write(Chem.RemoveHs(to_rdkit(from_smiles("CCO")[0])))
    with pytest.raises(ValueError, match=r"c\.sdf, frame 0: the molecule lacks 6 hydrogens"):
        read_file(tmp_path / "c.sdf", labels=())
    assert capfd.readouterr().err == ""


def test_npz_of_rmd17_is_in_kcal_mol(tmp_path):
    water = molecule("H2O")
    pos = np.stack([water.positions, water.positions + 1])
    arrays = {
        "coords": pos,
        "energies": np.array([1.0, 2.0]),
        "forces": np.ones((2, 3, 3)),
        "old_indices": np.arange(2),
    }
    np.savez(tmp_path / "a.npz", nuclear_charges=water.numbers.astype(np.uint8), **arrays)
    graphs = read_file(tmp_path / "a.npz", labels=("energy", "forces"))
    assert [data.energy.item() for data in graphs] == pytest.approx([KCAL, 2 * KCAL])
    assert graphs[1].forces[0, 0].item() == pytest.approx(KCAL)
    np.testing.assert_array_equal(graphs[1].pos, pos[1])
    assert graphs[0].z.tolist() == [8, 1, 1]
    assert read_file(tmp_path / "a.npz", units={"energy": "eV"})[0].energy.item() == 1.0


def test_npz_of_sgdml_says_its_units(tmp_path):
    water = molecule("H2O")
    arrays = {"R": water.positions[None] / units.Bohr, "E": np.array([[1.0]]), "F": np.ones((1, 3, 3))}
    lattice = np.array([[9.0, 1.0, 0.0], [0.0, 9.0, 2.0], [0.0, 0.0, 9.0]])
    np.savez(
        tmp_path / "a.npz", z=water.numbers, r_unit="Bohr", e_unit="Hartree", lattice=lattice, theory="none", **arrays
    )
    (data,) = read_file(tmp_path / "a.npz")
    np.testing.assert_allclose(data.pos, water.positions)
    np.testing.assert_allclose(data.cell[0], lattice.T * units.Bohr)
    assert data.energy.tolist() == pytest.approx([units.Hartree])
    assert data.forces[0, 0].item() == pytest.approx(units.Hartree / units.Bohr)
    np.savez(tmp_path / "b.npz", z=water.numbers, r_unit="parsec", **arrays)
    with pytest.raises(ValueError, match=r"b\.npz: unknown unit of length 'parsec'"):
        read_file(tmp_path / "b.npz")


def test_npz_with_other_arrays(tmp_path):
    water = molecule("H2O")
    arrays = {"R": np.stack([water.positions] * 2), "E": np.zeros(2), "U": np.ones(2), "q": np.full((2, 3), 0.5)}
    np.savez(tmp_path / "a.npz", z=water.numbers, **arrays)
    data = read_file(tmp_path / "a.npz", keys={"energy": "U", "charges": "q"}, units={"energy": "eV"})[1]
    assert data.energy.tolist() == [1.0]
    assert data.charges.tolist() == [0.5] * 3


# Errors, each naming file and frame


def test_missing_and_nan_labels(tmp_path):
    frames = waters()
    frames[1].calc = None
    path = write(tmp_path / "a.xyz", frames)
    with pytest.raises(ValueError, match=r"a\.xyz, frame 1: there is no energy"):
        read_file(path, labels=["energy"])
    assert ["energy" in data for data in read_file(path)] == [True, False, True]
    frames = waters()
    frames[2].calc.results["forces"][1, 0] = np.nan
    path = write(tmp_path / "b.xyz", frames)
    with pytest.raises(ValueError, match=r"b\.xyz, frame 2: forces is NaN or infinite"):
        FilesDataset(path)
    with pytest.raises(ValueError, match=r"b\.xyz, frame 2: forces is NaN or infinite"):
        read_file(path)
    assert len(FilesDataset(path, labels=["energy"])) == len(read_file(path, labels=())) == 3
    with pytest.raises(ValueError, match=r"b\.xyz, frame 0: there is no stress, only forces, energy"):
        FilesDataset(path, labels=["stress"])


def test_unknown_unit(tmp_path):
    with pytest.raises(ValueError, match=r"a\.xyz, frame 0: unknown unit of energy 'cal'"):
        read_file(write(tmp_path / "a.xyz", waters()), units={"energy": "cal"})


def test_mixed_periodicity(tmp_path):
    frames = [*waters(2), labelled(bulk("Cu"))]
    with pytest.raises(ValueError, match=r"a\.xyz, frame 2 is periodic, but .*a\.xyz, frame 0 is not periodic"):
        read_file(write(tmp_path / "a.xyz", frames))
    paths = [write(tmp_path / "b.xyz", labelled(bulk("Cu"))), write(tmp_path / "c.xyz", waters(1))]
    with pytest.raises(ValueError, match=r"c\.xyz, frame 0 is not periodic, but .*b\.xyz, frame 0 is periodic"):
        FilesDataset(paths)
    slab = bulk("Cu", cubic=True)
    slab.pbc = [True, True, False]
    assert len(read_file(write(tmp_path / "d.xyz", [bulk("Cu"), slab]))) == 2


@pytest.mark.parametrize("n", [3, 2500])
def test_overlapping_atoms(tmp_path, n):
    pos = 2.0 * np.stack(np.unravel_index(np.arange(n), (14, 14, 14)), 1)
    pos[-1] = pos[1] + [0, 0, 0.05]
    path = write(tmp_path / "a.xyz", [*waters(1), Atoms(f"H{n}", pos)])
    with pytest.raises(ValueError, match=rf"a\.xyz, frame 1: atoms 1 and {n - 1} are 0\.050 Å apart, less than 0\.2 Å"):
        read_file(path)
    assert len(read_file(path, min_distance=0.04)) == len(read_file(path, min_distance=0.0)) == 2


@pytest.mark.parametrize("n", [2, 2500])
def test_overlapping_images(tmp_path, n):
    pos = 2.0 * np.stack(np.unravel_index(np.arange(n), (14, 14, 14)), 1)
    cell = np.array([[28.0, 0, 0], [-28.0, 28.0, 0], [56.0, -28.0, 28.0]])  # 14³ sites, sheared
    pos[-1] = pos[0] + cell[2] - 2 * cell[0] + [0, 0.1, 0]
    crystal = Atoms(f"H{n}", pos, cell=cell, pbc=True)
    with pytest.raises(ValueError, match=rf"frame 0: atoms 0 and {n - 1} are 0\.100 Å apart"):
        read_file(write(tmp_path / "a.xyz", crystal))
    crystal.pbc = [False, True, True]
    assert len(read_file(write(tmp_path / "b.xyz", crystal))) == 1


def test_overlap_with_ones_own_image(tmp_path):
    with pytest.raises(ValueError, match=r"atom 0 and its periodic image are 0\.150 Å apart"):
        read_file(write(tmp_path / "a.xyz", Atoms("H", cell=[5, 5, 0.15], pbc=True)))


@pytest.mark.parametrize(
    ("cell", "pbc", "message"),
    [
        ([0, 0, 0], True, "it is periodic along a, but that cell vector is zero"),
        ([5, 0, 5], [False, True, True], "it is periodic along b, but that cell vector is zero"),
        ([[5, 0, 0], [5, 0, 0], [0, 0, 5]], True, "the cell is singular"),
        ([[5, 5, 0], [0, 5, 5], [5, 10, 5]], True, "the cell is singular"),
        ([[5, 5, 0], [0, 0, 0], [10, 10, 0]], [True, False, True], "the cell is singular"),
        ([5, 5, np.nan], True, "cell is NaN or infinite"),
    ],
)
def test_impossible_cells(tmp_path, cell, pbc, message):
    with pytest.raises(ValueError, match=rf"a\.traj, frame 0: {message}"):
        read_file(write(tmp_path / "a.traj", Atoms("H", cell=cell, pbc=pbc)))


def test_impossible_structures(tmp_path):
    atoms = molecule("H2O")
    atoms.positions[1, 1] = np.inf
    with pytest.raises(ValueError, match=r"a\.traj, frame 0: pos is NaN or infinite"):
        read_file(write(tmp_path / "a.traj", atoms))
    with pytest.raises(ValueError, match=r"b\.traj, frame 0: there are no atoms"):
        read_file(write(tmp_path / "b.traj", Atoms()))
    with pytest.raises(ValueError, match=r"c\.xyz, frame 0: atom 0 has atomic number 0"):
        read_file(write(tmp_path / "c.xyz", Atoms("X")))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.xyz"):
        read_file(tmp_path / "none.xyz")
    with pytest.raises(ValueError, match="is a folder"):
        read_file(tmp_path)
    with pytest.raises(ValueError, match="no file was given"):
        FilesDataset([])
    for name in ("a.xyz", "a.db", "a.npz", "a.cif", "a.unknown"):
        (tmp_path / name).write_text("2\nnonsense\nH 0 0\n")
        with pytest.raises(ValueError, match=rf"{name}") as error:
            read_file(tmp_path / name)
        assert "\n" not in str(error.value)
    write(tmp_path / "b.xyz", waters())
    with (tmp_path / "b.xyz").open("a") as file:
        file.write("3\n\nH 0 0 0\nH 0 0\n")
    with pytest.raises(ValueError, match=r"b\.xyz, frame \d cannot be read by ASE"):
        read_file(tmp_path / "b.xyz")
    np.savez(tmp_path / "b.npz", z=[1], E=[0.0])
    with pytest.raises(ValueError, match=r"b\.npz: there is no array coords or R"):
        read_file(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", z=[1], R=np.zeros((2, 4, 3)))
    with pytest.raises(ValueError, match=r"c\.npz: the positions have shape \[2, 4, 3\], expected \[frames, 1, 3\]"):
        read_file(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", z=np.array([1]), R=np.array([[[{}]]]))
    with pytest.raises(ValueError, match=r"d\.npz: .*allow_pickle"):
        read_file(tmp_path / "d.npz")


def test_frames_that_are_not_there(tmp_path):
    path = write(tmp_path / "a.xyz", waters())
    with pytest.raises(ValueError, match="holds no frame 5:"):
        read_file(path, index="5:")
    with pytest.raises(ValueError, match=r"a\.xyz holds no frame 9"):
        read_file(path, index=9)
    with pytest.raises(ValueError, match="'last' chooses no frames"):
        read_file(path, index="last")
    write(tmp_path / "a.db", waters())
    with pytest.raises(ValueError, match="has no frame 9, but 3 frames"):
        read_file(tmp_path / "a.db", index=9)


# The dataset


def test_dataset_of_several_files(tmp_path):
    first = waters(2)
    first[0].info["smiles"] = "O"
    paths = [write(tmp_path / "a.xyz", first), tmp_path / "b.traj"]
    write(paths[1], [labelled(molecule("CH4"), 7.0)])
    dataset = FilesDataset(paths)
    assert isinstance(dataset, FlatDataset)
    assert set(dataset.fields) == {"z", "pos", "total_charge", "energy", "forces"}
    assert dataset.column("energy").tolist() == [0.0, 1.0, 7.0]
    assert dataset.num_atoms.tolist() == [3, 3, 5]
    assert dataset[1:].elements == [1, 6, 8]
    batch = dataset.__getitems__([2, 0])
    assert batch.energy.tolist() == [7.0, 0.0]
    assert dataset[2].forces.shape == (5, 3)


def test_dataset_of_molecules(tmp_path):
    write_sdf(tmp_path / "a.sdf")
    dataset = FilesDataset(tmp_path / "a.sdf", labels=["energy"])
    assert [Chem.MolToSmiles(Chem.RemoveHs(mol)) for mol in to_rdkit(dataset.to_batch())] == [
        "CCO",
        "C[NH3+]",
        "F/C=C/F",
    ]


# Real data


def test_silicon(real_data):
    path = real_data / "silicon_test.xyz"
    dataset = FilesDataset(path, labels=["energy", "forces", "stress"])
    frames = ase.io.read(path, ":")
    assert len(dataset) == len(frames) == 25
    for data, atoms in zip(dataset, frames, strict=True):
        assert data.energy.item() == atoms.get_potential_energy()
        np.testing.assert_array_equal(data.stress[0], atoms.get_stress(voigt=False))
        np.testing.assert_array_equal(data.cell[0], atoms.cell)


def test_water(real_data):
    graphs = read_file(real_data / "water64_pbe0ts.xyz", index="::20", labels=["energy", "forces"])
    assert len(graphs) == 7
    assert all(data.pbc.all() and len(data.z) == 192 for data in graphs)
    with pytest.raises(ValueError, match=r"water64_pbe0ts\.xyz, frame 0: there is no stress"):
        FilesDataset(real_data / "water64_pbe0ts.xyz", labels=["stress"])


def test_small_molecules(real_data):
    dataset = FilesDataset(real_data / "small_mols_test.xyz", index=":100", labels=["energy", "forces", "dipole"])
    assert dataset.column("dipole").shape == (100, 3)
    for data in dataset:
        mol = Chem.AddHs(Chem.MolFromSmiles(data.smiles))
        assert sorted(a.GetAtomicNum() for a in mol.GetAtoms()) == sorted(data.z.tolist())


def test_3bpa_and_rmd17(real_data):
    assert len(FilesDataset([real_data / "3bpa_train_300K.xyz", real_data / "acac_train_300K.xyz"], index=":20")) == 40
    graphs = read_file(real_data / "rmd17" / "rmd17_ethanol.npz", index=":10", labels=["energy", "forces"])
    with np.load(real_data / "rmd17" / "rmd17_ethanol.npz") as file:
        np.testing.assert_allclose([d.energy.item() for d in graphs], file["energies"][:10] * KCAL, rtol=1e-15)
        np.testing.assert_allclose(torch.stack([d.forces for d in graphs]), file["forces"][:10] * KCAL)
    assert -4300 < graphs[0].energy.item() < -4100
