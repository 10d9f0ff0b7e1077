"""Products of blocks with a matrix each, and with one for each element."""

import os
import subprocess
import sys

import pytest
import torch

from pyg_equivariant.nn import block_product as module
from pyg_equivariant.nn.block_product import Blocks, block_product

INDEX = torch.tensor([2, 0, 2, -1, 1, 2, 0])
BLOCKS = Blocks(rows=[1, 3, 5], ins=[12, 4, 6], outs=[7, 4, 3])


def sample(num_elements=1, blocks=BLOCKS, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    width = sum(rows * size for rows, size in zip(blocks.rows, blocks.ins, strict=True))
    count = num_elements * sum(a * b for a, b in zip(blocks.ins, blocks.outs, strict=True))
    x, weight = (torch.randn(shape, generator=generator, dtype=dtype) for shape in ((len(INDEX), width), (count,)))
    return x, weight / 3


def explicit(x, weight, blocks, index=None, num_elements=1):
    """Atom by atom, row by row."""
    atoms = []
    for n, features in enumerate(x):
        element = 0 if index is None else int(index[n])
        row, place, outcome = 0, 0, []
        for rows, size, width in zip(*blocks, strict=True):
            matrices = weight[place : place + num_elements * size * width].view(num_elements, size, width)
            for _ in range(rows):
                y = features[row : row + size] @ matrices[element]
                outcome.append(y if element >= 0 else y * torch.nan)
                row += size
            place += num_elements * size * width
        atoms.append(torch.cat(outcome))
    return torch.stack(atoms)


@pytest.mark.parametrize("way", ["kernel", "no kernel"])
@pytest.mark.parametrize("num_elements", [None, 3, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_product_with_each_rows_matrix(way, num_elements, dtype, monkeypatch):
    """Twenty elements of four channels are looked up where there is no kernel."""
    if way == "no kernel":
        monkeypatch.setattr(module, "runs_on", lambda x: False)
    elements = () if num_elements is None else (INDEX, num_elements)
    x, weight = sample(num_elements or 1, dtype=dtype)
    expected = explicit(x, weight, BLOCKS, *elements)
    torch.testing.assert_close(block_product(x, weight, BLOCKS, *elements), expected, equal_nan=True)
    for strided in (torch.cat([x, x], 1)[:, : x.shape[1]], x.T.contiguous().T):
        torch.testing.assert_close(block_product(strided, weight, BLOCKS, *elements), expected, equal_nan=True)


@pytest.mark.parametrize("num_elements", [None, 3])
def test_derivatives(num_elements):
    elements = () if num_elements is None else (INDEX.clamp(min=0), num_elements)
    x, weight = (t.requires_grad_() for t in sample(num_elements or 1))

    def product(x, weight):
        return block_product(x, weight, BLOCKS, *elements)

    assert torch.autograd.gradcheck(product, (x, weight), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(product, (x, weight))

    def outer(x, g):
        return module._outer(x, g, elements[0] if elements else None, *map(list, BLOCKS), num_elements or 1)

    g = torch.randn(len(INDEX), 34, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(outer, (x, g))


def test_forces_do_not_derive_by_weights(monkeypatch):
    """Of a product's two derivatives only those are computed that are asked for."""
    calls = []
    monkeypatch.setattr(module, "_outer", lambda *args: calls.append(args))
    x, weight = (t.requires_grad_() for t in sample())
    torch.autograd.grad(block_product(x, weight, BLOCKS).sum(), x)
    assert not calls


def test_frozen_weights_no_atoms_and_no_channels():
    x, weight = sample(3)
    x.requires_grad_()
    index = INDEX.clamp(min=0)
    block_product(x, weight, BLOCKS, index, 3).sum().backward()
    assert weight.grad is None
    assert x.grad.isfinite().all()
    assert block_product(x[:0], weight, BLOCKS, index[:0], 3).shape == (0, 34)
    empty = Blocks(rows=[1, 3], ins=[2, 0], outs=[2, 4])
    x, weight = sample(blocks=empty)
    weight.requires_grad_()
    y = block_product(x, weight, empty)
    assert (y[:, 2:] == 0).all()
    y.sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).repeat_interleave(2))


def test_says_what_does_not_fit():
    x, weight = sample(3)
    with pytest.raises(IndexError, match="atom 0 has the matrix 2 of 1"):
        block_product(x, weight[: len(weight) // 3], BLOCKS, INDEX)
    with pytest.raises(ValueError, match="expected features of 7 x 54, got \\[7, 53\\]"):
        block_product(x[:, 1:], weight, BLOCKS, INDEX, 3)
    with pytest.raises(ValueError, match="there are features of 7 atoms, but elements of 6"):
        module._product(x, weight, INDEX[1:], *map(list, BLOCKS), 3, False)
    with pytest.raises(ValueError, match="matrices of 3 elements, but not which atom has which"):
        block_product(x, weight, BLOCKS, None, 3)
    with pytest.raises(ValueError, match="expected 354 weights, got 353"):
        block_product(x, weight[1:], BLOCKS, INDEX, 3)


WITHOUT_BLAS = """
import torch
from pyg_equivariant.nn import block_product as module
from pyg_equivariant.nn.block_product import Blocks, block_product
from pyg_equivariant.nn.native import kernels

assert kernels()
blocks = Blocks([1, 3], [4, 2], [3, 5])
for dtype in (torch.float32, torch.float64):
    for elements in ((), (torch.tensor([1, 0, 1, -1]), 2)):
        x, weight = torch.randn(4, 10, dtype=dtype), torch.randn(22 * (2 if elements else 1), dtype=dtype)
        outcomes = []
        for kernel in (True, False):
            module.runs_on = lambda x: kernel
            own, matrices = x.clone().requires_grad_(), weight.clone().requires_grad_()
            y = block_product(own, matrices, blocks, *elements)
            known = y.nan_to_num().square().sum()
            outcomes.append([y, *torch.autograd.grad(known, (own, matrices))])
        for actual, expected in zip(*outcomes):
            torch.testing.assert_close(actual[:3], expected[:3])
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
    module._product(x, weight[:22], None, *map(list, blocks), 1, False)
assert "aten::addmm" in {event.key for event in profile.key_averages()}
"""


@pytest.mark.slow
def test_without_a_blas_that_can_be_called(tmp_path):
    """Where PyTorch keeps its own to itself, its operations multiply."""
    names = "-Dsgemm_=sgemm_of_nobody -Ddgemm_=dgemm_of_nobody"
    environment = os.environ | {"CXX": f"g++ {names}", "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", WITHOUT_BLAS], check=True, env=environment)
