from collections.abc import Callable

import pytest
import torch


@pytest.fixture
def derivatives() -> Callable[..., list[torch.Tensor]]:
    """Of a function and its inputs."""
    return all_derivatives


def all_derivatives(function: Callable, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The value and all derivatives, of three orders, in some directions."""
    outcome, everything, leaves = [function(*inputs)], [], list(inputs)
    for order in range(3):
        everything += outcome
        directions = [torch.sin(torch.arange(x.numel(), dtype=x.dtype) + order).view_as(x) for x in outcome]
        directions = [x.requires_grad_() for x in directions]
        outcome = list(torch.autograd.grad(outcome, leaves, directions, create_graph=True, materialize_grads=True))
        leaves += directions
    return everything + outcome
