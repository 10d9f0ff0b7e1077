"""The kernel of products of rejections, against PyTorch's operations, in three derivatives."""

from collections.abc import Callable

import jaxtyping
import pytest
import torch

from pyg_equivariant.nn import rejection as module
from pyg_equivariant.nn.rejection import rejection_product

ATOMS, EDGES = 5, 17


def arguments(components: int, channels: int, edges: int = EDGES) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = (ATOMS, components, 2 * channels), (edges, components)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    return tensors, list(torch.randint(0, ATOMS, (2, edges), generator=generator))


def test_is_the_product_of_what_is_left() -> None:
    (x, y), (source, target) = arguments(3, 4)
    own, other = x.chunk(2, -1)

    def rejected(v: torch.Tensor) -> torch.Tensor:
        return v - (v * y.unsqueeze(-1)).sum(1, keepdim=True) * y.unsqueeze(-1)

    expected = (rejected(own[target]) * rejected(other[source])).sum(1)
    torch.testing.assert_close(rejection_product(x, y, source, target), expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("components", "channels", "edges"), [(3, 1, 17), (8, 21, 17), (3, 64, 17), (3, 4, 0)])
def test_equals_pytorch(
    components: int, channels: int, edges: int, threads: int, derivatives: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, indices = arguments(components, channels, edges)
    fast = derivatives(lambda x, y: rejection_product(x, y, *indices), tensors, threads=threads)
    monkeypatch.setattr(module, "runs_on", lambda x: False)
    slow = derivatives(lambda x, y: rejection_product(x, y, *indices), tensors)
    assert len(fast) == len(slow) == 1 + 2 + 3 + 5
    for number, (a, b) in enumerate(zip(fast, slow, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=str(number))


def test_loss_of_forces_takes_three_operations() -> None:
    tensors, indices = arguments(3, 16)
    x, y = (tensor.float().detach().requires_grad_() for tensor in tensors)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        product = rejection_product(x.sin(), y.cos(), *indices)
        (force,) = torch.autograd.grad(product.sin().sum(), y, create_graph=True)
        force.square().sum().backward()
    names = {event.key for event in profile.key_averages() if event.key.startswith("pyg_equivariant::")}
    assert names == {f"pyg_equivariant::rejection_{name}" for name in ("forward", "backward", "second")}


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would refuse the same before
    (x, y), (source, target) = arguments(3, 4)
    with pytest.raises(IndexError, match=r"edge 0 has the atoms \d and 5 of 5"):
        rejection_product(x, y, source, torch.full_like(target, ATOMS))
    with pytest.raises(IndexError, match=r"edge 0 has the atoms -1 and \d of 5"):
        rejection_product(x, y, torch.full_like(source, -1), target)
    with pytest.raises(ValueError, match=r"with \[16, 3\] components read tensors \[5, 3, 8\]"):
        rejection_product(x, y[1:], source, target)
    with pytest.raises(ValueError, match=r"to \[16\] with \[17, 3\] components"):
        rejection_product(x, y, source, target[1:])
    with pytest.raises(ValueError, match=r"read tensors \[5, 3, 7\]"):
        rejection_product(x[..., 1:], y, source, target)
    operations = torch.ops.pyg_equivariant
    with pytest.raises(ValueError, match=r"17 edges with 4 channels got gradients \[17, 3\]"):
        operations.rejection_backward(x, y, y, source, target)
    with pytest.raises(ValueError, match=r"got directions \[5, 3, 8\] and \[16, 3\]"):
        operations.rejection_second(x, y, x.new_zeros(EDGES, 4), x, y[1:], source, target)
