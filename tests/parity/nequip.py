"""NequIP against its authors' package, with copied weights.

Needs ``nequip==0.19.1`` (and what that imports) beside this package. ``python tests/parity/nequip.py`` compares; with
``--write`` it stores what the peer predicts, which the everyday tests reproduce without it.
"""

# ruff: noqa: E402

import argparse
import json
import math
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).parent]  # the peer has our name

import torch
from e3nn.o3 import Irrep
from nequip.model import FullNequIPGNNModel
from nequip.utils.global_state import set_global_state
from torch import Tensor, nn

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models.nequip import NequIP, NequIPConv
from pyg_equivariant.nn.gate import SILU_SCALE, TANH_SCALE
from pyg_equivariant.nn.radial import BesselBasis
from pyg_equivariant.potential import Potential
from pyg_equivariant.testing import example_molecule, potential_of

GOLDEN = Path(__file__).with_suffix(".json")
CHANNELS, CUTOFF, ELEMENTS = 8, 3.0, (1, 6, 7, 8)
NAMES = ["H", "C", "N", "O"]
SETTINGS = {
    "lmax 0": {"num_layers": 3, "lmax": 0, "parity": 1},
    "lmax 1": {"num_layers": 3, "lmax": 1, "parity": 1},
    "lmax 3": {"num_layers": 3, "lmax": 3, "parity": 1},
    "lmax 2, pseudotensors": {"num_layers": 4, "lmax": 2, "parity": 2},  # fewer layers do not read them
    "lmax 1, pseudoscalars": {"num_layers": 6, "lmax": 1, "parity": 2},
}
SEEDS = (0, 1, 2, 3)


def prepare(model: Potential) -> None:
    """Makes the head that of the peer, which has no biases, and messages so large that pseudotensors count."""
    with torch.no_grad():
        model.head.mlp[0].bias.zero_()
        model.head.mlp[2].bias.zero_()
        for layer in model.representation.layers:
            layer.filter[-1].weight.mul_(10)


def slot_of(irrep: Irrep) -> int:
    return int(irrep.p != (-1) ** irrep.l)


def copy_mlp(peer: nn.Module, *weights: Tensor) -> None:
    """Weights ``[out, in]``; theirs are transposed, and scaled when they are used."""
    layers = [layer for layer in peer.mlp if hasattr(layer, "alpha")]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.copy_(weight.T / layer.alpha)


def weights_of(mlp: nn.Sequential) -> list[Tensor]:
    return [layer.weight for layer in mlp if isinstance(layer, nn.Linear)]


def parts(peer: nn.Module) -> Iterator[tuple[Tensor, Any]]:
    """Of the weights of an e3nn module, which belong to which of its instructions."""
    sizes = [math.prod(instruction.path_shape) for instruction in peer.instructions]
    for weight, instruction in zip(peer.weight.split(sizes), peer.instructions, strict=True):
        yield weight.view(instruction.path_shape), instruction


def copy_layer(peer: nn.Module, ours: NequIPConv, scale: dict[Irrep, Any], elements: Tensor) -> dict[Irrep, Any]:
    """Copies one layer.

    Args:
        peer: Copied to.
        ours: Copied from.
        scale: How many times as large as ours the features are that the peer's layer gets, by irrep.
        elements: Matrix ``[A, Z]`` that makes one number of each element of the peer's features of the elements.

    Returns the same factors of what the layer makes: the peer's nonlinearities have constants of three digits.
    """
    conv, gate, paths = peer.conv, peer.equivariant_nonlin, ours.paths
    gates = [slot_of(irrep) * paths.lmax_out + irrep.l for _, irrep in gate.irreps_gated]  # 0 are the scalars
    columns = torch.cat([torch.arange(CHANNELS) + CHANNELS * number for number in (0, *gates)])

    for weight, instruction in parts(conv.linear_1):
        irrep = conv.linear_1.irreps_in[instruction.i_in].ir
        if slot_of(irrep) < paths.parity_in:  # our last layer reads no pseudotensors, theirs does so for nothing
            own = ours.linear_in.weight[slot_of(irrep), irrep.l]
            weight.copy_(own / instruction.path_weight / scale[irrep])

    product = conv.tp_scatter.tp
    their_paths = [
        (product.irreps_in1[path.i_in1].ir, product.irreps_in2[path.i_in2].ir, product.irreps_out[path.i_out].ir)
        for path in product.instructions
    ]
    our_paths = [
        (slot, *pair, block.l3) for block in paths.blocks for pair in block.pairs for slot in range(paths.parity_in)
    ]
    order = [our_paths.index((slot_of(left), left.l, right.l, out.l)) for left, right, out in their_paths]
    first, *others, last = weights_of(ours.filter)
    basis = math.sqrt(2.0 / CUTOFF)  # theirs is 2/c sin(kπd/c)/d
    copy_mlp(conv.edge_mlp, first / basis, *others, last.unflatten(0, (-1, CHANNELS))[order].flatten(0, 1))

    linear_out = dict(our_outcomes(ours))
    rows = [path for _, path in sorted(zip([path.i_out for path in product.instructions], their_paths, strict=True))]
    for weight, instruction in parts(conv.linear_2):
        irrep = conv.linear_2.irreps_in[instruction.i_in].ir
        sources, own = linear_out[slot_of(irrep), irrep.l]
        order = [sources.index((slot_of(left), left.l, right.l)) for left, right, out in rows if out == irrep]
        own = own.unflatten(0, (-1, CHANNELS))[order].flatten(0, 1)
        weight.copy_((own[:, columns] if irrep == Irrep("0e") else own) / instruction.path_weight)

    for weight, instruction in parts(conv.sc):
        irrep = conv.sc.irreps_in1[instruction.i_in1].ir
        own = ours.self_connection.weight[slot_of(irrep), irrep.l]
        if irrep == Irrep("0e") and ours.self_gates is not None:
            own = torch.cat([own, ours.self_gates.weight[0, 0]], 2)[..., columns]
        factor = instruction.path_weight / math.sqrt(irrep.dim)
        weight.copy_(torch.einsum("az,zcd->cad", elements, own) / factor / scale[irrep])

    constants = {Irrep("0e"): SILU_SCALE, Irrep("0o"): TANH_SCALE}
    scalars = [irrep for _, irrep in gate.irreps_scalars]
    grown = {irrep: act.cst / constants[irrep] for irrep, act in zip(scalars, gate.act_scalars.acts, strict=True)}
    return grown | {irrep: grown[Irrep("0e")] for _, irrep in gate.irreps_gated}


def our_outcomes(ours: NequIPConv) -> Iterator[tuple[tuple[int, int], tuple[list[tuple[int, int, int]], Tensor]]]:
    """Slot and degree of what the last linear map makes: of which paths, and with which weights."""
    weights = iter(ours.linear_out.weights)
    for slot in range(ours.paths.parity_out):
        for block in ours.paths.blocks:
            sources = [
                (origin, *pair) for origin, part in ours.paths.sources(block, slot) for pair in block.pairs[part]
            ]
            if sources:
                yield (slot, block.l3), (sources, next(weights))


def peer_of(model: Potential, settings: dict[str, int]) -> nn.Module:
    """The peer's model with the weights of ours."""
    ours = model.representation
    assert isinstance(ours, NequIP)
    num_layers, lmax = settings["num_layers"], settings["lmax"]
    signs = (1, -1) if settings["parity"] == 2 else (1,)
    hidden = "+".join(f"{CHANNELS}x{Irrep(k, sign * (-1) ** k)}" for k in range(lmax + 1) for sign in signs)
    peer = FullNequIPGNNModel(
        seed=0,
        model_dtype="float64",
        r_max=CUTOFF,
        type_names=NAMES,
        radial_mlp_depth=[2] * num_layers,
        radial_mlp_width=[64] * num_layers,
        feature_irreps_hidden=[hidden] * (num_layers - 1) + [f"{CHANNELS}x0e"],
        irreps_edge_sh=lmax,
        type_embed_num_features=CHANNELS,
        readout_mlp_hidden_layers_depth=1,
        readout_mlp_hidden_layers_width=CHANNELS // 2,
        num_bessels=8,
        polynomial_cutoff_p=6,
        avg_num_neighbors=ours.layers[0].avg_num_neighbors.item(),
        learnable_shift=True,  # a self-connection in the first layer, too
        per_type_energy_scales=1.0,
        per_type_energy_shifts=0.0,
        compile_mode="eager",
    )
    modules = {name.rsplit(".", 1)[-1]: module for name, module in peer.named_modules()}
    with torch.no_grad():
        embedding = ours.embedding.weight[list(ELEMENTS)]
        modules["type_embed"].embed_module.weight.copy_(embedding)
        elements, scale = torch.linalg.pinv(embedding), {Irrep("0e"): 1.0}
        for number, layer in enumerate(ours.layers):
            scale = copy_layer(modules[f"layer{number}_convnet"], layer, scale, elements)
        first, last = weights_of(model.head.mlp)
        copy_mlp(modules["per_atom_energy_readout"].mlp_module, first / scale[Irrep("0e")], last)
    return peer


def compare(name: str) -> list[dict[str, float]]:
    """What the peer predicts for each geometry, after it has been compared with ours."""
    settings = SETTINGS[name]
    ours = NequIP(
        CHANNELS,
        **settings,
        lmax_out=0,
        cutoff=CUTOFF,
        radial=BesselBasis(8, CUTOFF),
        elements=ELEMENTS,
        avg_num_neighbors=5.0,
    )
    model = potential_of(ours)
    prepare(model)
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
        assert max(errors) < 1e-10
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
        peer = f"nequip {version('nequip')}, e3nn {version('e3nn')}: FullNequIPGNNModel with learnable_shift=True"
        inputs = (
            f"testing.example_molecule(seed=seed), cutoff {CUTOFF}, BesselBasis(8, {CUTOFF}), {CHANNELS} channels, "
            f"elements {ELEMENTS}, 5 neighbours on average, lmax_out=0, weights by testing.potential_of with no biases "
            "in the head and the last matrices of the filters times 10; float64"
        )
        GOLDEN.write_text(json.dumps({"peer": peer, "inputs": inputs, "models": models}, indent=2) + "\n")


if __name__ == "__main__":
    main()
