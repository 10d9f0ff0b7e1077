"""mace-torch: MACE by its authors, in the two usual sizes."""

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases import CUTOFF, ELEMENTS, Case
from benchmarks.peers import Duel
from benchmarks.steps import Contestant

REQUIREMENTS = ["mace-torch==0.3.16", "e3nn==0.4.4", "matscipy==1.3.1", "prettytable==3.16.0", "torch-ema==0.3"]

NEIGHBORS = 15.0  # mean number, for the normalisation of sums; about that of aspirin


class MACE(Contestant):
    def __init__(self, hidden_irreps: str, forces: bool) -> None:
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # this old e3nn loads a pickle of its own constants
        from e3nn import o3
        from mace import modules

        self.forces = forces
        self.model = modules.MACE(
            r_max=CUTOFF,
            num_bessel=8,
            num_polynomial_cutoff=5,
            max_ell=3,
            interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
            num_interactions=2,
            num_elements=len(ELEMENTS),
            hidden_irreps=o3.Irreps(hidden_irreps),
            MLP_irreps=o3.Irreps("16x0e"),
            atomic_energies=np.zeros(len(ELEMENTS)),
            avg_num_neighbors=NEIGHBORS,
            atomic_numbers=ELEMENTS,
            correlation=3,
            gate=torch.nn.functional.silu,
        ).float()

    def inputs(self, case: Case) -> dict[str, Tensor]:
        elements = torch.tensor(ELEMENTS, device=case.z.device)
        count = case.batch.bincount()
        return {
            "positions": case.pos,
            "node_attrs": (case.z[:, None] == elements).float(),
            "edge_index": case.edge_index,
            "shifts": -case.offset,  # the vectors of this package point from source to target
            "unit_shifts": torch.zeros_like(case.offset) if case.shift is None else -case.shift,
            "cell": torch.zeros(case.num_graphs, 3, 3) if case.cell is None else case.cell,
            "batch": case.batch,
            "ptr": torch.cat([count.new_zeros(1), count.cumsum(0)]),
        }

    def predict(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        output: dict[str, Any] = self.model(
            {**inputs, "positions": inputs["positions"].detach()},
            training=self.model.training,
            compute_force=self.forces,
        )
        return output["energy"], output["forces"] if self.forces else None


def _ours(mace: Any, channels: int, lmax: int) -> Any:
    return mace(channels, 2, lmax=lmax, lmax_out=0, cutoff=CUTOFF, elements=ELEMENTS, avg_num_neighbors=NEIGHBORS)


MODELS = {
    "MACE 64x0e": Duel(
        lambda forces, mode: MACE("64x0e", forces),
        "MACE",
        lambda mace: _ours(mace, 64, 0),
    ),
    "MACE 128x0e+128x1o": Duel(
        lambda forces, mode: MACE("128x0e+128x1o", forces),
        "MACE",
        lambda mace: _ours(mace, 128, 1),
    ),
}
