"""The kernels of harmonic sums against PyTorch's operations, in three derivatives."""

from collections.abc import Callable
from functools import partial

import jaxtyping
import pytest
import torch

from pyg_equivariant.nn import harmonic_sum
from pyg_equivariant.nn.harmonic_sum import sum_to_atoms, sum_to_edges

FIRST = {"a row a degree": (0, 1, 4, 9), "one row": (0, 9)}


def arguments(channels: int, rows: int) -> tuple[torch.Tensor, ...]:
    """Harmonics, values of the edges and tensors of the atoms, of which one has no edge."""
    generator = torch.Generator().manual_seed(0)
    shapes = (20, 9), (20, rows, channels), (6, 9, channels)
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    return *inputs, torch.randint(0, 5, (20,), generator=generator)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("channels", [1, 8, 21, 64, 100])
@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
def test_equals_pytorch(
    first: tuple[int, ...], channels: int, threads: int, derivatives: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    sh, values, tensors, index = arguments(channels, len(first) - 1)
    to_atoms = partial(sum_to_atoms, index=index, num_atoms=6, first=first)
    to_edges = partial(sum_to_edges, index=index, first=first)
    fast = derivatives(to_atoms, [sh, values], threads=threads), derivatives(to_edges, [sh, tensors], threads=threads)
    monkeypatch.setattr(harmonic_sum, "runs_on", lambda x: False)
    slow = derivatives(to_atoms, [sh, values]), derivatives(to_edges, [sh, tensors])
    for kernel, reference in zip(fast, slow, strict=True):
        assert len(kernel) == len(reference) == 1 + 2 + 3 + 5
        for number, (a, b) in enumerate(zip(kernel, reference, strict=True)):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-10), number


def test_single_precision() -> None:
    sh, values, tensors, index = arguments(40, 3)
    first = FIRST["a row a degree"]
    single = sum_to_atoms(sh.float(), values.float(), index, 6, first)
    assert torch.allclose(single.double(), sum_to_atoms(sh, values, index, 6, first), atol=1e-4)
    single = sum_to_edges(sh.float(), tensors.float(), index, first)
    assert torch.allclose(single.double(), sum_to_edges(sh, tensors, index, first), atol=1e-4)


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would refuse the same before
    sh, values, tensors, index = arguments(8, 3)
    with pytest.raises(IndexError, match=r"edge \d+ has the atom 4 of 4"):
        sum_to_atoms(sh, values, index, 4, (0, 1, 4, 9))
    with pytest.raises(IndexError, match=r"edge \d+ has the atom -1 of 6"):
        sum_to_edges(sh, tensors, torch.where(index == 3, -1, index), (0, 1, 4, 9))
    with pytest.raises(ValueError, match=r"9 harmonics in 3 rows over 20 edges .* got a tensor \[20, 2, 8\]"):
        sum_to_atoms(sh, values[:, 1:], index, 6, (0, 1, 4, 9))
    with pytest.raises(ValueError, match=r"got a tensor \[19, 9\]"):
        sum_to_edges(sh[1:], tensors, index, (0, 1, 4, 9))
    with pytest.raises(ValueError, match=r"got a tensor \[6, 8, 8\]"):
        sum_to_edges(sh, tensors[:, 1:], index, (0, 1, 4, 9))
