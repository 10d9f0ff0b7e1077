"""The base of all convolutions."""

from typing import Any, Optional

from jaxtyping import Int
from torch import Tensor
from torch_geometric.nn import MessagePassing

__all__ = ["Conv", "segment_sum"]


def segment_sum(values: Tensor, index: Int[Tensor, " E"], size: int) -> Tensor:
    """Sum of the rows of ``values [E, ...]`` with the same index: ``[size, ...]``.

    ``index_add`` has ``index_select`` as its derivative, which on a CPU is several times faster than the
    ``gather`` that an expanded ``scatter_add`` has.
    """
    return values.new_zeros((size, *values.shape[1:])).index_add(0, index, values)


class Conv(MessagePassing):
    """A ``MessagePassing`` that sums messages of any rank over the first axis.

    ``message`` may return a tuple or list of tensors; each is summed.
    """

    def __init__(self) -> None:
        super().__init__(aggr="add", node_dim=0)

    def aggregate(
        self,
        inputs: Any,  # Tensor or a sequence of them; MessagePassing cannot read a union
        index: Tensor,
        ptr: Optional[Tensor] = None,  # noqa: UP045  (MessagePassing reads the annotations, and only this form)
        dim_size: Optional[int] = None,  # noqa: UP045
    ) -> Any:
        """Sum of the messages that each target receives."""
        size = int(index.max()) + 1 if dim_size is None else dim_size
        if isinstance(inputs, Tensor):
            return segment_sum(inputs, index, size)
        return [segment_sum(part, index, size) for part in inputs]
