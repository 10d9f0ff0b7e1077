"""Make ``ethanol_gfn2.npz``: frames of ethanol at 500 K with energies, forces and dipoles by GFN2-xTB.

Eight walkers, four from the trans and four from the gauche conformer (of both signs), each a Langevin trajectory of
its own; frames are 50 fs apart. Takes about six minutes on one core:

    pip install 'pyg_equivariant[xtb]'
    python datasets/make_ethanol.py

Trajectories are chaotic: another machine or tblite gives other frames of the same ensemble, and another checksum.
"""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from pyg_equivariant.data import from_smiles, to_ase
from pyg_equivariant.reference import label, sample_dynamics

OUTPUT = Path(__file__).with_name("ethanol_gfn2.npz")


def conformers(count: int) -> list[Atoms]:
    """``count`` starts, every other one trans (C-C-O-H beyond 120°), the rest gauche."""
    trans, gauche = [], []
    for atoms in map(to_ase, from_smiles("CCO", num_conformers=8 * count, seed=1, optimize=True)):
        hydroxyl = max(range(len(atoms)), key=lambda i: (atoms.numbers[i] == 1, -atoms.get_distance(2, i)))
        dihedral = atoms.get_dihedral(0, 1, 2, hydroxyl)
        (trans if 120 < dihedral < 240 else gauche).append(atoms)
    pairs = zip(trans, gauche, strict=False)
    return [atoms for pair in pairs for atoms in pair][:count]


def write(path: Path, frames: Sequence[Atoms]) -> str:
    """Write the arrays of sGDML's layout, and some more, and return the file's SHA-256.

    Positions are rounded to float32 and labelled anew, so that the labels are those of the file; forces and
    dipoles are float32, which is exact to 1e-7 of their size, and energies float64, which they need.
    """
    rounded = [atoms.copy() for atoms in frames]
    for atoms in rounded:
        atoms.positions = atoms.positions.astype(np.float32)
    labelled, failures = label(rounded)
    assert not failures, failures
    np.savez_compressed(
        path,
        name="ethanol",
        theory="GFN2-xTB",
        r_unit="Ang",
        e_unit="eV",
        z=frames[0].numbers.astype(np.uint8),
        R=np.array([atoms.positions for atoms in labelled], dtype=np.float32),
        E=np.array([atoms.get_potential_energy() for atoms in labelled]),
        F=np.array([atoms.get_forces() for atoms in labelled], dtype=np.float32),
        dipole=np.array([atoms.get_dipole_moment() for atoms in labelled], dtype=np.float32),
        walker=np.array([atoms.info["walker"] for atoms in labelled], dtype=np.uint8),
        time=np.array([atoms.info["time"] for atoms in labelled], dtype=np.float32),
    )
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
    digest = write(args.output, frames)
    print(f"{args.output}: {len(frames)} frames, {args.output.stat().st_size} bytes, sha256 {digest}")


if __name__ == "__main__":
    main()
