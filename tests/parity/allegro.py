"""Allegro against its authors' package, with copied weights.

Needs ``nequip-allegro==0.8.3`` and ``nequip==0.19.1`` (and what that imports) beside this package. ``python
tests/parity/allegro.py`` compares; with ``--write`` it stores what the peer predicts, which the everyday tests
reproduce without it.
"""

# ruff: noqa: E402

import argparse
import json
import math
import sys
from importlib.metadata import version
from pathlib import Path

sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).parent]  # the peer has our name

import torch
from allegro.model import AllegroModel
from nequip.utils.global_state import set_global_state
from torch import Tensor, nn

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models.allegro import Allegro, EnvironmentProduct
from pyg_equivariant.potential import Potential
from pyg_equivariant.testing import example_molecule, potential_of

GOLDEN = Path(__file__).with_suffix(".json")
CHANNELS, TENSOR_CHANNELS, CUTOFF, ELEMENTS = 8, 4, 3.0, (1, 6, 7, 8)
NAMES = ["H", "C", "N", "O"]
SETTINGS = {
    "2 layers": {"num_layers": 2, "lmax": 1, "parity": 2},
    "3 layers, no pseudotensors": {"num_layers": 3, "lmax": 2, "parity": 1},
    "3 layers, pseudotensors": {"num_layers": 3, "lmax": 2, "parity": 2},
    "1 layer": {"num_layers": 1, "lmax": 3, "parity": 1},
}
SEEDS = (0, 1, 2, 3)


def read_out_linearly(model: Potential) -> None:
    """Makes the head linear, of the weights that it has: two of its units, as silu(a) − silu(−a) = a."""
    first, _, last = model.head.mlp
    with torch.no_grad():
        first.weight[1] = -first.weight[0]
        last.weight.zero_()
        last.weight[0, :2] = torch.tensor([1.0, -1.0])
        first.bias.zero_()
        last.bias.zero_()


def copy_mlp(peer: nn.Module, *weights: Tensor) -> None:
    """Weights ``[out, in]``; theirs are transposed, and scaled when they are used."""
    layers = [layer for layer in peer.mlp if hasattr(layer, "alpha")]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.copy_(weight.T / layer.alpha)


def weights_of(mlp: nn.Sequential) -> list[Tensor]:
    return [layer.weight for layer in mlp if isinstance(layer, nn.Linear)]


def channel_first(weight: Tensor, lmax: int) -> Tensor:
    """Rows ``(degree, channel)`` as rows ``(channel, degree)``."""
    return weight.unflatten(0, (lmax + 1, TENSOR_CHANNELS)).transpose(0, 1).flatten(0, 1)


def weights_first(weight: Tensor, lmax: int) -> Tensor:
    return torch.cat([weight[:CHANNELS], channel_first(weight[CHANNELS:], lmax)])


def copy_product(peer: nn.Module, ours: EnvironmentProduct) -> None:
    paths = []
    for _, out in peer.irreps_out:
        for _, left in peer.irreps_in1:
            for _, right in peer.irreps_in2:
                if out in left * right:
                    slots = [int(irrep.p != (-1) ** irrep.l) for irrep in (left, out)]
                    paths.append((slots[0], left.l, right.l, slots[1], out.l))
    assert set(paths) <= set(ours.paths)
    peer.weights.copy_(torch.stack([ours.weight[ours.paths.index(path)] for path in paths], 1).view_as(peer.weights))


def peer_of(model: Potential, settings: dict) -> nn.Module:
    """The peer's model with the weights of ours."""
    ours = model.representation
    assert isinstance(ours, Allegro)
    lmax = settings["lmax"]
    peer = AllegroModel(
        seed=0,
        model_dtype="float64",
        r_max=CUTOFF,
        type_names=NAMES,
        l_max=lmax,
        parity=settings["parity"] == 2,
        num_layers=settings["num_layers"],
        num_scalar_features=CHANNELS,
        num_tensor_features=TENSOR_CHANNELS,
        scalar_embed_mlp_hidden_layers_width=CHANNELS,
        allegro_mlp_hidden_layers_width=CHANNELS,
        readout_mlp_hidden_layers_width=CHANNELS,
        radial_chemical_embed={"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 8},
        avg_num_neighbors=ours.avg_num_neighbors.item(),
        per_type_energy_scales=1.0,
        per_type_energy_shifts=0.0,
        compile_mode="eager",
    )
    modules = {name.rsplit(".", 1)[-1]: module for name, module in peer.named_modules()}
    embed, allegro = modules["type_embed"], modules["allegro"]
    with torch.no_grad():
        embed.center_embed.weight.copy_(ours.target_embedding.weight[list(ELEMENTS)])
        embed.neighbor_embed.weight.copy_(ours.source_embedding.weight[list(ELEMENTS)])
        basis = math.pi / CUTOFF * math.sqrt(2.0 / CUTOFF)  # theirs is c/π sin(kπd/c)/d
        copy_mlp(embed.basis_linear, ours.radial_linear[0].weight * basis)
        copy_mlp(modules["scalar_embed_mlp"].mlp_module, *weights_of(ours.two_body))
        copy_mlp(modules["tensor_embed"].env_embed_linear, channel_first(ours.tensor_linear[0].weight, lmax))
        copy_mlp(allegro.first_layer_env_embed_projection, weights_first(ours.scalar_linear[0].weight, lmax))
        for index, (latent, product, layer) in enumerate(zip(allegro.latents, allegro.tps, ours.layers, strict=True)):
            first, last = weights_of(layer.latent)
            more = index < len(ours.layers) - 1
            copy_mlp(latent, first, weights_first(last, lmax) if more else last)
            copy_product(product, layer.product)
        copy_mlp(modules["edge_readout"].mlp_module, ours.read_out[0].weight, model.head.mlp[0].weight[:1])
    return peer


def compare(name: str) -> list[dict[str, float]]:
    """What the peer predicts for each geometry, after it has been compared with ours."""
    settings = SETTINGS[name]
    model = potential_of(
        Allegro(CHANNELS, tensor_channels=TENSOR_CHANNELS, cutoff=CUTOFF, avg_num_neighbors=5.0, **settings)
    )
    read_out_linearly(model)
    peer = peer_of(model, settings)
    results = []
    for seed in SEEDS:
        graph = RadiusGraph(CUTOFF)(example_molecule(seed=seed))
        types = torch.tensor([ELEMENTS.index(int(z)) for z in graph.z])
        output = peer({"pos": graph.pos, "edge_index": graph.edge_index.flip(0), "atom_types": types})
        energy, forces = output["total_energy"].view(-1), output["forces"]
        prediction = model(graph)
        errors = (prediction.energy - energy).abs().item(), (prediction.forces - forces).abs().max().item()
        size = forces.norm().item()
        print(f"{name}, seed {seed}: energy {energy.item():.6f} off by {errors[0]:.1e}, ", end="")
        print(f"forces {size:.4f} by {errors[1]:.1e}")
        assert max(errors) < 1e-9
        results.append({"seed": seed, "energy": energy.item(), "force": size})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="store what the peer predicts")
    write = parser.parse_args().write
    set_global_state(allow_tf32=False)
    torch.set_default_dtype(torch.float64)
    models = {name: {"settings": settings, "predictions": compare(name)} for name, settings in SETTINGS.items()}
    if write:
        peer = f"nequip-allegro {version('nequip-allegro')}, nequip {version('nequip')}: AllegroModel"
        inputs = (
            f"testing.example_molecule(seed=seed), cutoff {CUTOFF}, {CHANNELS} channels, {TENSOR_CHANNELS} tensor "
            "channels, 5 neighbours on average, weights by testing.potential_of with a linear head; float64"
        )
        GOLDEN.write_text(json.dumps({"peer": peer, "inputs": inputs, "models": models}, indent=2) + "\n")


if __name__ == "__main__":
    main()
