"""Kernels for the CPU, compiled on first use."""

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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["addresses", "kernels", "one_by_one", "runs_on"]

SLOW = "models need several times longer on the CPU"
SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The compiled kernels; ``None``, after a warning, where no compiler can make them.

    Compiling takes some seconds, once for a machine: the library is kept in the user's cache folder.
    """
    candidates = [shlex.split(os.environ.get("CXX", "")), ["g++"], ["clang++"], ["c++"]]
    compiler = next((command for command in candidates if command and shutil.which(command[0])), None)
    if compiler is None or platform.system() == "Windows":
        warnings.warn(f"no C++ compiler was found: {SLOW}", stacklevel=2)
        return None
    flags = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC"]
    if platform.system() != "Darwin":  # whose compiler has no OpenMP
        flags.append("-fopenmp")
    if torch.backends.cpu.get_cpu_capability() == "AVX512":  # older compilers do not know newer processors
        flags += ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw"]
    native = _run([*compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull])
    text = "\0".join([*(source.read_text() for source in SOURCES), *compiler, *flags, native.stdout])
    name = f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyg_equivariant" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written
        folder = Path(tempfile.mkdtemp(prefix="pyg_equivariant-"))
    file = folder / name
    if not file.exists():
        with tempfile.TemporaryDirectory(dir=folder) as own:  # of several processes the last one wins
            done = _run([*compiler, *flags, "-o", f"{own}/{name}", *map(str, SOURCES)])
            if done.returncode:
                reason = (done.stderr.strip() or "no message").splitlines()[0]
                warnings.warn(f"{compiler[0]} failed on the kernels ({reason}): {SLOW}", stacklevel=2)
                return None
            os.replace(f"{own}/{name}", file)
    _keep_memory()
    library = ctypes.CDLL(str(file))
    for kind in ("float", "double"):
        pairs = getattr(library, f"pairs_{kind}")
        pairs.argtypes, pairs.restype = [ctypes.c_int64, *[ctypes.c_void_p] * 5], ctypes.c_int64
        for name in ("forward", "backward", "second", *(f"interpolation_{each}" for each in ("read", "put", "dot"))):
            getattr(library, f"{name}_{kind}").restype = ctypes.c_int64
    return library


def _keep_memory() -> None:
    """Freed memory stays with this process, up to the largest size that glibc allows.

    By default glibc gives the top of its heap back to the system after every step, and asks for it again in the next:
    a fault for each 4 KiB, a tenth of a step of training. Settings in the environment (``MALLOC_..._THRESHOLD_``) hold.
    """
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    if platform.libc_ver()[0] == "glibc" and not any(name in os.environ for name in names):
        library, trim_threshold, mmap_threshold = ctypes.CDLL(None), -1, -3  # as in malloc.h
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(mmap_threshold, 2**25)


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False)


def runs_on(x: Tensor) -> bool:
    """Whether the kernels can work on such a tensor."""
    fits = x.is_cpu and x.dtype in (torch.float32, torch.float64)
    return fits and (torch.compiler.is_compiling() or kernels() is not None)  # which needs a compiler itself


def addresses(*tensors: Tensor) -> "ctypes.Array[ctypes.c_void_p]":
    """Where contiguous tensors lie."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def one_by_one(operation: Any) -> Any:
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
