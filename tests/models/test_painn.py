"""PaiNN: its authors' package, and the paper's equations written out."""

import json
from pathlib import Path

import pytest
import torch

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models.painn import PaiNN, PaiNNConv, PaiNNUpdate
from pyg_equivariant.nn.radial import GaussianBasis
from pyg_equivariant.testing import assert_close, example_molecule, fill_by_formula, potential_of

PEER = json.loads((Path(__file__).parents[1] / "parity" / "schnetpack.json").read_text())["models"]


class GaussiansAndOne(GaussianBasis):
    """With the constant function, whose weights are a bias of the filters."""

    def __init__(self, num_basis, cutoff):
        super().__init__(num_basis, cutoff)
        self.num_basis += 1

    def forward(self, edge_len):
        return torch.cat([super().forward(edge_len), torch.ones_like(edge_len)[:, None]], 1)


@pytest.mark.parametrize(
    ("name", "radial"), [("PaiNN", GaussianBasis), ("PaiNN, filters with a bias", GaussiansAndOne)]
)
def test_agrees_with_schnetpack(name, radial):
    model = potential_of(PaiNN(16, 3, cutoff=3.0, radial=radial(16, 3.0)))
    for expected in PEER[name]["predictions"]:
        prediction = model(RadiusGraph(3.0)(example_molecule(seed=expected["seed"])))
        assert prediction.energy.item() == pytest.approx(expected["energy"], rel=1e-9)
        assert prediction.forces.norm().item() == pytest.approx(expected["force"], rel=1e-9)


def test_message_equations():
    """Eqs. 7 and 8 with an explicit loop over the edges."""
    conv = PaiNNConv(4, 3).double()
    fill_by_formula(conv)
    generator = torch.Generator().manual_seed(0)
    scalar = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    vector = torch.randn(3, 3, 4, generator=generator, dtype=torch.float64)
    edge_index = torch.tensor([[0, 2, 1, 0], [1, 1, 0, 2]])
    edge_dir = torch.nn.functional.normalize(torch.randn(4, 3, generator=generator, dtype=torch.float64), dim=-1)
    edge_rbf = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    ds, dv = torch.zeros_like(scalar), torch.zeros_like(vector)
    for e, (j, i) in enumerate(edge_index.T.tolist()):
        s, vs, vv = (conv.context(scalar[j]) * conv.filter(edge_rbf[e])).split(4)
        ds[i] += s
        dv[i] += vector[j] * vv + edge_dir[e][:, None] * vs
    actual = conv(scalar, vector, edge_index, edge_dir, edge_rbf)
    assert_close(actual[0], ds, "eq. 7")
    assert_close(actual[1], dv, "eq. 8")


def test_update_equations():
    """Eqs. 9 and 10 atom by atom."""
    update = PaiNNUpdate(4).double()
    fill_by_formula(update)
    generator = torch.Generator().manual_seed(0)
    scalar = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    vector = torch.randn(3, 3, 4, generator=generator, dtype=torch.float64)
    u, v = (vector @ weight.T for weight in update.mix.weight.split(4))
    a_ss, a_sv, a_vv = update.context(torch.cat([scalar, v.norm(dim=1)], -1)).split(4, -1)
    ds, dv = update(scalar, vector)
    assert_close(ds, a_ss + a_sv * (u * v).sum(1), "eq. 9", tolerance=1e-7)
    assert_close(dv, a_vv[:, None] * u, "eq. 10", tolerance=1e-7)


def test_first_layer_has_no_weights_for_vectors():
    """Which are zero there: with them, and any weights, the outcome would be the same."""
    model = PaiNN(4, 2, cutoff=3.0).double()
    fill_by_formula(model)
    graph = RadiusGraph(3.0)(example_molecule())
    source, target = graph.edge_index
    edge_vec = graph.pos[source] - graph.pos[target]
    expected = model(graph.z, graph.edge_index, edge_vec)
    first, whole = model.convs[0], PaiNNConv(4, 20).double()
    with torch.no_grad():
        whole.filter.weight[:, :8] = first.filter.weight
        for mine, theirs in zip([*whole.context][::2], [*first.context][::2], strict=True):
            mine.weight[: len(theirs.weight)] = theirs.weight
            mine.bias[: len(theirs.bias)] = theirs.bias
    model.convs[0] = whole
    assert sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in first.parameters()) == 4 * (4 + 1 + 20)
    assert_close(model(graph.z, graph.edge_index, edge_vec).detach(), expected.detach(), "features")
