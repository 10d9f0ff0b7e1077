from collections.abc import Callable

import pytest
import torch


@pytest.fixture
def derivatives() -> Callable[..., list[torch.Tensor]]:
    """Of a function and its inputs, on so many threads."""
    return all_derivatives


def all_derivatives(function: Callable, inputs: list[torch.Tensor], *, threads: int = 1) -> list[torch.Tensor]:
    """The value and all derivatives, of three orders, in some directions."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        outcome, everything, leaves = [function(*inputs)], [], list(inputs)
        for order in range(3):
            everything += outcome
            directions = [torch.sin(torch.arange(x.numel(), dtype=x.dtype) + order).view_as(x) for x in outcome]
            directions = [x.requires_grad_() for x in directions]
            outcome = list(torch.autograd.grad(outcome, leaves, directions, create_graph=True, materialize_grads=True))
            leaves += directions
        return everything + outcome
    finally:
        torch.set_num_threads(before)
