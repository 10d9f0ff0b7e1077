import csv
import hashlib
import io
import tarfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from pyg_equivariant.data import qm9
from pyg_equivariant.data.qm9 import ATOM_REFERENCES, QM9, TARGETS, qm9_split

needs_qm9pack = pytest.mark.skipif(find_spec("qm9pack") is None, reason="needs pip install pyg_equivariant[qm9]")

# ruff: noqa: E501
# Numbers 1 and 2 as the paper's files have them, Mathematica's exponents included; PyG's y of methane.
METHANE = """5
gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\t-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\t
C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689
H\t 2.150416*^-3\t-0.0060313176\t 0.0019761204\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 0.0002765748\t 0.133922
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923
1341.307\t1341.3284\t1341.365\t1562.6731\t1562.7453\t3038.3205\t3151.6034\t3151.6788\t3151.7078
C\tC\t
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""
AMMONIA = """4
gdb 2\t293.60975\t293.54111\t191.39397\t1.6256\t9.46\t-0.257\t0.0829\t0.3399\t26.1563\t0.034358\t-56.525887\t-56.523026\t-56.522082\t-56.544961\t6.316\t
N\t-0.0404260543\t 1.0241077531\t 0.0625637998\t-0.707143
H\t 0.0172574639\t 0.0125452063\t-0.0273771593\t 0.235712
H\t 0.9157893661\t 1.3587451948\t-0.0287577581\t 0.235712
H\t-0.5202777357\t 1.3435321258\t-0.7755426124\t 0.23572
1103.8733\t1684.1158\t1684.3072\t3458.7145\t3575.2414\t3575.3343
N\tN\t
InChI=1S/H3N/h1H3\tInChI=1S/H3N/h1H3
"""
PYG_METHANE = {
    "mu": 0.0, "alpha": 13.21, "homo": -10.5499, "lumo": 3.1865, "gap": 13.7363, "r2": 35.3641, "zpve": 1.2177,
    "U0": -1101.4878, "U": -1101.4098, "H": -1101.3840, "G": -1102.0230, "Cv": 6.469, "U0_atom": -17.1722,
    "U_atom": -17.2868, "H_atom": -17.3897, "G_atom": -16.1519, "A": 157.7118, "B": 157.70997, "C": 157.70699,
}  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    """A QM9 of three molecules, the third of which is uncharacterized."""
    monkeypatch.delenv("PYG_EQUIVARIANT_DATA", raising=False)
    monkeypatch.setattr(qm9, "NUM_MOLECULES", 2)
    monkeypatch.setattr(qm9, "NUM_UNCHARACTERIZED", 1)


def put_uncharacterized(folder: Path) -> None:
    (folder / "uncharacterized.txt").write_text("header\n" * 9 + "     3   O   rest\n----\n")


def check(dataset):
    assert len(dataset) == 2
    assert dataset[0].z.tolist() == [6, 1, 1, 1, 1]
    assert dataset[1].z.tolist() == [7, 1, 1, 1]
    assert [data.smiles for data in dataset] == ["C", "N"]
    assert [int(data.idx) for data in dataset] == [0, 1]
    assert all(dataset[0][name].dtype == torch.float64 for name in TARGETS)
    for name, value in PYG_METHANE.items():
        assert float(dataset[0][name]) == pytest.approx(value, abs=1e-4)


@pytest.mark.usefixtures("small")
def test_archive_of_the_paper(tmp_path):
    with tarfile.open(tmp_path / "dsgdb9nsd.xyz.tar.bz2", "w:bz2") as tar:
        for i, text in ((2, AMMONIA), (1, METHANE), (3, METHANE.replace("gdb 1", "gdb 3"))):
            info = tarfile.TarInfo(f"dsgdb9nsd_{i:06d}.xyz")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    put_uncharacterized(tmp_path)
    dataset = QM9(tmp_path)
    check(dataset)
    assert dataset[0].pos[1, 0] == 2.150416e-3
    torch.testing.assert_close(dataset[1].charges[0], torch.tensor(-0.707143, dtype=torch.float64))
    assert "polarizability_standard" not in dataset.fields
    (tmp_path / "dsgdb9nsd.xyz.tar.bz2").unlink()
    check(QM9(tmp_path))  # the processed file is enough


@pytest.mark.usefixtures("small")
def test_files_of_pyg(tmp_path):
    from rdkit import Chem
    from rdkit.Chem import rdDetermineBonds

    rows, blocks = [], []
    for i, text in ((1, METHANE), (2, AMMONIA), (3, AMMONIA)):
        lines = text.replace("*^", "e").splitlines()
        n = int(lines[0])
        atoms = [line.split() for line in lines[2 : 2 + n]]
        xyz = "\n".join([str(n), "", *(f"{s} {float(x):.6f} {float(y):.6f} {float(z):.6f}" for s, x, y, z, _ in atoms)])
        mol = Chem.MolFromXYZBlock(xyz)
        rdDetermineBonds.DetermineBonds(mol)
        blocks.append(Chem.MolToMolBlock(mol) + "$$$$\n")
        rows.append([f"gdb_{i}", *lines[1].split()[2:17], 0, 0, 0, 0])
    (tmp_path / "gdb9.sdf").write_text("".join(blocks))
    with (tmp_path / "gdb9.sdf.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["mol_id"] + ["x"] * 19, *rows])
    put_uncharacterized(tmp_path)
    dataset = QM9(tmp_path)
    assert len(dataset) == 2
    assert float(dataset[0].U0) == pytest.approx(PYG_METHANE["U0"], abs=1e-4)
    assert dataset[1].z.tolist() == [7, 1, 1, 1]
    assert [data.smiles for data in dataset] == ["C", "N"]
    assert "charges" not in dataset.fields


@pytest.mark.usefixtures("small")
def test_sentences(tmp_path, monkeypatch):
    monkeypatch.setattr(qm9, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install pyg_equivariant\[qm9\]"):
        QM9(tmp_path)
    (tmp_path / "dsgdb9nsd_000001.xyz").write_text(METHANE)
    with pytest.raises(FileNotFoundError, match=r"without uncharacterized\.txt"):
        QM9(tmp_path)
    put_uncharacterized(tmp_path)
    with pytest.raises(ValueError, match="has 1 molecules instead of 2"):
        QM9(tmp_path)
    assert not list(tmp_path.glob("qm9.safetensors*"))
    with pytest.raises(ValueError, match="unknown split 'random'"):
        qm9_split("random")


@pytest.mark.parametrize("name", ["standard", "cormorant"])
def test_splits_are_fixed(name):
    split = qm9_split(name)
    joined = torch.cat(list(split.values()))
    assert torch.equal(joined.sort().values, torch.arange(130_831))
    digest = hashlib.sha256(joined.numpy().astype("<i8").tobytes()).hexdigest()
    assert digest[:16] == {"standard": "f7b0eee126e61118", "cormorant": "77989252ff8c8309"}[name]


def test_references_are_those_of_pyg():
    from torch_geometric.datasets.qm9 import atomrefs

    for column, name in enumerate(TARGETS):
        if name in ("U0", "U", "H", "G"):
            np.testing.assert_allclose(list(ATOM_REFERENCES[name].values()), atomrefs[column], atol=1e-7)


@pytest.mark.slow
@needs_qm9pack
def test_the_real_thing(tmp_path, monkeypatch):
    monkeypatch.delenv("PYG_EQUIVARIANT_DATA", raising=False)
    dataset = QM9(tmp_path)
    assert len(dataset) == 130_831
    assert dataset.elements == [1, 6, 7, 8, 9]
    for name, value in PYG_METHANE.items():
        assert float(dataset[0][name]) == pytest.approx(value, abs=1e-4)
    assert len(set(dataset.column("idx").tolist())) == 130_831
    assert int(dataset.column("idx")[-1]) == 133_884
    dataset.require(*TARGETS, "charges", "polarizability_standard", "pos")
    assert torch.equal(QM9(tmp_path).column("U0"), dataset.column("U0"))
    gap = dataset.column("lumo") - dataset.column("homo")
    assert (gap - dataset.column("gap")).abs().max() < 0.02
    trace = dataset.column("polarizability_standard").diagonal(dim1=1, dim2=2).mean(1)
    assert (trace - dataset.column("alpha")).abs().max() < 0.02
    total = torch.zeros(len(dataset), dtype=torch.float64)
    total.index_add_(0, torch.repeat_interleave(dataset.num_atoms), dataset.column("charges"))
    assert total.abs().max() < 1e-4
