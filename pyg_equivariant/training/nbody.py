"""The N-body task: networks that say where charged particles will be, and how they are trained."""

import itertools
import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch_geometric.data import Data

from pyg_equivariant.models.base import Representation
from pyg_equivariant.models.egnn import VelocityEGNNConv
from pyg_equivariant.models.radial_field import VelocityRadialFieldConv
from pyg_equivariant.models.se3_transformer import NormNonlinearity, SE3TransformerConv
from pyg_equivariant.models.tensor_field_network import NormActivation, TensorFieldConv
from pyg_equivariant.nn.dense import Dense
from pyg_equivariant.nn.geometry import safe_norm
from pyg_equivariant.nn.harmonics import spherical_harmonics
from pyg_equivariant.nn.loops import with_loops
from pyg_equivariant.nn.radial import GaussianBasis
from pyg_equivariant.nn.tensor_product import AllPaths
from pyg_equivariant.potential import Predictor
from pyg_equivariant.training.ema import ExponentialMovingAverage
from pyg_equivariant.training.losses import Term, WeightedLoss
from pyg_equivariant.training.schedules import Schedule
from pyg_equivariant.training.task import Task
from pyg_equivariant.typing import Prediction

__all__ = [
    "Dynamics",
    "EGNNDynamics",
    "LinearDynamics",
    "NBodyPredictor",
    "NBodyTask",
    "Particles",
    "RadialFieldDynamics",
    "SE3TransformerDynamics",
    "TensorFieldDynamics",
]


class Particles(NamedTuple):
    """Complete graphs of charged particles that move.

    Attributes:
        charges: Charges.
        vel: Velocities.
        edge_index: Row 0 the source j, row 1 the target i.
        edge_vec: ``r_j − r_i``.
    """

    charges: Float[Tensor, " N"]
    vel: Float[Tensor, "N 3"]
    edge_index: Int[Tensor, "2 E"]
    edge_vec: Float[Tensor, "E 3"]


def charge_products(charges: Float[Tensor, " N"], edge_index: Int[Tensor, "2 E"]) -> Float[Tensor, "E 1"]:
    """Product of the charges of each pair: whether it repels or attracts."""
    source, target = edge_index
    return (charges[source] * charges[target]).unsqueeze(-1)


class Dynamics(Representation, ABC):
    """A network from particles now to their displacement some time later; equivariant, and blind to the origin.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, math.inf, lmax=1)

    def forward(self, particles: Particles) -> Float[Tensor, "N 3"]:  # type: ignore[override]  # not of atoms
        """The displacement of every particle."""
        return self.displacement(particles)

    @abstractmethod
    def displacement(self, particles: Particles) -> Float[Tensor, "N 3"]:
        """What :meth:`forward` returns."""


def _start_small(module: nn.Module) -> None:
    """PyTorch's own initial weights, as in the authors' code: with Glorot's, distances of tens blow a stack up."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and layer.bias is not None:  # the last of the coordinates' MLP is small already
            layer.reset_parameters()


class LinearDynamics(Dynamics):
    """``t v_i`` with one learned time t: what the particles would do without forces."""

    def __init__(self) -> None:
        super().__init__(1)
        self.time = nn.Parameter(torch.tensor(0.7))

    def displacement(self, particles: Particles) -> Float[Tensor, "N 3"]:
        """See :meth:`Dynamics.forward`."""
        return self.time * particles.vel


class EGNNDynamics(Dynamics):
    """EGNN with velocities, of the paper's sizes.

    The speed is the particles' feature; the product of charges and the initial squared distance are the edges'.
    Reference: Satorras et al. 2021, arXiv:2102.09844, section 5.1.

    Args:
        channels: C.
        num_layers: Number of layers.
        avg_num_neighbors: Divides the moves of the coordinates; 4 as the other particles are.
    """

    def __init__(self, channels: int = 64, num_layers: int = 4, *, avg_num_neighbors: float = 4.0) -> None:
        super().__init__(channels)
        self.embedding = Dense(1, channels)
        self.convs = nn.ModuleList(
            VelocityEGNNConv(channels, edge_channels=2, avg_num_neighbors=avg_num_neighbors) for _ in range(num_layers)
        )
        _start_small(self.convs)

    def displacement(self, particles: Particles) -> Float[Tensor, "N 3"]:
        """See :meth:`Dynamics.forward`."""
        charges, vel, edge_index, edge_vec = particles
        source, target = edge_index
        edge_attr = torch.cat([charge_products(charges, edge_index), edge_vec.square().sum(-1, keepdim=True)], -1)
        edge_env = torch.ones_like(edge_attr[:, :1])
        x = self.embedding(safe_norm(vel).unsqueeze(-1))
        displacement = torch.zeros_like(vel)
        for conv in self.convs:
            dx, shift = conv(x, edge_index, edge_vec, edge_env, edge_attr, vel)
            x, displacement = x + dx, displacement + shift
            edge_vec = edge_vec + shift[source] - shift[target]
        return displacement


class RadialFieldDynamics(Dynamics):
    """Radial Field with velocities.

    The features of the edges are those of :class:`EGNNDynamics`, particles have none.
    Reference: Satorras et al. 2021, arXiv:2102.09844, section 5.1.

    Args:
        channels: C.
        num_layers: Number of layers.
        avg_num_neighbors: Divides the moves of the coordinates; 4 as the other particles are.
    """

    def __init__(self, channels: int = 64, num_layers: int = 4, *, avg_num_neighbors: float = 4.0) -> None:
        super().__init__(channels)
        self.convs = nn.ModuleList(
            VelocityRadialFieldConv(channels, edge_channels=2, avg_num_neighbors=avg_num_neighbors)
            for _ in range(num_layers)
        )
        _start_small(self.convs)

    def displacement(self, particles: Particles) -> Float[Tensor, "N 3"]:
        """See :meth:`Dynamics.forward`."""
        charges, vel, edge_index, edge_vec = particles
        source, target = edge_index
        edge_attr = torch.cat([charge_products(charges, edge_index), edge_vec.square().sum(-1, keepdim=True)], -1)
        edge_env = torch.ones_like(edge_attr[:, :1])
        displacement = torch.zeros_like(vel)
        for conv in self.convs:
            shift = conv(edge_index, edge_vec, edge_env, edge_attr, vel)
            displacement = displacement + shift
            edge_vec = edge_vec + shift[source] - shift[target]
        return displacement


class _Tensors(nn.Module):
    """What networks of tensors read: charges and velocities in the degrees 0 and 1, radial functions, harmonics.

    Particles are their own neighbours. Of every radial function there are two, one times the product of charges.

    Args:
        lmax_sh: Highest degree of the harmonics.
    """

    def __init__(self, lmax_sh: int) -> None:
        super().__init__()
        self.lmax_sh = lmax_sh
        self.radial = GaussianBasis(16, 8.0)
        self.num_basis = 2 * (self.radial.num_basis + 2)

    def forward(self, particles: Particles) -> tuple[Float[Tensor, "N 1 4 1"], Int[Tensor, "2 E"], Tensor, Tensor]:
        """Features of the particles, edges, their radial functions and harmonics."""
        charges, vel, edge_index, edge_vec = particles
        edge_index, edge_vec = with_loops(edge_index, edge_vec, len(vel))
        edge_len = safe_norm(edge_vec).unsqueeze(-1)
        product = charge_products(charges, edge_index)
        far = 1 / (1 + edge_len)  # where the Gaussians have ended
        radial = torch.cat([self.radial(edge_len.squeeze(-1)), far, torch.ones_like(far)], -1)
        x = torch.cat([charges.unsqueeze(-1), vel], -1)[:, None, :, None]
        return x, edge_index, torch.cat([radial, product * radial], -1), spherical_harmonics(edge_vec, self.lmax_sh)


class TensorFieldDynamics(Dynamics):
    """Tensor Field Network: charges and velocities are what the first layer's degrees 0 and 1 hold.

    Reference: Satorras et al. 2021, arXiv:2102.09844, section 5.1, with its sizes. Here the edges know the product of
    charges, as EGNN's do there.

    Args:
        channels: C.
        num_layers: Number of layers.
        lmax: Highest degree of the features.
        avg_num_neighbors: Mean number of edges that a particle receives.
    """

    group = "SE(3)"

    def __init__(
        self, channels: int = 32, num_layers: int = 4, *, lmax: int = 1, avg_num_neighbors: float = 4.0
    ) -> None:
        super().__init__(channels)
        self.tensors = _Tensors(2 * lmax)
        sizes = [(1, 1), *[(channels, lmax)] * (num_layers - 1), (1, 1)]
        self.convs = nn.ModuleList(
            TensorFieldConv(
                fan_in,
                fan_out,
                AllPaths(lmax_in, 2 * lmax, lmax_out),
                num_basis=self.tensors.num_basis,
                avg_num_neighbors=avg_num_neighbors,
            )
            for (fan_in, lmax_in), (fan_out, lmax_out) in itertools.pairwise(sizes)
        )
        self.activations = nn.ModuleList(NormActivation(channels, lmax=lmax) for _ in range(num_layers - 1))
        self.scale = nn.Parameter(torch.tensor(0.01))

    def displacement(self, particles: Particles) -> Float[Tensor, "N 3"]:
        """See :meth:`Dynamics.forward`."""
        x, edge_index, edge_rbf, edge_sh = self.tensors(particles)
        for index, conv in enumerate(self.convs):
            if index:
                x = self.activations[index - 1](x)
            x = conv(x, edge_index, edge_rbf, edge_sh)
        return self.scale * x[:, 0, 1:, 0]


class SE3TransformerDynamics(Dynamics):
    """SE(3)-Transformer: charges and velocities are what the first layer's degrees 0 and 1 hold.

    As in the authors' code the last layer is one without attention.
    Reference: Fuchs et al. 2020, arXiv:2006.10503, section 4.1; Satorras et al. 2021, arXiv:2102.09844, section 5.1,
    with its sizes. Here the edges know the product of charges, as EGNN's do there.

    Args:
        channels: C.
        num_layers: Layers with attention.
        lmax: Highest degree of the features.
        num_heads: Heads of the attention; they divide the channels.
        avg_num_neighbors: Mean number of edges that a particle receives.
    """

    group = "SE(3)"

    def __init__(
        self,
        channels: int = 32,
        num_layers: int = 4,
        *,
        lmax: int = 1,
        num_heads: int = 1,
        avg_num_neighbors: float = 4.0,
    ) -> None:
        super().__init__(channels)
        self.tensors = _Tensors(2 * lmax)
        self.convs = nn.ModuleList(
            SE3TransformerConv(
                channels if index else 1,
                channels,
                AllPaths(lmax if index else 1, 2 * lmax, lmax),
                num_basis=self.tensors.num_basis,
                num_heads=num_heads,
            )
            for index in range(num_layers)
        )
        self.nonlinearities = nn.ModuleList(NormNonlinearity(channels, lmax=lmax) for _ in range(num_layers))
        self.last = TensorFieldConv(
            channels,
            1,
            AllPaths(lmax, 2 * lmax, 1),
            num_basis=self.tensors.num_basis,
            avg_num_neighbors=avg_num_neighbors,
        )
        self.scale = nn.Parameter(torch.tensor(0.01))

    def displacement(self, particles: Particles) -> Float[Tensor, "N 3"]:
        """See :meth:`Dynamics.forward`."""
        x, edge_index, edge_rbf, edge_sh = self.tensors(particles)
        edge_env = torch.ones_like(edge_rbf[:, 0])
        for conv, nonlinearity in zip(self.convs, self.nonlinearities, strict=True):
            x = nonlinearity(conv(x, edge_index, edge_rbf, edge_sh, edge_env))
        return self.scale * self.last(x, edge_index, edge_rbf, edge_sh)[:, 0, 1:, 0]


class NBodyPredictor(Predictor):
    """A network and the batches of graphs it reads; predicts the ``displacement`` of every particle.

    Args:
        network: What is learned.
    """

    def __init__(self, network: Dynamics) -> None:
        super().__init__(network, {})

    def graph(self, batch: Data) -> Particles:  # type: ignore[override]  # not of atoms
        """The tensors of a ``Data`` or ``Batch`` that a network reads."""
        source, target = batch.edge_index
        edge_vec = batch.pos[source] - batch.pos[target]
        dtype = self.dtype
        return Particles(batch.charges.to(dtype), batch.vel.to(dtype), batch.edge_index, edge_vec.to(dtype))

    def derive(self, graph: Particles) -> Prediction:  # type: ignore[override]
        """See :meth:`Predictor.derive`."""
        return Prediction(properties={"displacement": self.representation(graph)})


class NBodyTask(Task):
    """Trains a network on the squared error of displacements, which is the papers' squared error of positions.

    ``val/loss`` and ``test/loss`` are this error, the mean over components.

    Args:
        network: What is learned.
        lr: Learning rate.
        weight_decay: Of AdamW, decoupled.
        schedule: Factor on the learning rate; constant if not given.
        ema_decay: Decay of the average of the weights, per step; 0 evaluates the weights as they are.
        compile: Whether to compile the whole step, which takes a minute or two.
    """

    def __init__(
        self,
        network: Dynamics,
        *,
        lr: float = 5e-4,
        weight_decay: float = 0.0,
        schedule: Schedule | None = None,
        ema_decay: float = 0.0,
        compile: bool = False,
    ) -> None:
        super().__init__(
            network, lr=lr, weight_decay=weight_decay, schedule=schedule, ema_decay=ema_decay, compile=compile
        )
        self.model = NBodyPredictor(network)
        self.ema = ExponentialMovingAverage(self.model, ema_decay)
        self.loss = WeightedLoss([Term("displacement")])

    def build(self, data: Any) -> None:
        """Nothing: the constructor knows all."""

    def standardize(self, data: Any) -> None:
        """Nothing: the papers' error is in the units of the simulation."""
