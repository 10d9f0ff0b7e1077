"""EGNN: another package, any dimension, the paper's equations written out, moving coordinates."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models.egnn import EGNN, EGNNConv, FrozenEGNN
from pyg_equivariant.testing import assert_close, example_molecule, fill_by_formula, potential_of

PEER = json.loads((Path(__file__).parents[1] / "parity" / "egnn.json").read_text())["models"]


def complete(num_nodes: int) -> torch.Tensor:
    return (1 - torch.eye(num_nodes)).nonzero().T.flip(0)


def with_loops(data: Data) -> Data:
    """All pairs of atoms, each with itself too."""
    atoms = torch.arange(len(data.z))
    return Data(z=data.z, pos=data.pos, edge_index=torch.cartesian_prod(atoms, atoms).T)


@pytest.mark.parametrize(("cls", "edges"), [(EGNN, with_loops), (FrozenEGNN, RadiusGraph(3.0))])
def test_agrees_with_egnn_pytorch(cls, edges):
    """What tests/parity/egnn.py has compared: the same weights, and edges without an envelope."""
    entry = PEER[cls.__name__]
    model = potential_of(cls(**entry["settings"], cutoff=math.inf))
    for expected in entry["predictions"]:
        prediction = model(edges(example_molecule(seed=expected["seed"])))
        assert prediction.energy.item() == pytest.approx(expected["energy"], rel=1e-9)
        assert prediction.forces.norm().item() == pytest.approx(expected["force"], rel=1e-9)


def test_equations():
    """Eqs. 3 to 6 atom by atom, on the paper's complete graph."""
    conv = EGNNConv(4, avg_num_neighbors=4.0).double()
    fill_by_formula(conv)
    generator = torch.Generator().manual_seed(0)
    x, pos = (torch.randn(5, n, generator=generator, dtype=torch.float64) for n in (4, 3))
    edge_index = complete(5)
    dx, shift = conv(x, edge_index, pos[edge_index[0]] - pos[edge_index[1]], torch.ones(20, 1, dtype=torch.float64))
    for i in range(5):
        received, moved = torch.zeros(4, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        for j in range(5):
            if i == j:
                continue
            square = (pos[i] - pos[j]).square().sum().view(1)
            m = conv.activation(conv.edge_mlp(torch.cat([x[i], x[j], square])))
            m = m * conv.edge_gate(m)
            received += m
            moved += (pos[i] - pos[j]) * conv.coordinate_mlp(m) / 4
        assert_close(shift[i], moved, "eq. 4")
        assert_close(dx[i], conv.node_mlp(torch.cat([x[i], received])), "eqs. 5 and 6")


@pytest.mark.parametrize("dimension", [1, 2, 3, 5])
def test_any_dimension(dimension):
    conv = EGNNConv(4).double()
    fill_by_formula(conv)
    generator = torch.Generator().manual_seed(dimension)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    pos = torch.randn(6, dimension, generator=generator, dtype=torch.float64)
    matrix, _ = torch.linalg.qr(torch.randn(dimension, dimension, generator=generator, dtype=torch.float64))
    edge_index, ones = complete(6), torch.ones(30, 1, dtype=torch.float64)
    edge_vec = pos[edge_index[0]] - pos[edge_index[1]]
    dx, shift = conv(x, edge_index, edge_vec, ones)
    dx_turned, shift_turned = conv(x, edge_index, edge_vec @ matrix.T, ones)
    assert_close(dx_turned, dx, "scalars")
    assert_close(shift_turned, shift @ matrix.T, "displacements")


def test_displacement_is_what_moves():
    """The l = 1 features are where the atoms went, summed over the layers."""
    model = EGNN(4, 1).double()
    fill_by_formula(model)
    pos = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z, edge_index = torch.tensor([6, 1, 8, 1]), complete(4)
    edge_vec = pos[edge_index[0]] - pos[edge_index[1]]
    _, shift = model.convs[0](model.embedding(z), edge_index, edge_vec, torch.ones(12, 1, dtype=torch.float64))
    x = model(z, edge_index, edge_vec)
    assert_close(x[:, 0, 1:4], shift.unsqueeze(-1).expand(-1, -1, 4), "displacement")
    assert shift.abs().max() > 1e-3


def test_frozen_ignores_coordinate_updates():
    frozen = FrozenEGNN(4, 2)
    assert not any("coordinate" in name for name, _ in frozen.named_parameters())
