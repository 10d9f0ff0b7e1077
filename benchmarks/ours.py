"""Our side."""

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from benchmarks.cases import Case
from benchmarks.steps import Contestant
from pyg_equivariant.models.base import Representation
from pyg_equivariant.potential import Potential


class Ours(Contestant):
    """A representation under an energy head; for evaluation frozen, as in the calculator."""

    def __init__(
        self,
        representation: Representation,
        forces: bool = True,
        mode: str = "eager",
        *,
        train: bool = True,
        device: str = "cpu",
    ) -> None:
        self.trained: Potential = Potential(representation, forces=forces).to(device)
        self.model = self.trained
        if not train:
            self.model = self.trained.frozen(compile=mode == "compiled")
        elif mode == "compiled":
            self.model.compile()

    @property
    def parameters(self) -> int:
        """Of the model from which the frozen one was made, whose tables have none."""
        return sum(p.numel() for p in self.trained.parameters())

    def inputs(self, case: Case) -> Batch:
        batch = Batch(_base_cls=Data)
        fields = ("z", "pos", "batch", "edge_index", "cell", "shift")
        batch.update({name: getattr(case, name) for name in fields if getattr(case, name) is not None})
        batch.ptr = torch.cat([case.batch.new_zeros(1), case.batch.bincount().cumsum(0)])
        return batch

    def predict(self, inputs: Batch) -> tuple[Tensor, Tensor | None]:
        prediction = self.model(inputs)
        return prediction.quantity("energy"), prediction.forces
