"""Spherical Bessel functions against scipy."""

import numpy as np
import pytest
import torch
from scipy.special import spherical_jn

from pyg_equivariant.nn import bessel
from pyg_equivariant.nn.bessel import SphericalBesselBasis, spherical_bessel_roots
from pyg_equivariant.testing import assert_close


def expected(u, num_degrees, num_basis, order=0):
    """The functions, or their first or second derivatives."""
    roots = spherical_bessel_roots(num_degrees, num_basis)
    columns = []
    for degree, row in enumerate(roots):
        t = u.numpy()[:, None] * row
        j, slope = spherical_jn(degree, t), spherical_jn(degree, t, derivative=True)
        value = [j, slope, -2 / t * slope - (1 - degree * (degree + 1) / t**2) * j][order]
        columns.append(np.sqrt(2) / np.abs(spherical_jn(degree + 1, row)) * row**order * value)
    return torch.from_numpy(np.stack(columns, 1))


def derivative(values, u):
    """Of each function at each length."""
    columns = [torch.autograd.grad(column.sum(), u, create_graph=True)[0] for column in values.flatten(1).unbind(1)]
    return torch.stack(columns, 1).view_as(values)


def test_roots_are_roots_and_none_is_missing():
    roots = spherical_bessel_roots(7, 6)
    for degree, row in enumerate(roots):
        assert np.abs(spherical_jn(degree, row)).max() < 1e-14
        signs = np.sign(spherical_jn(degree, np.linspace(0.01, row[-1] + 0.5, 2000)))
        assert (np.diff(signs) != 0).sum() == 6


@pytest.mark.parametrize(("num_degrees", "num_basis"), [(1, 1), (7, 6), (4, 16)])
def test_values_and_derivatives(num_degrees, num_basis):
    basis = SphericalBesselBasis(num_degrees, num_basis).double()
    u = torch.tensor([1e-3, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0 - 1e-9], dtype=torch.float64)
    exact = [expected(u, num_degrees, num_basis, order) for order in range(3)]
    values = basis(u.requires_grad_())
    slope = derivative(values, u)
    bend = derivative(slope, u)
    assert_close(values, exact[0], "functions", tolerance=1e-12)
    assert_close(slope, exact[1], "slopes", tolerance=1e-11)
    # (1 − l(l + 1)/t²) of the reference loses digits near zero
    assert_close(bend[2:], exact[2][2:], "second derivatives", tolerance=1e-9)


def test_the_kernel_does_what_products_do(monkeypatch):
    """At any length, 1 and beyond, in three derivatives."""
    basis = SphericalBesselBasis(3, 18).double()
    u = torch.cat([torch.linspace(0.0, 1.0, 37), torch.tensor([1.5])]).double().requires_grad_()
    weight = torch.randn(3, 18, dtype=torch.float64)

    def derivatives(order):
        y = (basis(u) * weight).sum((1, 2))
        for _ in range(order):
            (y,) = torch.autograd.grad(y.sum(), u, create_graph=True)
        return y

    values, by_kernel = basis(u), [derivatives(order) for order in range(4)]
    monkeypatch.setattr(bessel, "runs_on", lambda u: False)
    assert_close(values, basis(u), "functions", tolerance=1e-13)
    for order, tolerance in ((1, 1e-12), (2, 1e-11), (3, 1e-10)):
        assert_close(by_kernel[order], derivatives(order), f"derivative {order}", tolerance=tolerance)


def test_all_derivatives_at_zero():
    u = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    values = SphericalBesselBasis(7, 6).double()(u)
    (slope,) = torch.autograd.grad(values.sum(), u, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), u)
    assert values[0, 1:].abs().max() < 1e-11
    assert torch.isfinite(slope + bend).all()


def test_single_precision():
    u = torch.linspace(0.001, 1, 200)
    error = (SphericalBesselBasis(7, 6)(u) - expected(u.double(), 7, 6)).abs().amax((0, 2))
    assert error.max() < 1e-4  # of functions up to 27
    assert error[-1] < 2e-5  # where the closed form has no digit left


def test_orthonormal():
    nodes, weights = np.polynomial.legendre.leggauss(40)
    u = torch.from_numpy((nodes + 1) / 2)
    values = SphericalBesselBasis(5, 4).double()(u)
    overlap = torch.einsum("ulk,uln,u->lkn", values, values, torch.from_numpy(weights / 2) * u**2)
    assert_close(overlap, torch.eye(4).double().expand(5, 4, 4), "overlap", tolerance=1e-12)


def test_a_basis_has_functions():
    with pytest.raises(ValueError, match="got 0 and 3"):
        SphericalBesselBasis(0, 3)
