"""The N-body task: equivariant networks, the recipe from the command line, what is saved."""

import math
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch
from torch_geometric.data import Data

from pyg_equivariant.data import nbody
from pyg_equivariant.data.transforms import FullyConnected
from pyg_equivariant.o3 import random_rotation
from pyg_equivariant.testing import assert_close, fill_by_formula
from pyg_equivariant.training.cli import main
from pyg_equivariant.training.nbody import (
    EGNNDynamics,
    LinearDynamics,
    NBodyPredictor,
    RadialFieldDynamics,
    SE3TransformerDynamics,
    TensorFieldDynamics,
)

NETWORKS = {
    "LinearDynamics": LinearDynamics,
    "EGNNDynamics": lambda: EGNNDynamics(8, 2),
    "RadialFieldDynamics": lambda: RadialFieldDynamics(8, 2),
    "TensorFieldDynamics": lambda: TensorFieldDynamics(8, 2, lmax=2),
    "SE3TransformerDynamics": lambda: SE3TransformerDynamics(8, 2, num_heads=2),
}


def particles(seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    pos, vel = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    return FullyConnected()(Data(pos=pos, vel=vel, charges=torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0])))


def moved(data: Data, matrix: torch.Tensor) -> Data:
    other = data.clone()
    other.pos, other.vel = data.pos @ matrix.T + 5.0, data.vel @ matrix.T
    return other


@pytest.mark.parametrize("name", NETWORKS)
def test_equivariant_and_sees_charges(name):
    model = NBodyPredictor(NETWORKS[name]()).double()
    fill_by_formula(model)
    data = particles()
    displacement = model(data).quantity("displacement")
    rotation = random_rotation(torch.Generator().manual_seed(1))
    assert_close(model(moved(data, rotation)).quantity("displacement"), displacement @ rotation.T, "displacement")
    mirror = model(moved(data, -rotation)).quantity("displacement")
    if model.representation.group == "E(3)":
        assert_close(mirror, -displacement @ rotation.T, "mirrored displacement")
    else:
        assert (mirror + displacement @ rotation.T).abs().max() > 1e-6
    data.charges = data.charges.flip(0)
    changed = not torch.equal(model(data).quantity("displacement"), displacement)
    assert changed == (name != "LinearDynamics")


@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")
def test_recipe(tmp_path, monkeypatch):
    """The command line, on a few systems simulated for a moment; the saved network opens and predicts."""
    monkeypatch.setattr(nbody, "_DRAWN", {"train": 8, "val": 4, "test": 4})
    monkeypatch.setattr(nbody, "_USED", {"train": 8, "val": 4, "test": 4})
    monkeypatch.setattr(nbody, "FIRST_FRAME", 0)
    monkeypatch.setattr(nbody, "LAST_FRAME", 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pyg-equivariant"])
    options = ["max_epochs=1", "accelerator=cpu", "enable_progress_bar=false", "enable_model_summary=false"]
    status = main(
        [
            "fit",
            "--config=nbody",
            "--model.network=RadialFieldDynamics",
            f"--data.root={tmp_path}",
            "--data.batch_size=4",
            "--run_dir=mine",
            *(f"--trainer.{option}" for option in options),
        ]
    )
    assert status == 0
    model = NBodyPredictor.load(Path("mine/model"))
    dataset = nbody.NBody(tmp_path).split().test.with_transform(FullyConnected())
    batch = dataset.to_batch()
    with torch.no_grad():
        error = (model(batch).quantity("displacement") - batch.displacement).square().mean().sqrt()
    header, values = (line.split(",") for line in Path("mine/test.csv").read_text().splitlines())
    assert math.isclose(float(dict(zip(header, values, strict=True))["rmse"]), float(error), rel_tol=1e-4)


@pytest.mark.parametrize("name", ["EGNNDynamics", "SE3TransformerDynamics"])
def test_compiled(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks cannot be traced
    model = NBodyPredictor(NETWORKS[name]()).double()
    fill_by_formula(model)
    expected = model(particles()).quantity("displacement")
    model.compile(backend="eager")
    assert_close(model(particles()).quantity("displacement"), expected, "displacement", tolerance=1e-12)
