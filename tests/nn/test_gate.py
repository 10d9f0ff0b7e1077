"""The gate."""

import pytest
import torch
from e3nn import o3 as e3nn
from e3nn.nn import Gate as E3nnGate
from hypothesis import given, settings
from hypothesis import strategies as st

from pyg_equivariant.nn.gate import SILU_SCALE, TANH_SCALE, Gate
from pyg_equivariant.o3 import from_irreps, num_components, random_rotation, rotate


@settings(derandomize=True, deadline=None, max_examples=15)
@given(st.integers(0, 3), st.sampled_from([1, 2]), st.sampled_from([1, -1]), st.integers(0, 99))
def test_equivariant(lmax, parity, sign, seed):
    generator = torch.Generator().manual_seed(seed)
    gate = Gate(lmax, parity)
    x = torch.randn(4, parity, num_components(lmax), 2, generator=generator, dtype=torch.float64)
    gates = torch.randn(4, gate.num_gates, 2, generator=generator, dtype=torch.float64)
    rotation = sign * random_rotation(generator)
    torch.testing.assert_close(gate(rotate(x, rotation), gates), rotate(gate(x, gates), rotation), atol=1e-12, rtol=0)


def test_equal_to_e3nn():
    channels = 3
    x = torch.randn(5, 2, 4, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gates = torch.randn(5, 2, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    silu, tanh = torch.nn.functional.silu, torch.tanh
    oracle = E3nnGate("3x0e+3x0o", [silu, tanh], "3x0e+3x0e", [silu, silu], "3x1o+3x1e").double()
    assert oracle.irreps_in == e3nn.Irreps("3x0o+9x0e+3x1o+3x1e")  # e3nn sorts what goes in
    blocks = [x[:, 1, 0], x[:, 0, 0], gates[:, 0], gates[:, 1]]
    blocks += [x[:, slot, 1:].transpose(1, 2).flatten(1) for slot in (0, 1)]
    assert oracle.irreps_out == e3nn.Irreps("3x0e+3x0o+3x1o+3x1e")
    even, odd, vectors, pseudovectors = oracle(torch.cat(blocks, dim=1)).split([3, 3, 9, 9], dim=1)
    expected = from_irreps(torch.cat([even, vectors, odd, pseudovectors], dim=1), channels, 1, 2)
    torch.testing.assert_close(Gate(1, 2)(x, gates), expected, atol=0, rtol=3e-3)  # its scale of SiLU is sampled


def test_scales_are_exact():
    """One over the root mean square of the nonlinearity of a normal variable."""
    points = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    density = torch.exp(-points.square() / 2)
    density /= density.sum()
    for function, scale in ((torch.nn.functional.silu, SILU_SCALE), (torch.tanh, TANH_SCALE)):
        assert (function(points).square() * density).sum().rsqrt().item() == pytest.approx(scale, rel=1e-9)


def test_variance_is_kept():
    torch.manual_seed(0)
    x, gates = torch.randn(500, 2, 9, 16), torch.randn(500, 4, 16)
    out = Gate(2, 2)(x, gates)
    for slot in (0, 1):
        for rows in (slice(0, 1), slice(1, 4), slice(4, 9)):
            assert out[:, slot, rows].square().mean().item() == pytest.approx(1.0, abs=0.1)
