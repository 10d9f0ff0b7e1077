"""LayerNorm's kernel against PyTorch's operations, in three derivatives."""

from collections.abc import Callable

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from pyg_equivariant.nn.layer_norm import LayerNorm, _forward


def pair(channels: int, dtype: torch.dtype = torch.float64) -> tuple[LayerNorm, nn.LayerNorm]:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = LayerNorm(channels, eps=0.1).to(dtype), nn.LayerNorm(channels, eps=0.1).to(dtype)
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        with torch.no_grad():
            mine.copy_(torch.randn(channels, generator=generator))
            its.copy_(mine)
    return ours, theirs


def formula(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """By simple operations: the third derivative of torch 2.13's own is another one, and wrong."""
    shifted = x - x.mean(-1, keepdim=True)
    return w * shifted * (shifted.square().mean(-1, keepdim=True) + 0.1).rsqrt() + b


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(200, 21), (3, 5, 64), (7, 1), (0, 4)])
def test_equals_pytorch(shape: tuple[int, ...], threads: int, derivatives: Callable) -> None:
    generator = torch.Generator().manual_seed(1)
    leaves = [torch.randn(s, generator=generator, dtype=torch.float64) for s in (shape, shape[-1:], shape[-1:])]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    pair(2)[0](torch.zeros(1, 2, dtype=torch.float64))  # loads the kernels
    fast = derivatives(lambda x, w, b: _forward(x, w, b, 0.1), leaves, threads=threads)
    slow = derivatives(formula, leaves)
    assert len(fast) == len(slow)
    for number, (a, b) in enumerate(zip(fast, slow, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=str(number))


def test_loss_of_forces_takes_the_kernels() -> None:
    """Also where weights are not asked for first; the module has PyTorch's parameters."""
    ours, theirs = pair(16)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    outcomes = []
    for norm in (ours, theirs):
        (force,) = torch.autograd.grad(norm(x.sin()).cos().sum(), x, create_graph=True)
        outcomes.append([force, *torch.autograd.grad(force.square().sum(), [x, norm.weight])])
    for a, b in zip(*outcomes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_training_step_has_one_operation_for_each_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks cannot be traced
    ours, _ = pair(16, torch.float32)
    x = torch.randn(9, 16).requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        (force,) = torch.autograd.grad(ours(x.sin()).cos().sum(), x, create_graph=True)
        force.square().sum().backward()
    counts = {event.key: event.count for event in profile.key_averages()}
    names = [name for name in counts if name.startswith("pyg_equivariant::")]
    assert sorted(names) == [f"pyg_equivariant::layer_norm_{name}" for name in ("backward", "forward", "second")]
    assert counts["pyg_equivariant::layer_norm_second"] == 1


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rows of \[8\] channels are normalised, got \[3, 7\]"):
        pair(8)[0](torch.zeros(3, 7, dtype=torch.float64))


def test_half_precision_takes_the_other_way() -> None:
    ours, theirs = pair(8, torch.bfloat16)
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    assert torch.equal(ours(x), theirs(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert ours.float()(x.float()).dtype == torch.float32
