"""PaiNN: the paper's equations written out."""

import torch

from pyg_equivariant.models.painn import PaiNNConv, PaiNNUpdate
from pyg_equivariant.testing import assert_close, fill_by_formula


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
        s, vv, vs = (conv.context(scalar[j]) * conv.filter(edge_rbf[e])).split(4)
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
