"""The distribution of 8-bit pixels: a mixture of discretized logistics.

Shapes: B rows, C channels, H height, W width, K components of the mixture, J pairs of a channel and an earlier one.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIGHEST = 255
BIN = 2 / HIGHEST  # width of a value where 0 .. 255 are -1 .. 1


class DiscretizedLogistics(nn.Module):
    """Logistic distributions rounded to the values 0 .. 255, the tails in the first and the last (PixelCNN++, Salimans
    et al. 2017, section 2.1). The component is common to a pixel's channels, and the mean of a channel depends on the
    channels before it (section 2.2, for any number of them).
    """

    center_K11: Tensor

    def __init__(self, channels: int, mixture: int) -> None:
        super().__init__()
        self.mixture = mixture
        self.pairs = list(itertools.combinations(range(channels), 2))  # (earlier, later)
        self.sizes = [1, channels, channels, len(self.pairs)]
        self.num_maps = mixture * sum(self.sizes)  # maps that a network has to give
        # maps of zero are components side by side, which cover all values; they would stay alike if they began alike
        center_K = torch.linspace(-1, 1, 2 * mixture + 1)[1::2].clone()
        self.register_buffer("center_K11", center_K[:, None, None], persistent=False)
        self.log_width = -math.log(2 * mixture)

    def log_probability(self, maps: Tensor, image_BCHW: Tensor) -> Tensor:
        """Log probabilities [B], in nats, of images with the values 0 .. 255.

        Args:
            maps: [B, num_maps, H, W].
            image_BCHW: uint8.
        """
        log_weight_BKHW, mean_BKCHW, log_scale_BKCHW, slope_BKJHW = self._split(maps)
        level_B1CHW = image_BCHW.to(maps.dtype)[:, None]
        x_B1CHW = level_B1CHW / (HIGHEST / 2) - 1
        means = list(mean_BKCHW.unbind(2))
        for slope, (earlier, later) in zip(slope_BKJHW.unbind(2), self.pairs, strict=True):
            means[later] = means[later] + slope * x_B1CHW[:, :, earlier]
        distance_BKCHW = x_B1CHW - torch.stack(means, dim=2)
        sharpness_BKCHW = (-log_scale_BKCHW).exp()
        # the mass between a and b, sigmoid(b) - sigmoid(a), is sigmoid(b) sigmoid(-a) (1 - exp(a - b)): no difference
        # of nearly equal numbers; in the first bin a is -inf, in the last b is inf
        below_last = F.logsigmoid((distance_BKCHW + BIN / 2) * sharpness_BKCHW) * (level_B1CHW < HIGHEST)
        above_first = F.logsigmoid((BIN / 2 - distance_BKCHW) * sharpness_BKCHW) * (level_B1CHW > 0)
        inside = (level_B1CHW > 0) & (level_B1CHW < HIGHEST)
        within = (-torch.expm1(-BIN * sharpness_BKCHW)).log() * inside
        log_mass_BKHW = (below_last + above_first + within).sum(2)
        return torch.logsumexp(log_weight_BKHW + log_mass_BKHW, dim=1).flatten(1).sum(1)

    def mean(self, maps: Tensor) -> Tensor:
        """Mean images [B, C, H, W] in 0 .. 255, each component's mean kept within them."""
        log_weight_BKHW, mean_BKCHW, _, slope_BKJHW = self._split(maps)
        means = list(mean_BKCHW.unbind(2))
        for pair, (earlier, later) in enumerate(self.pairs):  # an earlier channel is ready by now
            means[later] = means[later] + slope_BKJHW[:, :, pair] * means[earlier].clamp(-1, 1)
        mean_BKCHW = torch.stack(means, dim=2).clamp(-1, 1)
        return ((log_weight_BKHW.exp()[:, :, None] * mean_BKCHW).sum(1) + 1) * (HIGHEST / 2)

    def _split(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """By component: log weight [B, K, H, W], means and log scales [B, K, C, H, W], slopes [B, K, J, H, W]."""
        log_weight, mean, log_scale, slope = maps.unflatten(1, (self.mixture, -1)).split(self.sizes, dim=2)
        # beyond these limits a component is one value, or flat: nothing to learn, and numbers that overflow
        log_scale = (log_scale + self.log_width).clamp(-12, 12)
        return log_weight[:, :, 0].log_softmax(dim=1), mean + self.center_K11[:, None], log_scale, slope.tanh()
