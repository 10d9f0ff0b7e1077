"""Make ``ethanol_gfn2.extxyz.gz``: frames of ethanol at 500 K with energies, forces and dipoles by GFN2-xTB.

Eight walkers, four from the trans and four from the gauche conformer (of both signs), each a Langevin trajectory of
its own; frames are 50 fs apart. Positions are rounded to 1e-6 Å before they are labelled, so that the labels
are those of the file. Takes about six minutes on one core:

    pip install 'pyg_equivariant[xtb]'
    python datasets/make_ethanol.py

Trajectories are chaotic: another machine or tblite gives other frames of the same ensemble, and another checksum.
"""

import argparse
import gzip
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import ase.io
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from pyg_equivariant.data import from_smiles, to_ase
from pyg_equivariant.reference import sample_dynamics

OUTPUT = Path(__file__).with_name("ethanol_gfn2.extxyz.gz")


def conformers(count: int) -> list[Atoms]:
    """``count`` starts, every other one trans (C-C-O-H beyond 120°), the rest gauche."""
    trans, gauche = [], []
    for atoms in map(to_ase, from_smiles("CCO", num_conformers=8 * count, seed=1, optimize=True)):
        hydroxyl = max(range(len(atoms)), key=lambda i: (atoms.numbers[i] == 1, -atoms.get_distance(2, i)))
        dihedral = atoms.get_dihedral(0, 1, 2, hydroxyl)
        (trans if 120 < dihedral < 240 else gauche).append(atoms)
    pairs = zip(trans, gauche, strict=False)
    return [atoms for pair in pairs for atoms in pair][:count]


def rounded(frame: Atoms) -> Atoms:
    """The frame with the labels it will have in the file."""
    labels = {
        "energy": round(frame.get_potential_energy(), 9),
        "forces": frame.get_forces().round(6),
        "dipole": frame.get_dipole_moment().round(6),
    }
    frame.calc = SinglePointCalculator(frame, **labels)
    return frame


def write(path: Path, frames: Sequence[Atoms]) -> str:
    """Write a gzipped extxyz file without a time stamp and return its SHA-256."""
    text = io.StringIO()
    ase.io.write(text, list(frames), format="extxyz")
    content = gzip.compress(text.getvalue().encode(), 9, mtime=0)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    """Sample, label and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--walkers", type=int, default=8)
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    starts = conformers(args.walkers)
    frames, failures = sample_dynamics(starts, args.frames, temperatures=(500.0,), interval=50.0, equilibration=500.0)
    for failure in failures:
        print(failure.reason)
    digest = write(args.output, [rounded(frame) for frame in frames])
    print(f"{args.output}: {len(frames)} frames, {args.output.stat().st_size} bytes, sha256 {digest}")


if __name__ == "__main__":
    main()
