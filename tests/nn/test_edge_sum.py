"""The kernel of sums over edges against PyTorch's operations, in three derivatives."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jaxtyping
import pytest
import torch

from pyg_equivariant.data import RadiusGraph
from pyg_equivariant.models import PaiNN
from pyg_equivariant.nn import native
from pyg_equivariant.nn.edge_sum import _TABLES, CONSTANT, EdgeSum, Term, _reference
from pyg_equivariant.nn.interpolation import Interpolation, interpolate
from pyg_equivariant.nn.tensor_product import FullPaths, TensorProduct
from pyg_equivariant.testing import example_molecule, potential_of

TERMS = [
    Term(0, 0, CONSTANT, 0, 1.0),
    *(Term(1 + k, 1 + k, CONSTANT, 1, 1.0) for k in range(3)),
    *(Term(1 + k, 4, k, 2, 0.5 + k) for k in range(3)),
    Term(0, 2, 1, 1, 0.7),  # two entries of one product
    Term(0, 2, 2, 1, -0.3),
    Term(4, 2, CONSTANT, 1, 2.0),  # a group of more outcomes than the kernel takes at a time
    *(Term(row, 2, 0, 1, 1.0 + row) for row in (1, 2, 3, 5)),
]


def arguments(channels: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (6, 5, channels), (20, 3), (12, 3, channels)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def graph() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 6, (2, 20), generator=generator), torch.randint(0, 11, (20,), generator=generator)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("channels", [1, 8, 21, 64])
def test_equals_pytorch(channels: int, threads: int, derivatives: Callable) -> None:
    total, (edge_index, row) = EdgeSum(TERMS, 6), graph()
    fast = derivatives(lambda x, y, w: total(x, y, w, edge_index, row), arguments(channels), threads=threads)
    slow = derivatives(lambda x, y, w: _reference(_TABLES[total.key], x, y, w, *edge_index, row), arguments(channels))
    assert len(fast) == len(slow) == 1 + 3 + 4 + 7
    for number, (a, b) in enumerate(zip(fast, slow, strict=True)):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10), number


def between_nodes(rows: int, nodes: int, channels: int) -> list[torch.Tensor]:
    """Filters at nodes, coefficients of the rows between them, and where these begin."""
    generator = torch.Generator().manual_seed(3)
    table, coefficient = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((nodes, 3, channels), (rows, 8))
    )
    return [table, coefficient, torch.randint(0, nodes - 7, (rows,), generator=generator)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("channels", [1, 8, 21, 64])
def test_filters_between_nodes_equal_pytorch(channels: int, threads: int, derivatives: Callable) -> None:
    """In three derivatives; rows with no, one, two and more edges, and several between the same nodes."""
    total, (edge_index, row) = EdgeSum(TERMS, 6), graph()
    x, y, _ = arguments(channels)
    table, coefficient, start = between_nodes(12, 10, channels)

    def kernel(x: torch.Tensor, y: torch.Tensor, table: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return total(x, y, table, edge_index, row, Interpolation(c, start))

    def pytorch(x: torch.Tensor, y: torch.Tensor, table: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        w = torch.einsum("pm,pmfc->pfc", c, table[start.unsqueeze(1) + torch.arange(8)])
        return _reference(_TABLES[total.key], x, y, w, *edge_index, row)

    fast = derivatives(kernel, [x, y, table, coefficient], threads=threads)
    slow = derivatives(pytorch, [x, y, table, coefficient])
    assert len(fast) == len(slow) == 1 + 4 + 5 + 9
    for number, (a, b) in enumerate(zip(fast, slow, strict=True)):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10), number


@pytest.mark.parametrize("threads", [1, 2])
def test_more_atoms_than_the_cache_holds(threads: int, derivatives: Callable) -> None:
    """And more rows between the same nodes than are computed at a time."""
    generator = torch.Generator().manual_seed(4)
    edge_index = torch.randint(0, 700, (2, 3000), generator=generator)
    row = torch.arange(1500).repeat(2)
    total, (table, coefficient, start) = EdgeSum(TERMS[:6], 4), between_nodes(1500, 20, 64)
    x, y = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((700, 5, 64), (3000, 3))
    )
    inputs = [x, y, table, coefficient]
    fast = derivatives(lambda *t: total(*t[:3], edge_index, row, Interpolation(t[3], start)), inputs, threads=threads)
    slow = derivatives(lambda *t: total(*t[:2], interpolate(t[2], Interpolation(t[3], start)), edge_index, row), inputs)
    for number, (a, b) in enumerate(zip(fast, slow, strict=True)):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9), number


def test_every_graph_has_its_own_order() -> None:
    """Which is kept for the next layer: graphs of the same sizes, one after the other and each again."""
    total = EdgeSum(TERMS, 6)
    x, y, _ = arguments(8)
    table, coefficient, start = between_nodes(12, 10, 8)
    generator = torch.Generator().manual_seed(5)
    graphs = [
        (torch.randint(0, 6, (2, 20), generator=generator), torch.randint(0, 12, (20,), generator=generator), begin)
        for begin in (start, start.flip(0), start)
    ]
    for edge_index, row, begin in [*graphs, *graphs[::-1], graphs[1]]:
        known = Interpolation(coefficient, begin)
        found = total(x, y, table, edge_index, row, known)
        expected = total(x, y, interpolate(table, known), edge_index, row)
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sizes", [(0, 0, 8), (6, 0, 8), (6, 20, 0)])
def test_nothing_to_sum(sizes: tuple[int, int, int], derivatives: Callable) -> None:
    """No atoms, no edges or no channels."""
    atoms, edges, channels = sizes
    edge_index, row = graph()[0][:, :edges], graph()[1][:edges]
    table, coefficient, start = between_nodes(12, 10, channels)
    x, y = arguments(channels)[0][:atoms].detach().requires_grad_(), torch.ones(edges, 3).double().requires_grad_()
    total = EdgeSum(TERMS, 6)
    inputs = [x, y, table, coefficient]
    everything = derivatives(lambda *t: total(*t[:3], edge_index, row, Interpolation(t[3], start)), inputs, threads=2)
    assert everything[0].shape == (atoms, 6, channels)
    assert not any(each.any() for each in everything)


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (1, 2), (0, 1, 3)])
def test_only_what_is_asked_for(between: bool, wanted: tuple[int, ...]) -> None:
    """Some of the derivatives, as those by positions in a training step, are those among all of them."""
    total, (edge_index, row) = EdgeSum(TERMS, 6), graph()
    x, y, w = arguments(8)
    table, coefficient, start = between_nodes(12, 10, 8)
    leaves = [x, y, table if between else w, coefficient]
    inputs = [2.0 * leaf for leaf in leaves]  # PyTorch tells who asks for what is no leaf itself
    value = total(*inputs[:3], edge_index, row, Interpolation(inputs[3], start) if between else None)
    loss = value.sin().sum()
    everything = torch.autograd.grad(loss, inputs, create_graph=True, materialize_grads=True)
    some = torch.autograd.grad(loss, [inputs[n] for n in wanted], create_graph=True, materialize_grads=True)
    again = sum((of.square().sum() for of in some), torch.zeros(()))
    expected = sum((everything[n].square().sum() for n in wanted), torch.zeros(()))
    for n, of in zip(wanted, some, strict=True):
        assert torch.allclose(of, everything[n], rtol=1e-12, atol=1e-12)
    every_second = torch.autograd.grad(expected, leaves, retain_graph=True, materialize_grads=True, allow_unused=True)
    for n in range(4):
        second = torch.autograd.grad(again, [inputs[n]], retain_graph=True, materialize_grads=True, allow_unused=True)
        assert torch.allclose(2.0 * second[0], every_second[n], rtol=1e-10, atol=1e-10)


def test_single_precision() -> None:
    total, (edge_index, row) = EdgeSum(TERMS, 6), graph()
    x, y, w = arguments(40)
    single = total(x.float(), y.float(), w.float(), edge_index, row)
    assert torch.allclose(single.double(), total(x, y, w, edge_index, row), atol=1e-4)


def test_edges_with_filters_of_their_own_and_no_edges() -> None:
    total = EdgeSum(TERMS, 6)
    x, y, w = arguments(8)
    edge_index, _ = graph()
    own = total(x, y[:12], w, edge_index[:, :12])
    assert torch.equal(own, total(x, y[:12], w, edge_index[:, :12], torch.arange(12)))
    assert not total(x, y[:0], w[:0], edge_index[:, :0]).any()


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would refuse the same before
    total, (edge_index, row) = EdgeSum(TERMS, 6), graph()
    x, y, w = arguments(8)
    with pytest.raises(IndexError, match=r"edge 3 leads from atom 6 to atom 2 .* but there are 6 atoms"):
        total(x, y, w, torch.tensor([[0, 1, 2, 6], [1, 0, 0, 2]]).repeat(1, 5), row)
    with pytest.raises(IndexError, match="with filter 12, but there are 6 atoms and 12 filters"):
        total(x, y, w, edge_index, row + 12)
    with pytest.raises(IndexError, match="row 1 of an interpolation reads beyond its 12 nodes"):
        total(x, y, w, edge_index, row, Interpolation(w.new_ones(2, 8), torch.tensor([4, 5])))
    with pytest.raises(ValueError, match="needs 8 coefficients of each of 2 rows"):
        total(x, y, w, edge_index, row, Interpolation(w.new_ones(2, 7), torch.tensor([0, 1])))
    with pytest.raises(ValueError, match=r"features \[6, 4, 8\]"):
        total(x[:, :4], y, w, edge_index, row)
    with pytest.raises(ValueError, match=r"geometry \[19, 3\]"):
        total(x, y[1:], w, edge_index, row)
    with pytest.raises(ValueError, match=r"filters \[12, 3, 7\]"):
        total(x, y, w[:, :, 1:], edge_index, row)


def test_mixed_precision_takes_the_other_way() -> None:
    total, (edge_index, row) = EdgeSum(TERMS, 6), graph()
    x, y, w = arguments(8)
    mixed = total(x, y, w.float(), edge_index, row)
    assert torch.allclose(mixed, total(x, y, w, edge_index, row), atol=1e-4)


def test_half_precision_takes_the_other_way() -> None:
    total, (edge_index, row) = EdgeSum(TERMS, 6), graph()
    x, y, w = arguments(8)
    half = total(x.bfloat16(), y.bfloat16(), w.bfloat16(), edge_index, row)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.double(), total(x, y, w, edge_index, row), atol=0.3)


def test_tensor_product_over_edges() -> None:
    """Both ways of the same product, pseudotensors included."""
    paths, (edge_index, row) = FullPaths(2, 2, 2, parity_in=2), graph()
    product = TensorProduct(paths).double()
    generator = torch.Generator().manual_seed(2)
    shapes = (6, 9, 2, 5), (20, 9), (12, paths.num_paths, 5)
    x, sh, w = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    fast = product.over_edges(x, sh, w, edge_index, row)
    slow = product(x[edge_index[0]], sh, w[row])
    assert torch.allclose(fast, fast.new_zeros(fast.shape).index_add(0, edge_index[1], slow), atol=1e-10)


@pytest.mark.parametrize(
    ("compiler", "says"), [(None, "no C\\+\\+ compiler was found"), ("false", "false failed on the kernels")]
)
def test_without_a_compiler(compiler: str | None, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same numbers, and a warning that says why it is slow."""
    model, molecule = potential_of(PaiNN(channels=8, num_layers=2, cutoff=3.0)), example_molecule()
    graph = RadiusGraph(3.0)(molecule)
    expected = model(graph)
    native.kernels.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if compiler is None:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setattr(native.shutil, "which", lambda name: None)
    else:
        monkeypatch.setenv("CXX", compiler)
    try:
        with pytest.warns(UserWarning, match=says):
            actual = model(graph)
    finally:
        monkeypatch.undo()
        native.kernels.cache_clear()
    assert torch.allclose(actual.energy, expected.energy, rtol=1e-12)
    assert torch.allclose(actual.forces, expected.forces, rtol=1e-10, atol=1e-12)


FAULTS = """
import resource, torch
from torch_geometric.data import Data
from pyg_equivariant.models import EGNN  # which calls no kernel
from pyg_equivariant.potential import Potential
Potential(EGNN(8, 1))(Data(z=torch.tensor([1, 1]), pos=torch.eye(3)[:2], edge_index=torch.tensor([[0, 1], [1, 0]])))
for step in range(20):  # until the heap has found its form
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [*(torch.ones(2**20) for _ in range(4)), torch.ones(9 * 2**20)]  # more than glibc's largest threshold
    del parts
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt belongs to glibc")
@pytest.mark.parametrize(("environment", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_freed_memory_is_kept(environment: dict[str, str], kept: bool) -> None:
    """52 MiB that were freed once are 13312 faults if they went back; what the user sets holds."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, env=others | environment, capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 500) == kept
