"""What the compiler is spared finding out again."""

import io
import logging
import operator
from types import SimpleNamespace

import pytest
import sympy
import torch
from torch._dynamo.repro import after_aot
from torch._functorch._aot_autograd import graph_compile
from torch._inductor import fx_utils, ir, sizevars
from torch._inductor.codegen import cpp
from torch._inductor.dtype_propagation import DtypePropagationOpsHandler
from torch._inductor.utils import op_dtype_propagation_rules
from torch._inductor.virtualized import V
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.functions import FloorDiv

from pyg_equivariant.nn import native, pairs, shortcuts
from pyg_equivariant.nn.compiler import register_rules


@pytest.fixture(autouse=True)
def registered() -> None:
    register_rules()


def size(shapes: ShapeEnv, value: int, name: str) -> torch.SymInt:
    source = torch._dynamo.source.ConstantSource(name)
    symbol = shapes.create_symbol(value, source, DimDynamic.DYNAMIC, constraint_dim=None)
    return shapes.create_symintnode(symbol, hint=value, source=source)


def test_sizes_are_multiplied_and_compared_once() -> None:
    shapes = ShapeEnv()
    n, m = size(shapes, 7, "n"), size(shapes, 5, "m")
    for operation in (lambda a, b: a * b, lambda a, b: a + b):
        first = operation(n, m).node
        known = len(vars(shapes)["pyg_equivariant_known"])
        second = operation(n, m).node
        assert len(vars(shapes)["pyg_equivariant_known"]) == known
        assert first is not second
        assert first.expr is second.expr
        assert first.expr == operation(n.node.expr, m.node.expr)
        assert operation(n, 3).node.expr == operation(n.node.expr, 3)
    assert [bool(n > m), bool(n < m), bool(n == 7), bool(n != 7), bool(n >= 8), bool(n <= 8)] == [1, 0, 1, 0, 0, 1]
    other = size(ShapeEnv(), 7, "n")
    assert (other * 3).node.shape_env is not (n * 3).node.shape_env


def test_strides_of_loops_are_as_before() -> None:
    """Sums of products as they are, and what the compiler's own rule simplifies simplified."""
    x, y, s = sympy.symbols("x y s", integer=True, positive=True)
    simplified = sizevars.simplify_index_in_vec_range
    index = 64 * s * y + 3 * x + s
    assert simplified(index, x, 16) is index
    assert simplified(FloorDiv(x, 16) + y, x, 16) == sympy.Symbol("x_div_c0") + y
    assert cpp.stride_at_vec_range(index, x, 16) == 3
    assert cpp.stride_at_vec_range(index, y, 16) == 64 * s
    assert cpp.stride_at_vec_range(FloorDiv(x, 16) + y, x, 16) == 0


def test_types_of_operations_are_set_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = DtypePropagationOpsHandler()
    del handler.add
    assert not hasattr(DtypePropagationOpsHandler(), "add")  # not again
    monkeypatch.setitem(op_dtype_propagation_rules, "unheard_of", op_dtype_propagation_rules["add"])
    assert hasattr(DtypePropagationOpsHandler(), "unheard_of")  # but when there is a new one
    assert hasattr(handler, "add")


def test_numbers_are_told_from_sizes() -> None:
    shapes = ShapeEnv()
    n = size(shapes, 7, "n").node
    assert n.maybe_as_int() is None
    assert n.wrap_int(3).maybe_as_int() == 3
    assert (size(shapes, 5, "m") * 0).node.maybe_as_int() == 0


def test_sizes_are_what_is_known_of_them_by_now(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = ShapeEnv()
    n, m = size(shapes, 7, "n"), size(shapes, 7, "m")
    double = (2 * n).node
    before = str(double)
    assert double._graph_repr() is before  # written once
    assert before == f"2*{n.node._expr}"
    assert str((n > 3).node) == f"{n.node._expr} > 3"
    assert (str(n.node.wrap_int(1)), str(n.node.wrap_bool(True))) == ("1", "True")
    assert n == m  # which the compiler takes for granted from here on
    assert n.node.expr == m.node.expr
    assert {str(n.node), str(m.node)} == {str(n.node.expr)}
    assert str(double) == f"2*{n.node.expr}"
    known = double.expr
    monkeypatch.setattr(sympy.Expr, "is_number", property(lambda size: pytest.fail(f"{size!r} is asked again")))
    assert double.expr is known


def test_operations_find_their_shapes_with_one_tensor_a_shape() -> None:
    made: list[ir.Buffer] = []

    def own(x: ir.Buffer | None, hints: bool = False) -> torch.Tensor | None:
        if x is None:
            return None
        made.append(x)
        return torch.empty_strided(x.get_size(), x.get_layout().stride, dtype=x.get_dtype())

    def buffer(size: list[int], stride: list[int], dtype: torch.dtype = torch.float32) -> ir.Buffer:
        return ir.InputBuffer(name="x", layout=ir.FixedLayout(torch.device("cpu"), dtype, size, stride))

    tensor = shortcuts._one_a_shape(own)
    with V.set_graph_handler(SimpleNamespace()):
        first, again = tensor(buffer([6, 4], [4, 1])), tensor(buffer([6, 4], [4, 1]))
        assert first is again
        others = buffer([6, 4], [1, 6]), buffer([4, 6], [6, 1]), buffer([6, 4], [4, 1], torch.float64)
        for other in others:
            assert tensor(other).stride() == tuple(other.get_layout().stride)
        assert tensor(None) is None
        assert len(made) == 1 + len(others)
        tensor(buffer([6, 4], [4, 1]), True)  # sizes are numbers then
        tensor(buffer([6, 4], [4, 1]), hints=True)
        assert len(made) == 3 + len(others)
    with V.set_graph_handler(SimpleNamespace()):  # another graph
        assert tensor(buffer([6, 4], [4, 1])) is not first


def test_a_graph_that_knows_its_tensors_is_not_run_again() -> None:
    def graph(known: bool, traced: bool) -> torch.fx.GraphModule:
        gm = torch.fx.symbolic_trace(lambda x: torch.sin(x))
        (node,) = gm.graph.find_nodes(op="call_function", target=torch.sin)
        if known:
            node.meta["val"] = "what it gives"
        if traced:
            gm.meta[shortcuts.TRACED] = True
        return gm

    ran = []
    propagate = shortcuts._as_traced(lambda gm, inputs, *rest: ran.append(gm) or "own")
    mode = torch._subclasses.FakeTensorMode()
    inputs = [mode.from_tensor(torch.ones(2))]
    assert propagate(graph(known=True, traced=True), inputs) is mode
    assert not ran
    for known, traced in ((False, True), (True, False)):
        assert propagate(graph(known, traced), inputs) == "own"
    assert propagate(graph(known=True, traced=True), inputs, True) == "own"
    assert propagate(graph(known=True, traced=True), [torch.ones(2)]) == "own"
    assert len(ran) == 4


def test_shapes_of_our_operations_are_remembered() -> None:
    """By the shapes that they read; sizes that a tensor's content decides are new ones each time."""
    calls = []
    operation = native.operation(
        "remembered(Tensor x, int n) -> Tensor", lambda x, n: calls.append(n) or x.new_empty(n, x.shape[0])
    )
    with torch._subclasses.FakeTensorMode(shape_env=ShapeEnv()) as mode:
        x = torch.empty(5)
        assert [tuple(operation(x, n).shape) for n in (2, 2, 3, 2)] == [(2, 5), (2, 5), (3, 5), (2, 5)]
        assert tuple(operation(torch.empty(4), 2).shape) == (2, 4)
        assert calls == [2, 3, 2]
        edges = mode.from_tensor(torch.zeros(2, 6, dtype=torch.long)), mode.from_tensor(torch.zeros(6, 3))
        first, again = (pairs._find_pairs(*edges)[0].shape[0] for _ in range(2))
        assert first.node.expr != again.node.expr


def updated(function, change, *inputs) -> list[str]:
    """A graph, and what the compiler finds out again of it after a change."""
    with torch._subclasses.FakeTensorMode() as mode, V.set_fake_mode(mode):
        gm = make_fx(function)(*(mode.from_tensor(x) for x in inputs))
        updater = fx_utils.FakeTensorUpdater(gm)
        change(gm.graph)
        before = {node.name: node.meta.get("val") for node in gm.graph.nodes}
        updater.incremental_update()
    return [n.name for n in gm.graph.nodes if n.op == "call_function" and n.meta["val"] is not before[n.name]]


def test_what_has_not_changed_is_not_found_out_again() -> None:
    """A tensor in the place of one of the same shape changes nothing for what is made of it, but for its views."""

    def function(x):
        y = torch.sin(x)
        return torch.cos(torch.exp(y)), torch.exp(y + 1.0).view(-1)

    def other(graph: torch.fx.Graph) -> None:
        (sin,) = graph.find_nodes(op="call_function", target=torch.ops.aten.sin.default)
        sin.target = torch.ops.aten.tanh.default

    def larger(graph: torch.fx.Graph) -> None:
        (sin,) = graph.find_nodes(op="call_function", target=torch.ops.aten.sin.default)
        sin.target, sin.args = torch.ops.aten.repeat.default, (sin.args[0], [2, 1])

    def last(graph: torch.fx.Graph) -> None:
        (add,) = graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)
        (exp,) = add.users
        exp.target = torch.ops.aten.sqrt.default

    x = torch.ones(3, 4)
    assert updated(function, lambda graph: None, x) == []
    assert updated(function, other, x) == []
    assert updated(function, larger, x) == ["sin", "exp", "cos", "add", "exp_1", "view"]
    assert updated(function, last, x) == ["exp_1", "view"]  # they share memory


def test_called_graphs_are_not_run_again() -> None:
    """Nor what reads what they give, as long as nothing in them has changed."""
    with torch._subclasses.FakeTensorMode() as mode, V.set_fake_mode(mode):
        x = mode.from_tensor(torch.ones(4))
        body = make_fx(lambda x: (torch.sin(x), torch.cos(x)))(x)
        graph = torch.fx.Graph()
        given, called = graph.placeholder("x"), graph.create_node("get_attr", "body")
        call = graph.call_function(torch.ops.higher_order.invoke_subgraph, (called, "body", given))
        first = graph.call_function(operator.getitem, (call, 0))
        graph.output((first,))
        given.meta["val"], call.meta["val"] = x, body(x)
        first.meta["val"] = call.meta["val"][0]
        gm = torch.fx.GraphModule({"body": body}, graph)
        assert fx_utils.FakeTensorUpdater(gm).incremental_update() == 0


def test_known_arguments_are_those_of_the_node() -> None:
    graph = torch.fx.Graph()
    x, table = graph.placeholder("x"), graph.create_node("get_attr", "table")
    x.meta["val"] = "a tensor"
    node = graph.call_function(torch.cat, ([x, table], 1), {"out": x})
    gm = torch.fx.GraphModule({"table": torch.nn.Module()}, graph)
    assert fx_utils.get_fake_args_kwargs(node, gm) == (True, (["a tensor", gm.table], 1), {"out": "a tensor"})


def test_graphs_are_written_out_for_those_who_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcuts.trace_log, "handlers", [])
    write = shortcuts._if_logged("nothing", lambda *graphs: "text")
    assert write("graph") == "nothing"
    assert graph_compile._log_joint_graph("graph", None) is None  # not even looked at
    with monkeypatch.context() as patch:
        patch.setattr(shortcuts.log_state, "artifact_names", {"aot_joint_graph"})
        assert write("graph") == "text"
    with monkeypatch.context() as patch:
        patch.setattr(shortcuts.trace_log, "handlers", ["a file"])
        assert write("graph") == "text"
    with monkeypatch.context() as patch:
        patch.setattr(shortcuts.compiler_log, "level", logging.DEBUG)
        shortcuts.compiler_log.manager._clear_cache()
        assert write("graph") == "text"
    shortcuts.compiler_log.manager._clear_cache()


def test_texts_that_compiled_graphs_keep_are_written_for_logs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcuts.trace_log, "handlers", [])
    gm = torch.fx.symbolic_trace(torch.nn.ReLU())

    def texts() -> list[str]:
        script = io.StringIO()
        after_aot.save_graph_repro(script, gm, [torch.zeros(1)], "inductor", save_dir=None)
        keeps = gm.print_readable(print_output=False, fast_sympy_print=True)
        return [script.getvalue(), keeps, gm.print_readable(print_output=False)]

    assert all("relu" in text for text in texts())
    with torch._guards.tracing(torch._guards.TracingContext(None)):
        unwritten, empty, asked_for = texts()
        assert (unwritten, empty) == ("", "")
        assert "relu" in asked_for
        monkeypatch.setattr(shortcuts.trace_log, "handlers", ["a file"])
        assert all("relu" in text for text in texts())
