"""The norm of each degree."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyg_equivariant.nn.norm import DegreeNorm
from pyg_equivariant.o3 import degree_slices, num_components, random_rotation, rotate


@settings(derandomize=True, deadline=None, max_examples=15)
@given(st.integers(0, 3), st.integers(1, 3), st.sampled_from([1, 2]), st.sampled_from([1, -1]), st.integers(0, 99))
def test_equivariant(lmax, channels, parity, sign, seed):
    generator = torch.Generator().manual_seed(seed)
    norm = DegreeNorm(channels, lmax=lmax, parity=parity).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(4, parity, num_components(lmax), channels, generator=generator, dtype=torch.float64)
    rotation = sign * random_rotation(generator)
    torch.testing.assert_close(norm(rotate(x, rotation)), rotate(norm(x), rotation), atol=1e-12, rtol=0)


def test_each_degree_gets_mean_square_one():
    scales = torch.tensor([0.1, 3.0, 3.0, 3.0, *5 * [50.0]])[:, None]
    out = DegreeNorm(8, lmax=2, parity=2, eps=1e-12)(torch.randn(5, 2, 9, 8) * scales)
    for rows in degree_slices(2):
        torch.testing.assert_close(out[:, :, rows].square().mean((2, 3)), torch.ones(5, 2))


def test_smooth_at_zero():
    x = torch.zeros(1, 1, 4, 2, requires_grad=True)
    out = DegreeNorm(2, lmax=1)(x)
    assert not out.any()
    (first,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert first[0, 0, 0, 0].item() == pytest.approx(1e-5**-0.5)
    assert second.isfinite().all()
