"""Equiformer against EquiformerV2 of fairchem-core, with copied weights.

Needs the files of ``fairchem-core==1.10.0`` beside this package, but none of its many dependencies: only the modules of
EquiformerV2 are imported. ``python tests/parity/equiformer_v2.py`` compares; with ``--write`` it stores what the peer
predicts, which the everyday tests reproduce without it.

The peer takes its edge frames for constants and draws them at random, so its forces by autograd are wrong and those
here are differences of its energies. It has no envelope, and its grid has 18 × 18 points by default: both sides get
an envelope of one, and grids so fine that the choice of points does not matter.
"""

import argparse
import importlib
import importlib.util
import json
import sys
import types
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models.equiformer import Equiformer, RadialFunction
from pyg_equivariant.nn.cutoff import Cutoff
from pyg_equivariant.nn.embedding import MAX_Z
from pyg_equivariant.nn.linear import DegreeLinear
from pyg_equivariant.nn.radial import GaussianBasis
from pyg_equivariant.nn.s2 import GridSiLU
from pyg_equivariant.nn.so2 import SO2Linear
from pyg_equivariant.testing import example_molecule, fill_by_formula

GOLDEN = Path(__file__).with_suffix(".json")
SETTINGS = {
    "lmax 2": {"channels": 8, "num_layers": 2, "lmax": 2, "num_heads": 2, "hidden": 6, "cutoff": 3.0},
    "lmax 3": {"channels": 4, "num_layers": 1, "lmax": 3, "num_heads": 4, "hidden": 5, "cutoff": 4.0},
}
NUM_BASIS, POINTS, AVG_NUM_NEIGHBORS, SEEDS = 7, 40, 3.0, (0, 1, 2)


class Always(Cutoff):
    """One up to the cutoff."""

    def envelope(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)


def import_peer() -> types.SimpleNamespace:
    """The modules of EquiformerV2, without running what the packages around them import."""
    folder = Path(next(iter(importlib.util.find_spec("fairchem").submodule_search_locations))) / "core"
    for name in ("", "common", "models", "models.equiformer_v2"):
        package = types.ModuleType(f"fairchem.core.{name}".rstrip("."))
        package.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[package.__name__] = package
    sys.modules["fairchem.core.common.gp_utils"] = types.SimpleNamespace(initialized=lambda: False)
    sys.modules["fairchem.core.common"].gp_utils = sys.modules["fairchem.core.common.gp_utils"]
    names = ("edge_rot_mat", "input_block", "layer_norm", "so3", "transformer_block")
    return types.SimpleNamespace(
        **{name: importlib.import_module(f"fairchem.core.models.equiformer_v2.{name}") for name in names}
    )


def ours_of(settings: dict[str, float]) -> Equiformer:
    model = Equiformer(
        **settings,
        radial=GaussianBasis(NUM_BASIS, settings["cutoff"]),
        envelope=Always(settings["cutoff"]),
        activation=GridSiLU(POINTS),
        avg_num_neighbors=AVG_NUM_NEIGHBORS,
    ).double()
    fill_by_formula(model)
    return model


class Peer(nn.Module):
    """Embedding, blocks and norm of the peer, one after the other as in its ``EquiformerV2Backbone.forward``."""

    def __init__(self, code: types.SimpleNamespace, ours: Equiformer, settings: dict[str, int]) -> None:
        super().__init__()
        self.code, self.radial = code, ours.radial
        lmax, channels, hidden, heads = (settings[name] for name in ("lmax", "channels", "hidden", "num_heads"))
        self.degrees = [lmax]
        self.rotations = nn.ModuleList([code.so3.SO3_Rotation(lmax)])
        mapping = code.so3.CoefficientMappingModule([lmax], [lmax])
        grid = code.so3.SO3_Grid(lmax, lmax, resolution=2 * POINTS, normalization="component")
        grids = [[grid] * (lmax + 1)] * (lmax + 1)  # that of lmax is the only one in use
        common = (self.degrees, self.degrees, self.rotations, mapping)
        sizes = [NUM_BASIS, hidden, hidden]
        self.embedding = nn.Embedding(MAX_Z + 1, channels)
        self.edge_embedding = code.input_block.EdgeDegreeEmbedding(
            channels, *common, MAX_Z + 1, sizes, True, rescale_factor=AVG_NUM_NEIGHBORS
        )
        self.blocks = nn.ModuleList(
            code.transformer_block.TransBlockV2(
                channels, channels // 2, heads, hidden, channels // heads, channels, channels, *common, grids,
                MAX_Z + 1, sizes, use_grid_mlp=True, norm_type="layer_norm_sh",
            )
            for _ in range(settings["num_layers"])
        )  # fmt: skip
        self.norm = code.layer_norm.get_normalization_layer("layer_norm_sh", lmax=lmax, num_channels=channels)

    def forward(self, z: Tensor, edge_index: Tensor, edge_vec: Tensor) -> Tensor:
        self.rotations[0].set_wigner(self.code.edge_rot_mat.init_edge_rot_mat(edge_vec))
        edge_rbf = self.radial(edge_vec.norm(dim=1))
        x = self.code.so3.SO3_Embedding(len(z), self.degrees, self.embedding.embedding_dim, z.device, edge_vec.dtype)
        x.embedding[:, 0] = self.embedding(z)
        x.embedding = x.embedding + self.edge_embedding(z, edge_rbf, edge_index, len(z)).embedding
        for block in self.blocks:
            x = block(x, z, edge_rbf, edge_index, batch=None)
        return self.norm(x.embedding)


def copy_radial(peer: nn.Module, ours: RadialFunction, hidden: int) -> None:
    """Theirs has vectors of the elements and a matrix, ours what comes of both."""
    peer.source_embedding.weight.copy_(ours.source.weight)
    peer.target_embedding.weight.copy_(ours.target.weight)
    net = peer.rad_func.net
    net[0].weight.copy_(torch.cat([ours.linear_in.weight, torch.eye(hidden), torch.eye(hidden)], dim=1))
    net[0].bias.copy_(ours.linear_in.bias)
    for theirs, layer in zip([*net][1:], ours.rest, strict=True):
        theirs.load_state_dict(layer.state_dict())


def copy_so2(peer: nn.Module, ours: SO2Linear) -> None:
    """Theirs has the further scalars first, and real and imaginary parts on the outcome's axis."""
    for theirs, mine in ((peer.fc_m0.weight, ours.weight.T), (peer.fc_m0.bias, ours.bias)):
        theirs.copy_(mine.roll(ours.num_scalars, 0))
    for theirs, mine in zip(peer.so2_m_conv, ours.weights, strict=True):
        theirs.fc.weight.copy_(torch.cat([mine[0].T, mine[1].T]))


def copy_linear(peer: nn.Module, ours: DegreeLinear) -> None:
    peer.weight.copy_(ours.weight[0].transpose(1, 2))
    peer.bias.copy_(ours.bias)


def copy_weights(peer: Peer, ours: Equiformer, hidden: int) -> None:
    peer.embedding.weight.copy_(ours.embedding.weight)
    copy_radial(peer.edge_embedding, ours.edge_embedding.radial, hidden)
    norms = iter(ours.norms)
    for block, conv, feed_forward in zip(peer.blocks, ours.convs, ours.feed_forwards, strict=True):
        for theirs in (block.norm_1, block.norm_2):
            mine = next(norms)
            theirs.norm_l0.load_state_dict(mine.scalar_norm.state_dict())
            theirs.affine_weight.copy_(mine.weight)
        attention = block.ga
        attention.source_embedding.weight.copy_(conv.radial.source.weight)
        attention.rad_func = attention.so2_conv_1.rad_func
        copy_radial(attention, conv.radial, hidden)
        copy_so2(attention.so2_conv_1, conv.so2_in)
        copy_so2(attention.so2_conv_2, conv.so2_out)
        attention.alpha_norm.load_state_dict(conv.score_norm.state_dict())
        attention.alpha_dot.copy_(conv.score)
        copy_linear(attention.proj, conv.linear)
        copy_linear(block.ffn.so3_linear_1, feed_forward.linear_in)
        block.ffn.scalar_mlp[0].load_state_dict(feed_forward.scalar.state_dict())
        for theirs, mine in zip([*block.ffn.grid_mlp][::2], feed_forward.activation.linears, strict=True):
            theirs.load_state_dict(mine.state_dict())
        copy_linear(block.ffn.so3_linear_2, feed_forward.linear_out)
    last = next(norms)
    peer.norm.norm_l0.load_state_dict(last.scalar_norm.state_dict())
    peer.norm.affine_weight.copy_(last.weight)


def compare(code: types.SimpleNamespace, settings: dict[str, int]) -> list[dict[str, float]]:
    """Features and the gradient of their sum over all scalars, for random molecules."""
    ours = ours_of(settings)
    results = []
    with torch.no_grad():
        peer = Peer(code, ours, settings)
        copy_weights(peer, ours, settings["hidden"])
    for seed in SEEDS:
        data = RadiusGraph(settings["cutoff"])(example_molecule(5, seed=seed))
        source, target = data.edge_index
        pos = data.pos.clone().requires_grad_()
        x = ours(data.z, data.edge_index, pos[source] - pos[target])[:, 0]
        forces = -torch.autograd.grad(x[:, 0].sum(), pos)[0]
        with torch.no_grad():

            def features(pos: Tensor) -> Tensor:
                return peer(data.z, data.edge_index, pos[source] - pos[target])  # noqa: B023

            expected, step = features(data.pos), 1e-4
            differences = torch.zeros_like(data.pos)
            for index in range(data.pos.numel()):
                move = torch.zeros(data.pos.numel()).index_fill_(0, torch.tensor(index), step).view_as(data.pos)
                ends = [features(data.pos + sign * move)[:, 0].sum() for sign in (1, -1)]
                differences.view(-1)[index] = -(ends[0] - ends[1]) / (2 * step)
        errors = (x - expected).abs().max().item(), (forces - differences).abs().max().item()
        energy, size, force = expected[:, 0].sum().item(), expected.norm().item(), differences.norm().item()
        print(f"seed {seed}: features {size:.4f} off by {errors[0]:.1e}, gradient {force:.4f} by {errors[1]:.1e}")
        assert errors[0] < 1e-9
        assert errors[1] < 1e-5
        results.append({"seed": seed, "energy": energy, "features": size, "force": force})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="store what the peer predicts")
    write = parser.parse_args().write
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    code = import_peer()
    models = {
        name: {"settings": settings, "predictions": compare(code, settings)} for name, settings in SETTINGS.items()
    }
    if write:
        peer = (
            f"fairchem-core {version('fairchem-core')}: EquiformerV2 with use_grid_mlp, layer_norm_sh, "
            f"grid_resolution {2 * POINTS}"
        )
        inputs = (
            f"testing.example_molecule(5, seed=seed), {NUM_BASIS} Gaussians, envelope one, GridSiLU({POINTS}), "
            f"{AVG_NUM_NEIGHBORS} neighbours on average, weights by testing.fill_by_formula; energy: the sum of all "
            "scalar features, force: the norm of its gradient by differences of 1e-4 Å; float64"
        )
        GOLDEN.write_text(json.dumps({"peer": peer, "inputs": inputs, "models": models}, indent=2) + "\n")


if __name__ == "__main__":
    main()
