"""SchNetPack: PaiNN and SchNet by their authors."""

from typing import Any

from torch import Tensor

from benchmarks.cases import CUTOFF, Case
from benchmarks.peers import Duel
from benchmarks.steps import Contestant

REQUIREMENTS = [
    "schnetpack==2.2.0",  # asks for Python 3.12, and runs on 3.11
    "antlr4-python3-runtime==4.9.3",
    "dirsync==2.2.6",
    "fasteners==0.20",
    "h5py==3.16.0",
    "hydra-core==1.3.8",
    "matscipy==1.3.1",
    "omegaconf==2.4.0",
    "progressbar==2.5",
    "torch-ema==0.3",
]


class SchNetPack(Contestant):
    def __init__(self, representation: str, layers: int, forces: bool) -> None:
        import schnetpack

        self.model = schnetpack.model.NeuralNetworkPotential(
            getattr(schnetpack.representation, representation)(
                n_atom_basis=128,
                n_interactions=layers,
                radial_basis=schnetpack.nn.GaussianRBF(20, CUTOFF),
                cutoff_fn=schnetpack.nn.CosineCutoff(CUTOFF),
            ),
            input_modules=[schnetpack.atomistic.PairwiseDistances()],
            output_modules=[
                schnetpack.atomistic.Atomwise(n_in=128, output_key="energy"),
                *([schnetpack.atomistic.Forces()] if forces else []),
            ],
        )

    def inputs(self, case: Case) -> dict[str, Tensor]:
        source, target = case.edge_index
        return {
            "_atomic_numbers": case.z,
            "_positions": case.pos,
            "_idx_i": target,
            "_idx_j": source,
            "_offsets": case.offset,
            "_idx_m": case.batch,
            "_n_atoms": case.batch.bincount(),
        }

    def predict(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        output: dict[str, Any] = self.model({**inputs, "_positions": inputs["_positions"].detach()})
        return output["energy"], output.get("forces")


def _painn(painn: Any) -> Any:
    from pyg_equivariant.nn.radial import GaussianBasis

    return painn(128, 3, cutoff=CUTOFF, radial=GaussianBasis(20, CUTOFF))


def _schnet(schnet: Any) -> Any:
    from pyg_equivariant.nn.radial import GaussianBasis

    return schnet(128, 6, cutoff=CUTOFF, radial=GaussianBasis(20, CUTOFF))


MODELS = {
    "PaiNN": Duel(lambda forces, mode: SchNetPack("PaiNN", 3, forces), "PaiNN", _painn),
    "SchNet": Duel(lambda forces, mode: SchNetPack("SchNet", 6, forces), "SchNet", _schnet),
}
