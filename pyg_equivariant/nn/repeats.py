"""Layers that look the same are compiled once: a graph of many becomes one of calls.

A model of nine layers is traced as nine times the same operations in the same order, and again for each derivative,
and the compiler would lower, schedule and write all of them. Here the repeats of a traced graph are found, whatever
model it came from, and become calls of a graph that is there once.
"""

import operator
from collections.abc import Collection, Iterator
from itertools import accumulate, pairwise, takewhile
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

__all__ = ["fold_repeats"]

SMALLEST = 80
"""Operations that a run of repeats has to save: calls keep the compiler from joining loops across their ends."""

ALIASES = {"_unsafe_view", "reshape", "clone", "stored", "cut"}
"""Operations of which the compiler may return what they were given, though nothing says so."""

LOOPS = {"silu_derivative"}
"""Operations of ours that the compiler writes itself."""

SYMBOLIC = torch.SymInt | torch.SymFloat | torch.SymBool

TRIED = 12
"""Of the best ways to fold a graph, how many are looked at closely."""

NEAR = 0.9
"""Part of the most operations that can be saved, with which a way to fold is as good if it disturbs less."""


class Repeats(NamedTuple):
    """Operations from each of ``starts`` on that are the same ones, one by one."""

    starts: tuple[int, ...]
    length: int

    @property
    def saved(self) -> int:
        return (len(self.starts) - 1) * self.length


class Region(NamedTuple):
    """One of the repeats."""

    nodes: list[Node]
    inputs: list[Node]
    outputs: set[int]  # which nodes are read outside
    kept: set[Node]  # views and sizes read outside, which are taken there again
    wiring: Any  # the same for the same graph


def fold_repeats(module: GraphModule) -> None:
    """Replaces the repeats in ``module`` by calls, on the CPU.

    Results are what they were: each call does what was there. Loops are joined within a call only, so that repeats
    end where few could be.
    """
    nodes = [node for node in module.graph.nodes if node.op not in ("placeholder", "output")]
    if any(value.device.type != "cpu" for value in map(_val, module.graph.nodes) if isinstance(value, Tensor)):
        return
    places = {node: place for place, node in enumerate(nodes)}
    names: dict[Any, int] = {}
    kinds = numpy.array([names.setdefault(_signature(node), len(names)) for node in nodes])
    cuts = _cuts(nodes)
    found: list[list[Node]] = []
    while repeats := _best(nodes, kinds, cuts):
        found += repeats
        for members in repeats:
            taken = numpy.arange(len(members)) + places[members[0]]
            kinds[taken] = -1 - taken  # like nothing else
    if not found:
        return
    found = _with_inlined(nodes, found)
    replaced: dict[Node, Node] = {}
    for number, group in enumerate(_alike(found)):
        _fold(module, group, f"repeated_{number}", replaced)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


def _with_inlined(nodes: list[Node], repeats: list[list[Node]]) -> list[list[Node]]:
    """What edges read of their atoms, and what is made of it, is read again on the other side of a cut.

    The compiler does so in each loop, and where it could not, there would be tensors of a value for each edge.
    """
    home = {node: repeat for repeat, members in enumerate(repeats) for node in members}
    moved = {node: moved for node in reversed(nodes) if (moved := _moved(node))}
    added: list[list[Node]] = [[] for _ in repeats]
    copies: dict[tuple[int | None, Node], Node] = {}

    def copy(node: Node, repeat: int | None, before: Node) -> Node:
        if node not in moved or home.get(node) == repeat:
            return node
        if (repeat, node) not in copies:
            arguments = {each: copy(each, repeat, before) for each in node.all_input_nodes}
            with node.graph.inserting_before(before):
                copies[repeat, node] = node.graph.node_copy(node, lambda each: arguments[each])
            if repeat is not None:
                added[repeat].append(copies[repeat, node])
        return copies[repeat, node]

    for node in nodes:
        repeat = home.get(node)
        for argument in node.all_input_nodes:
            if argument in moved and home.get(argument) != repeat:
                before = node if repeat is None else repeats[repeat][0]
                node.replace_input_with(argument, copy(argument, repeat, before))
    return [[*extra, *members] for extra, members in zip(added, repeats, strict=True)]


def _moved(node: Node, depth: int = 3) -> bool:
    """Whether it is read of atoms, or little away from it, and the compiler does not write it to memory."""
    if not depth or not all(_is_loop(reader) for reader in _readers(node)):
        return False
    if node.target is torch.ops.aten.index.Tensor:
        return True
    pointwise = _is_loop(node) and torch.Tag.pointwise in getattr(node.target, "tags", ())
    view = isinstance(_val(node), Tensor) and _light(node)
    return (pointwise or view) and any(_moved(each, depth - 1) for each in node.all_input_nodes)


def _readers(node: Node) -> Iterator[Node]:
    for user in node.users:
        if _light(user):
            yield from _readers(user)
        else:
            yield user


def _signature(node: Node) -> Any:
    """The same for operations that differ in nothing but the tensors they are given."""
    if node.op != "call_function":
        return node.op, node.name
    constants = map_arg((node.args, node.kwargs), lambda argument: None)
    return str(node.target), repr(constants), _value(_val(node))


def _value(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dtype, str(value.device), str(tuple(value.shape)), str(value.stride()), str(value.storage_offset())
    if isinstance(value, (list, tuple)):
        return tuple(map(_value, value))
    return str(value)


def _candidates(kinds: numpy.ndarray) -> list[Repeats]:
    """Every sequence that is there more than once and is followed by different operations, from a suffix array."""
    count = len(kinds)
    if count < SMALLEST:
        return []
    ranks = numpy.unique(kinds, return_inverse=True)[1]
    width = 1
    while True:
        after = numpy.concatenate([ranks[width:] + 1, numpy.zeros(min(width, count), dtype=ranks.dtype)])[:count]
        order = numpy.lexsort((after, ranks))
        steps = (numpy.diff(ranks[order]) != 0) | (numpy.diff(after[order]) != 0)
        ranks = numpy.empty_like(ranks)
        ranks[order] = numpy.concatenate([[0], numpy.cumsum(steps)])
        width *= 2
        if ranks.max() == count - 1:
            break
    common = [0] * count  # of how many operations a suffix begins like the one before it
    length = 0
    for start in range(count):
        rank = ranks[start]
        if rank == 0:
            length = 0
            continue
        other = order[rank - 1]
        while start + length < count and other + length < count and kinds[start + length] == kinds[other + length]:
            length += 1
        common[rank] = length
        length = max(length - 1, 0)
    found: set[Repeats] = set()
    stack: list[tuple[int, int]] = []  # a length, and the first suffix that begins so
    for rank in range(1, count + 1):
        first, shared = rank - 1, common[rank] if rank < count else 0
        while stack and stack[-1][0] > shared:
            length, first = stack.pop()
            if length * (rank - first) >= SMALLEST:
                found.update(_apart(sorted(order[first:rank].tolist()), length))
        if shared and (not stack or stack[-1][0] < shared):
            stack.append((shared, first))
    return sorted((each for each in found if each.saved >= SMALLEST), key=lambda each: -each.saved)


def _apart(starts: list[int], length: int) -> Iterator[Repeats]:
    """Those that do not overlap: fewer whole ones, or all up to where the next one begins."""
    for shorter in {length, min(length, *(after - start for start, after in pairwise(starts)))}:
        apart = [starts[0]]
        for start in starts[1:]:
            if start >= apart[-1] + shorter:
                apart.append(start)
        yield Repeats(tuple(apart), shorter)


def _best(nodes: list[Node], kinds: numpy.ndarray, cuts: list[int]) -> list[list[Node]]:
    """Of the repeats that save the most, those at whose ends the fewest loops could have been joined."""

    def lost(repeats: Repeats) -> int:
        return sum(cuts[start] + cuts[start + repeats.length] for start in repeats.starts)

    best: tuple[int, list[list[Node]]] = (0, [])
    candidates = _candidates(kinds)
    most = candidates[0].saved if candidates else 0
    near = [each for each in candidates if each.saved > NEAR * most]
    for repeats in sorted(near, key=lost)[:TRIED] + candidates[len(near) : len(near) + TRIED]:
        if repeats.saved <= best[0]:
            continue
        groups = _alike([nodes[start : start + repeats.length] for start in repeats.starts])
        saved = sum((len(group) - 1) * repeats.length for group in groups)
        if saved > best[0]:
            best = saved, [region.nodes for group in groups for region in group]
    return best[1]


def _alike(repeats: list[list[Node]]) -> list[list[Region]]:
    """Those that are the same graph."""
    groups: dict[Any, list[Region]] = {}
    for region in map(_region, repeats):
        if region is not None:
            groups.setdefault(region.wiring, []).append(region)
    return [group for group in groups.values() if (len(group) - 1) * len(group[0].nodes) >= SMALLEST]


def _cuts(nodes: list[Node]) -> list[int]:
    """How many loops before each operation could be joined with one from there on."""
    places = {node: place for place, node in enumerate(nodes)}
    last = [0] * len(nodes)  # which reads it in a loop
    crossing = [0] * (len(nodes) + 1)
    for place in reversed(range(len(nodes))):
        for user in nodes[place].users:
            if user in places:
                last[place] = max(last[place], last[places[user]] if _light(user) else places[user] * _is_loop(user))
        if last[place] and _is_loop(nodes[place]):
            crossing[place + 1] += 1
            crossing[last[place] + 1] -= 1
    return list(accumulate(crossing))


def _is_loop(node: Node) -> bool:
    """Whether the compiler writes it itself and can join it with others."""
    if not isinstance(node.target, torch._ops.OpOverload) or _light(node):
        return False
    return node.target.namespace != "pyg_equivariant" or node.target._opname in LOOPS


def _region(nodes: list[Node]) -> Region | None:
    """None for what cannot be a graph of its own."""
    places = {node: place for place, node in enumerate(nodes)}
    inputs: dict[Node, int] = {}

    def wire(argument: Node) -> Any:
        place = places.get(argument)
        return ("in", inputs.setdefault(argument, len(inputs))) if place is None else place

    wires = [repr(map_arg((node.args, node.kwargs), wire)) for node in nodes]
    if any(node.op == "get_attr" or not isinstance(_val(node), (Tensor, torch.SymInt)) for node in inputs):
        return None
    if any(node.op != "call_function" or node.is_impure() for node in nodes):
        return None
    read = {node for node in nodes if any(user not in places for user in node.users)}
    outputs, kept = set(), set()
    for node in reversed(nodes):
        if node in read:
            if _light(node):
                kept.add(node)
                read.update(argument for argument in node.all_input_nodes if argument in places)
            elif isinstance(_val(node), Tensor):
                outputs.add(places[node])
            else:
                return None
    for symbol in sorted(_symbols([*nodes, *inputs]) - _sizes(inputs), key=str):
        before = takewhile(lambda node: node is not nodes[0], nodes[0].graph.nodes)
        # by its own name: of two sizes that were found to be equal the compiler does not know one by the other's
        given = next((node for node in before if _size(node) == symbol == _val(node).node._expr), None)
        if given is None:
            return None
        inputs.setdefault(given, len(inputs))
    wiring = (*wires, *(_value(_val(node)) for node in inputs))
    return Region(nodes, list(inputs), outputs, kept, wiring)


def _light(node: Node) -> bool:
    """Whether it makes no tensor of its own, so that outside it is taken again: a result must not share memory."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return all(map(_light, node.all_input_nodes))
    if not isinstance(_val(node), (Tensor, list, tuple)):
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    schema = node.target._schema
    return any(each.alias_info is not None for each in schema.returns) or schema.name.split("::")[1] in ALIASES


def _val(node: Node) -> Any:
    return node.meta.get("val")


def _symbols(nodes: Collection[Node]) -> set[Any]:
    found: set[Any] = set()
    for value in tree_leaves([_val(node) for node in nodes]):
        parts = [*value.shape, *value.stride(), value.storage_offset()] if isinstance(value, Tensor) else [value]
        found.update(*(part.node.expr.free_symbols for part in parts if isinstance(part, SYMBOLIC)))
    return found


def _sizes(nodes: Collection[Node]) -> set[Any]:
    """Symbols that a called function finds in what it gets."""
    sizes = [size for node in nodes for size in getattr(_val(node), "shape", ())]
    return {_size(node) for node in nodes} | {size.node.expr for size in sizes if isinstance(size, torch.SymInt)}


def _size(node: Node) -> Any:
    value = _val(node)
    return value.node.expr if isinstance(value, torch.SymInt) else None


def _fold(module: GraphModule, regions: list[Region], name: str, replaced: dict[Node, Node]) -> None:
    outputs = sorted(set().union(*(region.outputs for region in regions)))
    first = regions[0]
    graph = Graph()
    copies: dict[Node, Node] = {}
    for node in (replaced.get(node, node) for node in first.inputs):
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = {"val": _val(node)}
    for node in first.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[first.nodes[place]] for place in outputs))
    graph.eliminate_dead_code()
    setattr(module, name, GraphModule(torch.nn.Module(), graph))
    for region in regions:
        inputs = [replaced.get(node, node) for node in region.inputs]
        results = [region.nodes[place] for place in outputs]
        with module.graph.inserting_before(region.nodes[0]):
            body = module.graph.get_attr(name)
            call = module.graph.call_function(torch.ops.higher_order.invoke_subgraph, (body, name, *inputs))
            call.meta["val"] = tuple(_val(node) for node in results)
            for number, node in enumerate(results):
                result = module.graph.call_function(operator.getitem, (call, number))
                result.meta = dict(node.meta)
                node.replace_all_uses_with(result)
                replaced[node] = result
        for node in reversed(region.nodes):
            if node not in region.kept:
                module.graph.erase_node(node)
