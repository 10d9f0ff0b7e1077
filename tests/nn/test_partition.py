"""What the compiled step keeps: what atoms have, not what their edges read of it."""

import pytest
import torch
from functorch.compile import aot_function, make_boxed_func, nop
from torch import Tensor, fx
from torch._functorch.partitioners import min_cut_rematerialization_partition

from pyg_equivariant.models import SchNet
from pyg_equivariant.potential import Potential

Partition = pytest.importorskip("pyg_equivariant.nn.partition", exc_type=ImportError).Partition

ATOMS, EDGES, CHANNELS = 5, 40, 3


def layers(x: Tensor, edge_index: Tensor, weights: Tensor) -> Tensor:
    source, target = edge_index.unbind()
    for weight in weights.unbind():
        message = x[source] * x[target]
        x = x + torch.zeros_like(x).index_add(0, target, message) @ weight
    return x.square().sum()


def kept(partition: object) -> list[int]:
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
    loss = aot_function(layers, fw_compiler=forward, bw_compiler=nop, partition_fn=partition)(x, edge_index, weights)
    actual = torch.autograd.grad(loss, (x, weights))
    expected = torch.autograd.grad(layers(x, edge_index, weights), (x, weights))
    torch.testing.assert_close(actual, expected)
    return rows


def test_edges_read_their_atoms_again() -> None:
    assert EDGES not in kept(Partition())
    assert EDGES in kept(min_cut_rematerialization_partition), "PyTorch does so itself by now: Partition can go"


def test_compiled_models_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {}
    monkeypatch.setattr(torch, "compile", lambda step, **options: told.update(options) or step)
    Potential(SchNet(8, 1, cutoff=4.0)).compile(options={"epilogue_fusion": False})
    assert isinstance(told["options"]["custom_partitioner_fn"], Partition)
    assert told["options"]["epilogue_fusion"] is False
