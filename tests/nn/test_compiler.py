"""What the compiler is told, and what it begins while it traces."""

from typing import Any

import jaxtyping
import pytest
import torch
import torch._functorch.config
from torch import Tensor
from torch._inductor import codecache, config, cpu_vec_isa
from torch._inductor.select_algorithm import extern_kernels

from pyg_equivariant import potential
from pyg_equivariant.models import SchNet
from pyg_equivariant.nn.compiler import NARROW, register_rules, warm_up
from pyg_equivariant.nn.dense import Dense
from pyg_equivariant.typing import Prediction


@pytest.mark.parametrize("cpp_wrapper", [False, True])
def test_warm_up_leaves_nothing_to_wait_for(cpp_wrapper: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    register_rules()
    for cache in (codecache.CppPythonBindingsCodeCache, codecache.CppWrapperCodeCache):
        monkeypatch.setattr(cache, "cache", {})  # other tests have compiled before
    learned = (cpu_vec_isa.valid_vec_isa_list, codecache._precompile_header)
    for each in learned:
        each.cache_clear()
    thread = warm_up.__wrapped__(cpp_wrapper)
    thread.join()
    assert [each.cache_info().currsize for each in learned] == [1, 1]

    torch.compiler.reset()
    uncached = (config.patch(fx_graph_cache=False), torch._functorch.config.patch(enable_autograd_cache=False))
    with uncached[0], uncached[1]:
        double = torch.compile(lambda x: 2 * x + 1, options={"cpp_wrapper": cpp_wrapper})
        assert double(torch.ones(3)).tolist() == [3, 3, 3]
    assert [each.cache_info().misses for each in learned] == [1, 1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [False, False]),
        ({"mode": "max-autotune"}, [False, False]),
        ({"options": {"cpp_wrapper": True}}, [True, True]),
        ({"backend": "eager"}, []),
    ],
)
def test_steps_warm_the_compiler_up(
    options: dict[str, Any], expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(torch, "compile", lambda step, **options: lambda graph: Prediction())
    monkeypatch.setattr(potential, "warm_up", calls.append)
    model = potential.Potential(SchNet(8, 1, cutoff=4.0))
    model.compile(**options)
    assert not calls  # not before data loaders have forked
    for _ in range(2):
        model._compiled(None)
    assert calls == expected


@pytest.mark.parametrize(("channels", "turned"), [(NARROW - 1, True), (NARROW, False)])
def test_few_columns_are_multiplied_from_the_left(channels: int, turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The derivative by the weights of a narrow layer: MKL needs up to eight times longer for gᵀ x than for (xᵀ g)ᵀ."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks cannot be traced
    register_rules()
    torch.compiler.reset()
    layer = Dense(channels, 32)
    x = torch.randn(50, channels)
    weights, bias = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    products: list[tuple[int, ...]] = []
    mm = torch.mm

    def record(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        products.append((*a.shape, *b.shape))
        return mm(a, b, out=out)

    monkeypatch.setattr(extern_kernels, "mm", record)
    torch.compile(lambda x: layer(x).square().sum())(x).backward()
    assert ((channels, 50, 50, 32) if turned else (32, 50, 50, channels)) in products
    torch.testing.assert_close(layer.weight.grad, weights)
    assert layer.weight.grad is not None
    assert layer.weight.grad.stride() == layer.weight.stride()
    torch.testing.assert_close(layer.bias.grad, bias)
