"""TensorNet and the equivariant transformer against their authors' package, with copied weights.

Needs ``torchmd-net==3.1.0`` (with ``warp-lang`` and ``h5py``). ``python tests/parity/torchmdnet.py`` compares; with
``--write`` it stores what the peer predicts, which the everyday tests reproduce without it.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.pop(0)  # this folder, where this file hides the package of the same name

import torch
from torch import Tensor, nn
from torchmdnet.models import tensornet
from torchmdnet.models.output_modules import Scalar
from torchmdnet.models.torchmd_et import TorchMD_ET

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models.equivariant_transformer import EquivariantTransformer
from pyg_equivariant.models.tensornet import TensorNet
from pyg_equivariant.testing import example_molecule, potential_of

GOLDEN = Path(__file__).with_suffix(".json")
SETTINGS = {
    "EquivariantTransformer": {"channels": 16, "num_layers": 3, "num_heads": 4, "cutoff": 3.0},
    "TensorNet": {"channels": 16, "num_layers": 3, "cutoff": 3.0},
}
OURS = {"EquivariantTransformer": EquivariantTransformer, "TensorNet": TensorNet}
SEEDS = (0, 1, 2, 3)


def copy(linear: nn.Linear, weight: Tensor, bias: Tensor | None = None) -> None:
    linear.weight.data.copy_(weight)
    if bias is not None:
        linear.bias.data.copy_(bias)


def copy_same(peer: nn.Module, ours: nn.Module) -> None:
    peer.load_state_dict(ours.state_dict())


def copy_radial(peer: nn.Module, ours: nn.Module) -> None:
    peer.means.copy_(ours.mean)
    peer.betas.copy_(ours.beta)


def peer_transformer(ours: EquivariantTransformer, settings: dict) -> nn.Module:
    heads = settings["num_heads"]
    peer = TorchMD_ET(
        hidden_channels=settings["channels"],
        num_layers=settings["num_layers"],
        num_heads=heads,
        num_rbf=ours.radial.num_basis,
        trainable_rbf=False,
        cutoff_upper=settings["cutoff"],
        max_z=len(ours.embedding.weight),
        vector_cutoff=True,
        dtype=torch.float64,
    )

    def by_head(parameter: Tensor) -> Tensor:  # ours: part, head, channel; theirs: head, part, channel
        return parameter.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)

    copy_radial(peer.distance_expansion, ours.radial)
    copy_same(peer.embedding, ours.embedding)
    copy_same(peer.neighbor_embedding.embedding, ours.neighbors.embedding)
    filter_weight = ours.neighbors.filter.weight
    copy(peer.neighbor_embedding.distance_proj, filter_weight[:, :-1], filter_weight[:, -1])
    copy_same(peer.neighbor_embedding.combine, ours.neighbors.combine)
    for layer, conv in zip(peer.attention_layers, ours.convs, strict=True):
        copy_same(layer.layernorm, conv.norm)
        copy_same(layer.q_proj, conv.query)
        copy_same(layer.k_proj, conv.key)
        copy_same(layer.dk_proj, conv.filter.key)
        copy_same(layer.vec_proj, conv.mix)
        copy_same(layer.o_proj, conv.out)
        copy(layer.v_proj, by_head(conv.value.weight), by_head(conv.value.bias))
        copy(layer.dv_proj, by_head(conv.filter.value.weight), by_head(conv.filter.value.bias))
    copy_same(peer.out_norm, ours.norm)
    return peer


def use_plain_torch() -> None:
    """The kernels of the peer's TensorNet have constants in single precision (1e-8 off); its own PyTorch has not."""
    tensornet.OPT = False
    for name in ("compose_tensor", "decompose_tensor", "tensor_matmul_o3", "tensor_matmul_so3"):
        setattr(tensornet, name, getattr(tensornet, f"_{name}"))


def peer_tensornet(ours: TensorNet, settings: dict) -> nn.Module:
    use_plain_torch()
    peer = tensornet.TensorNet(
        hidden_channels=settings["channels"],
        num_layers=settings["num_layers"],
        num_rbf=ours.radial.num_basis,
        cutoff_upper=settings["cutoff"],
        max_z=len(ours.embedding.embedding.weight),
        static_shapes=False,
        dtype=torch.float64,
    ).double()
    copy_radial(peer.distance_expansion, ours.radial)
    theirs, embedding = peer.tensor_embedding, ours.embedding
    copy_same(theirs.emb, embedding.embedding)
    copy_same(theirs.emb2, embedding.pair)
    copy_same(theirs.init_norm, embedding.norm)
    for degree, weight in enumerate(embedding.filter.weight.chunk(3)):
        copy(getattr(theirs, f"distance_proj{degree + 1}"), weight[:, :-1], weight[:, -1])
        copy(theirs.linears_tensor[degree], embedding.linear.weight[0, degree].T)
    for number, linear in enumerate(theirs.linears_scalar):
        copy_same(linear, embedding.scale[2 * number])
    for layer, conv in zip(peer.layers, ours.convs, strict=True):
        for number, linear in enumerate(layer.linears_scalar):
            copy_same(linear, conv.filter[2 * number])
        for degree in range(3):
            copy(layer.linears_tensor[degree], conv.linear_in.weight[0, degree].T)
            copy(layer.linears_tensor[3 + degree], conv.linear_out.weight[0, degree].T)
    copy_same(peer.linear, ours.out)
    copy_same(peer.out_norm, ours.norm)
    return peer


PEERS = {"EquivariantTransformer": peer_transformer, "TensorNet": peer_tensornet}


def compare(name: str) -> list[dict[str, float]]:
    """What the peer predicts for each geometry, after it has been compared with ours."""
    settings = SETTINGS[name]
    ours = potential_of(OURS[name](**settings))
    with torch.no_grad():
        peer = PEERS[name](ours.representation, settings)
        head = Scalar(settings["channels"], dtype=torch.float64)
        copy_same(head.output_network.layers, ours.head.mlp)
    results = []
    for seed in SEEDS:
        data = example_molecule(seed=seed)
        pos = data.pos.clone().requires_grad_()
        batch = torch.zeros_like(data.z)
        energy = head.pre_reduce(*peer(data.z, pos, batch)).sum()
        forces = -torch.autograd.grad(energy, pos)[0]
        prediction = ours(RadiusGraph(settings["cutoff"])(data))
        errors = (prediction.energy - energy).abs().item(), (prediction.forces - forces).abs().max().item()
        size = forces.norm().item()
        print(f"{name}, seed {seed}: energy {energy:.6f} off by {errors[0]:.1e}, forces {size:.4f} by {errors[1]:.1e}")
        assert max(errors) < 1e-10
        results.append({"seed": seed, "energy": energy.item(), "force": size})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="store what the peer predicts")
    write = parser.parse_args().write
    models = {name: {"settings": SETTINGS[name], "predictions": compare(name)} for name in PEERS}
    if write:
        inputs = "testing.example_molecule(seed=seed), weights by testing.potential_of, copied to the peer; float64"
        peer = (
            f"torchmd-net {version('torchmd-net')}, ET with vector_cutoff, TensorNet O(3), both with the output Scalar"
        )
        GOLDEN.write_text(json.dumps({"peer": peer, "inputs": inputs, "models": models}, indent=2) + "\n")


if __name__ == "__main__":
    main()
