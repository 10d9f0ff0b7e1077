"""Exact neighbours within a cutoff: no maximum number, every periodic image, no compiled extension of ours."""

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from ase.geometry import complete_cell
from jaxtyping import Bool, Float, Int
from torch import Tensor
from vesin import NeighborList

__all__ = ["neighbor_list"]

# Where benchmarks/neighbors.py finds the cell list of vesin to win over the table of all pairs. A GPU has no
# such crossing within its memory: there the limit is the size of the table itself.
_CPU_PAIRS_PER_GRAPH = 100_000
_GPU_PAIRS = 2**26


def neighbor_list(
    pos: Float[Tensor, "N 3"],
    cutoff: float,
    cell: Float[Tensor, "*B 3 3"] | None = None,
    pbc: Bool[Tensor, "*B 3"] | None = None,
    batch: Int[Tensor, " N"] | None = None,
) -> tuple[Int[Tensor, "2 E"], Float[Tensor, "E 3"] | None]:
    """All directed pairs of atoms of the same graph closer than ``cutoff``.

    A pair is listed once for every periodic image of the source within reach, an atom's own images included;
    the vector of an edge is ``pos[j] + shift @ cell − pos[i]``. Positions may lie outside the cell.

    Small systems take one padded table of all pairs of the whole batch, on any device; large ones go through
    the cell lists of vesin, in time linear in N.

    Args:
        pos: Positions in Å.
        cutoff: Radius in Å; ``math.inf`` connects all atoms of a graph that is not periodic.
        cell: Cell vectors as rows, in Å: one cell, or one per graph.
        pbc: Which of the three directions are periodic. Needed with ``cell``; without both, none is.
        batch: Graph of each atom, ascending. Without it, all atoms are one graph.

    Returns:
        ``edge_index`` (row 0 the source j, row 1 the target i, sorted by target) and ``shift``, the integer
        multiples of the cell vectors by which j is moved, or ``None`` if nothing is periodic.

    Raises:
        ValueError: for positions that are not finite, a cutoff that is not positive, an infinite cutoff in a
            periodic system, cell vectors that are missing or linearly dependent, an unsorted batch.

    Example:
        >>> pos = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 3.0]])
        >>> neighbor_list(pos, 1.5)[0]
        tensor([[1, 0],
                [0, 1]])
        >>> chain = torch.tensor([True, False, False])
        >>> edge_index, shift = neighbor_list(pos[:1], 1.5, cell=torch.eye(3), pbc=chain)
        >>> edge_index.tolist(), shift[:, 0].tolist()
        ([[0, 0], [0, 0]], [-1.0, 1.0])
    """
    dtype = pos.dtype
    pos = pos.detach().double()
    batch, count = _graphs(pos, batch, cell)
    lattice = _lattice(cell, pbc, len(count), pos.device)
    if not cutoff > 0:
        raise ValueError(f"cutoff must be a positive length in Å, got {cutoff}")
    if not bool(pos.isfinite().all()):
        atom = int((~pos.isfinite().all(1)).nonzero()[0])
        raise ValueError(f"the position of atom {atom} is NaN or infinite: its neighbours cannot be found")
    if len(pos) == 0:
        return batch.new_zeros(2, 0), None if lattice is None else pos.new_zeros(0, 3).to(dtype)

    if lattice is not None and math.isinf(cutoff):
        raise ValueError("a periodic system has no end: give a finite cutoff")
    width = count if lattice is None else count * (2 * lattice.repeats(cutoff) + 1).prod(1)
    pairs = len(count) * int(count.max() * width.max())
    if math.isfinite(cutoff) and pairs > (_GPU_PAIRS if pos.is_cuda else _CPU_PAIRS_PER_GRAPH * len(count)):
        edge_index, shift = _from_cell_lists(pos, cutoff, lattice, count)
    else:
        edge_index, shift = _from_all_pairs(pos, cutoff, lattice, batch, count)
    return edge_index, shift.to(dtype) if shift is not None else None


def _graphs(pos: Tensor, batch: Tensor | None, cell: Tensor | None) -> tuple[Tensor, Tensor]:
    """The graph of each atom and the atoms of each graph."""
    if batch is None:
        batch = torch.zeros(len(pos), dtype=torch.int64, device=pos.device)
    if bool((batch.diff() < 0).any()):
        raise ValueError("batch must be sorted: atoms of one graph lie together, graphs in ascending order")
    graphs = len(cell) if cell is not None and cell.dim() == 3 else 1
    count = torch.bincount(batch, minlength=graphs)
    if cell is not None and cell.dim() == 3 and len(count) > graphs:
        raise ValueError(f"batch names graph {len(count) - 1}, but there are {graphs} cells")
    return batch, count


class _Lattice(NamedTuple):
    """Periodic directions of each graph."""

    cell: Float[Tensor, "B 3 3"]  # vectors as rows, 0 along directions that are not periodic
    inverse: Float[Tensor, "B 3 3"]  # pseudo-inverse: pos @ inverse are the multiples of the vectors, 0 where none is

    def repeats(self, cutoff: float) -> Int[Tensor, "B 3"]:
        """Images that may matter on each side, when all atoms are wrapped into the cell."""
        inverse_height: Tensor = torch.linalg.vector_norm(self.inverse, dim=1)  # of the layers of cells
        return (cutoff * inverse_height + 1e-6).ceil().long() * (inverse_height > 0)


def _lattice(cell: Tensor | None, pbc: Tensor | None, graphs: int, device: torch.device) -> _Lattice | None:
    if pbc is None and cell is not None and bool(cell.any()):
        raise ValueError("a cell was given without pbc: say which directions are periodic, or leave the cell out")
    if pbc is None or not bool(pbc.any()):
        return None
    if cell is None:
        raise ValueError("pbc was given without a cell: give the cell vectors in Å")
    pbc = pbc.to(device).expand(graphs, 3)
    cell = cell.detach().to(device, torch.float64).expand(graphs, 3, 3) * pbc[..., None]
    if not bool(cell.isfinite().all()):
        raise ValueError("a cell vector is NaN or infinite")
    inverse: Tensor = torch.linalg.pinv(cell, rtol=1e-6) * pbc[:, None]  # exact zeros
    rank = (cell * inverse.mT).sum((1, 2)).round()  # the trace of the projector on the vectors' span
    if bool((rank < pbc.sum(1)).any()):
        graph = int((rank < pbc.sum(1)).nonzero()[0])
        raise ValueError(
            f"graph {graph} is periodic along {pbc[graph].nonzero().flatten().tolist()}, "
            "but its cell vectors there are zero or linearly dependent"
        )
    return _Lattice(cell, inverse)


class _Rows(NamedTuple):
    """Points of each graph in a row of their own, all rows padded to one width."""

    point: Int[Tensor, " R"]  # the point at each place, B × width
    x: Float[Tensor, "3 B W"]  # its coordinates; NaN, which is nearer than no cutoff, where there is none


def _rows(x: Float[Tensor, "P 3"], graph: Int[Tensor, " P"], count: Int[Tensor, " B"]) -> _Rows:
    point = torch.arange(len(x), device=x.device)
    width = int(count.max())
    place = graph * width + point - (count.cumsum(0) - count)[graph]
    points = point.new_zeros(len(count) * width)
    points[place] = point
    padded = x.new_full((3, len(count) * width), math.nan)
    padded[:, place] = x.T
    return _Rows(points, padded.view(3, len(count), width))


def _from_all_pairs(
    pos: Tensor, cutoff: float, lattice: _Lattice | None, batch: Tensor, count: Tensor
) -> tuple[Tensor, Tensor | None]:
    """One table of targets × sources for all graphs."""
    if lattice is None:
        targets = sources = _rows(pos, batch, count)
    else:
        wrap = torch.einsum("ni,nij->nj", pos, lattice.inverse[batch]).floor()
        pos = pos - torch.einsum("ni,nij->nj", wrap, lattice.cell[batch])
        image, owner = _images(lattice.repeats(cutoff))
        copy = torch.repeat_interleave(count[owner])  # the image that each copy of an atom belongs to
        first = count.cumsum(0) - count
        atom = first[owner][copy] + _within(count[owner])
        x = pos[atom] + torch.einsum("ni,nij->nj", image.double(), lattice.cell[owner])[copy]
        targets, sources = _rows(pos, batch, count), _rows(x, owner[copy], count * torch.bincount(owner))

    distance = torch.zeros((), dtype=pos.dtype, device=pos.device)  # squared
    for source, target in zip(sources.x.unsqueeze(2), targets.x.unsqueeze(3), strict=True):
        distance = (source - target).square_().add_(distance)
    distance.diagonal(dim1=1, dim2=2).fill_(math.inf)  # an atom and itself, for the zero image comes first
    near = (distance < cutoff**2).flatten().nonzero().flatten()
    _, height, width = distance.shape
    row = torch.div(near, width, rounding_mode="floor")
    i = targets.point[row]
    j = sources.point[near + (torch.div(row, height, rounding_mode="floor") - row) * width]
    if lattice is None:
        return torch.stack((j, i)), None
    shift = image[copy[j]] - wrap[atom[j]] + wrap[i]
    return torch.stack((atom[j], i)), shift


def _images(repeats: Int[Tensor, "B 3"]) -> tuple[Int[Tensor, "I 3"], Int[Tensor, " I"]]:
    """Shifts ``−repeats … repeats`` of every graph, its zero shift first, and the graph of each."""
    most = repeats.max(0).values.tolist()
    shifts = sorted(itertools.product(*(range(-n, n + 1) for n in most)), key=lambda shift: (any(shift), shift))
    every = torch.tensor(shifts, device=repeats.device)
    owner, chosen = (every.abs() <= repeats[:, None]).all(-1).nonzero(as_tuple=True)
    return every[chosen], owner


def _within(count: Int[Tensor, " I"]) -> Int[Tensor, " P"]:
    """0 … n − 1 for each n of ``count``."""
    start = count.cumsum(0) - count
    return torch.arange(int(count.sum()), device=count.device) - torch.repeat_interleave(start, count)


def _from_cell_lists(
    pos: Tensor, cutoff: float, lattice: _Lattice | None, count: Tensor
) -> tuple[Tensor, Tensor | None]:
    search = NeighborList(cutoff=cutoff, full_list=True, sorted=True, n_threads=torch.get_num_threads())
    points = pos.cpu().numpy()
    cells = np.zeros((len(count), 3, 3)) if lattice is None else lattice.cell.cpu().numpy()
    edges, shifts, start = [], [], 0
    for n, cell in zip(count.tolist(), cells, strict=True):
        periodic = cell.any(axis=1)
        pair, shift = search.compute(points[start : start + n], complete_cell(cell), periodic, "PS")
        edges.append(pair[:, ::-1].astype(np.int64) + start)
        shifts.append(shift)
        start += n
    edge_index = torch.from_numpy(np.concatenate(edges).T.copy()).to(pos.device)
    return edge_index, None if lattice is None else torch.from_numpy(np.concatenate(shifts)).to(pos.device)
