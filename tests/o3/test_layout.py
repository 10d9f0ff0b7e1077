"""The dense layout against e3nn's Irreps."""

import pytest
import torch
from e3nn.o3 import Irreps
from hypothesis import given, settings
from hypothesis import strategies as st

from pyg_equivariant.o3 import (
    degree_slices,
    degrees,
    from_irreps,
    irreps,
    lmax_of,
    num_components,
    random_rotation,
    rotate,
    to_irreps,
)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.integers(0, 4), st.integers(1, 3), st.sampled_from([1, 2]), st.sampled_from([1, -1]), st.integers(0, 2**16))
def test_flat_features_turn_as_in_e3nn(lmax, channels, parity, sign, seed):
    generator = torch.Generator().manual_seed(seed)
    rotation = sign * random_rotation(generator)
    x = torch.randn(3, parity, num_components(lmax), channels, generator=generator, dtype=torch.float64)
    matrix = Irreps(irreps(channels, lmax, parity)).D_from_matrix(rotation).to(x.dtype)
    # e3nn's matrices pass through angles
    torch.testing.assert_close(to_irreps(rotate(x, rotation)), to_irreps(x) @ matrix.T, atol=1e-5, rtol=0)
    assert torch.equal(from_irreps(to_irreps(x), channels, lmax, parity), x)


def test_no_atoms():
    assert from_irreps(to_irreps(torch.zeros(0, 2, 9, 4)), 4, 2, 2).shape == (0, 2, 9, 4)


def test_bookkeeping():
    assert [lmax_of(num_components(lmax)) for lmax in range(7)] == list(range(7))
    assert degrees(2) == [degree for degree, rows in enumerate(degree_slices(2)) for _ in range(*rows.indices(99))]


@pytest.mark.parametrize("count", [0, 3, 8, -1])
def test_no_square_is_refused(count):
    with pytest.raises(ValueError, match=rf"1, 4, 9, .* got {count}"):
        lmax_of(count)


def test_wrong_width_is_refused():
    with pytest.raises(ValueError, match=r"4x0e.4x1o has 16 numbers an atom, got 15"):
        from_irreps(torch.zeros(2, 15), 4, 1)
