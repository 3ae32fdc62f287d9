"""Data made up by a formula, so that the best figure anyone can reach is known: each a raw Arrow table.

Rows come in blocks, block b from `default_rng([seed, b])`: a row depends on the seed and its place alone, not on how
many rows there are or who makes them. Training and test sets are the same formula with another seed.

Shapes: N rows of a block, F features, T steps, C channels, S series or symbols.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from math import log2, sqrt
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

BLOCK_ROWS = 4096

# Breiman's pair of normal distributions
NORM_FEATURES = 20
NORM_CENTER = 2 / sqrt(NORM_FEATURES)

# markov_text
SYMBOLS = string.ascii_letters + string.digits + " ."
SUCCESSOR_PROBABILITY = (0.5, 0.25, 0.125, 0.125)
MARKOV_BITS = -sum(p * log2(p) for p in SUCCESSOR_PROBABILITY)  # a character, the entropy rate: exactly 1.75
DOCUMENT_CHARACTERS = 4096
DOCUMENTS_PER_BLOCK = 64

# seasonal_series
FIRST_DAY = "2020-01-06"  # a Monday
PERSISTENCE = 0.8  # of the noise from one day to the next
PROMOTION_FRACTION = 0.1  # of the days
PROMOTION_EFFECT = 5.0


def twonorm(num_rows: int, seed: int) -> pa.Table:
    """Two normal clouds of unit covariance around (a, ..., a) and -(a, ..., a), 20 features, a = 2 / sqrt(20).

    The sign of the features' sum is the best rule: accuracy Phi(2) = 97.725 %.
    Source: Breiman, "Bias, variance, and arcing classifiers", 1996.
    """

    def block(rng: Generator) -> pa.Table:
        label_N = rng.integers(2, size=BLOCK_ROWS)
        x_NF = rng.standard_normal((BLOCK_ROWS, NORM_FEATURES)) + NORM_CENTER * (1 - 2 * label_N[:, None])
        return _features(x_NF, label=label_N)

    return _blocks(block, num_rows, seed)


def ringnorm(num_rows: int, seed: int) -> pa.Table:
    """A wide normal cloud (covariance 4) around the origin and one of unit covariance inside it, around (a, ..., a).

    20 features, a = 2 / sqrt(20). The best rule is a ball, |x - 4a/3|^2 < (8/3) (20 ln 2 + 2/3); no linear rule comes
    near. Its error is a mean of two noncentral chi-squared probabilities: 1.240 %.
    Source: Breiman, "Bias, variance, and arcing classifiers", 1996.
    """

    def block(rng: Generator) -> pa.Table:
        label_N = rng.integers(2, size=BLOCK_ROWS)
        x_NF = rng.standard_normal((BLOCK_ROWS, NORM_FEATURES))
        return _features(np.where(label_N[:, None] == 0, 2 * x_NF, x_NF + NORM_CENTER), label=label_N)

    return _blocks(block, num_rows, seed)


def friedman1(num_rows: int, seed: int) -> pa.Table:
    """10 uniform features, of which 5 count: y = 10 sin(pi x1 x2) + 20 (x3 - 1/2)^2 + 10 x4 + 5 x5 + noise N(0, 1).

    The best RMSE is the noise's: 1. Source: Friedman, "Multivariate adaptive regression splines", 1991.
    """

    def block(rng: Generator) -> pa.Table:
        x_NF = rng.random((BLOCK_ROWS, 10))
        signal_N = 10 * np.sin(np.pi * x_NF[:, 0] * x_NF[:, 1]) + 20 * (x_NF[:, 2] - 0.5) ** 2
        signal_N += 10 * x_NF[:, 3] + 5 * x_NF[:, 4]
        return _features(x_NF, y=signal_N + rng.standard_normal(BLOCK_ROWS))

    return _blocks(block, num_rows, seed)


def adding_problem(num_steps: int, num_rows: int, seed: int) -> pa.Table:
    """Steps of (uniform value, marker); two markers are 1, one in each half; the target is the sum of their values.

    The best MSE is 0. The constant 1 has 1/6, the variance of a sum of two uniforms; who remembers only one of
    them has 1/12. Source: Hochreiter and Schmidhuber, "Long short-term memory", 1997; in this form in Arjovsky, Shah
    and Bengio, "Unitary evolution recurrent neural networks", 2016.
    """
    half = num_steps // 2

    def block(rng: Generator) -> pa.Table:
        x_NTC = np.zeros((BLOCK_ROWS, num_steps, 2), np.float32)
        x_NTC[:, :, 0] = rng.random((BLOCK_ROWS, num_steps), np.float32)
        rows_N = np.arange(BLOCK_ROWS)
        first_N = rng.integers(half, size=BLOCK_ROWS)
        second_N = rng.integers(half, num_steps, size=BLOCK_ROWS)
        x_NTC[rows_N, first_N, 1] = x_NTC[rows_N, second_N, 1] = 1
        total_N = x_NTC[rows_N, first_N, 0].astype(np.float64) + x_NTC[rows_N, second_N, 0]
        return pa.table({"steps": list_array(x_NTC), "total": total_N})

    return _blocks(block, num_rows, seed)


def markov_text(num_documents: int, seed: int) -> pa.Table:
    """Documents of 4,096 characters, of 64 symbols: two characters decide which four may follow, and how likely.

    Those four are drawn once for each pair of symbols, the same for every seed, and have the probabilities 1/2, 1/4,
    1/8 and 1/8 whatever the pair. So the entropy rate is exactly 1.75 bits = 1.2130 nats per character, and no model
    has a lower loss; one that sees a single character back has 3.92 nats, one that sees none ln 64 = 4.16. The first
    two characters of a document are uniform.
    """
    successors_SSK = default_rng(64).permuted(np.tile(np.arange(64), (64 * 64, 1)), axis=1)[:, :4].reshape(64, 64, 4)
    letters_S = np.frombuffer(SYMBOLS.encode(), np.uint8)

    def block(rng: Generator) -> pa.Table:
        choices_TN = rng.choice(4, (DOCUMENT_CHARACTERS, DOCUMENTS_PER_BLOCK), p=SUCCESSOR_PROBABILITY)
        text_TN = np.empty(choices_TN.shape, np.int64)
        text_TN[:2] = rng.integers(64, size=(2, DOCUMENTS_PER_BLOCK))
        for t in range(2, DOCUMENT_CHARACTERS):
            text_TN[t] = successors_SSK[text_TN[t - 2], text_TN[t - 1], choices_TN[t]]
        return pa.table({"text": [row.tobytes().decode() for row in letters_S[text_TN.T]]})

    return _blocks(block, num_documents, seed, DOCUMENTS_PER_BLOCK)


def seasonal_series(num_series: int, num_days: int, seed: int) -> pa.Table:
    """Daily series, one after the other: level + weekly sine + 5 on days of promotion + noise that lingers.

    The noise is a_t = 0.8 a_{t-1} + e_t, e_t ~ N(0, 1); level 10 (s + 1) and amplitude 1 + s / 2 differ between
    series s. Promotions are known in advance. `best_seasonal_rmse` is what knowing all but e leaves.
    """

    def block(rng: Generator) -> pa.Table:
        promotion_T = rng.random(num_days) < PROMOTION_FRACTION
        noise_T = rng.standard_normal(num_days)
        noise_T[0] /= sqrt(1 - PERSISTENCE**2)  # the variance that it keeps
        for t in range(1, num_days):
            noise_T[t] += PERSISTENCE * noise_T[t - 1]
        wave_T = np.sin(2 * np.pi * np.arange(num_days) / 7)
        return pa.table({"wave": wave_T, "promotion": promotion_T.astype(np.int64), "noise": noise_T})

    parts = _blocks(block, num_series * num_days, seed, num_days)
    series_N = np.repeat(np.arange(num_series), num_days)
    value_N = 10.0 * (series_N + 1) + (1 + series_N / 2) * parts["wave"].to_numpy()
    value_N += PROMOTION_EFFECT * parts["promotion"].to_numpy() + parts["noise"].to_numpy()
    days_T = np.datetime64(FIRST_DAY, "us") + np.arange(num_days) * np.timedelta64(1, "D")
    return pa.table(
        {
            "series": [f"s{s}" for s in series_N],
            "time": np.tile(days_T, num_series),
            "promotion": parts["promotion"],
            "value": value_N,
        }
    )


def best_seasonal_rmse(horizon: int) -> float:
    """The lowest RMSE over days 1 .. horizon ahead of `seasonal_series`.

    The noise h days ahead, given the past, has variance 1 + 0.8^2 + ... + 0.8^(2 (h - 1)).
    """
    return float(np.sqrt(np.mean(np.cumsum(PERSISTENCE ** (2 * np.arange(horizon))))))


def list_array(x: NDArray[Any]) -> Any:
    """[N, T] as one list a row, [N, T, C] as one list of lists a row."""
    values = pa.array(x.reshape(-1))
    for size in reversed(x.shape[1:]):
        values = pa.ListArray.from_arrays(np.arange(0, len(values) + 1, size, dtype=np.int32), values)
    return values


def _features(x_NF: NDArray[np.float64], **target: NDArray[Any]) -> pa.Table:
    return pa.table({**{f"x{f}": column_N for f, column_N in enumerate(x_NF.T, 1)}, **target})


def _blocks(block: Callable[[Generator], pa.Table], num_rows: int, seed: int, block_rows: int = BLOCK_ROWS) -> pa.Table:
    num_blocks = -(-num_rows // block_rows)
    table = pa.concat_tables(block(default_rng([seed, b])) for b in range(num_blocks))
    return table.slice(0, num_rows).combine_chunks()
