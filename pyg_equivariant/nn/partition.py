"""What a compiled training step keeps from its forward part for the backward one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch._functorch.config
from torch._functorch import partitioners
from torch._inductor.custom_graph_pass import CustomPartitionerFn, get_hash_for_files
from torch.fx import GraphModule

import pyg_equivariant.nn.activation  # noqa: F401 for its operation
from pyg_equivariant.nn.repeats import fold_repeats
from pyg_equivariant.nn.shortcuts import TRACED

__all__ = ["Partition"]


class Partition(CustomPartitionerFn):
    """PyTorch's own cut, but what edges read of their atoms is read again instead of kept.

    By default whatever is used in several layers, as the indices of the edges are, must not be read again in the
    backward part, so that each layer stores what it gathers, several values of each edge where an atom has one. And
    derivatives of activations are computed again, as PyTorch's own are.
    """

    def __call__(
        self, gm: GraphModule, joint_inputs: Sequence[object], **kwargs: Any
    ) -> tuple[GraphModule, GraphModule]:
        """The two graphs."""
        own = partitioners.get_default_op_list

        def with_ours() -> partitioners.OpTypes:
            kinds = own()
            for kind in (kinds.fusible_ops, kinds.recomputable_ops):
                kind.add(torch.ops.pyg_equivariant.silu_derivative)
            return kinds

        with (
            torch._functorch.config.patch(ban_recompute_used_far_apart=False),
            mock.patch.object(partitioners, "get_default_op_list", with_ours),
        ):
            parts: tuple[GraphModule, GraphModule] = partitioners.min_cut_rematerialization_partition(
                gm, joint_inputs, **kwargs
            )
        for part in parts:
            fold_repeats(part)
            part.meta[TRACED] = True
        return parts

    def uuid(self) -> Any:
        """For the compiler's cache: it keeps graphs with the derivatives that our operations had."""
        return get_hash_for_files(tuple(str(file) for file in sorted(Path(__file__).parent.rglob("*.py"))))
