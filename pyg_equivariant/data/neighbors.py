"""Exact neighbours within a cutoff: no maximum number, every periodic image, no compiled extension of ours."""

import itertools
import math

import numpy as np
import torch
from ase.geometry import complete_cell
from jaxtyping import Bool, Float, Int
from torch import Tensor
from vesin import NeighborList

__all__ = ["neighbor_list"]

# Where benchmarks/neighbors.py finds the cell list of vesin to win over the table of all pairs. A GPU has no
# such crossing within its memory: there the limit is the size of the table itself.
_CPU_PAIRS_PER_GRAPH = 200_000
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
    cell, pbc = _lattice(cell, pbc, len(count), pos.device)
    if not cutoff > 0:
        raise ValueError(f"cutoff must be a positive length in Å, got {cutoff}")
    if not bool(pos.isfinite().all()):
        atom = int((~pos.isfinite().all(1)).nonzero()[0])
        raise ValueError(f"the position of atom {atom} is NaN or infinite: its neighbours cannot be found")
    if len(pos) == 0:
        return batch.new_zeros(2, 0), None if cell is None else pos.new_zeros(0, 3).to(dtype)

    periodic = cell is not None and pbc is not None
    if periodic and math.isinf(cutoff):
        raise ValueError("a periodic system has no end: give a finite cutoff")
    repeats = _repeats(cell, pbc, cutoff) if cell is not None and pbc is not None else count.new_zeros(len(count), 3)
    width = (count * (2 * repeats + 1).prod(1)).max()
    pairs = len(count) * int(count.max() * width)
    if math.isfinite(cutoff) and pairs > (_GPU_PAIRS if pos.is_cuda else _CPU_PAIRS_PER_GRAPH * len(count)):
        edge_index, shift = _from_cell_lists(pos, cutoff, cell, pbc, count)
    else:
        edge_index, shift = _from_all_pairs(pos, cutoff, cell, batch, count, repeats)
    return edge_index, shift.to(dtype) if periodic else None


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


def _lattice(
    cell: Tensor | None, pbc: Tensor | None, graphs: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Cells ``[B, 3, 3]`` with zeros along directions that are not periodic, or ``None`` if none is."""
    if pbc is None and cell is not None and bool(cell.any()):
        raise ValueError("a cell was given without pbc: say which directions are periodic, or leave the cell out")
    if pbc is None or not bool(pbc.any()):
        return None, None
    if cell is None:
        raise ValueError("pbc was given without a cell: give the cell vectors in Å")
    pbc = pbc.to(device).expand(graphs, 3)
    cell = cell.detach().to(device, torch.float64).expand(graphs, 3, 3) * pbc[..., None]
    if not bool(cell.isfinite().all()):
        raise ValueError("a cell vector is NaN or infinite")
    bad = torch.linalg.matrix_rank(cell, rtol=1e-6) < pbc.sum(1)
    if bool(bad.any()):
        graph = int(bad.nonzero()[0])
        raise ValueError(
            f"graph {graph} is periodic along {pbc[graph].nonzero().flatten().tolist()}, "
            "but its cell vectors there are zero or linearly dependent"
        )
    return cell, pbc


def _repeats(cell: Tensor, pbc: Tensor, cutoff: float) -> Tensor:
    """Images needed on each side of a cell ``[B, 3]`` when positions are wrapped into it."""
    inverse_height: Tensor = torch.linalg.vector_norm(torch.linalg.pinv(cell), dim=1)  # of the layers of cells
    return (cutoff * inverse_height + 1e-6).ceil().long() * pbc


def _from_all_pairs(
    pos: Tensor, cutoff: float, cell: Tensor | None, batch: Tensor, count: Tensor, repeats: Tensor
) -> tuple[Tensor, Tensor]:
    """Targets × sources of every graph, padded with NaN (which is nearer than no cutoff) to one table."""
    graphs, atom = len(count), torch.arange(len(pos), device=pos.device)
    wrap = torch.zeros_like(pos)
    if cell is not None:
        wrap = torch.einsum("ni,nij->nj", pos, torch.linalg.pinv(cell)[batch]).floor() * (repeats > 0)[batch]
        pos = pos - torch.einsum("ni,nij->nj", wrap, cell[batch])
    ptr = count.cumsum(0) - count
    rows = int(count.max())
    target, x_target = _table(atom, pos, batch * rows + atom - ptr[batch], graphs * rows)

    image, owner = _images(repeats)  # [I, 3] and the graph of each; the zero image of a graph comes first
    copies = count[owner]
    image_of = torch.repeat_interleave(copies)
    slot = torch.arange(len(image_of), device=pos.device)
    source = ptr[owner][image_of] + slot - (copies.cumsum(0) - copies)[image_of]
    sources = count * torch.bincount(owner, minlength=graphs)
    columns = int(sources.max())
    x = pos[source]
    if cell is not None:
        x = x + torch.einsum("ni,nij->nj", image.double(), cell[owner])[image_of]
    graph = owner[image_of]
    column, x_source = _table(slot, x, graph * columns + slot - (sources.cumsum(0) - sources)[graph], graphs * columns)

    distance = torch.zeros((), dtype=pos.dtype, device=pos.device)
    for a, b in zip(x_source.view(3, graphs, 1, columns), x_target.view(3, graphs, rows, 1), strict=True):
        distance = (a - b).square_().add_(distance)
    distance.diagonal(dim1=1, dim2=2).fill_(math.inf)  # an atom and its zero image
    hit = (distance < cutoff**2).flatten().nonzero().flatten()
    row = torch.div(hit, columns, rounding_mode="floor")
    i = target[row]
    near = column[hit + (torch.div(row, rows, rounding_mode="floor") - row) * columns]
    j = source[near]
    return torch.stack((j, i)), image[image_of[near]] - wrap[j] + wrap[i]


def _images(repeats: Tensor) -> tuple[Tensor, Tensor]:
    """Shifts ``−repeats … repeats`` of every graph, its zero shift first, and the graph of each."""
    most = repeats.max(0).values.tolist()
    shifts = sorted(itertools.product(*(range(-n, n + 1) for n in most)), key=lambda s: (any(s), s))
    all_shifts = torch.tensor(shifts, device=repeats.device)
    owner, chosen = (all_shifts.abs() <= repeats[:, None]).all(-1).nonzero(as_tuple=True)
    return all_shifts[chosen], owner


def _table(ids: Tensor, x: Tensor, place: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Ids ``[size]`` and coordinates ``[3, size]`` at their places, NaN elsewhere."""
    table = x.new_full((3, size), math.nan)
    table[:, place] = x.T
    index = ids.new_zeros(size)
    index[place] = ids
    return index, table


def _from_cell_lists(
    pos: Tensor, cutoff: float, cell: Tensor | None, pbc: Tensor | None, count: Tensor
) -> tuple[Tensor, Tensor]:
    search = NeighborList(cutoff=cutoff, full_list=True, sorted=True, n_threads=torch.get_num_threads())
    points = pos.cpu().numpy()
    boxes = np.zeros((len(count), 3, 3)) if cell is None else cell.cpu().numpy()
    periodic = np.zeros((len(count), 3), dtype=bool) if pbc is None else pbc.cpu().numpy()
    edges, shifts, start = [], [], 0
    for n, box, directions in zip(count.tolist(), boxes, periodic, strict=True):
        pair, shift = search.compute(points[start : start + n], complete_cell(box), directions, "PS")
        edges.append(pair[:, ::-1].astype(np.int64) + start)
        shifts.append(shift)
        start += n
    edge_index = torch.from_numpy(np.concatenate(edges).T.copy()).to(pos.device)
    return edge_index, torch.from_numpy(np.concatenate(shifts)).to(pos.device)
