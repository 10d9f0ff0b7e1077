"""QM9: 130,831 small organic molecules with geometries and 19 properties (B3LYP/6-31G(2df,p)).

R. Ramakrishnan, P. O. Dral, M. Rupp, O. A. von Lilienfeld, Sci. Data 1, 140022 (2014).
"""

import csv
import logging
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyg_equivariant.data.cache import cache_folder, write_whole
from pyg_equivariant.data.dataset import FlatDataset

__all__ = ["ATOM_REFERENCES", "QM9", "TARGETS", "Target", "qm9_split"]

logger = logging.getLogger(__name__)

HARTREE = 27.211386246
"""1 Hartree in eV as torch_geometric.datasets.QM9 has it, so that labels agree with PyG's to the last digit."""
NUM_MOLECULES = 130_831
NUM_UNCHARACTERIZED = 3_054

Kind = Literal["extensive", "intensive", "dipole_magnitude", "isotropic_polarizability", "spatial_extent"]


class Target(NamedTuple):
    """A property of QM9.

    Attributes:
        name: PyG's name.
        unit: PyG's unit, in which the dataset holds it.
        kind: How it follows from the atoms, which decides the head.
        meaning: In words.
    """

    name: str
    unit: str
    kind: Kind
    meaning: str


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("mu", "D", "dipole_magnitude", "dipole moment"),
        Target("alpha", "a0^3", "isotropic_polarizability", "isotropic polarizability"),
        Target("homo", "eV", "intensive", "energy of the highest occupied orbital"),
        Target("lumo", "eV", "intensive", "energy of the lowest unoccupied orbital"),
        Target("gap", "eV", "intensive", "difference of lumo and homo"),
        Target("r2", "a0^2", "spatial_extent", "electronic spatial extent"),
        Target("zpve", "eV", "extensive", "zero-point vibrational energy"),
        Target("U0", "eV", "extensive", "internal energy at 0 K"),
        Target("U", "eV", "extensive", "internal energy at 298.15 K"),
        Target("H", "eV", "extensive", "enthalpy at 298.15 K"),
        Target("G", "eV", "extensive", "free energy at 298.15 K"),
        Target("Cv", "cal/mol/K", "extensive", "heat capacity at 298.15 K"),
        Target("U0_atom", "eV", "extensive", "U0 less that of the free atoms"),
        Target("U_atom", "eV", "extensive", "U less that of the free atoms"),
        Target("H_atom", "eV", "extensive", "H less that of the free atoms"),
        Target("G_atom", "eV", "extensive", "G less that of the free atoms"),
        Target("A", "GHz", "intensive", "first rotational constant"),
        Target("B", "GHz", "intensive", "second rotational constant"),
        Target("C", "GHz", "intensive", "third rotational constant"),
    )
}
"""The 19 targets in PyG's order (the columns of its ``y``)."""

_FREE_ATOMS = {  # atomref.txt of the paper: Hartree, Cv in cal/mol/K
    "U0": (-0.500273, -37.846772, -54.583861, -75.064579, -99.718730),
    "U": (-0.498857, -37.845355, -54.582445, -75.063163, -99.717314),
    "H": (-0.497912, -37.844411, -54.581501, -75.062219, -99.716370),
    "G": (-0.510927, -37.861317, -54.598897, -75.079532, -99.733544),
    "Cv": (2.981, 2.981, 2.981, 2.981, 2.981),
    "zpve": (0.0, 0.0, 0.0, 0.0, 0.0),
}
ATOM_REFERENCES: dict[str, dict[int, float]] = {
    name: {
        z: value if TARGETS[name].unit != "eV" else value * HARTREE
        for z, value in zip((1, 6, 7, 8, 9), values, strict=True)
    }
    for name, values in _FREE_ATOMS.items()
}
"""Thermochemical references of the free atoms H, C, N, O, F by target and atomic number, in the target's unit."""

# The columns of the sources, in their order; the factors to TARGETS' units.
_COLUMNS = ("A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "Cv")
_SYMBOLS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}


class QM9(FlatDataset):
    """QM9 as graphs, with labels in float64.

    The 3,054 molecules that failed the paper's consistency check are left out, as everywhere; the rest keeps
    the order of the paper. Each graph has ``z``, ``pos`` (Å), ``smiles`` (of GDB-17), ``idx`` (PyG's: the
    position among all 133,885), the 19 :data:`TARGETS` ``[1]`` under their names, Mulliken ``charges`` ``[n]``
    (e) and ``polarizability_standard`` ``[1, 3, 3]`` (a0³). That tensor is in Gaussian's standard
    orientation, **not** in the frame of ``pos``: only its invariants can be compared with a prediction.
    Energies are total energies; subtract :data:`ATOM_REFERENCES` or fitted ones before a cast to float32.

    The source is, in this order: raw files in ``root`` or ``$PYG_EQUIVARIANT_DATA/qm9`` (the archive
    ``dsgdb9nsd.xyz.tar.bz2`` or its xyz files, or PyG's ``gdb9.sdf`` and ``gdb9.sdf.csv``, each with
    ``uncharacterized.txt``); the package qm9pack. The xyz files have no polarizability tensor, the sdf no
    charges either and positions with 4 decimals only. What was read is kept in ``root`` as one safetensors
    file, which opens in well under a second.

    Args:
        root: Folder of the raw files and of the processed file; by default the folder ``qm9`` within
            $PYG_EQUIVARIANT_CACHE or ~/.cache/pyg_equivariant.
        transform: See :class:`FlatDataset`.

    Raises:
        FileNotFoundError: if there is no source.
        ValueError: if a source does not hold what QM9 holds.
    """

    def __init__(self, root: str | Path | None = None, *, transform: Callable[[Any], Any] | None = None) -> None:
        path = cache_folder("qm9", root) / "qm9.safetensors"
        if not path.is_file():
            _process(path)
        data = FlatDataset.load(path)
        super().__init__(data.fields, data.ptrs["atom"], ptrs=data.ptrs, level=data.level, transform=transform)


def qm9_split(name: str = "standard") -> dict[str, Tensor]:
    """Positions of the ``train``, ``val`` and ``test`` molecules in :class:`QM9`.

    ``standard`` is 110,000 / 10,000 / 10,831, drawn as PyG draws it for its pretrained DimeNet. ``cormorant``
    is 100,000 / 17,748 / 13,083, the split of Cormorant and EGNN.

    Raises:
        ValueError: if the name is another.

    Example:
        >>> {part: len(index) for part, index in qm9_split("cormorant").items()}
        {'train': 100000, 'val': 17748, 'test': 13083}
    """
    sizes = {"standard": (110_000, 10_000), "cormorant": (100_000, 17_748)}
    seeds = {"standard": 42, "cormorant": 0}
    if name not in sizes:
        raise ValueError(f"unknown split {name!r} of QM9: use one of {', '.join(sizes)}")
    # The legacy generator: its stream is frozen, and it is the one the splits were published with.
    order = torch.from_numpy(np.random.RandomState(seeds[name]).permutation(NUM_MOLECULES))
    num_train, num_val = sizes[name]
    train, val, test = order.tensor_split((num_train, num_train + num_val))
    return {"train": train, "val": val, "test": test}


class _Raw(NamedTuple):
    """What the sources have in common; B molecules, N atoms."""

    number: np.ndarray  # [B], from 1
    smiles: list[str]
    size: np.ndarray  # [B]
    z: np.ndarray  # [N]
    pos: np.ndarray  # [N, 3]
    labels: np.ndarray  # [B, 15], _COLUMNS
    charges: np.ndarray | None = None  # [N]
    polarizability: np.ndarray | None = None  # [B, 3, 3]


def _process(path: Path) -> None:
    raw = _read(path.parent)
    if len(np.unique(raw.number)) != NUM_MOLECULES or len(raw.number) != NUM_MOLECULES:
        raise ValueError(
            f"the source of QM9 has {len(raw.number)} molecules instead of {NUM_MOLECULES:,}: fetch it anew"
        )
    with write_whole(path) as temporary:
        _to_dataset(raw).save(temporary)
    logger.info("QM9 processed: %s", path)


def _read(root: Path) -> _Raw:
    folders = [root, root / "raw"]
    if data := os.environ.get("PYG_EQUIVARIANT_DATA"):
        folders += [Path(data), Path(data) / "qm9"]
    for folder in folders:
        archive, tables = folder / "dsgdb9nsd.xyz.tar.bz2", folder / "gdb9.sdf"
        if archive.is_file():
            return _read_xyz(_members(archive), _read_uncharacterized(folder))
        if files := sorted(folder.glob("dsgdb9nsd_*.xyz")):
            return _read_xyz((file.read_text() for file in files), _read_uncharacterized(folder))
        if tables.is_file():
            return _read_sdf(tables, folder / "gdb9.sdf.csv", _read_uncharacterized(folder))
    spec = find_spec("qm9pack")  # importing it fails where setuptools has no pkg_resources: only its files are read
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"QM9 was not found: run `pip install pyg_equivariant[qm9]`, or put dsgdb9nsd.xyz.tar.bz2 and "
            f"uncharacterized.txt into {root}"
        )
    return _read_qm9pack(Path(spec.submodule_search_locations[0]) / "data")


def _read_qm9pack(folder: Path) -> _Raw:
    """The tables of qm9pack: lists are text such as "[0.1,0.2]", and the failed molecules are already left out."""
    number, smiles, size, elements, pos, charges, labels, names = [], [], [], [], [], [], [], []
    for part in (1, 2, 3):
        with (folder / f"qm9_part{part}.csv").open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            next(rows)
            for row in rows:
                names.append(row[0])
                number.append(int(row[1]))
                smiles.append(row[2])
                size.append(int(row[4]))
                elements.append(row[6])
                pos.append(row[7])
                charges.append(row[8])
                labels.append(row[10:25])
    with (folder / "qm9_polarizability.csv").open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        next(rows)
        tensors = {row[0]: row[1:] for row in rows}
    xx, xy, yy, xz, yz, zz = np.array([tensors[name] for name in names], dtype=np.float64).T
    tensor = np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=1).reshape(-1, 3, 3)
    symbols = np.frombuffer(re.sub(r"[^HCNOF]", "", "".join(elements)).encode(), dtype=np.uint8)
    lookup = np.zeros(128, dtype=np.int64)
    for symbol, z in _SYMBOLS.items():
        lookup[ord(symbol)] = z
    return _Raw(
        np.array(number), smiles, np.array(size), lookup[symbols], _numbers(pos).reshape(-1, 3),
        np.array(labels, dtype=np.float64), _numbers(charges), tensor,
    )  # fmt: skip


def _numbers(texts: list[str]) -> np.ndarray:
    return np.fromstring(",".join(texts).translate({ord("["): None, ord("]"): None}), sep=",")


def _members(archive: Path) -> Iterator[str]:
    with tarfile.open(archive) as tar:
        for member in tar:
            if (file := tar.extractfile(member)) is not None and member.name.endswith(".xyz"):
                yield file.read().decode()


def _read_xyz(files: Iterator[str], skip: set[int]) -> _Raw:
    """The paper's own files: count, labels, atoms with charges, frequencies, two SMILES, two InChIs."""
    number, smiles, size, symbols, atoms, labels = [], [], [], [], [], []
    for text in files:
        lines = text.replace("*^", "e").splitlines()  # Mathematica's way of writing an exponent
        n, head = int(lines[0]), lines[1].split()
        if int(head[1]) in skip:
            continue
        number.append(int(head[1]))
        labels.append([float(word) for word in head[2:17]])
        size.append(n)
        for line in lines[2 : 2 + n]:
            symbol, *words = line.split()
            symbols.append(_SYMBOLS[symbol])
            atoms.append([float(word) for word in words[:4]])
        smiles.append(lines[3 + n].split()[0])
    table = np.array(atoms, dtype=np.float64).reshape(-1, 4)
    return _Raw(
        np.array(number), smiles, np.array(size), np.array(symbols), table[:, :3], np.array(labels), table[:, 3]
    )


def _read_sdf(molecules: Path, table: Path, skip: set[int]) -> _Raw:
    """DeepChem's files, from which PyG makes its QM9."""
    from rdkit import Chem, rdBase

    if not table.is_file():
        raise FileNotFoundError(f"{molecules} was found without {table.name}: put it there too")
    number, smiles, size, symbols, pos, labels = [], [], [], [], [], []
    with rdBase.BlockLogs(), table.open(newline="", encoding="utf-8") as file:  # RDKit warns of what is not read
        rows = csv.reader(file)
        next(rows)
        supplier = Chem.SDMolSupplier(str(molecules), removeHs=False, sanitize=False)
        for mol, row in zip(supplier, rows, strict=True):
            if (i := int(row[0].removeprefix("gdb_"))) in skip:
                continue
            number.append(i)
            labels.append([float(word) for word in row[1:16]])
            size.append(mol.GetNumAtoms())
            symbols += [atom.GetAtomicNum() for atom in mol.GetAtoms()]
            pos.append(mol.GetConformer().GetPositions())
            smiles.append(Chem.MolToSmiles(Chem.RemoveHs(mol, sanitize=False)))
    return _Raw(np.array(number), smiles, np.array(size), np.array(symbols), np.concatenate(pos), np.array(labels))


def _read_uncharacterized(folder: Path) -> set[int]:
    """Numbers of the molecules that failed the paper's consistency check."""
    path = folder / "uncharacterized.txt"
    if not path.is_file():
        raise FileNotFoundError(f"raw QM9 was found in {folder} without uncharacterized.txt: put it there too")
    numbers = {int(line.split()[0]) for line in path.read_text().split("\n")[9:-2]}  # a header and two rules around
    if len(numbers) != NUM_UNCHARACTERIZED:
        raise ValueError(f"{path} lists {len(numbers)} molecules instead of {NUM_UNCHARACTERIZED:,}: fetch it anew")
    return numbers


def _to_dataset(raw: _Raw) -> FlatDataset:
    """Sorted by number, in the units of :data:`TARGETS`."""
    labels = dict(zip(_COLUMNS, raw.labels.T, strict=True))
    for name, values in labels.items():
        if TARGETS[name].unit == "eV":
            labels[name] = values * HARTREE
    ptr = np.concatenate(([0], raw.size.cumsum()))
    for name in ("U0", "U", "H", "G"):
        reference = np.zeros(10)
        for z, value in ATOM_REFERENCES[name].items():
            reference[z] = value
        labels[f"{name}_atom"] = labels[name] - np.add.reduceat(reference[raw.z], ptr[:-1])
    fields: dict[str, Tensor | list[str]] = {
        "z": torch.from_numpy(raw.z.astype(np.int64)),
        "pos": torch.from_numpy(raw.pos),
        "idx": torch.from_numpy(raw.number.astype(np.int64) - 1),
        "smiles": raw.smiles,
        **{name: torch.from_numpy(np.ascontiguousarray(labels[name])) for name in TARGETS},
    }
    if raw.charges is not None:
        fields["charges"] = torch.from_numpy(raw.charges)
    if raw.polarizability is not None:
        fields["polarizability_standard"] = torch.from_numpy(raw.polarizability)
    dataset = FlatDataset(fields, torch.from_numpy(ptr))
    order = np.argsort(raw.number)
    return dataset[order] if (np.diff(order) != 1).any() else dataset
