"""What the compiler is spared finding out again."""

from types import SimpleNamespace

import pytest
import sympy
import torch
from torch._inductor import ir, sizevars
from torch._inductor.codegen import cpp
from torch._inductor.dtype_propagation import DtypePropagationOpsHandler
from torch._inductor.utils import op_dtype_propagation_rules
from torch._inductor.virtualized import V
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.functions import FloorDiv

from pyg_equivariant.nn import shortcuts
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
