"""The README's code runs as it stands, and names only what exists."""

import re
from pathlib import Path

import torch
import torch_geometric.datasets
from torch_geometric.data import Data

from pyg_equivariant import models
from pyg_equivariant.models import PaiNN
from pyg_equivariant.potential import Potential
from pyg_equivariant.testing import example_molecule
from pyg_equivariant.training.cli import RECIPES, VERBS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_pyg_loop(monkeypatch):
    """With molecules in the place of PyG's QM9, which needs a download: bonds as edges, 19 targets."""

    def molecules(root, transform):
        graphs = []
        for seed in range(4):
            data = example_molecule(5, seed=seed)
            bonds = torch.tensor([[0, 1], [1, 0]])
            features = {"x": torch.zeros(5, 11), "edge_attr": torch.zeros(2, 4), "y": torch.randn(1, 19), "name": "m"}
            graphs.append(transform(Data(z=data.z, pos=data.pos.float(), edge_index=bonds, **features)))
        return graphs

    monkeypatch.setattr(torch_geometric.datasets, "QM9", molecules)
    names: dict[str, object] = {}
    exec(PYTHON[0], names)
    assert names["loss"].isfinite()
    assert len(PYTHON[0].strip().splitlines()) <= 20


def test_ase_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = Potential(PaiNN(8, 1))
    model.metadata.elements = [1, 6, 8]
    model.save("quickstart/model")
    exec(PYTHON[1], {})
    assert capsys.readouterr().out.count("[") == 10  # an energy, and 9 rows of forces


def test_commands_and_tables():
    verbs = set(re.findall(r"^\$ pyg-equivariant (\w+)", README, re.MULTILINE))
    assert verbs == set(VERBS) - {"validate", "test"}
    recipes = set(re.findall(r"--config (\w+)(?= |$)", README, re.MULTILINE)) - {"runs"}
    assert recipes <= {path.stem for path in RECIPES.glob("*.yaml")}
    for name in models.__all__:
        parameters = sum(p.numel() for p in getattr(models, name)().parameters())
        assert re.search(rf"^\| `{name}` \|.*\| {parameters:,} \|", README, re.MULTILINE), f"{name}, {parameters:,}"
