"""The tensor product against e3nn, under rotations, compiled."""

import contextlib
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from e3nn import o3 as e3nn
from hypothesis import given, settings
from hypothesis import strategies as st

from pyg_equivariant.nn.tensor_product import AllPaths, FullPaths, PathLinear, Paths, ProperPaths, TensorProduct
from pyg_equivariant.o3 import coupling, irreps, num_components, random_rotation, rotate, spherical_harmonics, to_irreps


@contextlib.contextmanager
def float64() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def make_paths(kind: str, lmax_in: int, lmax_sh: int, lmax_out: int) -> Paths:
    if kind == "first":
        return FullPaths(lmax_in, lmax_sh, lmax_out, parity_in=1)
    return {"proper": ProperPaths, "full": FullPaths, "all": AllPaths}[kind](lmax_in, lmax_sh, lmax_out)


def inputs(paths: Paths, channels: int, num: int = 5, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    components = num_components(paths.lmax_in)
    x = torch.randn(num, paths.parity_in, components, channels, generator=generator, dtype=torch.float64)
    vec = torch.randn(num, 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(num, paths.num_paths, channels, generator=generator, dtype=torch.float64)
    return x, vec, weight


KINDS = st.sampled_from(["proper", "full", "first", "all"])
DEGREES = st.integers(0, 3)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(KINDS, DEGREES, DEGREES, DEGREES, st.integers(1, 3), st.sampled_from([1, -1]), st.integers(0, 99))
def test_equivariant(kind, lmax_in, lmax_sh, lmax_out, channels, sign, seed):
    torch.manual_seed(seed)
    paths = make_paths(kind, lmax_in, lmax_sh, lmax_out)
    product, mix = TensorProduct(paths).double(), PathLinear(paths, channels, 2, num_scalars=3).double()
    x, vec, weight = inputs(paths, channels, seed=seed)
    rotation = (1 if kind == "all" else sign) * random_rotation(torch.Generator().manual_seed(seed))

    def run(x: torch.Tensor, vec: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return mix(product(x.transpose(1, 2), spherical_harmonics(vec, lmax_sh), weight))

    y, scalars = run(x, vec)
    turned, same = run(rotate(x, rotation), vec @ rotation.T)
    assert y.shape == (5, paths.parity_out, num_components(lmax_out), 2)
    torch.testing.assert_close(turned, rotate(y, rotation), atol=1e-11, rtol=0)
    torch.testing.assert_close(same, scalars, atol=1e-11, rtol=0)


def test_all_paths_break_reflections():
    """They are not to be used where the group is E(3)."""
    paths = AllPaths(1, 1, 1)
    torch.manual_seed(0)
    product, mix = TensorProduct(paths).double(), PathLinear(paths, 2, 2).double()
    x, vec, weight = inputs(paths, 2)
    y, _ = mix(product(x.transpose(1, 2), spherical_harmonics(vec, 1), weight))
    mirror = -torch.eye(3, dtype=torch.float64)
    turned, _ = mix(product(rotate(x, mirror).transpose(1, 2), spherical_harmonics(-vec, 1), weight))
    assert (turned - rotate(y, mirror)).abs().max() > 0.1


@pytest.mark.parametrize(("kind", "lmax"), [("proper", 3), ("full", 2), ("first", 2)])
def test_equal_to_e3nn(kind, lmax):
    """Each path is one 'uvu' instruction of e3nn's TensorProduct with external weights."""
    paths, channels = make_paths(kind, lmax, lmax, lmax), 2
    irreps_in = e3nn.Irreps(irreps(channels, lmax, paths.parity_in))
    irreps_sh = e3nn.Irreps.spherical_harmonics(lmax)
    irreps_out, instructions = [], []
    for block in paths.blocks:
        for l1, l2 in block.pairs:
            for slot in range(paths.parity_in):
                parity = irreps_in[slot * (lmax + 1) + l1].ir.p * irreps_sh[l2].ir.p
                instructions.append((slot * (lmax + 1) + l1, l2, len(irreps_out), "uvu", True))
                irreps_out.append((channels, (block.l3, parity)))
    with float64():  # else e3nn's couplings keep float32's rounding
        oracle = e3nn.TensorProduct(
            irreps_in, irreps_sh, irreps_out, instructions, shared_weights=False, internal_weights=False
        )
    x, vec, weight = inputs(paths, channels)
    edge_sh = spherical_harmonics(vec, lmax)
    expected = oracle(to_irreps(x), edge_sh, weight.flatten(1))
    outcome = TensorProduct(paths).double()(x.transpose(1, 2), edge_sh, weight)
    # [E, M3, path, P, C] -> path, slot, C, M3
    flat = torch.cat([block.permute(0, 2, 3, 4, 1).flatten(1) for block in paths.split(outcome)], dim=1)
    torch.testing.assert_close(flat, expected, atol=1e-12, rtol=0)


def test_selection_rule():
    """Where e3nn says that an outcome is even or odd, so do the slots."""
    paths = FullPaths(2, 2, 2)
    for block in paths.blocks:
        for slot in (0, 1):
            for origin, part in paths.sources(block, slot):
                for l1, l2 in block.pairs[part]:
                    assert slot == origin ^ ((l1 + l2 + block.l3) % 2)
        taken = [pair for slot in (0, 1) for _, part in paths.sources(block, slot) for pair in block.pairs[part]]
        assert sorted(taken) == sorted(2 * block.pairs)


def test_proper_paths_are_the_true_tensors_of_full_paths():
    proper, full = ProperPaths(3, 3, 3), FullPaths(3, 3, 3)
    assert [b.pairs for b in proper.blocks] == [b.pairs[: b.num_even] for b in full.blocks]
    assert AllPaths(3, 3, 3).num_paths == full.num_paths // 2


def test_couplings_are_exact_after_a_change_of_type():
    paths = ProperPaths(2, 2, 2)
    product = TensorProduct(paths).to(torch.float32).double()
    pairs = paths.blocks[2].pairs
    table = product.coupling_2.view(9, 5, len(pairs), 9)[4:, :, pairs.index((2, 2)), 4:]
    assert torch.equal(table, coupling(2, 2, 2).permute(1, 2, 0))
    assert not product.state_dict()


def test_no_edges():
    paths = FullPaths(1, 1, 1)
    x, vec, weight = inputs(paths, 2, num=0)
    outcome = TensorProduct(paths).double()(x.transpose(1, 2), spherical_harmonics(vec, 1), weight)
    assert [tuple(block.shape) for block in paths.split(outcome)] == [(0, 1, 2, 2, 2), (0, 3, 3, 2, 2)]


@pytest.mark.parametrize("kind", ["proper", "full"])
def test_variance_at_the_start(kind):
    torch.manual_seed(0)
    paths = make_paths(kind, 2, 2, 2)
    product, mix = TensorProduct(paths), PathLinear(paths, 32, 32)
    x = torch.randn(2000, num_components(2), paths.parity_in, 32)
    weight = torch.randn(2000, paths.num_paths, 32)
    outcome = product(x, spherical_harmonics(torch.randn(2000, 3), 2), weight)
    for block in paths.split(outcome):
        torch.testing.assert_close(block.var((0, 1, 3, 4)), torch.ones(block.shape[2]), atol=0.1, rtol=0)
    assert mix(outcome)[0].var().item() == pytest.approx(1.0, abs=0.1)


def test_compiled_with_forces(monkeypatch):
    """One graph, no breaks: product, gradient by direction, and that gradient's gradient by the weights."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks cannot be traced
    torch._dynamo.reset()
    paths = FullPaths(1, 1, 1)
    product, mix = TensorProduct(paths), PathLinear(paths, 4, 4)

    def step(x: torch.Tensor, vec: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y, _ = mix(product(x, spherical_harmonics(vec, 1), weight))
        (force,) = torch.autograd.grad(y.square().sum(), vec, create_graph=True)
        return force.square().sum()

    x, vec, weight = (t.float() for t in inputs(paths, 4))
    x = x.transpose(1, 2).contiguous()
    vec.requires_grad_()
    weight.requires_grad_()
    expected = step(x, vec, weight)
    (slope,) = torch.autograd.grad(expected, weight)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        actual = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")(x, vec, weight)
        (actual_slope,) = torch.autograd.grad(actual, weight)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(actual_slope, slope, rtol=1e-3, atol=1e-3 * slope.abs().max().item())
