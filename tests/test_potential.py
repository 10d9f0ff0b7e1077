"""Potentials and predictors: derivatives, saving, errors."""

import copy
import json

import jaxtyping
import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch_geometric.data import Batch, Data

from pyg_equivariant.data.transforms import FullyConnected, RadiusGraph
from pyg_equivariant.heads import DipoleHead, EnergyHead, IntensiveHead, VectorDipoleHead
from pyg_equivariant.models import EGNN, PaiNN, SchNet
from pyg_equivariant.nn.radial import GaussianBasis
from pyg_equivariant.potential import Potential, Predictor
from pyg_equivariant.priors import ZBL
from pyg_equivariant.testing import assert_close, example_molecule, fill_by_formula, potential_of


@pytest.fixture
def model() -> Potential:
    return potential_of(PaiNN(8, 2, cutoff=3.0))


@pytest.fixture
def graph() -> Data:
    return RadiusGraph(3.0)(example_molecule())


def test_hessian_is_derivative_of_forces(model, graph):
    hessian = model(graph, hessian=True).hessian
    step = 1e-5
    for atom, axis in ((0, 0), (3, 2)):
        moved = []
        for sign in (1, -1):
            other = graph.clone()
            other.pos = graph.pos.clone()
            other.pos[atom, axis] += sign * step
            moved.append(model(other).forces)
        assert_close(hessian[:, :, atom, axis], -(moved[0] - moved[1]) / (2 * step), "Hessian", tolerance=1e-5)
    assert_close(hessian, hessian.permute(2, 3, 0, 1), "symmetry of the Hessian")


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_forces_without_grad_mode(model, graph, context):
    expected = model(graph).forces
    with context():
        copy = graph.clone()  # made under the context, as a loader would
        prediction = model(copy)
    assert torch.equal(prediction.forces, expected)
    assert not prediction.energy.requires_grad


def test_training_mode_differentiates_forces(model, graph):
    model.train()(graph).forces.square().sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "convs.0" in name)
    assert not model.eval()(graph).forces.requires_grad


def test_frozen_weights_still_give_forces(model, graph):
    expected = model(graph).forces
    assert_close(model.requires_grad_(False)(graph).forces, expected, "forces")


def test_energy_keeps_float64_references():
    """A reference of 10⁵ eV an atom does not swallow the meV."""
    model = potential_of(PaiNN(8, 1, cutoff=3.0)).float()
    graph = RadiusGraph(3.0)(example_molecule())
    before = model(graph).energy
    model.head.standardize(1.0, references=torch.full((119,), -1e5, dtype=torch.float64))
    after = model.to(torch.float32)(graph).energy
    assert after.dtype == torch.float64
    assert abs((after + 8e5 - before).item()) < 1e-9


@pytest.mark.parametrize("name", ["folder", "file.safetensors"])
def test_save_and_load(tmp_path, name):
    model = Potential(
        SchNet(8, 1, cutoff=4.0, radial=GaussianBasis(7, 4.0)),
        heads={"dipole": DipoleHead(8)},
        priors=[ZBL(1.2)],
        stress=True,
    )
    model.head.standardize(2.5, references=torch.arange(119, dtype=torch.float64) * -1.1)
    model.metadata.elements = [1, 6, 8]
    model.metadata.units = {"energy": "eV", "Å": "Å"}
    model.save(tmp_path / name)
    loaded = Potential.load(tmp_path / name)
    assert loaded.metadata == model.metadata
    assert loaded.representation.radial.num_basis == 7
    assert loaded.priors[0].cutoff == 1.2
    assert loaded.head.references.values.dtype == torch.float64
    assert not loaded.training
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    files = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    assert files in (["config.json", "model.safetensors"], ["file.safetensors"])
    assert torch.equal(Potential.from_pretrained(tmp_path / name).head.scale, model.head.scale)
    assert Predictor.load(tmp_path / name, dtype=torch.float64).dtype == torch.float64


def test_double_model_stays_double(tmp_path):
    potential_of(EGNN(8, 1, cutoff=3.0)).save(tmp_path)
    assert Potential.load(tmp_path).dtype == torch.float64


def test_load_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model at"):
        Potential.load(tmp_path / "nowhere")
    Predictor(SchNet(8, 1), {"gap": IntensiveHead(8)}).save(tmp_path / "gap")
    with pytest.raises(ValueError, match="holds a Predictor, not a Potential"):
        Potential.load(tmp_path / "gap")
    config = tmp_path / "gap" / "config.json"
    document = json.loads(config.read_text())
    document["model"]["class_path"] = "os.system"
    config.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"os\.system is not a Configurable module"):
        Predictor.load(tmp_path / "gap")
    (tmp_path / "broken.safetensors").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="is not a saved model"):
        Potential.load(tmp_path / "broken.safetensors")


def test_errors_are_sentences(model):
    with pytest.raises(ValueError, match=r"no edges: apply RadiusGraph\(3.0\)"):
        model(example_molecule())
    with pytest.raises(ValueError, match="a graph has no cell"):
        potential_of(PaiNN(8, 1, cutoff=3.0), stress=True)(RadiusGraph(3.0)(example_molecule()))
    with pytest.raises(ValueError, match="reads 4 channels, but SchNet has 8"):
        Potential(SchNet(8, 1), EnergyHead(4))
    with pytest.raises(ValueError, match="reads features of degree 1, but SchNet has lmax=0"):
        Potential(SchNet(8, 1), heads={"dipole": VectorDipoleHead(8)})


def test_predictor_and_pyg_batches(graph):
    model = Predictor(PaiNN(8, 1, cutoff=3.0), {"gap": IntensiveHead(8), "dipole": VectorDipoleHead(8)})
    fill_by_formula(model)
    batch = Batch.from_data_list([graph, graph, graph])
    properties = model.eval()(batch).properties
    assert properties["gap"].shape == (3,)
    assert properties["dipole"].shape == (3, 3)
    assert_close(properties["gap"], model(graph).quantity("gap").expand(3), "batch", tolerance=1e-6)
    with pytest.raises(KeyError, match="does not predict 'forces'"):
        model(graph).quantity("forces")


def test_complete_graphs_of_any_size():
    model = potential_of(EGNN(8, 2))
    assert model.cutoff == float("inf")
    prediction = model(FullyConnected()(Batch.from_data_list([example_molecule(3), example_molecule(6)])))
    assert prediction.energy.shape == (2,)


def test_periodic_images_count():
    """A cell and its 2 × 1 × 1 supercell have the same energy per atom and stress."""
    model = potential_of(PaiNN(8, 2, cutoff=3.0), stress=True)
    cell = torch.tensor([[[2.5, 0.1, 0.0], [0.3, 2.7, 0.2], [0.0, 0.4, 2.9]]], dtype=torch.float64)
    small = Data(
        z=torch.tensor([14, 8]),
        pos=torch.tensor([[0.1, 0.2, 0.3], [1.3, 1.2, 1.5]], dtype=torch.float64),
        cell=cell,
        pbc=torch.ones(1, 3, dtype=torch.bool),
    )
    large = small.clone()
    large.z, large.pos = small.z.repeat(2), torch.cat([small.pos, small.pos + cell[0, 0]])
    large.cell = cell * torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)[:, None]
    one, two = (model(RadiusGraph(3.0)(data)) for data in (small, large))
    assert_close(two.energy, 2 * one.energy, "energy of a supercell")
    assert_close(two.forces, one.forces.repeat(2, 1), "forces of a supercell")
    assert_close(two.stress, one.stress, "stress of a supercell")


def test_copy_of_a_compiled_model_is_its_own(model, graph, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks cannot be traced
    model.compile(backend="eager")
    twin = copy.deepcopy(model)
    assert twin._compiled is not None
    with torch.no_grad():
        model.head.mlp[-1].bias += 1.0
    assert abs((model(graph).energy - twin(graph).energy).item() - len(graph.z)) < 1e-9


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler looks at it
@pytest.mark.parametrize("wanted", [False, True])
def test_compiled_losses_are_derived_by_positions_when_asked(model, graph, wanted, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    derivatives = []

    def backward(module, inputs):
        derivatives.extend(outcome for outcome in module.graph.output_node().args[0] if outcome is not None)
        return make_boxed_func(module.forward)

    graph.pos.requires_grad_(wanted)
    model.train()(graph).forces.square().sum().backward()
    expected = graph.pos.grad
    model.compile(backend=aot_autograd(fw_compiler=lambda module, _: make_boxed_func(module), bw_compiler=backward))
    graph.pos.grad = None
    model(graph).forces.square().sum().backward()
    assert len(derivatives) == sum(p.grad is not None for p in model.parameters()) + wanted
    if wanted:
        assert_close(graph.pos.grad, expected, "derivative by the positions")
    else:
        assert graph.pos.grad is None


def test_precision_follows_a_new_representation(model, graph):
    model(graph)
    model.representation = PaiNN(8, 2, cutoff=3.0)
    assert model.float().dtype == torch.float32
    assert model(graph).forces.dtype == torch.float32
