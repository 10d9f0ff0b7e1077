"""Kernels for the CPU, compiled on first use."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["addresses", "kernels", "runs_on"]

SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The compiled kernels, ``None`` where there is no compiler.

    Compiling takes some seconds, once for a machine: the library is kept in the user's cache folder.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    if compiler is None or platform.system() == "Windows":
        warnings.warn("no C++ compiler was found: models need several times longer on the CPU", stacklevel=2)
        return None
    flags = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC"]
    if platform.system() != "Darwin":  # whose compiler has no OpenMP
        flags.append("-fopenmp")
    if torch.backends.cpu.get_cpu_capability() == "AVX512":  # older compilers do not know newer processors
        flags += ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw"]
    native = subprocess.run(
        [compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True, check=True
    )
    text = "\0".join([*(source.read_text() for source in SOURCES), compiler, *flags, native.stdout])
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyg_equivariant" / "kernels"
    file = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as own:  # of several processes the last one wins
            subprocess.run([compiler, *flags, "-o", f"{own}/kernels.so", *map(str, SOURCES)], check=True)
            os.replace(f"{own}/kernels.so", file)
    library = ctypes.CDLL(str(file))
    for kind in ("float", "double"):
        pairs = getattr(library, f"pairs_{kind}")
        pairs.argtypes, pairs.restype = [ctypes.c_int64, *[ctypes.c_void_p] * 5], ctypes.c_int64
    return library


def runs_on(x: Tensor) -> bool:
    """Whether the kernels can work on such a tensor."""
    fits = x.is_cpu and x.dtype in (torch.float32, torch.float64)
    return fits and (torch.compiler.is_compiling() or kernels() is not None)  # which needs a compiler itself


def addresses(*tensors: Tensor) -> "ctypes.Array[ctypes.c_void_p]":
    """Where contiguous tensors lie."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
