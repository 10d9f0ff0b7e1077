"""How the compiler's C++ comes to g++."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._functorch.config
from torch import Tensor
from torch._inductor import config, cpu_vec_isa
from torch._inductor.codecache import CppWrapperCodeCache

from pyg_equivariant.nn import host_code

HEADER = "#include <torch/csrc/inductor/cpp_prefix.h>\n"
SCALE = """static float twice(float x) { return 2 * x; }
extern "C" void kernel(const float* x, float* y, const int64_t size, const float shift) {
    for (int64_t i = 0; i < size; ++i) y[i] = twice(x[i]) + shift;
}
"""
FAIL = """static float twice(float x) { return 3 * x; }
extern "C" void kernel(float* y) {
    y[0] = twice(y[0]);
    throw std::runtime_error("no");
}
"""


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    host_code.register_loaders()


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    torch.compiler.reset()
    with config.patch(fx_graph_cache=False), torch._functorch.config.patch(enable_autograd_cache=False):
        yield


def steps(x: Tensor, weights: Tensor) -> Tensor:
    for place, weight in enumerate(weights):
        x = torch.tanh(x @ weight) + place / len(weights)  # a kernel for each place
    return x


def test_kernels_of_one_file_are_called_by_place_and_type() -> None:
    scale, fail = host_code._load([HEADER + SCALE, HEADER + FAIL])()
    x, y = torch.arange(3.0), torch.zeros(3)
    scale(x, y, 3, 0.5)
    assert y.tolist() == [0.5, 2.5, 4.5]
    with pytest.raises(RuntimeError, match=r"^no$"):
        fail(y)
    assert y[0] == 1.5
    with pytest.raises(TypeError):
        scale(x, y, "3", 0.5)
    with pytest.raises(RuntimeError, match="number of arguments"):
        scale(x, y, 3)


def test_kernels_of_a_graph_are_compiled_together(monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[int] = []
    load = host_code._load
    monkeypatch.setattr(host_code, "_load", lambda sources: files.append(len(sources)) or load(sources))
    monkeypatch.setattr(host_code, "get_compile_threads", lambda: 2)
    x, weights = torch.randn(5, 8), torch.randn(9, 8, 8) / 4
    with uncached():
        found = torch.compile(steps)(x, weights)
    torch.testing.assert_close(found, steps(x, weights))
    assert len(files) == 2
    assert sum(files) == len(weights)


def test_every_kernel_has_its_place_however_they_are_dealt(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(sources: list[str]) -> Any:
        return lambda: [lambda *arguments, source=source: called.append((source, *arguments)) for source in sources]

    called: list[Any] = []
    monkeypatch.setattr(host_code, "_load", load)
    monkeypatch.setattr(host_code, "get_compile_threads", lambda: 3)
    sources = ["x" * length for length in (5, 1, 9, 2, 2, 7, 3, 8, 4, 6, 1, 1)]
    bundle = host_code._Bundle()
    scope: dict[str, Any] = {f"kernel_{place}": bundle.add(source) for place, source in enumerate(sources)}
    scope["other"] = host_code._Bundle().add("of another module")
    bundle.begin(scope)
    for _ in range(2):
        called.clear()
        for place in range(len(sources)):
            scope[f"kernel_{place}"](place)
        assert called == [(source, place) for place, source in enumerate(sources)]
    standing = [name for name, kernel in scope.items() if isinstance(kernel, host_code._Kernel)]
    assert standing == ["other"], "what stood for a kernel is asked once"


def test_nobody_waits_for_kernels_before_the_first_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward part is compiled while g++ is at the forward one."""
    order: list[str] = []
    load = host_code._load

    def spy(sources: list[str]) -> Any:
        loader = load(sources)
        order.append("begin")
        return lambda: order.append("wait") or loader()

    monkeypatch.setattr(host_code, "_load", spy)
    monkeypatch.setattr(host_code, "get_compile_threads", lambda: 2)
    x, weights = torch.randn(5, 8).requires_grad_(), torch.randn(2, 8, 8) / 4
    with uncached():
        result = torch.compile(steps, dynamic=True)(x, weights)  # then both parts are compiled at once
        assert order == ["begin", "begin", "wait"]
        (found,) = torch.autograd.grad(result.sum(), x)
    assert order == ["begin", "begin", "wait", "wait"]
    torch.testing.assert_close(found, torch.autograd.grad(steps(x, weights).sum(), x)[0])


def test_a_kernel_that_does_not_compile_is_reported_with_its_call() -> None:
    bundle = host_code._Bundle()
    scope = {"kernel": bundle.add(HEADER + 'extern "C" void kernel(float* y) { no such thing; }')}
    bundle.begin(scope)
    with pytest.raises(Exception, match=r"C\+\+ compile error"):
        scope["kernel"](torch.zeros(1))


def test_a_graph_without_python_calls_its_kernels_from_a_light_function(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[str] = []
    load = CppWrapperCodeCache.load_pybinding_async

    def spy(*, main_code: str, **options: Any) -> Any:
        codes.append(main_code)
        return load(main_code=main_code, **options)

    monkeypatch.setattr(CppWrapperCodeCache, "load_pybinding_async", spy)
    x, weights = torch.randn(5, 8), torch.randn(2, 8, 8)
    with uncached():
        found = torch.compile(steps, options={"cpp_wrapper": True})(x, weights)
    torch.testing.assert_close(found, steps(x, weights))
    assert len(codes) == 1
    assert codes[0].count('__attribute__((optimize("O1"))) void inductor_entry_impl(') == 1


def test_the_instruction_set_is_what_the_compiler_would_choose() -> None:
    assert str(host_code._instruction_sets()[0]) == str(host_code._trying_each()[0])
    assert cpu_vec_isa.pick_vec_isa() is host_code._instruction_sets()[0]
