from __future__ import annotations

import numpy as np

from raynn.hashing import GOLDEN, splitmix64


def test_splitmix64_gives_the_published_sequence() -> None:
    # the first outputs of the generator seeded with 1234567 (Vigna's reference implementation)
    with np.errstate(over="ignore"):
        state = np.uint64(1234567) + np.arange(5, dtype=np.uint64) * GOLDEN
    assert splitmix64(state).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_signed_numbers_count_modulo_2_to_the_64() -> None:
    signed = np.array([-1, -(2**63), 0, 2**63 - 1], np.int64)
    assert splitmix64(signed).tolist() == splitmix64(signed.view(np.uint64)).tolist()
    assert splitmix64(signed).dtype == np.uint64


def test_no_two_numbers_collide() -> None:
    assert len(np.unique(splitmix64(np.arange(-50_000, 50_000)))) == 100_000
