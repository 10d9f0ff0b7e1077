"""What training minimises: a weighted sum of errors, one term a supervised quantity.

Residuals are divided by the spread of the training labels (:meth:`WeightedLoss.standardize`), so that weights,
learning rate and gradient clipping mean the same for every data set. For a force field one spread, the forces'
root mean square in eV/Å, divides energies (eV), forces (eV/Å) and stress (eV/Å³) alike, which keeps
``weight_energy : weight_forces`` what it is in the papers that state it for raw labels.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data

from pyg_equivariant.typing import Prediction

__all__ = [
    "AbsoluteError",
    "EnergyForceLoss",
    "Error",
    "HuberError",
    "PerAtomTerm",
    "SquaredError",
    "Term",
    "VectorError",
    "WeightedLoss",
]


class Error(nn.Module, ABC):
    """A measure of residuals: one non-negative number a row (a graph's or an atom's)."""

    @abstractmethod
    def forward(self, residual: Float[Tensor, "n *d"]) -> Float[Tensor, " n"]:
        """The error of every row."""


class AbsoluteError(Error):
    """``mean_d |r_d|``; the mean over rows is the MAE of the tables.

    Example:
        >>> AbsoluteError()(torch.tensor([[1.0, -3.0]]))
        tensor([2.])
    """

    def forward(self, residual: Float[Tensor, "n *d"]) -> Float[Tensor, " n"]:
        """The error of every row."""
        return _row_mean(residual.abs())


class SquaredError(Error):
    """``mean_d r_d²``.

    Example:
        >>> SquaredError()(torch.tensor([[1.0, -3.0]]))
        tensor([5.])
    """

    def forward(self, residual: Float[Tensor, "n *d"]) -> Float[Tensor, " n"]:
        """The error of every row."""
        return _row_mean(residual.square())


class HuberError(Error):
    """Quadratic below ``delta``, linear above: ``½ r²`` or ``delta (|r| − ½ delta)``.

    Args:
        delta: Where it turns, in units of the labels' spread.

    Raises:
        ValueError: if ``delta`` is not positive.
    """

    def __init__(self, delta: float = 0.01) -> None:
        super().__init__()
        if not delta > 0:
            raise ValueError(f"delta of HuberError must be positive, got {delta}")
        self.delta = delta

    def forward(self, residual: Float[Tensor, "n *d"]) -> Float[Tensor, " n"]:
        """The error of every row."""
        return _row_mean(F.huber_loss(residual, torch.zeros_like(residual), reduction="none", delta=self.delta))


class VectorError(Error):
    """``|r|``, the length of the residual vector: unlike the mean of components, it does not see the axes.

    Example:
        >>> VectorError()(torch.tensor([[3.0, -4.0]]))
        tensor([5.])
    """

    def forward(self, residual: Float[Tensor, "n *d"]) -> Float[Tensor, " n"]:
        """The error of every row."""
        return torch.linalg.vector_norm(residual.flatten(1) if residual.dim() > 1 else residual[:, None], dim=1)


class Term(nn.Module):
    """One supervised quantity: ``weight · mean(error((prediction − label) / scale))``.

    The label is subtracted in the wider of the two dtypes (an energy's is float64) and only the difference is cast.

    Args:
        quantity: Name of the quantity: of the label in the batch and of :meth:`Prediction.quantity`.
        weight: Share in the sum.
        error: Measure of the residual; :class:`SquaredError` if not given.

    Raises:
        ValueError: if the weight is not positive.
    """

    scale: Tensor

    def __init__(self, quantity: str, weight: float = 1.0, error: Error | None = None) -> None:
        super().__init__()
        if not weight > 0:
            raise ValueError(f"the weight of {quantity} in the loss must be positive, got {weight}: or leave it out")
        self.quantity = quantity
        self.weight = weight
        self.error = SquaredError() if error is None else error
        self.register_buffer("scale", torch.ones(()))

    def residual(self, prediction: Prediction, batch: Data) -> Float[Tensor, "n *d"]:
        """Prediction minus label in units of ``scale``, one row a graph or an atom."""
        difference = prediction.quantity(self.quantity) - _label(batch, self.quantity)
        return difference.to(self.scale.dtype) / self.scale

    def forward(self, prediction: Prediction, batch: Data) -> Float[Tensor, ""]:
        """The term's share of the loss.

        Raises:
            ValueError: if the batch has no such label.
            KeyError: if the model does not predict the quantity.
        """
        return self.weight * self.error(self.residual(prediction, batch)).mean()


class PerAtomTerm(Term):
    """A :class:`Term` of an extensive quantity divided by the number of atoms: large molecules do not dominate."""

    def residual(self, prediction: Prediction, batch: Data) -> Float[Tensor, "n *d"]:
        """Prediction minus label per atom, in units of ``scale``."""
        residual = super().residual(prediction, batch)
        num_atoms = torch.bincount(_graph_of_atom(batch), minlength=residual.shape[0])
        return residual / num_atoms.to(residual.dtype).view(-1, *[1] * (residual.dim() - 1))


class WeightedLoss(nn.Module):
    """The sum of its terms.

    Args:
        terms: What is supervised.

    Raises:
        ValueError: if there is no term, or two of one quantity.
    """

    def __init__(self, terms: list[Term]) -> None:
        super().__init__()
        names = [term.quantity for term in terms]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a loss needs at least one term and no quantity twice, got {names}")
        self.terms = nn.ModuleDict({term.quantity: term for term in terms})

    @property
    def quantities(self) -> list[str]:
        """Names of the supervised quantities."""
        return list(self.terms)

    def standardize(self, scale: float) -> None:
        """Measure all residuals in units of ``scale``, the spread of the training labels.

        Raises:
            ValueError: if the scale is not positive.
        """
        if not scale > 0:
            raise ValueError(f"the labels' spread must be positive to train on, got {scale}: are all labels equal?")
        for term in self.terms.values():
            assert isinstance(term, Term)
            term.scale.fill_(scale)

    def forward(self, prediction: Prediction, batch: Data) -> dict[str, Float[Tensor, ""]]:
        """Weighted terms by quantity; the loss is their sum."""
        return {name: term(prediction, batch) for name, term in self.terms.items()}

    @torch.no_grad()
    def blame(self, prediction: Prediction, batch: Data) -> str:
        """A sentence that names the graphs of the batch whose loss is not finite, and why."""
        graph = _graph_of_atom(batch)
        for name, term in self.terms.items():
            assert isinstance(term, Term)
            bad = ~term.residual(prediction, batch).flatten(1 if prediction.quantity(name).dim() > 1 else 0).isfinite()
            rows = bad.any(1) if bad.dim() > 1 else bad
            if rows.any():
                graphs = rows.nonzero()[:, 0] if rows.shape[0] == int(graph[-1]) + 1 else graph[rows].unique()
                label = _label(batch, name)
                where = f"of {name} is not finite for {_names(batch, graphs.tolist())}"
                if bool(label.isfinite().all()):
                    return f"the prediction {where}: lower the learning rate, or clip gradients"
                return f"the label {where}: repair the sample, or leave it out"
        return "the loss is not finite although every residual is: its square overflows, so check the labels' units"


class EnergyForceLoss(WeightedLoss):
    """The usual loss of a force field, ``w_E (ΔE)² + w_F |ΔF|²/3 + w_σ |Δσ|²/9`` by default.

    Args:
        energy: Weight of the energy of a whole graph; 0 leaves it out.
        forces: Weight of the force components; 0 leaves them out.
        stress: Weight of the stress components; 0 leaves it out.
        dipole: Weight of the dipole moment's components, in e·Å as an energy's are in eV; 0 leaves it out.
        charges: Weight of the atoms' charges, in e; 0 leaves them out.
        per_atom: Divide the energy's residual by the number of atoms: for data of mixed sizes.
        error: Measure of the residuals; :class:`SquaredError` if not given.
    """

    def __init__(
        self,
        energy: float = 0.01,
        forces: float = 0.99,
        stress: float = 0.0,
        dipole: float = 0.0,
        charges: float = 0.0,
        *,
        per_atom: bool = False,
        error: Error | None = None,
    ) -> None:
        energy_term = PerAtomTerm if per_atom else Term
        terms = [energy_term("energy", energy, error)] if energy else []
        others = {"forces": forces, "stress": stress, "dipole": dipole, "charges": charges}
        terms += [Term(name, weight, error) for name, weight in others.items() if weight]
        super().__init__(terms)


def _row_mean(value: Float[Tensor, "n *d"]) -> Float[Tensor, " n"]:
    return value.flatten(1).mean(1) if value.dim() > 1 else value


def _graph_of_atom(batch: Data) -> Int[Tensor, " N"]:
    graph: Tensor | None = batch.get("batch")
    return graph if graph is not None else torch.zeros_like(batch.z)


def _label(batch: Data, quantity: str) -> Tensor:
    label: Tensor | None = batch.get(quantity)
    if label is None:
        known = ", ".join(map(str, batch.keys()))
        raise ValueError(f"{quantity} is in the loss, but the data carry no such label: only {known}")
    return label


def _names(batch: Data, graphs: list[int]) -> str:
    ids = batch.get("idx")
    if isinstance(ids, Tensor):
        return "sample " + ", ".join(str(int(ids[g])) for g in graphs[:8])
    return "graph " + ", ".join(map(str, graphs[:8])) + " of the batch"
