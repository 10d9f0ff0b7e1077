"""The equivariant transformer: its authors' package, and the equations written out."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import silu

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models.equivariant_transformer import EquivariantTransformer, EquivariantTransformerConv
from pyg_equivariant.nn.neighbor_embedding import NeighborEmbedding
from pyg_equivariant.testing import assert_close, example_molecule, fill_by_formula, potential_of

PEER = json.loads((Path(__file__).parents[1] / "parity" / "torchmdnet.json").read_text())
EDGES = torch.tensor([[0, 2, 1, 0, 2], [1, 1, 0, 2, 2]])


@pytest.mark.parametrize("expected", PEER["models"]["EquivariantTransformer"]["predictions"], ids=lambda p: p["seed"])
def test_agrees_with_torchmdnet(expected):
    settings = PEER["models"]["EquivariantTransformer"]["settings"]
    model = potential_of(EquivariantTransformer(**settings))
    prediction = model(RadiusGraph(model.cutoff)(example_molecule(seed=expected["seed"])))
    assert prediction.energy.item() == pytest.approx(expected["energy"], rel=1e-9)
    assert prediction.forces.norm().item() == pytest.approx(expected["force"], rel=1e-9)


def test_conv_equations():
    """The update layer with an explicit loop over edges and heads."""
    conv = EquivariantTransformerConv(4, 3, num_heads=2).double()
    fill_by_formula(conv)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    edge_dir = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    edge_rbf = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    u = torch.rand(5, generator=generator, dtype=torch.float64)
    s, v = conv.norm(x[:, 0]), x[:, 1:]
    y, w = torch.zeros(3, 4).double(), torch.zeros(3, 3, 4).double()
    for e, (j, i) in enumerate(EDGES.T.tolist()):
        score = conv.query(s[i]) * conv.key(s[j]) * silu(conv.filter.key(edge_rbf[e]))
        v1, v2, v3 = (conv.value(s[j]) * silu(conv.filter.value(edge_rbf[e]))).split(4)
        for head in (slice(0, 2), slice(2, 4)):
            y[i, head] += silu(score[head].sum()) * u[e] * v1[head]
        w[i] += u[e] * (v[j] * v2 + edge_dir[e][:, None] * v3)
    o1, o2, o3 = conv.out(y).split(4, -1)
    left, right, own = (v @ weight.T for weight in conv.mix.weight.split(4))
    ds, dv = conv(x[:, 0], v, EDGES, edge_dir, edge_rbf, u)
    assert_close(ds, o2 * (left * right).sum(1) + o3, "scalars")
    assert_close(dv, w + o1[:, None] * own, "vectors")


def test_neighbor_embedding_equations():
    layer = NeighborEmbedding(4, 3).double()
    fill_by_formula(layer)
    z = torch.tensor([8, 1, 6])
    x, edge_rbf = torch.rand(3, 4).double(), torch.rand(5, 3).double()
    known = torch.zeros(3, 4).double()
    for e, (j, i) in enumerate(EDGES.T.tolist()):
        known[i] += layer.embedding(z)[j] * layer.filter(edge_rbf[e])
    assert_close(layer(x, z, EDGES, edge_rbf), layer.combine(torch.cat([x, known], -1)), "embeddings of the neighbours")


def test_heads_divide_the_channels():
    with pytest.raises(ValueError, match="a multiple of num_heads, got channels=12, num_heads=8"):
        EquivariantTransformer(12)
