"""The kernel of what scalars and vectors send each other, against PyTorch's operations, in three derivatives."""

from collections.abc import Callable

import jaxtyping
import pytest
import torch

from pyg_equivariant.nn import exchange as module
from pyg_equivariant.nn.exchange import exchange


def arguments(rows: int, components: int, channels: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, 3 * channels), (rows, components, 3 * channels)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(5, 3, 1), (4, 8, 21), (3, 3, 64), (0, 3, 4)])
def test_equals_pytorch(
    shape: tuple[int, int, int], threads: int, derivatives: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = [derivatives(lambda o, x, n=n: exchange(o, x)[n], arguments(*shape), threads=threads) for n in (0, 1)]
    monkeypatch.setattr(module, "runs_on", lambda x: False)
    slow = [derivatives(lambda o, x, n=n: exchange(o, x)[n], arguments(*shape)) for n in (0, 1)]
    for kernel, reference in zip(fast, slow, strict=True):
        assert len(kernel) == len(reference) == 1 + 2 + 3 + 5
        for number, (a, b) in enumerate(zip(kernel, reference, strict=True)):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=str(number))


def test_loss_of_forces_takes_three_operations() -> None:
    o, x = (t.float().detach().requires_grad_() for t in arguments(7, 3, 16))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ds, dv = exchange(o.sin(), x.cos())
        (force,) = torch.autograd.grad(ds.sin().sum() + dv.cos().sum(), x, create_graph=True)
        force.square().sum().backward()
    names = {event.key for event in profile.key_averages() if event.key.startswith("pyg_equivariant::")}
    assert names == {f"pyg_equivariant::exchange_{name}" for name in ("forward", "backward", "second")}


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would refuse the same before
    o, x = arguments(5, 3, 4)
    with pytest.raises(ValueError, match=r"are exchanged, got \[5, 12\] and \[4, 3, 12\]"):
        exchange(o, x[1:])
    with pytest.raises(ValueError, match=r"are exchanged, got \[5, 11\] and \[5, 3, 11\]"):
        exchange(o[:, 1:], x[..., 1:])
    operations = torch.ops.pyg_equivariant
    with pytest.raises(ValueError, match=r"got gradients \[5, 3\] and \[5, 3, 4\]"):
        operations.exchange_backward(o, x, o[:, :3], x[..., :4])
    with pytest.raises(ValueError, match=r"got directions \[5, 11\] and \[5, 3, 12\]"):
        operations.exchange_second(o, x, o[:, :4], x[..., :4], o[:, 1:], x)
