"""Radial bases, envelopes, geometry, and modules that remember how they were built."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyg_equivariant.models.physnet import ExponentialBasis
from pyg_equivariant.nn.activation import ShiftedSoftplus
from pyg_equivariant.nn.configurable import Configurable, build, describe
from pyg_equivariant.nn.conv import segment_sum
from pyg_equivariant.nn.cutoff import CosineCutoff, PolynomialCutoff
from pyg_equivariant.nn.expnormal import ExpNormalBasis
from pyg_equivariant.nn.geometry import safe_norm, unit_vectors
from pyg_equivariant.nn.radial import BesselBasis, EnvelopedBasis, GaussianBasis, TrainableBesselBasis
from pyg_equivariant.testing import assert_close


@pytest.mark.parametrize("envelope", [CosineCutoff(3.0), PolynomialCutoff(3.0), PolynomialCutoff(3.0, p=3)])
def test_envelope_is_smooth(envelope):
    d = torch.tensor([0.0, 1.0, 3.0 - 1e-9, 3.0, 4.0], dtype=torch.float64, requires_grad=True)
    u = envelope(d)
    (slope,) = torch.autograd.grad(u.sum(), d)
    assert u[0] == 1
    assert 0 < u[1] < 1
    assert_close(u[2:], torch.zeros(3).double(), "envelope at the cutoff", tolerance=1e-8)
    assert_close(slope[2:], torch.zeros(3).double(), "its slope at the cutoff", tolerance=1e-7)


def test_infinite_cutoff_is_one_everywhere():
    assert_close(CosineCutoff(math.inf)(torch.tensor([0.0, 1e3])), torch.ones(2), "envelope")
    with pytest.raises(ValueError, match="finite cutoff"):
        GaussianBasis(5, math.inf)


@pytest.mark.parametrize("basis", [BesselBasis(6, 4.0), TrainableBesselBasis(6, 4.0), GaussianBasis(6, 4.0)])
def test_bases_have_all_derivatives(basis):
    d = torch.tensor([0.0, 1e-6, 1.0, 3.9], dtype=torch.float64, requires_grad=True)
    values = basis.double()(d)
    assert values.shape == (4, 6)
    (first,) = torch.autograd.grad(values.sum(), d, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), d)
    assert all(torch.isfinite(t).all() for t in (values, first, second))
    assert_close(values[0], values[1], "continuity at 0", tolerance=1e-4)


@pytest.mark.parametrize("basis", [GaussianBasis(50, 5.0), ExpNormalBasis(64, 5.0), ExponentialBasis(64, 5.0)])
def test_no_function_is_denormal(basis):
    """Nor a derivative: matrix products of such numbers are slow."""
    d = torch.linspace(0.0, 5.0, 5001, requires_grad=True)
    values = basis(d)
    (slope,) = torch.autograd.grad(values.sum(), d)
    for name, numbers in (("values", values), ("slopes", slope)):
        assert ((numbers == 0) | (numbers.abs() > 1e-25)).all(), name
    exact = basis.double()(d.double())
    assert_close(exact.float(), values, "in single precision", tolerance=1e-5)
    assert ((exact > 0) & (exact < 1e-12)).any()


def test_bessel_is_orthonormal():
    """∫ e_m e_n d² dd = δ over the ball of the cutoff."""
    d = torch.linspace(1e-6, 4.0, 20001, dtype=torch.float64)
    e = BesselBasis(5, 4.0).double()(d)
    gram = torch.trapezoid(e[:, :, None] * e[:, None] * d[:, None, None] ** 2, d, dim=0)
    assert_close(gram, torch.eye(5).double(), "Gram matrix", tolerance=1e-6)


def test_enveloped_basis():
    basis = EnvelopedBasis(BesselBasis(4, 3.0), CosineCutoff(3.0))
    d = torch.tensor([1.0, 3.0])
    rows = basis(d)
    assert rows.shape == (2, basis.num_basis)
    assert_close(rows[0, :4], BesselBasis(4, 3.0)(d[:1])[0] * rows[0, 4], "basis under its envelope", tolerance=1e-6)
    assert (rows[1] == 0).all()


def test_safe_norm_at_zero():
    vec = torch.tensor([[0.0, 0, 0], [3, 0, 4]], dtype=torch.float64, requires_grad=True)
    length = safe_norm(vec)
    assert length.tolist() == [0, 5]
    (first,) = torch.autograd.grad((length + unit_vectors(vec, length).sum(-1)).sum(), vec, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), vec)
    assert torch.isfinite(second).all()


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.integers(0, 12), st.integers(1, 5), st.integers(1, 3))
def test_segment_sum(rows, size, rank):
    generator = torch.Generator().manual_seed(rows)
    values = torch.randn(rows, *[2] * (rank - 1), generator=generator, dtype=torch.float64)
    index = torch.randint(size, (rows,), generator=generator)
    expected = torch.stack([values[index == k].sum(0) for k in range(size)])
    assert_close(segment_sum(values, index, size), expected, "sum")


def test_shifted_softplus():
    x = torch.tensor([-1.0, 0.0, 2.0])
    assert_close(ShiftedSoftplus()(x), torch.log(0.5 * x.exp() + 0.5), "ssp", tolerance=1e-6)


class Outer(Configurable):
    def __init__(self, size: int, *, inner: Configurable | None = None, **rest: float) -> None:
        super().__init__()
        self.inner = inner or ShiftedSoftplus()


def test_describe_and_build():
    module = Outer(3, inner=GaussianBasis(5, cutoff=2.0), alpha=0.5)
    description = describe(module)
    assert description["init_args"]["alpha"] == 0.5
    copy = build(description)
    assert copy.inner.cutoff == 2.0
    assert describe(copy) == description
    with pytest.raises(TypeError, match="of type Linear cannot be saved"):
        describe(Outer(1, inner=torch.nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="cannot be built from the saved arguments"):
        build({"class_path": "pyg_equivariant.nn.radial.BesselBasis", "init_args": {"colour": 1}})
