"""NequIP: its authors' package, the paper's equations written out, and what the contract does not vary."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models.nequip import NequIP, NequIPConv
from pyg_equivariant.nn.gate import SILU_SCALE
from pyg_equivariant.nn.radial import BesselBasis
from pyg_equivariant.nn.tensor_product import FullPaths, ProperPaths
from pyg_equivariant.o3 import coupling, degree_slices, num_components, random_rotation, rotate, spherical_harmonics
from pyg_equivariant.testing import assert_close, example_molecule, potential_of

PEER = json.loads((Path(__file__).parents[1] / "parity" / "nequip.json").read_text())["models"]


def molecule(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Seven atoms, all within the cutoff of each other."""
    generator = torch.Generator().manual_seed(seed)
    pos = 1.2 * torch.randn(7, 3, generator=generator, dtype=torch.float64)
    edge_index = torch.cartesian_prod(torch.arange(7), torch.arange(7)).T.flip(0)
    edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    return torch.tensor([1, 6, 8, 1, 7, 6, 1]), edge_index, pos[edge_index[0]] - pos[edge_index[1]]


@pytest.fixture
def double():
    """Constants without float32's rounding, as in the peer."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", PEER)
def test_agrees_with_nequip(name):
    """What tests/parity/nequip.py has compared: the same weights, a head without biases, and large messages."""
    options = {"elements": (1, 6, 7, 8), "avg_num_neighbors": 5.0, **PEER[name]["settings"]}
    model = potential_of(NequIP(8, lmax_out=0, cutoff=3.0, radial=BesselBasis(8, 3.0), **options))
    with torch.no_grad():
        model.head.mlp[0].bias.zero_()
        model.head.mlp[2].bias.zero_()
        for layer in model.representation.layers:
            layer.filter[-1].weight.mul_(10)
    for expected in PEER[name]["predictions"]:
        prediction = model(RadiusGraph(3.0)(example_molecule(seed=expected["seed"])))
        assert prediction.energy.item() == pytest.approx(expected["energy"], rel=1e-9)
        assert prediction.forces.norm().item() == pytest.approx(expected["force"], rel=1e-9)


@settings(derandomize=True, deadline=None, max_examples=12)
@given(
    st.integers(0, 3),
    st.sampled_from([1, 2]),
    st.integers(1, 3),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([1, -1]),
    st.integers(0, 99),
)
def test_equivariant(lmax, parity, num_layers, lmax_out, sign, seed):
    torch.manual_seed(seed)
    lmax_out = None if lmax_out is None else min(lmax, lmax_out)
    model = NequIP(3, num_layers, lmax=lmax, parity=parity, lmax_out=lmax_out, avg_num_neighbors=6.0).double()
    z, edge_index, edge_vec = molecule(seed)
    rotation = sign * random_rotation(torch.Generator().manual_seed(seed))
    x = model(z, edge_index, edge_vec)
    assert x.shape == (7, model.parity, num_components(model.lmax), 3)
    assert_close(model(z, edge_index, edge_vec @ rotation.T), rotate(x, rotation), "rotated features", tolerance=1e-11)


def test_pseudotensors_appear():
    torch.manual_seed(0)
    x = NequIP(4, 3, lmax=2, parity=2).double()(*molecule())
    for slot in (0, 1):
        for rows in degree_slices(2):
            assert x[:, slot, rows].abs().max() > 1e-9


def test_convolution_equation():
    """The interaction block with explicit loops over edges, couplings and channels."""
    torch.manual_seed(0)
    paths, channels = ProperPaths(1, 1, 1), 2
    conv = NequIPConv(channels, paths, num_basis=3, elements=[1, 6, 8], avg_num_neighbors=5.0).double()
    z, edge_index = torch.tensor([8, 1, 6]), torch.tensor([[1, 2, 0], [0, 0, 1]])
    x = torch.randn(3, 1, 4, channels, dtype=torch.float64)
    edge_rbf = torch.rand(3, 3, dtype=torch.float64)
    edge_sh = spherical_harmonics(torch.randn(3, 3, dtype=torch.float64), 1)

    sent, weight = conv.linear_in(x)[:, 0], conv.filter(edge_rbf).view(3, 4, channels)
    rows = degree_slices(1)
    received = [torch.zeros(3, 2 * b.l3 + 1, len(b.pairs), channels, dtype=torch.float64) for b in paths.blocks]
    for e, (j, i) in enumerate(edge_index.T.tolist()):
        number = 0
        for block, total in zip(paths.blocks, received, strict=True):
            for index, (l1, l2) in enumerate(block.pairs):
                c = coupling(l1, l2, block.l3)
                term = torch.einsum("abm,ac,b->mc", c, sent[j, rows[l1]], edge_sh[e, rows[l2]])
                total[i, :, index] += term * weight[e, number] / 5.0**0.5
                number += 1
    types = [{1: 0, 6: 1, 8: 2}[int(number)] for number in z]
    y = torch.stack([x[i, 0] for i in range(3)])
    for i, t in enumerate(types):
        own = conv.self_connection.weight[0, :, t]
        scalars = received[0][i].flatten(1) @ conv.linear_out.weights[0]
        vectors = received[1][i].flatten(1) @ conv.linear_out.weights[1] + x[i, 0, 1:] @ own[1]
        gates = scalars[0, channels:] + x[i, 0, 0] @ conv.self_gates.weight[0, 0, t]
        y[i, 0] = SILU_SCALE * torch.nn.functional.silu(scalars[0, :channels] + x[i, 0, 0] @ own[0])
        y[i, 1:] = SILU_SCALE * torch.nn.functional.silu(gates) * vectors
    assert_close(conv(x, z, edge_index, edge_rbf, edge_sh)[:, 0], y, "interaction block")


def test_convolution_alone():
    """A PyG user's own network: any channels, parities and degrees; gradients reach everything."""
    torch.manual_seed(0)
    conv = NequIPConv(4, FullPaths(1, 2, 2, parity_in=2), num_basis=3)
    z, edge_index, edge_vec = molecule()
    x = torch.randn(7, 2, 4, 4)
    out = conv(x, z, edge_index, torch.rand(42, 3), spherical_harmonics(edge_vec.float(), 2))
    assert out.shape == (7, 2, 9, 4)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in conv.parameters())


def test_neighbour_at_the_cutoff_sends_nothing():
    """And that with its derivative: the filters have no bias."""
    model = NequIP(4, 2, cutoff=3.0).double()
    z, edge_index = torch.tensor([6, 8]), torch.tensor([[0, 1], [1, 0]])
    edge_vec = torch.tensor([[3.0, 0.0, 0.0], [-3.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    x = model(z, edge_index, edge_vec)
    assert torch.equal(x, model(z, edge_index[:, :0], edge_vec[:0]))
    (slope,) = torch.autograd.grad(x.sum(), edge_vec)
    assert not slope.any()


def test_scalar_end_of_the_paper():
    """The last block of an energy model makes true scalars only."""
    model = NequIP(4, 3, lmax=2, parity=2, lmax_out=0)
    z, edge_index, edge_vec = molecule()
    assert model(z, edge_index, edge_vec.float()).shape == (7, 1, 1, 4)
    assert (model.lmax, model.parity) == (0, 1)
    full = NequIP(4, 3, lmax=2, parity=2)
    assert sum(p.numel() for p in model.parameters()) < 0.7 * sum(p.numel() for p in full.parameters())


def test_elements_given_or_not_is_the_same_function():
    torch.manual_seed(0)
    few, every = NequIP(17, 2, lmax=1, elements=[8, 1, 6, 7]), NequIP(17, 2, lmax=1)
    state = few.state_dict()
    for name, value in every.state_dict().items():
        if "self_" in name:
            value[:, :, [1, 6, 7, 8]] = state[name]
            state[name] = value
    every.load_state_dict(state)
    z, edge_index, edge_vec = molecule()
    expected = few.double()(z, edge_index, edge_vec)
    assert_close(every.double()(z, edge_index, edge_vec), expected, "all elements")


@pytest.mark.parametrize("lmax", [1, 3])
def test_size_of_features_at_the_start(lmax):
    """Neither vanishing nor exploding through five blocks."""
    torch.manual_seed(0)
    model = NequIP(32, 5, lmax=lmax, elements=[1, 6, 7, 8], avg_num_neighbors=6.0)
    x = model.double()(*molecule())
    assert 0.05 < x[:, :, 0].square().mean() < 20


@pytest.mark.parametrize("wrong", [{"num_layers": 0}, {"lmax": -1}, {"parity": 3}, {"lmax": 1, "lmax_out": 2}], ids=str)
def test_wrong_sizes(wrong):
    with pytest.raises(ValueError, match=r"NequIP needs num_layers ≥ 1"):
        NequIP(4, **wrong)
