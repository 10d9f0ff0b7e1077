"""What the compiler is told, and what it begins while it traces."""

import pytest
import torch

from pyg_equivariant import potential
from pyg_equivariant.models import SchNet
from pyg_equivariant.nn.compiler import warm_up
from pyg_equivariant.typing import Prediction


def test_warm_up_leaves_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import async_compile, codecache, cpu_vec_isa

    monkeypatch.setattr(codecache.CppPythonBindingsCodeCache, "cache", {})  # other tests have compiled before
    learned = (cpu_vec_isa.valid_vec_isa_list, codecache._precompile_header)
    for each in learned:
        each.cache_clear()
    thread = warm_up.__wrapped__()
    thread.join()
    assert [each.cache_info().currsize for each in learned] == [1, 1]

    kernel = '#include <torch/csrc/inductor/cpp_prefix.h>\nextern "C" void kernel(float* x) { x[0] = 2; }'
    run = async_compile.AsyncCompile().cpp_pybinding(["float*"], kernel)
    x = torch.zeros(1)
    (run.result() if hasattr(run, "result") else run)(x)
    assert x.item() == 2
    assert [each.cache_info().misses for each in learned] == [1, 1]


@pytest.mark.parametrize(("options", "times"), [({}, 2), ({"mode": "max-autotune"}, 2), ({"backend": "eager"}, 0)])
def test_steps_warm_the_compiler_up(options: dict[str, str], times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr(torch, "compile", lambda step, **options: lambda graph: Prediction())
    monkeypatch.setattr(potential, "warm_up", lambda: calls.append(None))
    model = potential.Potential(SchNet(8, 1, cutoff=4.0))
    model.compile(**options)
    assert not calls  # not before data loaders have forked
    for _ in range(2):
        model._compiled(None)
    assert len(calls) == times
