"""MACE: its authors' package, the paper's equations written out, and what the contract does not vary."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models import mace
from pyg_equivariant.models.mace import MACE, FirstMACEConv, MACEConv, ResidualMACE
from pyg_equivariant.o3 import coupling, degree_slices, num_components, random_rotation, rotate, spherical_harmonics
from pyg_equivariant.testing import assert_close, example_molecule, potential_of

PEER = json.loads((Path(__file__).parents[1] / "parity" / "mace.json").read_text())["models"]


def molecule(seed: int = 0, num_atoms: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Atoms within the cutoff of each other."""
    generator = torch.Generator().manual_seed(seed)
    pos = 1.2 * torch.randn(num_atoms, 3, generator=generator, dtype=torch.float64)
    edge_index = torch.cartesian_prod(torch.arange(num_atoms), torch.arange(num_atoms)).T.flip(0)
    edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    z = torch.tensor([1, 6, 8, 1, 7, 6])[:num_atoms]
    return z, edge_index, pos[edge_index[0]] - pos[edge_index[1]]


@pytest.fixture
def double():
    """Constants without float32's rounding, as in the peer."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", PEER)
def test_agrees_with_mace_torch(name):
    """What tests/parity/mace.py has compared: the same weights, and the published read-out in our head."""
    entry = PEER[name]
    end, hidden = 8 * (entry["settings"]["num_layers"] - 1), 5
    cls = getattr(mace, entry["class"])
    model = potential_of(cls(8, cutoff=3.0, elements=(1, 6, 7, 8), avg_num_neighbors=5.0, **entry["settings"]))
    first, _, last = model.head.mlp
    with torch.no_grad():
        first.weight[0, end:] = 0
        first.weight[1] = -first.weight[0]
        first.weight[2:, :end] = 0
        last.weight[0, :2] = torch.tensor([1.0, -1.0])
        last.weight[0, 2 + hidden :] = 0
        first.bias.zero_()
        last.bias.zero_()
    for expected in entry["predictions"]:
        prediction = model(RadiusGraph(3.0)(example_molecule(seed=expected["seed"])))
        assert prediction.energy.item() == pytest.approx(expected["energy"], rel=1e-7, abs=1e-12)
        assert prediction.forces.norm().item() == pytest.approx(expected["force"], rel=1e-7)


@settings(derandomize=True, deadline=None, max_examples=6)
@given(st.integers(0, 2), st.integers(2, 3), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, -1]))
def test_equivariant(lmax, lmax_sh, correlation, num_layers, sign):
    torch.manual_seed(0)
    lmax_out = max(lmax - 1, 0)
    sizes = {"lmax": lmax, "lmax_sh": lmax_sh, "lmax_out": lmax_out, "correlation": correlation}
    model = MACE(3, num_layers, **sizes, avg_num_neighbors=5.0).double()
    z, edge_index, edge_vec = molecule()
    rotation = sign * random_rotation(torch.Generator().manual_seed(1))
    x = model(z, edge_index, edge_vec)
    assert x.shape == (6, 1, num_components(lmax_out), 3 * num_layers)
    assert_close(model(z, edge_index, edge_vec @ rotation.T), rotate(x, rotation), "rotated features", tolerance=1e-11)


@pytest.mark.parametrize("cls", [MACEConv, FirstMACEConv])
def test_convolution_equation(cls):
    """One layer with explicit loops over edges, couplings and channels."""
    torch.manual_seed(0)
    conv = cls(2, 1, 1, 1, correlation=2, num_basis=3, elements=[1, 6, 8], avg_num_neighbors=5.0).double()
    z, edge_index = torch.tensor([8, 1, 6]), torch.tensor([[1, 2, 0], [0, 0, 1]])
    x = torch.randn(3, 1, 4, 2, dtype=torch.float64)
    edge_rbf, edge_sh = torch.rand(3, 3, dtype=torch.float64), spherical_harmonics(torch.randn(3, 3).double(), 1)
    sent, weight = conv.linear_in(x)[:, 0], conv.filter(edge_rbf)
    rows = degree_slices(1)
    pairs = [(0, 0, 0), (1, 1, 0), (0, 1, 1), (1, 0, 1)]  # l1, l2, l3
    density = torch.zeros(3, 4, 2, dtype=torch.float64)
    for e, (j, i) in enumerate(edge_index.T.tolist()):
        for number, (l1, l2, l3) in enumerate(pairs):
            term = torch.einsum("abm,ac,b->mc", coupling(l1, l2, l3), sent[j, rows[l1]], edge_sh[e, rows[l2]])
            mixed = conv.linear_sum.weights[l3][2 * (number % 2) :][:2]
            density[i, rows[l3]] += (term * weight[e, number]) @ mixed / 5.0
    types = [2, 0, 1]
    own = conv.self_connection.weight[0, :, types]  # [L, N, C, D]
    if cls is FirstMACEConv:
        density = torch.stack([density[:, m, None] @ own[degree] for m, degree in enumerate((0, 1, 1, 1))], 1)[:, :, 0]
    scalar, vector = density[:, :1], density[:, 1:]
    w = conv.contraction.weight.weight[types][:, :, None]
    assert conv.contraction.paths == [(0, (0,)), (0, (0, 0)), (0, (1, 1)), (1, (1,)), (1, (0, 1))]
    square = vector.square().sum(1, keepdim=True)
    scalars = (w[:, 0] * scalar + w[:, 1] * scalar**2 / 2**0.5 + w[:, 2] * square / 6**0.5) / 3**0.5
    vectors = (w[:, 3] * vector + w[:, 4] * scalar * vector) / 2**0.5
    y = conv.linear_out(torch.cat([scalars, vectors], 1)[:, None])[:, 0]
    if cls is MACEConv:
        y = y + torch.stack([x[:, 0, m, None] @ own[degree] for m, degree in enumerate((0, 1, 1, 1))], 1)[:, :, 0]
    assert_close(conv(x, z, edge_index, edge_rbf, edge_sh)[:, 0], y, "one layer", tolerance=1e-12)


@pytest.mark.parametrize("correlation", [1, 2, 3])
def test_order_of_messages(correlation):
    """An atom's message has terms of up to so many neighbours at once, and no others."""
    torch.manual_seed(0)
    conv = FirstMACEConv(4, 0, 2, 1, correlation=correlation, num_basis=3).double()
    x, z = torch.randn(5, 1, 1, 4, dtype=torch.float64), torch.tensor([6, 1, 1, 8, 7])
    edge_rbf, edge_sh = torch.rand(4, 3, dtype=torch.float64), spherical_harmonics(torch.randn(4, 3).double(), 2)
    edge_index = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0]])

    def message(chosen: tuple[int, ...]) -> torch.Tensor:
        edges = list(chosen)
        return conv(x, z, edge_index[:, edges], edge_rbf[edges], edge_sh[edges])[0]

    def joint(number: int) -> float:
        subsets = itertools.chain(*(itertools.combinations(range(number), size) for size in range(number + 1)))
        return sum((-1) ** len(chosen) * message(chosen) for chosen in subsets).abs().max().item()

    assert joint(correlation) > 1e-4
    assert joint(correlation + 1) < 1e-12


def test_layers_side_by_side():
    torch.manual_seed(0)
    model = MACE(4, 3, lmax=1).double()
    z, edge_index, edge_vec = molecule()
    short = MACE(4, 2, lmax=1).double()
    short.load_state_dict({name: value for name, value in model.state_dict().items() if "layers.2" not in name})
    x, begin = model(z, edge_index, edge_vec), short(z, edge_index, edge_vec)
    assert model.channels == 12
    assert torch.equal(x[..., :8], begin)
    assert x[..., 8:].abs().max() > 1e-6


def test_atom_without_neighbours():
    """The paper's first layer keeps nothing of it, so that its energy is its reference."""
    z, edge_index, edge_vec = torch.tensor([6]), torch.zeros(2, 0, dtype=torch.long), torch.zeros(0, 3)
    assert not MACE(4, 2)(z, edge_index, edge_vec).any()
    assert ResidualMACE(4, 2)(z, edge_index, edge_vec).any()


def test_neighbour_at_the_cutoff_sends_nothing():
    """And that with its derivative: the filters have no bias."""
    model = MACE(4, 2, cutoff=3.0).double()
    z, edge_index = torch.tensor([6, 8]), torch.tensor([[0, 1], [1, 0]])
    edge_vec = torch.tensor([[3.0, 0.0, 0.0], [-3.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    x = model(z, edge_index, edge_vec)
    assert torch.equal(x, model(z, edge_index[:, :0], edge_vec[:0]))
    (slope,) = torch.autograd.grad(x.sum(), edge_vec)
    assert not slope.any()


def test_gradients_reach_everything():
    torch.manual_seed(0)
    model = MACE(4, 2, elements=[1, 6, 7, 8]).double()
    model(*molecule()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    "wrong", [{"num_layers": 0}, {"lmax": -1}, {"lmax": 1, "lmax_out": 2}, {"lmax": 4}, {"correlation": 0}], ids=str
)
def test_wrong_sizes(wrong):
    with pytest.raises(ValueError, match=r"MACE needs num_layers ≥ 1"):
        MACE(4, **wrong)
