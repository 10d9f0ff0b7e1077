"""The nonlinearity that compiled steps have as one operation."""

import jaxtyping
import pytest
import torch
from torch.nn import functional

from pyg_equivariant.nn.activation import SiLU, silu, silu_derivative
from pyg_equivariant.nn.compiler import inductor_options, register_rules


def test_derivatives_are_those_of_autograd() -> None:
    x = torch.linspace(-30, 30, 61, dtype=torch.float64, requires_grad=True)
    y = functional.silu(x)
    for order in range(5):
        actual = silu_derivative(x, x.sigmoid(), order)
        torch.testing.assert_close(actual, y, atol=1e-12, rtol=1e-12)
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_with_its_first_two_derivatives(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a force field is trained: one operation for each, the same numbers."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    register_rules()
    torch.compiler.reset()
    generator = torch.Generator().manual_seed(0)
    x = (4 * torch.randn(40, 3, generator=generator, dtype=dtype)).requires_grad_()
    weight = torch.randn(40, 3, generator=generator, dtype=dtype)

    def step(x: torch.Tensor) -> torch.Tensor:
        (slope,) = torch.autograd.grad((weight * silu(x)).sum(), x, create_graph=True)
        return slope.square().sum()

    assert SiLU()(x).equal(functional.silu(x))
    expected = step(x)
    (gradient,) = torch.autograd.grad(expected, x)
    graphs: list[torch.fx.Graph] = []
    options = {**inductor_options(), "joint_custom_pre_pass": graphs.append}
    uncached = torch._functorch.config.patch(enable_autograd_cache=False)
    with torch._dynamo.config.patch(trace_autograd_ops=True), uncached:
        actual = torch.compile(step, fullgraph=True, options=options)(x)
    actual.backward()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(x.grad, gradient)
    targets = [str(node.target) for graph in graphs for node in graph.nodes]
    assert targets.count("pyg_equivariant.silu_derivative.default") == 2  # σ' and σ''
    assert not {"aten.sigmoid.default", "aten.exp.default"}.intersection(targets)
