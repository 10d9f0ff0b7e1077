"""The kernels of chains of dense layers against PyTorch's operations, in three derivatives."""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyg_equivariant.nn import dense_chain as module
from pyg_equivariant.nn.dense_chain import DenseChain

ROWS = 150  # more than one tile


def chain_of(widths: Sequence[int], skips: Sequence[int]) -> DenseChain:
    torch.manual_seed(0)
    pairs = enumerate(itertools.pairwise(widths))
    return DenseChain([nn.Linear(a, b, bias=place != 2) for place, (a, b) in pairs], skips=skips).double()


def function_of(chain: DenseChain) -> Callable[..., Tensor]:
    """Of the input and the weights."""
    names = [name for name, _ in chain.named_parameters()]

    def function(x: Tensor, *weights: Tensor) -> Tensor:
        out: Tensor = functional_call(chain, dict(zip(names, weights, strict=True)), (x,))
        return out

    return function


CHAINS = [
    ([5, 7], []),
    ([8, 16, 8, 20], [1]),
    ([64, 64, 64, 64, 64], [1, 3]),
    ([3, 70, 3], [1]),
    ([4, 4, 4], [1]),
    ([8, 8, 8, 8, 8, 8], [1, 3]),  # the last layer reads the sum of three outcomes
    ([8, 8, 8, 8, 8], [2]),
    ([8, 8, 8, 8, 8], [1, 2, 3]),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("widths", "skips"), CHAINS, ids=[f"{widths} {skips}" for widths, skips in CHAINS])
def test_equals_pytorch(
    widths: list[int], skips: list[int], threads: int, derivatives: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = chain_of(widths, skips)
    function = function_of(chain)
    inputs = [(3 * torch.randn(ROWS, widths[0]).double()).requires_grad_(), *chain.parameters()]
    fast = derivatives(function, inputs, threads=threads)
    monkeypatch.setattr(module, "runs_on", lambda x: False)
    slow = derivatives(function, inputs)
    for number, (a, b) in enumerate(zip(fast, slow, strict=True)):
        scale = b.abs().max().clamp(min=1.0)
        assert (a - b).abs().max() < 1e-11 * scale, number


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("widths", "skips"), CHAINS, ids=[f"{widths} {skips}" for widths, skips in CHAINS])
def test_single_precision(
    widths: list[int], skips: list[int], threads: int, derivatives: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As exact as PyTorch's, whatever the products of matrices are made of."""
    chain = chain_of(widths, skips)
    function = function_of(chain)
    numbers = [torch.randn(ROWS, widths[0]), *(p.detach().float() for p in chain.parameters())]
    fast = derivatives(function, [n.clone().requires_grad_() for n in numbers], threads=threads)
    monkeypatch.setattr(module, "runs_on", lambda x: False)
    slow = derivatives(function, [n.clone().requires_grad_() for n in numbers])
    exact = derivatives(function, [n.double().requires_grad_() for n in numbers])
    for number, (a, b, c) in enumerate(zip(fast, slow, exact, strict=True)):
        assert (a - c).norm() <= 2 * (b - c).norm() + 3e-7 * c.norm(), number


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_rows_than_caches_hold(dtype: torch.dtype, derivatives: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the layers keep is written past the caches then."""
    chain = chain_of([64, 64, 64], [1]).to(dtype)
    numbers = [torch.randn(10_000, 64, dtype=dtype), *(p.detach() for p in chain.parameters())]
    fast = derivatives(function_of(chain), [n.clone().requires_grad_() for n in numbers])
    monkeypatch.setattr(module, "runs_on", lambda x: False)
    slow = derivatives(function_of(chain), [n.clone().requires_grad_() for n in numbers])
    for number, (a, b) in enumerate(zip(fast, slow, strict=True)):
        assert (a - b).norm() <= 20 * torch.finfo(dtype).eps * b.norm(), number


def test_what_is_not_finite_stays_so() -> None:
    layer = nn.Linear(2, 1)
    for value in (float("nan"), float("inf"), -float("inf")):
        assert not DenseChain([layer])(torch.tensor([[value, 1.0]])).isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nonlinearity_holds_everywhere(dtype: torch.dtype) -> None:
    """SiLU and its two derivatives, from where it is zero to where it is the identity; NaN stays."""
    layer = nn.Linear(1, 1, bias=False, dtype=dtype)
    nn.init.ones_(layer.weight)
    points = [0.0, 1e-3, 0.3, 1.0, 1.2784645, 5.0, 20.0, 80.0, 87.5, 100.0, 1e4]
    points += torch.arange(0.01, 1.4, 0.01).tolist()  # twice through all roots of two that the kernel has
    x = torch.tensor([[sign * point] for point in points for sign in (1, -1)], dtype=dtype).requires_grad_()
    rounding = 8 * torch.finfo(dtype).eps
    outcomes = []
    for function in (DenseChain([layer]), nn.functional.silu):
        y = function(x)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        (curve,) = torch.autograd.grad(slope.sum(), x)
        outcomes.append((y, slope, curve))
    for a, b in zip(*outcomes, strict=True):
        assert ((a - b).abs() <= rounding * b.abs() + rounding).all()
    assert DenseChain([layer])(torch.full((1, 1), float("nan"), dtype=dtype)).isnan().all()


def test_forces_do_not_compute_gradients_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only who asks for them pays for them."""
    calls = []
    for name in ("_backward", "_gradients"):
        operation = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, name=name, run=operation: (calls.append(name), run(*args))[1])
    chain, x = chain_of([8, 8], []), torch.ones(3, 8, dtype=torch.float64, requires_grad=True)
    (forces,) = torch.autograd.grad(chain(x).sum(), x, create_graph=True)
    assert calls == ["_backward"]
    forces.square().sum().backward()
    assert calls == ["_backward", "_gradients"]  # of the first derivative's z
    assert chain[0].weight.grad is not None


def test_no_rows() -> None:
    chain, x = chain_of([8, 8, 8], [1]), torch.zeros(0, 8, dtype=torch.float64, requires_grad=True)
    y = chain(x)
    y.sum().backward()
    assert y.shape == (0, 8)
    assert x.grad is not None
    assert x.grad.shape == (0, 8)
    assert (chain[0].weight.grad == 0).all()


def test_autocast_holds() -> None:
    chain = chain_of([8, 8], []).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert chain(torch.ones(3, 8)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frozen_weights_are_arranged_once(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same outcome and derivative, without a look at the layers."""
    chain = chain_of([8, 70, 8], [1]).to(dtype).requires_grad_(False)
    x = torch.randn(ROWS, 8, dtype=dtype).requires_grad_()

    def outcome() -> tuple[Tensor, Tensor]:
        y = chain(x)
        return y, torch.autograd.grad(y.square().sum(), x)[0]

    expected = outcome()
    chain.freeze()
    assert chain.packed is not None
    assert chain.packed.dtype == torch.uint8  # which no cast changes
    assert not any(name in chain.state_dict() for name in ("numbers", "packed"))
    monkeypatch.setattr(DenseChain, "_numbers", lambda self: pytest.fail("the weights were read again"))
    for a, b in zip(outcome(), expected, strict=True):
        assert torch.equal(a, b)
    chain.to(torch.float64 if dtype == torch.float32 else torch.float32)
    with pytest.raises(
        ValueError, match=r"needs \d+ bytes of packed weights, got \d+: freeze the model in the precision"
    ):
        chain(x.to(chain[0].weight.dtype))


def test_what_does_not_fit_is_refused() -> None:
    narrow, wide, square = nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(4, 4)
    for layers, skips in (
        ([narrow, narrow], []),
        ([], []),
        ([narrow, nn.SiLU()], []),
        ([narrow, wide], [0]),
        ([narrow, square], [1]),
    ):
        with pytest.raises(ValueError, match=r"do not fit each other"):
            DenseChain(layers, skips=skips)
    with pytest.raises(ValueError, match=r"begins with Linear\(in_features=4.*\) does not fit rows of 8"):
        DenseChain([wide])(torch.zeros(3, 8))
