"""TensorNet: its authors' package, and the matrices behind the components."""

import json
from pathlib import Path

import pytest
import torch

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models.tensornet import TensorNet, TensorNetConv, matrix_basis
from pyg_equivariant.o3.harmonics import spherical_harmonics
from pyg_equivariant.testing import assert_close, example_molecule, fill_by_formula, potential_of

PEER = json.loads((Path(__file__).parents[1] / "parity" / "torchmdnet.json").read_text())


@pytest.mark.parametrize("expected", PEER["models"]["TensorNet"]["predictions"], ids=lambda p: p["seed"])
def test_agrees_with_torchmdnet(expected):
    model = potential_of(TensorNet(**PEER["models"]["TensorNet"]["settings"]))
    prediction = model(RadiusGraph(model.cutoff)(example_molecule(seed=expected["seed"])))
    assert prediction.energy.item() == pytest.approx(expected["energy"], rel=1e-9)
    assert prediction.forces.norm().item() == pytest.approx(expected["force"], rel=1e-9)


def test_matrix_basis():
    """Orthonormal, and the harmonics of a direction are the components of its matrices."""
    basis = matrix_basis()
    assert_close(torch.einsum("mab,nab->mn", basis, basis), torch.eye(9).double(), "products")
    v = torch.nn.functional.normalize(torch.tensor([0.3, -1.2, 0.7]).double(), dim=0)
    cross = torch.linalg.cross(v.expand(3, 3), torch.eye(3).double()).T  # columns v × e_b
    identity = torch.eye(3).double()
    expected = identity + cross + torch.outer(v, v) - identity / 3
    components = spherical_harmonics(v, 2) * TensorNet(8, 1).double().matrices.per_harmonic
    assert_close(torch.einsum("m,mab->ab", components, basis), expected, "1 + [v]× + v vᵀ − ⅓")


def test_conv_equations():
    """The interaction layer with matrices and an explicit loop over the edges."""
    conv = TensorNetConv(2, 3).double()
    fill_by_formula(conv)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 9, 2, generator=generator, dtype=torch.float64)
    edge_index = torch.tensor([[0, 2, 1, 0], [1, 1, 0, 2]])
    edge_rbf = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    u = torch.rand(4, generator=generator, dtype=torch.float64)
    basis = matrix_basis()

    def to_matrix(components):
        return torch.einsum("mab,nmc->ncab", basis, components)

    def linear(weight, matrix):
        identity = torch.eye(3).double()
        trace = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * identity
        anti, symmetric = (matrix - matrix.mT) / 2, (matrix + matrix.mT) / 2 - trace
        return sum(
            torch.einsum("ncab,cd->ndab", part, w) for part, w in zip((trace, anti, symmetric), weight[0], strict=True)
        )

    def bounded(matrix):
        return matrix / (matrix.square().sum((-1, -2), keepdim=True) + 1)

    matrix = bounded(to_matrix(x))
    y = linear(conv.linear_in.weight, matrix)
    message = torch.zeros_like(y)
    for e, (j, i) in enumerate(edge_index.T.tolist()):
        weight = conv.filter(edge_rbf[e : e + 1], u[e : e + 1]).view(3, 2, 1, 1)
        trace = y[j].diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(3).double()
        parts = trace, (y[j] - y[j].mT) / 2, (y[j] + y[j].mT) / 2 - trace
        message[i] += sum(w * part for w, part in zip(weight, parts, strict=True))
    change = linear(conv.linear_out.weight, bounded(y @ message + message @ y))
    expected = matrix + change + change @ change
    assert_close(to_matrix(conv(x, edge_index, edge_rbf, u)), expected, "matrices")
