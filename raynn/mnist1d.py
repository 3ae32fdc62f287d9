"""MNIST-1D: ten shapes of twelve points, hidden in noise along 40 steps, for experiments that take seconds.

The data of Greydanus and Kobak, "Scaling down deep learning with MNIST-1D" (2020, 2024), drawn in the same order from
the same random numbers as their package `mnist1d` 0.0.2 with its defaults: the numbers are the same, to rounding.
Published test accuracies: logistic regression 32, MLP 68, GRU 91, CNN 94 %, a person 96 %.

Shapes: N examples, K classes, T steps, D points of a template.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raynn.generators import list_array

SEED = 42
NUM_EXAMPLES = 5000
NUM_TRAIN = 4000
NUM_STEPS = 40
NUM_POINTS = 12
PADDED_STEPS = 72
MIN_PADDING, MAX_PADDING = 36, 60
MAX_SHIFT = 48
SCALE_RANGE = 0.4  # factors 0.8 .. 1.2
SHEAR_RANGE = 0.75
SMOOTH_NOISE, SMOOTH_SIGMA = 0.25, 2.0  # standard deviation before it is smoothed; of the kernel, in steps
WHITE_NOISE = 0.02

TEMPLATES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)


def mnist1d_train() -> pa.Table:
    """4,000 examples: `signal`, a list of 40 floats, and `label`, 0 .. 9."""
    return _examples().slice(0, NUM_TRAIN)


def mnist1d_test() -> pa.Table:
    """The other 1,000."""
    return _examples().slice(NUM_TRAIN)


@lru_cache(maxsize=1)
def _examples() -> pa.Table:
    # the numbers that were published come from NumPy's old generator, whose stream is frozen, in this order
    random = np.random.RandomState(SEED)
    draws = [
        (random.rand(), random.rand(), random.choice(MAX_SHIFT), *random.randn(2, PADDED_STEPS), random.rand())
        for _ in range(NUM_EXAMPLES)
    ]
    padding_N, scale_N, shift_N, smooth_NT, white_NT, shear_N = map(np.array, zip(*draws, strict=True))
    label_N = np.repeat(np.arange(10), NUM_EXAMPLES // 10)
    padding_N = MIN_PADDING + (padding_N * (MAX_PADDING - MIN_PADDING + 1)).astype(int)

    # the template and the zeros after it, stretched to 72 steps, scaled, and turned around by some
    place_NT = np.arange(PADDED_STEPS) * ((NUM_POINTS - 1 + padding_N[:, None]) / (PADDED_STEPS - 1))
    signal_NT = _between(_templates()[label_N], np.minimum(place_NT, NUM_POINTS))
    signal_NT *= 1 + SCALE_RANGE * (scale_N - 0.5)[:, None]
    before_NT = (np.arange(PADDED_STEPS) - shift_N[:, None]) % PADDED_STEPS
    signal_NT = np.take_along_axis(signal_NT, before_NT, axis=1)
    in_template_NT = np.take_along_axis(place_NT, before_NT, axis=1) < NUM_POINTS

    # smooth noise where the template is not, white noise everywhere, and a slope
    signal_NT = np.where(in_template_NT, signal_NT, _smoothed(SMOOTH_NOISE * smooth_NT)) + WHITE_NOISE * white_NT
    signal_NT -= SHEAR_RANGE * (shear_N - 0.5)[:, None] * np.linspace(-0.5, 0.5, PADDED_STEPS)

    order_N = random.permutation(NUM_EXAMPLES)
    steps_T = np.arange(NUM_STEPS) * ((PADDED_STEPS - 1) / (NUM_STEPS - 1))
    x_NT = _between(signal_NT, np.tile(steps_T, (NUM_EXAMPLES, 1)))[order_N]
    x_NT = (x_NT - x_NT.mean()) / x_NT.std()  # of all rows, the test set's included, as published
    return pa.table({"signal": list_array(x_NT.astype(np.float32)), "label": label_N[order_N]})


def _templates() -> NDArray[np.float64]:
    """The shapes, standardized, beginning and ending at 0, and two zeros after them [10, 14]."""
    x_KD = np.array(TEMPLATES)
    x_KD = (x_KD - x_KD.mean(axis=1, keepdims=True)) / x_KD.std(axis=1, keepdims=True)
    return np.pad((x_KD - x_KD[:, :1]) / 6, ((0, 0), (0, 2)))


def _between(x_ND: NDArray[np.float64], place_NT: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of x at places 0 .. D - 1 that need not be whole, interpolated linearly."""
    left_NT = np.minimum(place_NT.astype(int), x_ND.shape[1] - 2)
    part_NT = place_NT - left_NT
    return (1 - part_NT) * np.take_along_axis(x_ND, left_NT, 1) + part_NT * np.take_along_axis(x_ND, left_NT + 1, 1)


def _smoothed(noise_NT: NDArray[np.float64]) -> NDArray[np.float64]:
    """A Gaussian filter, cut at 4 sigma; mirrored at both ends."""
    radius = int(4 * SMOOTH_SIGMA)
    kernel_W = np.exp(-0.5 * (np.arange(-radius, radius + 1) / SMOOTH_SIGMA) ** 2)
    mirrored_NT = np.pad(noise_NT, ((0, 0), (radius, radius)), mode="symmetric")
    return np.lib.stride_tricks.sliding_window_view(mirrored_NT, 2 * radius + 1, axis=1) @ (kernel_W / kernel_W.sum())
