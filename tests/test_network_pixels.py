"""The distribution of 8-bit pixels: it sums to one, it is the difference of logistic functions, its tails are right."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from raynn.networks.pixels import DiscretizedLogistics


def maps_of(pixels: DiscretizedLogistics, num: int = 1, spread: float = 2.0, seed: int = 0) -> Tensor:
    """Random maps [num, num_maps, 1, 1] in float64: of some components nearly all mass is in one value."""
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(num, pixels.num_maps, 1, 1, dtype=torch.float64, generator=generator)


def every_pixel(channels: int) -> Tensor:
    """All the values that one pixel can have, uint8 [256**C, C, 1, 1]."""
    levels = torch.arange(256, dtype=torch.uint8)
    return torch.cartesian_prod(*[levels] * channels).reshape(-1, channels, 1, 1)


@pytest.mark.parametrize(("channels", "mixture"), [(1, 1), (1, 4), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_probabilities_sum_to_one(channels: int, mixture: int, dtype: torch.dtype) -> None:
    pixels, images = DiscretizedLogistics(channels, mixture), every_pixel(channels)
    for seed in range(3):
        maps = maps_of(pixels, seed=seed).to(dtype).expand(len(images), -1, -1, -1)
        total = pixels.log_probability(maps, images).double().exp().sum().item()
        assert total == pytest.approx(1, abs=1e-12 if dtype == torch.float64 else 1e-5)


def test_the_mass_of_a_value_is_that_between_its_borders() -> None:
    """Salimans et al. 2017, eq. 2, written out for three channels and two components."""
    pixels = DiscretizedLogistics(3, 2)
    maps = maps_of(pixels, num=4, spread=1.0).float().double()
    image = torch.tensor([[0, 128, 255], [3, 0, 77], [255, 254, 1], [100, 101, 102]], dtype=torch.uint8)
    found = pixels.log_probability(maps, image[:, :, None, None])
    for row, levels in enumerate(image.tolist()):
        by_component = maps[row].reshape(2, 10).tolist()
        weights = torch.tensor([component[0] for component in by_component]).softmax(0).tolist()
        total = 0.0
        x = [2 * level / 255 - 1 for level in levels]
        for k, (_, *means, s0, s1, s2, a01, a02, a12) in enumerate(by_component):
            means = [mean + (-0.5, 0.5)[k] for mean in means]
            means[1] += math.tanh(a01) * x[0]
            means[2] += math.tanh(a02) * x[0] + math.tanh(a12) * x[1]
            mass = weights[k]
            for level, value, mean, log_scale in zip(levels, x, means, (s0, s1, s2), strict=True):
                scale = math.exp(log_scale) / 4
                upper = 1.0 if level == 255 else 1 / (1 + math.exp(-(value + 1 / 255 - mean) / scale))
                lower = 0.0 if level == 0 else 1 / (1 + math.exp(-(value - 1 / 255 - mean) / scale))
                mass *= upper - lower
            total += mass
        assert found[row].item() == pytest.approx(math.log(total), abs=1e-6)


def test_tails_keep_their_digits_in_float32() -> None:
    pixels, images = DiscretizedLogistics(1, 1), every_pixel(1)
    for mean, log_scale in itertools.product((-3.0, 0.0, 0.5), (-8.0, -4.0, 0.0, 6.0)):
        maps = torch.tensor([0.0, mean, log_scale], dtype=torch.float64).reshape(1, 3, 1, 1).expand(256, -1, -1, -1)
        exact = pixels.log_probability(maps, images)
        assert exact.isfinite().all()
        # the distance from the mean carries float32's rounding, which a sharp distribution multiplies
        limit_B = 1e-4 + 1e-4 * exact.abs() + 1e-6 * math.exp(-log_scale)
        assert ((pixels.log_probability(maps.float(), images).double() - exact).abs() < limit_B).all()


def test_components_that_know_nothing_cover_all_values() -> None:
    for mixture in (1, 2, 5, 10):
        pixels = DiscretizedLogistics(1, mixture)
        bits_B = -pixels.log_probability(torch.zeros(256, pixels.num_maps, 1, 1), every_pixel(1)) / math.log(2)
        assert 3 < bits_B.min() < bits_B.max() < 9.5, "8 bits are a uniform distribution's"


def test_the_mean_is_the_expected_value() -> None:
    pixels, images = DiscretizedLogistics(2, 3), every_pixel(2)
    maps = maps_of(pixels, spread=0.15, seed=1)
    narrow = maps.unflatten(1, (3, -1)).clone()
    narrow[:, :, 3:5] -= 2.0  # log scales: little mass beyond the borders, where the mean is kept within
    maps = narrow.flatten(1, 2)
    probability_B = pixels.log_probability(maps.expand(len(images), -1, -1, -1), images).exp()
    expected_C = (probability_B[:, None] * images[:, :, 0, 0]).sum(0)
    torch.testing.assert_close(pixels.mean(maps)[0, :, 0, 0], expected_C, rtol=0, atol=1.0)


def test_means_stay_within_the_values() -> None:
    pixels = DiscretizedLogistics(3, 2)
    mean_BCHW = pixels.mean(maps_of(pixels, num=100, spread=20.0))
    assert -1e-6 <= mean_BCHW.min() < 30
    assert 225 < mean_BCHW.max() <= 255 + 1e-6


def test_gradients_are_those_of_finite_differences() -> None:
    pixels = DiscretizedLogistics(2, 2)
    maps = maps_of(pixels, num=4, spread=0.5).requires_grad_()
    image = torch.tensor([[0, 255], [255, 0], [1, 254], [100, 120]], dtype=torch.uint8)[:, :, None, None]
    assert torch.autograd.gradcheck(lambda maps: pixels.log_probability(maps, image), (maps,))


def test_the_gradient_of_the_extremes_is_finite() -> None:
    pixels, images = DiscretizedLogistics(1, 2), every_pixel(1)
    for size in (1e2, 1e4, -1e4):
        maps = torch.full((256, pixels.num_maps, 1, 1), size).requires_grad_()
        log_probability_B = pixels.log_probability(maps, images)
        log_probability_B.sum().backward()
        assert log_probability_B.isfinite().all()
        assert maps.grad is not None
        assert maps.grad.isfinite().all()
