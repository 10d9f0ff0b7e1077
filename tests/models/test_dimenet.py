"""DimeNet and DimeNet++ against PyG's own, with copied weights."""

import math
from copy import deepcopy

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn.models import dimenet as pyg
from torch_geometric.nn.models import dimenet_utils

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models.dimenet import DimeNet, DimeNetPlusPlus
from pyg_equivariant.nn.bessel import spherical_bessel_roots
from pyg_equivariant.nn.dense_chain import DenseChain
from pyg_equivariant.potential import Potential
from pyg_equivariant.testing import assert_close, example_molecule, fill_by_formula

CUTOFF = 3.0


def every_triplet(edge_index, num_nodes):
    """What PyG's ``triplets`` returns: one loop over all pairs of edges."""
    edges = list(enumerate(edge_index.T.tolist()))
    pairs = [(kj, ji) for ji, (j, i) in edges for kj, (k, middle) in edges if middle == j and k != i]
    kj, ji = torch.tensor(pairs).T
    source, target = edge_index
    return target, source, target[ji], source[ji], source[kj], kj, ji


SIZES = {"hidden_channels": 16, "out_channels": 16, "num_blocks": 2, "int_emb_size": 8, "out_emb_channels": 32}
PAPER = {"hidden_channels": 128, "out_channels": 128, "num_blocks": 4, "int_emb_size": 64, "out_emb_channels": 256}


def build(*, num_spherical, num_radial, **sizes):
    return pyg.DimeNetPlusPlus(
        **sizes,
        basis_emb_size=8,
        num_spherical=num_spherical,
        num_radial=num_radial,
        cutoff=CUTOFF,
        output_initializer="glorot_orthogonal",
    ).double()


@pytest.fixture(scope="module")
def known_edges():
    """PyG's models get the edges and triplets, for which they want pyg-lib or torch-cluster, and torch-sparse."""
    graph = RadiusGraph(CUTOFF)(example_molecule())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyg, "radius_graph", lambda *args, **kwargs: graph.edge_index)
        patch.setattr(pyg, "triplets", every_triplet)
        yield


@pytest.fixture(scope="module")
def oracle(known_edges):
    """A small DimeNet++ of PyG, with roots of Bessel functions in double precision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dimenet_utils, "Jn_zeros", spherical_bessel_roots)
        return build(num_spherical=3, num_radial=2, **SIZES)  # sympy takes seconds for more


def copy(source, target):
    target.load_state_dict(source.state_dict())


def copy_angular(source, target, num_basis):
    """PyG's angle is the turn from k → j to j → i, π minus the angle at j: odd Legendre polynomials change sign."""
    degree = torch.arange(source.in_features) // num_basis
    target.weight.copy_(source.weight * (1 - 2 * (degree % 2)))


@torch.no_grad()
def copy_weights(source, target):
    """From PyG's DimeNet or DimeNet++ to ours. PyG's radial functions lack the factor √2 of eq. 7."""
    fill_by_formula(source)
    root = math.sqrt(2.0)
    target.radial.frequency.copy_(source.rbf.freq)
    target.embedding.atom.weight[:95] = source.emb.emb.weight
    target.embedding.radial.weight.copy_(source.emb.lin_rbf.weight / root)
    target.embedding.radial.bias.copy_(source.emb.lin_rbf.bias)
    receiver, sender, edge = source.emb.lin.weight.chunk(3, 1)
    target.embedding.pair.weight.copy_(torch.cat([receiver, sender]))
    target.embedding.edge.weight.copy_(edge)
    target.embedding.edge.bias.copy_(source.emb.lin.bias)
    for block, ours in zip(source.interaction_blocks, target.interactions, strict=True):
        copy(block.lin_kj, ours.conv.dense[0])
        if isinstance(block, pyg.InteractionPPBlock):
            ours.conv.radial[0].weight.copy_(block.lin_rbf1.weight / root)
            copy(block.lin_rbf2, ours.conv.radial[1])
            copy_angular(block.lin_sbf1, ours.conv.angular, target.num_basis)
            copy(block.lin_sbf2, ours.conv.spread)
            copy(block.lin_down, ours.conv.down[0])
            copy(block.lin_up, ours.conv.up[0])
        else:
            ours.conv.radial.weight.copy_(block.lin_rbf.weight / root)
            copy_angular(block.lin_sbf, ours.conv.angular, target.num_basis)
            ours.conv.weight.copy_(block.W)
        copy(block.lin_ji, ours.own[0])
        before, after = (
            [dense for layer in layers for dense in (layer.lin1, layer.lin2)]
            for layers in (block.layers_before_skip, block.layers_after_skip)
        )
        for layer, dense in zip([*before, block.lin, *after], [*ours.before, *ours.after], strict=True):
            copy(layer, dense)
    for block, ours in zip(source.output_blocks, target.outputs, strict=True):
        ours.radial.weight.copy_(block.lin_rbf.weight / root)
        if isinstance(block, pyg.OutputPPBlock):
            copy(block.lin_up, ours.project)
        for layer, dense in zip(block.lins, ours.layers, strict=True):
            copy(layer, dense)
        copy(block.lin, ours.final)


def assert_agrees(oracle, model, data, tolerance=1e-10):
    """Features, and the forces of an energy that is a sum of their squares."""
    graph = RadiusGraph(CUTOFF)(data)
    pos = graph.pos.clone().requires_grad_()
    expected = oracle(graph.z, pos, torch.arange(len(graph.z)))
    source, target = graph.edge_index
    moved = graph.pos.clone().requires_grad_()
    x = model(graph.z, graph.edge_index, moved[source] - moved[target])
    assert_close(x[:, 0, 0], expected, "features", tolerance=tolerance)
    (force,) = torch.autograd.grad(expected.square().sum(), pos)
    (ours,) = torch.autograd.grad(x.square().sum(), moved)
    assert force.abs().max() > 1e-3
    assert_close(ours, force, "forces", tolerance=tolerance)


def test_plus_plus_agrees_with_pyg(oracle):
    model = DimeNetPlusPlus(16, 2, cutoff=CUTOFF, num_basis=2, num_degrees=3).double()
    copy_weights(oracle, model)
    assert_agrees(oracle, model, example_molecule())


@pytest.mark.slow
def test_plus_plus_agrees_with_pyg_at_the_size_of_the_paper(known_edges, monkeypatch):
    """As PyG ships it, with roots in single precision, and with exact ones."""
    model = DimeNetPlusPlus(cutoff=CUTOFF).double()
    shipped = build(num_spherical=7, num_radial=6, **PAPER)
    copy_weights(shipped, model)
    assert_agrees(shipped, model, example_molecule(), tolerance=1e-5)
    monkeypatch.setattr(dimenet_utils, "Jn_zeros", spherical_bessel_roots)
    exact = build(num_spherical=7, num_radial=6, **PAPER)
    copy_weights(exact, model)
    assert_agrees(exact, model, example_molecule(), tolerance=1e-10)


def test_agrees_with_pyg(oracle):
    """PyG's DimeNet has its blocks, with the angle at j: that of PyG's DimeNet is the one at i."""
    reference = deepcopy(oracle)
    blocks = [pyg.InteractionBlock(16, 8, 3, 2, 1, 2, torch.nn.functional.silu) for _ in range(2)]
    outputs = [pyg.OutputBlock(2, 16, 16, 3, torch.nn.functional.silu) for _ in range(3)]
    reference.interaction_blocks = torch.nn.ModuleList(blocks)
    reference.output_blocks = torch.nn.ModuleList(outputs)
    model = DimeNet(16, 2, cutoff=CUTOFF, num_basis=2, num_degrees=3).double()
    copy_weights(reference.double(), model)
    assert_agrees(reference, model, example_molecule())


def test_angles_of_periodic_images_count():
    """A chain of one atom a cell: the path j − 1 → j → j + 1 is made of images of one atom, and is straight."""
    model = DimeNetPlusPlus(8, 1, cutoff=CUTOFF).double()
    fill_by_formula(model)
    chain = {"cell": 2.0 * torch.eye(3)[None], "pbc": torch.tensor([[True, False, False]])}
    crystal = RadiusGraph(CUTOFF)(Data(z=torch.tensor([6]), pos=torch.zeros(1, 3).double(), **chain))
    pos = torch.zeros(9, 3).double()
    pos[:, 0] = 2.0 * torch.arange(9)
    finite = RadiusGraph(CUTOFF)(Data(z=torch.full((9,), 6), pos=pos))
    source, target = finite.edge_index
    assert crystal.num_edges == 2
    x = model(crystal.z, crystal.edge_index, crystal.shift @ crystal.cell[0].double())
    middle = model(finite.z, finite.edge_index, pos[source] - pos[target])[4:5]
    assert_close(x, middle, "features of a periodic chain")


def test_cutoff_is_finite():
    with pytest.raises(ValueError, match="finite radius"):
        DimeNet(8, 1, cutoff=math.inf)


@pytest.mark.parametrize("model", [DimeNet, DimeNetPlusPlus])
def test_outputs_are_zero_at_the_start(model):
    """And learn: their last matrices have gradients, through a head of which a zero would hide them."""
    potential = Potential(model(channels=8, num_layers=2, cutoff=3.0)).train()
    potential(RadiusGraph(3.0)(example_molecule())).energy.sum().backward()
    finals = [weight for name, weight in potential.named_parameters() if name.endswith("final.weight")]
    assert len(finals) == 3
    assert all(weight.eq(0.0).all() and weight.grad.ne(0.0).any() for weight in finals)


@pytest.mark.parametrize("model", [DimeNet, DimeNetPlusPlus])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frozen_copy_has_its_layers_arranged(model, dtype):
    """All of them, once; forces are the same."""
    potential = Potential(model(channels=8, num_layers=2, cutoff=3.0)).to(dtype).eval()
    fill_by_formula(potential)
    frozen = potential.frozen()
    chains = [[m for m in of.modules() if isinstance(m, DenseChain)] for of in (potential, frozen)]
    assert all(chain.packed is None for chain in chains[0])
    assert all(chain.packed is not None for chain in chains[1])
    assert len(chains[1]) > 10
    data = RadiusGraph(3.0)(example_molecule())
    assert torch.equal(frozen(data).forces, potential(data).forces)
