"""What PyTorch's compiler finds out again and again, found out once, for first steps that wait less."""

import functools
import inspect
import io
import logging
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.repro import after_aot
from torch._functorch._aot_autograd import graph_compile
from torch._guards import TracingContext, detect_fake_mode
from torch._inductor import compile_fx, fx_utils, graph, ir, sizevars
from torch._inductor.codecache import FxGraphCachePickler
from torch._inductor.codegen.common import pointwise_overrides_data
from torch._inductor.dtype_propagation import DtypePropagationOpsHandler
from torch._inductor.utils import op_dtype_propagation_rules
from torch._inductor.virtualized import V
from torch._logging._internal import log_state, trace_log
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.fx.experimental.sym_node import SymNode
from torch.fx.node import map_arg
from torch.utils._sympy.functions import FloorDiv, ModularIndexing

from pyg_equivariant.nn.native import NAMESPACE

__all__ = ["TRACED", "take_shortcuts"]

compiler_log = logging.getLogger("torch")

TRACED = "pyg_equivariant_traced"
"""Mark of a graph whose operations know what they give."""

SIZES = ("add", "mul", "eq", "ne", "ge", "gt", "le", "lt")


@functools.cache
def take_shortcuts() -> None:
    """Changes the compiler of this process: how fast it is, not what it makes."""
    changes: list[tuple[Any, str, Callable[[Any], Any]]] = [
        *((SymNode, f"_{name}", functools.partial(_remembered, name)) for name in SIZES),
        (sizevars, "simplify_index_in_vec_range", _simplified),
        (DtypePropagationOpsHandler, "__init__", _set_up_once),
        (SymNode, "maybe_as_int", lambda own: _as_int),
        (SymNode, "expr", _newest),
        (SymNode, "str", lambda own: _as_text),
        (ir, "ir_node_to_tensor", _one_a_shape),
        (compile_fx, "fake_tensor_prop", _as_traced),
        (graph.SubgraphLowering, "__init__", _without_donations),
        (fx_utils, "_is_fake_tensor_same", _or_as_good),
        (fx_utils, "get_fake_args_kwargs", _looked_up),
        (FakeTensorMode, "_validate_cache_key", _ours_as_well),
        (graph_compile, "_log_joint_graph", functools.partial(_if_logged, None)),
        (graph_compile, "_log_fw_bw_graphs", functools.partial(_if_logged, (None, None))),
        (FxGraphCachePickler, "debug_lines", functools.partial(_if_logged, [])),
        (after_aot, "save_graph_repro", functools.partial(_if_logged, None, is_log=_is_for_cache)),
        (GraphModule, "print_readable", functools.partial(_if_logged, "", is_log=_is_for_cache)),
    ]
    for owner, name, change in changes:
        if hasattr(owner, name):  # older versions have less to be changed
            setattr(owner, name, change(getattr(owner, name)))


def _remembered(name: str, own: Callable[[SymNode, Any], SymNode]) -> Callable[[SymNode, Any], SymNode]:
    """For each tensor of a graph its sizes are multiplied and compared, and there are few different ones."""

    def operation(self: SymNode, other: Any) -> SymNode:
        if get_proxy_mode() is not None or self.shape_env is None or self.fx_node:  # it is traced or validated
            return own(self, other)
        known: dict[Any, SymNode] = vars(self.shape_env).setdefault("pyg_equivariant_known", {})
        key = (name, *_contents(self), *_contents(other))
        found = known.get(key)
        if found is None:
            found = known[key] = own(self, other)
        result = object.__new__(SymNode)  # a tracer tells sizes of the same value apart by the object
        vars(result).update(vars(found))
        return result

    return operation


def _contents(node: SymNode) -> tuple[Any, ...]:
    return node._expr, node.pytype, node._optimized_summation, node.is_nested_int()


def _simplified(own: Callable[[Any, Any, int], Any]) -> Callable[[Any, Any, int], Any]:
    """Of most loops the places in memory are sums of products, in which nothing is to be found but by their order."""

    @functools.cache
    def simplify(index: Any, var: Any, vec_length: int) -> Any:
        return own(index, var, vec_length) if index.has(FloorDiv, ModularIndexing) else index

    return simplify


def _set_up_once(own: Callable[[DtypePropagationOpsHandler], None]) -> Callable[[DtypePropagationOpsHandler], None]:
    """There is one object with the types of all operations, but it is set up again for each operation of a kernel."""

    @functools.cache
    def set_up(handler: DtypePropagationOpsHandler, rules: int, overrides: int) -> None:
        own(handler)

    def once(self: DtypePropagationOpsHandler) -> None:
        set_up(self, len(op_dtype_propagation_rules), len(pointwise_overrides_data))

    return once


def _as_int(self: SymNode) -> int | None:
    """Every operation on sizes asks whether they are numbers."""
    return _number(self.expr)


@functools.cache
def _number(size: Any) -> int | None:
    return int(size) if size.is_number else None


def _newest(own: Any) -> property:
    """Every operation on sizes asks what is known of them by now, and by that whether they are numbers."""

    def expression(self: SymNode) -> Any:
        changes = getattr(self.shape_env, "_replacements_version_counter", None)
        if changes == 0:
            return self._expr
        known = getattr(self, "_expr_cache", None)
        return known if known is not None and changes == self._expr_ver else own.fget(self)

    return property(expression)


def _as_text(self: SymNode) -> str:
    """Operations are told apart, and keys of caches are made, by sizes as text."""
    return _text(self.expr)


@functools.lru_cache(None, typed=True)
def _text(size: Any) -> str:
    return str(size)


def _one_a_shape(own: Callable[..., Any]) -> Callable[..., Any]:
    """What shapes an operation of ours has is found out with tensors without contents, two operations each."""

    def tensor(x: Any, *rest: Any, **options: Any) -> Any:
        if x is None or rest or options:  # which differ from one PyTorch to the next
            return own(x, *rest, **options)
        known: dict[Any, Any] = vars(V.graph).setdefault("pyg_equivariant_tensors", {})
        stride = tuple(x.get_layout().stride) if ir.is_storage_and_layout(x) else None
        key = (tuple(x.get_size()), stride, x.get_dtype(), x.get_device())
        if key not in known:
            known[key] = own(x)
        return known[key]

    return tensor


def _as_traced(own: Callable[..., Any]) -> Callable[..., Any]:
    """A graph is run with tensors without contents before it is lowered, which it was already when it was traced."""

    def propagate(gm: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        mode = None if rest or options or TRACED not in gm.meta else detect_fake_mode(inputs)
        known = all("val" in node.meta for node in gm.graph.nodes if node.op == "call_function" and node.users)
        return mode if mode is not None and known else own(gm, inputs, *rest, **options)

    return propagate


def _or_as_good(own: Callable[..., bool]) -> Callable[..., bool]:
    """A tensor without contents is taken for another one than itself, and all that is made from it is run again.

    So is one of the same shape in memory of its own, which nothing looks at in another way.
    """
    if "existing_storages" not in inspect.signature(own).parameters:  # older versions do it another way
        return own

    def is_same(new: Any, old: Any, storages: Mapping[int, int], **options: Any) -> bool:
        if new is old or own(new, old, storages, **options):
            return True
        node = options.get("node")
        if node is None or not (isinstance(new, Tensor) and isinstance(old, Tensor)) or not _is_only_read(node):
            return False
        known, fresh = (fx_utils.get_storage(each) for each in (old, new))
        alone = storages.get(known) == 1 and fresh not in storages and new.storage_offset() == old.storage_offset() == 0
        return alone and own(new, old, storages, **{**options, "check_storage": False})

    return is_same


def _is_only_read(node: Node) -> bool:
    """Whether no operation gives a part of what this one gives, or the whole of it."""
    return all(
        _is_only_read(user) if user.target is operator.getitem else _gives_its_own(user.target) for user in node.users
    )


def _gives_its_own(target: Any) -> bool:
    if isinstance(target, OpOverload):
        return all(each.alias_info is None for each in target._schema.returns)
    return target is torch.ops.higher_order.invoke_subgraph


def _looked_up(own: Callable[..., Any]) -> Callable[..., Any]:
    """What is known of a node's arguments is looked up for all nodes whenever some have changed."""
    if "gm" not in inspect.signature(own).parameters:  # older versions leave out what is not known
        return own

    def arguments(node: Node, gm: Any = None) -> tuple[bool, Any, Any]:
        def known(argument: Node) -> Any:
            return fx_utils.get_fake(argument, gm)

        return True, map_arg(node.args, known), map_arg(node.kwargs, known)

    return arguments


def _ours_as_well(own: Callable[..., None]) -> Callable[..., None]:
    """The shapes that an operation gives are remembered, by those that it gets, of PyTorch's own operations only."""

    def check(self: FakeTensorMode, operation: OpOverload, *arguments: Any) -> None:
        if operation.namespace != NAMESPACE:
            own(self, operation, *arguments)

    return check


def _if_logged(
    nothing: Any, own: Callable[..., Any], is_log: Callable[..., bool] = lambda *arguments, **options: True
) -> Callable[..., Any]:
    """Graphs are written out as text, for logs that nobody reads."""

    @functools.wraps(own)
    def write(*arguments: Any, **options: Any) -> Any:
        read = trace_log.handlers or log_state.artifact_names or log_state.log_qname_to_level
        if read or compiler_log.isEnabledFor(logging.INFO) or not is_log(*arguments, **options):
            return own(*arguments, **options)
        return nothing

    return write


def _is_for_cache(place: Any, *rest: Any, **options: Any) -> bool:
    """Whether a graph's text is for a compiled graph to keep, which would write it into logs."""
    return TracingContext.try_get() is not None and (
        isinstance(place, io.StringIO) or options.get("fast_sympy_print", False)
    )


def _without_donations(own: Callable[..., None]) -> Callable[..., None]:
    """A called graph must not write into what it is given.

    The backward part may, by the places of its arguments, of which the compiler believes that they are those of any
    graph within it.
    """

    def set_up(self: graph.SubgraphLowering, *arguments: Any, **options: Any) -> None:
        own(self, *arguments, **options)
        self.bw_donated_idxs = None

    return set_up
