"""PhysNet's formulas on small cases, written out atom by atom."""

import math

import pytest
import torch
from torch.nn.functional import softplus

from pyg_equivariant.models.physnet import ExponentialBasis, PhysNet, PhysNetConv
from pyg_equivariant.testing import assert_close, example_molecule, fill_by_formula


def ssp(x):
    return torch.log(0.5 * torch.exp(x) + 0.5)


def linear(layer, x):
    y = layer.weight @ x
    return y if layer.bias is None else y + layer.bias


def residual(block, x):
    return x + linear(block.outer, ssp(linear(block.inner, ssp(x))))


def by_hand(model, z, pos):
    """The paper's section II, one atom and one pair at a time."""
    x = [model.embedding.weight[number] for number in z]
    total = [torch.zeros(model.channels).double() for _ in z]
    for interaction, atomic, output in zip(model.interactions, model.atomic, model.outputs, strict=True):
        new = []
        for i in range(len(z)):
            v = ssp(linear(interaction.conv.own, ssp(x[i])))
            for j in range(len(z)):
                d = (pos[i] - pos[j]).norm()
                if j == i or d >= model.cutoff:
                    continue
                u = d / model.cutoff
                envelope = 1 - 6 * u**5 + 15 * u**4 - 10 * u**3
                centre, width = softplus(model.radial.mean), softplus(model.radial.beta)
                g = envelope * torch.exp(-width * (torch.exp(-d) - centre) ** 2)
                v = v + (g @ interaction.conv.mask.weight) * ssp(linear(interaction.conv.other, ssp(x[j])))
            for block in interaction.refine[0]:
                v = residual(block, v)
            y = interaction.gate * x[i] + linear(interaction.dense, ssp(v))
            for block in atomic:
                y = residual(block, y)
            new.append(y)
        x = new
        for i, y in enumerate(x):
            for block in output[0]:
                y = residual(block, y)
            total[i] = total[i] + linear(output[2], ssp(y))
    return torch.stack(total)


def test_is_the_formula():
    model = PhysNet(8, 2, cutoff=2.5, radial=ExponentialBasis(5, 2.5)).double()
    fill_by_formula(model)
    data = example_molecule(5)
    pairs = [(j, i) for i in range(5) for j in range(5) if j != i and (data.pos[i] - data.pos[j]).norm() < 2.5]
    assert 0 < len(pairs) < 20
    source, target = edge_index = torch.tensor(pairs).T
    x = model(data.z, edge_index, data.pos[source] - data.pos[target])
    assert [len(model.interactions[0].refine[0]), len(model.atomic[0]), len(model.outputs[0][0])] == [3, 2, 1]
    assert_close(x[:, 0, 0].detach(), by_hand(model, data.z, data.pos).detach(), "features", tolerance=1e-12)


def test_basis_starts_as_in_the_paper():
    basis = ExponentialBasis(4, 6.0).double()
    d = torch.tensor([0.0, 0.7, 5.0]).double()
    start = math.exp(-6.0)
    for k, column in enumerate(basis(d).T):
        centre = start + k * (1 - start) / 3
        expected = torch.exp(-((2 / 4 * (1 - start)) ** -2) * (torch.exp(-d) - centre) ** 2)
        assert_close(column.detach(), expected, f"function {k}", tolerance=1e-6)  # made in single precision


def test_basis_needs_an_end():
    with pytest.raises(ValueError, match="finite cutoff"):
        ExponentialBasis(4, math.inf)


def test_untrained_atoms_do_not_see_each_other():
    """The masks are zero at the start: training begins with a sum over elements."""
    conv = PhysNetConv(8, 4)
    x, edge_index = torch.randn(2, 8), torch.tensor([[0, 1], [1, 0]])
    alone = conv(x, edge_index[:, :0], torch.ones(0, 4))
    assert torch.equal(conv(x, edge_index, torch.ones(2, 4)), alone)
    torch.nn.init.ones_(conv.mask.weight)
    assert not torch.allclose(conv(x, edge_index, torch.ones(2, 4)), alone)
