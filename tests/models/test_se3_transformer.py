"""SE(3)-Transformer: another package, the paper's equations written out, self-interactions, sizes."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models.se3_transformer import (
    AttentiveSelfInteraction,
    LinearSelfInteraction,
    NormNonlinearity,
    SE3Transformer,
    SE3TransformerConv,
)
from pyg_equivariant.nn.cutoff import Cutoff
from pyg_equivariant.nn.radial import GaussianBasis
from pyg_equivariant.nn.tensor_product import AllPaths
from pyg_equivariant.o3 import coupling, degree_slices, random_rotation, rotate, spherical_harmonics
from pyg_equivariant.testing import assert_close, example_molecule, fill_by_formula, potential_of

PEER = json.loads((Path(__file__).parents[1] / "parity" / "se3_transformer.json").read_text())["models"]


class Always(Cutoff):
    def envelope(self, u: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(u)


def without_what_the_peer_has_not(x: SE3Transformer) -> None:
    """Heads of one degree each, no nonlinearities, residuals; no queries at the ends. Large messages and scores."""
    x.nonlinearities = nn.ModuleList(nn.Identity() for _ in x.nonlinearities)
    head_degree = torch.arange(x.channels) // (x.channels // (x.lmax + 1))
    with torch.no_grad():
        for conv in x.convs:
            conv.filter.mlp[-1].weight.mul_(3)
            conv.query.weight.mul_(30 if conv in x.convs[1:-1] else 0)
        for conv in x.convs[1:-1]:
            conv.self_interaction.linear.weight.copy_(torch.eye(x.channels))
            for degree, mixing in enumerate(conv.linear_out.weights):
                conv.query.weight[0, degree] *= head_degree == degree
                mixing.unflatten(0, (-1, x.channels)).mul_((head_degree == degree)[:, None])


@pytest.mark.parametrize("name", PEER)
def test_agrees_with_se3_transformer_pytorch(name):
    """What tests/parity/se3_transformer.py has compared, with the same weights."""
    radial, envelope = GaussianBasis(8, 3.5), Always(3.5)
    model = potential_of(SE3Transformer(**PEER[name]["settings"], cutoff=3.5, radial=radial, envelope=envelope))
    without_what_the_peer_has_not(model.representation)
    for expected in PEER[name]["predictions"]:
        graph = RadiusGraph(3.5)(example_molecule(seed=expected["seed"]))
        prediction = model(graph)
        assert prediction.energy.item() == pytest.approx(expected["energy"], rel=1e-9)
        assert prediction.forces.norm().item() == pytest.approx(expected["force"], rel=1e-6)
        assert model.features(model.graph(graph)).norm().item() == pytest.approx(expected["features"], rel=1e-9)


def test_attention_written_out():
    """Queries, keys, softmax, values and self-interaction with loops over edges, couplings and heads."""
    paths, heads = AllPaths(1, 2, 1), 2
    conv = SE3TransformerConv(3, 4, paths, num_basis=3, num_heads=heads).double()
    fill_by_formula(conv)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 1, 4, 3, generator=generator, dtype=torch.float64)
    edge_index = torch.tensor([[1, 2, 3, 0], [0, 0, 0, 2]])
    edge_rbf = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    edge_sh = spherical_harmonics(torch.randn(4, 3, generator=generator, dtype=torch.float64), 2)
    edge_env = torch.tensor([1.0, 0.5, 0.8, 0.3], dtype=torch.float64)

    query, both, weight = conv.query(x)[:, 0], conv.key_value(x)[:, 0], conv.filter(edge_rbf)
    rows, scores, values = degree_slices(1), [], []
    for e, (j, i) in enumerate(edge_index.T.tolist()):
        key, value, number = torch.zeros(4, 4, dtype=torch.float64), [], 0
        for block in paths.blocks:
            for l1, l2 in block.pairs:
                c = coupling(l1, l2, block.l3)
                term = torch.einsum("abm,ac,b->mc", c, both[j, rows[l1]], edge_sh[e, degree_slices(2)[l2]])
                term = term * weight[e, number]
                key[rows[block.l3]] += term[:, :4]
                value.append((block.l3, term[:, 4:]))
                number += 1
        products = (query[i] * key).sum(0).view(heads, 2).sum(1)
        scores.append(products / 8**0.5)  # a key of a head has 4 components of 2 channels
        values.append(value)
    expected = conv.self_interaction(x)[:, 0].clone()
    for i, edges in {0: [0, 1, 2], 2: [3]}.items():
        fraction = torch.stack([edge_env[e] * scores[e].exp() for e in edges])
        fraction = fraction / fraction.sum(0)
        assert_close(fraction.sum(0), torch.ones(heads, dtype=torch.float64), "the sum of attention")
        for block, mix in zip(paths.blocks, conv.linear_out.weights, strict=True):
            total = 0.0
            for attention, e in zip(fraction, edges, strict=True):
                channel = (edge_env[e] * attention).repeat_interleave(2)
                total = total + torch.cat([part * channel for l3, part in values[e] if l3 == block.l3], 1)
            expected[i, rows[block.l3]] += total @ mix
    assert_close(conv(x, edge_index, edge_rbf, edge_sh, edge_env)[:, 0], expected, "attention")


@pytest.mark.parametrize("kind", [LinearSelfInteraction, AttentiveSelfInteraction])
@pytest.mark.parametrize(("lmax_in", "lmax_out"), [(2, 1), (1, 2)])
def test_self_interaction(kind, lmax_in, lmax_out):
    """Equivariant, of the shape asked for; the attentive one is no linear map."""
    mix = kind(3, 5, lmax_in, lmax_out).double()
    fill_by_formula(mix)
    x = torch.randn(4, 1, (lmax_in + 1) ** 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = mix(x)
    assert y.shape == (4, 1, (lmax_out + 1) ** 2, 5)
    matrix = random_rotation(torch.Generator().manual_seed(1))
    assert_close(mix(rotate(x, matrix)), rotate(y, matrix), "self-interaction of turned features")
    linear = (mix(2 * x) - 2 * y).abs().max() < 1e-12
    assert linear == (kind is LinearSelfInteraction)


def test_nonlinearity_keeps_directions():
    act = NormNonlinearity(3, lmax=2, eps=1e-12).double()
    x = torch.randn(4, 1, 9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = act(x)
    for rows in degree_slices(2)[1:]:
        before, after = x[:, 0, rows], y[:, 0, rows]
        lengths = before.norm(dim=1)
        normal = (lengths - lengths.mean(1, keepdim=True)) / (lengths.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        assert_close(after, before / lengths[:, None] * torch.nn.functional.silu(normal)[:, None], "features")


def test_last_layer_of_scalars():
    small, full = (SE3Transformer(8, 2, lmax=2, lmax_out=last, cutoff=3.0) for last in (0, None))
    z, edge_index = torch.tensor([6, 8]), torch.tensor([[0, 1], [1, 0]])
    edge_vec = torch.tensor([[1.0, 0.5, 0.0], [-1.0, -0.5, 0.0]])
    assert small(z, edge_index, edge_vec).shape == (2, 1, 1, 8)
    assert full(z, edge_index, edge_vec).shape == (2, 1, 9, 8)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in full.parameters())


def test_heads_differ():
    """Two heads are not one: the same weights, another function."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    edge_index, edge_env = torch.tensor([[1, 2], [0, 0]]), torch.ones(2, dtype=torch.float64)
    edge_rbf = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    edge_sh = spherical_harmonics(torch.randn(2, 3, generator=generator, dtype=torch.float64), 2)
    outcome = []
    for heads in (1, 2):
        conv = SE3TransformerConv(4, 4, AllPaths(1, 2, 1), num_basis=3, num_heads=heads).double()
        fill_by_formula(conv)
        outcome.append(conv(x, edge_index, edge_rbf, edge_sh, edge_env))
    assert (outcome[0] - outcome[1]).abs().max() > 1e-3


@pytest.mark.parametrize("wrong", [{"num_layers": 0}, {"lmax": 1, "lmax_out": 2}], ids=str)
def test_wrong_sizes(wrong):
    with pytest.raises(ValueError, match="SE3Transformer needs num_layers ≥ 1 and 0 ≤ lmax_out ≤ lmax"):
        SE3Transformer(8, **wrong)


def test_heads_must_divide():
    with pytest.raises(ValueError, match="num_heads must divide the channels, got 3 heads for 8 channels"):
        SE3Transformer(8, 1, num_heads=3)
