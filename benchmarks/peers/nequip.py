"""The package nequip: NequIP by its authors, eager and in its two compiled modes."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import CUTOFF, ELEMENTS, Case
from benchmarks.peers import Duel
from benchmarks.steps import Contestant

REQUIREMENTS = [
    "nequip==0.19.1",
    "antlr4-python3-runtime==4.9.3",
    "hydra-core==1.3.8",
    "lightning==2.6.6",
    "lmdb==2.3.0",
    "matscipy==1.3.1",
    "omegaconf==2.4.0",
]

NEIGHBORS = 15.0  # mean number, for the normalisation of sums; about that of aspirin
SETTINGS = {
    "seed": 0,
    "model_dtype": "float32",
    "r_max": CUTOFF,
    "type_names": ["H", "C", "N", "O", "F"],
    "avg_num_neighbors": NEIGHBORS,
    "per_type_energy_scales": 1.0,
    "per_type_energy_shifts": 0.0,
}


class NequIPFramework(Contestant):
    """Any model of nequip's framework.

    Compiled means ``compile_mode="compile"`` in training, and what ``nequip-compile`` makes (AOTInductor) in
    simulation: the former mode never compiles a batch of one graph.

    Args:
        builder: A function of the framework that builds models.
        forces: Whether it shall predict forces.
        mode: "eager" or "compiled".
        settings: For the builder.
    """

    def __init__(self, builder: Callable[..., Any], forces: bool, mode: str, **settings: Any) -> None:
        from nequip.utils.global_state import set_global_state

        set_global_state(allow_tf32=False)

        def build(compile_mode: str) -> Any:
            return builder(compile_mode=compile_mode, do_derivatives=forces, **{**SETTINGS, **settings})

        self.build, self.compiled = build, mode == "compiled"
        self.model = build("compile" if self.compiled else "eager")

    def inputs(self, case: Case) -> tuple[Callable[[Any], Any], dict[str, Tensor]]:
        types = torch.zeros(max(ELEMENTS) + 1, dtype=torch.long, device=case.z.device)
        types[ELEMENTS] = torch.arange(len(ELEMENTS), device=case.z.device)
        data = {"pos": case.pos, "edge_index": case.edge_index.flip(0), "atom_types": types[case.z]}
        if case.shift is not None and case.cell is not None:
            data |= {"cell": case.cell, "edge_cell_shift": case.shift}
        if case.num_graphs > 1:
            data |= {"batch": case.batch, "num_atoms": case.batch.bincount()}
        if self.compiled and not case.train:
            return self._ahead_of_time(data), data
        return self.model, data

    def _ahead_of_time(self, data: dict[str, Tensor]) -> Callable[[Any], Any]:
        """The model as ``nequip-compile --mode aotinductor`` makes it, for these inputs."""
        from nequip.nn.compile import DictInputOutputWrapper
        from nequip.utils.aot import aot_export_model

        folder = tempfile.mkdtemp()
        fields = list(data), ["total_energy", "forces"]
        shapes = {
            "graph": torch.export.Dim.STATIC,
            "node": torch.export.Dim("num_nodes", min=2),
            "edge": torch.export.Dim("num_edges", min=2),
        }
        model = self.build("eager").to(data["pos"].device).eval()
        file = aot_export_model(
            model, data["pos"].device, *fields, data, shapes, str(Path(folder) / "model.nequip.pt2"), seed=1
        )
        wrapper: Any = DictInputOutputWrapper(torch._inductor.aoti_load_package(file), *fields)
        return wrapper  # type: ignore[no-any-return]

    def predict(self, inputs: tuple[Callable[[Any], Any], dict[str, Tensor]]) -> tuple[Tensor, Tensor | None]:
        model, data = inputs
        output = model({**data, "pos": data["pos"].detach()})
        return output["total_energy"].view(-1), output.get("forces")


def _nequip(forces: bool, mode: str) -> Contestant:
    from nequip.model import NequIPGNNModel

    return NequIPFramework(NequIPGNNModel, forces, mode, num_layers=4, l_max=1, parity=True, num_features=32)


def _preset_s(forces: bool, mode: str) -> Contestant:
    from nequip.model import PresetNequIPGNNModel

    return NequIPFramework(PresetNequIPGNNModel, forces, mode, preset="S")


def _ours(nequip: Any, channels: int, num_layers: int, parity: int) -> Any:
    from pyg_equivariant.nn.radial import BesselBasis

    return nequip(
        channels,
        num_layers,
        lmax=1,
        parity=parity,
        lmax_out=0,
        cutoff=CUTOFF,
        radial=BesselBasis(8, CUTOFF),
        elements=ELEMENTS,
        avg_num_neighbors=NEIGHBORS,
    )


MODELS = {
    "NequIP": Duel(_nequip, "NequIP", lambda nequip: _ours(nequip, 32, 4, 2), ("eager", "compiled")),
    # 128 scalars and 64 vectors there, 128 of both here
    "NequIP S": Duel(_preset_s, "NequIP", lambda nequip: _ours(nequip, 128, 2, 1), ("eager", "compiled")),
}
