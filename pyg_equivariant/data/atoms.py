"""Structures: from ASE to geometric graphs, and back."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from jaxtyping import Float
from rdkit.Chem import GetPeriodicTable
from torch import Tensor
from torch_geometric.data import Batch, Data

from pyg_equivariant.units import DEBYE, GPA, energy_factor, length_factor

__all__ = ["LABELS", "find_labels", "from_ase", "label_of", "to_ase", "unit_factors"]

LABELS = ("energy", "forces", "stress", "dipole", "charges")
"""What is looked for under the usual names."""

_PREFIX = re.compile(r"(ref|dft|qm)_")
_STEMS = {
    "energy": "energy", "total_energy": "energy", "potential_energy": "energy",
    "forces": "forces", "force": "forces",
    "stress": "stress", "virial": "virial", "virials": "virial",
    "dipole": "dipole", "dipole_moment": "dipole", "charges": "charges",
    "total_charge": "total_charge", "charge": "total_charge",
}  # fmt: skip
_RESERVED = {"z", "pos", "cell", "pbc", "shift", "batch", "ptr", "smiles", "virial", "num_nodes", "x"}

Sources = Sequence[tuple[str, Mapping[str, Any]]]
"""Places to look for labels, the most trusted first: what to call the place, and what it holds."""


def from_ase(
    atoms: Atoms,
    *,
    labels: Iterable[str] | None = None,
    keys: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
) -> Data:
    """The geometric graph (still without edges) of an ASE structure.

    Fields: ``z`` [n]; ``pos`` [n, 3] in Å, float64; ``cell`` [1, 3, 3] and ``pbc`` [1, 3] if any direction is
    periodic; ``total_charge`` [1] in e, from ``info`` or else the sum of the initial charges; ``smiles`` if
    ``info`` has it; and the labels, in float64: ``energy`` [1] in eV, ``forces`` [n, 3] in eV/Å, ``stress``
    [1, 3, 3] in eV/Å³, positive in tension, ``dipole`` [1, 3] in e·Å, ``charges`` [n] in e.

    A label is looked for in the results of the calculator (if they belong to the present positions), in
    ``info`` and in ``arrays``, as ``energy``, ``total_energy``, ``potential_energy``, ``forces``, ``force``,
    ``stress``, ``virial``, ``virials`` (stress = −virial/volume), ``dipole``, ``dipole_moment``, ``charges``,
    in capitals or not, alone or after ``REF_``, ``dft_`` or ``qm_``. Forces are taken as they are: constraints
    do not zero them. ASE's ``free_energy`` is read only where ``keys`` names it.

    Args:
        atoms: The structure.
        labels: Which labels must be there, and no others are read; ``()`` for the bare structure. By default
            whatever is found is read.
        keys: Names of one's own, ``{"energy": "my_energy"}``. ``{"virial": "W"}`` gives the stress; any other
            name, ``{"gap": "homo_lumo"}``, becomes a field of its own, unconverted.
        units: What the labels are in, if not eV, Å, eV/Å, eV/Å³ and e·Å: any of ``energy`` (``"Hartree"``),
            ``length`` (``"Bohr"``, positions included), ``forces`` (``"kcal/mol/Å"``, by default energy over
            length), ``stress`` (``"GPa"``) and ``dipole`` (``"Debye"``).

    Raises:
        ValueError: if a label that was asked for is missing, a value has the wrong shape, two usual names hold
            different values, a unit is unknown, an atom is no element, or a periodic direction has no cell
            vector.

    Example:
        >>> from ase.build import bulk
        >>> from_ase(bulk("Cu", cubic=True), labels=())
        Data(pos=[4, 3], z=[4], total_charge=[1], cell=[1, 3, 3], pbc=[1, 3])
    """
    factors = unit_factors(units)
    if (ghosts := np.flatnonzero(atoms.numbers < 1)).size:
        raise ValueError(f"atom {ghosts[0]} has atomic number {atoms.numbers[ghosts[0]]}, which is no element")
    fields: dict[str, Any] = {
        "z": torch.tensor(atoms.numbers, dtype=torch.int64),
        "pos": torch.tensor(atoms.positions * factors["length"], dtype=torch.float64),
        "total_charge": torch.tensor([round(float(atoms.get_initial_charges().sum()), 6)], dtype=torch.float64),
    }
    if atoms.pbc.any():
        if (bare := np.flatnonzero(atoms.pbc & ~atoms.cell.any(1))).size:
            raise ValueError(f"it is periodic along {'abc'[bare[0]]}, but that cell vector is zero: set cell or pbc")
        fields["cell"] = torch.tensor(atoms.cell.array * factors["length"], dtype=torch.float64)[None]
        fields["pbc"] = torch.tensor(atoms.pbc)[None]
    sources = [("calculator", _results(atoms)), ("info", atoms.info), ("arrays", atoms.arrays)]
    fields |= find_labels(sources, len(atoms), fields.get("cell"), labels=labels, keys=keys, factors=factors)
    if isinstance(smiles := atoms.info.get("smiles"), str):
        fields["smiles"] = smiles
    return Data(**fields)


def to_ase(data: Data) -> Atoms | list[Atoms]:
    """The ASE structure of a graph; of a batch, a list of them.

    Labels go into a ``SinglePointCalculator``, isotopes into the masses, formal charges into the initial
    charges, a net charge and SMILES into ``info["charge"]`` and ``info["smiles"]``.

    Example:
        >>> from ase.build import molecule
        >>> to_ase(from_ase(molecule("H2O")))
        Atoms(symbols='OH2', pbc=False)
    """
    if isinstance(data, Batch):
        bounds = data.ptr.tolist()
        return [_atoms(data, slice(*bounds[i : i + 2]), slice(i, i + 1)) for i in range(len(bounds) - 1)]
    return _atoms(data, slice(None), slice(None))


def _atoms(data: Data, nodes: slice, graph: slice) -> Atoms:
    def rows(name: str, part: slice) -> np.ndarray | None:
        return data[name][part].detach().cpu().numpy() if name in data else None

    cell, pbc, charge = rows("cell", slice(None)), rows("pbc", slice(None)), rows("total_charge", graph)
    atoms = Atoms(rows("z", nodes), rows("pos", nodes))
    if cell is not None and pbc is not None:
        atoms.cell = cell.reshape(-1, 3, 3)[graph].reshape(3, 3)
        atoms.pbc = pbc.reshape(-1, 3)[graph].reshape(3)
    if (formal := rows("formal_charge", nodes)) is not None and formal.any():
        atoms.set_initial_charges(formal)
    if charge is not None and charge.item() != 0:
        atoms.info["charge"] = charge.item()
    if (isotopes := rows("isotope", nodes)) is not None and isotopes.any():
        table, masses = GetPeriodicTable(), atoms.get_masses()
        for i in np.flatnonzero(isotopes):
            masses[i] = table.GetMassForIsotope(int(atoms.numbers[i]), int(isotopes[i]))
        atoms.set_masses(masses)
    if "smiles" in data:
        atoms.info["smiles"] = data.smiles if isinstance(data.smiles, str) else data.smiles[graph][0]
    results: dict[str, Any] = {}
    for name in LABELS:
        if (value := rows(name, nodes if name in ("forces", "charges") else graph)) is not None:
            results[name] = np.asarray(value, dtype=np.float64)
    if "energy" in results:
        results["energy"] = results["energy"].item()
    if "dipole" in results:
        results["dipole"] = results["dipole"].reshape(3)
    if "stress" in results:
        results["stress"] = full_3x3_to_voigt_6_stress(results["stress"].reshape(3, 3))
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def _results(atoms: Atoms) -> Mapping[str, Any]:
    """What the calculator has found for the structure as it is now; nothing is computed."""
    results = getattr(atoms.calc, "results", None)
    if not results or atoms.calc.check_state(atoms):
        return {}
    return {name: value for name, value in results.items() if value is not None}


def find_labels(
    sources: Sources,
    num_atoms: int,
    cell: Float[Tensor, "1 3 3"] | None,
    *,
    labels: Iterable[str] | None,
    keys: Mapping[str, str] | None,
    factors: Mapping[str, float],
) -> dict[str, Tensor]:
    """The labels of one structure as fields of its graph, converted and in shape.

    Args:
        sources: Where to look.
        num_atoms: n.
        cell: Cell vectors in Å, ``None`` if not periodic: a virial needs its volume.
        labels: See :func:`from_ase`.
        keys: See :func:`from_ase`.
        factors: What :func:`unit_factors` returned.

    Raises:
        ValueError: see :func:`from_ase`.
    """
    keys = dict(keys or {})
    wanted = None if labels is None else set(labels)
    _check_names(wanted, keys)
    found: dict[str, tuple[str, Tensor]] = {}
    for place, values in sources:
        for name, value in values.items():
            for label in _labels_of(name, keys, per_atom=place == "arrays") if value is not None else ():
                field = "stress" if label == "virial" else label
                if field != "total_charge" and wanted is not None and field not in wanted:
                    continue
                where = f"{place} {name!r}"
                tensor = _in_shape(label, where, value, num_atoms, per_atom=place == "arrays")
                tensor = tensor * factors.get(label, 1.0)
                if label == "virial":
                    tensor = -tensor / _volume(cell, where)
                if field not in found:
                    found[field] = where, tensor
                elif not torch.allclose(found[field][1], tensor, rtol=1e-8, atol=1e-5, equal_nan=True):
                    raise ValueError(
                        f"{found[field][0]} and {where} hold different values of {field}: choose one with keys, "
                        f"or leave {field} out of labels"
                    )
    needed = wanted if wanted is not None else {"stress" if label == "virial" else label for label in keys}
    if missing := sorted(needed - set(found)):
        names = [name for place, values in sources for name in values if name not in ("numbers", "positions")]
        key = keys.get(missing[0], keys.get("virial") if missing[0] == "stress" else None)
        sought = f" under the name {key!r}" if key else ""
        raise ValueError(
            f"there is no {missing[0]}{sought}, only {', '.join(names) or 'a bare structure'}: name it with keys"
        )
    return {field: tensor for field, (_, tensor) in found.items()}


def _check_names(wanted: set[str] | None, keys: Mapping[str, str]) -> None:
    for label in keys:
        own = label not in (*LABELS, "virial", "total_charge")
        if own and (label in _RESERVED or "index" in label or "face" in label or not label.isidentifier()):
            raise ValueError(f"{label!r} cannot be the name of a label: PyG gives that name, or part of it, a meaning")
    known = {*LABELS, "total_charge", *keys} - {"virial"}
    if unknown := sorted((wanted or set()) - known):
        raise ValueError(f"unknown label {unknown[0]!r}: use {', '.join(LABELS)}, or give it a name with keys")


def label_of(name: str) -> str | None:
    """The label that a usual name stands for, "virial" and "total_charge" among them."""
    return _STEMS.get(_PREFIX.sub("", name.lower(), count=1))


def _labels_of(name: str, keys: Mapping[str, str], *, per_atom: bool) -> list[str]:
    """The labels a name stands for: the user's own, or the usual one unless the user renamed that."""
    own = [label for label, key in keys.items() if key == name]
    usual = label_of(name)
    if usual == "total_charge" and per_atom:
        usual = "charges"
    if usual is None or usual in keys or (usual in ("stress", "virial") and {"stress", "virial"} & set(keys)):
        return own
    return [*own, usual]


def _in_shape(label: str, where: str, value: Any, num_atoms: int, *, per_atom: bool) -> Tensor:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{where} is {value!r:.40}, not the numbers of {label}") from None
    if label in ("stress", "virial") and array.size == 6:
        array = voigt_6_to_full_3x3_stress(array.reshape(6))
    shapes = {
        "energy": (1,), "total_charge": (1,), "dipole": (1, 3), "stress": (1, 3, 3), "virial": (1, 3, 3),
        "forces": (num_atoms, 3), "charges": (num_atoms,),
    }  # fmt: skip
    shape = shapes.get(label, array.shape if per_atom else (1, *array.shape[array.shape[:1] == (1,) :]))
    squeezed = [size for size in array.shape if size != 1]
    fits = squeezed == [size for size in shape if size != 1]
    if not fits and not (label in ("stress", "virial") and squeezed == [9]):
        raise ValueError(f"{where} has shape {list(array.shape)}, but {label} has {list(shape)}")
    return torch.tensor(array.reshape(shape))


def _volume(cell: Tensor | None, where: str) -> float:
    volume = 0.0 if cell is None else float(cell.det().abs())
    if volume == 0:
        raise ValueError(f"{where} is a virial, but there is no cell to make a stress of it: set cell and pbc")
    return volume


def unit_factors(units: Mapping[str, str] | None) -> dict[str, float]:
    """Factors to eV, Å, eV/Å, eV/Å³ and e·Å, by quantity.

    Args:
        units: Unit of any of ``energy``, ``length``, ``forces``, ``stress`` and ``dipole``; those not given
            follow from energy and length, which are eV and Å by default.

    Raises:
        ValueError: if a quantity or a unit is unknown.

    Example:
        >>> unit_factors({"energy": "meV", "stress": "GPa"})["forces"]
        0.001
    """
    units = dict(units or {})
    if unknown := sorted(set(units) - {"energy", "length", "forces", "stress", "dipole"}):
        raise ValueError(f"no unit can be given for {unknown[0]!r}, only for energy, length, forces, stress and dipole")
    energy, length = energy_factor(units.get("energy", "eV")), length_factor(units.get("length", "Å"))
    factors = {"energy": energy, "length": length, "forces": energy / length, "virial": energy}
    factors |= {"stress": energy / length**3, "dipole": length}
    if "forces" in units:
        factors["forces"] = _ratio(units["forces"], 1)
    if "stress" in units:
        factors["stress"] = GPA if units["stress"] == "GPa" else _ratio(units["stress"], 3)
    if "dipole" in units:
        unit = units["dipole"]
        factors["dipole"] = DEBYE if unit in ("D", "Debye") else length_factor(re.sub(r"^e[*· ]", "", unit))
    return factors


def _ratio(unit: str, power: int) -> float:
    """Factor of an energy over a power of a length, such as eV/Å or kcal/mol/Bohr^3."""
    energy, _, length = unit.rpartition("/")
    length, exponent = re.fullmatch(r"(.*?)(\^3|\*\*3|³)?", length).groups()  # type: ignore[union-attr]
    if not energy or bool(exponent) != (power == 3):
        example = "eV/Å" if power == 1 else "GPa or eV/Å^3"
        raise ValueError(f"unknown unit of {'forces' if power == 1 else 'stress'} {unit!r}: write it like {example}")
    return energy_factor(energy) / length_factor(length) ** power
