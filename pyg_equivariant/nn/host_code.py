"""How the C++ that the compiler writes is led through g++, which is most of what a first step waits for."""

import functools
import re
import sys
from collections.abc import Callable
from typing import Any

from torch._inductor import cpu_vec_isa
from torch._inductor.async_compile import AsyncCompile, get_compile_threads
from torch._inductor.codecache import CppPythonBindingsCodeCache, CppWrapperCodeCache

__all__ = ["prepare", "register_loaders"]

FEWEST = 4
"""Kernels for which it is worth to start g++ a second time: reading PyTorch's header takes it as long as these."""

_WRAPPER_HEADER, _KERNELS_HEADER = "torch/csrc/inductor/cpp_wrapper/cpu.h", "torch/csrc/inductor/cpp_prefix.h"
_OPERATIONS_HEADERS = ("ATen/core/dispatch/Dispatcher.h", "ATen/core/ivalue.h", "ATen/core/jit_type.h")

# what is PyTorch's own
_alone = AsyncCompile.cpp_pybinding
_waiting = AsyncCompile.wait
_trying_each = cpu_vec_isa.valid_vec_isa_list

_BINDINGS = """
#include <Python.h>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

static void *(*data_of)(PyObject *);  // of a tensor

template <typename T> static T argument(PyObject *value) {
    T result;
    if constexpr (std::is_pointer_v<T>) {
        result = static_cast<T>(data_of(value));
    } else if constexpr (std::is_floating_point_v<T>) {
        result = static_cast<T>(PyFloat_AsDouble(value));
    } else if constexpr (std::is_signed_v<T>) {
        result = static_cast<T>(PyLong_AsLongLong(value));
    } else {
        result = static_cast<T>(PyLong_AsUnsignedLongLong(value));
    }
    if (PyErr_Occurred()) throw std::invalid_argument("a kernel was called with something of another type");
    return result;
}

template <typename... T, size_t... PLACE>
static void call(void (*kernel)(T...), PyObject *const *values, std::index_sequence<PLACE...>) {
    kernel(argument<T>(values[PLACE])...);
}

template <typename... T> static void call(void (*kernel)(T...), PyObject *const *values, Py_ssize_t count) {
    if (count != sizeof...(T)) throw std::invalid_argument("a kernel was called with another number of arguments");
    call(kernel, values, std::index_sequence_for<T...>());
}

template <auto KERNEL> static PyObject *bound(PyObject *, PyObject *const *values, Py_ssize_t count) {
    try {
        call(KERNEL, values, count);
        Py_RETURN_NONE;
    } catch (const std::exception &error) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, error.what());
        return nullptr;
    }
}
"""


class _KernelsCodeCache(CppPythonBindingsCodeCache):
    entry_function = "kernels"  # the module's name


class _WrapperCodeCache(CppWrapperCodeCache):
    @classmethod
    def _get_uncompiled_header(cls, device: str) -> str | None:
        own = super()._get_uncompiled_header(device)
        if own != _WRAPPER_HEADER:
            return own
        return ">\n#include <".join([own, *_OPERATIONS_HEADERS, _KERNELS_HEADER])  # all that such a file includes


def register_loaders() -> None:
    """Lets the compiler, in this process, hand its C++ to g++ as follows.

    g++ reads PyTorch's header for half a second and then needs a tenth for a kernel. Of the kernels of a graph every
    core gets its share in one file; their calls from Python cost less, too. Nobody waits for them until one is called,
    so that the backward part is compiled while g++ is at the forward one. Where nothing of a graph is in Python, the
    function that calls its kernels is long and not worth the effort of -O3, which takes longer for it than for all
    kernels; all headers of both are compiled beforehand, not the function's first one alone. And of the processor's
    instruction sets only the widest is tried, which contains the others.
    """
    cpu_vec_isa.valid_vec_isa_list = _instruction_sets
    AsyncCompile.cpp_pybinding = _cpp_pybinding  # type: ignore[method-assign, assignment]
    AsyncCompile.wait = _wait  # type: ignore[method-assign, assignment]
    if sys.platform != "win32":  # whose compiler does not read such a wish
        CppWrapperCodeCache.load_pybinding = _load_wrapper  # type: ignore[method-assign]


def prepare(cpp_wrapper: bool) -> None:
    """Learns which vectors the processor has, and begins to compile the header.

    Args:
        cpp_wrapper: The header of graphs with nothing in Python, else that of kernels.
    """
    if cpp_wrapper:
        _WrapperCodeCache.load_async(f"#include <{_WRAPPER_HEADER}>\n", needs_vec_isa=True)
    else:
        _load([f'#include <{_KERNELS_HEADER}>\nextern "C" void kernel(const float* x) {{}}\n'])


@functools.cache
def _instruction_sets() -> list[cpu_vec_isa.VecISA]:
    flags = cpu_vec_isa.x86_isa_checker()
    found = [isa for isa in cpu_vec_isa.supported_vec_isa_list if set(str(isa).split()) <= set(flags)]  # widest first
    return found if found and found[0] else _trying_each()


def _load_wrapper(*, main_code: str, **options: Any) -> Any:
    name = "void inductor_entry_impl("
    lighter = main_code.replace(name, f'__attribute__((optimize("O1"))) {name}', 1)
    return _WrapperCodeCache.load_pybinding_async(main_code=lighter, **options)()


def _cpp_pybinding(compiler: AsyncCompile, argtypes: list[str], source_code: str) -> Any:
    if get_compile_threads() <= 1:  # g++ is not to run beside anything
        return _alone(compiler, argtypes, source_code)
    bundle: _Bundle = vars(compiler).setdefault("pyg_equivariant_bundle", _Bundle())
    return bundle.add(source_code)


def _wait(compiler: AsyncCompile, scope: dict[str, Any]) -> None:
    bundle: _Bundle | None = vars(compiler).get("pyg_equivariant_bundle")
    if bundle is not None:
        bundle.begin(scope)
    _waiting(compiler, scope)


class _Bundle:
    """What one module of generated Python calls."""

    def __init__(self) -> None:
        self.sources: list[str] = []

    def add(self, source: str) -> "_Kernel":
        self.sources.append(source)
        return _Kernel(self, len(self.sources) - 1)

    def begin(self, scope: dict[str, Any]) -> None:
        """Begins to compile all kernels of the module with these names."""
        count = max(1, min(get_compile_threads(), len(self.sources) // FEWEST))
        parts: list[list[int]] = [[] for _ in range(count)]
        for place in sorted(range(len(self.sources)), key=lambda place: -len(self.sources[place])):
            min(parts, key=lambda part: sum(len(self.sources[other]) for other in part)).append(place)
        self.order = [place for part in parts for place in part]
        self.loaders = [_load([self.sources[place] for place in part]) for part in parts]
        self.scope = scope

    @functools.cached_property
    def kernels(self) -> dict[int, Any]:
        """They replace what stood for them, so that it is not asked again."""
        found = [kernel for loader in self.loaders for kernel in loader()]
        kernels = dict(zip(self.order, found, strict=True))
        for name, value in list(self.scope.items()):
            if isinstance(value, _Kernel) and value.bundle is self:
                self.scope[name] = kernels[value.place]
        return kernels


class _Kernel:
    """Stands for a kernel until the first one of its module is called."""

    def __init__(self, bundle: _Bundle, place: int) -> None:
        self.bundle = bundle
        self.place = place

    def __call__(self, *arguments: Any) -> None:
        self.bundle.kernels[self.place](*arguments)


def _load(sources: list[str]) -> Callable[[], list[Any]]:
    """Begins to compile some kernels.

    Args:
        sources: C++ with a function ``kernel`` each.

    Returns:
        What waits for them and gives them.
    """
    names = [f"kernel_{place}" for place in range(len(sources))]
    spaces = [_in_namespace(source, name) for source, name in zip(sources, names, strict=True)]
    table = [f'{{"{name}", (PyCFunction)(void *)bound<in_{name}::{name}>, METH_FASTCALL, nullptr}}' for name in names]
    code = f"""{"".join(spaces)}{_BINDINGS}
static PyMethodDef functions[] = {{{", ".join(table)}, {{}}}};
static PyModuleDef definition = {{PyModuleDef_HEAD_INIT, "kernels", nullptr, -1, functions}};

PyMODINIT_FUNC PyInit_kernels() {{
    const char *address = std::getenv("_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR");
    data_of = reinterpret_cast<void *(*)(PyObject *)>(std::stoull(address));
    return PyModule_Create(&definition);
}}
"""
    loader = _KernelsCodeCache.load_async(code, submit_fn=AsyncCompile.submit)

    def kernels() -> list[Any]:
        module = loader()
        return [getattr(module, name) for name in names]

    return kernels


def _in_namespace(source: str, name: str) -> str:
    """A kernel under another name, all that is with it in a namespace of its own."""
    lines = source.splitlines()
    includes = [line for line in lines if line.startswith("#include")]
    rest = "\n".join(line for line in lines if not line.startswith("#include"))
    renamed = re.sub(r'(extern "C"[^(]*\b)kernel\(', rf"\1{name}(", rest)
    return "\n".join([*includes, f"namespace in_{name} {{", renamed, f"}}  // namespace in_{name}", ""])
