"""PaiNN: the paper's equations written out."""

import torch

from pyg_equivariant.models.painn import PaiNNConv, PaiNNUpdate
from pyg_equivariant.testing import assert_close, fill_by_formula


def test_message_equations():
    """Eqs. 7 and 8 with an explicit loop over the edges."""
    conv = PaiNNConv(4, 3).double()
    fill_by_formula(conv)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    edge_index = torch.tensor([[0, 2, 1, 0], [1, 1, 0, 2]])
    edge_dir = torch.nn.functional.normalize(torch.randn(4, 3, generator=generator, dtype=torch.float64), dim=-1)
    edge_rbf = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for e, (j, i) in enumerate(edge_index.T.tolist()):
        s, vv, vs = (conv.context(x[j, 0]) * conv.filter(edge_rbf[e])).split(4)
        expected[i, 0] += s
        expected[i, 1:] += x[j, 1:] * vv + edge_dir[e][:, None] * vs
    assert_close(conv(x, edge_index, edge_dir, edge_rbf), expected, "eqs. 7 and 8")


def test_update_equations():
    """Eqs. 9 and 10 atom by atom."""
    update = PaiNNUpdate(4).double()
    fill_by_formula(update)
    x = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, v = (x[:, 1:] @ weight.T for weight in update.mix.weight.split(4))
    a_ss, a_sv, a_vv = update.context(torch.cat([x[:, 0], v.norm(dim=1)], -1)).split(4, -1)
    actual = update(x)
    assert_close(actual[:, 0], a_ss + a_sv * (u * v).sum(1), "eq. 9", tolerance=1e-7)
    assert_close(actual[:, 1:], a_vv[:, None] * u, "eq. 10", tolerance=1e-7)
