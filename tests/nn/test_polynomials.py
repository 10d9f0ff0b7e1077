"""The kernel of weighted polynomials against their formula and PyTorch's operations, in three derivatives."""

import itertools
import math
from collections.abc import Callable

import jaxtyping
import pytest
import torch

from pyg_equivariant.nn import polynomials as module
from pyg_equivariant.nn.polynomials import Monomial, Polynomials

ATOMS, COMPONENTS, WEIGHTS, OUTCOMES = 4, 5, 7, 3


def terms(order: int) -> list[Monomial]:
    """Each product of up to so many of five components with a tenth of all choices of outcome and weight."""
    products = [
        factors
        for count in range(1, order + 1)
        for factors in itertools.combinations_with_replacement(range(COMPONENTS), count)
    ]
    choices = itertools.product(range(OUTCOMES), range(WEIGHTS), products)
    return [Monomial(*choice, math.sin(n)) for n, choice in enumerate(choices) if n * n % 11 == 4 or order == 1]


def arguments(channels: int, atoms: int = ATOMS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (atoms, COMPONENTS, channels), (atoms, WEIGHTS, channels)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_formula(order: int, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernel:
        monkeypatch.setattr(module, "runs_on", lambda x: False)
    x, weight = arguments(9)
    expected = x.new_zeros(ATOMS, OUTCOMES, 9)
    for out, f, factors, value in terms(order):
        expected[:, out] += value * weight[:, f] * x[:, list(factors)].prod(1)
    result = Polynomials(terms(order), COMPONENTS, OUTCOMES).double()(x, weight)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("order", "channels", "atoms"), [(1, 8, 4), (2, 1, 4), (3, 21, 4), (4, 8, 4), (5, 4, 2), (3, 4, 0)]
)
def test_equals_pytorch(
    order: int, channels: int, atoms: int, threads: int, derivatives: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = arguments(channels, atoms)
    polynomials = Polynomials(terms(order), COMPONENTS, OUTCOMES).double()
    fast = derivatives(polynomials, inputs, threads=threads)
    monkeypatch.setattr(module, "runs_on", lambda x: False)
    slow = derivatives(polynomials, inputs)
    assert len(fast) == len(slow) == 1 + 2 + 3 + 5
    for number, (a, b) in enumerate(zip(fast, slow, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=str(number))


def test_single_precision() -> None:
    x, weight = arguments(40)
    polynomials = Polynomials(terms(3), COMPONENTS, OUTCOMES)
    single = polynomials(x.float(), weight.float())
    torch.testing.assert_close(single.double(), polynomials.double()(x, weight), rtol=1e-4, atol=1e-4)


def test_same_monomial_twice_is_their_sum() -> None:
    x, weight = arguments(4)
    twice = Polynomials([Monomial(0, 1, (2, 3), 1.0), Monomial(0, 1, (2, 3), 2.0)], COMPONENTS, 1).double()
    torch.testing.assert_close(twice(x, weight)[:, 0], 3 * weight[:, 1] * x[:, 2] * x[:, 3])


def test_loss_of_forces_takes_three_operations_and_no_derivative_by_weights() -> None:
    inputs = [tensor.float().detach().requires_grad_() for tensor in arguments(16)]
    polynomials = Polynomials(terms(3), COMPONENTS, OUTCOMES)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        x, weight = (tensor.sin() for tensor in inputs)
        (force,) = torch.autograd.grad(polynomials(x, weight).sin().sum(), inputs[0], create_graph=True)
        force.square().sum().backward()
    events = [event for event in profile.events() if event.name.startswith("pyg_equivariant::")]
    assert {event.name for event in events} == {
        f"pyg_equivariant::polynomials_{name}" for name in ("forward", "backward", "second")
    }
    second = next(event for event in events if event.name.endswith("second"))
    assert second.input_shapes[4] == []  # a direction by the weights, which the forces had no derivative by
    assert all(tensor.grad is not None for tensor in inputs)


def test_compiled_without_kernels(derivatives: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setattr(module, "runs_on", lambda x: False)
    polynomials = Polynomials(terms(3), COMPONENTS, OUTCOMES).double()

    def of_loss(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        (force,) = torch.autograd.grad(polynomials(x, weight).sin().sum(), x, create_graph=True)
        return force

    inputs = arguments(8)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        found = torch.autograd.grad(
            torch.compile(of_loss, fullgraph=True, backend="aot_eager")(*inputs).square().sum(), inputs
        )
    expected = torch.autograd.grad(of_loss(*inputs).square().sum(), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would refuse the same before
    x, weight = arguments(4)
    polynomials = Polynomials(terms(3), COMPONENTS, OUTCOMES).double()
    tables = polynomials.factors, polynomials.row, polynomials.sums, polynomials.orders, OUTCOMES
    operations = torch.ops.pyg_equivariant
    with pytest.raises(ValueError, match=r"of 5 components with 7 weights got components \[4, 4, 4\]"):
        polynomials(x[:, 1:], weight)
    with pytest.raises(ValueError, match=r"of 5 components with 7 weights got .* and weights \[4, 6, 4\]"):
        polynomials(x, weight[:, 1:])
    with pytest.raises(ValueError, match=r"and weights \[3, 7, 4\]"):
        polynomials(x, weight[1:])
    with pytest.raises(ValueError, match=r"and weights \[4, 7, 3\]"):
        polynomials(x, weight[..., 1:])
    with pytest.raises(ValueError, match=r"3 polynomials of components \[4, 5, 4\] got gradients \[4, 5, 4\]"):
        operations.polynomials_backward(x, weight, x, *tables, True)
    with pytest.raises(ValueError, match="got directions of other shapes"):
        operations.polynomials_second(x, weight, x[:, :OUTCOMES], weight, None, *tables, True)


@pytest.mark.parametrize("wrong", [[], [Monomial(0, 0, (), 1.0)]])
def test_wrong_products(wrong: list[Monomial]) -> None:
    with pytest.raises(ValueError, match="one product or more, each of one factor or more"):
        Polynomials(wrong, 1, 1)
