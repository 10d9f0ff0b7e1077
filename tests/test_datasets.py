import hashlib
import re
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from pyg_equivariant.data import FilesDataset, md17, to_ase

FOLDER = Path(__file__).parents[1] / "datasets"
ETHANOL = FOLDER / "ethanol_gfn2.npz"


def checksums():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    return {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (\S+)$", text, re.MULTILINE)}


def sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dihedrals(pos):
    """C-C-O-H of ``[..., 9, 3]`` in degrees, 0 to 360."""
    return np.array([Atoms("C2OH6", one).get_dihedral(0, 1, 2, 8) for one in pos])


@pytest.fixture(scope="module")
def ethanol():
    with np.load(ETHANOL, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def test_checksums():
    assert sha256(ETHANOL) == checksums()["ethanol_gfn2.npz"]
    assert checksums()["rmd17.tar.bz2"] == md17._REVISED_SHA256


def test_checksums_of_qm9pack():
    spec = find_spec("qm9pack")
    if spec is None:
        pytest.skip("qm9pack is not installed: pip install 'pyg_equivariant[qm9]'")
    names = [name for name in checksums() if name.startswith("qm9_")]
    assert len(names) == 4
    for name in names:
        assert sha256(Path(spec.submodule_search_locations[0]) / "data" / name) == checksums()[name]


def test_every_file_of_the_folder_is_small():
    for path in FOLDER.iterdir():
        assert path.is_dir() or path.stat().st_size < 1_000_000, f"{path.name} is too large for the repository"


def test_what_the_readme_says_of_ethanol(ethanol):
    assert ethanol["z"].tolist() == [6, 6, 8, 1, 1, 1, 1, 1, 1]
    assert ethanol["E"].shape == (2000,)
    assert ethanol["E"].dtype == np.float64
    assert 1000 * ethanol["E"].std() == pytest.approx(140, abs=0.5)
    assert 1000 * ethanol["F"].astype(float).std() == pytest.approx(997, abs=0.5)
    np.testing.assert_allclose(ethanol["F"].sum(axis=1), 0, atol=1e-5)
    assert np.bincount(ethanol["walker"]).tolist() == [250] * 8
    np.testing.assert_allclose(np.diff(ethanol["time"].reshape(8, 250)), 50)
    trans = abs(dihedrals(ethanol["R"]) - 180) < 60
    assert 0.1 < trans.mean() < 0.4  # one minimum of three, and not the deepest
    assert all(0 < part.mean() < 1 for part in trans.reshape(8, 250))


def test_the_reader_reads_it(ethanol):
    dataset = FilesDataset(ETHANOL, labels=("energy", "forces", "dipole"))
    assert len(dataset) == 2000
    data = dataset[1234]
    np.testing.assert_array_equal(data.z, ethanol["z"])
    np.testing.assert_array_equal(data.energy, ethanol["E"][[1234]])
    np.testing.assert_array_equal(data.forces, ethanol["F"][1234].astype(float))
    np.testing.assert_array_equal(data.dipole, ethanol["dipole"][[1234]].astype(float))


def test_labels_are_those_of_gfn2():
    pytest.importorskip("tblite", reason="the labels are recomputed with tblite")
    from pyg_equivariant.reference import label

    frames = [to_ase(data) for data in FilesDataset(ETHANOL, index="::100", labels=("energy", "forces", "dipole"))]
    labelled, failures = label(frames, progress=False)
    assert not failures
    assert len(labelled) == 20
    for atoms, again in zip(frames, labelled, strict=True):
        assert again.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
        np.testing.assert_allclose(again.get_forces(), atoms.get_forces(), atol=2e-5)
        np.testing.assert_allclose(again.get_dipole_moment(), atoms.get_dipole_moment(), atol=2e-5)


def test_the_script_makes_it(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tblite", reason="the script labels with tblite")
    out = tmp_path / "small.npz"
    monkeypatch.setattr(sys, "argv", ["make_ethanol.py", "--frames", "2", "--walkers", "2", "-o", str(out)])
    runpy.run_path(str(FOLDER / "make_ethanol.py"), run_name="__main__")
    assert sha256(out) in capsys.readouterr().out
    with np.load(out) as file:
        assert file["walker"].tolist() == [0, 1]
        assert file["time"].tolist() == [550, 550]
        assert file["F"].shape == (2, 9, 3)


def test_starts_are_of_both_conformers():
    conformers = runpy.run_path(str(FOLDER / "make_ethanol.py"))["conformers"]
    angles = dihedrals([atoms.positions for atoms in conformers(4)])
    assert (abs(angles - 180) < 20).tolist() == [True, False, True, False]
