"""SE(3)-Transformer against se3-transformer-pytorch, which its authors did not write, with copied weights.

Needs ``se3-transformer-pytorch==0.9.0`` and ``einops`` beside this package. ``python tests/parity/se3_transformer.py``
compares; with ``--write`` it stores what the peer predicts, which the everyday tests reproduce without it.

The peer runs as a whole: from atomic numbers and positions by its own choice of neighbours to features of all degrees,
of which our head makes energies. What is compared:

- The kernels, with all couplings: each is ours times ±1/√(4π (2l + 1)), l the degree of the outcome, in another basis
  of the degrees. Both signs and bases are taken from the peer, the size and that nothing else remains is asserted.
- Attention with several heads over neighbours whose numbers differ, of queries, keys and values of all degrees; the
  sums over kernels and channels; residuals; self-interactions.
- In the first and the last layer a plain convolution, the mean over the neighbours: ours without queries.

What is not, and how both sides were made alike:

- The peer has a softmax for each degree; ours, as the paper's, is one of the scores of all degrees. Ours gets some
  heads for each degree, which see and feed no other degree: that the scores of degrees add is not compared.
- The peer's radial functions are MLPs of the distance with two layer norms; it gets ours, and for each pair of channels
  the combination of them that our matrices before and after the kernels make. It has no envelope, nor do ours get one.
- The nonlinearities of lengths differ and stand elsewhere: both sides get none. The peer's feed-forward blocks, which
  ours has not, add nothing; where it has a residual, our self-interaction is the identity.

The peer rounds its couplings to float32, which here it does not, for more digits; its forces by autograd lack what the
harmonics contribute, so those here are differences of its energies. No atom is without neighbours: the peer would give
it the mean over all atoms beyond the cutoff.
"""

import argparse
import functools
import json
import math
import os
from importlib.metadata import version
from pathlib import Path
from unittest import mock

os.environ["CLEAR_CACHE"] = "1"  # else the peer keeps its couplings in the user's home

import se3_transformer_pytorch.basis as peer_basis
import torch
from se3_transformer_pytorch.se3_transformer_pytorch import AttentionSE3, ConvSE3, NormSE3
from se3_transformer_pytorch.se3_transformer_pytorch import SE3Transformer as Peer
from torch import Tensor, nn

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models.se3_transformer import SE3Transformer, SE3TransformerConv
from pyg_equivariant.nn.cutoff import Cutoff
from pyg_equivariant.nn.radial import GaussianBasis, RadialBasis
from pyg_equivariant.o3 import coupling, degree_slices, spherical_harmonics
from pyg_equivariant.potential import Potential
from pyg_equivariant.testing import example_molecule, potential_of

GOLDEN = Path(__file__).with_suffix(".json")
SETTINGS = {
    "lmax 0": {"channels": 8, "num_layers": 4, "lmax": 0, "num_heads": 2},
    "lmax 1": {"channels": 8, "num_layers": 4, "lmax": 1, "num_heads": 4},
    "lmax 2": {"channels": 12, "num_layers": 3, "lmax": 2, "num_heads": 6},
    "lmax 3": {"channels": 8, "num_layers": 3, "lmax": 3, "num_heads": 8},
}
NUM_BASIS, CUTOFF, SEEDS = 8, 3.5, (0, 1, 2, 3)  # Gaussians at places that float32 knows


class Always(Cutoff):
    """One up to the cutoff."""

    def envelope(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)


def own_channels(channels: int, lmax: int, degree: int) -> slice:
    """Those of the heads that see and feed one degree."""
    width = channels // (lmax + 1)
    return slice(degree * width, (degree + 1) * width)


def prepare(ours: SE3Transformer) -> None:
    """Makes ours what the peer can be, see above, and messages and scores so large that they count."""
    ours.nonlinearities = nn.ModuleList(nn.Identity() for _ in ours.nonlinearities)
    with torch.no_grad():
        for conv in ours.convs:
            conv.filter.mlp[-1].weight.mul_(3)
            conv.query.weight.mul_(30)
        for conv in (ours.convs[0], ours.convs[-1]):
            conv.query.weight.zero_()
        for conv in ours.convs[1:-1]:
            conv.self_interaction.linear.weight.copy_(torch.eye(ours.channels))
            for degree, mixing in enumerate(conv.linear_out.weights):
                others = torch.ones(ours.channels, dtype=torch.bool)
                others[own_channels(ours.channels, ours.lmax, degree)] = False
                conv.query.weight[0, degree, :, others] = 0.0
                mixing.unflatten(0, (-1, ours.channels))[:, others] = 0.0


class Hidden(nn.Module):
    """Our radial functions up to the last layer, of the peer's distances ``[..., 1]``."""

    def __init__(self, radial: RadialBasis, mlp: nn.Sequential) -> None:
        super().__init__()
        self.radial, self.mlp = radial, nn.Sequential(*list(mlp)[:-1])

    def forward(self, distance: Tensor) -> Tensor:
        y: Tensor = self.mlp(self.radial(distance.squeeze(-1)))
        return y


def bases(lmax: int) -> list[Tensor]:
    """Orthogonal matrices that take our features of each degree to the peer's."""
    r = torch.randn(99, 3, generator=torch.Generator().manual_seed(0))
    theirs = peer_basis.precompute_sh(peer_basis.get_spherical_from_cartesian(r), lmax)
    ours = spherical_harmonics(r, lmax)
    matrices = []
    for degree, rows in enumerate(degree_slices(lmax)):
        matrix = torch.linalg.lstsq(ours[:, rows], math.sqrt(4 * math.pi) * theirs[degree]).solution.T
        assert (matrix @ matrix.T - torch.eye(len(matrix))).abs().max() < 1e-10
        matrices.append(matrix)
    return matrices


@functools.cache
def factors(lmax: int) -> dict[tuple[int, int, int], float]:
    """How many times as large as ours the peer's kernels are, by degrees of features, harmonics and outcome."""
    r = torch.randn(99, 3, generator=torch.Generator().manual_seed(0))
    kernels, matrices = peer_basis.get_basis(-r, lmax), bases(lmax)  # their edges point the other way
    sh, rows = spherical_harmonics(r, 2 * lmax), degree_slices(2 * lmax)
    found = {}
    for l1 in range(lmax + 1):
        for l3 in range(lmax + 1):
            for index, l2 in enumerate(range(abs(l1 - l3), l1 + l3 + 1)):
                ours = torch.einsum("abc,eb->eca", coupling(l1, l2, l3), sh[:, rows[l2]])
                ours = matrices[l3] @ ours @ matrices[l1].T
                theirs = kernels[f"{l1},{l3}"][:, 0, :, 0, :, index]
                factor = ((theirs * ours).sum() / ours.square().sum()).item()
                assert (theirs - factor * ours).abs().max() < 1e-10
                assert abs(abs(factor) * math.sqrt(4 * math.pi * (2 * l3 + 1)) - 1) < 1e-10
                found[l1, l2, l3] = factor
    return found


def copy_kernels(
    peer: ConvSE3, ours: SE3TransformerConv, radial: RadialBasis, kind: str, num_heads: int | None = None
) -> None:
    """Gives the peer's convolution our radial functions, times our matrices before and after.

    Args:
        peer: Copied to.
        ours: Copied from.
        radial: The basis of our radial functions.
        kind: "keys" or "values". For values, the peer's channels are what those of ours contribute to each outcome.
        num_heads: The peer's heads, each degree of which has channels of its own in ours; all channels if not given.
    """
    paths, channels = ours.product.paths, ours.linear_out.out_channels
    half, heads = int(kind == "values"), num_heads or 1
    last = iter(ours.filter.mlp[-1].weight.unflatten(0, (paths.num_paths, 2, channels))[:, half])
    before = ours.key_value.weight[0].unflatten(2, (2, channels))[:, :, half]
    scale = factors(max(paths.lmax_in, paths.lmax_out))
    kernels = {}
    for block, mixing in zip(paths.blocks, ours.linear_out.weights, strict=True):
        own = slice(None) if num_heads is None else own_channels(channels, paths.lmax_out, block.l3)
        for (l1, l2), after in zip(block.pairs, mixing.unflatten(0, (-1, channels)), strict=True):
            # input i, our channels c (k of each head h), hidden unit u, outcome o
            kernel = torch.einsum("ic,cu->cui", before[l1][:, own], next(last)[own]).unflatten(0, (heads, -1))
            if kind == "values":
                kernel = torch.einsum("hkui,hko->houi", kernel, after[own].unflatten(0, (heads, -1)))
            padded = kernel.new_zeros(heads, channels, *kernel.shape[2:])
            padded[:, : kernel.shape[1]] = kernel
            kernels[l1, l2, block.l3] = padded.flatten(0, 1) / scale[l1, l2, block.l3]
    for l1 in range(paths.lmax_in + 1):
        for l3 in range(paths.lmax_out + 1):
            parts = [kernels[l1, l2, l3] for l2 in range(abs(l1 - l3), l1 + l3 + 1)]
            weight = torch.stack(parts).permute(1, 3, 0, 2).flatten(0, 2)
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight.copy_(weight)
            peer.kernel_unary[f"({l1},{l3})"].rp.net = nn.Sequential(Hidden(radial, ours.filter.mlp), layer)


def copy_convolution(peer: ConvSE3, ours: SE3TransformerConv, radial: RadialBasis) -> None:
    copy_kernels(peer, ours, radial, "values")
    for degree, weight in enumerate(ours.self_interaction.linear.weight[0]):
        peer.self_interact.weights[str(degree)].copy_(weight)


def copy_attention(peer: AttentionSE3, ours: SE3TransformerConv, radial: RadialBasis) -> None:
    num_heads, channels = peer.heads, ours.linear_out.out_channels
    copy_kernels(peer.to_k, ours, radial, "keys", num_heads)
    copy_kernels(peer.to_v, ours, radial, "values", num_heads)
    for degree, matrix in enumerate(ours.query.weight[0]):
        own = matrix[:, own_channels(channels, ours.lmax_key, degree)].unflatten(1, (num_heads, -1))
        query = matrix.new_zeros(channels, num_heads, channels)
        query[:, :, : own.shape[2]] = own * ours.scale / peer.scale
        peer.to_q.weights[str(degree)].copy_(query.flatten(1))
        peer.to_out.weights[str(degree)].copy_(torch.eye(channels).repeat(num_heads, 1))


def peer_of(ours: SE3Transformer) -> Peer:
    """The peer's model with the weights of ours."""
    peer = Peer(
        dim=ours.channels,
        dim_head=ours.channels,
        heads=ours.convs[0].num_heads // (ours.lmax + 1),
        depth=len(ours.convs) - 2,
        num_degrees=ours.lmax + 1,
        output_degrees=ours.lmax + 1,
        num_tokens=len(ours.embedding.weight),
        valid_radius=CUTOFF,
        attend_self=False,
    )
    first, *others, last = ours.convs
    with torch.no_grad():
        peer.token_emb.weight.copy_(ours.embedding.weight)
        copy_convolution(peer.conv_in, first, ours.radial)
        for (attention, feed_forward), conv in zip(peer.net.blocks, others, strict=True):
            copy_attention(attention.attn, conv, ours.radial)
            for weight in feed_forward.feedforward.project_out.weights.values():
                weight.zero_()
        copy_convolution(peer.conv_out, last, ours.radial)
    for module in peer.modules():
        if isinstance(module, NormSE3):
            module.nonlin = nn.Identity()
    return peer


def differences(model: Potential, peer: Peer, z: Tensor, pos: Tensor, step: float = 2e-5) -> Tensor:
    """Forces of the peer's energies."""
    forces = torch.zeros_like(pos)
    for index in range(pos.numel()):
        move = torch.zeros(pos.numel()).index_fill_(0, torch.tensor(index), step).view_as(pos)
        ends = [energy_of(model, peer_features(peer, z, pos + sign * move)) for sign in (1, -1)]
        forces.view(-1)[index] = -(ends[0] - ends[1]) / (2 * step)
    return forces


def peer_features(peer: Peer, z: Tensor, pos: Tensor) -> list[Tensor]:
    """Features ``[N, C, 2l + 1]`` of each degree."""
    output = peer(z[None], pos[None])
    if isinstance(output, Tensor):  # scalars only
        return [output[0].unsqueeze(2)]
    return [output["0"][0].unsqueeze(2)] + [output[str(degree)][0] for degree in range(1, len(output))]


def energy_of(model: Potential, features: list[Tensor]) -> Tensor:
    energy: Tensor = model.head.mlp(features[0].squeeze(2)).sum()
    return energy


def compare(name: str) -> list[dict[str, float]]:
    """What the peer predicts for each geometry, after it has been compared with ours."""
    ours = SE3Transformer(
        **SETTINGS[name], cutoff=CUTOFF, radial=GaussianBasis(NUM_BASIS, CUTOFF), envelope=Always(CUTOFF)
    )
    model = potential_of(ours)
    prepare(ours)
    peer, matrices = peer_of(ours), bases(ours.lmax)
    results = []
    for seed in SEEDS:
        graph = RadiusGraph(CUTOFF)(example_molecule(seed=seed))
        prediction = model(graph)
        with torch.no_grad():
            expected = peer_features(peer, graph.z, graph.pos)
            energy, forces = energy_of(model, expected), differences(model, peer, graph.z, graph.pos)
            x = model.features(model.graph(graph))[:, 0]
        found = [x[:, rows].mT @ matrix.T for rows, matrix in zip(degree_slices(ours.lmax), matrices, strict=True)]
        errors = [(one - other).abs().max().item() for one, other in zip(found, expected, strict=True)]
        errors.append((prediction.energy - energy).abs().item())
        error = (prediction.forces - forces).abs().max().item()
        size, norm = forces.norm().item(), math.sqrt(sum(part.square().sum().item() for part in expected))
        print(
            f"{name}, seed {seed}: energy {energy.item():.6f}, features {norm:.4f} off by {max(errors):.1e}, ", end=""
        )
        print(f"forces {size:.4f} by {error:.1e}")
        assert max(errors) < 1e-10
        assert error < 1e-6
        results.append({"seed": seed, "energy": energy.item(), "features": norm, "force": size})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="store what the peer predicts")
    write = parser.parse_args().write
    torch.set_default_dtype(torch.float64)
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        models = {name: {"settings": SETTINGS[name], "predictions": compare(name)} for name in SETTINGS}
    if write:
        peer = f"se3-transformer-pytorch {version('se3-transformer-pytorch')}: SE3Transformer without nonlinearities"
        inputs = (
            f"testing.example_molecule(seed=seed), cutoff {CUTOFF} with an envelope of one, GaussianBasis({NUM_BASIS}, "
            f"{CUTOFF}), weights by testing.potential_of, then prepared as in this script: last matrices of the "
            "filters times 3, queries times 30 and none in the first and the last layer, one degree a head and the "
            "identity for self-interaction between them, no nonlinearities; "
            "features and force: norms, the force by differences of 2e-5 Å; float64"
        )
        GOLDEN.write_text(json.dumps({"peer": peer, "inputs": inputs, "models": models}, indent=2) + "\n")


if __name__ == "__main__":
    main()
