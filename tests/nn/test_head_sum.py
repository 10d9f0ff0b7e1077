"""The kernels of attention against PyTorch's operations, in three derivatives."""

from collections.abc import Callable

import jaxtyping
import pytest
import torch
from torch import Tensor

from pyg_equivariant.nn import head_sum as module
from pyg_equivariant.nn.head_sum import head_dot, head_sum

EDGES, ATOMS, ROWS = 20, 6, 9


def arguments(channels: int, heads: int) -> tuple[list[Tensor], list[Tensor]]:
    """Two kinds of rows of the atoms, filters and factors; which of them an edge reads. An atom has no edge."""
    generator = torch.Generator().manual_seed(0)
    shapes = (ATOMS, channels), (ATOMS + 1, channels), (ROWS, channels), (EDGES, heads)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    return tensors, [torch.randint(0, shape[0] - 1, (EDGES,), generator=generator) for shape in shapes[:3]]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("channels", "heads"), [(1, 1), (8, 8), (21, 3), (64, 4), (128, 8), (100, 1)])
def test_equals_pytorch(
    channels: int, heads: int, threads: int, derivatives: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a, b, c, s), (to_a, to_b, to_c) = arguments(channels, heads)

    def dot(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return head_dot((a, to_a), (b, to_b), (c, to_c), heads)

    def total(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        return head_sum((a, to_a), (b, to_b), s, to_c, ROWS)

    fast = derivatives(dot, [a, b, c], threads=threads), derivatives(total, [a, b, s], threads=threads)
    monkeypatch.setattr(module, "runs_on", lambda x: False)
    slow = derivatives(dot, [a, b, c]), derivatives(total, [a, b, s])
    for kernel, reference in zip(fast, slow, strict=True):
        assert len(kernel) == len(reference) == 1 + 3 + 4 + 7
        for number, (x, y) in enumerate(zip(kernel, reference, strict=True)):
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10, msg=str(number))


def test_parts_of_tensors_are_read_where_they_are() -> None:
    (a, b, c, s), (to_a, to_b, to_c) = arguments(32, 4)
    both = torch.cat([a, a.flip(0)], 1)
    left, right = both.chunk(2, 1)
    torch.testing.assert_close(
        head_dot((left, to_a), (b, to_b), (c, to_c), 4), head_dot((a, to_a), (b, to_b), (c, to_c), 4)
    )
    torch.testing.assert_close(
        head_sum((right, to_a), (c, to_c), s, to_a, ATOMS), head_sum((a.flip(0), to_a), (c, to_c), s, to_a, ATOMS)
    )


def test_single_precision_and_no_edges() -> None:
    (a, b, c, s), (to_a, to_b, to_c) = arguments(48, 3)
    single = head_dot((a.float(), to_a), (b.float(), to_b), (c.float(), to_c), 3)
    torch.testing.assert_close(single.double(), head_dot((a, to_a), (b, to_b), (c, to_c), 3), rtol=1e-4, atol=1e-4)
    single = head_sum((a.float(), to_a), (b.float(), to_b), s.float(), to_c, ROWS)
    torch.testing.assert_close(single.double(), head_sum((a, to_a), (b, to_b), s, to_c, ROWS), rtol=1e-4, atol=1e-4)
    none = torch.empty(0, dtype=torch.long)
    assert head_dot((a, none), (b, none), (c, none), 3).shape == (0, 3)
    assert torch.equal(head_sum((a, none), (b, none), s[:0], none, 2), a.new_zeros(2, 48))


def test_loss_of_forces_takes_one_operation_for_each_derivative() -> None:
    (a, b, c, _), (to_a, to_b, to_c) = arguments(16, 2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        score = head_dot((a.sin(), to_a), (b.sin(), to_b), (c.sin(), to_c), 2)
        y = head_sum((a.cos(), to_a), (c.cos(), to_c), score.tanh(), to_b, ATOMS + 1)
        (force,) = torch.autograd.grad(y.sin().sum(), c, create_graph=True)
        force.square().sum().backward()
    counts = {event.key: event.count for event in profile.key_averages()}
    found = {name: counts[f"pyg_equivariant::head_{name}"] for name in ("dot", "sum", "first", "second")}
    assert found == {"dot": 1, "sum": 1, "first": 4, "second": 2}


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would refuse the same before
    (a, b, c, s), (to_a, to_b, to_c) = arguments(8, 2)
    with pytest.raises(IndexError, match=r"edge \d+ reads the rows 4 of 4, \d of 7 and \d of 9"):
        head_dot((a[:4], torch.full_like(to_a, 4)), (b, to_b), (c, to_c), 2)
    with pytest.raises(IndexError, match=r"edge \d+ reads the rows \d of 6, \d of 7 and -1 of 9"):
        head_sum((a, to_a), (b, to_b), s, torch.full_like(to_c, -1), ROWS)
    with pytest.raises(ValueError, match="8 channels in 3 heads"):
        head_dot((a, to_a), (b, to_b), (c, to_c), 3)
    with pytest.raises(ValueError, match=r"rows of \[2, 3, 8\] and \[7, 8\]"):
        head_dot((a.view(2, 3, 8), to_a), (b, to_b), (c, to_c), 1)
    with pytest.raises(ValueError, match=r"rows of \[6, 8\] and \[7, 7\]"):
        head_sum((a, to_a), (b[:, 1:], to_b), s, to_c, ROWS)
    with pytest.raises(ValueError, match=r"edges multiply 8 channels by rows of \[9, 7\]"):
        head_dot((a, to_a), (b, to_b), (c[:, 1:], to_c), 2)
    with pytest.raises(ValueError, match=r"20 edges with 2 heads have factors \[19, 2\]"):
        head_sum((a, to_a), (b, to_b), s[1:], to_c, ROWS)
