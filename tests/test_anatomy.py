"""A network layer by layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raynn.anatomy import first_filters, layers_of


class Net(nn.Module):
    """Convolution, recurrence and a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([3.0, 4.0]))
        self.convolution = nn.Conv2d(1, 4, 3)
        self.cell = nn.LSTM(16, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, batch: dict[str, Tensor], key_B: Tensor | None = None) -> Tensor:
        h_BTH = self.cell(self.convolution(batch["image"]).flatten(2))[0]
        return self.head(h_BTH[:, -1]) * self.scale


def test_every_parameter_is_in_one_layer() -> None:
    net = Net()
    layers = {layer.name: layer for layer in layers_of(net, {"image": torch.zeros(3, 1, 6, 6)})}
    assert list(layers) == ["(itself)", "convolution", "cell", "head"]
    assert sum(layer.parameters for layer in layers.values()) == sum(p.numel() for p in net.parameters())
    assert layers["(itself)"].norm == pytest.approx(5.0)
    assert layers["(itself)"].rms == pytest.approx(12.5**0.5)
    assert (layers["convolution"].shape, layers["convolution"].output) == ("4 x 1 x 3 x 3", "B x 4 x 4 x 4")
    assert (layers["cell"].kind, layers["cell"].output) == ("LSTM", "B x 4 x 5")
    assert layers["head"].output == "B x 2"
    assert not any(module._forward_hooks for module in net.modules())


def test_without_a_batch_shapes_of_outputs_are_left_out() -> None:
    assert {layer.output for layer in layers_of(Net())} == {""}


def test_filters_are_gray_where_they_are_zero() -> None:
    net = Net()
    with torch.no_grad():
        net.convolution.weight.zero_()
        net.convolution.weight[0, 0, 0, 0] = -2.0
        net.convolution.weight[1, 0, 1, 1] = 0.5
    found = first_filters(net)
    assert found is not None
    name, image_NCHW = found
    assert (name, image_NCHW.shape) == ("convolution", (4, 1, 3, 3))
    assert (image_NCHW[0, 0, 0, 0], image_NCHW[0, 0, 1, 1], image_NCHW[1, 0, 1, 1]) == (0, 128, 255)


@pytest.mark.parametrize(
    ("convolution", "shape"),
    [
        pytest.param(nn.Conv2d(3, 8, 5), (8, 3, 5, 5), id="colors"),
        pytest.param(nn.Conv2d(4, 2, 3), (2, 1, 12, 3), id="other channels below each other"),
        pytest.param(nn.Conv1d(6, 2, 7), (2, 1, 6, 7), id="sequence"),
    ],
)
def test_filters_of(convolution: nn.Module, shape: tuple[int, ...]) -> None:
    found = first_filters(nn.Sequential(convolution))
    assert found is not None
    assert found[1].shape == shape
    assert found[1].dtype == np.uint8


def test_no_filters_without_a_convolution() -> None:
    assert first_filters(nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 4, 1))) is None
