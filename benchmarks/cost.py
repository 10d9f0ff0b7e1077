"""What each architecture costs, built as its default: ``python -m benchmarks.cost --out benchmarks/cost.json``.

Energy and forces of ten aspirins at a cutoff of 5 Å, without a compiler, in microseconds an atom: the median over
rounds in which all architectures take turns.
"""

import argparse
import json
from pathlib import Path
from statistics import median

import torch

from benchmarks.__main__ import hardware
from benchmarks.cases import CUTOFF, ef
from benchmarks.ours import Ours
from benchmarks.steps import measure
from pyg_equivariant import models


def cost(names: list[str], rounds: int) -> dict[str, float]:
    """µs an atom, by name."""
    case = ef()
    contestants = {name: Ours(getattr(models, name)(cutoff=CUTOFF)) for name in names}
    steps = {}
    for name, contestant in contestants.items():
        contestant.model.eval()
        inputs = contestant.inputs(case)
        steps[name] = lambda contestant=contestant, inputs=inputs: contestant.predict(inputs)
        measure(steps[name], 1)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            times[name] += measure(steps[name], 1).processor
    return {name: round(1e3 * median(times[name]) / len(case.z), 1) for name in names}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=models.__all__, default=list(models.__all__), metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="a JSON file for what was measured")
    args = parser.parse_args()
    torch.set_num_threads(1)
    values = cost(args.models, args.rounds)
    for name, value in sorted(values.items(), key=lambda item: item[1]):
        print(f"{name:24}{value:10.1f} µs/atom")
    if args.out:
        document = {"hardware": hardware(), "threads": 1, "microseconds_per_atom": values}
        args.out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
