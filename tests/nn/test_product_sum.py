"""The kernels of sums of products against PyTorch's operations, in three derivatives."""

from collections.abc import Callable
from functools import partial

import jaxtyping
import pytest
import torch

from pyg_equivariant.nn import harmonic_sum, product_sum
from pyg_equivariant.nn.product_sum import sum_products_to_atoms

FIRST = (0, 1, 4, 9)


def arguments(channels: int) -> tuple[torch.Tensor, ...]:
    """Harmonics, factors, weights and features, and the atoms of the edges; one atom has no edge."""
    generator = torch.Generator().manual_seed(0)
    shapes = (20, 9), (20, 3, 5), (5, channels), (20, channels)
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    return *inputs, torch.randint(0, 5, (20,), generator=generator)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("channels", [1, 8, 21, 64, 100])
def test_equals_pytorch(channels: int, threads: int, derivatives: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    *inputs, index = arguments(channels)
    function = partial(sum_products_to_atoms, index=index, num_atoms=6, first=FIRST)
    fast = derivatives(function, inputs, threads=threads)
    for module in (product_sum, harmonic_sum):
        monkeypatch.setattr(module, "runs_on", lambda x: False)
    slow = derivatives(function, inputs)
    assert len(fast) == len(slow) == 1 + 4 + 5 + 9
    for number, (a, b) in enumerate(zip(fast, slow, strict=True)):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-9), number


def test_single_precision() -> None:
    *inputs, index = arguments(40)
    single = sum_products_to_atoms(*(x.float() for x in inputs), index, 6, FIRST)
    assert torch.allclose(single.double(), sum_products_to_atoms(*inputs, index, 6, FIRST), atol=1e-4)


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would refuse the same before
    sh, factors, weight, x, index = arguments(8)
    with pytest.raises(IndexError, match=r"edge \d+ has the atom 4 of 4"):
        sum_products_to_atoms(sh, factors, weight, x, index, 4, FIRST)
    with pytest.raises(ValueError, match=r"got a tensor \[20, 8\]"):
        sum_products_to_atoms(sh[:, 1:], factors, weight, x, index, 6, FIRST)
    with pytest.raises(ValueError, match=r"20 edges got \[20, 2, 5\] factors, weights \[5, 8\]"):
        sum_products_to_atoms(sh, factors[:, 1:], weight, x, index, 6, FIRST)
    with pytest.raises(ValueError, match=r"weights \[4, 8\]"):
        sum_products_to_atoms(sh, factors, weight[1:], x, index, 6, FIRST)
