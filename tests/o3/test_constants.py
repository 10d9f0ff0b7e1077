"""Constants that follow a module's precision without losing digits."""

import torch

from pyg_equivariant.o3.constants import ExactConstants


def test_precision_and_moves():
    module = ExactConstants()
    module.register_constant("third", torch.tensor(1 / 3, dtype=torch.float64))
    assert module.to("cpu").third.dtype == torch.float32  # a move alone changes no precision
    assert module.half().double().third.item() == 1 / 3
    assert module.float().third.dtype == torch.float32
