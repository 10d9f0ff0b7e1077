"""What the compiler is spared finding out again."""

import pytest
import sympy
import torch
from torch._inductor import sizevars
from torch._inductor.codegen import cpp
from torch._inductor.dtype_propagation import DtypePropagationOpsHandler
from torch._inductor.utils import op_dtype_propagation_rules
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.functions import FloorDiv

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
