"""Allegro: its authors' package, the products written out, and what the contract does not vary."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models.allegro import Allegro, AllegroConv, EnvironmentProduct
from pyg_equivariant.o3 import coupling, degree_slices, random_rotation, spherical_harmonics
from pyg_equivariant.testing import assert_close, example_molecule, potential_of, receptive_field

PEER = json.loads((Path(__file__).parents[1] / "parity" / "allegro.json").read_text())["models"]


def molecule(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Six atoms, all within the cutoff of each other."""
    generator = torch.Generator().manual_seed(seed)
    pos = 1.2 * torch.randn(6, 3, generator=generator, dtype=torch.float64)
    edge_index = torch.cartesian_prod(torch.arange(6), torch.arange(6)).T.flip(0)
    edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    return torch.tensor([1, 6, 8, 1, 7, 6]), edge_index, pos[edge_index[0]] - pos[edge_index[1]]


@pytest.fixture
def double():
    """Constants without float32's rounding, as in the peer."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", PEER)
def test_agrees_with_nequip_allegro(name):
    """What tests/parity/allegro.py has compared: the same weights, and a linear head."""
    entry = PEER[name]
    model = potential_of(Allegro(8, tensor_channels=4, cutoff=3.0, avg_num_neighbors=5.0, **entry["settings"]))
    first, _, last = model.head.mlp
    with torch.no_grad():
        first.weight[1] = -first.weight[0]
        last.weight.zero_()
        last.weight[0, :2] = torch.tensor([1.0, -1.0])
        first.bias.zero_()
        last.bias.zero_()
    for expected in entry["predictions"]:
        prediction = model(RadiusGraph(3.0)(example_molecule(seed=expected["seed"])))
        assert prediction.energy.item() == pytest.approx(expected["energy"], rel=1e-7, abs=1e-12)
        assert prediction.forces.norm().item() == pytest.approx(expected["force"], rel=1e-7)


@settings(derandomize=True, deadline=None, max_examples=8)
@given(st.integers(0, 3), st.sampled_from([1, 2]), st.integers(1, 4), st.sampled_from([1, -1]))
def test_invariant(lmax, parity, num_layers, sign):
    torch.manual_seed(0)
    model = Allegro(4, num_layers, tensor_channels=3, lmax=lmax, parity=parity, avg_num_neighbors=5.0).double()
    z, edge_index, edge_vec = molecule()
    rotation = sign * random_rotation(torch.Generator().manual_seed(1))
    x = model(z, edge_index, edge_vec)
    assert x.shape == (6, 1, 1, 4)
    assert_close(model(z, edge_index, edge_vec @ rotation.T), x, "features", tolerance=1e-11)


def test_receptive_field_is_one_cutoff():
    receptive_field(Allegro(8, 3, cutoff=3.0), num_layers=1)


def test_product_equation():
    """With explicit loops over edges, paths and channels; pseudotensors in and out."""
    torch.manual_seed(0)
    product = EnvironmentProduct(2, 1, 2, 2, parity_in=2, parity_out=2).double()
    v, environment = torch.randn(3, 2, 4, 2, dtype=torch.float64), torch.randn(2, 9, 2, dtype=torch.float64)
    index, rows = torch.tensor([1, 0, 1]), degree_slices(2)
    expected = torch.zeros(3, 2, 9, 2, dtype=torch.float64)
    for e in range(3):
        for number, (p, l1, l2, q, l3) in enumerate(product.paths):
            assert (p + q + l1 + l2 + l3) % 2 == 0
            left, right = v[e, p, rows[l1]], environment[index[e], rows[l2]]
            expected[e, q, rows[l3]] += torch.einsum(
                "abm,at,bt,t->mt", coupling(l1, l2, l3), left, right, product.weight[number]
            )
    assert_close(product(v, environment, index), expected, "the product", tolerance=1e-12)


def test_convolution_alone():
    """Edges of a PyG user's own network: only those that arrive at the same atom meet."""
    torch.manual_seed(0)
    conv = AllegroConv(EnvironmentProduct(4, 1, 1, 1), 5, 8, 6, avg_num_neighbors=5.0).double()
    _, edge_index, edge_vec = molecule()
    x, v, weight = torch.randn(30, 5).double(), torch.randn(30, 1, 4, 4).double(), torch.randn(30, 2, 4).double()
    edge_sh = spherical_harmonics(edge_vec, 1)
    out, tensors = conv(x, v, weight, edge_index, edge_sh, 6)
    assert (out.shape, tensors.shape) == ((30, 6), (30, 1, 4, 4))
    weight[edge_index[1] == 2] += 1.0
    changed, _ = conv(x, v, weight, edge_index, edge_sh, 6)
    assert torch.equal((changed != out).any(1), edge_index[1] == 2)


def test_pseudotensors_take_part():
    """Between the layers of three, not in two: there they could not become a scalar."""
    torch.manual_seed(0)
    model = Allegro(4, 3, tensor_channels=3, lmax=1, parity=2).double()
    model(*molecule()).square().sum().backward()
    product = model.layers[0].product
    pseudo = [number for number, (*_, q, _) in enumerate(product.paths) if q == 1]
    assert pseudo
    assert product.weight.grad is not None
    assert product.weight.grad[pseudo].abs().max() > 1e-9
    assert {path[3] for path in Allegro(4, 2, parity=2).layers[0].product.paths} == {0}


def test_neighbour_at_the_cutoff_counts_nothing():
    """And that with its derivative: nothing has a bias."""
    model = Allegro(4, 2, cutoff=3.0).double()
    z, edge_index = torch.tensor([6, 8]), torch.tensor([[0, 1], [1, 0]])
    edge_vec = torch.tensor([[3.0, 0.0, 0.0], [-3.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    x = model(z, edge_index, edge_vec)
    assert not x.any()
    (slope,) = torch.autograd.grad(x.sum(), edge_vec)
    assert not slope.any()


def test_size_of_features_at_the_start():
    """Neither vanishing nor exploding."""
    torch.manual_seed(0)
    x = Allegro(32, 3, avg_num_neighbors=5.0).double()(*molecule())
    assert 1e-4 < x.square().mean() < 20


@pytest.mark.parametrize(
    "wrong", [{"channels": 1}, {"num_layers": 0}, {"lmax": -1}, {"parity": 3}, {"tensor_channels": 0}], ids=str
)
def test_wrong_sizes(wrong):
    with pytest.raises(ValueError, match="Allegro needs channels ≥ 2"):
        Allegro(**wrong)
