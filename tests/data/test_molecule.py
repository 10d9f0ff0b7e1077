import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from torch_geometric.data import Batch, Data

from pyg_equivariant.data import FlatDataset, from_ase, from_rdkit, from_smiles, to_ase, to_rdkit

SMILES = [
    "CCO", "N#N", "[H][H]", "[H+]", "[He]", "[C-]#[O+]", "B1OBOBO1", "[SiH4]", "C=C=C", "O=S1(=O)CC1",
    "c1ccc2[nH]ccc2c1", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "C1=CC=CC=CC=C1", "[cH-]1cccc1", "c1cc[n+]([O-])cc1",
    "C[C@@H](N)C(=O)[O-]", "C[N+](C)(C)C", "[CH3+]", "[Fe+2]", "F[P-](F)(F)(F)(F)F", "O=[N+]([O-])c1ccccc1",
    "[Na+].[Cl-]", "CC(=O)[O-].[NH4+]", "[NH3]->[Pt](<-[NH3])(Cl)Cl",
    "[CH3]", "[CH2]", "[C]", "[O][O]",
    "[2H]OC", "[13CH4]", "[2H]C([2H])([2H])[C@H](C)O", "[2H]/C(C)=C(/C)F", "[H]/C(C)=N/C",
    "C[C@H](N)C(=O)O", "C[S@](=O)CC", "C[P@](c1ccccc1)CC", "O[C@H]1CC[C@@H](O)CC1", "C[C@H]1C[C@@H](C)C1",
    "C1C[C@H]2CC[C@@H]1C2", "C[C@]12CC[C@H]3[C@@H](CC=C4C[C@@H](O)CC[C@]34C)[C@@H]1CC[C@@H]2O",
    "F/C=C/F", "F/C=C\\F", "C/C=C/C=C\\C", "C/C=C/C=C/C=CC", "C/C(=N\\O)c1ccccc1", "C1CC/C=C/CCC1",
    "c1ccc(/N=N/c2ccccc2)cc1", "F/C=C=C=C/F", "F[C@H](Cl)/C=C/[C@@H](F)Cl",
    "CC1=C(C(CCC1)(C)C)/C=C/C(=C/C=C/C(=C/C=O)/C)/C",
]  # fmt: skip


def with_coordinates(smiles: str, order: list[int] | None = None, seed: int = 0) -> Chem.Mol:
    """Any coordinates will do for what is not geometry, and cost nothing."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if order is not None:
        mol = Chem.RenumberAtoms(mol, order)
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(np.random.default_rng(seed).normal(size=(mol.GetNumAtoms(), 3)))
    mol.AddConformer(conformer)
    return mol


def canonical(mol: Chem.Mol) -> str:
    return Chem.MolToSmiles(Chem.RemoveHs(mol))


@pytest.mark.parametrize("smiles", SMILES)
def test_round_trip(smiles):
    mol = with_coordinates(smiles)
    data = from_rdkit(mol)
    back = to_rdkit(data)
    assert data.smiles == canonical(back) == Chem.CanonSmiles(smiles)
    assert [a.GetAtomicNum() for a in back.GetAtoms()] == [a.GetAtomicNum() for a in mol.GetAtoms()]
    assert [a.GetNumRadicalElectrons() for a in back.GetAtoms()] == [a.GetNumRadicalElectrons() for a in mol.GetAtoms()]
    assert [a.GetIsAromatic() for a in back.GetAtoms()] == [a.GetIsAromatic() for a in mol.GetAtoms()]
    assert data.total_charge.item() == Chem.GetFormalCharge(mol) == Chem.GetFormalCharge(back)
    np.testing.assert_array_equal(back.GetConformer().GetPositions(), mol.GetConformer().GetPositions())
    again = from_rdkit(back)
    assert set(again.keys()) == set(data.keys())
    for key in set(data.keys()) - {"smiles"}:
        assert torch.equal(again[key], data[key]), key


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(SMILES), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_round_trip_of_a_batch_in_any_order_of_atoms(names, random):
    graphs = []
    for name in names:
        order = list(range(Chem.AddHs(Chem.MolFromSmiles(name)).GetNumAtoms()))
        random.shuffle(order)
        graphs.append(from_rdkit(with_coordinates(name, order)))
    batch = Batch.from_data_list(graphs)
    for mol, name in zip(to_rdkit(batch), names, strict=True):
        assert canonical(mol) == Chem.CanonSmiles(name)


def test_bonds_of_a_batch_point_at_their_own_atoms():
    graphs = [from_rdkit(with_coordinates(smiles)) for smiles in ("CCO", "F/C=C/F", "O")]
    for batch in (Batch.from_data_list(graphs), FlatDataset.from_data_list(graphs).to_batch()):
        assert batch.batch[batch.bond_index[0]].equal(batch.batch[batch.bond_index[1]])
        assert batch.bond_index[:, 8].tolist() == [9, 10]
        assert batch.stereo_index.T.tolist() == [[9, 10, 11, 12]]
        assert [canonical(mol) for mol in to_rdkit(batch)] == ["CCO", "F/C=C/F", "O"]


def test_enantiomers_and_diastereomers_differ():
    left, right = (from_smiles(s)[0] for s in ("C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O"))
    assert left.chiral_tag.sum() != right.chiral_tag.sum()
    for data in (left, right):  # the coordinates tell the same as the tags
        mol = to_rdkit(data)
        Chem.AssignStereochemistryFrom3D(mol)
        assert canonical(mol) == Chem.CanonSmiles(data.smiles)
    assert from_smiles("F/C=C/F")[0].stereo_type.tolist() == [1]
    assert from_smiles("F/C=C\\F")[0].stereo_type.tolist() == [0]


def test_fields():
    (data,) = from_smiles("[13CH3][NH3+]")
    assert data.z.tolist() == [6, 7] + [1] * 6
    assert data.pos.dtype == data.total_charge.dtype == torch.float64
    assert data.total_charge.tolist() == [1.0]
    assert data.formal_charge.tolist() == [0, 1] + [0] * 6
    assert data.isotope.tolist() == [13] + [0] * 7
    assert data.bond_type.tolist() == [1] * 7
    assert data.smiles == "[13CH3][NH3+]"
    assert 1.4 < (data.pos[0] - data.pos[1]).norm() < 1.6
    assert set(from_smiles("c1ccccc1")[0].bond_type.tolist()) == {1, 12}


def test_conformers_are_seeded_and_differ():
    first, second = from_smiles("CCCCO", num_conformers=2, seed=1)
    again = from_smiles("CCCCO", num_conformers=2, seed=1, num_workers=2)
    assert torch.equal(first.pos, again[0].pos)
    assert torch.equal(second.pos, again[1].pos)
    assert not torch.allclose(first.pos, second.pos, atol=0.1)
    assert not torch.allclose(first.pos, from_smiles("CCCCO", seed=2)[0].pos, atol=0.1)


def test_many_give_graphs_and_failures_whatever_the_number_of_workers():
    given_smiles = [
        "CCO",
        "c1cccc1",
        "",
        "C(C",
        "O=C=O",
        "*C",
        "CN(C)(C)C",
        "C1#CC#C1",
        "[Pt@SP1](F)(Cl)(Br)I",
        "O",
        "CCO",
    ]
    graphs, failures = from_smiles(given_smiles, num_workers=1, num_conformers=2)
    assert [data.smiles for data in graphs] == [s for s in ("CCO", "O=C=O", "O", "CCO") for _ in range(2)]
    assert [(f.index, f.smiles) for f in failures] == [(i, given_smiles[i]) for i in (1, 2, 3, 5, 6, 7, 8)]
    reasons = [f.reason for f in failures]
    for pattern, reason in zip(
        [
            "kekulize",
            "it is empty",
            "parenthes|cannot read",
            "placeholder",
            "valence",
            "2 of 2 conformers",
            "not tetrahedral",
        ],
        reasons,
        strict=True,
    ):
        assert re.search(pattern, reason), reason
        assert "\n" not in reason
    parallel, parallel_failures = from_smiles(given_smiles, num_workers=3, num_conformers=2)
    assert parallel_failures == failures
    for a, b in zip(graphs, parallel, strict=True):
        assert torch.equal(a.pos, b.pos)
    assert torch.equal(graphs[0].pos, from_smiles("CCO", num_conformers=2)[0].pos)
    assert from_smiles([]) == ([], [])


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [("C(C", "'C\\(C'"), ("  ", "it is empty"), ("C1#CC#C1", "could not be embedded"), ("FF(F)F", "valence")],
)
def test_one_bad_smiles_is_an_error(smiles, reason, capfd):
    with pytest.raises(ValueError, match=reason) as error:
        from_smiles(smiles)
    assert "\n" not in str(error.value)
    assert "Parse Error" not in capfd.readouterr().err  # said once


def test_random_coordinates_come_after_the_first_failure():
    smiles = "C(C1CCCCC1)(C1CCCCC1)(C1CCCCC1)C1CCCCC1"  # too crowded for distance geometry alone
    parameters = rdDistGeom.ETKDGv3()
    parameters.randomSeed = 0
    assert rdDistGeom.EmbedMolecule(Chem.AddHs(Chem.MolFromSmiles(smiles)), parameters) == -1
    (data,) = from_smiles(smiles)
    assert torch.pdist(data.pos).min() > 0.8


def test_mmff():
    rough, fine = from_smiles("CCO")[0], from_smiles("CCO", optimize=True)[0]
    assert not torch.allclose(rough.pos, fine.pos, atol=1e-3)
    with pytest.raises(ValueError, match="MMFF94 lacks parameters"):
        from_smiles("OB(O)O", optimize=True)


@pytest.mark.parametrize("optimize", [False, True])
def test_parts_of_a_salt_do_not_overlap(optimize):
    (data,) = from_smiles("CC(=O)[O-].[Na+].O", optimize=optimize)
    assert torch.pdist(data.pos).min() > 0.8
    assert data.total_charge.item() == 0


@pytest.mark.parametrize("arguments", [{"num_conformers": 0}, {"seed": -1}, {"num_workers": 0}])
def test_impossible_arguments(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be at least"):
        from_smiles("C", **arguments)


def test_molecules_that_are_no_graphs():
    bare = Chem.MolFromSmiles("CCO")
    with pytest.raises(ValueError, match="no conformer: embed"):
        from_rdkit(Chem.AddHs(bare))
    rdDistGeom.EmbedMolecule(bare, randomSeed=0)
    with pytest.raises(ValueError, match="lacks 6 hydrogens"):
        from_rdkit(bare)
    mol = with_coordinates("CCO")
    with pytest.raises(ValueError, match="no conformer 3, only 0"):
        from_rdkit(mol, 3)
    mol.GetConformer().Set3D(False)
    with pytest.raises(ValueError, match="2D drawing"):
        from_rdkit(mol)


def test_conformer_by_id_and_molecule_left_alone():
    mol = with_coordinates("CCO")
    mol.AddConformer(with_coordinates("CCO", seed=1).GetConformer(), assignId=True)
    before = mol.ToBinary()
    assert torch.equal(from_rdkit(mol, 1).pos, torch.tensor(mol.GetConformer(1).GetPositions()))
    assert not torch.equal(from_rdkit(mol, 1).pos, from_rdkit(mol).pos)
    assert mol.ToBinary() == before


def test_graphs_that_are_no_molecules():
    with pytest.raises(ValueError, match="the graph has no formal_charge, isotope"):
        to_rdkit(Data(z=torch.tensor([1]), pos=torch.zeros(1, 3)))
    data = from_rdkit(with_coordinates("C"))
    data.bond_type = torch.full_like(data.bond_type, 3)
    with pytest.raises(ValueError, match="make no molecule"):
        to_rdkit(data)


def test_isotopes_and_charges_reach_ase():
    atoms = to_ase(from_smiles("[2H]O[2H]")[0])
    np.testing.assert_allclose(atoms.get_masses(), [2.0141, 15.999, 2.0141], atol=1e-3)
    assert atoms.info["smiles"] == "[2H]O[2H]"
    ion = to_ase(from_smiles("C[NH3+]")[0])
    assert ion.get_initial_charges().sum() == ion.info["charge"] == 1
    assert from_ase(ion).total_charge.item() == 1


def test_default_seed_gives_different_conformers() -> None:
    first, second = from_smiles("CCCCO", num_conformers=2)
    distances = [torch.pdist(data.pos) for data in (first, second)]
    assert (distances[0] - distances[1]).abs().max() > 0.1
