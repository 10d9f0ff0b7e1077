"""Products with a matrix for each element."""

import pytest
import torch

from pyg_equivariant.nn import element_product as module
from pyg_equivariant.nn.element_product import element_product

INDEX = torch.tensor([2, 0, 2, -1, 1, 2, 0])


def sample(num_elements=3, channels=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(INDEX), 3, channels, generator=generator, dtype=dtype)
    return x, torch.randn(num_elements, channels, 5, generator=generator, dtype=dtype)


def explicit(x, weight, index):
    return torch.stack(
        [
            rows @ weight[n] if n >= 0 else rows[:, :1].expand(-1, 5) * torch.nan
            for rows, n in zip(x, index, strict=True)
        ]
    )


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("num_elements", [3, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_product_with_each_atoms_matrix(kernel, num_elements, dtype, monkeypatch):
    """Twenty elements of four channels are looked up where there is no kernel."""
    if not kernel:
        monkeypatch.setattr(module, "runs_on", lambda x: False)
    x, weight = sample(num_elements, dtype=dtype)
    expected = explicit(x, weight, INDEX)
    torch.testing.assert_close(element_product(x, weight, INDEX), expected, equal_nan=True)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1), weight.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(element_product(*strided, INDEX), expected, equal_nan=True)


def test_derivatives():
    x, weight = sample()
    known = INDEX >= 0
    x, index = x[known].requires_grad_(), INDEX[known]
    weight.requires_grad_()
    assert torch.autograd.gradcheck(element_product, (x, weight, index))
    assert torch.autograd.gradgradcheck(element_product, (x, weight, index))
    g = torch.randn(len(index), 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(module._outer, (x, g, index, 3))


def test_frozen_weights_and_no_atoms():
    x, weight = sample()
    x.requires_grad_()
    element_product(x, weight, INDEX.clamp(min=0)).sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(x.grad, weight[INDEX.clamp(min=0)].sum(2)[:, None].expand(-1, 3, -1))
    assert element_product(x[:0], weight, INDEX[:0]).shape == (0, 3, 5)


def test_says_what_does_not_fit():
    x, weight = sample()
    with pytest.raises(IndexError, match="atom 0 has the matrix 2 of 2"):
        module._product(x, weight[:2], INDEX)
    with pytest.raises(ValueError, match="got features of 3 channels"):
        module._product(x[..., :3], weight, INDEX)
    with pytest.raises(ValueError, match="there are features of 7 atoms, but elements of 6"):
        module._product(x, weight, INDEX[1:])
