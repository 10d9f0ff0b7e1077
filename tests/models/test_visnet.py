"""ViSNet against PyG's own, with copied weights."""

import pytest
import torch
from torch_geometric.nn.models import visnet as pyg

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models.visnet import ViSNet, ViSNetConv, ViSNetEdgeUpdate
from pyg_equivariant.nn.dense_chain import DenseChain
from pyg_equivariant.nn.expnormal import ExpNormalBasis
from pyg_equivariant.nn.loops import with_loops
from pyg_equivariant.o3.harmonics import spherical_harmonics
from pyg_equivariant.testing import assert_close, example_molecule, fill_by_formula

CUTOFF = 3.0


def copy(source, target):
    target.load_state_dict(source.state_dict())


@torch.no_grad()
def copy_weights(source, target):
    """From PyG's ViSNet to ours, whose map of scalars to vectors has no bias and whose first layer reads no vectors."""
    fill_by_formula(source)
    source.prior_model.reset_parameters()  # references, which are zero
    block = source.representation_model
    target.radial.mean.copy_(block.distance_expansion.means)
    target.radial.beta.copy_(block.distance_expansion.betas)
    target.embedding.weight[:100] = block.embedding.weight
    neighbors = block.neighbor_embedding
    target.neighbors.embedding.weight[:100] = neighbors.embedding.weight
    filter_weight = torch.cat([neighbors.distance_proj.weight, neighbors.distance_proj.bias.unsqueeze(-1)], -1)
    target.neighbors.filter.weight.copy_(filter_weight)
    copy(neighbors.combine, target.neighbors.combine)
    copy(block.edge_embedding.edge_proj, target.edges)
    for index, (layer, conv) in enumerate(zip(block.vis_mp_layers, target.convs, strict=True)):
        copy(layer.layernorm, conv.norm)
        projections = layer.q_proj, layer.k_proj, layer.v_proj
        conv.query_key_value.weight.copy_(torch.cat([each.weight for each in projections]))
        conv.query_key_value.bias.copy_(torch.cat([each.bias for each in projections]))
        conv.filter[0].weight.copy_(torch.cat([layer.dk_proj.weight, layer.dv_proj.weight]))
        conv.filter[0].bias.copy_(torch.cat([layer.dk_proj.bias, layer.dv_proj.bias]))
        layer.s_proj.bias.zero_()
        if index:
            conv.to_vectors[0].weight.copy_(layer.s_proj.weight)
            copy(layer.vec_proj, conv.mix)
            copy(layer.o_proj, conv.out)
        else:
            conv.to_vectors[0].weight.copy_(layer.s_proj.weight.chunk(2)[1])
            conv.out.weight.copy_(layer.o_proj.weight.chunk(3)[2])
            conv.out.bias.copy_(layer.o_proj.bias.chunk(3)[2])
    for layer, update in zip(block.vis_mp_layers[1:], target.edge_updates, strict=False):
        copy(layer.f_proj, update.dense[0])
        update.mix.weight.copy_(torch.cat([layer.w_trg_proj.weight, layer.w_src_proj.weight]))
    copy(block.out_norm, target.norm)


@pytest.mark.parametrize("lmax", [1, 2])
def test_agrees_with_pyg(lmax, monkeypatch):
    graph = RadiusGraph(CUTOFF)(example_molecule())
    looped, _ = with_loops(graph.edge_index, torch.zeros(graph.num_edges, 3), len(graph.z))
    monkeypatch.setattr(pyg, "radius_graph", lambda *args, **kwargs: looped)
    monkeypatch.setattr(pyg.CosineCutoff, "forward", pyg_cutoff)
    sizes = {"lmax": lmax, "num_heads": 4, "num_layers": 3, "hidden_channels": 16, "num_rbf": 10, "cutoff": CUTOFF}
    oracle = pyg.ViSNet(**sizes).double()
    monkeypatch.setattr(oracle.representation_model, "distance", pyg_distance(looped))
    radial = ExpNormalBasis(10, CUTOFF)
    model = ViSNet(16, 3, cutoff=CUTOFF, lmax=lmax, num_heads=4, radial=radial).double()
    copy_weights(oracle, model)

    pos = graph.pos.clone().requires_grad_()
    batch = torch.zeros_like(graph.z)
    expected, _ = oracle(graph.z, pos, batch)
    (force,) = torch.autograd.grad(expected.sum(), pos)
    moved = graph.pos.clone().requires_grad_()
    source, target = graph.edge_index
    x = model(graph.z, graph.edge_index, moved[source] - moved[target])
    energy = oracle.output_model.pre_reduce(x[:, 0, 0], x[:, 0, 1:]).sum()
    (ours,) = torch.autograd.grad(energy, moved)
    assert force.abs().max() > 1e-3
    assert_close(energy.view(1, 1), expected, "energy", tolerance=1e-10)
    assert_close(ours, force, "forces", tolerance=1e-10)


def pyg_cutoff(self, distances):
    """PyG's, but for a mask in single precision."""
    return torch.where(distances < self.cutoff, 0.5 * ((distances * torch.pi / self.cutoff).cos() + 1.0), 0.0)


def pyg_distance(edge_index):
    """PyG's ``Distance`` in double precision, for known edges."""

    class Distance(torch.nn.Module):
        def forward(self, pos, batch):
            edge_vec = pos[edge_index[0]] - pos[edge_index[1]]
            loop = (edge_index[0] == edge_index[1]).unsqueeze(-1)
            length = torch.where(loop, 1.0, edge_vec).norm(dim=-1)
            return edge_index, torch.where(loop.squeeze(-1), 0.0, length), edge_vec

    return Distance()


@pytest.mark.parametrize("lmax", [1, 2, 3])
def test_edges_see_what_is_across_them(lmax):
    """The update is the product of rejections, as it is written in the paper."""
    generator = torch.Generator().manual_seed(0)
    update = ViSNetEdgeUpdate(4).double()
    edge_index = torch.tensor([[0, 1, 2], [1, 0, 1]])
    degree_norm = torch.tensor([2 * degree + 1 for degree in range(1, lmax + 1) for _ in range(2 * degree + 1)])
    directions = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    sh = spherical_harmonics(directions, lmax)[:, 1:] / degree_norm.sqrt()
    vec = torch.randn(3, sh.shape[1], 4, generator=generator, dtype=torch.float64)
    edge = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    own, other = update.mix(vec).chunk(2, -1)
    along = sh.unsqueeze(-1)
    left, right = own[edge_index[1]], other[edge_index[0]]
    left = left - (left * along).sum(1, keepdim=True) * along
    right = right - (right * along).sum(1, keepdim=True) * along
    expected = torch.nn.functional.silu(update.dense[0](edge)) * (left * right).sum(1)
    assert_close(update(edge, vec, edge_index, sh).detach(), expected.detach(), "update")


def test_dihedral_angle_enters_with_the_second_layer():
    """Turning one end of a chain of four atoms about its middle bond leaves distances and angles of neighbours."""
    models = [ViSNet(8, num_layers, cutoff=3.0, num_heads=2).double() for num_layers in (2, 3)]
    for model in models:
        fill_by_formula(model)
    z, edge_index = torch.tensor([1, 6, 6, 1]), torch.tensor([[1, 0, 2, 1, 3, 2], [0, 1, 1, 2, 2, 3]])

    def features(angle, model=models[1]):
        end = torch.tensor([1.5 + 0.3, torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))])
        pos = torch.stack([torch.tensor([-0.3, 1.0, 0.0]), torch.zeros(3), torch.tensor([1.5, 0, 0]), end]).double()
        return model(z, edge_index, pos[edge_index[0]] - pos[edge_index[1]])[:, 0, 0]

    without = (features(0.4, models[0]) - features(1.2, models[0])).abs().max()  # the last layer updates no edges
    assert (features(0.4) - features(1.2)).abs().max() > 1e-6 > 100 * without
    assert_close(features(0.4), features(-0.4), "mirror images")


@pytest.mark.parametrize("wrong", [{"lmax": 0}, {"num_layers": 0}, {"num_heads": 3}])
def test_wrong_sizes(wrong):
    with pytest.raises(ValueError, match=r"at least 1|a multiple of num_heads"):
        ViSNet(8, **{"num_layers": 2, **wrong})


def test_the_first_layer_works_on_pairs():
    """Of whose edges it reads the same features. The layers after it are alike."""
    graph = RadiusGraph(CUTOFF)(example_molecule())
    model = ViSNet(8, 3, cutoff=CUTOFF, num_heads=2).double()
    fill_by_formula(model)
    pairs = []
    for conv in model.convs:
        conv.register_forward_hook(lambda module, inputs, outcome: pairs.append((len(inputs[3]), inputs[6] is None)))
    source, target = graph.edge_index
    model(graph.z, graph.edge_index, graph.pos[source] - graph.pos[target])
    num_atoms, num_edges = len(graph.z), graph.num_edges
    halved = num_edges // 2 + num_atoms
    assert pairs == [(halved, False), *[(num_edges + num_atoms, True)] * 2]


def test_first_layer_reads_no_vectors():
    first, second = ViSNet(8, 2, cutoff=CUTOFF, num_heads=2).convs
    assert first.mix is None
    assert second.mix is not None
    with pytest.raises(ValueError, match="lmax_in must be 0 or lmax"):
        ViSNetConv(8, 2, 2, lmax_in=1)


def test_chains_are_arranged_for_simulations():
    """Once for all steps, without a difference."""
    graph = RadiusGraph(CUTOFF)(example_molecule())
    model = ViSNet(8, 3, cutoff=CUTOFF, num_heads=2)
    source, target = graph.edge_index
    inputs = graph.z, graph.edge_index, (graph.pos[source] - graph.pos[target]).float()
    with torch.no_grad():
        before = model(*inputs)
        model.tabulate()
        chains = [module for module in model.modules() if isinstance(module, DenseChain)]
        assert len(chains) == 2 * 3 + 1
        assert all(chain.packed is not None for chain in chains)
        assert torch.equal(model(*inputs), before)
