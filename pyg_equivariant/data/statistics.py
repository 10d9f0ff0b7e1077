"""What a training set tells a model before the first step: references, spread, mean number of neighbours."""

import logging
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from ase.data import atomic_numbers, chemical_symbols
from jaxtyping import Float, Int
from torch import Tensor

from pyg_equivariant.data.dataset import FlatDataset
from pyg_equivariant.data.transforms import RadiusGraph

__all__ = ["References", "Statistics", "compute_statistics", "fit_references", "given_references", "mean_degree"]

logger = logging.getLogger(__name__)

MAX_Z = 118


class References(NamedTuple):
    """A value for each element, whose sum over a molecule's atoms is subtracted from its label.

    Attributes:
        values: One per atomic number, float64, 0 where unknown.
        determined: Whether the data determine every element's value; if not, the smallest values that fit
            were chosen.
    """

    values: Float[Tensor, " Z"]
    determined: bool


class Statistics(NamedTuple):
    """Statistics of a training set, in the units of its labels.

    Attributes:
        references: Atomic references ``[119]`` in float64 by atomic number, 0 where an element is unseen.
        scale: Root mean square of the forces' components, where there are forces; of an extensive label the
            standard deviation of what the references leave, per atom; else the label's standard deviation.
        mean: Mean of an extensive label per atom, less its references; else the label's mean.
        avg_num_neighbors: Mean number of edges that end at an atom.
        elements: Atomic numbers that occur, ascending.
        determined: Whether the data determine the references, see :class:`References`.
    """

    references: Float[Tensor, " Z"]
    scale: float
    mean: float
    avg_num_neighbors: float
    elements: list[int]
    determined: bool = True


def compute_statistics(
    dataset: FlatDataset,
    label: str,
    cutoff: float,
    *,
    extensive: bool = True,
    references: Mapping[str, float] | None = None,
) -> Statistics:
    """Statistics of the label called ``label``.

    Args:
        dataset: The training set.
        label: A field with one number per graph.
        cutoff: Radius in Å for the mean number of neighbours.
        extensive: Whether the label is a sum over atoms, so that references make sense.
        references: Values of isolated atoms by chemical symbol; fitted by least squares if not given.

    Raises:
        ValueError: if an element of the data has no given reference.
    """
    values = dataset.column(label).double().reshape(len(dataset))
    num_atoms = dataset.num_atoms.double()
    fitted = References(torch.zeros(MAX_Z + 1, dtype=torch.float64), True)
    if extensive:
        fitted = fit_references(dataset, label) if references is None else given_references(dataset, references)
        values = (values - compositions(dataset) @ fitted.values) / num_atoms
    if extensive and "forces" in dataset.fields:
        scale = float(dataset.column("forces").double().square().mean().sqrt())
    else:
        scale = float(values.std(correction=0))
    return Statistics(
        references=fitted.values,
        scale=scale if math.isfinite(scale) and scale > 1e-12 else 1.0,  # a single label has no spread
        mean=0.0 if extensive and references is None else float(values.mean()),
        avg_num_neighbors=mean_degree(dataset, cutoff),
        elements=dataset.elements,
        determined=fitted.determined,
    )


def compositions(dataset: FlatDataset) -> Float[Tensor, "B Z"]:
    """Number of atoms of each element in each graph, float64."""
    graph = torch.repeat_interleave(dataset.num_atoms)
    width = MAX_Z + 1
    count = torch.bincount(graph * width + dataset.column("z"), minlength=len(dataset) * width)
    return count.reshape(len(dataset), width).double()


def fit_references(dataset: FlatDataset, label: str = "energy") -> References:
    """References that fit a label best, in the sense of least squares.

    Where the compositions do not determine them (all frames of one molecule, isomers only), the solution of
    the smallest norm is taken, which still removes the mean, and a line in the log says so.

    Args:
        dataset: Graphs with the label.
        label: A field with one number per graph.

    Example:
        >>> from torch_geometric.data import Data
        >>> water = Data(z=torch.tensor([8, 1, 1]), energy=torch.tensor([-16.0]))
        >>> dioxygen = Data(z=torch.tensor([8, 8]), energy=torch.tensor([-20.0]))
        >>> values, determined = fit_references(FlatDataset.from_data_list([water, dioxygen]))
        >>> round(float(values[1]), 6), round(float(values[8]), 6), determined
        (-3.0, -10.0, True)
    """
    counts = compositions(dataset)
    elements = counts.any(0).nonzero().flatten()
    table = counts[:, elements]
    target = dataset.column(label).double().reshape(-1, 1)
    # Equal compositions say the same thing many times: a few hundred sums instead of 10⁵ rows.
    kinds, index, number = table.unique(dim=0, return_inverse=True, return_counts=True)
    weight = number.double().sqrt()[:, None]
    mean = torch.zeros(len(kinds), 1, dtype=torch.float64).index_add_(0, index, target) / number[:, None]
    solution = torch.linalg.lstsq(kinds * weight, mean * weight, driver="gelsd")
    values = torch.zeros(MAX_Z + 1, dtype=torch.float64)
    values[elements] = solution.solution.flatten()
    determined = int(torch.linalg.matrix_rank(kinds)) == len(elements)
    if not determined:
        names = ", ".join(chemical_symbols[int(z)] for z in elements)
        logger.warning(
            "the compositions of the data do not determine the references of %s: the smallest that fit are used; "
            "give the energies of the isolated atoms to compare molecules of other compositions",
            names,
        )
    return References(values, determined)


def given_references(dataset: FlatDataset, values: Mapping[str, float]) -> References:
    """References from energies of isolated atoms, by chemical symbol.

    Raises:
        ValueError: if a symbol is no element, or an element of the data has no value.
    """
    table = torch.zeros(MAX_Z + 1, dtype=torch.float64)
    for symbol, value in values.items():
        if symbol not in atomic_numbers:
            raise ValueError(
                f"{symbol!r} is no chemical element: give the energies of isolated atoms like {{'H': -13.6}}"
            )
        table[atomic_numbers[symbol]] = value
    missing = [chemical_symbols[z] for z in dataset.elements if chemical_symbols[z] not in values]
    if missing:
        raise ValueError(f"no energy was given for isolated {', '.join(missing)}, which the data contain: add it")
    return References(table, True)


def mean_degree(dataset: FlatDataset, cutoff: float, *, num_graphs: int = 1000) -> float:
    """Mean number of edges that end at an atom, over at most ``num_graphs`` graphs spread over the dataset."""
    if len(dataset) == 0:
        return 0.0
    chosen = torch.linspace(0, len(dataset) - 1, min(num_graphs, len(dataset))).round().long()
    part = dataset.select(*({"z", "pos", "cell", "pbc"} & set(dataset.fields)))[chosen]
    return int(num_edges(part, cutoff).sum()) / max(int(part.num_atoms.sum()), 1)


def num_edges(dataset: FlatDataset, cutoff: float) -> Int[Tensor, " B"]:
    """Number of edges within ``cutoff`` of each graph."""
    part = dataset.select(*({"z", "pos", "cell", "pbc"} & set(dataset.fields))).with_transform(RadiusGraph(cutoff))
    counts = []
    for start in range(0, len(part), 100):
        batch = part[start : start + 100].to_batch()
        counts.append(torch.bincount(batch.batch[batch.edge_index[1]], minlength=batch.num_graphs))
    return torch.cat(counts) if counts else torch.zeros(0, dtype=torch.int64)
