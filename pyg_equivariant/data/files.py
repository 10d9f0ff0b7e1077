"""The user's own files: every structure checked, every error with the name of the file and the frame."""

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.io.formats import string2index
from rdkit import Chem
from torch import Tensor
from torch_geometric.data import Data
from tqdm.auto import tqdm

from pyg_equivariant.data.atoms import LABELS, find_labels, from_ase, label_of, unit_factors
from pyg_equivariant.data.dataset import FlatDataset
from pyg_equivariant.data.molecule import explained, from_rdkit
from pyg_equivariant.data.neighbors import neighbor_list

__all__ = ["FilesDataset", "read_file"]

Index = int | str | slice
_NPZ = {"z": ("nuclear_charges", "z"), "pos": ("coords", "R"), "energy": ("energies", "E"), "forces": ("forces", "F")}
_PAIRS = 4_000_000  # more of them do not go into one table
_FLAT = 1e-3  # volume of a cell over that of a box with the same edges


def read_file(
    path: str | Path,
    *,
    index: Index = ":",
    labels: Iterable[str] | None = None,
    keys: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    min_distance: float = 0.2,
) -> list[Data]:
    """The structures of a file as geometric graphs.

    By the ending: ``.sdf`` through RDKit, with bonds (fields of :func:`from_rdkit`) and the data items as
    labels; ``.db`` an ASE database, its key-value pairs and data included, the units of SchNetPack's metadata
    honoured; ``.npz`` in the layout of rMD17 (``nuclear_charges, coords, energies, forces``) or sGDML (``z, R,
    E, F``, with ``r_unit``, ``e_unit`` and ``lattice``), in kcal/mol and Å unless it says otherwise; and
    anything else that ``ase.io`` reads: extxyz, traj, cif, vasprun.xml, ... Fields as of :func:`from_ase`.

    Args:
        path: The file.
        index: Which frames, as ASE writes it: ``3``, ``":"``, ``"-10:"``, ``"::5"``.
        labels: Which labels every frame must have, and no others are read; ``()`` for bare structures. By
            default whatever a frame has is read.
        keys: Names of the labels in the file, see :func:`from_ase`; in an npz file names of arrays.
        units: Units of the labels and lengths, see :func:`from_ase`.
        min_distance: Atoms (periodic images included) nearer than this, in Å, are an error: no bond is as
            short, but duplicated atoms and wrong units are. 0 allows everything.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file, frame (from 0) and field, if the file cannot be read or holds no frame, a label
            that was asked for is missing, one that was read is NaN, a unit is unknown, some frames are periodic
            and others not, atoms overlap, or positions or cells are not finite, singular or missing.

    Example:
        >>> import tempfile
        >>> from ase.build import molecule
        >>> path = Path(tempfile.mkdtemp()) / "water.xyz"
        >>> ase.io.write(path, molecule("H2O"))
        >>> read_file(path)
        [Data(pos=[3, 3], z=[3], total_charge=[1])]
    """
    return _read_files([Path(path)], index, labels, keys, units, min_distance)


class FilesDataset(FlatDataset):
    """A dataset of the structures in one or several files.

    Args:
        paths: The files, each as :func:`read_file` reads it.
        index: Which frames of each file.
        labels: The labels that every frame must have, and the only ones kept.
        keys: Names of the labels in the files.
        units: Units of the labels and lengths.
        min_distance: Atoms nearer than this, in Å, are an error.

    What is no label and not in all frames (SMILES, bonds) is left out.

    Raises:
        FileNotFoundError: if one of the files is missing.
        ValueError: see :func:`read_file`; also where one file is periodic and another is not.

    Example:
        >>> import tempfile
        >>> from ase.build import bulk
        >>> from ase.calculators.emt import EMT
        >>> copper = bulk("Cu")
        >>> copper.calc = EMT()
        >>> forces = copper.get_forces()
        >>> path = Path(tempfile.mkdtemp()) / "copper.xyz"
        >>> ase.io.write(path, [copper, copper])
        >>> FilesDataset(path)
        FilesDataset(2 graphs, 2 atoms: cell, energy, forces, pbc, pos, total_charge, z)
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        index: Index = ":",
        labels: Sequence[str] = ("energy", "forces"),
        keys: Mapping[str, str] | None = None,
        units: Mapping[str, str] | None = None,
        min_distance: float = 0.2,
    ) -> None:
        files = [paths] if isinstance(paths, str | Path) else list(paths)
        graphs = _read_files([Path(path) for path in files], index, labels, keys, units, min_distance)
        common = set(graphs[0].keys()).intersection(*(data.keys() for data in graphs))
        for data in graphs:
            for name in set(data.keys()) - common:
                del data[name]
        flat = FlatDataset.from_data_list(graphs, name="frame")
        super().__init__(flat.fields, flat.ptrs["atom"], ptrs=flat.ptrs, level=flat.level)


def _read_files(
    paths: Sequence[Path],
    index: Index,
    labels: Iterable[str] | None,
    keys: Mapping[str, str] | None,
    units: Mapping[str, str] | None,
    min_distance: float,
) -> list[Data]:
    if not paths:
        raise ValueError("no file was given: name at least one")
    wanted = None if labels is None else tuple(labels)
    graphs: list[Data] = []
    first = ""
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"there is no file {path}")
        if path.is_dir():
            raise ValueError(f"{path} is a folder: name the files in it")
        read = {".sdf": _read_sdf, ".sd": _read_sdf, ".db": _read_db, ".npz": _read_npz}.get(
            path.suffix.lower(), _read_ase
        )
        frames = read(path, _as_index(index), wanted, dict(keys or {}), dict(units or {}))
        for where, data in tqdm(frames, f"reading {path.name}", unit=" frames", delay=2.0, leave=False, disable=None):
            with _located(where):
                _check(data, {*LABELS, *(wanted or ()), *(keys or ())}, min_distance)
            if first and ("cell" in data) != ("cell" in graphs[0]):
                here, there = ("", "not ") if "cell" in data else ("not ", "")
                raise ValueError(f"{where} is {here}periodic, but {first} is {there}periodic: keep them apart")
            first = first or where
            graphs.append(data)
        if not graphs:
            raise ValueError(f"{path} holds no frame {index}")
    return graphs


Frames = Iterator[tuple[str, Data]]


def _read_ase(path: Path, index: int | slice, labels: Any, keys: dict[str, str], units: dict[str, str]) -> Frames:
    for where, atoms in _structures(path, index):
        with _located(where):
            data = from_ase(atoms, labels=labels, keys=keys, units=units)
        yield where, data


def _structures(path: Path, index: int | slice) -> Iterator[tuple[str, Atoms]]:
    """What ``ase.io`` reads; its parsers raise errors of all kinds."""
    start, step = (index.start or 0, index.step or 1) if isinstance(index, slice) else (index, 1)
    known = start >= 0 and step > 0  # from the end, ASE does not tell which frame it is
    frames, count = ase.io.iread(path, index=index), 0
    while True:
        where = f"{path}, frame {start + count * step}" if known else f"{path}, frame {count} of those chosen"
        try:
            atoms = next(frames)
        except StopIteration:
            return
        except Exception as error:
            reason = " ".join(str(error).split()) or "no reason given"
            raise ValueError(f"{where} cannot be read by ASE: {type(error).__name__}, {reason}") from error
        yield where, atoms
        count += 1


def _read_db(path: Path, index: int | slice, labels: Any, keys: dict[str, str], units: dict[str, str]) -> Frames:
    from sqlite3 import DatabaseError

    from ase.db import connect

    try:
        with connect(path, type="db") as database:
            rows, metadata = list(database.select()), database.metadata
    except DatabaseError as error:
        raise ValueError(f"{path} is no ASE database: {error}") from error
    # SchNetPack writes down its units.
    declared = metadata.get("_property_unit_dict", {})
    quantities = {label: declared.get(keys.get(label, label)) for label in ("energy", "forces", "stress", "dipole")}
    quantities["length"] = metadata.get("_distance_unit")
    units = {name: unit for name, unit in quantities.items() if unit is not None} | units
    for i in _chosen(path, index, len(rows)):
        with _located(f"{path}, frame {i}"):
            atoms = rows[i].toatoms()
            atoms.info |= rows[i].key_value_pairs | rows[i].data
            data = from_ase(atoms, labels=labels, keys=keys, units=units)
        yield f"{path}, frame {i}", data


def _read_sdf(path: Path, index: int | slice, labels: Any, keys: dict[str, str], units: dict[str, str]) -> Frames:
    try:
        supplier = Chem.SDMolSupplier(str(path), removeHs=False)
        raw = Chem.SDMolSupplier(str(path), removeHs=False, sanitize=False)
    except OSError as error:
        raise ValueError(f"{path} is no SDF file: {error}") from error
    with _located(str(path)):
        factors = unit_factors(units)
    for i in _chosen(path, index, len(supplier)):
        with _located(f"{path}, frame {i}"):
            mol = explained(lambda i=i: supplier[i], lambda i=i: raw[i])  # type: ignore[misc]
            data = from_rdkit(mol)
            data.pos *= factors["length"]
            items = mol.GetPropsAsDict()
            data.update(
                find_labels([("data item", items)], len(data.z), None, labels=labels, keys=keys, factors=factors)
            )
        yield f"{path}, frame {i}", data


def _read_npz(path: Path, index: int | slice, labels: Any, keys: dict[str, str], units: dict[str, str]) -> Frames:
    with _located(str(path)):
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files if _is_read(name, keys)}
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"it is no npz file: {error}") from error
        renamed = {field: next((name for name in names if name in arrays), None) for field, names in _NPZ.items()}
        if missing := [" or ".join(_NPZ[field]) for field in ("z", "pos") if renamed[field] is None]:
            raise ValueError(f"there is no array {missing[0]}: the layout is that of neither rMD17 nor sGDML")
        z, pos = arrays[str(renamed["z"])], arrays[str(renamed["pos"])]
        if z.ndim != 1 or pos.ndim != 3 or pos.shape[1:] != (len(z), 3):
            raise ValueError(f"the positions have shape {list(pos.shape)}, expected [frames, {len(z)}, 3]")
        units = {"energy": str(arrays.get("e_unit", "kcal/mol")), "length": str(arrays.get("r_unit", "Å"))} | units
        factors = unit_factors(units)
    atoms = Atoms(z.astype(int), pos[0] if len(pos) else None)
    if "lattice" in arrays:  # columns are the cell vectors
        atoms.cell, atoms.pbc = arrays["lattice"].T, True
    per_frame = {name: array for name, array in arrays.items() if len(array.shape) and len(array) == len(pos)}
    for label in ("energy", "forces"):
        if label not in keys and renamed[label] is not None:
            per_frame[label] = per_frame.pop(str(renamed[label]))
    for i in _chosen(path, index, len(pos)):
        with _located(f"{path}, frame {i}"):
            atoms.positions = pos[i]
            data = from_ase(atoms, labels=(), units=units)
            values = {name: array[i] for name, array in per_frame.items()}
            sources, cell = [("array", values)], data.cell if "cell" in data else None
            data.update(find_labels(sources, len(z), cell, labels=labels, keys=keys, factors=factors))
        yield f"{path}, frame {i}", data


def _is_read(name: str, keys: Mapping[str, str]) -> bool:
    known = {alias for names in _NPZ.values() for alias in names} | {"r_unit", "e_unit", "lattice"}
    return name in known or name in keys.values() or label_of(name) is not None


def _as_index(index: Index) -> int | slice:
    try:
        parsed = string2index(index) if isinstance(index, str) else index
    except ValueError:
        parsed = index
    if not isinstance(parsed, int | slice):
        raise ValueError(f"{index!r} chooses no frames: write it like 3, ':', '-10:' or '::5'")
    return parsed


def _chosen(path: Path, index: int | slice, count: int) -> range:
    if isinstance(index, slice):
        return range(count)[index]
    if not -count <= index < count:
        raise ValueError(f"{path} has no frame {index}, but {count} frames")
    return range(count)[index % count : index % count + 1]


@contextmanager
def _located(where: str) -> Iterator[None]:
    """Puts the place before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check(data: Data, labels: Iterable[str], min_distance: float) -> None:
    fields = data.to_dict()
    if len(data.z) == 0:
        raise ValueError("there are no atoms in it")
    for name in ("pos", "cell", "total_charge", *sorted(labels)):
        if name in fields and not bool(fields[name].isfinite().all()):
            raise ValueError(
                f"{name} is NaN or infinite: correct it, leave the frame out, or leave {name} out of labels"
            )
    if "cell" in fields:
        vectors = data.cell[0][data.pbc[0]]
        # Gram's determinant: the squared volume spanned by the periodic directions, be they one, two or three.
        squared = float((vectors @ vectors.T).det() / vectors.square().sum(1).prod())
        if not squared > _FLAT**2:
            raise ValueError("the cell is singular: its vectors along the periodic directions lie in one plane or line")
    if min_distance > 0 and (pair := _overlap(data, min_distance)) is not None:
        i, j, distance = pair
        what = f"atoms {i} and {j} are" if i != j else f"atom {i} and its periodic image are"
        raise ValueError(f"{what} {distance:.3f} Å apart, less than {min_distance} Å: are the units right?")


def _overlap(data: Data, min_distance: float) -> tuple[int, int, float] | None:
    """The nearest two atoms, if nearer than ``min_distance``, and their distance."""
    pos, n = data.pos, len(data.pos)
    cell, pbc = (data.cell[0], data.pbc[0]) if "cell" in data else (None, None)
    inverse: Tensor | None = None
    if cell is not None and pbc is not None:
        inverse = torch.linalg.pinv(cell * pbc[:, None])
        thin = float(inverse.norm(dim=0).max()) * 2 * min_distance > 1
    else:
        thin = False
    if thin or n * n > _PAIRS:
        edge_index, shift = neighbor_list(pos, min_distance, cell, pbc)
        vec = pos[edge_index[0]] - pos[edge_index[1]]
        if cell is not None and shift is not None:
            vec = vec + shift @ cell
        distance = vec.norm(dim=1)
        if not len(distance):
            return None
        k = int(distance.argmin())
        return int(edge_index[1, k]), int(edge_index[0, k]), float(distance[k])
    # In a cell thicker than twice the distance, rounding the fractional coordinates finds every nearer image.
    vec = pos[:, None] - pos
    if cell is not None and pbc is not None and inverse is not None:
        vec = vec - (vec @ inverse).round() @ (cell * pbc[:, None])
    squared = vec.square().sum(-1).fill_diagonal_(torch.inf)
    k = int(squared.argmin())
    distance = float(squared.flatten()[k]) ** 0.5
    return (k // n, k % n, distance) if distance < min_distance else None
