"""Filters between nodes: as exact as those computed, derivatives included."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jaxtyping
import pytest
import torch
from torch import Tensor

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models import (
    MACE,
    EquivariantTransformer,
    NequIP,
    PaiNN,
    SchNet,
    TensorFieldNetwork,
    TensorNet,
)
from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn import interpolation
from pyg_equivariant.nn.cutoff import PolynomialCutoff
from pyg_equivariant.nn.interpolation import Interpolation, RadialNodes, interpolate
from pyg_equivariant.nn.native import kernels
from pyg_equivariant.potential import Potential
from pyg_equivariant.testing import example_molecule

pytestmark = pytest.mark.skipif(not kernels(), reason="no C++ compiler")


def table(rows: int = 40, nodes: int = 20, dtype: torch.dtype = torch.float64) -> Interpolation:
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(0, nodes - 7, (rows,), generator=generator)
    return Interpolation(torch.randn(rows, 8, generator=generator, dtype=dtype), start)


def lengths(count: int = 3000) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(1)) * 5.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 16, 37])
@pytest.mark.parametrize("threads", [1, 3])
def test_sum_over_nodes(dtype: torch.dtype, width: int, threads: int) -> None:
    coefficient, start = known = table(dtype=dtype)
    values = torch.randn(20, width, dtype=dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = interpolate(values, known)
    finally:
        torch.set_num_threads(before)
    expected = torch.einsum("pm,pmw->pw", coefficient, values[start.unsqueeze(1) + torch.arange(8)])
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_derivatives(threads: int) -> None:
    known = table(12, 10)
    values = torch.randn(10, 19, dtype=torch.float64, requires_grad=True)
    inputs = values, known.coefficient.clone().requires_grad_()

    def between(values: Tensor, coefficient: Tensor) -> Tensor:
        return interpolate(values, Interpolation(coefficient, known.start)).sin()

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.autograd.gradcheck(between, inputs, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(between, inputs)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("cutoff", [5.0, 4.7, 6.03])
def test_smooth_functions_are_exact(cutoff: float) -> None:
    """To float32's rounding, of an envelope near 1 for values, of values over the nodes' distance for derivatives."""
    length = (lengths() * cutoff / 5.0).requires_grad_()
    nodes, known = RadialNodes(cutoff, 20)(length, 6000)
    assert known is not None
    assert 0.0 <= cutoff - nodes[-1] < 0.1 * nodes[1]
    width = cutoff / 19

    def bumps(d: Tensor) -> Tensor:
        centres = torch.linspace(0.0, cutoff, 20, dtype=d.dtype)
        bump = torch.exp(-0.5 * ((d.unsqueeze(1) - centres) / width).square())
        return bump * PolynomialCutoff(cutoff)(d).unsqueeze(1)

    y = interpolate(bumps(nodes), known)
    exact = length.detach().double().requires_grad_()
    expected = bumps(exact)
    torch.testing.assert_close(y.double(), expected, rtol=0.0, atol=5e-6)
    (slope,) = torch.autograd.grad(y.square().sum(), length)
    (expected_slope,) = torch.autograd.grad(expected.square().sum(), exact)
    torch.testing.assert_close(slope.double(), expected_slope, rtol=0.0, atol=1e-3)


def test_beyond_the_cutoff_is_the_cutoff() -> None:
    length = torch.cat([lengths(), torch.tensor([5.0, 5.5, 70.0])]).requires_grad_()
    nodes, known = RadialNodes(5.0, 20)(length, 6000)
    y = interpolate((5.0 - nodes).square().unsqueeze(1), known)[-3:, 0]
    torch.testing.assert_close(y, torch.zeros(3), atol=1e-5, rtol=0.0)
    assert torch.autograd.grad(y.sum(), length)[0][-2:].eq(0.0).all()


@pytest.mark.parametrize(
    ("length", "cutoff", "num_edges"),
    [
        (lengths().double(), 5.0, 6000),
        (lengths(), math.inf, 6000),
        (lengths(), 5.0, 600),
    ],
    ids=["float64", "no cutoff", "few"],
)
def test_where_lengths_themselves_are_taken(length: Tensor, cutoff: float, num_edges: int) -> None:
    nodes, known = RadialNodes(cutoff, 20)(length, num_edges)
    assert nodes is length
    assert known is None
    assert interpolate(length, known) is length


def test_lengths_that_are_no_numbers_stay_so() -> None:
    length = torch.cat([lengths(), torch.tensor([math.nan])])
    nodes, known = RadialNodes(5.0, 20)(length, 6000)
    y = interpolate(nodes.unsqueeze(1), known)
    assert y[-1].isnan().all()
    assert y[:-1].isfinite().all()


def test_lower_precision_does_not_interpolate() -> None:
    """Slopes between nodes would multiply its rounding by some hundred."""
    model = Potential(SchNet(8, 1, cutoff=4.0)).eval()
    data = RadiusGraph(4.0)(example_molecule(90, spread=2.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert RadialNodes(5.0, 20)(lengths(), 6000)[1] is None
        lower = model(data).forces
    expected = model(data).forces
    assert (lower - expected).norm() < 0.1 * expected.norm()
    torch.set_float32_matmul_precision("medium")
    try:
        assert RadialNodes(5.0, 20)(lengths(), 6000)[1] is None
    finally:
        torch.set_float32_matmul_precision("highest")


def test_nodes_that_are_not_there_are_refused() -> None:
    with pytest.raises(IndexError, match="beyond its 5 nodes"):
        interpolate(torch.ones(5, 2, dtype=torch.float64), table())


@pytest.mark.parametrize("order", [0, 1, 5, 7])
def test_polynomials(order: int) -> None:
    """They pass through their nodes, and each derivative is that of the one before."""
    place = torch.linspace(-0.5, 7.5, 23, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(
        interpolation._polynomials(torch.arange(8.0, dtype=torch.float64), 0), torch.eye(8, dtype=torch.float64)
    )
    assert torch.autograd.gradcheck(interpolation._polynomials, (place, order), check_batched_grad=True)
    assert interpolation._polynomials(place, 8).eq(0.0).all()


torch.manual_seed(0)
MODELS = [
    PaiNN(16, 2, cutoff=4.0),
    TensorNet(16, 1, cutoff=4.0),
    EquivariantTransformer(16, 2, num_heads=4, cutoff=4.0),
    SchNet(16, 2, cutoff=4.0),
    NequIP(8, 2, lmax=1, lmax_out=0, cutoff=4.0, elements=[1, 6, 7, 8]),
    MACE(8, 2, lmax=1, lmax_sh=2, lmax_out=0, cutoff=4.0, elements=[1, 6, 7, 8], avg_num_neighbors=10.0),
    TensorFieldNetwork(8, 2, lmax=1, cutoff=4.0),
]


@contextmanager
def interpolating() -> Iterator[list[bool]]:
    """Whether it was done at all: without it, models that never interpolate would pass."""
    done: list[bool] = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield done
    names = {event.key for event in profile.key_averages()}
    done.append(bool(names & {f"pyg_equivariant::{prefix}interpolation_polynomials" for prefix in ("", "_")}))


@pytest.mark.parametrize("representation", MODELS, ids=lambda model: type(model).__name__)
def test_models_that_interpolate(representation: Representation) -> None:
    """Forces and the gradient of their loss, in float32 and interpolated, are those of float64, which is neither."""
    data = RadiusGraph(4.0)(example_molecule(90, spread=2.0))
    torch.manual_seed(0)  # of the head: with some the forces nearly cancel
    model = Potential(copy.deepcopy(representation)).train()
    outcomes = []
    for potential in (model.float(), copy.deepcopy(model).double()):
        with interpolating() as done:
            prediction = potential(data)
            prediction.forces.square().sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in potential.parameters() if p.grad is not None])
        outcomes.append((prediction.forces.detach().double(), gradient.double()))
        assert done == [potential is model]
    for single, double in zip(*outcomes, strict=True):
        assert (single - double).norm() < 1e-4 * double.norm()


def test_compiled_models_interpolate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks cannot be traced
    data = RadiusGraph(4.0)(example_molecule(90, spread=2.0))
    model = Potential(SchNet(16, 1, cutoff=4.0)).train()
    outcomes = []
    for compiled in (False, True):
        if compiled:
            model.compile(backend="aot_eager")
        model.zero_grad()
        with interpolating() as done:
            prediction = model(data)
            prediction.forces.square().sum().backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        outcomes.append([prediction.forces.detach(), *gradients])
        assert done == [True]
    for eager, once in zip(*outcomes, strict=True):
        assert (once - eager).norm() <= 1e-4 * eager.norm()


@pytest.mark.parametrize("representation", MODELS, ids=lambda model: type(model).__name__)
def test_frozen(representation: Representation, tmp_path: Path) -> None:
    """A few atoms, for which nothing is interpolated otherwise."""
    data = RadiusGraph(4.0)(example_molecule(7, spread=1.5))
    torch.manual_seed(0)  # as above
    model = Potential(copy.deepcopy(representation)).float()
    exact = copy.deepcopy(model).double().eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    frozen = model.frozen()
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())
    with interpolating() as done:
        prediction, expected = frozen(data), exact(data)
    assert done == [True]
    torch.testing.assert_close(prediction.energy.double(), expected.energy, rtol=1e-5, atol=1e-5)
    assert (prediction.forces - expected.forces).norm() < 5e-5 * expected.forces.norm()
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    again = frozen.frozen()(data)
    assert torch.equal(again.forces, prediction.forces)
    with pytest.raises(ValueError, match="a frozen model cannot be saved"):
        frozen.save(tmp_path / "model")
    with pytest.raises(TypeError, match="tabulated for float32"):
        frozen.double()(data)


def test_frozen_in_float64_is_the_model_itself() -> None:
    data = RadiusGraph(4.0)(example_molecule(7, spread=1.5))
    model = Potential(SchNet(8, 1, cutoff=4.0)).double().eval()
    with interpolating() as done:
        assert torch.equal(model.frozen()(data).forces, model(data).forces)
    assert done == [False]


@pytest.mark.slow
def test_frozen_and_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """For another number of atoms too, and with and without forces."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks cannot be traced
    torch._dynamo.reset()
    model = Potential(SchNet(8, 1, cutoff=4.0))
    eager, compiled = model.frozen(), model.frozen(compile=True)
    for atoms, forces in ((7, True), (9, True), (9, False)):
        data = RadiusGraph(4.0)(example_molecule(atoms, spread=1.5))
        eager.forces = compiled.forces = forces
        expected, actual = eager(data), compiled(data)
        torch.testing.assert_close(actual.energy, expected.energy, rtol=1e-5, atol=1e-5)
        assert (actual.forces is None) == (not forces)
        if forces:
            assert (actual.forces - expected.forces).norm() < 5e-5 * expected.forces.norm()
