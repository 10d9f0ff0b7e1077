import pytest
import torch
from torch import nn

from pyg_equivariant.training import ExponentialMovingAverage


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_average_follows_the_formula() -> None:
    net = model()
    ema = ExponentialMovingAverage(net, decay=0.5)
    expected = net[0].weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            net[0].weight.add_(torch.randn(3, 2))
            net[1].running_mean.add_(1.0)
        ema.update(net, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net[0].weight.detach()
    torch.testing.assert_close(ema.model[0].weight, expected)
    torch.testing.assert_close(ema.model[1].running_mean, net[1].running_mean)
    assert not any(parameter.requires_grad for parameter in ema.parameters())


def test_without_decay_it_is_the_model() -> None:
    net = model()
    ema = ExponentialMovingAverage(net, decay=0.0)
    with torch.no_grad():
        net[0].weight.fill_(7.0)
    ema.update(net, 1)
    assert ema.model[0].weight.eq(7.0).all()


def test_reset_forgets() -> None:
    net = model()
    ema = ExponentialMovingAverage(net)
    with torch.no_grad():
        net[0].bias.fill_(7.0)
        net[1].running_var.fill_(5.0)
    ema.reset(net)
    assert ema.model[0].bias.eq(7.0).all()
    assert ema.model[1].running_var.eq(5.0).all()


def test_refusal() -> None:
    with pytest.raises(ValueError, match="decay"):
        ExponentialMovingAverage(model(), decay=1.0)
