"""Linear layers against e3nn, under rotations, and their variance."""

import pytest
import torch
from e3nn import o3 as e3nn
from hypothesis import given, settings
from hypothesis import strategies as st

from pyg_equivariant.nn import block_product
from pyg_equivariant.nn.linear import DegreeLinear, ElementLinear
from pyg_equivariant.o3 import from_irreps, irreps, num_components, random_rotation, rotate, to_irreps


def features(num: int, parity: int, lmax: int, channels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, parity, num_components(lmax), channels, generator=generator, dtype=torch.float64)


@settings(derandomize=True, deadline=None, max_examples=15)
@given(
    st.integers(0, 3),
    st.integers(1, 3),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.sampled_from([1, -1]),
    st.integers(0, 99),
)
def test_equivariant(lmax, channels, parity, bias, sign, seed):
    torch.manual_seed(seed)
    layer = DegreeLinear(channels, 2, lmax=lmax, parity=parity, bias=bias).double()
    per_element = ElementLinear(channels, 2, lmax=lmax, parity=parity).double()
    if bias:
        torch.nn.init.normal_(layer.bias)
    x, z = features(4, parity, lmax, channels, seed), torch.tensor([1, 8, 1, 6])
    rotation = sign * random_rotation(torch.Generator().manual_seed(seed))
    torch.testing.assert_close(layer(rotate(x, rotation)), rotate(layer(x), rotation), atol=1e-12, rtol=0)
    turned = per_element(rotate(x, rotation), z)
    torch.testing.assert_close(turned, rotate(per_element(x, z), rotation), atol=1e-12, rtol=0)


@pytest.mark.parametrize("parity", [1, 2])
def test_equal_to_e3nn(parity):
    lmax, channels, out_channels = 2, 3, 4
    layer = DegreeLinear(channels, out_channels, lmax=lmax, parity=parity).double()
    oracle = e3nn.Linear(irreps(channels, lmax, parity), irreps(out_channels, lmax, parity)).double()
    with torch.no_grad():
        oracle.weight.copy_(layer.weight.flatten() * channels**0.5)  # e3nn divides by sqrt(fan-in) in its forward
    x = features(5, parity, lmax, channels)
    expected = from_irreps(oracle(to_irreps(x)), out_channels, lmax, parity)
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("elements", [[1, 6, 8], None], ids=["few", "all"])
def test_element_linear_equals_e3nn(elements):
    """FullyConnectedTensorProduct of the features with one-hot elements."""
    layer = ElementLinear(3, 4, lmax=1, parity=2, elements=elements).double()
    count = layer.weight.shape[2]
    oracle = e3nn.FullyConnectedTensorProduct(irreps(3, 1, 2), f"{count}x0e", irreps(4, 1, 2)).double()
    with torch.no_grad():  # e3nn: [C, elements, D] a degree, over sqrt(C · elements)
        oracle.weight.copy_(torch.cat([w.transpose(0, 1).flatten() for w in layer.weight.flatten(0, 1)]))
        oracle.weight.mul_((3 * count) ** 0.5)
    x, z = features(5, 2, 1, 3), torch.tensor([6, 1, 8, 8, 1])
    one_hot = torch.nn.functional.one_hot(layer.place[z], count).double()
    expected = from_irreps(oracle(to_irreps(x), one_hot), 4, 1, 2)
    torch.testing.assert_close(layer(x, z), expected, atol=1e-12, rtol=0)


def test_unknown_element_is_not_silent():
    layer = ElementLinear(2, 2, elements=[1, 8])
    out = layer(torch.ones(2, 1, 1, 2), torch.tensor([8, 6]))
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


@pytest.mark.parametrize("elements", [[], [-1], [119]])
def test_bad_elements(elements):
    with pytest.raises(ValueError, match="atomic numbers from 1 to 118"):
        ElementLinear(2, 2, elements=elements)


def test_bias_on_true_scalars_only():
    layer = DegreeLinear(2, 3, lmax=1, parity=2, bias=True)
    torch.nn.init.ones_(layer.bias)
    out = layer(torch.zeros(1, 2, 4, 2))
    assert (out[0, 0, 0] == 1).all()
    assert out.sum() == 3


@pytest.mark.parametrize("lmax", [0, 2])
def test_variance_at_the_start(lmax):
    torch.manual_seed(0)
    x = torch.randn(100, 2, num_components(lmax), 64)
    assert DegreeLinear(64, 64, lmax=lmax, parity=2)(x).var().item() == pytest.approx(1.0, rel=0.1)
    z = torch.randint(1, 9, (100,))
    assert ElementLinear(64, 64, lmax=lmax, parity=2)(x, z).var().item() == pytest.approx(1.0, rel=0.1)


def test_scalars_are_mixed_by_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a kernel; not by one an atom, as a product of two tensors of four dimensions is."""
    monkeypatch.setattr(block_product, "runs_on", lambda x: False)
    scalars, z = torch.ones(5, 1, 1, 4), torch.tensor([1, 6, 8, 1, 1])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        DegreeLinear(4, 3)(scalars)
        ElementLinear(4, 3, elements=[1, 6, 8])(scalars, z)
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["aten::mm"] == 2
    assert "aten::bmm" not in calls
