"""From molecules, materials and files to geometric graphs."""

from pyg_equivariant.data.atoms import from_ase, to_ase
from pyg_equivariant.data.dataset import FlatDataset, GraphBatch
from pyg_equivariant.data.files import FilesDataset, read_file
from pyg_equivariant.data.molecule import Failure, from_rdkit, from_smiles, to_rdkit
from pyg_equivariant.data.neighbors import neighbor_list
from pyg_equivariant.data.transforms import FullyConnected, RadiusGraph

__all__ = [
    "Failure",
    "FilesDataset",
    "FlatDataset",
    "FullyConnected",
    "GraphBatch",
    "RadiusGraph",
    "from_ase",
    "from_rdkit",
    "from_smiles",
    "neighbor_list",
    "read_file",
    "to_ase",
    "to_rdkit",
]
