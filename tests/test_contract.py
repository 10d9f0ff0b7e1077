"""Every architecture against the physical contract."""

import jaxtyping
import pytest
import torch

from pyg_equivariant import models
from pyg_equivariant.models.base import Representation
from pyg_equivariant.models.painn import PaiNN
from pyg_equivariant.testing import CONTRACT, compiled, recorded, rotation, smooth_at_cutoff, translation

QUICK = [promise for promise in CONTRACT if promise not in (compiled, recorded)]
NAMES = [*models.__all__]


def small(name: str) -> Representation:
    return getattr(models, name)(channels=8, num_layers=2, cutoff=3.0)


@pytest.mark.parametrize("promise", QUICK, ids=lambda promise: promise.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_contract(name, promise):
    promise(small(name))


@pytest.mark.parametrize("name", NAMES)
def test_recorded(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks cannot be traced
    recorded(small(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiled(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks cannot be traced
    torch._dynamo.reset()
    compiled(small(name), "inductor" if name == "PaiNN" else "aot_eager")  # code generation takes a minute each


@pytest.mark.parametrize("name", NAMES)
def test_default_constructor(name):
    model = getattr(models, name)()
    assert model.group in ("E(3)", "SE(3)", "SE(3) in distribution", "T(3)")
    assert model.paper
    assert model.channels > 1


class Tilted(PaiNN):
    """Prefers the x axis: must be caught."""

    def forward(self, z, edge_index, edge_vec):
        return super().forward(z, edge_index, edge_vec * edge_vec.new_tensor([1.1, 1.0, 1.0]))


class Jumping(PaiNN):
    """Lets edges at the cutoff count: must be caught."""

    def forward(self, z, edge_index, edge_vec):
        x = super().forward(z, edge_index, edge_vec)
        degree = x.new_zeros(len(z)).index_add(0, edge_index[1], torch.ones_like(edge_vec[:, 0]))
        return x * (1 + 0.1 * degree[:, None, None, None])


class Counting(PaiNN):
    """Its Python knows how many atoms there are: must be caught."""

    def forward(self, z, edge_index, edge_vec):
        return super().forward(z, edge_index, edge_vec) * len(z)


class Modest(PaiNN):
    """Promises less than it keeps: must be caught."""

    group = "T(3)"


def test_broken_models_are_caught():
    translation(Tilted(8, 2, cutoff=3.0))  # what it does keep
    with pytest.raises(AssertionError, match="under a rotation: off by"):
        rotation(Tilted(8, 2, cutoff=3.0))
    with pytest.raises(AssertionError, match=r"the group is T\(3\), but rotations"):
        rotation(Modest(8, 2, cutoff=3.0))
    with pytest.raises(AssertionError, match="energy across the cutoff: off by"):
        smooth_at_cutoff(Jumping(8, 2, cutoff=3.0))


def test_python_that_knows_sizes_is_caught(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(AssertionError, match="recorded 2 times"):
        recorded(Counting(8, 2, cutoff=3.0))
