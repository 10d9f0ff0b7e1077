import csv
import json

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator

import pyg_equivariant.models
from pyg_equivariant.calculators import PygEquivariantCalculator
from pyg_equivariant.heads import ChargesHead, DipoleHead, IntensiveHead
from pyg_equivariant.models import PaiNN
from pyg_equivariant.nn.radial import BesselBasis
from pyg_equivariant.potential import Potential, Predictor
from pyg_equivariant.report import load_dynamics, load_predictions
from pyg_equivariant.training import cli


@pytest.fixture
def model(tmp_path):
    """An untrained potential whose forces are gentle."""
    torch.manual_seed(0)
    potential = Potential(PaiNN(8, 1, cutoff=3.0, radial=BesselBasis(20, 3.0)))
    potential.head.standardize(0.1, references=torch.linspace(0, -50, 119, dtype=torch.float64))
    potential.metadata.elements = [1, 6, 8, 14]
    potential.save(tmp_path / "model")
    return str(tmp_path / "model")


def run(*words):
    return cli.main([str(word) for word in words])


def table_of(path, reader=csv.reader):
    return list(reader(path.read_text().splitlines()))


def shaken(atoms, seed=0):
    atoms.rattle(0.05, seed=seed)
    return atoms


# --- predict ---------------------------------------------------------------------------------------------------


def test_predict_smiles_as_csv(model, capsys):
    assert run("predict", model, "CCO") == 0
    header, row = csv.reader(capsys.readouterr().out.splitlines())
    assert header == ["frame", "formula", "smiles", "energy [eV]"]
    assert row[:3] == ["0", "C2H6O", "CCO"]
    assert np.isfinite(float(row[3]))


def test_predict_file_as_extxyz(model, tmp_path):
    frames = [shaken(molecule(name)) for name in ("H2O", "CH4", "CH3OH")]
    ase.io.write(tmp_path / "in.xyz", frames)
    assert run("predict", model, tmp_path / "in.xyz", "-o", tmp_path / "out.extxyz") == 0
    predicted = ase.io.read(tmp_path / "out.extxyz", ":")
    for atoms, result in zip(frames, predicted, strict=True):
        atoms.calc = PygEquivariantCalculator(model)
        assert result.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(result.get_forces(), atoms.get_forces(), atol=1e-4)


def test_predict_stress_of_crystals(model, tmp_path):
    ase.io.write(tmp_path / "in.xyz", shaken(bulk("Si")))
    assert run("predict", model, tmp_path / "in.xyz", "-o", tmp_path / "out.extxyz", "--dtype", "float64") == 0
    atoms = ase.io.read(tmp_path / "in.xyz")
    atoms.calc = PygEquivariantCalculator(model, dtype=torch.float64)
    np.testing.assert_allclose(ase.io.read(tmp_path / "out.extxyz").get_stress(), atoms.get_stress(), atol=1e-6)


def test_predict_does_not_depend_on_the_batch(model, tmp_path):
    frames = [shaken(molecule("CH3CH2OH"), seed) for seed in range(120)]  # more atoms than a batch holds
    ase.io.write(tmp_path / "in.xyz", frames)
    run("predict", model, tmp_path / "in.xyz", "-o", tmp_path / "all.csv")
    run("predict", model, tmp_path / "in.xyz", "-o", tmp_path / "one.csv", "--index", "117")
    rows = table_of(tmp_path / "all.csv")
    assert [row[0] for row in rows[1:]] == [str(i) for i in range(120)]
    (_, one) = table_of(tmp_path / "one.csv")
    assert float(one[2]) == pytest.approx(float(rows[118][2]), abs=1e-4)


def test_predict_properties(tmp_path, capsys):
    predictor = Predictor(
        PaiNN(8, 1), {"gap": IntensiveHead(8), "mu": DipoleHead(8), "charges": ChargesHead(8), "weight": ChargesHead(8)}
    )
    predictor.metadata.units = {"gap": "meV", "mu": "e·Å"}
    predictor.save(tmp_path / "gap.safetensors")
    (tmp_path / "in.smi").write_text("CCO ethanol\n\nO\n")
    assert run("predict", tmp_path / "gap.safetensors", tmp_path / "in.smi") == 0
    header, ethanol, water = csv.reader(capsys.readouterr().out.splitlines())
    assert header == ["frame", "formula", "smiles", "gap [meV]", "mu_x [e·Å]", "mu_y [e·Å]", "mu_z [e·Å]"]
    assert ethanol[1:3] == ["C2H6O", "CCO"]
    assert water[1:3] == ["H2O", "O"]
    assert run("predict", tmp_path / "gap.safetensors", tmp_path / "in.smi", "-o", tmp_path / "out.xyz") == 0
    _, atoms = ase.io.read(tmp_path / "out.xyz", ":")
    assert atoms.info["gap"] == pytest.approx(float(water[3]), rel=1e-5)
    assert atoms.arrays["weight"].sum() == pytest.approx(0, abs=1e-5)
    assert atoms.get_charges().sum() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.xyz", "there is no file nowhere.xyz"),
        ("notasmiles", "no graph can be made of the SMILES 'notasmiles'"),
        ("CCS", "has never seen S"),
    ],
)
def test_predict_refuses(model, source, message, capsys):
    assert run("predict", model, source) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_file_of_smiles_with_a_bad_line(model, tmp_path, capsys):
    (tmp_path / "in.smi").write_text("CCO\nc1cccc1\n")
    assert run("predict", model, tmp_path / "in.smi") == 2
    assert "in.smi, line 2: no graph can be made of 'c1cccc1'" in capsys.readouterr().err


def test_unknown_endings_and_devices_are_refused(model, tmp_path, capsys):
    assert run("predict", model, "CCO", "-o", tmp_path / "out.pdf") == 2
    assert "must end in .csv, .extxyz or .xyz" in capsys.readouterr().err
    assert run("predict", model, "CCO", "--device", "warp9") == 2
    assert "--device warp9" in capsys.readouterr().err
    assert run("predict", tmp_path / "none", "CCO") == 2
    assert "none" in capsys.readouterr().err


# --- evaluate --------------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(model, tmp_path):
    """Frames whose labels are the model's own, off by 10 meV in energy and 20 meV/Å in every force."""
    frames = []
    for seed, name in enumerate(["H2O", "CH4", "CH3OH", "H2O"]):
        atoms = shaken(molecule(name), seed)
        atoms.calc = PygEquivariantCalculator(model, dtype=torch.float64)
        results = {"energy": atoms.get_potential_energy() + 0.01, "forces": atoms.get_forces() - 0.02}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    ase.io.write(tmp_path / "labelled.xyz", frames)
    return tmp_path / "labelled.xyz"


def test_evaluate(model, labelled, tmp_path, capsys):
    assert run("evaluate", model, labelled, "-o", tmp_path / "out", "--dtype", "float64") == 0
    printed = capsys.readouterr().out
    assert "meV/atom" in printed
    rows = {row["quantity"]: row for row in json.loads((tmp_path / "out" / "errors.json").read_text())}
    assert rows["Energy"]["MAE"] == pytest.approx(10, abs=1e-3)
    assert rows["Energy"]["unit"] == "meV"
    assert rows["Energy per atom"]["MAE"] == pytest.approx(np.mean([10 / 3, 10 / 5, 10 / 6, 10 / 3]), abs=1e-3)
    assert rows["Forces"]["MAE"] == pytest.approx(20, abs=1e-3)
    assert rows["Forces"]["RMSE"] == pytest.approx(20, abs=1e-3)
    assert rows["Forces"]["unit"] == "meV/Å"
    forces = np.concatenate([atoms.get_forces() for atoms in ase.io.read(labelled, ":")])
    assert rows["Forces"]["spread"] == pytest.approx(1000 * forces.std(), rel=1e-6)
    table = table_of(tmp_path / "out" / "errors.csv", csv.DictReader)
    assert float(table[0]["MAE"]) == rows["Energy"]["MAE"]
    saved = load_predictions(tmp_path / "out" / "predictions.npz")
    assert saved.reference["forces"].shape == (17, 3)
    assert saved.n_atoms.tolist() == [3, 5, 6, 3]


def test_evaluate_with_names_and_units_of_ones_own(model, labelled, tmp_path, capsys):
    frames = ase.io.read(labelled, ":")
    for atoms in frames:
        atoms.info["U0"] = atoms.get_potential_energy() / 27.211386024367243
        atoms.calc = None
    ase.io.write(tmp_path / "hartree.xyz", frames)
    words = ["evaluate", model, tmp_path / "hartree.xyz", "--key", "energy=U0", "--unit", "energy=Hartree"]
    assert run(*words, "-o", tmp_path / "out", "--dtype", "float64") == 0
    (energy, _) = json.loads((tmp_path / "out" / "errors.json").read_text())
    assert energy["MAE"] == pytest.approx(10, abs=1e-3)
    capsys.readouterr()
    assert run("evaluate", model, tmp_path / "hartree.xyz") == 2
    assert "hartree.xyz: no label of what the model predicts (energy)" in capsys.readouterr().err
    assert run(*words, "--key", "energy") == 2
    assert "--key energy: write it as NAME=VALUE" in capsys.readouterr().err


def test_evaluate_stress(model, tmp_path):
    atoms = shaken(bulk("Si"))
    atoms.calc = PygEquivariantCalculator(model, dtype=torch.float64)
    stress = atoms.get_stress() + np.eye(6)[0] / 10
    atoms.calc = SinglePointCalculator(atoms, energy=atoms.get_potential_energy(), stress=stress)
    ase.io.write(tmp_path / "labelled.xyz", atoms)
    assert run("evaluate", model, tmp_path / "labelled.xyz", "-o", tmp_path, "--dtype", "float64") == 0
    rows = {row["quantity"]: row for row in json.loads((tmp_path / "errors.json").read_text())}
    assert rows["Stress"]["unit"] == "meV/Å³"
    assert rows["Stress"]["MAE"] == pytest.approx(100 / 9, abs=1e-3)


# --- md --------------------------------------------------------------------------------------------------------


def test_md_conserves_the_energy(model, tmp_path, capsys):
    out = tmp_path / "nve.extxyz"
    words = ["--ensemble", "nve", "--ps", "0.05", "--temperature", "300", "--interval", "5"]
    assert run("md", model, "CCO", *words, "-o", out) == 0
    assert "meV/atom/ps" in capsys.readouterr().out
    frames = ase.io.read(out, ":")
    assert [atoms.info["step"] for atoms in frames] == list(range(0, 101, 5))
    assert frames[-1].info["time_ps"] == pytest.approx(0.05)
    assert frames[0].get_temperature() > 0
    trace = load_dynamics(out.with_suffix(".csv"))
    assert len(trace.time) == 21
    assert np.ptp(trace.energy) < 1  # meV/atom
    assert np.ptp([1000 * atoms.get_total_energy() / 9 for atoms in frames] - trace.energy) < 1e-3
    frames[-1].calc = PygEquivariantCalculator(model, dtype=torch.float64)
    assert 1000 * frames[-1].get_total_energy() / 9 == pytest.approx(trace.energy[-1], abs=1e-2)


@pytest.mark.parametrize("ensemble", ["nvt", "nose-hoover", "npt"])
def test_md_of_a_crystal(model, tmp_path, ensemble):
    ase.io.write(tmp_path / "in.xyz", bulk("Si", cubic=True))
    out = tmp_path / "out.traj"
    words = ["--ensemble", ensemble, "--steps", "20", "--temperature", "500", "--timestep", "1"]
    assert run("md", model, tmp_path / "in.xyz", *words, "-o", out) == 0
    first, *_, last = ase.io.read(out, ":")
    assert last.info["step"] == 20
    assert (ensemble == "npt") == (abs(last.get_volume() / first.get_volume() - 1) > 1e-9)
    assert 50 < last.get_temperature() < 1500


def test_md_resumes_after_a_kill(model, tmp_path):
    words = ["--ensemble", "nve", "--temperature", "300", "--interval", "4"]
    assert run("md", model, "CCO", *words, "--steps", "40", "-o", tmp_path / "whole.extxyz") == 0
    out = tmp_path / "part.extxyz"
    assert run("md", model, "CCO", *words, "--steps", "22", "-o", out) == 0
    text = out.read_text()
    out.write_text(text[: len(text) - 300])  # killed in the middle of a frame: the last whole one is of step 20
    assert run("md", model, "CCO", *words, "--steps", "40", "-o", out, "--resume") == 0
    whole, part = (ase.io.read(tmp_path / f"{name}.extxyz", ":") for name in ("whole", "part"))
    assert [atoms.info["step"] for atoms in part] == [atoms.info["step"] for atoms in whole]
    np.testing.assert_allclose(part[-1].positions, whole[-1].positions, atol=1e-5)
    traces = [load_dynamics(tmp_path / f"{name}.csv") for name in ("whole", "part")]
    np.testing.assert_allclose(traces[0].time, traces[1].time, atol=1e-9)
    np.testing.assert_allclose(traces[0].energy, traces[1].energy, atol=1e-3)


def test_md_writes_while_it_runs(model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.extxyz"
    real = PygEquivariantCalculator.calculate
    calls = iter(range(10_000))

    def interrupted(self, *args, **kwargs):
        if next(calls) == 27:
            raise KeyboardInterrupt
        real(self, *args, **kwargs)

    monkeypatch.setattr(PygEquivariantCalculator, "calculate", interrupted)
    assert run("md", model, "CCO", "--steps", "100", "--interval", "5", "-o", out) == 130
    assert [atoms.info["step"] for atoms in ase.io.read(out, ":")] == [0, 5, 10, 15, 20, 25]


def test_md_keeps_the_momenta_of_the_file(model, tmp_path):
    atoms = molecule("H2O")
    atoms.set_momenta([[0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.1]])
    ase.io.write(tmp_path / "in.traj", atoms)
    run("md", model, tmp_path / "in.traj", "--ensemble", "nve", "--steps", "1", "-o", tmp_path / "out.traj")
    np.testing.assert_allclose(ase.io.read(tmp_path / "out.traj", 0).get_momenta(), atoms.get_momenta())


def test_md_does_not_overwrite(model, tmp_path, capsys):
    out = tmp_path / "out.extxyz"
    words = ["md", model, "O", "--steps", "2", "-o", out]
    assert run(*words) == 0
    before = out.read_text()
    assert run(*words) == 2
    assert "--resume" in capsys.readouterr().err
    assert out.read_text() == before
    assert run(*words, "--overwrite", "--seed", "1") == 0
    assert out.read_text() != before
    assert len(ase.io.read(out, ":")) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["O", "--resume"], "nothing to resume"),
        (["O", "--timestep", "0"], "must be positive"),
        (["O", "-o", "out.pdf"], "ends in .extxyz, .xyz or .traj"),
        (["O", "--ensemble", "npt"], "periodic in three directions"),
        (["N"], "has never seen N"),
    ],
)
def test_md_refuses(model, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert run("md", model, *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_md_tells_that_it_exploded(model, tmp_path, capsys):
    out = tmp_path / "out.extxyz"
    words = ["--timestep", "400", "--ensemble", "nve", "--steps", "200", "--interval", "1"]
    ase.io.write(tmp_path / "in.xyz", bulk("Si", cubic=True) * (2, 1, 1))
    assert run("md", model, tmp_path / "in.xyz", *words, "--temperature", "3000", "-o", out) == 2
    assert "the dynamics exploded before step" in capsys.readouterr().err


# --- relax -----------------------------------------------------------------------------------------------------


def test_relax(model, tmp_path, capsys):
    ase.io.write(tmp_path / "in.xyz", [shaken(molecule("CH3OH")), shaken(molecule("H2O"))])
    out = tmp_path / "out.extxyz"
    assert run("relax", model, tmp_path / "in.xyz", "--fmax", "0.02", "-o", out) == 0
    assert "yes" in capsys.readouterr().out
    for atoms in ase.io.read(out, ":"):
        atoms.calc = PygEquivariantCalculator(model, dtype=torch.float64)
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.021


def test_relax_says_that_it_did_not_converge(model, tmp_path, capsys):
    out = tmp_path / "out.extxyz"
    assert run("relax", model, "CCO", "--steps", "1", "--fmax", "1e-6", "-o", out) == 1
    assert "1 of 1 structures did not reach 1e-06 eV/Å in 1 steps" in capsys.readouterr().err
    assert len(ase.io.read(out, ":")) == 1


def test_relax_of_a_cell(model, tmp_path, capsys):
    ase.io.write(tmp_path / "in.xyz", shaken(bulk("Si")))
    out = tmp_path / "out.extxyz"
    code = run("relax", model, tmp_path / "in.xyz", "--cell", "--steps", "3", "-o", out, "--optimizer", "FIRE")
    assert code == 1
    assert ase.io.read(out).get_volume() != pytest.approx(bulk("Si").get_volume(), rel=1e-6)
    capsys.readouterr()
    assert run("relax", model, "CCO", "--cell", "-o", out) == 2
    assert "is not periodic: its cell cannot relax" in capsys.readouterr().err


# --- models, help ----------------------------------------------------------------------------------------------


def test_models(capsys):
    assert run("models") == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert names[1:-1] == pyg_equivariant.models.__all__
    assert run("models", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["PaiNN"]["group"] == "E(3)"
    assert rows["PaiNN"]["parameters"] == sum(parameter.numel() for parameter in PaiNN().parameters())


@pytest.mark.parametrize("verb", ["predict", "evaluate", "md", "relax", "models"])
def test_help_has_an_example(verb, capsys):
    with pytest.raises(SystemExit) as end:
        run(verb, "--help")
    assert end.value.code == 0
    assert f"example:\n  pyg-equivariant {verb} " in capsys.readouterr().out


def test_a_property_predictor_runs_no_dynamics(tmp_path, capsys):
    Predictor(PaiNN(8, 1), {"gap": IntensiveHead(8)}).save(tmp_path / "gap")
    assert run("md", tmp_path / "gap", "CCO", "-o", tmp_path / "out.xyz") == 2
    assert "not a Potential" in capsys.readouterr().err


def test_an_unreadable_file(model, tmp_path, capsys):
    (tmp_path / "bad.xyz").write_text("3\n\nO 0 0 0\n")
    for verb in ("predict", "md", "relax", "evaluate"):
        words = [] if verb in ("predict", "evaluate") else ["-o", tmp_path / "out.xyz"]
        assert run(verb, model, tmp_path / "bad.xyz", *words) == 2
        assert "bad.xyz" in capsys.readouterr().err


def test_an_empty_structure_is_refused(model, tmp_path, capsys):
    ase.io.write(tmp_path / "in.traj", Atoms())
    assert run("predict", model, tmp_path / "in.traj") == 2
    assert "no atoms" in capsys.readouterr().err
