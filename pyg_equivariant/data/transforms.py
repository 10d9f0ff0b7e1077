"""Transforms that give a graph, or a whole batch of graphs, its edges."""

import math

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import BaseTransform

from pyg_equivariant.data.neighbors import neighbor_list

__all__ = ["FullyConnected", "RadiusGraph"]


class RadiusGraph(BaseTransform):
    """Edges between all atoms closer than ``cutoff``, periodic images included.

    Writes ``edge_index`` (row 0 the source j, row 1 the target i, sorted by target) and, where the graph is
    periodic, ``shift`` ``[E, 3]``, so that ``pos[j] + shift @ cell − pos[i]`` is the edge's vector. Edges the
    graph had before are replaced, and so is what belonged to them (``edge_attr``, ``edge_weight``). The input
    stays as it was.

    Args:
        cutoff: Radius in Å; ``math.inf`` connects all atoms, as :class:`FullyConnected` does.

    Raises:
        ValueError: if the cutoff is not positive; when called, if the graph has no or unusable positions.

    Example:
        >>> water = Data(z=torch.tensor([8, 1, 1]), pos=torch.tensor([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]))
        >>> RadiusGraph(1.2)(water).edge_index
        tensor([[1, 2, 0, 0],
                [0, 0, 1, 2]])
    """

    def __init__(self, cutoff: float) -> None:
        if not cutoff > 0:
            raise ValueError(f"cutoff must be a positive length in Å, got {cutoff}")
        self.cutoff = float(cutoff)

    def forward(self, data: Data) -> Data:
        """``data`` (a ``Data`` or a ``Batch``) with edges."""
        if data.get("pos") is None:
            raise ValueError("the graph has no positions (field 'pos'): edges cannot be found")
        batch = data.batch if isinstance(data, Batch) else None
        edge_index, shift = neighbor_list(data.pos, self.cutoff, data.get("cell"), data.get("pbc"), batch)
        for name in ("edge_index", "edge_attr", "edge_weight", "shift"):
            if name in data:
                del data[name]
        data.edge_index = edge_index
        if shift is not None:
            data.shift = shift
        if isinstance(data, Batch):
            _describe_edges(data)
        return data

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.cutoff:g})"


class FullyConnected(RadiusGraph):
    """Edges between all ordered pairs of different atoms of a graph.

    Raises:
        ValueError: when called, if the graph is periodic: then "all" has no end.

    Example:
        >>> FullyConnected()(Data(pos=torch.rand(4, 3))).num_edges
        12
    """

    def __init__(self) -> None:
        super().__init__(math.inf)

    def __repr__(self) -> str:
        return "FullyConnected()"


def _describe_edges(batch: Batch) -> None:
    """Tells a batch where the edges of each graph begin, so that ``to_data_list`` can take it apart."""
    if "_slice_dict" not in batch._store.__dict__:
        return  # not made from a list of graphs: it cannot be taken apart anyway
    slices = torch.searchsorted(batch.edge_index[1].contiguous(), batch.ptr).cpu()
    increments: dict[str, Tensor] = {"edge_index": batch.ptr[:-1].cpu()}
    if "shift" in batch:
        increments["shift"] = torch.zeros_like(slices[1:])
    kept = {name: value for name, value in batch._slice_dict.items() if name in batch}
    batch._slice_dict = {**kept, **dict.fromkeys(increments, slices)}
    batch._inc_dict = {**{name: batch._inc_dict[name] for name in kept}, **increments}
