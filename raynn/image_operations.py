"""Fourteen operations on images, and the ways to choose among them: TrivialAugment, RandAugment, AugMix.

The operations are those of Cubuk et al. 2020, section 3, on whole batches of 8-bit
images with a strength for each. Which, and how strong, is a function of the row's key.

Shapes: B rows, C channels, H height, W width, N chains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from raynn.randomness import random_bits, salts_on, uniform

PLACE = 1 << 18  # of the keys' numbers drawn here; dropout layers count theirs from 0
LEVELS = 30  # strengths are wholes of this many


@dataclass(frozen=True)
class Reach:
    """What each operation does at full strength."""

    shear: float  # pixels aside for each pixel up or down
    translate: float  # share of the side
    rotate: float  # degrees
    enhance: float  # how far the factor of brightness, color, contrast and sharpness is from 1
    posterize: int  # bits lost


STANDARD = Reach(shear=0.3, translate=150 / 331, rotate=30.0, enhance=0.9, posterize=4)
WIDE = Reach(shear=0.99, translate=1.0, rotate=135.0, enhance=0.99, posterize=6)  # Mueller & Hutter 2021, wide space

# A strength is within -1 .. 1; operations that have no opposite take its size.
Operation = Callable[[Tensor, Tensor, Reach], Tensor]


def identity(image_BCHW: Tensor, strength_B: Tensor, reach: Reach) -> Tensor:
    """As it is."""
    return image_BCHW


def autocontrast(image_BCHW: Tensor, strength_B: Tensor, reach: Reach) -> Tensor:
    """Each channel stretched to 0 .. 255; a channel of one value as it is."""
    low, high = image_BCHW.amin((2, 3), keepdim=True), image_BCHW.amax((2, 3), keepdim=True)
    span = high - low
    stretched = (image_BCHW - low) * (255.0 / span.clamp(min=1.0))
    return torch.where(span > 0, stretched.floor(), image_BCHW)


def equalize(image_BCHW: Tensor, strength_B: Tensor, reach: Reach) -> Tensor:
    """Each channel's values spread so that as many pixels have each: by the table that Pillow's `equalize` makes."""
    value_NP = image_BCHW.long().flatten(0, 1).flatten(1)
    histogram = torch.zeros(len(value_NP), 256, dtype=torch.int64, device=image_BCHW.device)
    histogram.scatter_add_(1, value_NP, torch.ones_like(value_NP))
    last_N1 = value_NP.amax(1, keepdim=True)
    step_N1 = (value_NP.shape[1] - histogram.gather(1, last_N1)) // 255
    before = histogram.cumsum(1) - histogram
    table = (before + step_N1 // 2) // step_N1.clamp(min=1)
    changed_NP = table.clamp(max=255).gather(1, value_NP)
    return torch.where(step_N1 > 0, changed_NP, value_NP).reshape(image_BCHW.shape).to(image_BCHW.dtype)


def rotate(image_BCHW: Tensor, strength_B: Tensor, reach: Reach) -> Tensor:
    """Turned around its middle, counterclockwise for positive strengths."""
    angle_B = strength_B * math.radians(reach.rotate)
    cos_B, sin_B = angle_B.cos(), angle_B.sin()
    middle_y, middle_x = (size / 2 for size in image_BCHW.shape[-2:])
    shift_x = middle_x - cos_B * middle_x - -sin_B * middle_y
    shift_y = middle_y - sin_B * middle_x - cos_B * middle_y
    return moved(image_BCHW, torch.stack([cos_B, -sin_B, shift_x, sin_B, cos_B, shift_y], dim=1))


def shear_x(image_BCHW: Tensor, strength_B: Tensor, reach: Reach) -> Tensor:
    """Each line moved aside by its height."""
    one, zero = torch.ones_like(strength_B), torch.zeros_like(strength_B)
    return moved(image_BCHW, torch.stack([one, strength_B * reach.shear, zero, zero, one, zero], dim=1))


def shear_y(image_BCHW: Tensor, strength_B: Tensor, reach: Reach) -> Tensor:
    """Each column moved up or down by its place."""
    one, zero = torch.ones_like(strength_B), torch.zeros_like(strength_B)
    return moved(image_BCHW, torch.stack([one, zero, zero, strength_B * reach.shear, one, zero], dim=1))


def translate_x(image_BCHW: Tensor, strength_B: Tensor, reach: Reach) -> Tensor:
    """Moved aside by whole pixels."""
    one, zero = torch.ones_like(strength_B), torch.zeros_like(strength_B)
    shift_B = (strength_B * reach.translate * image_BCHW.shape[-1]).trunc()
    return moved(image_BCHW, torch.stack([one, zero, shift_B, zero, one, zero], dim=1))


def translate_y(image_BCHW: Tensor, strength_B: Tensor, reach: Reach) -> Tensor:
    """Moved up or down by whole pixels."""
    one, zero = torch.ones_like(strength_B), torch.zeros_like(strength_B)
    shift_B = (strength_B * reach.translate * image_BCHW.shape[-2]).trunc()
    return moved(image_BCHW, torch.stack([one, zero, zero, zero, one, shift_B], dim=1))


def brightness(image_BCHW: Tensor, strength_B: Tensor, reach: Reach) -> Tensor:
    """Away from black, or toward it."""
    return blended(torch.zeros_like(image_BCHW), image_BCHW, strength_B, reach)


def color(image_BCHW: Tensor, strength_B: Tensor, reach: Reach) -> Tensor:
    """Away from gray, or toward it."""
    return blended(gray(image_BCHW).expand_as(image_BCHW), image_BCHW, strength_B, reach)


def contrast(image_BCHW: Tensor, strength_B: Tensor, reach: Reach) -> Tensor:
    """Away from the mean brightness, or toward it."""
    mean_B111 = gray(image_BCHW).mean((2, 3), keepdim=True).add(0.5).floor()
    return blended(mean_B111.expand_as(image_BCHW), image_BCHW, strength_B, reach)


def sharpness(image_BCHW: Tensor, strength_B: Tensor, reach: Reach) -> Tensor:
    """Away from a smoothed image, or toward it; the outermost pixels stay."""
    if min(image_BCHW.shape[-2:]) < 3:
        return image_BCHW
    channels = image_BCHW.shape[1]
    kernel = constant(image_BCHW.device, (1.0, 1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0, 1.0)).view(3, 3) / 13
    smooth_BCHW = image_BCHW.clone()
    smooth_BCHW[:, :, 1:-1, 1:-1] = (
        F.conv2d(image_BCHW, kernel.expand(channels, 1, 3, 3), groups=channels).add(0.5).floor()
    )
    return blended(smooth_BCHW, image_BCHW, strength_B, reach)


def posterize(image_BCHW: Tensor, strength_B: Tensor, reach: Reach) -> Tensor:
    """The last bits of each value set to 0."""
    lost_B = (strength_B.abs() * reach.posterize).round()
    unit = 2.0 ** lost_B[:, None, None, None]
    return (image_BCHW / unit).floor() * unit


def solarize(image_BCHW: Tensor, strength_B: Tensor, reach: Reach) -> Tensor:
    """Values from a threshold on are inverted; the stronger, the lower it is."""
    threshold = 255.0 * (1.0 - strength_B.abs())[:, None, None, None]
    return torch.where(image_BCHW >= threshold, 255.0 - image_BCHW, image_BCHW)


OPERATIONS: tuple[Operation, ...] = (
    identity,
    autocontrast,
    equalize,
    rotate,
    solarize,
    color,
    posterize,
    contrast,
    brightness,
    sharpness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
)
GEOMETRIC = (rotate, shear_x, shear_y, translate_x, translate_y)
# AugMix leaves out what its test corruptions resemble (Hendrycks et al. 2020, section 3).
CALM = tuple(OPERATIONS.index(f) for f in (autocontrast, equalize, posterize, solarize, *GEOMETRIC))


def blended(from_BCHW: Tensor, image_BCHW: Tensor, strength_B: Tensor, reach: Reach) -> Tensor:
    """`image` taken away from `from` by the factor 1 + strength * reach (below 1: toward it), cut to 0 .. 255."""
    factor = (1.0 + strength_B * reach.enhance)[:, None, None, None]
    return (from_BCHW + factor * (image_BCHW - from_BCHW)).clamp(0.0, 255.0).floor()


@lru_cache(maxsize=16)
def constant(device: torch.device, numbers: tuple[float, ...]) -> Tensor:
    """Numbers that stay on a device: sent anew for each batch a GPU's host would wait for them. Only read."""
    return torch.tensor(numbers, device=device)


def gray(image_BCHW: Tensor) -> Tensor:
    """Brightness [B, 1, H, W]: of three channels by ITU-R 601-2, of others the mean."""
    if image_BCHW.shape[1] == 3:
        weight = constant(image_BCHW.device, (0.299, 0.587, 0.114))[:, None, None]
        return (image_BCHW * weight).sum(1, keepdim=True).add(0.5).floor()
    return image_BCHW.mean(1, keepdim=True).add(0.5).floor()


def moved(image_BCHW: Tensor, matrix_B6: Tensor) -> Tensor:
    """The pixel at (x, y) is the one at (a x + b y + c, d x + e y + f) of the image, its center taken; outside is 0."""
    num_rows, _, height, width = image_BCHW.shape
    y_H1 = torch.arange(height, device=image_BCHW.device)[:, None] + 0.5
    x_W = torch.arange(width, device=image_BCHW.device) + 0.5
    a, b, c, d, e, f = matrix_B6[:, :, None, None].unbind(1)
    from_x_BHW, from_y_BHW = (a * x_W + b * y_H1 + c).floor().long(), (d * x_W + e * y_H1 + f).floor().long()
    inside_BHW = (from_x_BHW >= 0) & (from_x_BHW < width) & (from_y_BHW >= 0) & (from_y_BHW < height)
    row_B11 = torch.arange(num_rows, device=image_BCHW.device)[:, None, None]
    picked_BHWC = image_BCHW[row_B11, :, from_y_BHW.clamp(0, height - 1), from_x_BHW.clamp(0, width - 1)]
    return (picked_BHWC * inside_BHW[..., None]).permute(0, 3, 1, 2)


def applied(image_BCHW: Tensor, operation_B: Tensor, strength_B: Tensor, reach: Reach) -> Tensor:
    """Each image [float, whole numbers 0 .. 255] after its operation, a place in `OPERATIONS`."""
    found_BCHW = image_BCHW.clone()
    # a GPU's host waits here, once: to do all that there is with all images would take 14 times the work
    num_rows = (operation_B[:, None] == torch.arange(len(OPERATIONS), device=operation_B.device)).sum(0).tolist()
    for operation, rows in zip(OPERATIONS, operation_B.argsort(stable=True).split(num_rows), strict=True):
        if len(rows):
            found_BCHW[rows] = operation(image_BCHW[rows], strength_B[rows], reach)
    return found_BCHW


def trivially_augmented(image_BCHW: Tensor, key_B: Tensor) -> Tensor:
    """One operation on each 8-bit image, its strength of any level, either way (Mueller & Hutter 2021, algorithm 1)."""
    bits_B3 = random_bits(key_B, salts_on(key_B.device, PLACE, 3))
    size_B = (bits_B3[:, 1] % (LEVELS + 1)).float() / LEVELS
    sign_B = (bits_B3[:, 2] & 1).float() * 2 - 1
    return _as_bytes(applied(image_BCHW.float(), bits_B3[:, 0] % len(OPERATIONS), size_B * sign_B, WIDE))


def randomly_augmented(image_BCHW: Tensor, key_B: Tensor, num_operations: int, magnitude: float) -> Tensor:
    """`num_operations` operations on each 8-bit image, of one strength, each either way (Cubuk et al. 2020, 3)."""
    found_BCHW = image_BCHW.float()
    for k in range(num_operations):
        bits_B2 = random_bits(key_B, salts_on(key_B.device, PLACE + 1 + k, 2))
        sign_B = (bits_B2[:, 1] & 1).float() * 2 - 1
        strength_B = sign_B * (magnitude / LEVELS)
        found_BCHW = applied(found_BCHW, bits_B2[:, 0] % len(OPERATIONS), strength_B, STANDARD)
    return _as_bytes(found_BCHW)


def mixed_chains(image_BCHW: Tensor, key_B: Tensor, severity: int, num_chains: int = 3, longest: int = 3) -> Tensor:
    """Each 8-bit image mixed with a mean of chains of operations on it (Hendrycks et al. 2020, algorithm 1): shares of
    the chains from Dirichlet(1), of the mean from Beta(1, 1), which is uniform; strengths up to `severity` tenths.
    """
    whole_BCHW = image_BCHW.float()
    salts = salts_on(key_B.device, PLACE + 64, num_chains + 1)
    draw_BN = uniform(key_B, salts)
    exponential_BN = -draw_BN[:, :num_chains].log()  # of the same rate, over their sum: Dirichlet(1)
    share_BN = exponential_BN / exponential_BN.sum(1, keepdim=True)
    mean_BCHW = torch.zeros_like(whole_BCHW)
    for chain in range(num_chains):
        bits = random_bits(key_B, salts_on(key_B.device, PLACE + 65 + chain, 1 + 3 * longest))
        depth_B = 1 + bits[:, 0] % longest
        found_BCHW = whole_BCHW
        for k in range(longest):
            which_B, level_B, side_B = bits[:, 1 + 3 * k : 4 + 3 * k].unbind(1)
            calm_B = constant(key_B.device, CALM)[(which_B % len(CALM)).long()]
            operation_B = torch.where(k < depth_B, calm_B, 0)
            size_B = (1 + level_B % (10 * severity)).float() / 100  # 0.01 .. severity / 10
            strength_B = size_B * ((side_B & 1).float() * 2 - 1)
            found_BCHW = applied(found_BCHW, operation_B, strength_B, STANDARD)
        mean_BCHW = mean_BCHW + share_BN[:, chain, None, None, None] * found_BCHW
    kept_B111 = draw_BN[:, num_chains, None, None, None]
    return _as_bytes(kept_B111 * whole_BCHW + (1.0 - kept_B111) * mean_BCHW)


def _as_bytes(image_BCHW: Tensor) -> Tensor:
    return image_BCHW.round().clamp(0.0, 255.0).to(torch.uint8)
