"""The base of all convolutions."""

from collections.abc import Sequence
from typing import Any, Optional

from jaxtyping import Float, Int
from torch import Tensor
from torch_geometric.nn import MessagePassing

from pyg_equivariant.nn.edge_sum import EdgeSum, Term
from pyg_equivariant.nn.interpolation import Interpolation

__all__ = ["Conv", "EdgeSumConv", "segment_sum"]


def segment_sum(values: Tensor, index: Int[Tensor, " E"], size: int) -> Tensor:
    """Sum of the rows of ``values [E, ...]`` with the same index: ``[size, ...]``.

    ``index_add`` has ``index_select`` as its derivative, which on a CPU is several times faster than the
    ``gather`` that an expanded ``scatter_add`` has. A single sum, as of one molecule's atoms, needs no index; with one
    the compiler fails if it has several threads (torch 2.13).
    """
    if size == 1:
        return values.sum(0, keepdim=True, dtype=values.dtype)
    return values.new_zeros((size, *values.shape[1:])).index_add(0, index, values)


class Conv(MessagePassing):
    """A ``MessagePassing`` that sums messages of any rank over the first axis.

    ``message`` may return a tuple of tensors; each is summed.
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


class EdgeSumConv(Conv):
    """A convolution whose messages are an :class:`~pyg_equivariant.nn.edge_sum.EdgeSum`, which are never stored.

    Args:
        terms: The products of features, geometry and filters.
        num_out: Rows of the outcome.
    """

    def __init__(self, terms: Sequence[Term], num_out: int) -> None:
        super().__init__()
        self.total = EdgeSum(terms, num_out)

    def message_and_aggregate(
        self,
        edge_index: Int[Tensor, "2 E"],
        x: Float[Tensor, "N M1 C"],
        weight: Float[Tensor, "R W C"],
        edge_sh: Optional[Float[Tensor, "E M2"]] = None,  # noqa: UP045  (as above)
        pair: Optional[Int[Tensor, " E"]] = None,  # noqa: UP045
        table: Optional[Interpolation] = None,  # noqa: UP045
    ) -> Float[Tensor, "N M3 C"]:
        """What the sources send to each target."""
        if edge_sh is None:
            edge_sh = x.new_empty(edge_index.shape[1], 0)
        return self.total(x, edge_sh, weight, edge_index, pair, table)
