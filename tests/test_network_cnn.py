from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raynn.networks.cnn import Ending, Pool
from raynn.networks.layers import ACTIVATIONS, Activation, channels_last, flattened


@pytest.mark.parametrize("channels", [1, 3])
def test_a_convolution_answers_in_the_layout_it_was_given(channels: int) -> None:
    """Of one channel, too, where memory does not tell."""
    images, convolution = torch.randn(2, channels, 6, 5), nn.Conv2d(channels, 4, 3, padding=1)
    maps = convolution(channels_last(images))
    assert torch.equal(channels_last(images), images)
    assert maps.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(maps, convolution(images))


@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_pooled_before_or_after_the_activation_it_is_the_same(activation: Activation, pooling: str) -> None:
    """First where that gives the same: a mean does not, nor a maximum where the activation falls somewhere."""
    ending = Ending(activation, Pool(pooling, (2, 2)))
    assert (ending.first is not None) == (pooling == "max" and activation in ("relu", "tanh", "selu"))
    maps = torch.randn(3, 4, 6, 5).double()
    pool = F.max_pool2d if pooling == "max" else F.avg_pool2d
    expected = pool(ACTIVATIONS[activation]()(maps), 2)
    found, _ = ending((maps.clone(), None) if ending.first is None else ending.first((maps, None)))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_flattened_maps_have_their_own_layout_in_the_gradient() -> None:
    x_BCHW = channels_last(torch.randn(2, 3, 4, 5, dtype=torch.float64)).requires_grad_()
    flat = flattened(x_BCHW)
    torch.testing.assert_close(flat, x_BCHW.flatten(1), rtol=0, atol=0)
    (grad,) = torch.autograd.grad(flat.square().sum(), x_BCHW)
    torch.testing.assert_close(grad, 2 * x_BCHW.detach(), rtol=0, atol=0)
    assert grad.is_contiguous(memory_format=torch.channels_last)
    assert torch.autograd.gradcheck(flattened, x_BCHW)
