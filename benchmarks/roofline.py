"""The step of PaiNN against the machine: FLOP/s over those of one large matrix product, and where the rest goes.

    python -m benchmarks.roofline --out benchmarks/roofline.json

FLOPs are counted in an eager step by the formulas of torch's ``FlopCounterMode``, which knows matrix products (forward
and both backward passes), and by such formulas of ours for our own kernels; the same numbers are put over the time of
the compiled step, which computes the same. Times are the processor's.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch._inductor.config
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.__main__ import hardware
from benchmarks.cases import CASES, CUTOFF, Case
from benchmarks.ours import Ours
from benchmarks.steps import make_step, measure
from pyg_equivariant.models import PaiNN
from pyg_equivariant.nn.edge_sum import _TABLES
from pyg_equivariant.nn.interpolation import POINTS

# by the beginning of an operator's name; the first that fits
CLASSES = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "einsum"),
    "gather and scatter": ("index", "gather", "scatter", "embedding", "segment"),
    "copies": ("copy", "cat", "zero", "fill", "clone", "empty", "contiguous", "ones", "constant_pad", "_to_copy"),
    "reductions": ("sum", "norm", "mean", "linalg_vector_norm"),
    "elementwise": (
        "add", "sub", "rsub", "mul", "div", "neg", "silu", "sigmoid", "exp", "sqrt", "rsqrt", "pow", "cos", "sin",
        "where", "clamp", "mse", "lt", "le", "gt", "ge", "eq", "ne", "tanh", "reciprocal", "lerp", "softplus",
    ),
}  # fmt: skip
GATHERS = ("index", "gather", "scatter", "embedding")
OWN = "sums over edges and interpolation"
OTHER = "other (dispatch, autograd, Python)"


def peak_gflops(size: int = 1024, repeats: int = 20) -> float:
    """Of a float32 product of square matrices: the best of several."""
    a, b = torch.randn(2, size, size)
    times = measure(lambda: torch.mm(a, b), repeats).processor
    return 2e-6 * size**3 / min(times)


def _of_edge_sum(of_group: int, of_term: int, of_filter: Callable[[bool, bool], int]) -> Callable[..., int]:
    """What a kernel in edge_sum.cpp does for each channel of an edge: multiplications and additions.

    Where filters lie between nodes, for each of their channels too, in so many sums over these nodes for the
    derivatives that are wanted. What is computed again, instead of being kept, does not count.
    """

    def flops(*args: Any, out_val: object = None) -> int:
        key, x, y, w, c, *others = args
        groups = _TABLES[key].groups
        terms = sum(len(outs) for _, _, outs in groups)
        geometry, filters = others[-2:] if isinstance(others[-1], bool) else (False, False)
        between = 0 if c is None else 2 * c.numel() * w.shape[1] * of_filter(geometry, filters)
        return int(x.shape[-1] * (len(y) * (of_group * len(groups) + of_term * terms) + between))

    return flops


def _of_interpolation(wide: int) -> Callable[..., int]:
    """Eight multiplications and additions for each row and each column of this argument."""

    def flops(*args: Any, out_val: object = None) -> int:
        return 2 * POINTS * len(args[2]) * args[wide].shape[1]

    return flops


_OWN = {
    "edge_sum_forward": _of_edge_sum(1, 2, lambda geometry, filters: 1),
    "edge_sum_backward": _of_edge_sum(5, 4, lambda geometry, filters: geometry + filters),
    "edge_sum_second": _of_edge_sum(12, 10, lambda geometry, filters: 1 + geometry + 2 * filters),
    "interpolation_read": _of_interpolation(wide=0),
    "interpolation_put": _of_interpolation(wide=1),
    "interpolation_dot": _of_interpolation(wide=0),
}
FORMULAS = {getattr(torch.ops.pyg_equivariant, name): formula for name, formula in _OWN.items()}


class FlopCounter(TorchDispatchMode):
    """``FlopCounterMode`` without its attribution to modules, whose hooks do not bear a gradient within the step.

    Attributes:
        products: FLOPs of matrix products.
        own: FLOPs of our own kernels.
    """

    products = own = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.products += flop_registry[func.overloadpacket](*args, **kwargs, out_val=output)
        elif func.overloadpacket in FORMULAS:
            self.own += FORMULAS[func.overloadpacket](*args, **kwargs, out_val=output)
        return output


def count_flops(step: Callable[[], object]) -> FlopCounter:
    """Of a step."""
    with FlopCounter() as counter:
        step()
    return counter


def class_of(kernel: str) -> str:
    """The class of a kernel, by its name."""
    name = kernel.lower()
    if "cpp_fused" in name:
        return "fused with gather or scatter" if any(part in name for part in GATHERS) else "fused elementwise"
    if "pyg_equivariant" in name:
        return OWN
    if not name.startswith("aten::"):
        return OTHER
    name = name.removeprefix("aten::")
    return next((label for label, starts in CLASSES.items() if name.startswith(starts)), OTHER)


def shares(step: Callable[[], object], steps: int) -> dict[str, float]:
    """Share of each class of kernels in the time that the profiler sees, largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
    times: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        times[class_of(event.key)] += event.self_cpu_time_total
    total = sum(times.values())
    return {name: round(value / total, 4) for name, value in sorted(times.items(), key=lambda item: -item[1])}


def step_of(mode: str, case: Case) -> Callable[[], object]:
    """What is timed, after its first steps."""
    torch.compiler.reset()
    torch.manual_seed(0)
    step = make_step(Ours(PaiNN(cutoff=CUTOFF), mode=mode), case)
    measure(step, 3)
    return step


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=("eager", "compiled"), default=["eager", "compiled"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, help="a JSON file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    case = CASES["ef"]()
    flops = count_flops(make_step(Ours(PaiNN(cutoff=CUTOFF)), case))
    peak = peak_gflops() * args.threads
    print(
        f"{flops.products / 1e9:.2f} GFLOP of matrix products and {flops.own / 1e9:.2f} of our kernels a step; "
        f"one large product reaches {peak:.1f} GFLOP/s"
    )
    document: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.roofline", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "threads": args.threads,
        "versions": {name: version(name) for name in ("pyg_equivariant", "torch", "torch_geometric")},
        "case": case.description,
        "flops": {"matrix products": flops.products, OWN: flops.own},
        "peak_gflops": round(peak, 2),
        "modes": {},
    }
    for mode in args.modes:
        step = step_of(mode, case)
        milliseconds = median(measure(step, args.steps).processor) / args.threads
        gflops, products = (1e-6 * count / milliseconds for count in (flops.products + flops.own, flops.products))
        with torch._inductor.config.patch({"cpp.enable_kernel_profile": True}):  # the profiler sees each fused kernel
            parts = shares(step_of(mode, case), max(3, args.steps // 4))
        document["modes"][mode] = {
            "processor_ms": round(milliseconds, 3),
            "gflops": round(gflops, 2),
            "of_peak": round(gflops / peak, 4),
            "of_peak_matrix_products_alone": round(products / peak, 4),
            "shares": parts,
        }
        print(
            f"{mode}: {milliseconds:.1f} ms, {gflops:.1f} GFLOP/s, {gflops / peak:.0%} of the peak "
            f"({products / peak:.0%} by matrix products alone)"
        )
        for name, share in parts.items():
            print(f"    {share:6.1%}  {milliseconds * share:8.2f} ms  {name}")
    if args.out:
        args.out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
