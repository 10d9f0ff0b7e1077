"""The harmonics' kernel against PyTorch's operations, in three derivatives."""

from collections.abc import Callable

import pytest
import torch

from pyg_equivariant.nn.harmonics import spherical_harmonics
from pyg_equivariant.o3 import harmonics


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("lmax", [1, 2, 3, 6])
@pytest.mark.parametrize("edges", [0, 3, 37])
def test_equals_pytorch(edges: int, lmax: int, threads: int, derivatives: Callable) -> None:
    """Of vectors of many lengths, and of one that is zero."""
    generator = torch.Generator().manual_seed(0)
    vec = torch.randn(edges, 3, generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, edges).unsqueeze(1)
    vec[edges // 2 : edges // 2 + 1] = 0.0
    vec.requires_grad_()
    fast = derivatives(lambda v: spherical_harmonics(v, lmax), [vec], threads=threads)
    slow = derivatives(lambda v: harmonics.spherical_harmonics(v, lmax), [vec])
    assert len(fast) == len(slow) == 1 + 1 + 2 + 3
    for number, (a, b) in enumerate(zip(fast, slow, strict=True)):
        assert torch.isfinite(a).all()
        scale = 1.0 + float(a.detach().abs().sum())
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * scale, msg=str(number))


def test_degree_zero_has_derivatives() -> None:
    vec = torch.ones(2, 3).requires_grad_()
    y = spherical_harmonics(vec, 0)
    assert torch.equal(y, torch.ones(2, 1))
    assert torch.equal(torch.autograd.grad(y.sum(), vec)[0], torch.zeros(2, 3))


def test_single_precision() -> None:
    vec = torch.randn(100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        spherical_harmonics(vec.float(), 6).double(), harmonics.spherical_harmonics(vec, 6), rtol=1e-4, atol=1e-5
    )


def test_loss_of_forces_takes_three_operations() -> None:
    vec = torch.randn(9, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        (force,) = torch.autograd.grad(spherical_harmonics(vec, 3).sin().sum(), vec, create_graph=True)
        force.square().sum().backward()
    names = {event.key for event in profile.key_averages() if event.key.startswith("pyg_equivariant::")}
    assert names == {f"pyg_equivariant::harmonics_{name}" for name in ("forward", "backward", "second")}


def test_what_does_not_fit_is_refused() -> None:
    vec = torch.randn(9, 3)
    operations = torch.ops.pyg_equivariant
    spherical_harmonics(vec, 0)  # loads the kernels
    with pytest.raises(ValueError, match=r"up to degree 2 of vectors \[9, 2\]"):
        operations.harmonics_forward(vec[:, 1:], 2)
    with pytest.raises(ValueError, match=r"up to degree 2 of 9 edges got gradients \[9, 4\]"):
        operations.harmonics_backward(vec, torch.zeros(9, 4), 2)
    with pytest.raises(ValueError, match=r"vectors are \[9, 3\] and \[8, 3\]"):
        operations.harmonics_second(vec, torch.zeros(9, 9), vec[1:], 2)
