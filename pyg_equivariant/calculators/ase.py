"""A trained potential as an ASE calculator."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch_geometric.data import Data

from pyg_equivariant.data.neighbors import neighbor_list
from pyg_equivariant.potential import Potential

__all__ = ["PygEquivariantCalculator", "VerletList", "check_elements", "total_charge"]


class VerletList:
    """Exact neighbours that are searched for only when an atom has moved far enough to matter.

    The search reaches ``cutoff + skin``. As long as no atom has moved by more than half the skin since, and cell,
    periodicity and number of atoms are the same, every pair within the cutoff is in that list, and what lies
    beyond the cutoff now is dropped: the edges are those of a fresh search.

    Args:
        cutoff: In Å; ``math.inf`` joins all atoms.
        skin: In Å; 0 searches at every step.

    Attributes:
        searches: How often neighbours were searched for.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        if skin < 0:
            raise ValueError(f"skin must not be negative, got {skin}")
        self.cutoff = cutoff
        self.skin = skin
        self.searches = 0
        self._origin: tuple[Tensor, Tensor, Tensor] | None = None
        self._edge_index = torch.empty(2, 0, dtype=torch.long)
        self._shift = torch.empty(0, 3)

    def __call__(
        self, pos: Float[Tensor, "N 3"], cell: Float[Tensor, "1 3 3"], pbc: Bool[Tensor, "1 3"]
    ) -> tuple[Int[Tensor, "2 E"], Float[Tensor, "E 3"]]:
        """``edge_index`` (sorted by target) and ``shift`` (in cells) of all pairs within the cutoff."""
        if not self._holds(pos, cell, pbc):
            self._search(pos, cell, pbc)
        source, target = self._edge_index
        shift = self._shift.to(pos)
        edge_vec = pos[source] + shift @ cell[0] - pos[target]
        near = edge_vec.square().sum(-1) < self.cutoff**2
        return self._edge_index[:, near], shift[near]

    def _holds(self, pos: Tensor, cell: Tensor, pbc: Tensor) -> bool:
        if self._origin is None:
            return False
        old_pos, old_cell, old_pbc = self._origin
        if old_pos.shape != pos.shape or not torch.equal(old_cell, cell) or not torch.equal(old_pbc, pbc):
            return False
        moved = (pos - old_pos).square().sum(-1)
        return bool((moved <= (self.skin / 2) ** 2).all()) if self.skin > 0 else torch.equal(pos, old_pos)

    def _search(self, pos: Tensor, cell: Tensor, pbc: Tensor) -> None:
        periodic = bool(pbc.any())
        edge_index, shift = neighbor_list(
            pos, self.cutoff + self.skin, cell if periodic else None, pbc if periodic else None
        )
        self._edge_index = edge_index
        self._shift = pos.new_zeros(edge_index.shape[1], 3) if shift is None else shift
        self._origin = (pos.clone(), cell.clone(), pbc.clone())
        self.searches += 1


class PygEquivariantCalculator(Calculator):
    """ASE calculator that runs a :class:`~pyg_equivariant.potential.Potential`.

    Gives ``energy``, ``free_energy`` (the same: there is no smearing), ``energies`` (eV), ``forces`` (eV/Å), ``stress``
    where the cell has a volume (eV/Å³, Voigt order, positive in tension), and ``dipole`` (e·Å) and ``charges`` (e)
    if the model has heads of these names. Other heads appear in ``results`` under their own names. No
    derivative is computed that is not asked for; forces and stress share one.

    The total charge is ``atoms.info["total_charge"]`` or ``["charge"]``, or the sum of the initial charges.

    Args:
        model: A potential, or the path of a saved one.
        device: Where to run it; where the model is, by default.
        dtype: Its precision; the model's own, by default. Positions and energies are float64 throughout.
        skin: Of the Verlet list, in Å.
        compile: Whether to compile the whole step on its first call: ten seconds to a minute, after which small systems
            go two to four times as fast.

    Raises:
        ValueError: from ``atoms.get_...()`` if the structure holds an element the model was not trained on.

    Example:
        >>> from ase.build import molecule
        >>> from pyg_equivariant.models import PaiNN
        >>> atoms = molecule("CH3CH2OH")
        >>> atoms.calc = PygEquivariantCalculator(Potential(PaiNN(8, 1)), dtype=torch.float64)
        >>> atoms.get_forces().shape
        (9, 3)
    """

    results: dict[str, Any]

    def __init__(
        self,
        model: Potential | str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        skin: float = 0.5,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(model, str | Path):
            model = Potential.load(model)
        self.model = model.frozen(device=device, dtype=dtype, compile=compile)
        self.neighbors = VerletList(model.cutoff, skin)
        named = [name for name in ("dipole", "charges") if name in model.quantities]
        self.implemented_properties = ["energy", "free_energy", "energies", "forces", "stress", *named]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill ``results`` with the energy and what ``properties`` ask for."""
        super().calculate(atoms, properties, system_changes)
        check_elements(self.model.metadata.elements, self.atoms.numbers, str(self.atoms.symbols))
        stress = "stress" in properties
        if stress and not (self.atoms.pbc.any() and self.atoms.cell.rank == 3):
            raise PropertyNotImplementedError("stress needs a periodic structure with a cell of three vectors")
        self.model.forces = stress or "forces" in properties
        self.model.stress = stress
        with torch.no_grad():
            prediction = self.model(self._graph())
        results: dict[str, Any] = {name: _numpy(value) for name, value in prediction.properties.items()}
        results["energy"] = results["free_energy"] = prediction.energy.item()
        results["energies"] = _numpy(prediction.atomic_energy)
        if prediction.forces is not None:
            results["forces"] = _numpy(prediction.forces)
        if prediction.stress is not None:
            results["stress"] = full_3x3_to_voigt_6_stress(_numpy(prediction.stress)[0])
        if "dipole" in results:
            results["dipole"] = results["dipole"].reshape(3)
        self.results = results if system_changes else self.results | results

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation; ASE does not look at a total charge in ``atoms.info``."""
        changes: list[str] = super().check_state(atoms, tol)
        if not changes and total_charge(atoms) != total_charge(self.atoms):
            changes.append("initial_charges")
        return changes

    def _graph(self) -> Data:
        device = next(self.model.parameters()).device
        pos = torch.from_numpy(self.atoms.positions)
        cell = torch.from_numpy(self.atoms.cell.array).unsqueeze(0)
        pbc = torch.from_numpy(self.atoms.pbc).unsqueeze(0)
        edge_index, shift = self.neighbors(pos, cell, pbc)
        data = Data(
            z=torch.from_numpy(self.atoms.numbers.astype(np.int64)),
            pos=pos,
            edge_index=edge_index,
            total_charge=torch.tensor([total_charge(self.atoms)], dtype=torch.float64),
        )
        if self.atoms.pbc.any():
            data.cell, data.pbc, data.shift = cell, pbc, shift
        return data.to(device)


def check_elements(seen: Sequence[int], numbers: np.ndarray, name: str) -> None:
    """Refuse what a model has never seen.

    Args:
        seen: Atomic numbers the model was trained on; empty if it was not trained.
        numbers: Those it is asked about.
        name: What to call the structure.

    Raises:
        ValueError: if there is an element that was not seen.
    """
    unseen = sorted(set(numbers.tolist()) - set(seen))
    if seen and unseen:
        first = int(np.flatnonzero(np.isin(numbers, unseen))[0])
        raise ValueError(
            f"the model was trained on {_symbols(seen)} and has never seen {_symbols(unseen)} (first at atom {first} "
            f"of {name}): train it on data that hold these elements"
        )


def total_charge(atoms: Atoms) -> float:
    """Net charge in e, from ``info`` (``total_charge``, ``charge``) or the sum of the initial charges."""
    for key in ("total_charge", "charge"):
        if key in atoms.info:
            return float(atoms.info[key])
    return round(float(atoms.get_initial_charges().sum()), 6)


def _symbols(numbers: Sequence[int]) -> str:
    return ", ".join(chemical_symbols[number] for number in numbers)


def _numpy(value: Tensor) -> np.ndarray:
    return value.detach().double().cpu().numpy()
