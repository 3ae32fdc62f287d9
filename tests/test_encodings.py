from __future__ import annotations

import datetime
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from people import FEATURES, PRICE, fitted, lists, numeric, one_column, people
from sklearn.preprocessing import QuantileTransformer

from raynn import summaries
from raynn.columns import ColumnSpec
from raynn.preprocessing import Preprocessing, arrays, summarize
from raynn.ragged import Ragged

# numbers


def test_numbers_are_standardized() -> None:
    preprocessing, table = one_column([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    encoded = arrays(preprocessing.encode(table))["numeric"]
    assert encoded[:, 0].tolist() == [-1.5, -0.5, -0.5, -0.5, 0.0, 0.0, 1.0, 2.0]


def test_missing_numbers_are_zero_with_an_indicator() -> None:
    preprocessing, _ = one_column([1.0, None, 3.0])
    assert numeric(preprocessing, [None, 3.0], pa.float64()).tolist() == [[0.0, 1.0], [1.0, 0.0]]
    preprocessing, _ = one_column([1.0, 2.0, 3.0])
    assert numeric(preprocessing, [None, 2.0], pa.float64()).tolist() == [[0.0], [0.0]]


def test_indicators_come_after_all_numbers_in_the_order_of_the_columns() -> None:
    table = pa.table({"a": [1.0, None], "b": [0.0, 2.0], "c": [None, 5.0], "label": ["x", "y"]})
    encoded = fitted(table, [ColumnSpec(name, "numeric") for name in "abc"]).encode(table)
    assert arrays(encoded)["numeric"].tolist() == [[0, -1, 0, 0, 1], [0, 1, 0, 1, 0]]


@pytest.mark.parametrize("scaling", ["standard", "quantile"])
@pytest.mark.parametrize("value", [0.1, 1.7e308])  # the sum of seven is not seven times .1; or overflows
def test_constants_become_zero(scaling: str, value: float) -> None:
    preprocessing, table = one_column([value] * 7, scaling=scaling)
    assert arrays(preprocessing.encode(table))["numeric"].tolist() == [[0.0]] * 7
    assert preprocessing.input_spec.quantile_bins == ((),)


@pytest.mark.parametrize("scaling", ["standard", "quantile"])
def test_a_column_without_any_value_is_zero_and_its_indicator(scaling: str) -> None:
    preprocessing, table = one_column([None] * 4, scaling=scaling, dtype=pa.float64())
    assert arrays(preprocessing.encode(table))["numeric"].tolist() == [[0.0, 1.0]] * 4
    assert preprocessing.input_spec.quantile_bins == ((), ())


@pytest.mark.parametrize("scaling", ["standard", "quantile"])
def test_a_constant_with_gaps_keeps_its_indicator(scaling: str) -> None:
    preprocessing, table = one_column([4.0, None], scaling=scaling)
    assert arrays(preprocessing.encode(table))["numeric"].tolist() == [[0.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("scaling", ["standard", "quantile"])
def test_wild_values_stay_finite(scaling: str) -> None:
    preprocessing, _ = one_column(np.linspace(0, 1, 50), scaling=scaling)
    wild = numeric(preprocessing, [1.7e308, -1.7e308])
    assert np.isfinite(wild).all()
    assert wild[0, 0] > 1 > -1 > wild[1, 0]


def test_no_training_value_is_clipped() -> None:
    values = [0.0] * 99_999 + [1e150]
    preprocessing, table = one_column(values)
    largest = arrays(preprocessing.encode(table))["numeric"].max()
    assert largest == pytest.approx(math.sqrt(99_999), rel=1e-6)


def test_quantile_scaling_is_near_scikit_learn_on_continuous_values() -> None:
    x = np.random.default_rng(0).lognormal(size=5000)
    preprocessing, table = one_column(x, scaling="quantile")
    encoded = arrays(preprocessing.encode(table))["numeric"][:, 0]
    reference = QuantileTransformer(n_quantiles=1000, output_distribution="normal").fit_transform(x[:, None])
    inner = np.abs(reference[:, 0]) < 2.5
    assert encoded[inner] == pytest.approx(reference[inner, 0], abs=0.02)
    assert encoded.std() == pytest.approx(1, abs=0.02)
    assert (encoded.min(), encoded.max()) == pytest.approx((-5.2, 5.2), abs=1e-5)


@given(x=st.lists(st.floats(-1e300, 1e300), min_size=2, max_size=60))
@settings(deadline=None, max_examples=100)
def test_quantile_scaling_keeps_the_order(x: list[float]) -> None:
    preprocessing, table = one_column(x, scaling="quantile")
    encoded = arrays(preprocessing.encode(table))["numeric"][:, 0]
    order = np.argsort(x)
    assert (np.diff(encoded[order]) >= 0).all()
    assert np.abs(encoded).max() <= np.float32(5.2)


def test_quantile_scaling_sends_repeated_values_to_the_middle_of_their_probability() -> None:
    preprocessing, _ = one_column([0.0] * 501 + list(range(1, 501)), scaling="quantile")
    assert numeric(preprocessing, [0.0])[0, 0] == pytest.approx(-0.6745, abs=1e-4)  # probability .25


def test_quantiles_end_at_the_extremes_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "SAMPLE_ROWS", 10)
    x = np.random.default_rng(0).normal(size=1000)
    preprocessing, _ = one_column(x, scaling="quantile")
    least, second, most = numeric(preprocessing, [x.min(), np.sort(x)[1], x.max()])[:, 0]
    assert (least, most) == pytest.approx((-5.2, 5.2), abs=1e-5)
    assert least < second


@pytest.mark.parametrize("scaling", ["standard", "quantile"])
def test_bins_hold_equal_mass_and_ascend(scaling: str) -> None:
    x = np.random.default_rng(0).lognormal(size=4800)
    preprocessing, table = one_column(x, scaling=scaling)
    edges = np.array(preprocessing.input_spec.quantile_bins[0])
    encoded = arrays(preprocessing.encode(table))["numeric"][:, 0]
    assert len(edges) == 49
    assert (np.diff(edges.astype(np.float32)) > 0).all()
    assert (edges[0], edges[-1]) == (encoded.min(), encoded.max())
    assert np.histogram(encoded, edges)[0] == pytest.approx(100, abs=2)


def test_bins_of_few_values_are_their_edges() -> None:
    preprocessing, _ = one_column([0.0, 1.0] * 100)
    assert preprocessing.input_spec.quantile_bins == ((-1.0, 1.0),)


# dates


def test_dates_become_days_and_cycles() -> None:
    dates = [datetime.datetime(2024, 1, 1), datetime.datetime(1969, 4, 9), None]
    preprocessing, table = one_column(dates, "date", dtype=pa.timestamp("us"))
    encoded = arrays(preprocessing.encode(table))["numeric"]
    monday, wednesday = 0.0, 2 * math.tau / 7
    april = 3 * math.tau / 12
    assert encoded == pytest.approx(
        np.array(
            [
                [1, 0, 1, math.sin(monday), math.cos(monday), 0],
                [-1, math.sin(april), math.cos(april), math.sin(wednesday), math.cos(wednesday), 0],
                [0, 0, 0, 0, 0, 1],
            ]
        ),
        abs=1e-6,
    )
    bins = preprocessing.input_spec.quantile_bins
    assert [len(edges) for edges in bins] == [2, 0, 0, 0, 0, 0]


def test_hours_only_where_training_has_a_time_of_day() -> None:
    dates = [datetime.datetime(2024, 1, 1, 18, 30), datetime.datetime(1960, 1, 1)]
    preprocessing, table = one_column(dates, "date", dtype=pa.timestamp("us"))
    encoded = arrays(preprocessing.encode(table))["numeric"]
    assert preprocessing.input_spec.num_numeric == 7
    assert encoded[:, 5:] == pytest.approx(np.array([[-1, 0], [0, 1]]), abs=1e-6)


@given(st.lists(st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1)), min_size=2))
@settings(deadline=None, max_examples=50)
def test_date_cycles_agree_with_the_calendar(dates: list[datetime.datetime]) -> None:
    preprocessing, table = one_column(dates, "date", dtype=pa.timestamp("us"))
    encoded = arrays(preprocessing.encode(table))["numeric"]
    for row, date in zip(encoded, dates, strict=True):
        phases = [(date.month - 1) / 12, date.weekday() / 7, date.hour / 24][: (len(row) - 1) // 2]
        cycles = [f(math.tau * phase) for phase in phases for f in (math.sin, math.cos)]
        assert row[1:] == pytest.approx(cycles, abs=1e-6)


# categories


def codes(preprocessing: Preprocessing, values: list[str | None]) -> list[int]:
    encoded = preprocessing.encode(pa.table({"x": pa.array(values, pa.string())}))
    found: list[int] = arrays(encoded)["categorical"][:, 0].tolist()
    return found


def test_categories_by_frequency_then_name_and_unknown_is_zero() -> None:
    preprocessing, _ = one_column(["b", "a", "c", "c", "d", "d"], "categorical")
    assert codes(preprocessing, ["c", "d", "a", "b", "e", None]) == [1, 2, 3, 4, 0, 0]
    assert preprocessing.input_spec.cardinalities == (5,)


def test_missing_is_a_category_where_training_has_it() -> None:
    preprocessing, _ = one_column(["a", None, "a", "None"], "categorical")
    assert codes(preprocessing, ["a", "None", None, "z"]) == [1, 2, 3, 0]
    again = Preprocessing.from_json(preprocessing.to_json())
    assert codes(again, ["a", "None", None, "z"]) == [1, 2, 3, 0]


@pytest.mark.parametrize(("num_rare", "cardinality"), [(48, 51), (49, 3)])
def test_of_more_than_50_categories_those_seen_once_are_unknown(num_rare: int, cardinality: int) -> None:
    values = ["a", "a", "b", "b"] + [f"rare {i}" for i in range(num_rare)]
    preprocessing, _ = one_column(values, "categorical")
    assert preprocessing.input_spec.cardinalities == (cardinality,)


# images and sequences


def test_images_pass_through_and_lost_ones_are_zeros() -> None:
    table = people(20)
    preprocessing = fitted(table)
    photo = table["photo"]
    assert preprocessing.encode(table)["image"].chunk(0).equals(photo.chunk(0))
    gaps = pa.chunked_array([pa.array([None, *photo.to_pylist()[1:]], photo.type)])
    lost = table.set_column(table.column_names.index("photo"), "photo", gaps)
    encoded = preprocessing.encode(lost)
    assert encoded["image"].null_count == 0
    image = arrays(encoded)["image"]
    assert image[0].tolist() == [0] * 12
    assert image[1:].tolist() == photo.to_pylist()[1:]


def test_black_images_have_a_standard_deviation_of_one() -> None:
    table = pa.table({"x": lists(np.zeros((2, 4), np.uint8)), "label": ["a", "b"]})
    spec = fitted(table, (ColumnSpec("x", "image", (1, 2, 2)),)).input_spec
    assert (spec.image_CHW, spec.image_mean, spec.image_std) == ((1, 2, 2), (0.0,), (1.0,))


def test_sequences_are_standardized_per_channel() -> None:
    steps = np.array([[[0, 10], [2, 30]], [[4, 50], [6, 70]]], np.float32)  # [N, T, C]
    table = pa.table({"x": lists(steps.reshape(2, 4)), "label": ["a", "b"]})
    preprocessing = fitted(table, (ColumnSpec("x", "sequence", (2, 2)),))
    encoded = arrays(preprocessing.encode(table))["sequence"].reshape(2, 2, 2)
    expected = (steps - steps.mean(axis=(0, 1))) / steps.std(axis=(0, 1))
    assert encoded == pytest.approx(expected, rel=1e-6)
    assert preprocessing.input_spec.sequence_TC == (2, 2)


# targets


@pytest.mark.parametrize(
    ("column", "classes", "dtype"),
    [
        (pa.array([2, 0, 1, 2]), (0, 1, 2), pa.int64()),
        (pa.array([2, 0, 1, 2], pa.int8()), (0, 1, 2), pa.int64()),
        (pa.array([3.0, 1.0, 3.0]), (1, 3), pa.int64()),  # integers of a file that holds real numbers only
        (pa.array([0.5, 1.0, 1.5]), (0.5, 1.0, 1.5), pa.float64()),
        (pa.array(["b", "a", "10"]), ("10", "a", "b"), pa.string()),
        (pa.array([True, False, True]), (False, True), pa.bool_()),
    ],
)
def test_labels_decode_to_what_they_were(column: pa.Array, classes: Any, dtype: pa.DataType) -> None:
    table = pa.table({"x": pa.array(range(len(column)), pa.float64()), "label": column})
    preprocessing = fitted(table, (ColumnSpec("x", "numeric"),))
    preprocessing = Preprocessing.from_json(preprocessing.to_json())
    spec = preprocessing.input_spec
    assert (spec.classes, spec.num_outputs, spec.task) == (classes, len(classes), "classification")
    indices = arrays(preprocessing.encode(table, with_target=True))["target"]
    assert indices.dtype == np.int64
    assert [classes[i] for i in indices] == column.to_pylist()
    decoded = preprocessing.decode_target(indices)
    assert decoded.type == dtype
    assert decoded.to_pylist() == column.to_pylist()


def test_whole_real_labels_match_integers_of_another_file() -> None:
    table = pa.table({"x": [1.0, 2.0], "label": [0, 1]})
    preprocessing = fitted(table, (ColumnSpec("x", "numeric"),))
    other = pa.table({"x": [1.0, 2.0], "label": [1.0, 0.0]})
    assert arrays(preprocessing.encode(other, with_target=True))["target"].tolist() == [1, 0]


def test_regression_targets_are_standardized_and_decoded() -> None:
    table = people(500)
    price = table["price"].to_numpy()
    preprocessing = fitted(table, target=PRICE, task="regression")
    encoded = arrays(preprocessing.encode(table, with_target=True))["target"]
    assert encoded.dtype == np.float32
    assert (encoded.mean(), encoded.std()) == pytest.approx((0, 1), abs=1e-5)
    assert preprocessing.decode_target(encoded).to_numpy() == pytest.approx(price, rel=1e-5)
    spec = preprocessing.input_spec
    assert (*spec.target_mean, *spec.target_std) == pytest.approx((price.mean(), price.std()), rel=1e-12)
    assert (spec.num_outputs, spec.task, spec.classes) == (1, "regression", None)


def test_many_distinct_values_are_no_burden_for_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "MAX_CLASSES", 10)
    table = people(500)
    assert summarize(table, FEATURES, [PRICE], np.arange(500)).targets[0].counts is None
    assert fitted(table, target=PRICE, task="regression", cuts=(5, 100)).input_spec.target_std[0] > 1


# texts


TEXTS = pa.table({"text": ["to be", None, "or not to be", ""], "label": ["a", "b", "a", "b"]})
TEXT = (ColumnSpec("text", "text"),)


def tokens_of(preprocessing: Preprocessing, texts: list[str | None]) -> list[list[int]]:
    ragged = arrays(preprocessing.encode(pa.table({"text": pa.array(texts, pa.string())})))["tokens"]
    assert isinstance(ragged, Ragged)
    assert ragged.values.dtype == np.int32
    return [ragged.values[a:b].tolist() for a, b in zip(ragged.start_N, ragged.stop_N, strict=True)]


@pytest.mark.parametrize(
    ("tokens", "ids", "size"),
    [
        ("words", [[4, 3, 2, 1], []], 5),  # be, to, not, or
        ("characters", [[5, 6, 1, 4, 5, 7, 1, 7, 5, 1, 2, 3], []], 8),  # blank, b, e, n, o, r, t
        ("bytes", [[1 + byte for byte in b"or not to be"], []], 257),
    ],
)
def test_texts_become_tokens(tokens: str, ids: list[list[int]], size: int) -> None:
    for cuts in ((), (1, 3)):
        preprocessing = fitted(TEXTS, TEXT, cuts=cuts, tokens=tokens)
        again = Preprocessing.from_json(preprocessing.to_json())
        assert again == preprocessing
        assert again.input_spec.vocabulary_size == size
        assert tokens_of(again, ["or not to be", None]) == ids


def test_texts_are_cut_and_what_is_new_in_them_is_token_0() -> None:
    preprocessing = fitted(TEXTS, TEXT, tokens="characters", max_tokens=4)
    assert tokens_of(preprocessing, ["be?boo", "b", ""]) == [[2, 3, 0, 2], [2], []]
    assert tokens_of(fitted(TEXTS, TEXT, tokens="characters", vocabulary=3), ["to be"]) == [[0, 2, 1, 0, 0]]
