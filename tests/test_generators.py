"""Data with a known optimum: the formula's own figures, measured on the rows, and the same rows however many."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import ncx2, norm

from raynn import generators
from raynn.generators import (
    BLOCK_ROWS,
    DOCUMENT_CHARACTERS,
    MARKOV_BITS,
    SYMBOLS,
    adding_problem,
    best_seasonal_rmse,
    friedman1,
    list_array,
    markov_text,
    ringnorm,
    seasonal_series,
    twonorm,
)

MAKERS = {
    "twonorm": twonorm,
    "ringnorm": ringnorm,
    "friedman1": friedman1,
    "adding_problem": partial(adding_problem, 10),
    "markov_text": markov_text,
    "seasonal_series": lambda num_rows, seed: seasonal_series(-(-num_rows // 40), 40, seed).slice(0, num_rows),
}


def matrix(table: pa.Table) -> np.ndarray:
    """The feature columns x1, x2, ..."""
    return np.stack([table[name].to_numpy() for name in table.column_names if name.startswith("x")], axis=1)


def steps(table: pa.Table, num_steps: int) -> np.ndarray:
    return table["steps"].combine_chunks().flatten().flatten().to_numpy().reshape(-1, num_steps, 2)


def places(table: pa.Table) -> np.ndarray:
    """Characters of documents, as places in SYMBOLS."""
    place_of = {symbol: place for place, symbol in enumerate(SYMBOLS)}
    return np.array([[place_of[symbol] for symbol in text] for text in table["text"].to_pylist()])


@pytest.fixture(scope="module")
def text_NT() -> np.ndarray:
    """A million characters."""
    return places(markov_text(256, 0))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_rows_depend_on_the_seed_and_their_place_alone(
    make: Callable[..., pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generators, "DOCUMENT_CHARACTERS", 8)
    num_rows = BLOCK_ROWS + 5
    table = make(num_rows, seed=3)
    assert table.num_rows == num_rows
    assert table.equals(make(num_rows, seed=3))
    assert table.slice(0, 70).equals(make(70, seed=3))
    assert not table.slice(0, 70).equals(make(70, seed=4))
    assert not table.slice(0, 5).equals(table.slice(BLOCK_ROWS, 5))  # a block is no copy of the first
    assert not any(column.null_count for column in table.columns)


def test_twonorm_the_sum_decides_as_well_as_can_be() -> None:
    table = twonorm(100_000, 0)
    x_NF, label_N = matrix(table), table["label"].to_numpy()
    assert x_NF.shape == (100_000, 20)
    assert norm.cdf(2) == pytest.approx(0.97725, abs=1e-5)
    assert np.mean((x_NF.sum(axis=1) < 0) == label_N) == pytest.approx(norm.cdf(2), abs=0.0015)  # 3 standard errors
    for label, center in ((0, 2 / 20**0.5), (1, -2 / 20**0.5)):
        np.testing.assert_allclose(x_NF[label_N == label].mean(axis=0), center, atol=0.02)
        np.testing.assert_allclose(np.cov(x_NF[label_N == label].T), np.eye(20), atol=0.03)


def test_ringnorm_a_ball_decides_as_well_as_can_be() -> None:
    table = ringnorm(100_000, 0)
    x_NF, label_N = matrix(table), table["label"].to_numpy()
    radius2 = 8 / 3 * (20 * np.log(2) + 2 / 3)
    error = (ncx2.cdf(radius2 / 4, 20, 16 / 9) + ncx2.sf(radius2, 20, 4 / 9)) / 2
    assert error == pytest.approx(0.01240, abs=1e-5)
    inside_N = np.square(x_NF - 4 / 3 * 2 / 20**0.5).sum(axis=1) < radius2
    assert np.mean(inside_N == label_N) == pytest.approx(1 - error, abs=0.0011)
    design_NF = np.column_stack([x_NF, np.ones(len(x_NF))])
    weight_F = np.linalg.lstsq(design_NF, label_N - 0.5, rcond=None)[0]
    assert np.mean((design_NF @ weight_F > 0) == label_N) < 0.8


def test_friedman1_leaves_its_noise() -> None:
    table = friedman1(50_000, 0)
    x_NF, y_N = matrix(table), table["y"].to_numpy()
    assert x_NF.shape == (50_000, 10)
    assert (x_NF.min(), x_NF.max()) == (pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-4))
    x1, x2, x3, x4, x5 = x_NF[:, :5].T
    noise_N = y_N - (10 * np.sin(np.pi * x1 * x2) + 20 * (x3 - 0.5) ** 2 + 10 * x4 + 5 * x5)
    assert noise_N.mean() == pytest.approx(0, abs=0.015)
    assert noise_N.std() == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(np.corrcoef(x_NF.T, noise_N)[-1, :-1], 0, atol=0.02)


@pytest.mark.parametrize("num_steps", [2, 7, 100])
def test_adding_problem_marks_one_step_in_each_half(num_steps: int) -> None:
    table = adding_problem(num_steps, 5000, 0)
    assert table.schema.field("steps").type == pa.list_(pa.list_(pa.float32()))
    x_NTC = steps(table, num_steps)
    value_NT, marker_NT = x_NTC[:, :, 0], x_NTC[:, :, 1]
    assert set(np.unique(marker_NT)) <= {0, 1}
    half = num_steps // 2
    assert (marker_NT[:, :half].sum(axis=1) == 1).all()
    assert (marker_NT[:, half:].sum(axis=1) == 1).all()
    assert (marker_NT.sum(axis=0) > 0).all()  # every step may be marked
    np.testing.assert_allclose((value_NT * marker_NT).sum(axis=1), table["total"].to_numpy(), rtol=1e-6)


def test_adding_problem_what_forgetting_costs() -> None:
    table = adding_problem(10, 20_000, 0)
    x_NTC, total_N = steps(table, 10), table["total"].to_numpy()
    assert np.mean((total_N - 1) ** 2) == pytest.approx(1 / 6, abs=0.005)
    second_N = (x_NTC[:, 5:, 0] * x_NTC[:, 5:, 1]).sum(axis=1)
    assert np.mean((total_N - second_N - 0.5) ** 2) == pytest.approx(1 / 12, abs=0.003)


def test_markov_text_has_its_entropy_rate(text_NT: np.ndarray) -> None:
    assert text_NT.shape == (256, DOCUMENT_CHARACTERS)
    assert MARKOV_BITS == 1.75
    counts_SSS = np.zeros((64, 64, 64))
    np.add.at(counts_SSS, (text_NT[:, :-2], text_NT[:, 1:-1], text_NT[:, 2:]), 1)
    assert (counts_SSS.sum(axis=(0, 1)) > 0).all()  # every symbol occurs
    assert np.count_nonzero(counts_SSS, axis=2).max() == 4
    assert entropy(counts_SSS) == pytest.approx(1.75, abs=0.01)  # 4,096 tables of 3 numbers are fitted: a little low
    assert entropy(counts_SSS.sum(axis=0)) * np.log(2) == pytest.approx(3.92, abs=0.01)
    assert entropy(counts_SSS.sum(axis=(0, 1))) * np.log(2) == pytest.approx(np.log(64), abs=0.01)
    shares_K = np.sort(counts_SSS.reshape(-1, 64), axis=1)[:, -4:].sum(axis=0)[::-1] / counts_SSS.sum()
    np.testing.assert_allclose(shares_K, (0.5, 0.25, 0.13, 0.12), atol=0.01)


def entropy(counts: np.ndarray) -> float:
    """Bits a character of the last axis, given the others."""
    context = counts.sum(axis=-1, keepdims=True)
    share = np.divide(counts, context, out=np.zeros_like(counts), where=context > 0)
    return float(-(counts * np.log2(np.where(share > 0, share, 1))).sum() / counts.sum())


def test_markov_text_speaks_one_language_whatever_the_seed(text_NT: np.ndarray) -> None:
    known_SSS = np.zeros((64, 64, 64), bool)
    known_SSS[text_NT[:, :-2], text_NT[:, 1:-1], text_NT[:, 2:]] = True
    other_NT = places(markov_text(4, 1))
    assert np.mean(known_SSS[other_NT[:, :-2], other_NT[:, 1:-1], other_NT[:, 2:]]) > 0.999


@pytest.mark.parametrize("horizon", [1, 2, 7])
def test_seasonal_series_knowing_all_but_the_shocks_leaves_the_closed_form(horizon: int) -> None:
    num_series, num_days = 4, 10_000
    table = seasonal_series(num_series, num_days, 0)
    value_ST = table["value"].to_numpy().reshape(num_series, num_days)
    promotion_ST = table["promotion"].to_numpy().reshape(num_series, num_days)
    level_S1, amplitude_S1 = 10.0 * np.arange(1, 5)[:, None], np.array([1, 1.5, 2, 2.5])[:, None]
    known_ST = level_S1 + amplitude_S1 * np.sin(2 * np.pi * np.arange(num_days) / 7) + 5 * promotion_ST
    noise_ST = value_ST - known_ST
    errors = [noise_ST[:, h:] - 0.8**h * noise_ST[:, :-h] for h in range(1, horizon + 1)]
    rmse = np.sqrt(np.mean([np.mean(error**2) for error in errors]))
    assert rmse == pytest.approx(best_seasonal_rmse(horizon), rel=0.02)
    assert noise_ST.std() == pytest.approx(1 / 0.6, rel=0.03)  # from the first day on
    assert promotion_ST.mean() == pytest.approx(0.1, abs=0.01)


def test_seasonal_series_best_figures() -> None:
    assert best_seasonal_rmse(1) == 1
    assert best_seasonal_rmse(2) == pytest.approx(np.sqrt((1 + 1.64) / 2))
    assert best_seasonal_rmse(100_000) == pytest.approx(1 / 0.6, rel=1e-4)


def test_seasonal_series_a_regression_reaches_the_best_figure() -> None:
    num_series, num_days, cut = 8, 1000, 800
    table = seasonal_series(num_series, num_days, 0)
    value_ST = table["value"].to_numpy().reshape(num_series, num_days)
    promotion_ST = table["promotion"].to_numpy().reshape(num_series, num_days)
    squares = []
    for value_T, promotion_T in zip(value_ST, promotion_ST, strict=True):
        weekday_TD = np.eye(7)[np.arange(1, num_days) % 7]
        design_TF = np.column_stack([weekday_TD, value_T[:-1], promotion_T[1:], promotion_T[:-1]])
        weight_F = np.linalg.lstsq(design_TF[:cut], value_T[1 : cut + 1], rcond=None)[0]
        squares.append(np.mean((design_TF[cut:] @ weight_F - value_T[cut + 1 :]) ** 2))
    assert 0.95 < np.sqrt(np.mean(squares)) < 1.05


def test_seasonal_series_is_a_long_table_of_days() -> None:
    table = seasonal_series(2, 8, 0)
    assert table.column_names == ["series", "time", "promotion", "value"]
    assert table["series"].to_pylist() == ["s0"] * 8 + ["s1"] * 8
    days_T = table["time"].to_numpy().astype("datetime64[D]").astype(str).tolist()
    assert days_T[:8] == days_T[8:] == [f"2020-01-{day:02}" for day in range(6, 14)]
    assert table["time"][0].as_py().weekday() == 0


def test_list_array() -> None:
    x_NTC = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    assert list_array(x_NTC).to_pylist() == x_NTC.tolist()
    assert list_array(x_NTC[0]).to_pylist() == x_NTC[0].tolist()
    assert list_array(x_NTC[0]).type == pa.list_(pa.float32())
