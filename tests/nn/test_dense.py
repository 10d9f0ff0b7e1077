"""The operations of dense layers against PyTorch's, in three derivatives."""

from collections.abc import Callable

import jaxtyping
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyg_equivariant.nn.dense import Dense, linear
from pyg_equivariant.nn.native import kernels


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As within a compiled step."""
    assert kernels()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


def leaves(shape: tuple[int, ...], outs: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = shape, (outs, shape[-1]), (outs,)
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "outs"), [((20, 7), 5), ((4, 3, 8), 16), ((5,), 3), ((0, 4), 2), ((6, 0), 2)])
def test_equals_pytorch(shape: tuple[int, ...], outs: int, bias: bool, derivatives: Callable) -> None:
    inputs = leaves(shape, outs)[: 3 if bias else 2]
    fast, slow = derivatives(linear, inputs), derivatives(functional.linear, inputs)
    assert len(fast) == len(slow)
    for number, (a, b) in enumerate(zip(fast, slow, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=str(number))


@pytest.mark.usefixtures("traced")
def test_parts_of_tensors_are_read_where_they_are() -> None:
    x, w, b = leaves((20, 8), 6)
    inputs = (x[:, 2:6], w[:, 4:], b), (x.T[:, :6], w[:, :6], None), (x[::2], w.T.contiguous().T, b)
    for each in inputs:
        torch.testing.assert_close(linear(*each), functional.linear(*each), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("traced")
def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would refuse the same before
    x, w, b = leaves((20, 8), 6)
    with pytest.raises(ValueError, match=r"a matrix \[6, 8\] cannot multiply rows \[20, 7\]"):
        linear(x[:, 1:], w, b)
    with pytest.raises(ValueError, match=r"cannot multiply rows \[20, 8\] and add \[5\]"):
        linear(x, w, b[1:])
    with pytest.raises(ValueError, match=r"a matrix \[6, 8\] cannot multiply gradients \[20, 8\]"):
        torch.ops.pyg_equivariant.linear_back(x, w)
    with pytest.raises(ValueError, match=r"gradients \[20, 8\] do not belong to rows \[6, 8\]"):
        torch.ops.pyg_equivariant.linear_outer(x, w)


def test_compiled_step_has_one_operation_a_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss of forces: the layer forward, its two derivatives back, and those of both; nothing turned around."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks cannot be traced
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        from torch._dynamo.backends.common import aot_autograd
        from torch._functorch.aot_autograd import make_boxed_func

        def keep(part: torch.fx.GraphModule, _: object) -> Callable:
            graphs.append(part)
            return make_boxed_func(part.forward)

        return aot_autograd(fw_compiler=keep, bw_compiler=keep)(graph, inputs)

    layer = Dense(8, 4)
    x = torch.randn(5, 8).requires_grad_()

    def step(x: Tensor) -> Tensor:
        y = torch.cos(layer(torch.sin(x)))
        (force,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return force.square().sum()

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        torch.compile(step, backend=backend, fullgraph=True)(x).backward()
    names = [str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    ours = [name.split(".")[1] for name in names if "linear" in name]
    assert {name: ours.count(name) for name in ours} == {"linear_forward": 2, "linear_back": 2, "linear_outer": 2}
    assert not [name for name in names if "mm" in name or "permute" in name or "transpose" in name or ".t." in name]


def test_module_is_pytorchs() -> None:
    torch.manual_seed(0)
    ours = Dense(8, 4)
    torch.manual_seed(0)
    theirs = nn.Linear(8, 4)
    assert all(torch.equal(theirs.state_dict()[name], value) for name, value in ours.state_dict().items())
    x = torch.randn(3, 8)
    assert torch.equal(ours(x), theirs(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
