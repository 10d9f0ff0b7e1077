"""From molecules, materials and files to geometric graphs."""

from pyg_equivariant.data.dataset import FlatDataset, GraphBatch
from pyg_equivariant.data.neighbors import neighbor_list
from pyg_equivariant.data.transforms import FullyConnected, RadiusGraph

__all__ = ["FlatDataset", "FullyConnected", "GraphBatch", "RadiusGraph", "neighbor_list"]
