"""EQGAT: the equations written out."""

import pytest
import torch

from pyg_equivariant.models.eqgat import EQGAT, EQGATConv, EQGATFirstConv, EQGATUpdate
from pyg_equivariant.testing import assert_close, fill_by_formula

EDGES = torch.tensor([[0, 2, 1, 0, 2], [1, 1, 0, 2, 2]])


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    shapes = {"scalar": (3, 4), "vector": (3, 3, 2), "edge_dir": (5, 3), "edge_rbf": (5, 3), "envelope": (5,)}
    return {key: torch.rand(shape, generator=generator, dtype=torch.float64) for key, shape in shapes.items()}


def messages(conv, scalar, edge_rbf, envelope):
    """Update of the scalars, and the gates times the mean, with an explicit loop."""
    ds = torch.zeros_like(scalar)
    out = [
        conv.edge_out(torch.nn.functional.silu(conv.edge_in(torch.cat([scalar[i], scalar[j], rbf]))))
        for (j, i), rbf in zip(EDGES.T.tolist(), edge_rbf, strict=True)
    ]
    gates = []
    for e, (j, i) in enumerate(EDGES.T.tolist()):
        same = [k for k in range(5) if EDGES[1, k] == i]
        total = sum(envelope[k] * out[k][:4].exp() for k in same)
        ds[i] += envelope[e] ** 2 * out[e][:4].exp() / total * conv.value(scalar[j])
        gates.append(out[e][4:] * envelope[e] ** 2 / sum(envelope[k] for k in same))
    return ds, gates


def test_first_conv_equations(inputs):
    conv = EQGATFirstConv(4, 2, 3).double()
    fill_by_formula(conv)
    ds, gates = messages(conv, inputs["scalar"], inputs["edge_rbf"], inputs["envelope"])
    dv = torch.zeros(3, 3, 2).double()
    for e, i in enumerate(EDGES[1].tolist()):
        dv[i] += inputs["edge_dir"][e][:, None] * gates[e]
    del inputs["vector"]
    actual = conv(edge_index=EDGES, **inputs)
    assert_close(actual[0], ds, "scalars")
    assert_close(actual[1], dv, "vectors")


def test_conv_equations(inputs):
    conv = EQGATConv(4, 2, 3).double()
    fill_by_formula(conv)
    ds, gates = messages(conv, inputs["scalar"], inputs["edge_rbf"], inputs["envelope"])
    vector, sent, dv = inputs["vector"], conv.mix(inputs["vector"]), torch.zeros(3, 3, 2).double()
    for e, (j, i) in enumerate(EDGES.T.tolist()):
        g0, g1, g2 = gates[e].split(2)
        dv[i] += inputs["edge_dir"][e][:, None] * g0 + g1 * sent[j] + g2 * torch.linalg.cross(vector[i], sent[j], dim=0)
    actual = conv(edge_index=EDGES, **inputs)
    assert_close(actual[0], ds, "scalars")
    assert_close(actual[1], dv, "vectors")


def test_update_equations(inputs):
    update = EQGATUpdate(4, 2).double()
    fill_by_formula(update)
    scalar, vector = inputs["scalar"], inputs["vector"]
    left, right = (vector @ weight.T for weight in update.mix.weight.split(2))
    gate, ds = update.context(torch.cat([scalar, left.norm(dim=1)], -1)).split([2, 4], -1)
    actual = update(scalar, vector)
    assert_close(actual[0], ds, "scalars", tolerance=1e-7)
    assert_close(actual[1], (gate[:, None] * right) @ update.out.weight.T, "vectors", tolerance=1e-7)


def test_number_of_weights():
    """The authors' default network has 629,440, without embedding and what the layout asks of the vectors."""
    model = EQGAT()
    extra = [*model.embedding.parameters(), *model.vectors.parameters()]
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in extra) == 629_440


def test_needs_a_layer():
    with pytest.raises(ValueError, match="at least one layer, got num_layers=0"):
        EQGAT(num_layers=0)
