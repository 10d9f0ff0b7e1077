"""SchNet against PyG's own and its authors' package, with copied weights."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import SchNet as Oracle

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.heads import EnergyHead
from pyg_equivariant.models.schnet import SchNet
from pyg_equivariant.nn.activation import ShiftedSoftplus
from pyg_equivariant.nn.radial import GaussianBasis
from pyg_equivariant.potential import Potential
from pyg_equivariant.testing import assert_close, example_molecule, potential_of

PEER = json.loads((Path(__file__).parents[1] / "parity" / "schnetpack.json").read_text())["models"]


@pytest.mark.parametrize("expected", PEER["SchNet"]["predictions"], ids=lambda p: p["seed"])
def test_agrees_with_schnetpack(expected):
    model = potential_of(SchNet(16, 3, cutoff=3.0, radial=GaussianBasis(16, 3.0)))
    prediction = model(RadiusGraph(3.0)(example_molecule(seed=expected["seed"])))
    assert prediction.energy.item() == pytest.approx(expected["energy"], rel=1e-9)
    assert prediction.forces.norm().item() == pytest.approx(expected["force"], rel=1e-9)


def complete_graph(data: Data, cutoff: float) -> Data:
    pairs = torch.cdist(data.pos, data.pos).lt(cutoff).fill_diagonal_(False).nonzero().T
    return Data(z=data.z, pos=data.pos, edge_index=pairs.flip(0))


def copy(source: nn.Linear, target: nn.Linear) -> None:
    target.load_state_dict(source.state_dict())


def test_agrees_with_pyg():
    torch.manual_seed(0)
    graph = complete_graph(example_molecule(), 2.5)
    source, target = graph.edge_index
    oracle = Oracle(
        hidden_channels=32,
        num_filters=32,
        num_interactions=3,
        num_gaussians=20,
        cutoff=2.5,
        interaction_graph=lambda pos, batch: (graph.edge_index, (pos[source] - pos[target]).norm(dim=-1)),
    ).double()
    model = Potential(
        SchNet(32, 3, cutoff=2.5, radial=GaussianBasis(20, 2.5)), EnergyHead(32, ShiftedSoftplus())
    ).double()
    ours = model.representation
    with torch.no_grad():
        ours.embedding.weight[:100] = oracle.embedding.weight
        ours.radial.offset.copy_(oracle.distance_expansion.offset)
        for block, reference in zip(ours.blocks, oracle.interactions, strict=True):
            copy(reference.mlp[0], block.conv.filter[0])
            copy(reference.mlp[2], block.conv.filter[2])
            copy(reference.conv.lin1, block.conv.dense)
            copy(reference.conv.lin2, block.mlp[0])
            copy(reference.lin, block.mlp[2])
        copy(oracle.lin1, model.head.mlp[0])
        copy(oracle.lin2, model.head.mlp[2])
    pos = graph.pos.clone().requires_grad_()
    expected = oracle(graph.z, pos, torch.zeros_like(graph.z))
    (gradient,) = torch.autograd.grad(expected.sum(), pos)
    prediction = model.eval()(graph)
    # the oracle keeps its Gaussian width in float32 precision
    assert_close(prediction.energy, expected.detach().view(-1), "energy", tolerance=1e-6)
    assert_close(prediction.forces, -gradient, "forces", tolerance=1e-6)
