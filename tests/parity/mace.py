"""MACE against its authors' package, with copied weights.

Needs ``mace-torch==0.3.16`` and the ``e3nn==0.4.4`` that it pins beside this package. ``python tests/parity/mace.py``
compares; with ``--write`` it stores what the peer predicts, which the everyday tests reproduce without it.
"""

# ruff: noqa: E402

import argparse
import itertools
import json
import math
import os
import sys
from importlib.metadata import version
from pathlib import Path

sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).parent]  # the peer has our name
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # the old e3nn loads a pickle of its own constants

import numpy as np
import torch
from e3nn import o3
from mace import modules
from torch import Tensor, nn

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models.mace import MACE, FirstMACEConv, MACEConv, ResidualMACE
from pyg_equivariant.nn.linear import DegreeLinear, ElementLinear
from pyg_equivariant.nn.symmetric_contraction import SymmetricContraction
from pyg_equivariant.nn.tensor_product import PathLinear
from pyg_equivariant.o3.symmetric import monomials, symmetric_coupling
from pyg_equivariant.potential import Potential
from pyg_equivariant.testing import example_molecule, potential_of

GOLDEN = Path(__file__).with_suffix(".json")
CHANNELS, CUTOFF, HIDDEN, ELEMENTS = 8, 3.0, 5, (1, 6, 7, 8)
SETTINGS = {
    "8x0e": (MACE, {"num_layers": 2, "lmax": 0}),
    "8x0e+8x1o": (MACE, {"num_layers": 3, "lmax": 1, "lmax_out": 0}),
    "8x0e+8x1o+8x2e, all layers residual": (ResidualMACE, {"num_layers": 2, "lmax": 2, "lmax_out": 0}),
    "8x0e, correlation 2": (MACE, {"num_layers": 2, "lmax": 0, "correlation": 2, "lmax_sh": 2}),
}
INTERACTIONS = {
    FirstMACEConv: modules.blocks.RealAgnosticInteractionBlock,
    MACEConv: modules.blocks.RealAgnosticResidualInteractionBlock,
}
SEEDS = (0, 1, 2, 3)


def read_out_as_published(model: Potential, num_layers: int) -> None:
    """Makes of the head linear read-outs of all layers but the last, and one of HIDDEN units of the last.

    Of the weights that the head has: two units with opposite signs carry all linear ones, as silu(a) − silu(−a) = a.
    """
    first, _, last = model.head.mlp
    end = (num_layers - 1) * CHANNELS
    with torch.no_grad():
        first.weight[0, end:] = 0
        first.weight[1] = -first.weight[0]
        first.weight[2:, :end] = 0
        last.weight[0, :2] = torch.tensor([1.0, -1.0])
        last.weight[0, 2 + HIDDEN :] = 0
        first.bias.zero_()
        last.bias.zero_()


def copy(parameter: Tensor, *parts: Tensor) -> None:
    parameter.copy_(torch.cat([part.flatten() for part in parts]).view_as(parameter))


def copy_linear(peer: nn.Module, ours: DegreeLinear | PathLinear) -> None:
    weights = ours.weights if isinstance(ours, PathLinear) else ours.weight[0]
    copy(peer.weight, *(weight * math.sqrt(weight.shape[0]) for weight in weights))


def copy_element_linear(peer: nn.Module, ours: ElementLinear) -> None:
    weights = ours.weight[0]  # [L, Z, C, D]; theirs have the element after the channel
    num_elements, fan_in = weights.shape[1:3]
    copy(peer.weight, *(weight.transpose(0, 1) * math.sqrt(fan_in * num_elements) for weight in weights))


def copy_filter(peer: nn.Module, ours: nn.Sequential) -> None:
    scale = 1.0
    for theirs, layer in zip(peer, [*ours][::2], strict=True):
        copy(theirs.weight, layer.weight.T * math.sqrt(layer.in_features) / scale)
        scale = theirs.act.cst if theirs.act is not None else 1.0


def copy_contraction(peer: nn.Module, ours: SymmetricContraction, lmax: int) -> None:
    """The peer's polynomials are linearly dependent: the least weights that make the same sums."""
    weights = ours.weight.weight
    for degree, contraction in enumerate(peer.contractions):
        count = sum(path[0] == degree for path in ours.paths)
        theirs = [*contraction.weights, contraction.weights_max]
        theirs = dict(zip([*range(contraction.correlation - 1, 0, -1), contraction.correlation], theirs, strict=True))
        for order, weight in theirs.items():
            mine = [k for k, (out, degrees) in enumerate(ours.paths) if out == degree and len(degrees) == order]
            theirs_of = coefficients_of_peer(contraction.U_tensors(order), order, degree)
            ours_of = coefficients(lmax, order, degree) / math.sqrt(count)
            change = torch.linalg.pinv(theirs_of) @ ours_of
            assert (theirs_of @ change - ours_of).abs().max() < 1e-12  # both span the same polynomials
            weight.copy_(torch.einsum("qp,zpc->zqc", change, weights[:, mine]))


def coefficients(lmax: int, order: int, degree: int) -> Tensor:
    """Of all products of components in all our polynomials of an order, ``[m · products, paths]``."""
    products = list(itertools.combinations_with_replacement(range((lmax + 1) ** 2), order))
    columns = []
    for degrees in itertools.combinations_with_replacement(range(lmax + 1), order):
        if (sum(degrees) + degree) % 2 == 0:
            for path in symmetric_coupling(degrees, degree):
                column = torch.zeros(2 * degree + 1, len(products), dtype=torch.float64)
                column[:, [products.index(product) for product in monomials(degrees)]] = path
                columns.append(column.flatten())
    return torch.stack(columns, dim=1)


def coefficients_of_peer(tensor: Tensor, order: int, degree: int) -> Tensor:
    """The same of the peer's, ``[m · products, paths]``."""
    size = tensor.shape[-2]
    products = list(itertools.combinations_with_replacement(range(size), order))
    number = {product: k for k, product in enumerate(products)}
    target = [number[tuple(sorted(product))] for product in itertools.product(range(size), repeat=order)]
    full = tensor.reshape(2 * degree + 1, size**order, -1)
    summed = full.new_zeros(2 * degree + 1, len(products), full.shape[2])
    return summed.index_add_(1, torch.tensor(target), full).flatten(0, 1)


def peer_of(model: Potential) -> nn.Module:
    """The peer's model with the weights of ours."""
    ours = model.representation
    assert isinstance(ours, MACE)
    lmax, lmax_sh = ours.layers[0].linear_out.weight.shape[1] - 1, ours.lmax_sh
    contraction = ours.layers[0].contraction
    peer = modules.MACE(
        r_max=CUTOFF,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=lmax_sh,
        interaction_cls=INTERACTIONS[MACEConv],
        interaction_cls_first=INTERACTIONS[type(ours.layers[0])],
        num_interactions=len(ours.layers),
        num_elements=len(ELEMENTS),
        hidden_irreps=o3.Irreps("+".join(f"{CHANNELS}x{k}{'eo'[k % 2]}" for k in range(lmax + 1))),
        MLP_irreps=o3.Irreps(f"{HIDDEN}x0e"),
        atomic_energies=np.zeros(len(ELEMENTS)),
        avg_num_neighbors=ours.layers[0].avg_num_neighbors.item(),
        atomic_numbers=list(ELEMENTS),
        correlation=max(len(degrees) for _, degrees in contraction.paths),
        gate=torch.nn.functional.silu,
        use_reduced_cg=False,
    )
    first, _, last = model.head.mlp
    end = (len(ours.layers) - 1) * CHANNELS
    with torch.no_grad():
        copy(peer.node_embedding.linear.weight, ours.embedding.weight[list(ELEMENTS)] * math.sqrt(len(ELEMENTS)))
        for interaction, product, layer in zip(peer.interactions, peer.products, ours.layers, strict=True):
            copy_linear(interaction.linear_up, layer.linear_in)
            copy_filter(interaction.conv_tp_weights, layer.filter.mlp)
            copy_linear(interaction.linear, layer.linear_sum)
            copy_element_linear(interaction.skip_tp, layer.self_connection)
            copy_contraction(product.symmetric_contractions, layer.contraction, lmax_sh)
            copy_linear(product.linear, layer.linear_out)
        for index, readout in enumerate(peer.readouts[:-1]):
            copy(readout.linear.weight, first.weight[0, index * CHANNELS :][:CHANNELS] * math.sqrt(CHANNELS))
        readout, rows = peer.readouts[-1], slice(2, 2 + HIDDEN)
        copy(readout.linear_1.weight, first.weight[rows, end:].T * math.sqrt(CHANNELS))
        copy(readout.linear_2.weight, last.weight[0, rows] * math.sqrt(HIDDEN) / readout.non_linearity.acts[0].cst)
    return peer


def compare(name: str) -> list[dict[str, float]]:
    """What the peer predicts for each geometry, after it has been compared with ours."""
    cls, settings = SETTINGS[name]
    model = potential_of(cls(CHANNELS, cutoff=CUTOFF, elements=ELEMENTS, avg_num_neighbors=5.0, **settings))
    read_out_as_published(model, settings["num_layers"])
    peer = peer_of(model)
    results = []
    for seed in SEEDS:
        graph = RadiusGraph(CUTOFF)(example_molecule(seed=seed))
        num_edges = graph.edge_index.shape[1]
        output = peer(
            {
                "positions": graph.pos.clone(),
                "node_attrs": (graph.z[:, None] == torch.tensor(ELEMENTS)).double(),
                "edge_index": graph.edge_index,
                "shifts": torch.zeros(num_edges, 3),
                "unit_shifts": torch.zeros(num_edges, 3),
                "cell": torch.zeros(3, 3),
                "batch": torch.zeros_like(graph.z),
                "ptr": torch.tensor([0, len(graph.z)]),
            }
        )
        energy, forces = output["energy"], output["forces"]
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
    torch.set_default_dtype(torch.float64)
    models = {
        name: {"class": cls.__name__, "settings": settings, "predictions": compare(name)}
        for name, (cls, settings) in SETTINGS.items()
    }
    if write:
        peer = f"mace-torch {version('mace-torch')}, e3nn {version('e3nn')}: modules.MACE, use_reduced_cg=False"
        inputs = (
            f"testing.example_molecule(seed=seed), cutoff {CUTOFF}, {CHANNELS} channels, elements {ELEMENTS}, "
            "5 neighbours on average, weights by testing.potential_of with the published read-out of "
            f"{HIDDEN} units; float64"
        )
        GOLDEN.write_text(json.dumps({"peer": peer, "inputs": inputs, "models": models}, indent=2) + "\n")


if __name__ == "__main__":
    main()
