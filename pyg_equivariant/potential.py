"""Models: a representation, its heads, and the derivatives of the energy."""

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch_geometric.data import Data

from pyg_equivariant.heads import EnergyHead, Head
from pyg_equivariant.models.base import Representation
from pyg_equivariant.nn.compiler import cut, inductor_options, register_rules, warm_up
from pyg_equivariant.nn.configurable import Configurable, build, describe
from pyg_equivariant.nn.conv import segment_sum
from pyg_equivariant.nn.embedding import MAX_Z
from pyg_equivariant.nn.frozen_step import FrozenStep
from pyg_equivariant.nn.interpolation import Table
from pyg_equivariant.nn.native import keep_memory
from pyg_equivariant.priors import Prior
from pyg_equivariant.typing import Graph, Prediction

__all__ = ["Metadata", "Potential", "Predictor"]

_Model = TypeVar("_Model", bound="Predictor")  # not Self: beartype refuses it on methods

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclasses.dataclass
class Metadata:
    """What a saved model says of itself.

    Attributes:
        elements: Atomic numbers the model was trained on; empty if it was not.
        units: Unit of each predicted quantity, by its name.
        dataset: Name of the training data.
        digest: SHA-256 of the training data and its split.
        version: Version of pyg_equivariant that trained it.
        extra: Anything else that JSON can hold.
    """

    elements: list[int] = dataclasses.field(default_factory=list)
    units: dict[str, str] = dataclasses.field(default_factory=dict)
    dataset: str = ""
    digest: str = ""
    version: str = ""
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


class Predictor(Configurable):
    """A representation and heads that read it.

    Args:
        representation: Any architecture of :mod:`pyg_equivariant.models`.
        heads: By the name of the quantity; ``forward`` returns it under this name in
            :attr:`Prediction.properties`.

    Raises:
        ValueError: if a head does not fit the representation.

    Attributes:
        metadata: See :class:`Metadata`.
    """

    def __init__(self, representation: Representation, heads: Mapping[str, Head]) -> None:
        super().__init__()
        for name, head in heads.items():
            if head.channels != representation.channels:
                raise ValueError(
                    f"the head {name!r} reads {head.channels} channels, but {type(representation).__name__} has "
                    f"{representation.channels}: build it with channels={representation.channels}"
                )
            if head.lmax > representation.lmax:
                raise ValueError(
                    f"the head {name!r} ({type(head).__name__}) reads features of degree {head.lmax}, but "
                    f"{type(representation).__name__} has lmax={representation.lmax}: use another of the two"
                )
            if representation.cutoff < head.cutoff < math.inf:
                raise ValueError(
                    f"the head {name!r} ({type(head).__name__}) needs edges up to {head.cutoff} Å, but "
                    f"{type(representation).__name__} has cutoff={representation.cutoff}: make the two equal"
                )
        self.representation = representation
        self.heads = nn.ModuleDict(heads)
        self.metadata = Metadata()
        self._frozen_dtype: torch.dtype | None = None  # to look for it takes longer than to build a graph
        self._compiled: Callable[..., Prediction] | None = None
        self._compile_options: dict[str, Any] | None = None

    @property
    def cutoff(self) -> float:
        """Radius in Å of the graphs the model expects."""
        return self.representation.cutoff

    @property
    def quantities(self) -> list[str]:
        """Names of what is predicted, derivatives left out."""
        return list(self.heads)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self._frozen_dtype or next(self.parameters()).dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._frozen_dtype = None  # ``fn`` may cast
        if isinstance(self._compiled, FrozenStep):
            self._compiled.forget()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def graph(self, batch: Data) -> Graph:
        """The tensors of a ``Data`` or ``Batch`` that a model reads; ``batch`` is not changed.

        Edge vectors are taken in the precision of the positions, then cast to that of the weights.

        Raises:
            ValueError: if the batch has no edges yet, or no positions, or (looked for on a CPU only) an atomic number
                that no element has.
        """
        fields = batch.to_dict()
        pos, z, edge_index, index, first = map(fields.get, ("pos", "z", "edge_index", "batch", "ptr"))
        if pos is None:
            raise ValueError("the graph has no positions: set its field 'pos' [N, 3] in Å")
        if edge_index is None:
            raise ValueError(
                f"the graph has no edges: apply RadiusGraph({self.cutoff}) (or FullyConnected()) to it first"
            )
        pos, z, edge_index, dtype = _usable(pos), _usable(z), _usable(edge_index), self.dtype
        if pos.is_cpu:
            keep_memory()
        source, target = edge_index.unbind()
        edge_vec = pos.index_select(0, source) - pos.index_select(0, target)
        num_graphs = 1 if index is None else batch.num_graphs if first is None else len(first) - 1
        index = pos.new_zeros(len(pos), dtype=torch.long) if index is None else _usable(index)
        shift = fields.get("shift")
        if shift is not None:
            cell = _usable(fields["cell"]).to(pos.dtype).view(-1, 3, 3)
            edge_vec = edge_vec + torch.einsum("ea,eab->eb", _usable(shift).to(pos.dtype), cell[index[target]])
        if z.is_cpu and len(z):
            lowest, highest = z.aminmax()
            if lowest.item() < 1 or highest.item() > MAX_Z:
                atom = int(((z < 1) | (z > MAX_Z)).nonzero()[0])
                raise ValueError(f"atom {atom} has the atomic number {int(z[atom])}: there are 1 to {MAX_Z}")
        charge = fields.get("total_charge")
        return Graph(
            z=z,
            pos=pos if pos.dtype == dtype else pos.to(dtype),  # which takes as long as to look up a field
            edge_index=edge_index,
            edge_vec=edge_vec if edge_vec.dtype == dtype else edge_vec.to(dtype),
            batch=index,
            num_graphs=num_graphs,
            total_charge=pos.new_zeros(num_graphs, dtype=dtype)
            if charge is None
            else _usable(charge).to(dtype).view(-1),
        )

    def features(self, graph: Graph) -> Float[Tensor, "N P M C"]:
        """What the representation makes of a graph."""
        x: Tensor = self.representation(graph.z, graph.edge_index, graph.edge_vec)
        return x

    def forward(self, batch: Data) -> Prediction:
        """What the heads make of a batch of graphs.

        Args:
            batch: A ``Data`` or ``Batch`` with ``z``, ``pos`` and ``edge_index`` (and ``cell`` and ``shift``, if
                periodic), as :class:`~pyg_equivariant.data.RadiusGraph` makes it.
        """
        graph = self.graph(batch)
        return self._step(graph.edge_vec.requires_grad and torch.is_grad_enabled())(graph)

    def _step(self, differentiable: bool) -> Callable[..., Prediction]:
        """:meth:`derive`, compiled if it shall be and if what it returns need not be differentiable or can."""
        if self._compiled is None or (differentiable and isinstance(self._compiled, FrozenStep)):
            return self.derive
        return self._compiled

    def derive(self, graph: Graph) -> Prediction:
        """The whole step in tensors alone: what :meth:`compile` compiles."""
        x = self.features(graph)
        return Prediction(properties={name: head(x, graph) for name, head in self.heads.items()})

    def frozen(
        self: _Model,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        compile: bool = False,
    ) -> _Model:
        """A copy for simulations, whose weights and modules must not change any more.

        In float32 on a CPU networks of the edges' lengths are tabulated, see :meth:`Representation.tabulate`: forces
        change by about 10⁻⁵ of their size. The copy can be neither trained nor saved.

        Args:
            device: Where to put the copy; where the model is, by default.
            dtype: Its precision; the model's own, by default.
            compile: Whether to compile the whole step on the first call, see
                :class:`~pyg_equivariant.nn.frozen_step.FrozenStep`.

        Raises:
            RuntimeError: if this torch (before 2.13) cannot compile it.
        """
        model = copy.deepcopy(self).to(device=device, dtype=dtype).eval().requires_grad_(False)
        with torch.no_grad():
            model.representation.tabulate()
        model._frozen_dtype = next(model.parameters()).dtype
        if compile:
            _require_compiler()
        model._compiled = FrozenStep(model) if compile else None
        model._compile_options = None
        return model

    def compile(self, **options: Any) -> None:
        """Compiles the whole step, derivatives included, on its next call.

        The first step then takes a minute or so. Shapes may change from batch to batch.

        Args:
            options: For ``torch.compile``.

        Raises:
            RuntimeError: if this torch (before 2.13) cannot trace ``autograd.grad``.
        """
        _require_compiler()
        register_rules()
        told = {"fullgraph": True, "dynamic": True, **options}
        is_inductor = told.get("backend", "inductor") == "inductor"
        if is_inductor and "mode" not in told:
            told["options"] = inductor_options() | told.get("options", {})
        cpp_wrapper = told.get("options", {}).get("cpp_wrapper", False)
        compiled = torch.compile(self.derive, **told)

        settings = torch._dynamo.config.patch(trace_autograd_ops=True, specialize_float=True)

        def step(*args: Any, **kwargs: Any) -> Prediction:
            if is_inductor:
                warm_up(cpp_wrapper)
            with settings:
                return compiled(*args, **kwargs)

        self._compiled, self._compile_options = step, options

    def __getstate__(self) -> dict[str, Any]:
        kept = (
            self._compiled if isinstance(self._compiled, FrozenStep) else None
        )  # which knows this model, not its copy
        return {**self.__dict__, "_compiled": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self._compile_options is not None:
            self.compile(**self._compile_options)

    def save(self, path: str | Path) -> None:
        """Writes the model as safetensors and JSON, nothing else.

        Args:
            path: A ``*.safetensors`` file, which holds the JSON in its header, or else a folder, which is
                made and gets ``model.safetensors`` and ``config.json``.

        Raises:
            ValueError: for a :meth:`frozen` copy, which lacks the networks that it was tabulated from.
        """
        path = Path(path)
        if any(isinstance(module, Table) for module in self.modules()):
            raise ValueError(f"{path} was not written: a frozen model cannot be saved, save the one it was made from")
        document = json.dumps(
            {"model": describe(self), "metadata": dataclasses.asdict(self.metadata)}, indent=2, ensure_ascii=False
        )
        weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.state_dict().items()}
        if path.suffix == ".safetensors":
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(weights, path, metadata={"config": document})
            return
        path.mkdir(parents=True, exist_ok=True)
        save_file(weights, path / WEIGHTS)
        (path / CONFIG).write_text(document + "\n", encoding="utf-8")

    @classmethod
    def load(
        cls: type[_Model], path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> _Model:
        """Opens what :meth:`save` wrote, in evaluation mode.

        Args:
            path: The file or folder.
            device: Where to put the model.
            dtype: Precision of its weights; that of the file if not given.

        Raises:
            FileNotFoundError: if there is no model at ``path``.
            ValueError: if it is damaged, or a model of another kind than ``cls``.
        """
        path = Path(path)
        document, weights = _read(path)
        try:
            model = build(document["model"])
            metadata = Metadata(**document["metadata"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: the description of the model cannot be read: {error}") from error
        if not isinstance(model, cls):
            raise ValueError(f"{path} holds a {type(model).__name__}, not a {cls.__name__}: open it with that class")
        reference = next(
            (t.dtype for t in weights.values() if t.is_floating_point() and t.dtype != torch.float64), None
        )
        model = model.to(dtype or reference or torch.float64)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{path}: the weights do not fit the model it describes: {error}") from error
        model.metadata = metadata
        return model.to(device).eval()

    @classmethod
    def from_pretrained(
        cls: type[_Model], path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> _Model:
        """:meth:`load`, under the name that users of Hugging Face look for."""
        return cls.load(path, device=device, dtype=dtype)


class Potential(Predictor):
    """Energies, and the forces and stress that are their derivatives.

    Args:
        representation: Any architecture of :mod:`pyg_equivariant.models`.
        head: Head of the energy; ``EnergyHead(representation.channels)`` if not given.
        heads: Further heads, by the name of their quantity.
        priors: Energies that are added to what is learned.
        forces: Whether ``forward`` returns forces.
        stress: Whether ``forward`` returns the stress; needs periodic graphs.

    Example:
        >>> from pyg_equivariant.models import PaiNN
        >>> model = Potential(PaiNN(channels=8, num_layers=1))
        >>> edge_index = torch.tensor([[0, 1], [1, 0]])
        >>> hydrogen = Data(z=torch.tensor([1, 1]), pos=torch.eye(3)[:2], edge_index=edge_index)
        >>> prediction = model(hydrogen)
        >>> prediction.energy.shape, prediction.forces.shape
        (torch.Size([1]), torch.Size([2, 3]))
    """

    def __init__(
        self,
        representation: Representation,
        head: EnergyHead | None = None,
        *,
        heads: Mapping[str, Head] | None = None,
        priors: Sequence[Prior] | None = None,
        forces: bool = True,
        stress: bool = False,
    ) -> None:
        super().__init__(representation, {"energy": head or EnergyHead(representation.channels), **(heads or {})})
        self.priors = nn.ModuleList(priors or [])
        self.forces = forces
        self.stress = stress

    @property
    def quantities(self) -> list[str]:
        """See :attr:`Predictor.quantities`; what the energy is made of included."""
        return list(dict.fromkeys([*self.heads, *self.head.quantities]))

    @property
    def head(self) -> EnergyHead:
        """The head of the energy."""
        head = self.heads["energy"]
        assert isinstance(head, EnergyHead)
        return head

    def forward(self, batch: Data, *, hessian: bool = False) -> Prediction:
        """Energy, forces, stress and what further heads return.

        In training mode the forces can be differentiated with respect to the weights; in evaluation mode
        nothing keeps a graph. Works under ``torch.no_grad()`` and ``torch.inference_mode()``.

        Args:
            batch: A ``Data`` or ``Batch`` with edges, see :meth:`Predictor.forward`.
            hessian: Whether to return ``∂²E/∂pos²`` too, ``[N, 3, N, 3]``.

        Raises:
            ValueError: if the graphs have no edges, or are asked for a stress and are not periodic.
        """
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return self.forward(batch, hessian=hessian)
        differentiate = self.forces or self.stress or hessian
        keep_graph = self.training and torch.is_grad_enabled()
        with torch.set_grad_enabled(differentiate or keep_graph):
            if hessian:
                batch = batch.clone().update({"pos": _usable(batch.pos).detach().requires_grad_()})
            graph = self.graph(batch)
            volume = self._volume(batch) if self.stress else None
            if differentiate and not graph.edge_vec.requires_grad:
                graph = graph._replace(edge_vec=graph.edge_vec.requires_grad_())
            step = self.derive if hessian else self._step(keep_graph)
            kept = keep_graph or hessian
            prediction = step(graph, volume, create_graph=True) if kept else step(graph, volume)
            if hessian:
                prediction = prediction._replace(hessian=_jacobian(-_present(prediction.forces), batch.pos))
        return _detached(prediction) if hessian and not keep_graph else prediction

    def derive(
        self, graph: Graph, volume: Float[Tensor, " B"] | None = None, *, create_graph: bool = False
    ) -> Prediction:
        """The whole step from edge vectors to forces, in tensors alone: what :meth:`compile` compiles.

        Args:
            graph: With an ``edge_vec`` that requires a gradient, if forces or stress are wanted.
            volume: Of the cells in Å³, where the stress is wanted.
            create_graph: Whether what is returned shall be differentiable itself.
        """
        if create_graph and graph.edge_vec.is_leaf:
            graph = graph._replace(edge_vec=cut(graph.edge_vec))
        x = self.features(graph)
        atomic = self.head.atomic(x, graph)
        for prior in self.priors:
            atomic = atomic + prior(graph)
        energy = self.head.total(atomic, graph)
        properties = self.head.properties(x, graph)
        properties |= {name: head(x, graph) for name, head in self.heads.items() if name != "energy"}
        forces = stress = None
        if graph.edge_vec.requires_grad and torch.is_grad_enabled():
            (gradient,) = torch.autograd.grad(
                energy.sum(), graph.edge_vec, create_graph=create_graph, materialize_grads=True
            )
            forces = _forces(gradient, graph)
            if volume is not None:
                stress = _stress(gradient, graph, volume)
        prediction = Prediction(energy, forces, stress, None, atomic, properties)
        return prediction if create_graph else _detached(prediction)

    def _volume(self, batch: Data) -> Float[Tensor, " B"]:
        cell = batch.get("cell")
        volume = None if cell is None else torch.linalg.det(_usable(cell).view(-1, 3, 3)).abs()
        if volume is None or bool((volume == 0).any()):
            raise ValueError("a stress was asked for, but a graph has no cell: set stress=False for molecules")
        return volume.to(self.dtype)


def _require_compiler() -> None:
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        raise RuntimeError(f"compiling forces needs torch 2.13 or newer, this is {torch.__version__}: do not compile")


def _forces(gradient: Float[Tensor, "E 3"], graph: Graph) -> Float[Tensor, "N 3"]:
    """``−∂E/∂r`` from ``∂E/∂(r_j − r_i)``: each edge pulls its target and pushes its source."""
    source, target = graph.edge_index
    return segment_sum(gradient, target, graph.z.shape[0]) - segment_sum(gradient, source, graph.z.shape[0])


def _stress(gradient: Float[Tensor, "E 3"], graph: Graph, volume: Float[Tensor, " B"]) -> Float[Tensor, "B 3 3"]:
    """``(1/V) ∂E/∂ε``: a strain ε takes each edge vector r to (1 + ε) r."""
    outer = gradient.unsqueeze(-1) * graph.edge_vec.unsqueeze(-2)
    virial = segment_sum(outer, graph.batch[graph.edge_index[1]], graph.num_graphs)
    return 0.5 * (virial + virial.transpose(1, 2)) / volume[:, None, None]


def _jacobian(value: Float[Tensor, "N 3"], pos: Tensor) -> Float[Tensor, "N 3 N 3"]:
    """``∂ value / ∂ pos``, all rows in one batched backward pass."""
    basis = torch.eye(value.numel(), dtype=value.dtype, device=value.device).view(-1, *value.shape)
    (rows,) = torch.autograd.grad(value, pos, basis, is_grads_batched=True, materialize_grads=True)
    return rows.view(*value.shape, *pos.shape)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _usable(tensor: Tensor) -> Tensor:
    """A tensor that autograd may save, also if it was made under ``torch.inference_mode()``."""
    return tensor.clone() if tensor.is_inference() else tensor


def _detached(prediction: Prediction) -> Prediction:
    fields = {f: t.detach() for f in prediction._fields if isinstance(t := getattr(prediction, f), Tensor)}
    return prediction._replace(**fields, properties={k: v.detach() for k, v in prediction.properties.items()})


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON document and weights of a saved model."""
    file = path if path.suffix == ".safetensors" else path / WEIGHTS
    if not file.is_file():
        raise FileNotFoundError(
            f"no model at {path}: expected a *.safetensors file or a folder with {WEIGHTS} and {CONFIG}"
        )
    try:
        with safe_open(file, framework="pt") as stored:
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (no dictionary)
            text = (stored.metadata() or {}).get("config")
        if file != path:
            text = (path / CONFIG).read_text(encoding="utf-8")
        return json.loads(text or "null") or {}, weights
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a saved model: {error}") from error
