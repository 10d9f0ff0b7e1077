"""Types that cross module borders, and the glossary of axes.

Axes, one letter each, everywhere in the package:

====== ==========================================================
``N``  atoms of all graphs of a batch
``E``  directed edges, each from a source j to a target i
``B``  graphs of a batch
``P``  parity slots: 0 true tensors, 1 (where present) pseudotensors
``M``  components of all degrees, ``(lmax + 1)²``
``C``  channels
``K``  radial basis functions
====== ==========================================================

Units are eV, Å, elementary charge, amu and fs.
"""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Graph", "Prediction"]


class Graph(NamedTuple):
    """What heads and priors may read of a batch of geometric graphs.

    Attributes:
        z: Atomic numbers.
        pos: Positions in Å.
        edge_index: Row 0 the source j, row 1 the target i.
        edge_vec: ``r_j − r_i`` (periodic image of j included) in Å.
        batch: Graph of each atom, sorted.
        num_graphs: B.
        total_charge: Net charge of each graph in e.
    """

    z: Int[Tensor, " N"]
    pos: Float[Tensor, "N 3"]
    edge_index: Int[Tensor, "2 E"]
    edge_vec: Float[Tensor, "E 3"]
    batch: Int[Tensor, " N"]
    num_graphs: int
    total_charge: Float[Tensor, " B"]


class Prediction(NamedTuple):
    """What a model returns; a quantity the model has no head for is ``None``.

    Attributes:
        energy: Total energies in eV, always float64 (references are added in float64).
        forces: ``−∂E/∂pos`` in eV/Å.
        stress: ``(1/V) ∂E/∂strain`` in eV/Å³, positive in tension as in ASE.
        hessian: ``∂²E/∂pos∂pos`` of all atoms of the batch in eV/Å².
        atomic_energy: Share of each atom in the energy, in eV.
        properties: What every head returned, by the head's name: one row a graph, or one an atom.
    """

    energy: Float[Tensor, " B"] | None = None
    forces: Float[Tensor, "N 3"] | None = None
    stress: Float[Tensor, "B 3 3"] | None = None
    hessian: Float[Tensor, "N 3 N 3"] | None = None
    atomic_energy: Float[Tensor, " N"] | None = None
    properties: dict[str, Tensor] = {}  # noqa: RUF012  (never written to)

    def quantity(self, name: str) -> Tensor:
        """The tensor called ``name``, be it a field or a head's property.

        Raises:
            KeyError: if the model does not predict it; the message lists what it does.
        """
        value = getattr(self, name, None) if name in self._fields else self.properties.get(name)
        if not isinstance(value, Tensor):
            known = [f for f in self._fields if isinstance(getattr(self, f), Tensor)]
            raise KeyError(f"the model does not predict {name!r}, only {', '.join([*known, *self.properties])}")
        return value
