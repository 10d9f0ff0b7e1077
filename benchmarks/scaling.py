"""How time and memory grow: with atoms, with graphs in a batch, with the degree of the features.

    python -m benchmarks.scaling --out benchmarks/scaling.json --chart docs/scaling.png

- ``atoms``: energy and forces of PaiNN for boxes of water of 21 to 10,002 atoms;
- ``batch``: a step of training of PaiNN with energies and forces of 1 to 256 aspirins;
- ``lmax``: a step of training of NequIP (32 channels, 3 layers) with 10 aspirins, lmax 0 to 3, against lmax + 1.

The exponent is the slope of log time over log size through the larger half of the sizes, where fixed costs are small.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.__main__ import hardware
from benchmarks.cases import CUTOFF, ELEMENTS, Case, aspirins, case, water_box
from benchmarks.ours import Ours
from benchmarks.steps import make_step, measure, peak_memory
from pyg_equivariant.models import NequIP, PaiNN
from pyg_equivariant.models.base import Representation

ATOMS = (21, 63, 192, 600, 2001, 5001, 10_002)
BATCH = (1, 4, 16, 64, 256)
LMAX = (0, 1, 2, 3)


class Size(NamedTuple):
    """One point of a curve: its place on the axis, the work and who does it."""

    x: int
    case: Case
    representation: Representation  # the same object for all sizes, if one model does them all


def atoms(sizes: Sequence[int]) -> Iterator[Size]:
    """Boxes of water."""
    model = PaiNN(cutoff=CUTOFF)
    for size in sizes:
        box = case("atoms", f"{size} atoms of water", [water_box(size // 3)], train=False, with_forces=True)
        yield Size(size, box, model)


def batch(sizes: Sequence[int]) -> Iterator[Size]:
    """Batches of aspirins."""
    frames, model = aspirins(max(sizes))[0], PaiNN(cutoff=CUTOFF)
    for size in sizes:
        chosen = case("batch", f"{size} aspirins", frames[:size], train=True, with_forces=True)
        yield Size(size, chosen, model)


def lmax(sizes: Sequence[int]) -> Iterator[Size]:
    """Degrees of NequIP."""
    work = case("lmax", "10 aspirins", aspirins(10)[0], train=True, with_forces=True)
    for size in sizes:
        model = NequIP(32, 3, lmax=size, lmax_out=0, cutoff=CUTOFF, elements=ELEMENTS, avg_num_neighbors=15.0)
        yield Size(size + 1, work, model)


CURVES = {"atoms": (atoms, ATOMS), "batch": (batch, BATCH), "lmax": (lmax, LMAX)}


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """b of the y = a xᵇ that fits the larger half of the points (two at least) best, on logarithmic scales."""
    count = max(2, (len(x) + 1) // 2)
    return float(np.polyfit(np.log(x[-count:]), np.log(y[-count:]), 1)[0])


def curve(name: str, sizes: Sequence[int], mode: str, seconds: float) -> dict[str, Any]:
    """Measures all sizes."""
    points: list[dict[str, Any]] = []
    ours: Ours | None = None
    for x, work, representation in CURVES[name][0](sizes):
        if ours is None or ours.model.representation is not representation:
            ours = Ours(representation, mode=mode)
        step = make_step(ours, work)
        measure(step, 2)
        count = max(3, min(100, round(1e3 * seconds / measure(step, 1).wall[0])))
        times = measure(step, count)
        points.append(
            {
                "x": x,
                "atoms": len(work.z),
                "edges": work.edge_index.shape[1],
                "ms": round(float(np.median(times.wall)), 3),
                "processor_ms": round(float(np.median(times.processor)), 3),
                "peak_mib": peak_memory(step),
            }
        )
        print(f"{name:8}{mode:10}" + "".join(f"{key} {value:,.5g}   " for key, value in points[-1].items() if value))
    result = {"name": name, "mode": mode, "model": type(representation).__name__, "points": points}
    x = [point["x"] for point in points]
    result["exponent"] = round(exponent(x, [point["processor_ms"] for point in points]), 3)
    print(f"{name:8}{mode:10}time grows as the power {result['exponent']:.2f}")
    return result


def draw(document: dict[str, Any], file: Path) -> None:
    """Time and memory of each curve."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(curve["name"] for curve in document["curves"]))
    figure = Figure(figsize=(4.2 * len(names), 6.4), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False, sharex="col")
    titles = {"atoms": "atoms of water, E + F", "batch": "aspirins a batch, training", "lmax": "lmax + 1, training"}
    for column, name in enumerate(names):
        above, below = axes[:, column]
        for measured in [curve for curve in document["curves"] if curve["name"] == name]:
            x = [point["x"] for point in measured["points"]]
            label = f"{measured['model']} {measured['mode']}: size$^{{{measured['exponent']:.2f}}}$"
            above.loglog(x, [point["ms"] for point in measured["points"]], "o-", label=label)
            memory = [(point["x"], point["peak_mib"]) for point in measured["points"] if point["peak_mib"]]
            below.loglog(*zip(*memory, strict=True), "o-") if memory else None
        above.set_title(titles.get(name, name))
        above.legend(fontsize=8)
        below.set_xlabel(titles.get(name, name).split(",")[0])
        for axis in (above, below):
            axis.grid(alpha=0.3, which="both")
    axes[0, 0].set_ylabel("ms per step")
    axes[1, 0].set_ylabel("MiB at the height of a step")
    figure.suptitle(f"{document['hardware']['processor']}, {document['threads']} thread(s), float32", fontsize=9)
    figure.savefig(file, dpi=150)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", nargs="+", choices=list(CURVES), default=list(CURVES))
    parser.add_argument("--modes", nargs="+", choices=("eager", "compiled"), default=["eager"])
    parser.add_argument("--largest", type=int, default=10**9, help="leave out larger sizes, all but two")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each point")
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--chart", type=Path, help="a picture")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    document: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.scaling", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "threads": args.threads,
        "versions": {name: version(name) for name in ("pyg_equivariant", "torch", "torch_geometric")},
        "curves": [],
    }
    for name in args.curves:
        sizes = CURVES[name][1]
        sizes = sizes[: max(2, sum(size <= args.largest for size in sizes))]
        for mode in args.modes:
            document["curves"].append(curve(name, sizes, mode, args.seconds))
            if args.out:
                args.out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    if args.chart:
        draw(document, args.chart)


if __name__ == "__main__":
    main()
