"""``pyg-equivariant predict``: energies and forces, or properties, of structures and SMILES."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from torch_geometric.data import Batch, Data

from pyg_equivariant.data.atoms import to_ase
from pyg_equivariant.potential import Potential, Predictor
from pyg_equivariant.typing import Prediction
from pyg_equivariant.verbs import common

__all__ = ["main"]

UNITS = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å³", "dipole": "e·Å", "charges": "e"}
"""Of what ASE has a place of its own for."""
EXAMPLE = """\
runs/qm9/model CCO
runs/qm9/model molecules.smi -o gaps.csv
model.safetensors silicon.xyz -o predicted.extxyz"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    parser = common.parser("predict", (__doc__ or "").partition(": ")[2], EXAMPLE)
    common.add_model_arguments(parser)
    common.add_structures(parser, index=":")
    parser.add_argument("-o", "--output", type=Path, help=".csv: one row a structure; .extxyz or .xyz: what is per "
                        "atom, too (default: CSV on the screen)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.output is not None and args.output.suffix not in (".csv", ".extxyz", ".xyz"):
        raise ValueError(f"--output {args.output}: the name must end in .csv, .extxyz or .xyz")
    model = common.load_model(Predictor, args)
    samples = common.read_graphs(args.structures, args.index)
    if isinstance(model, Potential):
        model.forces = args.output is not None and args.output.suffix != ".csv"
        model.stress = model.forces and all("pbc" in data and bool(data.pbc.all()) for data in samples)
    units = UNITS | model.metadata.units
    rows = [row for pair in common.predictions(model, samples, source=args.structures) for row in _rows(*pair)]
    if args.output is None:
        print(_csv(samples, rows, units), end="")
        return 0
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.output.suffix == ".csv":
        args.output.write_text(_csv(samples, rows, units), encoding="utf-8")
    else:
        structures = [_structure(data, row) for data, row in zip(samples, rows, strict=True)]
        ase.io.write(args.output, structures, format="extxyz")
    print(f"{len(rows)} structures: {args.output}")
    return 0


class Row(NamedTuple):
    """What was predicted for one structure, ``[...]`` and ``[n, ...]``."""

    graph: dict[str, np.ndarray]
    atoms: dict[str, np.ndarray]


def _rows(batch: Batch, prediction: Prediction) -> Iterator[Row]:
    fields = {name: getattr(prediction, name) for name in ("energy", "forces", "stress")}
    quantities = {name: value for name, value in fields.items() if value is not None} | prediction.properties
    values = {name: value.double().cpu().numpy() for name, value in quantities.items()}
    bounds = batch.ptr.tolist()
    inner = {name: value for name, value in values.items() if _per_atom(name, value, batch)}
    for graph in range(batch.num_graphs):
        atoms = slice(*bounds[graph : graph + 2])
        yield Row(
            {name: np.asarray(value[graph]) for name, value in values.items() if name not in inner},
            {name: value[atoms] for name, value in inner.items()},
        )


def _per_atom(name: str, value: np.ndarray, batch: Batch) -> bool:
    return name in ("forces", "charges") or (len(value) == len(batch.z) and len(value) != batch.num_graphs)


def _csv(samples: Sequence[Data], rows: Sequence[Row], units: dict[str, str]) -> str:
    """One row a structure, its per-atom quantities left out."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    smiles = "smiles" in samples[0]
    names = [name for name, value in rows[0].graph.items() if value.ndim < 2]
    header = ["frame", "formula", *(["smiles"] if smiles else [])]
    for name in names:
        unit = f" [{units[name]}]" if units.get(name) else ""
        parts = [f"_{axis}" for axis in "xyz"] if rows[0].graph[name].ndim == 1 else [""]
        header += [f"{name}{part}{unit}" for part in parts]
    writer.writerow(header)
    for frame, (data, row) in enumerate(zip(samples, rows, strict=True)):
        numbers = [f"{value:.12g}" for name in names for value in np.atleast_1d(row.graph[name])]
        writer.writerow([frame, _formula(data), *([data.smiles] if smiles else []), *numbers])
    return text.getvalue()


def _formula(data: Data) -> str:
    return str(Atoms(data.z.numpy()).get_chemical_formula())


def _structure(data: Data, row: Row) -> Atoms:
    """The structure with what was predicted in a calculator, in ``info`` or in ``arrays``."""
    atoms = to_ase(data)
    assert isinstance(atoms, Atoms)
    results: dict[str, Any] = {name: value for name, value in (row.graph | row.atoms).items() if name in UNITS}
    others = {name: value if value.ndim else float(value) for name, value in row.graph.items() if name not in UNITS}
    if "energy" in results:
        results["energy"] = float(results["energy"])
    if "stress" in results:
        results["stress"] = full_3x3_to_voigt_6_stress(results["stress"])
    atoms.info |= others
    atoms.arrays.update({name: value for name, value in row.atoms.items() if name not in results})
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms
