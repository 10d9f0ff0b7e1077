"""The physical contract that every architecture passes; yours can pass it too.

.. code-block:: python

    @pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
    def test_contract(promise):
        promise(MyModel(channels=8, num_layers=2, cutoff=3.0))

Each promise takes a :class:`~pyg_equivariant.models.base.Representation` with a finite cutoff and ``num_layers``
message-passing steps (2 if not told), fills its weights by a formula and checks it in float64. When it is broken, an
``AssertionError`` says what was expected of the model, and by how much it missed.
"""

import math
import tempfile
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from pyg_equivariant.data.transforms import RadiusGraph
from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.frozen_step import FrozenStep
from pyg_equivariant.o3.wigner import random_rotation, rotate
from pyg_equivariant.potential import Potential, Predictor
from pyg_equivariant.typing import Prediction

__all__ = ["CONTRACT", "assert_close", "example_molecule", "fill_by_formula", "potential_of", "record_steps"]

ELEMENTS = (6, 1, 8, 1, 7, 1, 1, 6)


def fill_by_formula(module: nn.Module) -> None:
    """Sets each weight by its position (a quadratic Weyl sequence), the same on every machine, no layer at zero."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            k = torch.arange(parameter.numel(), dtype=torch.float64) + 7 * number + 1
            fan_in = parameter.shape[-1] if parameter.dim() > 1 else 4
            uniform = (0.6180339887498949 * k * k).frac() - 0.5
            parameter.copy_((math.sqrt(12.0 / fan_in) * uniform).view_as(parameter))


def potential_of(representation: Representation, *, stress: bool = False) -> Potential:
    """A float64 potential in evaluation mode whose weights follow :func:`fill_by_formula`."""
    model = Potential(representation, stress=stress).double()
    fill_by_formula(model)
    return model.eval()


def example_molecule(num_atoms: int = 8, *, spread: float = 1.1, seed: int = 0) -> Data:
    """Atoms at random places, about as dense as in a molecule, no two of them closer than 0.7 Å."""
    generator = torch.Generator().manual_seed(seed)
    pos = torch.zeros(0, 3, dtype=torch.float64)
    while len(pos) < num_atoms:
        new = spread * torch.randn(1, 3, generator=generator, dtype=torch.float64)
        if len(pos) == 0 or torch.cdist(new, pos).min() > 0.7:
            pos = torch.cat([pos, new])
    z = torch.tensor([ELEMENTS[k % len(ELEMENTS)] for k in range(num_atoms)])
    return Data(z=z, pos=pos)


def assert_close(actual: Tensor, expected: Tensor, what: str, *, tolerance: float = 1e-9) -> None:
    """Compares to ``tolerance``, relative to the largest expected value (at least 1)."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    assert torch.isfinite(actual).all(), f"{what}: not finite"
    if actual.numel():
        error = (actual - expected).abs().max().item() / max(1.0, expected.abs().max().item())
        assert error <= tolerance, f"{what}: off by {error:.2e}, {tolerance:.0e} is allowed"


def _run(model: Potential, data: Data) -> tuple[Float[Tensor, " B"], Float[Tensor, "N 3"]]:
    prediction: Prediction = model(RadiusGraph(model.cutoff)(data))
    return prediction.quantity("energy"), prediction.quantity("forces")


def _features(model: Potential, data: Data) -> Float[Tensor, "N P M C"]:
    with torch.no_grad():
        return model.features(model.graph(RadiusGraph(model.cutoff)(data)))


def _moved(data: Data, pos: Tensor) -> Data:
    moved = data.clone()
    moved.pos = pos
    return moved


def _orthogonal_transformation(model: Potential, matrix: Float[Tensor, "3 3"], what: str) -> None:
    data = example_molecule()
    turned = _moved(data, data.pos @ matrix.T)
    energy, forces = _run(model, data)
    x = _features(model, data)
    if model.representation.group == "SE(3) in distribution":
        model.representation.turn(matrix)
    energy_turned, forces_turned = _run(model, turned)
    assert_close(energy_turned, energy, f"energy under {what}")
    assert_close(forces_turned, forces @ matrix.T, f"forces under {what}")
    assert_close(_features(model, turned), rotate(x, matrix), f"features under {what}")


def _told_apart(model: Potential, matrix: Float[Tensor, "3 3"], what: str) -> None:
    data = example_molecule()
    difference = (_run(model, data)[0] - _run(model, _moved(data, data.pos @ matrix.T))[0]).abs().item()
    group = model.representation.group
    assert difference > 1e-8, f"the group is {group}, but {what} of a chiral molecule have the same energy"


def shape(representation: Representation) -> None:
    """Features are ``[N, P, (lmax + 1)², C]`` and depend on the geometry."""
    model = potential_of(representation)
    data = example_molecule()
    x = _features(model, data)
    expected = (8, representation.parity, (representation.lmax + 1) ** 2, representation.channels)
    assert tuple(x.shape) == expected, f"features have the shape {tuple(x.shape)} instead of {expected}"
    bent = _moved(data, data.pos * torch.tensor([1.0, 1.1, 0.9]))
    assert (_features(model, bent) - x).abs().max() > 1e-6, "features do not depend on the geometry"


def rotation(representation: Representation) -> None:
    """A rotation leaves energies and turns forces and features.

    Where that holds in distribution, it is exact when what was drawn at random is turned along. Where the group is
    T(3), rotated molecules are told apart.
    """
    model = potential_of(representation)
    for seed in range(3):
        matrix = random_rotation(torch.Generator().manual_seed(seed))
        if representation.group == "T(3)":
            _told_apart(model, matrix, "rotations")
        else:
            _orthogonal_transformation(model, matrix, "a rotation")


def reflection(representation: Representation) -> None:
    """A reflection does likewise where the group is E(3); where it is another, mirror images are told apart."""
    model = potential_of(representation)
    mirror = -random_rotation(torch.Generator().manual_seed(5))
    if representation.group == "E(3)":
        _orthogonal_transformation(model, mirror, "a reflection")
    else:
        _told_apart(model, mirror, "mirror images")


def translation(representation: Representation) -> None:
    """A translation changes nothing."""
    model = potential_of(representation)
    data = example_molecule()
    moved = _moved(data, data.pos + torch.tensor([3.0, -20.0, 0.7]))
    for actual, expected, what in zip(_run(model, moved), _run(model, data), ("energy", "forces"), strict=True):
        assert_close(actual, expected, f"{what} under a translation")


def permutation(representation: Representation) -> None:
    """The order of the atoms does not matter."""
    model = potential_of(representation)
    data = example_molecule()
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    energy, forces = _run(model, data)
    energy_permuted, forces_permuted = _run(model, Data(z=data.z[order], pos=data.pos[order]))
    assert_close(energy_permuted, energy, "energy under a permutation")
    assert_close(forces_permuted, forces[order], "forces under a permutation")


def batching(representation: Representation) -> None:
    """A batch gives what its graphs give one by one, single atoms included."""
    model = potential_of(representation)
    graphs = [example_molecule(n, seed=n) for n in (5, 1, 8, 2)]
    singles = [_run(model, graph) for graph in graphs]
    energy, forces = _run(model, Batch.from_data_list(graphs))
    assert_close(energy, torch.cat([single[0] for single in singles]), "energies of a batch")
    assert_close(forces, torch.cat([single[1] for single in singles]), "forces of a batch")


def far_fragments(representation: Representation) -> None:
    """Molecules far apart do not feel each other: energies add."""
    model = potential_of(representation)
    a, b = example_molecule(5, seed=1), example_molecule(6, seed=2)
    both = Data(z=torch.cat([a.z, b.z]), pos=torch.cat([a.pos, b.pos + 100.0]))
    energy, forces = _run(model, both)
    (energy_a, forces_a), (energy_b, forces_b) = _run(model, a), _run(model, b)
    assert_close(energy, energy_a + energy_b, "energy of two molecules far apart")
    assert_close(forces, torch.cat([forces_a, forces_b]), "forces of two molecules far apart")


def isolated_atom(representation: Representation) -> None:
    """One atom has a finite energy and no force; a graph without atoms has no energy."""
    model = potential_of(representation)
    energy, forces = _run(model, Data(z=torch.tensor([8]), pos=torch.zeros(1, 3, dtype=torch.float64)))
    assert torch.isfinite(energy).all(), "the energy of a single atom is not finite"
    assert_close(forces, torch.zeros(1, 3, dtype=torch.float64), "force on a single atom")
    nothing = Data(z=torch.zeros(0, dtype=torch.long), pos=torch.zeros(0, 3, dtype=torch.float64))
    energy, forces = _run(model, nothing)
    assert_close(energy, torch.zeros(1, dtype=torch.float64), "energy of a graph without atoms")
    assert forces.shape == (0, 3), "forces of a graph without atoms"


def forces_are_gradient(representation: Representation) -> None:
    """``F = −∂E/∂r`` by central differences, and no net force, nor torque if rotations leave the energy."""
    model = potential_of(representation)
    data = example_molecule(6)
    _, forces = _run(model, data)
    step = 1e-5
    direction = torch.eye(18, dtype=torch.float64).view(18, 6, 3) * step
    forward, backward = (
        _run(model, Batch.from_data_list([_moved(data, data.pos + sign * d) for d in direction]))[0] for sign in (1, -1)
    )
    assert_close(forces, -((forward - backward) / (2 * step)).view(6, 3), "forces against differences", tolerance=1e-6)
    assert_close(forces.sum(0), torch.zeros(3, dtype=torch.float64), "net force")
    if representation.group in ("E(3)", "SE(3)"):
        torque = torch.linalg.cross(data.pos, forces).sum(0)
        assert_close(torque, torch.zeros(3, dtype=torch.float64), "net torque")


def stress_is_strain_derivative(representation: Representation) -> None:
    """``σ = (1/V) ∂E/∂ε`` by central differences, in a small triclinic cell."""
    model = potential_of(representation, stress=True)
    cell = torch.tensor([[[3.1, 0.0, 0.2], [0.4, 2.9, 0.0], [-0.3, 0.5, 3.3]]], dtype=torch.float64)
    data = example_molecule(4)
    data.update({"cell": cell, "pbc": torch.ones(1, 3, dtype=torch.bool)})
    graph = RadiusGraph(model.cutoff)(data)  # the same edges for all strains: the energy vanishes at the cutoff
    stress = model(graph).quantity("stress")[0]
    expected = torch.zeros(3, 3, dtype=torch.float64)
    step = 1e-5
    for a in range(3):
        for b in range(3):
            energies = []
            for sign in (1, -1):
                strain = torch.eye(3, dtype=torch.float64)
                strain[a, b] += 0.5 * sign * step
                strain[b, a] += 0.5 * sign * step
                strained = graph.clone().update({"pos": graph.pos @ strain.T, "cell": cell @ strain.T})
                energies.append(model(strained).quantity("energy").item())
            expected[a, b] = (energies[0] - energies[1]) / (2 * step) / torch.linalg.det(cell[0]).abs()
    assert_close(stress, expected, "stress against differences", tolerance=1e-6)


def smooth_at_cutoff(representation: Representation) -> None:
    """Energy and forces are continuous where a pair leaves the cutoff, and beyond it there is no interaction."""
    model = potential_of(representation)
    base = example_molecule(5)
    reach = base.pos[:, 0].argmax()

    def with_probe(distance: float) -> Data:
        probe = base.pos[reach] + distance * torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        return Data(z=torch.cat([base.z, base.z.new_tensor([8])]), pos=torch.cat([base.pos, probe[None]]))

    gap = 1e-7
    inside, outside = (_run(model, with_probe(model.cutoff + sign * gap)) for sign in (-1, 1))
    assert_close(inside[0], outside[0], "energy across the cutoff", tolerance=1e-6)
    assert_close(inside[1], outside[1], "forces across the cutoff", tolerance=1e-5)
    alone = _run(model, base)[0] + _run(model, Data(z=torch.tensor([8]), pos=torch.zeros(1, 3).double()))[0]
    assert_close(outside[0], alone, "energy beyond the cutoff")


def receptive_field(representation: Representation, num_layers: int = 2) -> None:
    """An atom's features depend on no atom further than ``num_layers`` (and embedding steps) cutoffs away."""
    model = potential_of(representation)
    steps = num_layers + representation.embedding_steps
    length = steps + 3
    pos = torch.zeros(length, 3, dtype=torch.float64)
    pos[:, 0] = 0.9 * model.cutoff * torch.arange(length)
    pos[:, 1] = 0.1 * torch.sin(torch.arange(length, dtype=torch.float64))
    chain = Data(z=torch.full((length,), 6), pos=pos)
    end = pos.clone()
    end[steps + 1 :, 1] += 0.05  # a hair's move of all atoms out of reach of the first
    x, x_moved = _features(model, chain)[0], _features(model, _moved(chain, end))[0]
    assert_close(x_moved, x, f"features of an atom more than {steps} cutoffs away", tolerance=0.0)


def second_derivative_finite(representation: Representation) -> None:
    """Forces and their gradients are finite for collinear, axis-aligned, near-coincident and coincident atoms."""
    shapes: dict[str, list[list[float]]] = {
        "collinear, on the z axis": [[0, 0, 0], [0, 0, 1.16], [0, 0, -1.16]],
        "on the y axis": [[0, 0, 0], [0, 1.0, 0], [0, 2.1, 0]],
        "planar": [[0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]],
        "near-coincident": [[0, 0, 0], [1e-4, 0, 0], [1.0, 0, 0]],
        "coincident": [[0, 0, 0], [0, 0, 0], [1.0, 0, 0]],
        "single": [[0, 0, 0]],
    }
    model = potential_of(representation).train()
    for name, rows in shapes.items():
        data = Data(z=torch.tensor([6, 8, 8][: len(rows)]), pos=torch.tensor(rows, dtype=torch.float64))
        model.zero_grad()
        energy, forces = _run(model, data)
        (energy.sum() + forces.square().sum()).backward()
        assert torch.isfinite(energy).all(), f"energy of {name} atoms is not finite"
        assert torch.isfinite(forces).all(), f"forces of {name} atoms are not finite"
        for parameter, tensor in model.named_parameters():
            finite = tensor.grad is None or bool(torch.isfinite(tensor.grad).all())
            assert finite, f"the gradient of the forces of {name} atoms with respect to {parameter} is not finite"


def input_unchanged(representation: Representation) -> None:
    """A forward leaves its input as it was."""
    model = potential_of(representation)
    graph = RadiusGraph(model.cutoff)(example_molecule())
    before = {name: value.clone() for name, value in graph.to_dict().items()}
    model(graph)
    after = graph.to_dict()
    assert after.keys() == before.keys(), "a forward added or removed fields of its input"
    for name, value in before.items():
        assert torch.equal(after[name], value), f"a forward changed the field {name} of its input"
        assert not after[name].requires_grad, f"a forward left a gradient on the field {name} of its input"


def save_and_load(representation: Representation) -> None:
    """A saved model opens to the same predictions, bit by bit."""
    model = potential_of(representation)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        loaded = Potential.load(folder)
    for actual, expected in zip(_run(loaded, example_molecule()), _run(model, example_molecule()), strict=True):
        assert torch.equal(actual, expected), "a model that was saved and loaded predicts something else"


def single_precision(representation: Representation) -> None:
    """Float32 gives what float64 gives, within its rounding."""
    model = potential_of(representation)
    energy, forces = _run(model, example_molecule())
    energy_single, forces_single = _run(model.float(), example_molecule())
    assert forces_single.dtype == torch.float32, "a float32 model returns forces of another precision"
    assert_close(energy_single, energy, "float32 energy", tolerance=1e-4)
    assert_close(forces_single.double(), forces, "float32 forces", tolerance=1e-4)


def compiled(representation: Representation, backend: str = "inductor") -> None:
    """The whole step, forces included, compiles without a graph break, once for all shapes, and equals eager."""
    model = potential_of(representation).train()

    def results(sizes: tuple[int, ...]) -> list[Tensor]:
        graphs = Batch.from_data_list([example_molecule(n, seed=n) for n in sizes])
        energy, forces = _run(model.train(), graphs)
        model.zero_grad()
        (energy.square().sum() + forces.square().sum()).backward()
        weights = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
        return [energy.detach(), forces.detach(), *weights, *_run(model.eval(), graphs)]

    eager = results((5, 7)), results((4, 8, 6))
    model.compile(backend=backend)
    for actual, expected in zip(results((5, 7)), eager[0], strict=True):
        assert_close(actual, expected, "the compiled step")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for actual, expected in zip(results((4, 8, 6)), eager[1], strict=True):
            assert_close(actual, expected, "the compiled step on other shapes")


def record_steps(model: Predictor) -> list[torch.fx.GraphModule]:
    """Lets a frozen model run the record of its step, which is not compiled; all records, as they are made."""
    records: list[torch.fx.GraphModule] = []

    def keep(
        graph: torch.fx.GraphModule, inputs: list[Tensor], changing: int
    ) -> Callable[[list[Tensor]], list[Tensor]]:
        records.append(graph)
        return lambda values: graph(*values)

    model._compiled = FrozenStep(model, keep)
    return records


def recorded(representation: Representation) -> None:
    """The step of a frozen copy is recorded once for all shapes, nothing in it changes a tensor, and it equals eager.

    This is what the calculators compile. ``len(x)`` is a number for the record, ``x.shape[0]`` a symbol.
    """
    potential = potential_of(representation)
    eager, model = potential.frozen(), potential.frozen()
    records = record_steps(model)
    for sizes in ((5, 7), (4, 8, 6)):
        graphs = Batch.from_data_list([example_molecule(n, seed=n) for n in sizes])
        for actual, expected in zip(_run(model, graphs), _run(eager, graphs), strict=True):
            assert_close(actual, expected, "the recorded step")
    assert len(records) == 1, f"the step was recorded {len(records)} times, not once: it depends on sizes"
    schemas = [getattr(node.target, "_schema", None) for node in records[0].graph.nodes]
    changing = [schema.name for schema in schemas if schema is not None and schema.is_mutable]
    assert not changing, f"the record has operations that change tensors: {changing}"


CONTRACT: list[Callable[[Representation], None]] = [
    shape,
    rotation,
    reflection,
    translation,
    permutation,
    batching,
    far_fragments,
    isolated_atom,
    forces_are_gradient,
    stress_is_strain_derivative,
    smooth_at_cutoff,
    receptive_field,
    second_derivative_finite,
    input_unchanged,
    save_and_load,
    single_precision,
    recorded,
    compiled,
]
"""All promises; ``compiled`` takes up to a minute, ``recorded`` some seconds, the others a second together."""
