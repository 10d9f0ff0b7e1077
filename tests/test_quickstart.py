import builtins
import json

import ase.io
import numpy as np
import pytest
import torch

from pyg_equivariant import quickstart
from pyg_equivariant.calculators import PygEquivariantCalculator
from pyg_equivariant.potential import Potential
from pyg_equivariant.training import cli


def test_from_smiles_to_report(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tblite", reason="the quickstart computes its labels with tblite")
    monkeypatch.chdir(tmp_path)
    words = ["quickstart", "O", "--frames", "66", "--epochs", "4", "--ps", "0.05"]
    assert cli.main(words) == 1  # four epochs are too few for a good model, and enough for one that can relax
    captured = capsys.readouterr()
    assert "of the spread of the forces: try more --frames or --epochs" in captured.err
    for phrase in ("meV/atom", "meV/Å", "energy drift", "--config qm9", "--config rmd17", "report.html"):
        assert phrase in captured.out
    out = tmp_path / "quickstart"
    assert {path.name for path in out.iterdir()} == {*quickstart.FILES, "model"}

    model = Potential.load(out / "model")
    assert model.metadata.elements == [1, 8]
    assert len(model.metadata.digest) == 64
    assert {name: len(ase.io.read(out / f"{name}.extxyz", ":")) for name in quickstart.SPLITS} == {
        "train": 48, "val": 6, "test": 12,
    }  # fmt: skip
    frames = ase.io.read(out / "trajectory.extxyz", ":")
    assert [atoms.info["step"] for atoms in frames] == list(range(0, 101, 10))
    relaxed = ase.io.read(out / "relaxed.extxyz")
    relaxed.calc = PygEquivariantCalculator(model, dtype=torch.float64)
    assert np.linalg.norm(relaxed.get_forces(), axis=1).max() < 0.011
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "PaiNN" in page
    assert json.loads((out / "model" / "config.json").read_text())["metadata"]["units"]["forces"] == "eV/Å"

    (out / "own.txt").write_text("mine")
    assert cli.main(["quickstart", "O", "--frames", "60", "--epochs", "1", "--ps", "0.02"]) == 1
    assert len(ase.io.read(out / "trajectory.extxyz", ":")) == 5
    assert (out / "own.txt").read_text() == "mine"


@pytest.mark.slow
def test_the_force_field_is_good(tmp_path, capsys, monkeypatch):
    pytest.importorskip("tblite", reason="the quickstart computes its labels with tblite")
    monkeypatch.setattr(quickstart, "FORCE_GOAL", 0.1)  # a third of the frames
    code = cli.main(["quickstart", "--output", str(tmp_path), "--frames", "400", "--ps", "0.5"])
    assert code == 0, capsys.readouterr().out


def test_without_tblite_one_sentence(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("tblite"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert cli.main(["quickstart", "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "pip install 'pyg_equivariant[xtb]'" in error
    assert len(error.splitlines()) == 1


REFUSED = [
    (["nonsense"], "'nonsense'"),
    (["--frames", "3"], "--frames must be at least 60"),
    (["--ps", "0"], "--ps positive"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_refuses(tmp_path, capsys, words, message):
    assert cli.main(["quickstart", "--output", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
