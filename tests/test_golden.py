"""Values that must never change unnoticed: every architecture, its weights filled by a formula.

``python tests/test_golden.py`` writes the file anew; say in the commit why the values changed.
"""

import json
from pathlib import Path

import pytest

from pyg_equivariant import models
from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.testing import example_molecule, potential_of

GOLDEN = Path(__file__).with_suffix(".json")


def values(name: str) -> dict[str, float]:
    model = potential_of(getattr(models, name)(channels=8, num_layers=2, cutoff=3.0))
    prediction = model(RadiusGraph(3.0)(example_molecule()))
    return {"energy": prediction.energy.item(), "force": prediction.forces.square().sum().sqrt().item()}


@pytest.mark.parametrize("name", models.__all__)
def test_golden(name):
    expected = json.loads(GOLDEN.read_text())[name]
    assert values(name) == pytest.approx(expected, rel=1e-8)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: values(name) for name in models.__all__}, indent=2) + "\n")
