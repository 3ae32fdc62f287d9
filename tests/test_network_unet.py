"""The U-Net and its blocks: sizes that halve unevenly, patches, attention against torch's, conditions."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raynn.networks.unet import Attention, MapSettings, ResidualBlock, UNet, from_patches, group_norm, to_patches


def perturbed(module: nn.Module) -> nn.Module:
    """The module in float64 with random weights everywhere, those that begin at zero too."""
    torch.manual_seed(0)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def unet(**fields: int | tuple[int, ...]) -> UNet:
    settings = MapSettings(**{"channels": (6, 8), **fields})  # type: ignore[arg-type]
    model = perturbed(UNet(2, settings, True, 5, 0.0, itertools.count()))
    assert isinstance(model, UNet)
    return model


@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (6, 4), (7, 8)])
def test_patches_and_back(patch: int, size: tuple[int, int]) -> None:
    x_BCHW = torch.randn(2, 3, *size) + 10
    patches = to_patches(x_BCHW, patch)
    assert patches.shape == (2, 3 * patch**2, -(-size[0] // patch), -(-size[1] // patch))
    assert torch.equal(from_patches(patches, patch, size), x_BCHW)
    assert patches.min() == x_BCHW.min(), "edges are filled with what is there"
    assert patches.max() == x_BCHW.max()


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (5, 3), (8, 8), (9, 1)])
def test_every_size(patch: int, size: tuple[int, int]) -> None:
    model, x_BCHW = unet(patch=patch, channels=(4, 4, 6)), torch.randn(3, 2, *size, dtype=torch.float64)
    y_BCHW = model(x_BCHW, torch.randn(3, 5, dtype=torch.float64))
    assert y_BCHW.shape == x_BCHW.shape
    assert y_BCHW.isfinite().all()
    y_BCHW.sum().backward()


def test_a_fresh_network_gives_zero() -> None:
    model = UNet(2, MapSettings(channels=(6, 8)), True, 5, 0.0, itertools.count())
    assert not model(torch.randn(3, 2, 6, 6), torch.randn(3, 5)).any()


def test_attention_is_torchs() -> None:
    attention = perturbed(Attention(64))
    assert isinstance(attention, Attention)
    x_BCHW = torch.randn(2, 64, 3, 4, dtype=torch.float64)
    joint: Tensor = attention.query_key_value(attention.norm(x_BCHW))
    query, key, value = (part.reshape(2, 2, 32, 12).transpose(-1, -2) for part in joint.chunk(3, dim=1))
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(-1, -2).reshape(2, 64, 3, 4)
    torch.testing.assert_close(attention(x_BCHW), x_BCHW + attention.out(mixed))


def test_a_condition_scales_and_shifts() -> None:
    block = ResidualBlock(4, 6, 3, 0.0, 0).double()
    x_BCHW, condition_BE = torch.randn(2, 4, 5, 5).double(), torch.randn(2, 3).double()
    nn.init.normal_(block.conv_out.weight)
    assert block.condition is not None
    scale_BC, shift_BC = block.condition(condition_BE).chunk(2, dim=1)
    inner = block.norm_out(block.conv_in(F.silu(block.norm_in(x_BCHW))))
    inner = inner * (1 + scale_BC)[:, :, None, None] + shift_BC[:, :, None, None]
    expected = block.shortcut(x_BCHW) + block.conv_out(F.silu(inner))
    torch.testing.assert_close(block(x_BCHW, condition_BE, None), expected)


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (16, 1), (31, 1), (32, 2), (64, 4), (96, 6), (128, 8), (256, 8)]
)
def test_groups_have_16_channels_where_they_can(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups
