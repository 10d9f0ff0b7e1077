"""From molecules, materials and files to geometric graphs."""

import importlib
from typing import TYPE_CHECKING, Any

from pyg_equivariant.data.atoms import from_ase, to_ase
from pyg_equivariant.data.dataset import FlatDataset, GraphBatch
from pyg_equivariant.data.files import FilesDataset, read_file
from pyg_equivariant.data.loader import BatchSampler, GraphLoader, graph_loader
from pyg_equivariant.data.md17 import MD17, MOLECULES
from pyg_equivariant.data.molecule import Failure, from_rdkit, from_smiles, to_rdkit
from pyg_equivariant.data.neighbors import neighbor_list
from pyg_equivariant.data.qm9 import ATOM_REFERENCES, QM9, TARGETS, Target, qm9_split
from pyg_equivariant.data.statistics import Statistics, compute_statistics, fit_references
from pyg_equivariant.data.transforms import FullyConnected, RadiusGraph

if TYPE_CHECKING:
    from pyg_equivariant.data.module import (
        FilesDataModule,
        MD17DataModule,
        MolecularDataModule,
        QM9DataModule,
        Splits,
    )
    from pyg_equivariant.data.nbody import NBody, NBodyDataModule

__all__ = [
    "ATOM_REFERENCES",
    "MD17",
    "MOLECULES",
    "QM9",
    "TARGETS",
    "BatchSampler",
    "Failure",
    "FilesDataModule",
    "FilesDataset",
    "FlatDataset",
    "FullyConnected",
    "GraphBatch",
    "GraphLoader",
    "MD17DataModule",
    "MolecularDataModule",
    "NBody",
    "NBodyDataModule",
    "QM9DataModule",
    "RadiusGraph",
    "Splits",
    "Statistics",
    "Target",
    "compute_statistics",
    "fit_references",
    "from_ase",
    "from_rdkit",
    "from_smiles",
    "graph_loader",
    "neighbor_list",
    "qm9_split",
    "read_file",
    "to_ase",
    "to_rdkit",
]


def __getattr__(name: str) -> Any:
    """Imports the data modules when they are asked for: Lightning takes longer to import than all the rest."""
    if name in ("NBody", "NBodyDataModule"):
        return getattr(importlib.import_module("pyg_equivariant.data.nbody"), name)
    if name in ("FilesDataModule", "MD17DataModule", "MolecularDataModule", "QM9DataModule", "Splits"):
        return getattr(importlib.import_module("pyg_equivariant.data.module"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
