"""TorchMD-Net: TensorNet and the equivariant transformer (ET) by their authors, on a CPU in their fused operations."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import CUTOFF, Case
from benchmarks.peers import Duel
from benchmarks.steps import Contestant

REQUIREMENTS = ["torchmd-net==3.1.0", "h5py==3.16.0", "warp-lang==1.19.0"]


class Given(torch.nn.Module):
    """The package's ``distance``, with edges that are known, and a loop at each atom."""

    edge_index: Tensor
    offset: Tensor

    def forward(self, pos: Tensor, batch: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        source, target = self.edge_index
        edge_vec = pos[source] - pos[target] + self.offset
        loops = torch.arange(len(pos), device=pos.device)
        edge_index = torch.cat([self.edge_index, loops.expand(2, -1)], 1)
        edge_len = torch.cat([edge_vec.norm(dim=-1), pos.new_zeros(len(pos))])
        return edge_index, edge_len, torch.cat([edge_vec, torch.zeros_like(pos)])


class TorchMDNet(Contestant):
    def __init__(self, forces: bool, **settings: Any) -> None:
        from torchmdnet.models.model import create_model

        self.forces = forces
        self.model = create_model(
            {
                "precision": 32,
                "embedding_dimension": 128,
                "num_rbf": 32,
                "rbf_type": "expnorm",
                "trainable_rbf": False,
                "activation": "silu",
                "cutoff_lower": 0.0,
                "cutoff_upper": CUTOFF,
                "max_z": 100,
                "max_num_neighbors": 64,
                "derivative": forces,
                "atom_filter": -1,
                "prior_model": None,
                "output_model": "Scalar",
                "reduce_op": "add",
                **settings,
            }
        )
        self.model.representation_model.distance = Given()

    def inputs(self, case: Case) -> tuple[Case, Tensor]:
        return case, case.offset

    def predict(self, inputs: tuple[Case, Tensor]) -> tuple[Tensor, Tensor | None]:
        case, offset = inputs
        distance = self.model.representation_model.distance
        distance.edge_index, distance.offset = case.edge_index, offset
        energy, forces = self.model(case.z, case.pos.detach(), case.batch, num_systems=case.num_graphs)
        return energy.view(-1), forces if self.forces else None


def _tensornet(forces: bool, mode: str) -> Contestant:
    return TorchMDNet(forces, model="tensornet", num_layers=2, equivariance_invariance_group="O(3)")


def _et(forces: bool, mode: str) -> Contestant:
    return TorchMDNet(
        forces,
        model="equivariant-transformer",
        num_layers=6,
        num_heads=8,
        attn_activation="silu",
        distance_influence="both",
        neighbor_embedding=True,
    )


MODELS = {
    "TensorNet": Duel(_tensornet, "TensorNet", lambda tensornet: tensornet(128, 2, cutoff=CUTOFF)),
    "ET": Duel(_et, "EquivariantTransformer", lambda transformer: transformer(128, 6, cutoff=CUTOFF)),
}
