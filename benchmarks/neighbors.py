"""Neighbour search: our table of all pairs, vesin, matscipy and ASE, in milliseconds of one thread.

python benchmarks/neighbors.py        (matscipy is measured where it is installed)
"""

import math
import time
from collections.abc import Callable
from importlib.util import find_spec

import ase.build
import numpy as np
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list as ase_neighbor_list

from pyg_equivariant.data import neighbors
from pyg_equivariant.data.neighbors import neighbor_list

CUTOFF = 5.0
DENSITY = 0.1  # atoms per Å³, that of water and of organic molecules


def molecules(sizes: list[int], seed: int = 0) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    return [Atoms(np.ones(n), rng.uniform(0, (n / DENSITY) ** (1 / 3), (n, 3))) for n in sizes]


def box(n: int, seed: int = 0) -> Atoms:
    length = (n / DENSITY) ** (1 / 3)
    return Atoms(np.ones(n), np.random.default_rng(seed).uniform(0, length, (n, 3)), cell=[length] * 3, pbc=True)


CASES = {
    "1 molecule of 21": molecules([21]),
    "10 molecules of 21": molecules([21] * 10),
    "64 molecules of 12-24": molecules(np.random.default_rng(0).integers(12, 25, 64).tolist()),
    **{f"1 molecule of {n}": molecules([n]) for n in (100, 200, 400, 800, 3000)},
    "silicon, 2 atoms": [ase.build.bulk("Si")],
    "10 cells of silicon, 8 atoms": [ase.build.bulk("Si", cubic=True)] * 10,
    **{f"periodic box of {n}": [box(n)] for n in (32, 64, 192, 1000, 10_000)},
}


def ours(frames: list[Atoms], limit: float) -> Callable[[], object]:
    pos = torch.tensor(np.concatenate([atoms.positions for atoms in frames]))
    batch = torch.repeat_interleave(torch.tensor([len(atoms) for atoms in frames]))
    periodic = frames[0].pbc.any()
    cell = torch.tensor(np.array([atoms.cell[:] for atoms in frames])) if periodic else None
    pbc = torch.tensor(np.array([atoms.pbc for atoms in frames])) if periodic else None

    def run() -> object:
        neighbors._CPU_PAIRS_PER_GRAPH = limit
        return neighbor_list(pos, CUTOFF, cell, pbc, batch)

    return run


def others(frames: list[Atoms]) -> dict[str, Callable[[], object]]:
    ways = {"ase": lambda: [ase_neighbor_list("ijS", atoms, CUTOFF) for atoms in frames]}
    if find_spec("matscipy") is not None:
        from matscipy.neighbours import neighbour_list

        ways["matscipy"] = lambda: [
            neighbour_list("ijS", atoms if atoms.pbc.any() else _boxed(atoms), CUTOFF) for atoms in frames
        ]
    return ways


def _boxed(atoms: Atoms) -> Atoms:
    """Matscipy refuses a molecule without a cell."""
    atoms = atoms.copy()
    atoms.center(vacuum=1.0)
    return atoms


def milliseconds(run: Callable[[], object], seconds: float = 1.0) -> float:
    """Processor time, median of several runs."""
    times: list[float] = []
    begin = time.perf_counter()
    run()
    while not times or (time.perf_counter() - begin < seconds and len(times) < 200):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return 1e3 * float(np.median(times))


def main() -> None:
    torch.set_num_threads(1)
    limit = neighbors._CPU_PAIRS_PER_GRAPH
    ways = ("chosen", "table", "vesin", "matscipy", "ase")
    print(f"{'':32}" + "".join(f"{way:>10}" for way in ways))
    for name, frames in CASES.items():
        size = max(len(atoms) for atoms in frames)
        runs = {"chosen": ours(frames, limit), "vesin": ours(frames, -1)}
        if size <= 3000 and not (size > 1000 and frames[0].pbc.any()):
            runs["table"] = ours(frames, math.inf)
        if size <= 1000:
            runs |= others(frames)
        values = {way: milliseconds(run) for way, run in runs.items()}
        print(f"{name:32}" + "".join(f"{values[way]:10.3f}" if way in values else f"{'':>10}" for way in ways))


if __name__ == "__main__":
    main()
