from __future__ import annotations

import datetime
import itertools
import math
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import QuantileTransformer

from raynn import summaries
from raynn.columns import ColumnSpec
from raynn.errors import DataError, RunError
from raynn.hashing import splitmix64
from raynn.preprocessing import InputSpec, Preprocessing, arrays, fit, summarize
from raynn.sources import DataSettings
from raynn.summaries import Moments, Summary, merge

FEATURES = (
    ColumnSpec("age", "numeric"),
    ColumnSpec("name", "ignore", reason="every value is distinct"),
    ColumnSpec("city", "categorical"),
    ColumnSpec("born", "date"),
    ColumnSpec("photo", "image", (3, 2, 2)),
    ColumnSpec("pulse", "sequence", (4, 2)),
    ColumnSpec("income", "numeric"),
)
LABEL = ColumnSpec("label", "categorical")
PRICE = ColumnSpec("price", "numeric")
CITIES = np.array(["Rome", "Oslo", "Lima"])


def lists(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def people(num_rows: int, seed: int = 0) -> pa.Table:
    """A cleaned table with a column of each kind, with gaps."""
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "age": pa.array(rng.normal(40, 12, num_rows), mask=rng.random(num_rows) < 0.1),
            "city": pa.array(rng.choice(CITIES, num_rows), mask=rng.random(num_rows) < 0.1),
            "born": pa.array(
                rng.integers(-(10**15), 10**15, num_rows),
                pa.timestamp("us"),
                mask=rng.random(num_rows) < 0.1,
            ),
            "photo": lists(rng.integers(0, 256, (num_rows, 12), dtype=np.uint8)),
            "pulse": lists(rng.normal(70, 9, (num_rows, 8)).astype(np.float32)),
            "income": pa.array(rng.lognormal(10, 1, num_rows)),
            "label": pa.array(rng.choice(np.array(["no", "yes", "maybe"]), num_rows)),
            "price": pa.array(rng.normal(100, 30, num_rows)),
        }
    )


def fitted(
    table: pa.Table,
    features: Any = FEATURES,
    target: ColumnSpec = LABEL,
    task: Any = "classification",
    scaling: Any = "standard",
    cuts: tuple[int, ...] = (),
) -> Preprocessing:
    pairs = itertools.pairwise([0, *cuts, table.num_rows])
    pieces = [summarize(table.slice(a, b - a), features, target, np.arange(a, b)) for a, b in pairs]
    return fit(pieces, features, target, task, DataSettings(train="people.csv", scaling=scaling))


def one_column(
    values: Any, kind: Any = "numeric", scaling: Any = "standard", dtype: pa.DataType = None
) -> tuple[Preprocessing, pa.Table]:
    """Fitted on a single feature `x`, with a target to go with it."""
    column = pa.array(values, dtype)
    table = pa.table({"x": column, "label": pa.array([str(i % 2) for i in range(len(column))])})
    return fitted(table, (ColumnSpec("x", kind),), scaling=scaling), table


def numeric(preprocessing: Preprocessing, values: Any, dtype: pa.DataType = None) -> np.ndarray:
    return arrays(preprocessing.encode(pa.table({"x": pa.array(values, dtype)})))["numeric"]


# statistics


@given(
    # no numbers so small that their squares vanish, where the deviation is 1 by rule and not numpy's 0
    values=st.lists(st.integers(-(10**9), 10**9).map(lambda i: i / 1000), min_size=2, max_size=200),
    offset=st.sampled_from([0.0, 1.0, -1e4]),
    cuts=st.lists(st.integers(0, 200), max_size=6),
)
@settings(deadline=None, max_examples=200)
def test_merged_moments_equal_numpy(values: list[float], offset: float, cuts: list[int]) -> None:
    x = np.array(values) + offset
    edges = [0, *sorted(min(cut, len(x)) for cut in cuts), len(x)]
    merged = Moments()
    for a, b in itertools.pairwise(edges):
        merged = merged.merge(Moments.of(x[a:b]))
    scale = np.abs(x).max()
    assert merged.count == len(x)
    assert (merged.minimum, merged.maximum) == (x.min(), x.max())
    assert merged.mean == pytest.approx(x.mean(), rel=1e-12, abs=1e-12 * scale)
    if x.min() < x.max():
        assert merged.std == pytest.approx(x.std(), rel=1e-12, abs=1e-14 * scale)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e9, 1e12])
def test_moments_keep_their_precision_far_from_zero(offset: float) -> None:
    x = np.random.default_rng(0).normal(size=999) + offset
    merged = Moments()
    for piece in np.split(x, [1, 10, 500]):
        merged = merged.merge(Moments.of(piece))
    exact = [Fraction(value) for value in x.tolist()]
    mean = sum(exact) / len(exact)
    variance = sum((value - mean) ** 2 for value in exact) / len(exact)
    assert merged.mean == pytest.approx(float(mean), rel=1e-15)
    assert merged.std == pytest.approx(math.sqrt(variance), rel=1e-12)


def test_fitted_statistics_equal_numpy_however_the_rows_are_cut() -> None:
    table = people(1000)
    age = table["age"].drop_null().to_numpy()
    pulse = np.array(table["pulse"].to_pylist()).reshape(-1, 2)
    photo = np.array(table["photo"].to_pylist()).reshape(1000, 3, 4)
    for cuts in ((), (1, 2, 500), tuple(range(50, 1000, 50))):
        fits = fitted(table, cuts=cuts)
        scale: Any = fits.encodings[0]
        assert scale.scale.mean == pytest.approx(age.mean(), rel=1e-12)
        assert scale.scale.std == pytest.approx(age.std(), rel=1e-12)
        sequence: Any = fits.encodings[4]
        assert [c.mean for c in sequence.channels] == pytest.approx(pulse.mean(axis=0), rel=1e-12)
        assert [c.std for c in sequence.channels] == pytest.approx(pulse.std(axis=0), rel=1e-12)
        spec = fits.input_spec
        assert spec.image_mean == pytest.approx(photo.mean(axis=(0, 2)), rel=1e-12)
        assert spec.image_std == pytest.approx(photo.std(axis=(0, 2)), rel=1e-12)


def test_image_statistics_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    table = people(500)
    whole = fitted(table)
    monkeypatch.setattr(summaries, "CHUNK_VALUES", 100)
    assert fitted(table, cuts=(7, 300)).encodings[3] == whole.encodings[3]


@given(cuts=st.lists(st.integers(0, 300), max_size=5), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_quantile_sample_does_not_depend_on_fragments_or_order(cuts: list[int], seed: int) -> None:
    rows = np.random.default_rng(seed).permutation(300)
    table = pa.table({"x": rows.astype(float), "price": rows.astype(float)})
    features = (ColumnSpec("x", "numeric"),)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summaries, "SAMPLE_ROWS", 40)
        edges = [0, *sorted(cuts), 300]
        merged = merge(
            summarize(table.slice(a, b - a), features, PRICE, rows[a:b]) for a, b in itertools.pairwise(edges)
        )
    expected = np.arange(300)[np.argsort(splitmix64(np.arange(300)))[:40]]
    assert merged.sample.values_NQ[:, 0].tolist() == expected.tolist()


def test_quantile_sample_is_uniform() -> None:
    sampled = np.argsort(splitmix64(np.arange(100_000)))[:10_000]
    histogram = np.histogram(sampled, bins=20, range=(0, 100_000))[0]
    assert histogram == pytest.approx(500, abs=120)  # 5.5 standard deviations


def test_wide_tables_keep_a_smaller_sample() -> None:
    assert summaries.sample_rows(30) == 100_000
    assert summaries.sample_rows(10_000) * 10_000 <= 2**24
    assert summaries.sample_rows(0) == 0


def test_summaries_travel() -> None:
    summary = summarize(people(50), FEATURES, LABEL, np.arange(50))
    again: Summary = pickle.loads(pickle.dumps(summary))
    settings = DataSettings(train="people.csv")
    fits = [fit([s], FEATURES, LABEL, "classification", settings) for s in (summary, again)]
    assert fits[0] == fits[1]


# encoding


@pytest.mark.parametrize("scaling", ["standard", "quantile"])
@given(cuts=st.lists(st.integers(0, 400), max_size=4))
@settings(deadline=None, max_examples=15)
def test_pieces_encode_to_the_bits_of_the_whole(scaling: str, cuts: list[int]) -> None:
    table = people(400)
    preprocessing = fitted(people(300, seed=1), scaling=scaling)
    whole = arrays(preprocessing.encode(table, np.arange(400), True))
    pairs = itertools.pairwise([0, *sorted(cuts), 400])
    pieces = [preprocessing.encode(table.slice(a, b - a), np.arange(a, b), True) for a, b in pairs]
    for name, joined in arrays(pa.concat_tables(pieces)).items():
        assert joined.dtype == whole[name].dtype
        assert joined.tobytes() == whole[name].tobytes()


def test_long_tables_encode_to_the_bits_of_their_pieces() -> None:
    table = people(40_000)  # several blocks
    preprocessing = fitted(table)
    whole = arrays(preprocessing.encode(table))["numeric"]
    pieces = [arrays(preprocessing.encode(table.slice(a, 777)))["numeric"] for a in range(0, 40_000, 777)]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


@pytest.mark.parametrize("scaling", ["standard", "quantile"])
@pytest.mark.parametrize(("target", "task"), [(LABEL, "classification"), (PRICE, "regression")])
def test_json_round_trip_encodes_to_the_same_bits(scaling: str, target: ColumnSpec, task: str) -> None:
    table = people(300)
    preprocessing = fitted(table, target=target, task=task, scaling=scaling)
    again = Preprocessing.from_json(preprocessing.to_json())
    assert again == preprocessing
    assert again.input_spec == preprocessing.input_spec
    for a, b in zip(preprocessing.encode(table, None, True), again.encode(table, None, True), strict=True):
        assert a.equals(b)


@given(labels=st.lists(st.one_of(st.integers(-(2**53), 2**53), st.booleans()), min_size=2, unique=True))
@settings(deadline=None, max_examples=30)
def test_json_keeps_the_types_of_labels(labels: list[Any]) -> None:
    kind = type(labels[0])
    labels = [label for label in labels if type(label) is kind]
    if len(labels) < 2:
        return
    table = pa.table({"x": [1.0] * len(labels), "label": labels})
    preprocessing = fitted(table, (ColumnSpec("x", "numeric"),))
    classes = Preprocessing.from_json(preprocessing.to_json()).input_spec.classes
    assert classes is not None
    assert [(type(c), c) for c in classes] == [(kind, label) for label in sorted(labels)]


def test_encoded_columns_types_and_shapes() -> None:
    preprocessing = fitted(people(100))
    encoded = preprocessing.encode(people(20, seed=5), np.arange(7, 27), True)
    assert {field.name: str(field.type).replace("item", "element") for field in encoded.schema} == {
        "numeric": "fixed_size_list<element: float>[11]",
        "categorical": "fixed_size_list<element: int64>[1]",
        "image": "fixed_size_list<element: uint8>[12]",
        "sequence": "fixed_size_list<element: float>[8]",
        "target": "int64",
        "row": "int64",
    }
    views = arrays(encoded)
    assert {name: view.shape for name, view in views.items()} == {
        "numeric": (20, 11),
        "categorical": (20, 1),
        "image": (20, 12),
        "sequence": (20, 8),
        "target": (20,),
        "row": (20,),
    }
    assert views["row"].tolist() == list(range(7, 27))
    assert np.isfinite(views["numeric"]).all()


def test_arrays_are_views() -> None:
    encoded = fitted(people(100)).encode(people(20), np.arange(20), True)
    for name, view in arrays(encoded).items():
        column = encoded[name].chunk(0)
        buffer = (column.values if pa.types.is_fixed_size_list(column.type) else column).buffers()[1]
        assert view.ctypes.data == buffer.address


def test_only_columns_that_there_are() -> None:
    preprocessing, table = one_column([1.0, 2.0, 3.0])
    assert preprocessing.encode(table).column_names == ["numeric"]


def test_an_empty_table_encodes_to_an_empty_table() -> None:
    preprocessing = fitted(people(100))
    encoded = preprocessing.encode(people(100).slice(0, 0), np.arange(0), True)
    assert {name: view.shape[0] for name, view in arrays(encoded).items()} == dict.fromkeys(
        ["numeric", "categorical", "image", "sequence", "target", "row"], 0
    )
    none = people(100).schema.empty_table()
    assert preprocessing.encode(none, np.arange(0), True).num_rows == 0


def test_ignored_columns_are_left_out() -> None:
    preprocessing = fitted(people(100))
    assert [spec.name for spec in preprocessing.features] == [
        "age",
        "city",
        "born",
        "photo",
        "pulse",
        "income",
    ]
    assert preprocessing.target == LABEL


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
def test_constants_become_zero(scaling: str) -> None:
    # the mean of seven times .1 is .09999999999999999 in floats
    preprocessing, table = one_column([0.1] * 7, scaling=scaling)
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
    assert numeric(preprocessing, [x.min(), x.max()])[:, 0] == pytest.approx([-5.2, 5.2], abs=1e-5)


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
    image = arrays(preprocessing.encode(lost))["image"]
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
    indices = arrays(preprocessing.encode(table, None, True))["target"]
    assert indices.dtype == np.int64
    assert [classes[i] for i in indices] == column.to_pylist()
    decoded = preprocessing.decode_target(indices)
    assert decoded.type == dtype
    assert decoded.to_pylist() == column.to_pylist()


def test_whole_real_labels_match_integers_of_another_file() -> None:
    table = pa.table({"x": [1.0, 2.0], "label": [0, 1]})
    preprocessing = fitted(table, (ColumnSpec("x", "numeric"),))
    other = pa.table({"x": [1.0, 2.0], "label": [1.0, 0.0]})
    assert arrays(preprocessing.encode(other, None, True))["target"].tolist() == [1, 0]


def test_regression_targets_are_standardized_and_decoded() -> None:
    table = people(500)
    price = table["price"].to_numpy()
    preprocessing = fitted(table, target=PRICE, task="regression")
    encoded = arrays(preprocessing.encode(table, None, True))["target"]
    assert encoded.dtype == np.float32
    assert (encoded.mean(), encoded.std()) == pytest.approx((0, 1), abs=1e-5)
    assert preprocessing.decode_target(encoded).to_numpy() == pytest.approx(price, rel=1e-5)
    spec = preprocessing.input_spec
    assert (spec.target_mean, spec.target_std) == pytest.approx((price.mean(), price.std()), rel=1e-12)
    assert (spec.num_outputs, spec.task, spec.classes) == (1, "regression", None)


def test_many_distinct_values_are_no_burden_for_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "MAX_CLASSES", 10)
    table = people(500)
    assert summarize(table, FEATURES, PRICE, np.arange(500)).target.counts is None
    assert fitted(table, target=PRICE, task="regression", cuts=(5, 100)).input_spec.target_std > 1


def test_input_spec() -> None:
    spec = fitted(people(300)).input_spec
    assert (spec.num_numeric, spec.cardinalities) == (11, (5,))
    assert (spec.image_CHW, spec.sequence_TC) == ((3, 2, 2), (4, 2))
    assert [len(edges) for edges in spec.quantile_bins] == [49, 49, 0, 0, 0, 0, 0, 0, 49, 0, 0]
    assert (spec.num_outputs, spec.classes) == (3, ("maybe", "no", "yes"))
    assert hash(spec) == hash(fitted(people(300)).input_spec)
    bare, _ = one_column([1.0, 2.0])
    assert bare.input_spec == InputSpec(1, (), quantile_bins=((-1.0, 1.0),), num_outputs=2,
                                        task="classification", classes=("0", "1"))  # fmt: skip


# messages


def says(message: str, call: Any, *arguments: Any, error: type[Exception] = DataError, **named: Any) -> None:
    with pytest.raises(error) as caught:
        call(*arguments, **named)
    assert message in str(caught.value)


def test_missing_column_names_the_nearest() -> None:
    preprocessing = fitted(people(50))
    table = people(50).rename_columns(["agee", "city", "born", "photo", "pulse", "income", "label", "price"])
    says(
        "column 'age', on which the model was trained, is missing from the data, which have 'agee', 'city', "
        "'born', 'photo', 'pulse', ... (3 more). Did you mean 'agee'? Add or rename the column; a value that "
        "is not known may be left empty",
        preprocessing.encode,
        table,
    )
    says(
        "columns 'age', 'city', on which the model was trained, are missing",
        preprocessing.encode,
        table.drop_columns(["city"]),
    )


def test_missing_target_column_names_the_nearest() -> None:
    preprocessing = fitted(people(50))
    table = people(50).drop_columns(["price"])
    table = table.rename_columns([*table.column_names[:-1], "labels"])
    assert preprocessing.encode(table).num_rows == 50
    says(
        "target 'label' is missing from the data, which have 'age', 'city', 'born', 'photo', 'pulse', ... "
        "(2 more). Did you mean 'labels'? Metrics need it; `raynn predict` does not",
        preprocessing.encode,
        table,
        None,
        True,
    )


def with_labels(labels: list[Any]) -> pa.Table:
    return pa.table({"x": pa.array(range(len(labels)), pa.float64()), "label": labels})


def test_unseen_labels_are_named() -> None:
    preprocessing = fitted(with_labels(["cat", "dog", "fox"]), (ColumnSpec("x", "numeric"),))
    says(
        "target 'label': 'Dog', 'yak' in 3 rows is none of the 3 classes of the training rows ('cat', 'dog', "
        "'fox'). Did you mean 'dog'? Mend or drop these rows, or train on rows of every class",
        preprocessing.encode,
        with_labels(["Dog", "cat", "yak", "yak"]),
        None,
        True,
    )
    preprocessing = fitted(with_labels([True, False]), (ColumnSpec("x", "numeric"),))
    says("target 'label': 2 in 1 rows is none", preprocessing.encode, with_labels([1, 2]), None, True)


def test_missing_targets_are_counted() -> None:
    preprocessing = fitted(with_labels(["cat", "dog"]), (ColumnSpec("x", "numeric"),))
    says(
        "target 'label' is missing in 2 of 3 rows; fill it in, or drop these rows",
        preprocessing.encode,
        with_labels(["cat", None, None]),
        None,
        True,
    )


def test_text_where_regression_was_trained() -> None:
    preprocessing = fitted(people(50), target=PRICE, task="regression")
    table = people(3).drop_columns(["price"]).append_column("price", pa.array(["1", "dear", "3"]))
    says("target 'price' must be a number, as in training: ", preprocessing.encode, table, None, True)


X = (ColumnSpec("x", "numeric"),)
ONE_CLASS = with_labels(["cat", "cat"])


@pytest.mark.parametrize(
    ("message", "table", "features", "task"),
    [
        (
            "target 'label' is 'cat' in every training row, and a classifier needs two classes or more; "
            "choose "
            "another `data.target`, or train on rows of every class",
            ONE_CLASS,
            X,
            "classification",
        ),
        (
            "target 'label' is text, and regression needs a number; set `task: classification`, or choose "
            "another `data.target`",
            ONE_CLASS,
            X,
            "regression",
        ),
        ("target 'label' is true or false, and regression", with_labels([True, False]), X, "regression"),
        (
            "data.train has no rows to train on; check the path, and the files' contents",
            ONE_CLASS.slice(0, 0),
            X,
            "classification",
        ),
        (
            "data.features leaves no column to learn from: all are ignored, or there is only the target; "
            "name "
            "some in `data.features`, or override their kind in `data.columns`",
            ONE_CLASS,
            (ColumnSpec("x", "ignore"),),
            "classification",
        ),
        (
            "columns 'a', 'b' are 2 image columns, and networks take one; set `data.columns: {b: ignore}`",
            pa.table({"a": people(9)["photo"], "b": people(9)["photo"], "label": people(9)["label"]}),
            [ColumnSpec(name, "image", (3, 2, 2)) for name in "ab"],
            "classification",
        ),
        (
            "column 'x' is text, and networks take numeric, categorical, date, image and sequence columns; "
            "set "
            "`data.columns: {x: categorical}` or `ignore`",
            ONE_CLASS,
            (ColumnSpec("x", "text"),),
            "classification",
        ),
        (
            "column 'x' ranges from -1e+300 to 1e+300, and its variance exceeds the largest real number; set "
            "`data.scaling: quantile`, or `data.columns: {x: ignore}`",
            pa.table({"x": [1e300, -1e300], "label": ["a", "b"]}),
            X,
            "classification",
        ),
        (
            "target 'label' ranges from 0 to 1e+300, and its variance exceeds the largest real number; "
            "rescale "
            "it, or take its logarithm",
            with_labels([1e300, 0.0]),
            X,
            "regression",
        ),
    ],
)
def test_fit_messages(message: str, table: pa.Table, features: Any, task: str) -> None:
    says(message, fitted, table, features, task=task)


def test_no_fragments() -> None:
    says("data.train has no rows to train on", fit, [], X, LABEL, "classification", DataSettings(train="x"))


def test_too_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "MAX_CLASSES", 10)
    says(
        "target 'label' has more than ",
        fitted,
        with_labels([f"label {i}" for i in range(12)]),
        X,
        cuts=(3, 6, 9),
    )


def test_labels_of_two_kinds() -> None:
    pieces = [summarize(with_labels(labels), X, LABEL, np.arange(2)) for labels in (["a", "b"], [1, 2])]
    says(
        "target 'label' is text in some files and a number in others; set `data.columns: "
        "{label: categorical}` "
        "to read it as text everywhere",
        fit,
        pieces,
        X,
        LABEL,
        "classification",
        DataSettings(train="x"),
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("{}", "task: Field required"),
        ("[]", ": Input should be"),
    ],
)
def test_a_damaged_file_is_named(text: str, reason: str) -> None:
    says(
        f"preprocessing.json of the model is damaged or of another version of raynn ({reason}",
        Preprocessing.from_json,
        text,
        error=RunError,
    )
