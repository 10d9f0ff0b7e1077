"""``pyg-equivariant relax``: nearest minimum of the energy of each structure, through ASE."""

import sys
from collections.abc import Sequence
from pathlib import Path

import ase.io
import ase.optimize
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from tqdm import tqdm

from pyg_equivariant.calculators import PygEquivariantCalculator
from pyg_equivariant.potential import Potential
from pyg_equivariant.verbs import common

__all__ = ["main", "relax"]

OPTIMIZERS = ("FIRE", "BFGS", "LBFGS")
EXAMPLE = """\
runs/ethanol/model CCO -o ethanol.extxyz
model.safetensors silicon.xyz --cell --fmax 0.001 -o silicon.cif"""


def relax(
    atoms: Atoms, *, fmax: float = 0.01, steps: int = 1000, cell: bool = False, optimizer: str = "BFGS"
) -> tuple[bool, int]:
    """Move ``atoms`` to the nearest minimum of their calculator's energy.

    Args:
        atoms: With a calculator; changed in place.
        fmax: Largest force left on an atom in eV/Å; with ``cell``, of the generalised forces.
        steps: At most.
        cell: Whether the cell relaxes too.
        optimizer: "FIRE", "BFGS" or "LBFGS" of ASE.

    Returns:
        Whether it converged, and the steps taken.

    Raises:
        ValueError: if a cell shall relax and there is none.
    """
    if cell and not (atoms.pbc.any() and atoms.cell.rank == 3):
        raise ValueError(f"{atoms.get_chemical_formula()} is not periodic: its cell cannot relax, leave --cell out")
    moved = FrechetCellFilter(atoms, mask=np.outer(atoms.pbc, atoms.pbc)) if cell else atoms
    run = getattr(ase.optimize, optimizer)(moved, logfile=None)
    converged = run.run(fmax=fmax, steps=steps)
    return bool(converged), int(run.nsteps)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 1 if a structure did not converge."""
    parser = common.parser("relax", (__doc__ or "").partition(": ")[2], EXAMPLE)
    common.add_model_arguments(parser, dtype="float64")
    common.add_structures(parser, index=":")
    parser.add_argument("-o", "--output", type=Path, default=Path("relaxed.extxyz"), help="default: relaxed.extxyz")
    parser.add_argument("--fmax", type=float, default=0.01, help="largest force left, in eV/Å (default: 0.01)")
    parser.add_argument("--steps", type=int, default=1000, help="at most (default: 1000)")
    parser.add_argument("--cell", action="store_true", help="relax the cell of periodic structures, too")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="BFGS")
    args = parser.parse_args(argv)
    if args.fmax <= 0 or args.steps < 0:
        raise ValueError("--fmax must be positive and --steps not negative")

    calculator = PygEquivariantCalculator(common.load_model(Potential, args))
    rows, relaxed = [], []
    frames = common.read_structures(args.structures, args.index)
    for index, atoms in enumerate(tqdm(frames, desc="relax", unit="structure", disable=not sys.stderr.isatty())):
        atoms.calc = calculator
        before = atoms.get_potential_energy()
        converged, steps = relax(atoms, fmax=args.fmax, steps=args.steps, cell=args.cell, optimizer=args.optimizer)
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        largest = float(np.linalg.norm(forces, axis=1).max())
        rows.append([index, atoms.get_chemical_formula(), energy, energy - before, largest, steps, _yes(converged)])
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        relaxed.append(atoms)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    ase.io.write(args.output, relaxed)
    header = ["frame", "formula", "energy (eV)", "change (eV)", "fmax (eV/Å)", "steps", "converged"]
    print(common.table(header, [[*row[:2], f"{row[2]:.6f}", f"{row[3]:.6f}", *row[4:]] for row in rows]))
    print(f"structures: {args.output}")
    failed = [row[0] for row in rows if row[-1] == "no"]
    if failed:
        print(
            f"pyg-equivariant relax: {len(failed)} of {len(rows)} structures did not reach {args.fmax:g} eV/Å in "
            f"{args.steps} steps (first: frame {failed[0]})",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _yes(value: bool) -> str:
    return "yes" if value else "no"
