"""Equiformer: agreement with EquiformerV2, the paper's equations written out edge by edge, activations."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models.equiformer import (
    EdgeDegreeEmbedding,
    Equiformer,
    EquiformerConv,
    SeparableNorm,
    SmoothLeakyReLU,
)
from pyg_equivariant.nn.cutoff import Cutoff
from pyg_equivariant.nn.radial import GaussianBasis
from pyg_equivariant.nn.s2 import GridSiLU
from pyg_equivariant.nn.so2 import EdgeFrame
from pyg_equivariant.o3 import degree_slices, random_rotation, spherical_harmonics, wigner
from pyg_equivariant.testing import assert_close, example_molecule, fill_by_formula, rotation

PEER = json.loads((Path(__file__).parents[1] / "parity" / "equiformer_v2.json").read_text())


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_degrees(orders: list[torch.Tensor], lmax: int, mmax: int, channels: int) -> torch.Tensor:
    """``[M, C]`` of the orders of one edge, which are ``[2, (lmax + 1 − m) C]``."""
    x = torch.zeros((lmax + 1) ** 2, channels, dtype=torch.float64)
    for n in range(lmax + 1):
        for m in range(min(n, mmax) + 1):
            columns = slice((n - m) * channels, (n - m + 1) * channels)
            x[n * (n + 1) + m] = orders[m][0, columns]
            x[n * (n + 1) - m] = orders[m][-1, columns]
    return x


def in_orders(x: torch.Tensor, lmax: int, mmax: int) -> list[torch.Tensor]:
    rows = [
        [[n * (n + 1) + s * m for n in range(m, lmax + 1)] for s in (1, -1)[: 1 + (m > 0)]] for m in range(mmax + 1)
    ]
    return [torch.stack([x[r].flatten() for r in order]) for order in rows]


class Always(Cutoff):
    def envelope(self, u):
        return torch.ones_like(u)


@pytest.mark.parametrize("name", PEER["models"])
def test_agrees_with_equiformer_v2(name):
    """Features and forces of the peer, whose weights were copied from ours."""
    settings = PEER["models"][name]["settings"]
    cutoff = settings["cutoff"]
    model = Equiformer(
        **settings,
        radial=GaussianBasis(7, cutoff),
        envelope=Always(cutoff),
        activation=GridSiLU(20),
        avg_num_neighbors=3.0,
    ).double()
    fill_by_formula(model)
    for expected in PEER["models"][name]["predictions"]:
        data = RadiusGraph(cutoff)(example_molecule(5, seed=expected["seed"]))
        edge_vec = (data.pos[data.edge_index[0]] - data.pos[data.edge_index[1]]).requires_grad_()
        x = model(data.z, data.edge_index, edge_vec)[:, 0]
        (gradient,) = torch.autograd.grad(x[:, 0].sum(), edge_vec)
        forces = torch.zeros_like(data.pos).index_add(0, data.edge_index[1], gradient)
        forces = forces.index_add(0, data.edge_index[0], -gradient)
        assert x[:, 0].sum().item() == pytest.approx(expected["energy"], rel=1e-8)
        assert x.norm().item() == pytest.approx(expected["features"], rel=1e-8)
        assert forces.norm().item() == pytest.approx(expected["force"], rel=1e-6)


@pytest.mark.parametrize("mmax", [1, 2])
def test_attention_equations(mmax):
    """Fig. 1b edge by edge, with Wigner matrices of a rotation that is not the layer's own, and points of a grid."""
    lmax, c, hidden = 2, 4, 3
    conv = EquiformerConv(c, num_basis=3, lmax=lmax, mmax=mmax, num_heads=2, hidden=hidden).double()
    fill_by_formula(conv)
    x, z = normal(3, 1, 9, c), torch.tensor([8, 1, 6])
    edge_index = torch.tensor([[0, 2, 1, 0], [1, 1, 0, 2]])
    edge_dir = functional.normalize(normal(4, 3, seed=1), dim=1)
    edge_rbf, envelope = normal(4, 3, seed=2).abs(), torch.tensor([0.9, 0.3, 0.5, 0.7], dtype=torch.float64)
    actual = conv(x, z, edge_index, edge_rbf, EdgeFrame(lmax, mmax).double()(edge_dir), envelope)

    values, scores = [], []
    filters = conv.radial(z, edge_index, edge_rbf)
    for e, (j, i) in enumerate(edge_index.T.tolist()):
        up = edge_dir[e]
        side = torch.linalg.cross(up, functional.normalize(normal(3, seed=9), dim=0))  # any turn about the edge
        side = side / side.norm()
        turn = wigner(torch.stack([side, up, torch.linalg.cross(side, up)]), lmax)
        both = in_orders(turn @ torch.cat([x[j, 0], x[i, 0]], -1), lmax, mmax)
        both = [b * f for b, f in zip(both, filters[e].split([(3 - m) * 2 * c for m in range(mmax + 1)]), strict=True)]
        first = both[0][0] @ conv.so2_in.weight + conv.so2_in.bias
        f0, g, s = first.split([3 * 2, 2 * hidden, 2])
        f = [f0[None]]
        for b, weight in zip(both[1:], conv.so2_in.weights, strict=True):
            value = torch.complex(b[0], b[1]) @ torch.complex(weight[0], weight[1])
            f.append(torch.stack([value.real, value.imag]))
        grid = conv.activation
        on_sphere = grid.synthesis @ torch.cat([o.reshape(-1, 2) for o in f])
        mean_square = (grid.share[:, None] * on_sphere**2).sum(0)
        on_sphere = on_sphere / 2 + on_sphere**2 / (4 * (1 + mean_square).sqrt())
        rows = torch.cat([functional.silu(s)[None], grid.analysis @ on_sphere]).split([o.numel() // 2 for o in f])
        v = [r.reshape(o.shape) for r, o in zip(rows, f, strict=True)]
        out = [(v[0][0] @ conv.so2_out.weight + conv.so2_out.bias)[None]]
        for b, weight in zip(v[1:], conv.so2_out.weights, strict=True):
            value = torch.complex(b[0], b[1]) @ torch.complex(weight[0], weight[1])
            out.append(torch.stack([value.real, value.imag]))
        values.append(turn.T @ in_degrees(out, lmax, mmax, c))
        g = functional.layer_norm(g.view(2, hidden), (hidden,), conv.score_norm.weight, conv.score_norm.bias)
        scores.append((conv.score * conv.score_activation(g)).sum(-1))
    expected = torch.zeros(3, 9, c, dtype=torch.float64)
    for i in range(3):
        edges = [e for e in range(4) if edge_index[1, e] == i]
        weights = {e: envelope[e] * scores[e].exp() for e in edges}
        for e in edges:
            share = envelope[e] * weights[e] / sum(weights.values())
            expected[i] += values[e] * share.repeat_interleave(2)
    assert_close(actual, conv.linear(expected.unsqueeze(1)), "attention", tolerance=1e-11)


def test_edge_degree_embedding():
    """Harmonics of the edges, times filters, over the mean number of neighbours."""
    embedding = EdgeDegreeEmbedding(4, num_basis=3, lmax=2, hidden=5, avg_num_neighbors=2.0).double()
    fill_by_formula(embedding)
    z, edge_index = torch.tensor([8, 1, 6]), torch.tensor([[0, 2, 1], [1, 1, 0]])
    edge_dir, edge_rbf = functional.normalize(normal(3, 3), dim=1), normal(3, 3, seed=1)
    envelope = torch.tensor([0.9, 0.3, 0.5], dtype=torch.float64)
    actual = embedding(z, edge_index, edge_rbf, EdgeFrame(2).double()(edge_dir), envelope)
    expected = torch.zeros(3, 1, 9, 4, dtype=torch.float64)
    weight = embedding.radial(z, edge_index, edge_rbf).view(3, 3, 4)
    for e in range(3):
        for n, rows in enumerate(degree_slices(2)):
            harmonics = spherical_harmonics(edge_dir[e], 2)[rows] / math.sqrt(2 * n + 1)
            expected[edge_index[1, e], 0, rows] += harmonics[:, None] * weight[e, n] * envelope[e] / 2
    assert_close(actual, expected, "edge-degree embedding", tolerance=1e-12)


def test_separable_norm():
    norm = SeparableNorm(4, 2).double()
    fill_by_formula(norm)
    x = normal(2, 1, 9, 4)
    y = norm(x)
    gain, bias = norm.scalar_norm.weight, norm.scalar_norm.bias
    x0 = x[:, :, :1]
    expected = gain * (x0 - x0.mean(-1, keepdim=True)) / (x0.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() + bias
    assert_close(y[:, :, :1], expected, "scalars")
    square = sum(x[:, :, rows].square().sum((2, 3)) / (2 * n + 1) / 4 for n, rows in enumerate(degree_slices(2)) if n)
    for n in (1, 2):
        rows = degree_slices(2)[n]
        expected = norm.weight[n - 1] * x[:, :, rows] / (square / 2 + 1e-5).sqrt()[:, :, None, None]
        assert_close(y[:, :, rows], expected, f"degree {n}")


def test_smooth_leaky_relu():
    x = torch.tensor([-40.0, -1.0, 0.0, 2.0, 40.0], dtype=torch.float64)
    expected = 0.6 * x + 0.4 * x * (2 * torch.sigmoid(x) - 1)
    assert_close(SmoothLeakyReLU()(x), expected, "formula")
    assert_close(SmoothLeakyReLU()(x)[[0, -1]], torch.tensor([-8.0, 40.0]).double(), "leaky ReLU far from zero")


def test_paper_size():
    """The published model of six blocks has 11.20 million weights (appendix F.2); embeddings of elements differ."""
    assert sum(parameter.numel() for parameter in Equiformer().parameters()) == pytest.approx(11.2e6, rel=0.01)


def test_activation_of_the_paper_is_not_exact():
    """With SiLU at the points of a grid, rotations do not quite leave the energy; on a finer one they do so better."""
    z, vec = torch.tensor([6, 1, 8, 1]), normal(4, 3)
    edge_index = (1 - torch.eye(4)).nonzero().T.flip(0)
    edge_vec = vec[edge_index[0]] - vec[edge_index[1]]
    matrix = random_rotation(torch.Generator().manual_seed(0))
    errors = []
    for points in (4, 9):
        model = Equiformer(8, 1, lmax=2, cutoff=5.0, activation=GridSiLU(points)).double()
        fill_by_formula(model)
        x, turned = (model(z, edge_index, edge_vec @ m.T)[:, 0, 0] for m in (torch.eye(3).double(), matrix))
        errors.append((turned - x).abs().max().item())
    assert errors[0] > 1e-6
    assert errors[0] > 10 * errors[1]
    rotation(Equiformer(8, 1, lmax=2, cutoff=3.0))


@pytest.mark.parametrize(("lmax", "mmax"), [(0, None), (1, 0), (3, 1)])
def test_degrees_and_orders(lmax, mmax):
    model = Equiformer(8, 1, lmax=lmax, mmax=mmax, num_heads=2, cutoff=3.0).double()
    rotation(model)
    x = model(torch.tensor([1, 8]), torch.tensor([[0, 1], [1, 0]]), normal(2, 3))
    assert x.shape == (2, 1, (lmax + 1) ** 2, 8)


def test_heads_must_share_the_channels():
    with pytest.raises(ValueError, match="4 heads cannot share 6 channels"):
        Equiformer(6)
