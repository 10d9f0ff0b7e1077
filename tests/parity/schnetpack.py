"""SchNet and PaiNN against their authors' package, with copied weights.

Needs ``schnetpack==2.2.0`` (and what that imports) beside this package. ``python tests/parity/schnetpack.py`` compares;
with ``--write`` it stores what the peer predicts, which the everyday tests reproduce without it.
"""

# ruff: noqa: E402

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path

sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).parent]  # the peer has our name

import schnetpack
import torch
from torch import Tensor, nn

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models.painn import PaiNN
from pyg_equivariant.models.schnet import SchNet
from pyg_equivariant.nn.radial import GaussianBasis
from pyg_equivariant.potential import Potential
from pyg_equivariant.testing import example_molecule, potential_of

GOLDEN = Path(__file__).with_suffix(".json")
CHANNELS, NUM_LAYERS, CUTOFF, NUM_BASIS = 16, 3, 3.0, 16
SEEDS = (0, 1, 2, 3)


class GaussiansAndOne(GaussianBasis):
    """With the constant function, whose weights in our filters are the bias of theirs."""

    def __init__(self, num_basis: int, cutoff: float) -> None:
        super().__init__(num_basis, cutoff)
        self.num_basis += 1

    def forward(self, edge_len: Tensor) -> Tensor:
        return torch.cat([super().forward(edge_len), torch.ones_like(edge_len)[:, None]], 1)


SETTINGS = {
    "SchNet": (SchNet, GaussianBasis),
    "PaiNN": (PaiNN, GaussianBasis),
    "PaiNN, filters with a bias": (PaiNN, GaussiansAndOne),
}


def copy_layers(peer: nn.Sequential, ours: nn.Sequential) -> None:
    """Of an MLP; theirs hold the nonlinearity that follows them."""
    for theirs, layer in zip(peer, [*ours][::2], strict=True):
        theirs.load_state_dict(layer.state_dict())


def reorder(weight: Tensor, *order: int) -> Tensor:
    """The parts of all outputs, in another order."""
    parts = weight.chunk(len(order))
    return torch.cat([parts[number] for number in order])


def reorder_layer(layer: nn.Linear, *order: int) -> None:
    layer.weight.copy_(reorder(layer.weight, *order))
    if layer.bias is not None:
        layer.bias.copy_(reorder(layer.bias, *order))


def with_vectors(weight: Tensor) -> Tensor:
    """The parts s, vs and vv of all outputs, with ones for vv where there are none: they multiply zero."""
    return torch.cat([weight, torch.ones_like(weight[: 3 * CHANNELS - len(weight)])])


def copy_schnet(peer: nn.Module, ours: SchNet) -> None:
    for theirs, block in zip(peer.interactions, ours.blocks, strict=True):
        theirs.in2f.load_state_dict(block.conv.dense.state_dict())
        copy_layers(theirs.filter_network, block.conv.filter)
        copy_layers(theirs.f2out, block.mlp)


def copy_painn(peer: nn.Module, ours: PaiNN) -> None:
    """Theirs have V before U, one linear map for all filters, and weights for vectors in the first layer too."""
    filters = torch.cat([with_vectors(conv.filter.weight.T) for conv in ours.convs])
    peer.filter_net.weight.copy_(filters[:, :NUM_BASIS])
    peer.filter_net.bias.copy_(filters[:, NUM_BASIS:].sum(1))  # zero if there is no constant function
    for theirs, conv in zip(peer.interactions, ours.convs, strict=True):
        first, last = theirs.interatomic_context_net
        first.load_state_dict(conv.context[0].state_dict())
        last.weight.copy_(with_vectors(conv.context[-1].weight))
        last.bias.copy_(with_vectors(conv.context[-1].bias))
    for theirs, update in zip(peer.mixing, ours.updates, strict=True):
        theirs.mu_channel_mix.load_state_dict(update.mix.state_dict())
        reorder_layer(theirs.mu_channel_mix, 1, 0)
        copy_layers(theirs.intraatomic_context_net, update.context)
        reorder_layer(theirs.intraatomic_context_net[1], 0, 2, 1)


COPY = {SchNet: copy_schnet, PaiNN: copy_painn}


def peer_of(model: Potential) -> nn.Module:
    """The peer's model with the weights of ours."""
    ours = model.representation
    representation = getattr(schnetpack.representation, type(ours).__name__)(
        n_atom_basis=CHANNELS,
        n_interactions=NUM_LAYERS,
        radial_basis=schnetpack.nn.GaussianRBF(NUM_BASIS, CUTOFF),
        cutoff_fn=schnetpack.nn.CosineCutoff(CUTOFF),
        nuclear_embedding=nn.Embedding(*ours.embedding.weight.shape),
    )
    read_out = schnetpack.atomistic.Atomwise(n_in=CHANNELS, output_key="energy")
    peer = schnetpack.model.NeuralNetworkPotential(
        representation,
        input_modules=[schnetpack.atomistic.PairwiseDistances()],
        output_modules=[read_out, schnetpack.atomistic.Forces()],
    )
    with torch.no_grad():
        peer.double().eval()
        representation.radial_basis.offsets.copy_(ours.radial.offset)
        representation.radial_basis.widths.fill_(CUTOFF / (NUM_BASIS - 1))  # theirs are rounded to float32
        representation.embedding.load_state_dict(ours.embedding.state_dict())
        COPY[type(ours)](representation, ours)
        copy_layers(read_out.outnet, model.head.mlp)
    return peer


def compare(name: str) -> list[dict[str, float]]:
    """What the peer predicts for each geometry, after it has been compared with ours."""
    cls, radial = SETTINGS[name]
    model = potential_of(cls(CHANNELS, NUM_LAYERS, cutoff=CUTOFF, radial=radial(NUM_BASIS, CUTOFF)))
    peer = peer_of(model)
    results = []
    for seed in SEEDS:
        graph = RadiusGraph(CUTOFF)(example_molecule(seed=seed))
        source, target = graph.edge_index
        output = peer(
            {
                "_atomic_numbers": graph.z,
                "_positions": graph.pos.clone(),
                "_idx_i": target,
                "_idx_j": source,
                "_offsets": torch.zeros(len(source), 3).double(),
                "_idx_m": torch.zeros_like(graph.z),
                "_n_atoms": torch.tensor([len(graph.z)]),
            }
        )
        energy, forces = output["energy"], output["forces"]
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
    models = {name: {"predictions": compare(name)} for name in SETTINGS}
    if write:
        peer = f"schnetpack {version('schnetpack')}: SchNet and PaiNN with GaussianRBF, CosineCutoff, Atomwise"
        inputs = (
            f"testing.example_molecule(seed=seed), cutoff {CUTOFF}, {CHANNELS} channels, {NUM_LAYERS} layers, "
            f"{NUM_BASIS} Gaussians (and 1 for a bias of the filters), weights by testing.potential_of; float64"
        )
        GOLDEN.write_text(json.dumps({"peer": peer, "inputs": inputs, "models": models}, indent=2) + "\n")


if __name__ == "__main__":
    main()
