"""nequip-allegro: Allegro by its authors, eager and in the compiled modes of their framework."""

from typing import Any

from benchmarks.cases import CUTOFF
from benchmarks.peers import Duel
from benchmarks.peers.nequip import NEIGHBORS, NequIPFramework
from benchmarks.peers.nequip import REQUIREMENTS as FRAMEWORK
from benchmarks.steps import Contestant

REQUIREMENTS = [*FRAMEWORK, "nequip-allegro==0.8.3"]


def _allegro(forces: bool, mode: str) -> Contestant:
    from allegro.model import AllegroModel

    return NequIPFramework(
        AllegroModel,
        forces,
        mode,
        l_max=1,
        parity=True,
        num_layers=2,
        num_scalar_features=64,
        num_tensor_features=32,
        allegro_mlp_hidden_layers_depth=1,
        allegro_mlp_hidden_layers_width=64,
        readout_mlp_hidden_layers_depth=1,
        readout_mlp_hidden_layers_width=32,
        radial_chemical_embed={"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 8},
    )


def _ours(allegro: Any) -> Any:
    return allegro(64, 2, tensor_channels=32, lmax=1, parity=2, cutoff=CUTOFF, avg_num_neighbors=NEIGHBORS)


MODELS = {"Allegro": Duel(_allegro, "Allegro", _ours, ("eager", "compiled"))}
