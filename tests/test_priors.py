"""Atomic references and the ZBL repulsion."""

import math

import pytest
import torch
from torch_geometric.data import Data

from pyg_equivariant.data.transforms import RadiusGraph
from pyg_equivariant.models import PaiNN
from pyg_equivariant.potential import Potential
from pyg_equivariant.priors import ZBL, AtomicReferences
from pyg_equivariant.testing import assert_close, fill_by_formula


@pytest.mark.parametrize("change", [lambda m: m.float(), lambda m: m.half(), lambda m: m.to(torch.bfloat16)])
def test_references_stay_float64(change):
    references = AtomicReferences()
    references.values.fill_(-13.587222780835477)
    assert change(references)(torch.tensor([1])).item() == -13.587222780835477


def pair(distance: float) -> Data:
    pos = torch.tensor([[0.0, 0, 0], [0, 0, distance]], dtype=torch.float64)
    return RadiusGraph(3.0)(Data(z=torch.tensor([14, 8]), pos=pos))


def test_zbl_value():
    """Si-O at 0.5 Å, with the universal screening written out."""
    model = Potential(PaiNN(8, 1, cutoff=3.0), priors=[ZBL(2.0)]).double().eval()
    plain = Potential(PaiNN(8, 1, cutoff=3.0)).double().eval()
    fill_by_formula(model)
    fill_by_formula(plain)
    r, u = 0.5, 0.25
    a = 0.8854 * 0.529177210 / (14**0.23 + 8**0.23)
    phi = sum(
        c * math.exp(-e * r / a)
        for c, e in ((0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162))
    )
    expected = 14.3996454 * 14 * 8 / r * phi * (1 - 28 * u**6 + 48 * u**7 - 21 * u**8)
    actual = (model(pair(r)).energy - plain(pair(r)).energy).item()
    assert actual == pytest.approx(expected, rel=1e-6)
    assert model(pair(r)).forces[0, 2] < -10  # pushed apart
    assert_close(model(pair(2.0)).energy, plain(pair(2.0)).energy, "beyond its cutoff")


def test_zbl_of_coincident_atoms_is_finite():
    model = Potential(PaiNN(8, 1, cutoff=3.0), priors=[ZBL()]).double().train()
    prediction = model(pair(0.0))
    (prediction.energy.sum() + prediction.forces.square().sum()).backward()
    assert torch.isfinite(prediction.forces).all()
