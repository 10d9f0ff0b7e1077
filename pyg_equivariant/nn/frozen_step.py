"""The compiled step of a model that does not change any more."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from pyg_equivariant.nn.compiler import register_rules, warm_up
from pyg_equivariant.typing import Graph, Prediction

__all__ = ["FrozenStep", "inductor"]

Compiler = Callable[[torch.fx.GraphModule, list[Tensor], int], Callable[[list[Tensor]], Sequence[Tensor]]]
"""Makes a function of a graph and its inputs, which are fake tensors; the first so many change from call to call."""

_TENSORS = ("z", "pos", "edge_index", "edge_vec", "batch", "total_charge")  # of a graph


class FrozenStep:
    """``model.derive``, compiled as a whole when it is first called with inputs of a kind.

    ``torch.compile`` reads the Python of a step and traces what it read, and checks before each step what the step
    depends on. Of a frozen model nothing changes but the inputs, so that the operations of one run are all there is to
    know: PyTorch records them as they are dispatched, derivatives included, with symbols for the numbers of atoms,
    edges and graphs, and the compiler gets the record. This takes a fraction of the time, and of a step next to nothing
    is left in Python. Numbers of 0 and 1 are kinds of their own, as are precisions, devices, the number of threads and
    whatever else the compiler has to know.

    Args:
        model: Its modules and weights must stay what they are, see :meth:`forget`.
        compiler: Compiles the record; by default :func:`inductor`.
    """

    def __init__(self, model: nn.Module, compiler: "Compiler | None" = None) -> None:
        register_rules()
        self.model = model
        self.compiler = compiler or inductor
        self.programs: list[_Program] = []

    def __call__(self, graph: Graph, volume: Float[Tensor, " B"] | None = None) -> Prediction:
        """What ``model.derive`` returns; it cannot be differentiated.

        Args:
            graph: With an ``edge_vec`` that requires a gradient, if forces or stress are wanted.
            volume: Of the cells in Å³, where the stress is wanted.

        Raises:
            RuntimeError: if the model's Python depends so much on the numbers of atoms, edges or graphs that they need
                more programs than ``torch._dynamo.config.recompile_limit``.
        """
        tensors = [getattr(graph, name).contiguous() for name in _TENSORS]
        if volume is not None:
            tensors.append(volume.contiguous())
        sizes = graph.z.shape[0], graph.edge_vec.shape[0], graph.num_graphs
        derives = graph.edge_vec.requires_grad and torch.is_grad_enabled()
        kind = [derives, *[min(size, 2) for size in sizes], *[(t.dtype, t.device) for t in tensors]]
        with torch.no_grad():
            for program in self.programs:
                if program.kind == kind and program.state.check() and program.holds(*sizes):
                    return program(tensors)
            limit = torch._dynamo.config.recompile_limit
            alike = [program for program in self.programs if program.kind == kind and program.condition]
            if len(alike) == limit:
                raise RuntimeError(
                    f"the model was compiled {limit} times, at last for {alike[-1].condition}, and had to be again for "
                    f"{sizes} atoms, edges and graphs: read sizes as x.shape[0], which stays a symbol, not as len(x), "
                    "or do not compile"
                )
            self.programs.append(_Program(self.model, self.compiler, kind, tensors, sizes))
            return self.programs[-1](tensors)

    def forget(self) -> None:
        """To be called when weights were replaced."""
        self.programs = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "programs": []}  # which know these weights, not their copies


def inductor(graph: torch.fx.GraphModule, inputs: list[Tensor], changing: int) -> Any:
    """PyTorch's compiler; on a CPU nothing of a step is in Python then, and no sizes are checked in it."""
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner

    weights = range(changing, len(inputs))
    with config.patch(size_asserts=False, alignment_asserts=False):
        return compile_fx_inner(
            graph, inputs, cpp_wrapper=inputs[0].is_cpu, is_inference=True, static_input_idxs=weights
        )


class _Program:
    """One compilation.

    Attributes:
        kind: Whether forces are derived; the numbers of atoms, edges and graphs up to 2; type and device of tensors.
        state: What else the compiler knows, such as the number of threads.
        condition: On the numbers of atoms, edges and graphs, as Python; empty for most models.
        holds: Whether it does.
    """

    def __init__(
        self, model: nn.Module, compiler: Compiler, kind: list[Any], tensors: list[Tensor], sizes: tuple[int, int, int]
    ) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv
        from torch.utils._sympy.printers import PythonPrinter

        if compiler is inductor:
            warm_up(tensors[0].is_cpu)
        self.kind = kind
        self.state = torch._C._dynamo.guards.GlobalStateGuard()
        step = _Step(model)
        named = dict(step.named_parameters()) | dict(step.named_buffers())
        self.weights = list(named.values())

        shape_env = ShapeEnv()
        fake_mode = FakeTensorMode(shape_env=shape_env, allow_non_fake_inputs=True)
        atoms, edges, graphs = (_symbol(shape_env, name, size) for name, size in zip("NEB", sizes, strict=True))
        numbers = {"N": atoms, "E": edges, "B": graphs}
        arguments = ", ".join(name if isinstance(n, int) else str(n) for name, n in numbers.items())
        shapes = [(atoms,), (atoms, 3), (2, edges), (edges, 3), (atoms,), (graphs,), (graphs,)]  # of the volume at last
        with fake_mode:
            inputs = [t.new_empty(shape) for t, shape in zip(tensors, shapes, strict=False)]
        inputs += [fake_mode.from_tensor(weight, static_shapes=True) for weight in self.weights]
        with fake_mode:
            graph, self.fields, self.names = _record(step, list(named), inputs, derives=kind[0])

        self.condition = " and ".join(f"({PythonPrinter().doprint(guard.expr)})" for guard in shape_env.guards)
        self.holds = eval(f"lambda {arguments}: {self.condition or True}", {"math": math})
        with torch._guards.tracing(torch._guards.TracingContext(fake_mode)):
            self.run = compiler(graph, inputs, len(tensors))

    def __call__(self, tensors: list[Tensor]) -> Prediction:
        outputs = iter(self.run([*tensors, *self.weights]))
        fields = {name: next(outputs) for name in self.fields}
        return Prediction(**fields, properties=dict(zip(self.names, outputs, strict=True)))


class _Step(nn.Module):
    model: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, graph: Graph, *volume: Tensor) -> Prediction:
        prediction: Prediction = self.model.derive(graph, *volume)
        return prediction


def _symbol(shape_env: Any, name: str, size: int) -> int | torch.SymInt:
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic

    if size < 2:
        return size
    source = ConstantSource(name)
    symbol = shape_env.create_symbol(size, source, dynamic_dim=DimDynamic.DYNAMIC)
    return shape_env.create_symintnode(symbol, hint=size, source=source)


def _record(
    step: nn.Module, weights: list[str], inputs: list[Tensor], *, derives: bool
) -> tuple[torch.fx.GraphModule, list[str], list[str]]:
    """What is dispatched in a step.

    Returns:
        The graph; which fields of :class:`Prediction` are the first of its outcomes; the names of the properties, which
        are the rest.
    """
    from torch._dispatch.python import enable_python_dispatcher
    from torch._functorch.compile_utils import fx_graph_cse
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    fields: list[str] = []
    names: list[str] = []

    def run(*inputs: Tensor) -> list[Tensor]:
        tensors = dict(zip(_TENSORS, inputs, strict=False))
        tensors["edge_vec"] = tensors["edge_vec"].detach().requires_grad_(derives)
        graph = Graph(**tensors, num_graphs=tensors["total_charge"].shape[0])
        volume = inputs[len(_TENSORS) : len(inputs) - len(weights)]
        values = dict(zip(weights, inputs[len(inputs) - len(weights) :], strict=True))
        with torch.set_grad_enabled(derives):
            prediction: Prediction = functional_call(step, values, (graph, *volume))
        fields[:] = [name for name in Prediction._fields if isinstance(getattr(prediction, name), Tensor)]
        names[:] = prediction.properties
        outcomes = [*(getattr(prediction, name) for name in fields), *prediction.properties.values()]
        return [outcome.detach() for outcome in outcomes]

    with enable_python_dispatcher(), torch.compiler._compile_session_context():
        graph = make_fx(run, decomposition_table=select_decomp_table(), _allow_non_fake_inputs=True)(*inputs)
    graph.graph = fx_graph_cse(graph.graph)
    graph.graph.eliminate_dead_code()
    graph.graph.output_node().meta["user_visible_output_idxs"] = range(
        len(fields) + len(names)
    )  # these keep their strides
    graph.recompile()
    return graph, fields, names
