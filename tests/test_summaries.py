from __future__ import annotations

import datetime
import itertools
import math
import pickle
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from people import FEATURES, LABEL, PATH, PRICE, fitted, people, ragged

from raynn import summaries
from raynn.columns import ColumnSpec
from raynn.hashing import splitmix64
from raynn.preprocessing import fit, summarize
from raynn.sources import DataSettings
from raynn.summaries import Moments, QuantileSample, Summary, merge, sample_limit


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


def test_statistics_of_ragged_sequences_equal_numpy_over_all_steps() -> None:
    table = ragged([0, 3, 1, 9, 0, 0, 4, 2, 7, 5])
    steps_SC = np.concatenate([np.array(row).reshape(-1, 2) for row in table["path"].to_pylist()])
    assert len(steps_SC) == 31
    for cuts in ((), (1,), (4, 6), tuple(range(1, 10))):
        channels = fitted(table, PATH, cuts=cuts).encodings[0].channels  # type: ignore[union-attr]
        assert [c.mean for c in channels] == pytest.approx(steps_SC.mean(axis=0, dtype=np.float64), rel=1e-12)
        assert [c.std for c in channels] == pytest.approx(steps_SC.std(axis=0, dtype=np.float64), rel=1e-12)


def test_a_gap_or_a_time_of_day_in_any_fragment_counts() -> None:
    days = [datetime.datetime(2024, 1, day) for day in (1, 2, 3)]
    table = pa.table(
        {
            "x": [1.0, 2.0, 3.0, None],
            "day": pa.array([*days, datetime.datetime(2024, 1, 4, 12)], pa.timestamp("us")),
            "label": ["a", "b", "a", "b"],
        }
    )
    features = (ColumnSpec("x", "numeric"), ColumnSpec("day", "date"))
    whole = fitted(table, features).input_spec
    assert whole.num_numeric == 9  # value, days, three pairs of cycles, indicator
    for cut in (1, 3):
        assert fitted(table, features, cuts=(cut,)).input_spec.num_numeric == 9
        reversed_rows = table.take([3, 2, 1, 0])
        assert fitted(reversed_rows, features, cuts=(cut,)).input_spec.num_numeric == 9


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
            summarize(table.slice(a, b - a), features, [PRICE], rows[a:b]) for a, b in itertools.pairwise(edges)
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
    summary = summarize(people(50), FEATURES, [LABEL], np.arange(50))
    again: Summary = pickle.loads(pickle.dumps(summary))
    settings = DataSettings(train="people.csv")
    fits = [fit([s], FEATURES, [LABEL], "classification", settings) for s in (summary, again)]
    assert fits[0] == fits[1]


def test_the_limit_of_a_sample_is_that_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the limit a block sends its rows of the sample and no others, and the sample is the same."""
    monkeypatch.setattr(summaries, "SAMPLE_ROWS", 50)
    features = [ColumnSpec("x", "numeric")]
    parts = [np.arange(start, start + 90) for start in range(0, 900, 90)]
    limit = sample_limit(parts, 1)

    def sample_with(**limits: np.uint64) -> list[QuantileSample]:
        tables = [pa.table({"x": pa.array(ids, pa.float64())}) for ids in parts]
        return [summarize(t, features, [], ids, **limits).sample for t, ids in zip(tables, parts, strict=True)]

    whole, few = (reduce(QuantileSample.merge, samples) for samples in (sample_with(), sample_with(limit=limit)))
    np.testing.assert_array_equal(few.hashes, whole.hashes)
    np.testing.assert_array_equal(few.values_NQ, whole.values_NQ)
    assert sum(len(sample.hashes) for sample in sample_with(limit=limit)) == 50
    assert sample_limit(parts[:1], 0) == sample_limit([np.arange(50)], 1) == summaries.NO_LIMIT
