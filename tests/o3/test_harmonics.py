"""Harmonics against e3nn, and their derivatives where a norm would have none."""

import pytest
import torch
from e3nn import o3 as e3nn
from torch.autograd import gradcheck, gradgradcheck

from pyg_equivariant.o3 import degree_slices, num_components, spherical_harmonics


def test_equal_to_e3nn():
    vec = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = e3nn.spherical_harmonics(list(range(9)), vec, normalize=True, normalization="component")
    torch.testing.assert_close(spherical_harmonics(vec, 8), expected, atol=1e-12, rtol=0)


def test_degree_one_is_the_direction():
    vec = torch.tensor([[0.0, 0.0, 2.0], [3.0, 4.0, 0.0]], dtype=torch.float64)
    expected = 3**0.5 * torch.tensor([[0.0, 0.0, 1.0], [0.6, 0.8, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(spherical_harmonics(vec, 2)[:, 1:4], expected)


@pytest.mark.parametrize("lmax", [0, 1, 3, 6])
def test_norm_of_each_degree(lmax):
    sh = spherical_harmonics(torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)), lmax)
    assert sh.shape == (5, 2, num_components(lmax))
    for degree, rows in enumerate(degree_slices(lmax)):
        squares = sh[..., rows].square().sum(-1)
        torch.testing.assert_close(squares, torch.full((5, 2), 2.0 * degree + 1), rtol=1e-5, atol=0)


DEGENERATE = torch.cat([torch.eye(3), -torch.eye(3), torch.eye(3)[:1] + torch.eye(3)[1:2]]).double()


def test_derivatives_on_the_axes():
    vec = DEGENERATE.clone().requires_grad_()
    assert gradcheck(lambda v: spherical_harmonics(v, 4), (vec,))
    assert gradgradcheck(lambda v: spherical_harmonics(v, 3), (vec,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12, 1e-6])
def test_derivatives_at_zero_are_finite(dtype, size):
    vec = torch.full((2, 3), size, dtype=dtype, requires_grad=True)
    sh = spherical_harmonics(vec, 6)
    assert sh.isfinite().all()
    (first,) = torch.autograd.grad(sh.square().sum() + sh.sum(), vec, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), vec)
    assert first.isfinite().all()
    assert second.isfinite().all()


def test_zero_vector_has_no_direction():
    sh = spherical_harmonics(torch.zeros(1, 3), 3)
    assert sh[0, 0] == 1
    assert not sh[0, 1:].any()
