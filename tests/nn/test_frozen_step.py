"""The compiled step of frozen models."""

import copy
import pickle
import re
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor
from torch._inductor import codecache, config
from torch_geometric.data import Batch, Data

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.heads import EnergyHead
from pyg_equivariant.models import PaiNN, SchNet
from pyg_equivariant.nn.frozen_step import FrozenStep
from pyg_equivariant.nn.host_code import _WrapperCodeCache
from pyg_equivariant.potential import Potential, Predictor
from pyg_equivariant.testing import example_molecule, potential_of, record_steps
from pyg_equivariant.typing import Prediction


@pytest.fixture(autouse=True)
def no_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # jaxtyping's checks cannot be traced


def molecules(*sizes: int) -> Batch:
    return Batch.from_data_list([RadiusGraph(4.0)(example_molecule(size, spread=1.5, seed=size)) for size in sizes])


def assert_equal(actual: Prediction, expected: Prediction) -> None:
    for name in ("energy", "forces", "stress", "atomic_energy"):
        values = getattr(actual, name), getattr(expected, name)
        assert (values[0] is None) == (values[1] is None), name
        if values[0] is not None:
            torch.testing.assert_close(*values, rtol=1e-9, atol=1e-11)
            assert not values[0].requires_grad
    assert actual.properties.keys() == expected.properties.keys()
    for name, value in actual.properties.items():
        torch.testing.assert_close(value, expected.properties[name], rtol=1e-9, atol=1e-11)


def frozen(representation: Any = None, **options: Any) -> tuple[Potential, Potential]:
    """Eager and to be recorded."""
    model = potential_of(representation or SchNet(8, 2, cutoff=4.0), **options)
    return model.frozen(), model.frozen()


def test_one_record_for_all_numbers_that_are_more_than_one() -> None:
    eager, model = frozen()
    records = record_steps(model)
    for sizes in ((5, 7), (4, 4, 4), (8, 3)):
        assert_equal(model(molecules(*sizes)), eager(molecules(*sizes)))
    assert len(records) == 1
    for sizes in ((9,), (3,)):
        assert_equal(model(molecules(*sizes)), eager(molecules(*sizes)))
    assert len(records) == 2  # one graph is another kind


@pytest.mark.parametrize("atoms", [1, 2])
def test_few_atoms_and_no_edges(atoms: int) -> None:
    eager, model = frozen()
    record_steps(model)
    z, pos = torch.tensor([8, 1])[:atoms], 9 * torch.eye(3, dtype=torch.float64)[:atoms]
    data = RadiusGraph(4.0)(Data(z=z, pos=pos))
    assert data.num_edges == 0
    assert_equal(model(data), eager(data))


def test_forces_and_stress_are_kinds() -> None:
    eager, model = frozen(stress=True)
    records = record_steps(model)
    cell = 5 * torch.eye(3, dtype=torch.float64)[None]
    data = RadiusGraph(4.0)(Data(**example_molecule(6).to_dict(), cell=cell, pbc=torch.ones(1, 3, dtype=torch.bool)))
    for forces, stress in ((True, True), (True, False), (False, False), (True, True)):
        for each in (eager, model):
            each.forces, each.stress = forces, stress
        assert_equal(model(data), eager(data))
    assert len(records) == 3


def test_the_state_that_the_compiler_knows_is_a_kind() -> None:
    eager, model = frozen()
    records = record_steps(model)
    data = molecules(6)
    before = torch.get_num_threads()
    model(data)
    try:
        torch.set_num_threads(before + 1)
        assert_equal(model(data), eager(data))
    finally:
        torch.set_num_threads(before)
    model(data)
    assert len(records) == 2
    model(data.clone().update({"z": data.z.int()}))
    assert len(records) == 3


def test_inputs_may_lie_anyhow_in_memory() -> None:
    eager, model = frozen()
    record_steps(model)
    data = molecules(6)
    edge_index, pos = data.edge_index.T.contiguous().T, data.pos.T.contiguous().T
    strided = data.clone().update({"edge_index": edge_index, "pos": pos})
    model(data)
    assert_equal(model(strided), eager(strided))


def test_new_weights() -> None:
    """In place, at another precision, or in a copy."""
    eager, model = frozen()
    records = record_steps(model)
    data = molecules(6)
    model(data)
    for each in (eager, model):
        next(each.parameters()).mul_(1.5)
    assert_equal(model(data), eager(data))
    assert len(records) == 1
    for twin in (copy.deepcopy(model), model.float().double()):
        next(twin.parameters()).mul_(1.5)
        reference = copy.deepcopy(twin)
        reference._compiled = None
        assert_equal(twin(data), reference(data))
    assert len(records) == 3


def test_pickled() -> None:
    model = potential_of(SchNet(8, 1, cutoff=4.0)).frozen(compile=True)
    again = pickle.loads(pickle.dumps(model))
    assert isinstance(again._compiled, FrozenStep)
    assert again._compiled.model is again


def test_of_a_compiled_model() -> None:
    model = potential_of(SchNet(8, 1, cutoff=4.0))
    model.compile(backend="eager")
    assert model.frozen()._compiled is None
    for step in (
        model.frozen(compile=True)._compiled,
        pickle.loads(pickle.dumps(model.frozen(compile=True)))._compiled,
    ):
        assert isinstance(step, FrozenStep)


def test_what_can_be_differentiated_is_not_compiled() -> None:
    eager, model = frozen()
    records = record_steps(model)
    data = molecules(6)
    torch.testing.assert_close(model(data, hessian=True).hessian, eager(data, hessian=True).hessian)
    model.train()
    moved = data.clone().update({"pos": data.pos.clone().requires_grad_()})
    assert model(moved).forces.requires_grad
    assert not records


def test_without_a_potential() -> None:
    predictor = Predictor(SchNet(8, 1, cutoff=4.0), {"gap": EnergyHead(8)}).double().eval()
    eager, model = predictor.frozen(), predictor.frozen()
    records = record_steps(model)
    data = molecules(6, 5)
    assert_equal(model(data), eager(data))
    assert len(records) == 1
    moved = data.clone().update({"pos": data.pos.clone().requires_grad_()})
    assert model(moved).properties["gap"].requires_grad


class Counting(PaiNN):
    """Its Python knows how many atoms there are."""

    def forward(self, z: Tensor, edge_index: Tensor, edge_vec: Tensor) -> Tensor:
        return super().forward(z, edge_index, edge_vec) * len(z)


def test_numbers_that_python_knows() -> None:
    eager, model = frozen(Counting(8, 1, cutoff=4.0))
    records = record_steps(model)
    for size in (2, 3, 4, 4, 3):
        assert_equal(model(molecules(size)), eager(molecules(size)))
    assert len(records) == 3
    with (
        torch._dynamo.config.patch(recompile_limit=3),
        pytest.raises(RuntimeError, match=r"compiled 3 times.*len\(x\)"),
    ):
        model(molecules(5))


def test_no_python_and_no_checks_of_sizes_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[str] = []
    load = codecache.CppWrapperCodeCache.load_pybinding_async

    def spy(*, main_code: str, **options: Any) -> Any:
        codes.append(main_code)
        return load(main_code=main_code, **options)

    monkeypatch.setattr(codecache.CppWrapperCodeCache, "load_pybinding_async", spy)
    model = potential_of(SchNet(8, 1, cutoff=4.0)).float()
    compiled, data = model.frozen(compile=True), molecules(6, 7)
    with config.patch(fx_graph_cache=False):
        found = compiled(data)
    torch.testing.assert_close(found.energy, model.frozen()(data).energy)
    assert len(codes) == 1
    assert "assert_size_stride(" not in codes[0]
    compiled_beforehand = _WrapperCodeCache._get_uncompiled_header("cpu")
    assert compiled_beforehand is not None
    large = set(re.findall("^#include <((?:ATen|torch/csrc/inductor/cpp_).*)>", codes[0], re.MULTILINE))
    assert len(large) > 2
    for header in large:
        assert header in compiled_beforehand
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        compiled(data)
    called = {event.key for event in profile.key_averages() if event.key.startswith("pyg_equivariant::")}
    assert called
    assert all(name.startswith("pyg_equivariant::_") for name in called), "called by way of Python"
