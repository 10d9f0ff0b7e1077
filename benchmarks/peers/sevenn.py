"""SevenNet: its preset "base", a NequIP with tensors of degree 2."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import CUTOFF, ELEMENTS, Case
from benchmarks.peers import Duel
from benchmarks.steps import Contestant

REQUIREMENTS = [
    "sevenn==0.13.0",
    "braceexpand==0.1.7",
    "matscipy==1.3.1",
    "scikit-learn==1.8.0",
    "joblib==1.5.2",
    "threadpoolctl==3.6.0",
]

NEIGHBORS = 15.0  # mean number, for the normalisation of sums; about that of aspirin


class SevenNet(Contestant):
    def __init__(self, forces: bool) -> None:
        import sevenn._keys as key
        from sevenn._const import DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG
        from sevenn.model_build import build_E3_equivariant_model

        self.forces = forces
        self.model: Any = build_E3_equivariant_model(
            {
                **DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG,
                key.CUTOFF: CUTOFF,
                key.NODE_FEATURE_MULTIPLICITY: 32,
                key.LMAX: 2,
                key.NUM_CONVOLUTION: 3,
                key.IS_PARITY: False,
                key.RADIAL_BASIS: {key.RADIAL_BASIS_NAME: "bessel", "bessel_basis_num": 8},
                key.CUTOFF_FUNCTION: {key.CUTOFF_FUNCTION_NAME: "poly_cut", "poly_cut_p_value": 6},
                key.CONV_DENOMINATOR: NEIGHBORS,
                key.NUM_SPECIES: len(ELEMENTS),
                key.TYPE_MAP: {z: index for index, z in enumerate(ELEMENTS)},
                key.SHIFT: 0.0,
                key.SCALE: 1.0,
            }
        )
        if not forces:
            self.model.delete_module_by_key("force_output")

    def inputs(self, case: Case) -> tuple[Case, Tensor, dict[str, Tensor]]:
        cell = torch.eye(3).expand(case.num_graphs, 3, 3) if case.cell is None else case.cell
        data = {
            "atomic_numbers": case.z,
            "edge_index": case.edge_index.flip(0),
            "batch": case.batch,
            "num_atoms": case.batch.bincount(),
            "cell_volume": torch.linalg.det(cell).to(case.pos.device),
        }
        return case, case.offset, data

    def predict(self, inputs: tuple[Case, Tensor, dict[str, Tensor]]) -> tuple[Tensor, Tensor | None]:
        case, offset, data = inputs
        source, target = case.edge_index
        edge_vec = case.pos[source] - case.pos[target] + offset
        output = self.model({**data, "pos": case.pos, "x": case.z, "edge_vec": edge_vec})
        return output["inferred_total_energy"].view(-1), output["inferred_force"] if self.forces else None


MODELS = {
    "SevenNet base": Duel(
        lambda forces, mode: SevenNet(forces),
        "NequIP",
        # parity 1: True tensors alone, where SevenNet's without parity mixes both kinds in one
        lambda nequip: nequip(32, 3, lmax=2, lmax_out=0, cutoff=CUTOFF, elements=ELEMENTS, avg_num_neighbors=NEIGHBORS),
    ),
}
