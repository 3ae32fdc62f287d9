from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch

from raynn.randomness import column_salts, normal, position_keys, random_bits, random_bytes, row_keys, uniform


def lowbias32(x: int) -> int:
    """The hash in Python integers, as C. Wellons gives it for uint32."""
    x ^= x >> 16
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def test_random_bits_are_lowbias32() -> None:
    edges = [0, 1, -1, 2**31 - 1, -(2**31), 0x7FEB352D, -0x7B935975]
    key_B = torch.cat([torch.tensor(edges, dtype=torch.int32), torch.from_numpy(row_keys(5, 2, np.arange(40)))])
    salt_N = torch.cat([torch.tensor(edges, dtype=torch.int32), column_salts(3, 30)])
    expected = [
        [lowbias32((key ^ salt) & 0xFFFFFFFF) & 0x7FFFFFFF for salt in salt_N.tolist()] for key in key_B.tolist()
    ]
    bits_BN = random_bits(key_B, salt_N)
    assert bits_BN.dtype == torch.int32
    assert bits_BN.tolist() == expected


def test_random_bits_are_uniform() -> None:
    bits_BN = random_bits(torch.from_numpy(row_keys(0, 0, np.arange(2000))), column_salts(0, 200)).numpy()
    n = bits_BN.size
    for bit in range(31):
        ones = int((bits_BN >> bit & 1).sum())
        assert abs(ones - n / 2) < 5 * (n / 4) ** 0.5, f"bit {bit}"
    # chi-square over 64 cells: mean 63, variance 126
    counts = np.bincount(bits_BN.ravel() >> 25, minlength=64)
    chi_square = float(((counts - n / 64) ** 2).sum() / (n / 64))
    assert abs(chi_square - 63) < 5 * 126**0.5


def test_rows_and_columns_are_not_correlated() -> None:
    sign_BN = random_bits(torch.from_numpy(row_keys(1, 0, np.arange(3000))), column_salts(2, 300)).numpy() < 2**30
    x = sign_BN * 2.0 - 1.0
    for a, b in ((x[1:], x[:-1]), (x[:, 1:], x[:, :-1])):
        assert abs(float((a * b).sum())) < 5 * a.size**0.5


def test_a_key_depends_on_seed_epoch_and_row_alone() -> None:
    rows = np.arange(1000, dtype=np.int64)
    keys = row_keys(7, 3, rows)
    assert keys.dtype == np.int32
    shuffled = np.random.default_rng(0).permutation(rows)
    np.testing.assert_array_equal(row_keys(7, 3, shuffled), keys[shuffled])
    for other in (row_keys(8, 3, rows), row_keys(7, 4, rows), row_keys(3, 7, rows)):
        # of 1000 pairs of 32-bit keys, an equal one has probability 2e-7
        assert not (other == keys).any()


@pytest.mark.parametrize("seed", [0, 2**31 - 1])
def test_keys_of_neighboring_rows_and_epochs_differ(seed: int) -> None:
    keys = np.concatenate([row_keys(seed, epoch, np.arange(1000)) for epoch in range(10)])
    # 10,000 draws from 2**32 numbers: 0.01 equal pairs are expected
    assert len(np.unique(keys)) >= 9_999


def test_salts_differ_between_places_and_columns() -> None:
    salts = torch.cat([column_salts(place, 500) for place in range(20)])
    assert len(salts.unique()) >= 9_999
    assert torch.equal(column_salts(4, 500)[:100], column_salts(4, 100))


def test_random_bytes_are_uniform_and_independent() -> None:
    bytes_BN = random_bytes(torch.from_numpy(row_keys(0, 0, np.arange(1000))), column_salts(0, 100)).numpy()
    assert bytes_BN.shape == (1000, 400)
    assert bytes_BN.dtype == np.uint8
    counts = np.bincount(bytes_BN.ravel(), minlength=256)
    chi_square = float(((counts - 1562.5) ** 2).sum() / 1562.5)
    assert abs(chi_square - 255) < 5 * 510**0.5  # mean and variance over 256 cells
    x = (bytes_BN < 128) * 2.0 - 1.0
    for gap in (1, 2, 3, 4):  # within one hash, and between two
        assert abs(float((x[:, gap:] * x[:, :-gap]).sum())) < 5 * (1000 * (400 - gap)) ** 0.5


def test_position_keys_differ_and_do_not_depend_on_how_many_there_are() -> None:
    key_B = torch.from_numpy(row_keys(0, 0, np.arange(50)))
    key_BT = position_keys(key_B, 100)
    assert len(key_BT.unique()) == 5000  # of so many 31-bit numbers, an equal pair has probability 0.006
    assert torch.equal(position_keys(key_B, 30), key_BT[:, :30])
    assert torch.equal(position_keys(key_B[7:9], 30, first=60), key_BT[7:9, 60:90])
    assert int(key_BT.min()) >= 0


def test_uniform_numbers_are_middles_of_equal_intervals() -> None:
    key_B, salt_N = torch.from_numpy(row_keys(3, 1, np.arange(500))), column_salts(2, 400)
    uniform_BN = uniform(key_B, salt_N)
    assert uniform_BN.dtype == torch.float32
    expected = (random_bits(key_B, salt_N).double().div(256, rounding_mode="floor") + 0.5) / 2**23
    assert torch.equal(uniform_BN.double(), expected), "all exact in float32"
    assert 0 < uniform_BN.min() < uniform_BN.max() < 1


def test_normal_numbers_are_quantiles_of_uniform_ones() -> None:
    key_B, salt_N = torch.from_numpy(row_keys(3, 1, np.arange(100))), column_salts(2, 20)
    key_B[0], salt_N[0] = 0, 0  # lowbias32 of 0 is 0: the smallest number there is
    normal_BN = normal(key_B, salt_N)
    assert normal_BN.dtype == torch.float32
    quantile = NormalDist().inv_cdf
    expected = torch.tensor([[quantile(u) for u in row] for row in uniform(key_B, salt_N).tolist()])
    torch.testing.assert_close(normal_BN, expected, rtol=1e-4, atol=1e-6)
    assert normal_BN[0, 0].item() == pytest.approx(quantile(2**-24), rel=1e-4)


def test_normal_numbers_have_the_moments_of_their_distribution() -> None:
    normal_BN = normal(torch.from_numpy(row_keys(0, 0, np.arange(1000))), column_salts(0, 784)).double()
    n = normal_BN.numel()
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):  # E x^p, var x^p
        assert abs((normal_BN**power).mean().item() - moment) < 5 * (spread / n) ** 0.5
    for axis in (0, 1):  # rows and columns are independent of one another: means vary as they must
        mean = normal_BN.mean(axis)
        count = n // len(mean)
        assert mean.var().item() * count == pytest.approx(1, abs=5 * (2 / len(mean)) ** 0.5)
