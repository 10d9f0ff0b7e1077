"""What the compiled step keeps: what atoms have, not what their edges read of it."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from functorch.compile import aot_function, make_boxed_func, nop
from torch import Tensor, fx
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.custom_graph_pass import get_hash_for_files

from pyg_equivariant.models import SchNet
from pyg_equivariant.nn import activation
from pyg_equivariant.potential import Potential

partition = pytest.importorskip("pyg_equivariant.nn.partition", exc_type=ImportError)
Partition = partition.Partition

ATOMS, EDGES, CHANNELS = 5, 40, 3


def layers(activate: Callable[[Tensor], Tensor], x: Tensor, edge_index: Tensor, weights: Tensor) -> Tensor:
    source, target = edge_index.unbind()
    for weight in weights.unbind():
        message = activate(x[source] * x[target])
        x = x + torch.zeros_like(x).index_add(0, target, message) @ weight
    return x.square().sum()


def kept(partition: object, activate: Callable[[Tensor], Tensor] = torch.neg) -> list[int]:
    """How many rows each of the floats has that the forward part leaves to the backward one."""
    rows: list[int] = []

    def forward(gm: fx.GraphModule, inputs: object) -> object:
        (output,) = gm.graph.find_nodes(op="output")
        values = [node.meta["val"] for node in output.args[0] if isinstance(node, fx.Node)]
        rows.extend(len(value) for value in values if value.dim() and value.is_floating_point())
        return make_boxed_func(gm.forward)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ATOMS, CHANNELS, generator=generator).requires_grad_()
    weights = torch.randn(3, CHANNELS, CHANNELS, generator=generator).requires_grad_()
    edge_index = torch.randint(0, ATOMS, (2, EDGES), generator=generator)
    step = functools.partial(layers, activate)
    loss = aot_function(step, fw_compiler=forward, bw_compiler=nop, partition_fn=partition)(x, edge_index, weights)
    actual = torch.autograd.grad(loss, (x, weights))
    expected = torch.autograd.grad(step(x, edge_index, weights), (x, weights))
    torch.testing.assert_close(actual, expected)
    return rows


def test_edges_read_their_atoms_again() -> None:
    assert EDGES not in kept(Partition())
    assert EDGES in kept(min_cut_rematerialization_partition), "PyTorch does so itself by now: Partition can go"


def test_activations_are_computed_again() -> None:
    def compiled_silu(x: Tensor) -> Tensor:
        return activation._derivative(x, 0)

    assert EDGES not in kept(Partition(), compiled_silu)
    assert EDGES in kept(min_cut_rematerialization_partition, compiled_silu)


def test_compiled_models_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {}
    monkeypatch.setattr(torch, "compile", lambda step, **options: told.update(options) or step)
    Potential(SchNet(8, 1, cutoff=4.0)).compile(options={"epilogue_fusion": False})
    assert isinstance(told["options"]["custom_partitioner_fn"], Partition)
    assert told["options"]["epilogue_fusion"] is False


@pytest.mark.parametrize("changed", ["activation.py", "head_sum.py", "native/__init__.py"])
def test_what_the_compiler_stored_is_of_the_same_operations(
    changed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever changes a derivative's formula does not get the graph of before from the compiler's cache."""
    folder = shutil.copytree(Path(partition.__file__).parent, tmp_path / "nn")
    monkeypatch.setattr(partition, "__file__", str(folder / "partition.py"))
    before = Partition().uuid()
    get_hash_for_files.cache_clear()  # of this process
    assert Partition().uuid() == before
    get_hash_for_files.cache_clear()
    (folder / changed).write_text((folder / changed).read_text() + "# another formula\n")
    assert Partition().uuid() != before
