"""Dense layers that follow each other, led through row by row."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyg_equivariant.nn.native import define, is_wanted, operation, runs_on, third_derivative

__all__ = ["DenseChain"]


class DenseChain(nn.ModuleList):
    r"""Dense layers, each with a SiLU: :math:`a_l = σ(W_l a_{l-1} + b_l)`, :math:`a_0` the input.

    On a CPU a kernel leads some rows through all layers before the next ones, so that what lies between the layers
    stays in the processor's cache; in the first two derivatives as well. In float32 it multiplies in the tiles of
    processors that have some (AMX), each number as a sum of three of bfloat16, as exact as PyTorch's products; infinite
    numbers become NaN there.

    Args:
        layers: ``nn.Linear``, W and b, with or without the latter.
        skips: Layers, from 1 on, that add :math:`a_{l-2}`: the second of a residual block.

    Raises:
        ValueError: if the widths do not fit each other or the input.

    Example:
        >>> block = DenseChain([nn.Linear(4, 8), nn.Linear(8, 4)], skips=[1])
        >>> block(torch.zeros(3, 4)).shape
        torch.Size([3, 4])
    """

    numbers: Tensor | None
    packed: Tensor | None

    def __init__(self, layers: Sequence[nn.Module], *, skips: Sequence[int] = ()) -> None:
        super().__init__(layers)
        linear = self._linear()
        widths = [layer.in_features for layer in linear[:1]] + [layer.out_features for layer in linear]
        fits = [layer.in_features for layer in linear] == widths[:-1] and len(linear) == len(layers) > 0
        if not fits or any(place < 1 or widths[place - 1] != widths[place + 1] for place in skips):
            raise ValueError(f"layers {list(layers)} that skip at {list(skips)} do not fit each other")
        self.widths = widths
        self.skips = [int(place in skips) for place in range(len(layers))]
        self.register_buffer("numbers", None, persistent=False)  # the weights and biases, once they are frozen
        self.register_buffer("packed", None, persistent=False)

    def freeze(self) -> None:
        """Arranges the weights for the kernel once and for all. They must not change any more."""
        numbers = self._numbers().detach()
        if runs_on(numbers):
            self.numbers = numbers
            self.packed = torch.ops.pyg_equivariant.dense_chain_pack(numbers, self.widths)

    def forward(self, x: Float[Tensor, "E C"]) -> Float[Tensor, "E D"]:
        """The last layer's outcome."""
        if x.shape[1] != self.widths[0]:
            raise ValueError(f"a chain that begins with {self[0]} does not fit rows of {x.shape[1]}")
        weights = [layer.weight for layer in self._linear()]
        if runs_on(x) and x.dtype == weights[0].dtype and not torch.is_autocast_enabled("cpu"):
            numbers = self._numbers() if self.numbers is None else self.numbers
            return _forward(x, numbers, self.packed, self.widths, self.skips)[0]
        return _chain(x, weights, self._biases(), self.skips)[0]

    def _linear(self) -> list[nn.Linear]:
        return [layer for layer in self if isinstance(layer, nn.Linear)]

    def _biases(self) -> list[Tensor]:
        return [
            layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in self._linear()
        ]

    def _numbers(self) -> Tensor:
        weights = [layer.weight for layer in self._linear()]
        return torch.cat([each.flatten() for pair in zip(weights, self._biases(), strict=True) for each in pair])


def _chain(
    x: Float[Tensor, "E C"], weights: Sequence[Tensor], biases: Sequence[Tensor], skips: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    """The outcome, and what each nonlinearity reads."""
    known, read = [x], []
    for weight, bias, skip in zip(weights, biases, skips, strict=True):
        read.append(functional.linear(known[-1], weight, bias))
        active = functional.silu(read[-1])
        known.append(active + known[-2] if skip else active)
    return known[-1], read


# The kernel's z are what the nonlinearities read, layer after layer. They are an outcome too, with derivatives, so that
# a loss of energies and forces leads back through the layers once.


_SHAPE = "int[] widths, int[] skips"
define("dense_chain_pack(Tensor p, int[] widths) -> Tensor")
_forward = operation(
    f"dense_chain_forward(Tensor x, Tensor p, Tensor? packed, {_SHAPE}) -> (Tensor, Tensor)",
    lambda x, p, packed, widths, skips: (
        x.new_empty(x.shape[0], widths[-1]),
        x.new_empty(x.shape[0] * sum(widths[1:])),
    ),
)
_backward = operation(
    "dense_chain_backward(Tensor z, Tensor p, Tensor? packed, Tensor? g, Tensor? h, SymInt rows, "
    f"{_SHAPE}) -> (Tensor, Tensor)",
    lambda z, p, packed, g, h, rows, widths, skips: (z.new_empty(rows, widths[0]), z.new_empty(z.shape)),
)
_gradients = operation(
    f"dense_chain_gradients(Tensor x, Tensor z, Tensor p, Tensor? g, Tensor? h, {_SHAPE}) -> (Tensor, Tensor)",
    lambda x, z, p, g, h, widths, skips: (x.new_empty(x.shape), p.new_empty(p.shape)),
)
_second = operation(
    f"dense_chain_second(Tensor z, Tensor p, Tensor by_a, Tensor k, {_SHAPE}) -> (Tensor, Tensor, Tensor)",
    lambda z, p, by_a, k, widths, skips: (
        k.new_empty(k.shape[0], widths[-1]),
        z.new_empty(z.shape),
        p.new_empty(p.shape),
    ),
)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, p, packed, *ctx.shape = inputs
    ctx.save_for_backward(x, p, packed, output[1])
    ctx.set_materialize_grads(False)


def _forward_backward(ctx: Any, g: Tensor | None, h: Tensor | None) -> tuple[Tensor | None, ...]:
    x, p, packed, z = ctx.saved_tensors
    if is_wanted(ctx, 1):
        return *_gradients(x, z, p, g, h, *ctx.shape), None, None, None
    return _backward(z, p, packed, g, h, x.shape[0], *ctx.shape)[0], None, None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    z, p, _, g, h, ctx.rows, *ctx.shape = inputs
    ctx.save_for_backward(z, p, g, h, output[1])
    ctx.set_materialize_grads(False)


def _backward_backward(ctx: Any, k: Tensor | None, by_by_a: Tensor | None) -> tuple[Tensor | None, ...]:
    z, p, g, h, by_a = ctx.saved_tensors
    if k is not None and by_by_a is None and h is None:
        of_g, of_z, of_p = _second(z, p, by_a, k, *ctx.shape)
        return of_z, of_p, None, of_g, None, None, None, None
    of_z, of_p, of_g, of_h = third_derivative(_way_back, (z, p, g, h), (ctx.rows, *ctx.shape), (k, by_by_a))
    return of_z, of_p, None, of_g, of_h, None, None, None


def _save_all(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    *tensors, widths, skips = inputs
    ctx.shape = widths, skips
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _gradients_backward(ctx: Any, *k: Tensor | None) -> tuple[Tensor | None, ...]:
    return *third_derivative(_both_ways, ctx.saved_tensors, ctx.shape, k), None, None


def _second_backward(ctx: Any, *k: Tensor | None) -> tuple[Tensor | None, ...]:
    return *third_derivative(_along, ctx.saved_tensors, ctx.shape, k), None, None


for _each, _derivative, _save in (
    (_forward, _forward_backward, _save_forward),
    (_backward, _backward_backward, _save_backward),
    (_gradients, _gradients_backward, _save_all),
    (_second, _second_backward, _save_all),
):
    torch.library.register_autograd(_each, _derivative, setup_context=_save)


# What only a loss of second derivatives needs, by PyTorch's operations.


def _split(p: Tensor, widths: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    pairs = list(itertools.pairwise(widths))
    parts = p.split([size for a, b in pairs for size in (a * b, b)])
    return [part.view(b, a) for part, (a, b) in zip(parts[::2], pairs, strict=True)], list(parts[1::2])


def _layers(z: Tensor, widths: list[int]) -> list[Tensor]:
    rows = z.shape[0] // sum(widths[1:])
    return [
        part.view(rows, width) for part, width in zip(z.split([rows * w for w in widths[1:]]), widths[1:], strict=True)
    ]


def _slopes(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1.0 + z * (1.0 - s))


def _way_back(
    z: Tensor, p: Tensor, g: Tensor | None, h: Tensor | None, rows: int, widths: list[int], skips: list[int]
) -> tuple[Tensor, Tensor]:
    """What ``dense_chain_backward`` does."""
    weights, _ = _split(p, widths)
    by_z = _layers(_slopes(z), widths)
    more = None if h is None else _layers(h, widths)
    by_a: dict[int, Tensor] = {len(weights): z.new_zeros(rows, widths[-1]) if g is None else g}
    for layer in reversed(range(len(weights))):
        of_z = by_z[layer] * by_a[layer + 1] if more is None else by_z[layer] * by_a[layer + 1] + more[layer]
        by_a[layer] = by_a[layer] + of_z @ weights[layer] if layer in by_a else of_z @ weights[layer]
        if skips[layer]:
            by_a[layer - 1] = by_a[layer + 1]
    return by_a[0], torch.cat([by_a[layer + 1].flatten() for layer in range(len(weights))])


def _both_ways(
    x: Tensor, z: Tensor, p: Tensor, g: Tensor | None, h: Tensor | None, widths: list[int], skips: list[int]
) -> tuple[Tensor, Tensor]:
    """What ``dense_chain_gradients`` does."""
    of_x, by_a = _way_back(z, p, g, h, x.shape[0], widths, skips)
    of_z = _slopes(z) * by_a if h is None else _slopes(z) * by_a + h
    known, of_p = [x], []
    for read, by, skip in zip(_layers(z, widths), _layers(of_z, widths), skips, strict=True):
        of_p += [(by.T @ known[-1]).flatten(), by.sum(0)]
        active = functional.silu(read)
        known.append(active + known[-2] if skip else active)
    return of_x, torch.cat(of_p)


def _along(
    z: Tensor, p: Tensor, by_a: Tensor, k: Tensor, widths: list[int], skips: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``dense_chain_second`` does."""
    weights, biases = _split(p, widths)
    s, slope = torch.sigmoid(z), _slopes(z)
    curve = s * (1.0 - s) * (2.0 + z * (1.0 - 2.0 * s))
    known, of_z, of_p = [k], [], []
    columns = [_layers(t, widths) for t in (slope, curve * by_a, slope * by_a)]
    for weight, bias, skip, steep, bent, by in zip(weights, biases, skips, *columns, strict=True):
        along = known[-1] @ weight.T
        of_z.append((bent * along).flatten())
        of_p += [(by.T @ known[-1]).flatten(), torch.zeros_like(bias)]
        known.append(steep * along + known[-2] if skip else steep * along)
    return known[-1], torch.cat(of_z), torch.cat(of_p)
