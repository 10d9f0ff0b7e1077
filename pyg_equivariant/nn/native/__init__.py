"""Kernels for the CPU, compiled on first use."""

import concurrent.futures
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

__all__ = [
    "DECOMPOSITIONS",
    "NAMESPACE",
    "define",
    "implement",
    "is_wanted",
    "keep_memory",
    "kernels",
    "operation",
    "runs_on",
    "same_shapes",
    "third_derivative",
]

NAMESPACE = "pyg_equivariant"
SLOW = "models need several times longer on the CPU"
SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))

DECOMPOSITIONS: dict[OpOverload, OpOverload] = {}
"""What an operation is for the compiler, which has its derivatives already: the kernel without autograd's layer."""

_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


@functools.cache
def kernels() -> bool:
    """Whether there are kernels: not, after a warning, where no compiler can make them.

    Compiling takes ten to twenty seconds, once for a machine: the library is kept in the user's cache folder.
    """
    candidates = [shlex.split(os.environ.get("CXX", "")), ["g++"], ["clang++"], ["c++"]]
    compiler = next((command for command in candidates if command and shutil.which(command[0])), None)
    if compiler is None or platform.system() == "Windows":
        warnings.warn(f"no C++ compiler was found: {SLOW}", stacklevel=2)
        return False
    flags = ["-O3", "-march=native", "-std=c++20", "-fPIC"]
    flags.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
    if platform.system() != "Darwin":  # whose compiler has no OpenMP
        flags.append("-fopenmp")
    if torch.backends.cpu.get_cpu_capability() == "AVX512":  # older compilers do not know newer processors
        flags += ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw"]
    native = _run([*compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull])
    parts = [*(file.read_text() for file in SOURCES + HEADERS), *compiler, *flags, torch.__version__, native.stdout]
    name = f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyg_equivariant" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written
        folder = Path(tempfile.mkdtemp(prefix="pyg_equivariant-"))
    file = folder / name
    if not file.exists():
        with tempfile.TemporaryDirectory(dir=folder) as own:  # of several processes the last one wins
            failure = _build([*compiler, *flags], Path(own), name)
            if failure is not None:
                said = (failure.strip() or "no message").splitlines()
                reason = next((line for line in said if "error" in line), said[0])
                warnings.warn(f"{compiler[0]} failed on the kernels ({reason}): {SLOW}", stacklevel=2)
                return False
            os.replace(Path(own) / name, file)
    torch.ops.load_library(file)
    return True


def _build(compiler: list[str], folder: Path, name: str) -> str | None:
    """Compiles the files, all at once, and links them; what the compiler says if it fails."""
    torch_folder = Path(torch.__file__).parent
    include = [f"-I{torch_folder / 'include'}", f"-I{torch_folder / 'include/torch/csrc/api/include'}"]
    link = [f"-L{torch_folder / 'lib'}", f"-Wl,-rpath,{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    objects = [f"{folder / source.stem}.o" for source in SOURCES]
    commands = [[*compiler, *include, "-c", str(f), "-o", o] for f, o in zip(SOURCES, objects, strict=True)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(_run, commands))
    outcomes.append(_run([*compiler, "-shared", *objects, "-o", str(folder / name), *link]))
    return next((outcome.stderr for outcome in outcomes if outcome.returncode), None)


@functools.cache
def keep_memory() -> None:
    """Freed memory stays with this process.

    By default glibc gives the top of its heap, and all that is larger than 32 MiB, back to the system when it is freed,
    and asks for it again in the next step: a fault for each 4 KiB, a tenth of a step of training. Settings in the
    environment (``MALLOC_TRIM_THRESHOLD_`` and so on) hold.
    """
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")
    if platform.libc_ver()[0] == "glibc" and not any(name in os.environ for name in names):
        library, trim_threshold, mmap_max = ctypes.CDLL(None), -1, -4  # as in malloc.h
        library.mallopt(trim_threshold, -1)  # never
        library.mallopt(mmap_max, 0)


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False)


def runs_on(x: Tensor) -> bool:
    """Whether the kernels can work on such a tensor."""
    fits = x.is_cpu and x.dtype in (torch.float32, torch.float64)
    return fits and (torch.compiler.is_compiling() or kernels())  # which needs a compiler itself


def is_wanted(ctx: Any, place: int) -> bool:
    """Whether those who asked for derivatives asked for that by one input, in the backward of an :func:`operation`.

    ``ctx.needs_input_grad`` tells whether it has one: weights have, when forces ask for the positions' alone. PyTorch
    does not tell about inputs that are leaves themselves: for them this is true.
    """
    node = ctx.next_functions[place][0]
    if node is None or node.name() == "torch::autograd::AccumulateGrad":
        return node is not None
    return torch._C._will_engine_execute_node(node)


def third_derivative(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    rest: Sequence[Any],
    k: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """What only a loss of second derivatives needs: derivatives of an operation that has none, by PyTorch's operations.

    Args:
        function: What the operation does.
        inputs: Its tensors, by which they are.
        rest: What else it reads.
        k: By what each outcome is multiplied, nothing if not given, before they are summed.
    """
    with torch.enable_grad():
        own = [
            None if x is None else x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in inputs
        ]  # views, for one may depend on another
        pairs = [(y, by) for y, by in zip(function(*own, *rest), k, strict=True) if by is not None]
        given = [x for x in own if x is not None]
        outcomes, factors = zip(*pairs, strict=True)
        found = torch.autograd.grad(outcomes, given, factors, create_graph=True, allow_unused=True)
    of = iter(found)
    return [None if x is None else next(of) for x in own]


def same_shapes(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Empty tensors like these, for the derivatives by them."""
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors)


def define(schema: str) -> None:
    """An operation that is in C++, of which Python knows no more than how to call it."""
    _LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)


def implement(name: str, function: Callable[..., Any]) -> None:
    """What an :func:`operation` does where there is no kernel: on other devices, and without a compiler."""
    for each in (name, f"_{name}"):
        _LIBRARY.impl(each, function, "CompositeExplicitAutograd")


def operation(schema: str, fake: Callable[..., Any]) -> OpOverload:
    """An operation whose kernel is in C++, for :func:`runs_on` tensors; it has no derivatives yet.

    Args:
        schema: As :meth:`torch.library.Library.define` reads it.
        fake: Empty tensors of the outcome's shapes.
    """

    def shapes(*args: Any) -> Any:
        kernels()  # what is compiled needs them when it runs
        return fake(*args)

    name = schema.partition("(")[0]
    for each in (schema, f"_{schema}"):
        define(each)
    for each in (name, f"_{name}"):
        torch.library.register_fake(f"{NAMESPACE}::{each}", shapes, lib=_LIBRARY)
    namespace = getattr(torch.ops, NAMESPACE)
    operation: OpOverload = getattr(namespace, name).default
    DECOMPOSITIONS[operation] = getattr(namespace, f"_{name}").default
    torch.library.register_vmap(operation, _one_by_one(operation), lib=_LIBRARY)
    return operation


def _one_by_one(operation: OpOverload) -> Callable[..., Any]:
    """A rule for ``torch.vmap``: the operation on each part of a batch."""

    def batched(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        outcomes = [
            operation(*(x if dim is None else x.select(dim, n) for x, dim in zip(inputs, in_dims, strict=True)))
            for n in range(info.batch_size)
        ]
        if isinstance(outcomes[0], Tensor):
            return torch.stack(outcomes), 0
        return tuple(torch.stack(parts) for parts in zip(*outcomes, strict=True)), (0,) * len(outcomes[0])

    return batched
