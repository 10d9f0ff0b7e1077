"""How the kernels are compiled."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from pyg_equivariant.nn import native

KERNELS = [file for file in native.SOURCES if file.stem != "operations"]  # which asks for PyTorch's headers


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="of processors with AVX")
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ warns of such vectors")
@pytest.mark.parametrize("source", KERNELS, ids=lambda file: file.stem)
@pytest.mark.parametrize("processor", ["haswell", "skylake-avx512"])
def test_vectors_fit_into_registers(processor: str, source: Path) -> None:
    """Wider ones work, but through memory: sums over edges were eight times slower with AVX2."""
    flags = [
        "-std=c++20",
        f"-march={processor}",
        "-fopenmp",
        "-O0",
        "-Wpsabi",
        "-Werror=psabi",
        "-S",
        "-o",
        "/dev/null",
    ]
    outcome = subprocess.run(["g++", *flags, str(source)], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr


def test_failure_is_told_by_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = tmp_path / "header.h"
    header.write_text("int broken(;\n")
    source = tmp_path / "kernel.cpp"
    source.write_text('#include "header.h"\n')
    monkeypatch.setattr(native, "SOURCES", [source])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.warns(UserWarning, match=r"failed on the kernels \(.*header\.h:1.*error: .*\): models need"):
        assert not native.kernels.__wrapped__()
