"""Graphs of many layers that become calls of one."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import aot_function, make_boxed_func, nop
from torch import Tensor, fx
from torch._inductor.utils import run_and_get_code
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

repeats = pytest.importorskip("pyg_equivariant.nn.repeats", exc_type=ImportError)
Partition = pytest.importorskip("pyg_equivariant.nn.partition", exc_type=ImportError).Partition

CALL = torch.ops.higher_order.invoke_subgraph
ATOMS, EDGES, CHANNELS = 5, 12, 4


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "SMALLEST", 4)


def inputs(layers: int = 6) -> list[Tensor]:
    """Some atoms, and weights for each layer."""
    generator = torch.Generator().manual_seed(0)
    sizes = [ATOMS] + layers * [CHANNELS]
    return [torch.randn(size, CHANNELS, generator=generator).requires_grad_() for size in sizes]


def folded(step: Callable[..., Tensor], *arguments: Tensor) -> list[fx.GraphModule]:
    """Both parts of ``step`` and its derivatives, which give what they do without a compiler."""
    parts: list[fx.GraphModule] = []

    def partition(gm: fx.GraphModule, joint_inputs: Any, **options: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
        parts.extend(Partition()(gm, joint_inputs, **options))
        for part in parts:
            for node in part.graph.find_nodes(op="call_function", target=CALL):
                body = getattr(part, node.args[0].target)
                wanted = [kind(each.meta["val"]) for each in body.graph.find_nodes(op="placeholder")]
                assert [kind(each.meta["val"]) for each in node.args[2:]] == wanted
        return parts[0], parts[1]

    def forward(gm: fx.GraphModule, inputs: Any) -> Any:
        return make_boxed_func(gm.forward)

    wanted = [each for each in arguments if each.requires_grad]
    loss = aot_function(step, fw_compiler=forward, bw_compiler=nop, partition_fn=partition)(*arguments).square().sum()
    expected = step(*arguments).square().sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, wanted), torch.autograd.grad(expected, wanted))
    return parts


def kind(value: Tensor) -> Any:
    return value.dtype, value.shape, value.stride()


def calls(module: fx.GraphModule) -> list[int]:
    """How often each graph in it is called."""
    return sorted(Counter(node.args[1] for node in module.graph.nodes if node.target is CALL).values())


def dense(x: Tensor, *weights: Tensor) -> Tensor:
    for weight in weights:
        x = x + torch.tanh(torch.sigmoid(x @ weight) - 0.5)
    return x


def test_layers_are_called() -> None:
    forward, backward = folded(dense, *inputs())
    assert calls(forward) == [6]
    assert calls(backward) in ([5], [6])
    (body,) = {node.args[0].target for node in forward.graph.nodes if node.target is CALL}
    assert sum(node.op == "call_function" for node in getattr(forward, body).graph.nodes) < 8


def test_layers_that_differ_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(x: Tensor, *weights: Tensor) -> Tensor:
        for number, weight in enumerate(weights, 1):
            x = torch.tanh(torch.sigmoid((number * x) @ weight) - number) / number + x
        return x

    monkeypatch.setattr(repeats, "SMALLEST", 20)
    forward, _ = folded(step, *inputs())
    assert calls(forward) == []
    forward, _ = folded(dense, *inputs())
    assert calls(forward) == [6]


def test_layers_of_which_some_read_others_are_not() -> None:
    """The same operations, but of what another one gave."""

    def step(x: Tensor, *weights: Tensor) -> Tensor:
        for number, weight in enumerate(weights):
            y = torch.sigmoid(x @ weight)
            z = torch.tanh(y)
            x = torch.exp(-(y if number % 2 else z)) + torch.cos(z if number % 2 else y)
        return x

    forward, _ = folded(step, *inputs())
    assert calls(forward) in ([3], [3, 3])


def test_layers_of_other_strides_are_not() -> None:
    """The same operations with the same outcomes, but of weights that lie otherwise in memory."""

    def step(x: Tensor, *weights: Tensor) -> Tensor:
        for weight in weights:
            x = x + torch.tanh(torch.sigmoid(x - 0.5) @ weight)
        return x

    x, *weights = inputs()
    turned = [w.detach().t().requires_grad_() if number % 2 else w for number, w in enumerate(weights)]
    forward, _ = folded(step, x, *turned)
    assert calls(forward) == [3, 3]


def test_there_are_too_few_operations_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "SMALLEST", 80)
    forward, _ = folded(dense, *inputs())
    assert calls(forward) == []


def test_views_of_a_layer_are_taken_outside() -> None:
    """A result must not share the memory of another one or of what was given."""

    def step(x: Tensor, *weights: Tensor) -> Tensor:
        collected = []
        for weight in weights:
            y = torch.tanh(torch.sigmoid(x @ weight) - 0.5)
            collected += [y[:, :2].t(), x.view(-1)[:3]]
            x = x + y
        return torch.cat([each.reshape(-1) for each in collected]) * x.sum()

    forward, _ = folded(step, *inputs())
    assert calls(forward) == [6]
    for node in forward.graph.nodes:
        if node.target is CALL:
            storages = [each.untyped_storage()._cdata for each in node.meta["val"]]
            given = [each.meta["val"].untyped_storage()._cdata for each in node.args[2:]]
            assert len({*storages, *given}) == len(storages) + len(given)


def test_what_edges_read_is_read_again() -> None:
    """No result of a call has a value for each edge that its reader could take from the atoms."""

    def step(source: Tensor, target: Tensor, x: Tensor, *weights: Tensor) -> Tensor:
        read = x[source]
        for weight in weights:
            x = torch.tanh(torch.sigmoid(x @ weight) - 0.5)
            sums = torch.zeros_like(x).index_add(0, target, read * x[source])
            read = x[target]
            x = x + sums
        return x + torch.zeros_like(x).index_add(0, target, read)

    edge_index = torch.randint(0, ATOMS, (2, EDGES), generator=torch.Generator().manual_seed(1))
    forward, _ = folded(step, *edge_index, *inputs())
    assert calls(forward)[-1] >= 4
    for node in forward.graph.nodes:
        if node.target is CALL:
            values = [each for each in node.meta["val"] if each.dim() == 2]
            assert all(len(value) != EDGES for value in values)


def test_sizes_are_known_in_a_call() -> None:
    """A called graph is told the sizes that it cannot see in what it gets."""

    def step(x: Tensor, *weights: Tensor) -> Tensor:
        y = torch.tanh(x.reshape(-1))  # four times as long as what the compiler calls a size
        for weight in weights:
            y = torch.tanh(torch.sigmoid(y * weight.sum()) - 0.5)
            y = y / (1 + y.square().sum())  # a loop ends
        return y

    from pyg_equivariant.nn.compiler import inductor_options, register_rules

    register_rules()
    x, *weights = inputs()
    torch._dynamo.reset()
    with torch._inductor.config.patch(fx_graph_cache=False), torch._functorch.config.patch(enable_autograd_cache=False):
        compiled = torch.compile(step, options=inductor_options(), dynamic=True)
        for rows in (slice(None), slice(3)):
            part = x[rows].detach()
            result, codes = run_and_get_code(lambda part=part: compiled(part, *weights))
            expected = step(part, *weights)
            torch.testing.assert_close(result, expected)
            found = torch.autograd.grad(result.square().sum(), weights)
            torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), weights))
            assert len(codes) == 2 or len(part) != ATOMS  # it may be compiled for all sizes
            assert all(code.count("repeated_0(") >= 5 for code in codes)


def test_a_size_is_given_by_its_own_name() -> None:
    """Not by that of another one which was found to be equal to it later."""
    shapes = ShapeEnv()
    sizes = []
    for name in "nm":
        source = torch._dynamo.source.ConstantSource(name)
        symbol = shapes.create_symbol(7, source, DimDynamic.DYNAMIC, constraint_dim=None)
        sizes.append(shapes.create_symintnode(symbol, hint=7, source=source))
    assert bool(sizes[0] == sizes[1])  # from here on one stands for both
    (own,) = [size for size in sizes if size.node._expr == size.node.expr]
    (other,) = [size for size in sizes if size.node._expr != size.node.expr]
    graph = fx.Graph()
    with torch._subclasses.FakeTensorMode(shape_env=shapes):
        values = {"other": other, "own": own, "x": torch.empty(own + 1)}
    given = {name: graph.placeholder(name) for name in values}
    for name, node in given.items():
        node.meta["val"] = values[name]
    sin = graph.call_function(torch.ops.aten.sin.default, (given["x"],))
    graph.output(sin)
    sin.meta["val"] = values["x"]
    region = repeats._region([sin])
    assert region is not None
    assert region.inputs == [given["x"], given["own"]]


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_compiler_writes_one_function(monkeypatch: pytest.MonkeyPatch, dynamic: bool) -> None:
    from pyg_equivariant.nn.compiler import inductor_options, register_rules

    register_rules()
    x, *weights = inputs()
    expected = dense(x, *weights)
    gradients = torch.autograd.grad(expected.square().sum(), (x, *weights))
    torch._dynamo.reset()
    with torch._inductor.config.patch(fx_graph_cache=False), torch._functorch.config.patch(enable_autograd_cache=False):
        compiled = torch.compile(dense, options=inductor_options(), dynamic=dynamic)

        def run() -> tuple[Tensor, tuple[Tensor, ...]]:
            result = compiled(x, *weights)
            return result, torch.autograd.grad(result.square().sum(), (x, *weights))

        (result, found), codes = run_and_get_code(run)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(found, gradients)
    assert len(codes) == 2
    for code in codes:
        assert len(re.findall(r"def \w*repeated_0\(", code)) == 1
        assert len(re.findall(r"= \w*repeated_0\(", code)) >= 5


def test_a_call_does_not_write_into_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch takes the arguments of a graph in a backward part for those of the part, some of which are free."""
    from torch._inductor import graph

    from pyg_equivariant.nn.compiler import inductor_options, register_rules

    register_rules()
    own = graph.DonatedBuffer
    free_in: list[type] = []
    monkeypatch.setattr(graph, "DonatedBuffer", lambda **buffer: free_in.append(type(graph.V.graph)) or own(**buffer))
    x, *weights = inputs()
    torch._dynamo.reset()
    with torch._inductor.config.patch(fx_graph_cache=False), torch._functorch.config.patch(enable_autograd_cache=False):
        result = torch.compile(dense, options=inductor_options())(x, *weights)
        found = torch.autograd.grad(result.square().sum(), (x, *weights))
    torch.testing.assert_close(found, torch.autograd.grad(dense(x, *weights).square().sum(), (x, *weights)))
    assert set(free_in) == {graph.GraphLowering}
