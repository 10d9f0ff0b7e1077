"""From molecules, materials and files to geometric graphs."""

from pyg_equivariant.data.dataset import FlatDataset, GraphBatch

__all__ = ["FlatDataset", "GraphBatch"]
