"""What PyTorch Geometric ships: SchNet, DimeNet++ and ViSNet.

They find neighbours by pyg-lib or torch-cluster, and triplets by torch-sparse, and do not run without these. Here they
get the edges and triplets of the case instead, as everybody else does. They know no periodic box.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import CUTOFF, Case
from benchmarks.peers import Duel
from benchmarks.steps import Contestant

REQUIREMENTS: list[str] = []  # PyG is one of ours

MOLECULES = ("ef", "md", "qm9")


class Given(torch.nn.Module):
    """SchNet's ``interaction_graph``, with edges that are known."""

    edge_index: Tensor

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        source, target = self.edge_index
        return self.edge_index, (pos[source] - pos[target]).norm(dim=-1)


class PyG(Contestant):
    """Forces are the gradient of the energy, as a user of the model takes it."""

    def __init__(self, model: torch.nn.Module, forces: bool) -> None:
        self.model, self.forces = model, forces

    def inputs(self, case: Case) -> Any:
        return case

    def give(self, inputs: Any) -> Case:
        """Tells the model the edges."""
        self.model.interaction_graph.edge_index = inputs.edge_index
        case: Case = inputs
        return case

    def predict(self, inputs: Any) -> tuple[Tensor, Tensor | None]:
        case = self.give(inputs)
        pos = case.pos.detach().requires_grad_(self.forces)
        with torch.set_grad_enabled(self.forces or self.model.training):
            energy = self.model(case.z, pos, case.batch).view(-1)
        if not self.forces:
            return energy, None
        (gradient,) = torch.autograd.grad(energy.sum(), pos, create_graph=self.model.training)
        return energy, -gradient


class DimeNet(PyG):
    def inputs(self, case: Case) -> tuple[Case, tuple[Tensor, ...]]:
        return case, triplets(case.edge_index, len(case.z))

    def give(self, inputs: tuple[Case, tuple[Tensor, ...]]) -> Case:
        from torch_geometric.nn.models import dimenet

        case, known = inputs
        dimenet.radius_graph = lambda *_, **__: case.edge_index
        dimenet.triplets = lambda *_, **__: known
        return case


class ViSNet(PyG):
    """Takes the forces itself, and wants a loop at each atom."""

    def inputs(self, case: Case) -> tuple[Case, Tensor]:
        loops = torch.arange(len(case.z), device=case.z.device).expand(2, -1)
        return case, torch.cat([case.edge_index, loops], 1)

    def predict(self, inputs: tuple[Case, Tensor]) -> tuple[Tensor, Tensor | None]:
        from torch_geometric.nn.models import visnet

        case, edge_index = inputs
        visnet.radius_graph = lambda *_, **__: edge_index
        energy, forces = self.model(case.z, case.pos.detach(), case.batch)
        return energy.view(-1), forces


def triplets(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, ...]:
    """All pairs of edges k→j→i with k ≠ i, as PyG's function of this name orders its answer; edges sorted by target."""
    source, target = edge_index
    count = target.bincount(minlength=num_nodes)
    start = count.cumsum(0) - count
    repeats = count[source]  # edges that end where this one begins
    idx_ji = torch.arange(len(source), device=source.device).repeat_interleave(repeats)
    place = torch.arange(len(idx_ji), device=source.device) - (repeats.cumsum(0) - repeats)[idx_ji]
    idx_kj = start[source[idx_ji]] + place
    chosen = source[idx_kj] != target[idx_ji]
    idx_ji, idx_kj = idx_ji[chosen], idx_kj[chosen]
    return target, source, target[idx_ji], source[idx_ji], source[idx_kj], idx_kj, idx_ji


def _schnet(forces: bool, mode: str) -> Contestant:
    from torch_geometric.nn import SchNet

    return PyG(SchNet(128, 128, 6, 50, cutoff=CUTOFF, interaction_graph=Given()), forces)


def _dimenet(forces: bool, mode: str) -> Contestant:
    from torch_geometric.nn import DimeNetPlusPlus

    model = DimeNetPlusPlus(128, 1, 4, 64, 8, 256, 7, 6, cutoff=CUTOFF, output_initializer="glorot_orthogonal")
    return DimeNet(model, forces)


def _visnet(forces: bool, mode: str) -> Contestant:
    from torch_geometric.nn.models import ViSNet as Model

    return ViSNet(Model(cutoff=CUTOFF, derivative=forces), forces)


def _at_cutoff(**settings: Any) -> Callable[[Any], Any]:
    return lambda model: model(cutoff=CUTOFF, **settings)


MODELS = {
    "SchNet": Duel(_schnet, "SchNet", _at_cutoff(channels=128, num_layers=6), cases=MOLECULES),
    "DimeNet++": Duel(_dimenet, "DimeNetPlusPlus", _at_cutoff(channels=128, num_layers=4), cases=MOLECULES),
    "ViSNet": Duel(_visnet, "ViSNet", _at_cutoff(channels=128, num_layers=6, lmax=1), cases=MOLECULES),
}
