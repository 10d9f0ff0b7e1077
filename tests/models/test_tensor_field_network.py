"""Tensor Field Network: against e3nn, its nonlinearity, mirror images."""

import pytest
import torch
from e3nn import o3 as e3nn
from torch_geometric.data import Data

from pyg_equivariant.data.transforms import RadiusGraph
from pyg_equivariant.models.painn import PaiNN
from pyg_equivariant.models.tensor_field_network import NormActivation, TensorFieldConv, TensorFieldNetwork
from pyg_equivariant.nn.tensor_product import AllPaths
from pyg_equivariant.o3 import from_irreps, num_components, spherical_harmonics, to_irreps
from pyg_equivariant.testing import assert_close, potential_of


@pytest.fixture
def _float64():
    """Else e3nn's couplings keep float32's rounding."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("degrees", [(0, 1, 1), (1, 1, 1), (2, 2, 2), (1, 2, 2)], ids=str)
def test_convolution_of_e3nn(degrees):
    """Messages are one 'uvu' product a path, the self-interaction is a linear layer, with copied weights.

    Parities are all declared even: e3nn then lets every path pass, as SE(3) does.
    """
    torch.manual_seed(0)
    lmax_in, lmax_sh, lmax_out = degrees
    paths, channels, width = AllPaths(*degrees), 3, 2
    conv = TensorFieldConv(channels, width, paths, num_basis=4, avg_num_neighbors=2.5)
    x = torch.randn(5, 1, num_components(lmax_in), channels)
    edge_index = torch.tensor([[1, 2, 4, 0, 3, 4, 2], [0, 0, 0, 1, 2, 3, 2]])
    edge_rbf, edge_sh = torch.rand(7, 4), spherical_harmonics(torch.randn(7, 3), lmax_sh)

    irreps_in = e3nn.Irreps([(channels, (degree, 1)) for degree in range(lmax_in + 1)])
    irreps_sh = e3nn.Irreps([(1, (degree, 1)) for degree in range(lmax_sh + 1)])
    flat = [(l1, l2, block.l3) for block in paths.blocks for l1, l2 in block.pairs]
    irreps_paths = e3nn.Irreps([(channels, (l3, 1)) for _, _, l3 in flat])
    instructions = [(l1, l2, path, "uvu", True) for path, (l1, l2, _) in enumerate(flat)]
    product = e3nn.TensorProduct(
        irreps_in, irreps_sh, irreps_paths, instructions, shared_weights=False, internal_weights=False
    )
    irreps_out = e3nn.Irreps([(width, (degree, 1)) for degree in range(lmax_out + 1)])
    linear = e3nn.Linear(irreps_paths, irreps_out, path_normalization="element")
    weights = []
    for block, weight in zip(paths.blocks, conv.self_interaction.weights, strict=True):
        assert len(weight) == channels * len(block.pairs)
        weights.append(weight.flatten() * len(weight) ** 0.5)  # which e3nn divides by
    with torch.no_grad():
        linear.weight.copy_(torch.cat(weights))

    messages = product(to_irreps(x)[edge_index[0]], edge_sh, conv.filter(edge_rbf).flatten(1))
    received = torch.zeros(5, irreps_paths.dim).index_add(0, edge_index[1], messages) / 2.5**0.5
    expected = from_irreps(linear(received), width, lmax_out)
    assert_close(conv(x, edge_index, edge_rbf, edge_sh), expected, "convolution", tolerance=1e-12)


def test_nonlinearity():
    activation = NormActivation(2, lmax=1).double()
    with torch.no_grad():
        activation.bias.copy_(torch.tensor([[0.1, -0.2], [0.3, 0.4]]))
    x = torch.randn(3, 1, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = activation(x)
    for c in range(2):
        scalar, vector = x[:, 0, 0, c], x[:, 0, 1:, c]
        eta = activation.activation
        assert_close(y[:, 0, 0, c], eta(scalar + activation.bias[0, c]), "scalars")
        length = (vector.square().sum(1) + 1e-3).sqrt()
        assert_close(y[:, 0, 1:, c], vector * (eta(length + activation.bias[1, c]) / length)[:, None], "vectors")


def tetrahedron(*elements: int) -> Data:
    """A carbon with four substituents."""
    corners = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    lengths = torch.tensor([{1: 1.09, 9: 1.36, 17: 1.76, 35: 1.94}[z] for z in elements], dtype=torch.float64)
    pos = torch.cat([torch.zeros(1, 3).double(), corners / 3**0.5 * lengths[:, None]])
    return Data(z=torch.tensor([6, *elements]), pos=pos)


@pytest.mark.parametrize("num_layers", [2, 3])
def test_mirror_images_of_a_chiral_molecule(num_layers):
    """CHFClBr and its mirror image differ; CH2FCl, which is its own mirror image, does not; nor does an E(3) model."""

    def energies(model, data):
        mirrored = Data(z=data.z, pos=data.pos * torch.tensor([1.0, 1.0, -1.0]))
        return [model(RadiusGraph(4.0)(graph)).energy for graph in (data, mirrored)]

    model = potential_of(TensorFieldNetwork(4, num_layers, cutoff=4.0))
    left, right = energies(model, tetrahedron(1, 9, 17, 35))
    assert (left - right).abs() > 1e-4
    one, same = energies(model, tetrahedron(1, 1, 9, 17))
    assert_close(one, same, "the energy of an achiral molecule")
    even, odd = energies(potential_of(PaiNN(4, num_layers, cutoff=4.0)), tetrahedron(1, 9, 17, 35))
    assert_close(even, odd, "the energy of an E(3) model")
