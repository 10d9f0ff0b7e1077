"""EGNN against the package egnn-pytorch, which its authors did not write, with copied weights.

Needs ``egnn-pytorch==0.2.8`` and ``einops`` beside this package. ``python tests/parity/egnn.py`` compares; with
``--write`` it stores what the peer predicts, which the everyday tests reproduce without it.

The peer has neither envelopes nor read-outs: ours are complete graphs or edges without an envelope, and our head serves
both. Its hidden layers are wider, and those units that ours have not get no weights. Its dense layer, the only one that
moves the atoms by gated messages, lets each atom send to itself, so ours gets these edges too; its sparse layer does
not, and is what the frozen network is compared with.
"""

import argparse
import json
import math
from importlib.metadata import version
from pathlib import Path

import egnn_pytorch
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models.egnn import EGNN, EGNNConv, FrozenEGNN, FrozenEGNNConv
from pyg_equivariant.testing import example_molecule, potential_of

GOLDEN = Path(__file__).with_suffix(".json")
SETTINGS = {
    "EGNN": {"channels": 8, "num_layers": 3, "avg_num_neighbors": 8.0},
    "FrozenEGNN": {"channels": 8, "num_layers": 3},
}
RADIUS = 3.0  # of the edges of the frozen network
SEEDS = (0, 1, 2, 3)


def copy_mlp(peer: nn.Module, ours: nn.Module, scale: float = 1.0) -> None:
    """Fills the first units of hidden layers that are wider than ours; the last layer is multiplied by ``scale``."""
    theirs, mine = ([layer for layer in mlp.modules() if isinstance(layer, nn.Linear)] for mlp in (peer, ours))
    for target, source in zip(theirs, mine, strict=True):
        rows, columns = source.weight.shape
        factor = scale if source is mine[-1] else 1.0
        target.weight.zero_()
        target.bias.zero_()
        target.weight[:rows, :columns] = factor * source.weight
        if source.bias is not None:
            target.bias[:rows] = factor * source.bias


def dense_layer(ours: EGNNConv) -> nn.Module:
    channels = ours.edge_gate[0].in_features
    peer = egnn_pytorch.EGNN(channels, m_dim=channels, soft_edges=True)
    copy_mlp(peer.edge_mlp, ours.edge_mlp)
    copy_mlp(peer.edge_gate, ours.edge_gate)
    copy_mlp(peer.coors_mlp, ours.coordinate_mlp, 1 / ours.avg_num_neighbors.item())
    copy_mlp(peer.node_mlp, ours.node_mlp)
    return peer


def sparse_layer(ours: FrozenEGNNConv) -> nn.Module:
    channels = ours.edge_gate[0].in_features
    peer = egnn_pytorch.EGNN_Sparse(channels, m_dim=channels, soft_edge=True, update_coors=False)
    copy_mlp(peer.edge_mlp, ours.edge_mlp)
    copy_mlp(peer.edge_weight, ours.edge_gate)
    copy_mlp(peer.node_mlp, ours.node_mlp)
    return peer


def with_edges(data: Data, name: str) -> Data:
    if name == "FrozenEGNN":
        return RadiusGraph(RADIUS)(data)
    atoms = torch.arange(len(data.z))
    return Data(z=data.z, pos=data.pos, edge_index=torch.cartesian_prod(atoms, atoms).T)


def peer_features(ours: EGNN | FrozenEGNN, graph: Data, pos: Tensor) -> Tensor:
    """Scalars of the atoms, by the peer's layers with the weights of ours."""
    x: Tensor = ours.embedding(graph.z)
    with torch.no_grad():
        layers = [dense_layer(conv) if isinstance(ours, EGNN) else sparse_layer(conv) for conv in ours.convs]
    for layer in layers:
        if isinstance(ours, EGNN):
            x, pos = (part.squeeze(0) for part in layer(x.unsqueeze(0), pos.unsqueeze(0)))
        else:
            pos, x = layer(torch.cat([pos, x], 1), graph.edge_index).split([3, x.shape[1]], 1)
    return x


def compare(name: str) -> list[dict[str, float]]:
    """What the peer predicts for each geometry, after it has been compared with ours."""
    model = potential_of({"EGNN": EGNN, "FrozenEGNN": FrozenEGNN}[name](**SETTINGS[name], cutoff=math.inf))
    results = []
    for seed in SEEDS:
        graph = with_edges(example_molecule(seed=seed), name)
        pos = graph.pos.clone().requires_grad_()
        energy = model.head.mlp(peer_features(model.representation, graph, pos)).sum()
        forces = -torch.autograd.grad(energy, pos)[0]
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
    torch.set_default_dtype(torch.float64)
    models = {name: {"settings": SETTINGS[name], "predictions": compare(name)} for name in SETTINGS}
    if write:
        peer = f"egnn-pytorch {version('egnn-pytorch')}: EGNN (dense) and EGNN_Sparse, with soft edges"
        inputs = (
            "testing.example_molecule(seed=seed), no cutoff; EGNN on all pairs of atoms, each with itself too, "
            f"FrozenEGNN on pairs within {RADIUS}; weights by testing.potential_of, copied to the peer; float64"
        )
        GOLDEN.write_text(json.dumps({"peer": peer, "inputs": inputs, "models": models}, indent=2) + "\n")


if __name__ == "__main__":
    main()
