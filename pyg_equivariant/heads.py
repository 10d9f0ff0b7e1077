"""From features to quantities: what a model predicts.

Heads read ``x[:, 0, 0]`` (scalars) and ``x[:, 0, 1:4]`` (vectors). What a network puts out has variance near 1;
:meth:`Head.standardize` tells a head the scale of its labels, so that no label needs to be rescaled.
"""

from abc import ABC, abstractmethod

import torch
from ase.data import atomic_masses
from jaxtyping import Float
from torch import Tensor, nn

from pyg_equivariant.nn.activation import Activation
from pyg_equivariant.nn.configurable import Configurable
from pyg_equivariant.nn.conv import segment_sum
from pyg_equivariant.nn.electrostatics import ShieldedCoulomb
from pyg_equivariant.nn.embedding import MAX_Z
from pyg_equivariant.nn.mlp import MLP, dense
from pyg_equivariant.priors import AtomicReferences
from pyg_equivariant.typing import Graph

__all__ = [
    "ChargesHead",
    "DipoleHead",
    "DipoleMagnitudeHead",
    "ElectrostaticEnergyHead",
    "EnergyHead",
    "ExtensiveHead",
    "Head",
    "IntensiveHead",
    "IsotropicPolarizabilityHead",
    "PolarizabilityHead",
    "SpatialExtentHead",
    "VectorDipoleHead",
    "head_for",
]


class Head(Configurable, ABC):
    """``x [N, P, M, C], graph → quantity``, one row a graph or one an atom.

    Args:
        channels: C of the representation.

    Attributes:
        lmax: Degree that the features must have at least.
        cutoff: Length in Å that the edges must reach at least; infinite where they should connect all atoms.
        scale: Standard deviation of the labels, that the network need not learn.
        mean: Mean of the labels, likewise.
    """

    lmax = 0
    cutoff = 0.0
    scale: Tensor
    mean: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("mean", torch.tensor(0.0))

    def standardize(self, scale: float, mean: float = 0.0, references: Float[Tensor, " Z"] | None = None) -> None:
        """Fits the buffers to the labels.

        Args:
            scale: Standard deviation of the labels; of extensive ones, of what is left of them without their
                references, per atom.
            mean: Mean of the same; unused where a quantity has a natural zero.
            references: Value of each atomic number, for extensive quantities.
        """
        self.scale.fill_(scale)
        self.mean.fill_(mean)

    @abstractmethod
    def forward(self, x: Float[Tensor, "N P M C"], graph: Graph) -> Tensor:
        """The quantity."""


class ExtensiveHead(Head):
    """Sum over the atoms: ``y = Σᵢ scale · MLP(xᵢ) + mean + e0[zᵢ]``, in float64 ``[B]``.

    Args:
        channels: C of the representation.
        activation: Between the two layers of the MLP; SiLU if not given.
    """

    def __init__(self, channels: int, activation: Activation | None = None) -> None:
        super().__init__(channels)
        self.mlp = MLP([channels, max(channels // 2, 1), 1], activation)
        self.references = AtomicReferences()

    def standardize(self, scale: float, mean: float = 0.0, references: Float[Tensor, " Z"] | None = None) -> None:
        """See :meth:`Head.standardize`."""
        super().standardize(scale, mean)
        if references is not None:
            self.references.values.copy_(references)

    def atomic(self, x: Float[Tensor, "N P M C"], graph: Graph) -> Float[Tensor, " N"]:
        """What each atom contributes besides its reference."""
        return self.mlp(x[:, 0, 0]).squeeze(-1) * self.scale + self.mean

    def total(self, atomic: Float[Tensor, " N"], graph: Graph) -> Float[Tensor, " B"]:
        """Contributions and references of the atoms of each graph, summed in float64."""
        return segment_sum(atomic.double() + self.references(graph.z), graph.batch, graph.num_graphs)

    def forward(self, x: Float[Tensor, "N P M C"], graph: Graph) -> Float[Tensor, " B"]:
        """See the class."""
        return self.total(self.atomic(x, graph), graph)


class EnergyHead(ExtensiveHead):
    """Energies in eV, the head of every :class:`~pyg_equivariant.potential.Potential`.

    Attributes:
        quantities: Names of what :meth:`properties` returns.
    """

    quantities: tuple[str, ...] = ()

    def properties(self, x: Float[Tensor, "N P M C"], graph: Graph) -> dict[str, Tensor]:
        """What the energy was made of and labels may exist for, by name."""
        return {}


class IntensiveHead(Head):
    """Mean over the atoms: ``y = mean + scale · meanᵢ MLP(xᵢ)``, ``[B]``.

    Args:
        channels: C of the representation.
        activation: Between the two layers of the MLP; SiLU if not given.
    """

    def __init__(self, channels: int, activation: Activation | None = None) -> None:
        super().__init__(channels)
        self.mlp = MLP([channels, max(channels // 2, 1), 1], activation)

    def forward(self, x: Float[Tensor, "N P M C"], graph: Graph) -> Float[Tensor, " B"]:
        """See the class."""
        count = segment_sum(torch.ones_like(graph.batch), graph.batch, graph.num_graphs)
        total = segment_sum(self.mlp(x[:, 0, 0]).squeeze(-1), graph.batch, graph.num_graphs)
        return self.mean + self.scale * total / count.clamp(min=1)


class _Centred(Head):
    """A head that reads positions, relative to each graph's centre of mass."""

    masses: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        masses = torch.as_tensor(atomic_masses[: MAX_Z + 1], dtype=torch.float32)
        self.register_buffer("masses", masses, persistent=False)

    def centred(self, graph: Graph) -> Float[Tensor, "N 3"]:
        """Positions relative to the centre of mass, in Å."""
        mass = self.masses[graph.z].unsqueeze(-1)
        moment = segment_sum(mass * graph.pos, graph.batch, graph.num_graphs)
        total = segment_sum(mass, graph.batch, graph.num_graphs)
        return graph.pos - (moment / total)[graph.batch]


class ChargesHead(Head):
    """Partial charges in e that sum to the graph's total charge: ``qᵢ = q̃ᵢ − (Σ q̃ − Q) / N``, ``[N]``.

    Reference: Unke & Meuwly 2019, arXiv:1902.08408, eq. 14.

    Args:
        channels: C of the representation.
        activation: Between the two layers of the MLP; SiLU if not given.
    """

    def __init__(self, channels: int, activation: Activation | None = None) -> None:
        super().__init__(channels)
        self.mlp = MLP([channels, max(channels // 2, 1), 1], activation)

    def forward(self, x: Float[Tensor, "N P M C"], graph: Graph) -> Float[Tensor, " N"]:
        """See the class."""
        charges = self.scale * self.mlp(x[:, 0, 0]).squeeze(-1)
        count = segment_sum(torch.ones_like(charges), graph.batch, graph.num_graphs)
        surplus = segment_sum(charges, graph.batch, graph.num_graphs) - graph.total_charge
        return charges - (surplus / count)[graph.batch]


class DipoleHead(_Centred):
    """Dipole moment of partial charges: ``μ = Σᵢ qᵢ (rᵢ − r_com)`` in e·Å, ``[B, 3]``.

    Works on every representation; where features have vectors, :class:`VectorDipoleHead` is more exact.

    Args:
        channels: C of the representation.
        activation: Between the two layers of the MLP; SiLU if not given.
    """

    def __init__(self, channels: int, activation: Activation | None = None) -> None:
        super().__init__(channels)
        self.charges = ChargesHead(channels, activation)

    def atomic(self, x: Float[Tensor, "N P M C"], graph: Graph) -> Float[Tensor, "N 3"]:
        """What each atom contributes, before the scale."""
        return self.charges(x, graph).unsqueeze(-1) * self.centred(graph)

    def forward(self, x: Float[Tensor, "N P M C"], graph: Graph) -> Float[Tensor, "B 3"]:
        """See the class."""
        return self.scale * segment_sum(self.atomic(x, graph), graph.batch, graph.num_graphs)


class ElectrostaticEnergyHead(EnergyHead):
    r"""Energies with those of partial charges, which labels of the dipole moment teach.

    .. math:: E = Σ_i E_i + \frac{k_e}{2} Σ_{i≠j} q_i q_j χ(r_{ij}), \qquad μ = Σ_i q_i (r_i - r_{com})

    Reference: Unke & Meuwly 2019, arXiv:1902.08408, section II; its loss is ``EnergyForceLoss(dipole=...)``. The
    charges in e ``[N]`` and the dipole moment in e·Å ``[B, 3]`` are properties. Dispersion is a prior,
    :class:`~pyg_equivariant.priors.D3Dispersion`.

    Args:
        channels: C of the representation.
        coulomb: The law of charges; ``ShieldedCoulomb(10.0)`` if not given. The edges of the representation are used:
            its cutoff must be that of the law at least.
        activation: Between the two layers of the MLPs; SiLU if not given.
    """

    quantities = ("charges", "dipole")

    def __init__(
        self, channels: int, coulomb: ShieldedCoulomb | None = None, activation: Activation | None = None
    ) -> None:
        super().__init__(channels, activation)
        self.coulomb = coulomb or ShieldedCoulomb(10.0)
        self.cutoff = self.coulomb.cutoff
        self.dipole = DipoleHead(channels, activation)
        self.dipole.charges.standardize(0.1)  # whole charges: many eV at the start

    def atomic(self, x: Float[Tensor, "N P M C"], graph: Graph) -> Float[Tensor, " N"]:
        """See :meth:`ExtensiveHead.atomic`; half the energy of each pair of charges is its atom's."""
        charges = self.dipole.charges(x, graph)
        return super().atomic(x, graph) + self.coulomb(charges, graph.edge_index, graph.edge_vec)

    def properties(self, x: Float[Tensor, "N P M C"], graph: Graph) -> dict[str, Tensor]:
        """See :meth:`EnergyHead.properties`."""
        return {"charges": self.dipole.charges(x, graph), "dipole": self.dipole(x, graph)}


class _GatedVector(nn.Module):
    """One vector an atom, mixed from its vectors and gated by its scalars, ``[N, 3]``."""

    def __init__(self, channels: int, activation: Activation | None = None) -> None:
        super().__init__()
        self.mix = dense(channels, 1, bias=False)
        self.gate = MLP([channels, max(channels // 2, 1), 1], activation)

    def forward(self, x: Float[Tensor, "N P M C"]) -> Float[Tensor, "N 3"]:
        vector: Tensor = self.mix(x[:, 0, 1:4]).squeeze(-1) * self.gate(x[:, 0, 0])
        return vector


class VectorDipoleHead(DipoleHead):
    """Dipole moment of partial charges and atomic dipoles: ``μ = Σᵢ μᵢ + qᵢ (rᵢ − r_com)``, ``[B, 3]``.

    Reference: Schütt et al. 2021, arXiv:2102.03150, eq. 11.

    Args:
        channels: C of the representation.
        activation: Between the layers of the MLPs; SiLU if not given.
    """

    lmax = 1

    def __init__(self, channels: int, activation: Activation | None = None) -> None:
        super().__init__(channels, activation)
        self.dipoles = _GatedVector(channels, activation)

    def atomic(self, x: Float[Tensor, "N P M C"], graph: Graph) -> Float[Tensor, "N 3"]:
        """What each atom contributes, before the scale."""
        return super().atomic(x, graph) + self.dipoles(x)


class DipoleMagnitudeHead(Head):
    """Length of a dipole moment, ``[B]``.

    Args:
        dipole: Head of the vector.
    """

    def __init__(self, dipole: DipoleHead) -> None:
        super().__init__(dipole.channels)
        self.dipole = dipole
        self.lmax = dipole.lmax

    def forward(self, x: Float[Tensor, "N P M C"], graph: Graph) -> Float[Tensor, " B"]:
        """See the class."""
        # the derivative of a length of zero has no direction: the offset (10⁻⁵ of a label) makes it 0
        return self.scale * ((self.dipole(x, graph).square().sum(-1) + 1e-10).sqrt() - 1e-5)


class PolarizabilityHead(_Centred):
    """Polarizability tensor ``α = Σᵢ α₀ᵢ 1 + νᵢ ⊗ rᵢ + rᵢ ⊗ νᵢ``, symmetric, ``[B, 3, 3]``.

    Reference: Schütt et al. 2021, arXiv:2102.03150, eq. 14; r relative to the centre of mass.

    Args:
        channels: C of the representation.
        activation: Between the layers of the MLPs; SiLU if not given.
    """

    lmax = 1

    def __init__(self, channels: int, activation: Activation | None = None) -> None:
        super().__init__(channels)
        self.isotropic = MLP([channels, max(channels // 2, 1), 1], activation)
        self.vectors = _GatedVector(channels, activation)

    def forward(self, x: Float[Tensor, "N P M C"], graph: Graph) -> Float[Tensor, "B 3 3"]:
        """See the class."""
        outer = self.vectors(x).unsqueeze(-1) * self.centred(graph).unsqueeze(-2)
        identity = torch.eye(3, dtype=x.dtype, device=x.device)
        atomic = self.isotropic(x[:, 0, 0]).unsqueeze(-1) * identity + outer + outer.transpose(1, 2)
        return self.scale * segment_sum(atomic, graph.batch, graph.num_graphs)


class IsotropicPolarizabilityHead(Head):
    """A third of the trace of a polarizability tensor, ``[B]``.

    Args:
        channels: C of the representation.
        activation: Between the layers of the MLPs; SiLU if not given.
    """

    lmax = 1

    def __init__(self, channels: int, activation: Activation | None = None) -> None:
        super().__init__(channels)
        self.tensor = PolarizabilityHead(channels, activation)

    def forward(self, x: Float[Tensor, "N P M C"], graph: Graph) -> Float[Tensor, " B"]:
        """See the class."""
        alpha = self.tensor(x, graph)
        return self.scale * alpha.diagonal(dim1=1, dim2=2).sum(-1) / 3


class SpatialExtentHead(_Centred):
    """Electronic spatial extent ``⟨R²⟩ = Σᵢ qᵢ |rᵢ − r_com|²``, ``[B]``.

    Reference: Schütt et al. 2021, arXiv:2102.03150, section 5.1.

    Args:
        channels: C of the representation.
        activation: Between the layers of the MLP; SiLU if not given.
    """

    def __init__(self, channels: int, activation: Activation | None = None) -> None:
        super().__init__(channels)
        self.mlp = MLP([channels, max(channels // 2, 1), 1], activation)

    def forward(self, x: Float[Tensor, "N P M C"], graph: Graph) -> Float[Tensor, " B"]:
        """See the class."""
        atomic = self.mlp(x[:, 0, 0]).squeeze(-1) * self.centred(graph).square().sum(-1)
        return self.scale * segment_sum(atomic, graph.batch, graph.num_graphs)


def head_for(kind: str, channels: int, lmax: int) -> Head:
    """The head that fits a kind of quantity, and the degree of the features.

    Args:
        kind: "extensive", "intensive", "dipole_magnitude", "isotropic_polarizability" or "spatial_extent".
        channels: C of the representation.
        lmax: Degree of its features; without vectors, a dipole comes from charges alone, and the isotropic
            polarizability is a sum over atoms.

    Raises:
        ValueError: if there is no such kind.
    """
    match kind:
        case "extensive":
            return ExtensiveHead(channels)
        case "intensive":
            return IntensiveHead(channels)
        case "dipole_magnitude":
            return DipoleMagnitudeHead(VectorDipoleHead(channels) if lmax >= 1 else DipoleHead(channels))
        case "isotropic_polarizability":
            return IsotropicPolarizabilityHead(channels) if lmax >= 1 else ExtensiveHead(channels)
        case "spatial_extent":
            return SpatialExtentHead(channels)
        case _:
            raise ValueError(f"no head for a quantity of kind {kind!r}")
